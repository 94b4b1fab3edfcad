//! Where credentials, leases, intents and run history are kept.
//!
//! The trait is written for several processes on one store: who refreshes is decided by a
//! lease, what is saved by compare-and-swap on the version. [`sqlite`] is the embedded
//! store. Every store passes the same contract, in `tests/store_contract.rs`.

pub mod cipher;
pub mod lock;
pub mod probe;
pub mod sqlite;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde::Serialize;

use crate::{
    clock::{Moment, Timestamp},
    credential::{Credential, Standing, TokenSet, Withheld, policy::Rules},
    name::Name,
    oauth::Grant,
    secret::Fingerprint,
};

/// Keeps what must survive. Every method that changes something returns only when the
/// change is durable.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Every credential in the store, in the order of their names.
    async fn load(&self) -> Result<Vec<Record>, StoreError>;

    /// One credential, or `None` if the store has never heard of it.
    async fn read(&self, name: &Name) -> Result<Option<Record>, StoreError>;

    /// Takes the lease of a credential and commits the intent to spend its refresh token:
    /// from here on, a crash leaves a trace. Nothing is changed if the store has a later
    /// version than `version`. A credential not yet known is created at version 0.
    async fn checkout(
        &self,
        name: &Name,
        version: u64,
        lease: &Lease,
    ) -> Result<Checkout, StoreError>;

    /// Replaces the tokens if the version is still `expected`; the new version is one
    /// more. Closes the intent and gives the lease back in the same commit, and clears
    /// the standing: there is no moment in which a saved token looks doubtful.
    async fn save(
        &self,
        name: &Name,
        expected: u64,
        tokens: &TokenSet,
    ) -> Result<Saved, StoreError>;

    /// Gives the lease back without new tokens and records how the credential stands.
    /// `bury` remembers a refresh token that the server declared dead. The intent is
    /// closed unless the standing says that the answer is unknown. Changes nothing if
    /// somebody else has the lease by now.
    async fn settle(
        &self,
        name: &Name,
        lease: &Lease,
        standing: &Standing,
        bury: Option<Fingerprint>,
    ) -> Result<(), StoreError>;

    /// Has this refresh token been declared dead by its server?
    async fn is_buried(&self, name: &Name, token: Fingerprint) -> Result<bool, StoreError>;

    /// Adds a finished run to the history of its job, and forgets the oldest beyond
    /// what is kept.
    async fn record_run(&self, run: &RunRecord) -> Result<(), StoreError>;

    /// The last runs of a job, newest first, at most `limit`.
    async fn runs(&self, job: &Name, limit: u32) -> Result<Vec<RunRecord>, StoreError>;

    /// Remembers that the schedule of a job fired.
    async fn record_firing(&self, job: &Name, at: Timestamp) -> Result<(), StoreError>;

    /// When the schedule of a job last fired.
    async fn last_firing(&self, job: &Name) -> Result<Option<Timestamp>, StoreError>;

    /// Proves that the store can write, durably.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Finishes what is under way and lets go of the store.
    async fn close(&self);
}

/// Makes a new name in a folder durable: syncing the file alone does not.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    folder_of(path)?.sync_all()
}

fn folder_of(path: &Path) -> io::Result<File> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
}

/// A credential as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name.
    pub name: Name,
    /// Grows by one with each token set; 0 before the first.
    pub version: u64,
    /// The tokens, if it ever had some and they can be read.
    pub tokens: Option<TokenSet>,
    /// How it stands. `doubtful` when an intent is open: a process died, no answer came,
    /// or somebody who holds the lease is waiting for it right now.
    pub standing: Standing,
    /// What is kept of it was changed from outside or is damaged, so that neither tokens nor
    /// standing are known. One such row must not stop the others.
    pub unreadable: bool,
}

impl Record {
    /// The credential as it stands, for the provider and the grant that are configured for it.
    pub fn into_credential(
        self,
        provider: &Name,
        grant: &dyn Grant,
        rules: &Rules,
        now: Moment,
    ) -> Credential {
        match self.withheld(provider) {
            None => Credential::restored(self.version, self.tokens, self.standing, rules, now),
            Some(why) if grant.spends_refresh_token() => Credential::withheld(self.version, why),
            // Nothing is lost with tokens that the client gets in its own name.
            Some(_) => Credential {
                version: self.version,
                ..Credential::pending()
            },
        }
    }

    fn withheld(&self, provider: &Name) -> Option<Withheld> {
        if self.unreadable {
            return Some(Withheld::Unreadable);
        }
        let theirs = self.tokens.as_ref()?.details.provider.as_ref()?;
        (theirs != provider).then(|| Withheld::OfProvider(theirs.clone()))
    }
}

/// The right to refresh one credential until a time.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Who holds it: a random name of the process.
    pub owner: String,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// How long it holds. Longer than a token request may take, so it needs no renewal.
    pub lasts: Duration,
}

/// What [`Store::checkout`] found.
#[derive(Clone, Debug, PartialEq)]
pub enum Checkout {
    /// The lease is ours, and the intent is durable.
    Granted {
        /// The refresh token was declared dead by its server: do not send it.
        buried: bool,
    },
    /// Somebody else has saved newer tokens.
    Newer(Box<Record>),
    /// Another process is refreshing it.
    Busy {
        /// When its lease ends at the latest.
        until: Timestamp,
    },
}

/// What [`Store::save`] did.
#[derive(Clone, Debug, PartialEq)]
pub enum Saved {
    /// The tokens are durable under this version.
    Version(u64),
    /// Somebody saved another token set meanwhile; nothing was changed.
    Conflict,
}

/// One finished run of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunRecord {
    /// The job.
    pub job: Name,
    /// What started it.
    pub trigger: String,
    /// How it ended.
    pub outcome: String,
    /// When it started.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// One line for people.
    pub summary: String,
    /// The trace of this run, if it was sampled.
    pub trace_id: Option<String>,
}

/// Why the store could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A disk, a file system or a database server failed. It may work later.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
    /// Another process has it.
    #[error("{} is in use by another Perennial{}; stop that one, or give this one a store of its own", path.display(), pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who has it, where it is known.
        pid: Option<String>,
    },
    /// The file is something else, or not whole.
    #[error("{} is not a Perennial store or is damaged ({problem}); nothing was changed: restore it from a backup, or move it away to begin anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was seen.
        problem: String,
    },
    /// The file was made by a later version of Perennial.
    #[error("{} was written by a newer Perennial; nothing was changed: run that version, or restore a backup from before it", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
    },
    /// The key does not open the store.
    #[error("{} was encrypted with key {expected}, and the key given is {given}; nothing was changed: set PERENNIAL_KEY, PERENNIAL_KEY_FILE or store.key_file to the right key", path.display())]
    WrongKey {
        /// The store.
        path: PathBuf,
        /// The id of the key that the store was made with.
        expected: String,
        /// The id of the key that was given.
        given: String,
    },
    /// The key cannot be had.
    #[error("store key: {0}")]
    Key(String),
}
