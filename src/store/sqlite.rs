//! The embedded store: SQLite, WAL, every commit synced to the disk, one process.
//!
//! `writer` is the only connection that writes; it lets changes that arrive together
//! share a commit. `statements` is every change it knows, and `file` is what surrounds
//! them on the disk. Reads have a connection of their own.

mod file;
mod statements;
mod writer;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use chrono::DateTime;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, task::spawn_blocking};
use zeroize::Zeroizing;

use self::{
    file::OpenFiles,
    statements::{CheckedOut, NewTokens, SealedRow, Settlement},
    writer::Writer,
};
use super::{
    Checkout, Lease, Record, RunRecord, Saved, Store, StoreError, cipher::Cipher, lock::StoreLock,
};
use crate::{
    clock::Timestamp,
    credential::{Standing, TokenDetails, TokenSet},
    events,
    name::Name,
    secret::{Fingerprint, Secret},
};

/// Runs kept for each job.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// How many that ended well.
    pub runs: u32,
    /// How many that did not.
    pub failed_runs: u32,
}

/// The embedded store.
pub struct SqliteStore {
    rows: Arc<Rows>,
    history: History,
    writer: Writer,
    // Reads are rare: at the start, and when something went wrong.
    reader: Arc<Mutex<Option<Connection>>>,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes one if there is nothing at all. A file that is
    /// not one of ours, is damaged, or was made with another key is left as it is.
    pub async fn open(path: &Path, cipher: Cipher, history: History) -> Result<Self, StoreError> {
        let path = path.to_owned();
        spawn_blocking(move || Self::open_now(&path, cipher, history))
            .await
            .expect("opening does not panic")
    }

    fn open_now(path: &Path, cipher: Cipher, history: History) -> Result<Self, StoreError> {
        // The files beside a store go by its own name, whatever link led to it.
        let path = fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        let lock = StoreLock::acquire(&path)?;
        if path.exists() {
            file::look(&path, &cipher)?;
        } else {
            file::create(&path, &cipher)?;
        }
        let mut db = file::connect(&path)?;
        file::migrate(&path, &mut db)?;
        // Whoever held a lease on an embedded store is dead, since we have the lock.
        db.execute_batch(
            "BEGIN; UPDATE claims SET owner = NULL, until = NULL WHERE owner IS NOT NULL;
             DELETE FROM claims WHERE intent IS NULL; COMMIT",
        )
        .map_err(unavailable)?;
        let reader = file::connect_for_reading(&path)?;
        let files = OpenFiles::of(&path)?;
        let writer = Writer::start(db, files, lock)
            .map_err(|error| StoreError::Unavailable(format!("no thread for it: {error}")))?;
        Ok(Self {
            rows: Arc::new(Rows { path, cipher }),
            history,
            writer,
            reader: Arc::new(Mutex::new(Some(reader))),
        })
    }

    /// Is there nothing at this path, not even what a lost store leaves behind?
    pub fn is_absent(path: &Path) -> bool {
        !path.exists() && !file::has_log(path)
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.rows.path
    }

    async fn look_up<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        // Waited for here: over there, everybody who waits would hold a thread.
        let reader = self.reader.clone().lock_owned().await;
        let look_up = move || match &*reader {
            Some(db) => query(db).map_err(unavailable),
            None => Err(StoreError::Unavailable("it is closed".into())),
        };
        spawn_blocking(look_up)
            .await
            .expect("a query does not panic")
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        let rows = self.rows.clone();
        // One row after the other: all of them sealed and open would be there twice.
        let records = self.look_up(move |db| {
            let columns = SealedRow::COLUMNS;
            db.prepare(&format!("SELECT {columns} FROM credentials ORDER BY name"))?
                .query_map([], |row| SealedRow::read(row).map(|row| rows.open(row)))?
                .filter_map(Result::transpose)
                .collect()
        });
        records.await
    }

    async fn read(&self, name: &Name) -> Result<Option<Record>, StoreError> {
        let name = name.clone();
        let row = self.look_up(move |db| statements::find(db, &name)).await?;
        Ok(row.and_then(|row| self.rows.open(row)))
    }

    async fn checkout(
        &self,
        name: &Name,
        version: u64,
        lease: &Lease,
    ) -> Result<Checkout, StoreError> {
        let (name, lease) = (name.clone(), lease.clone());
        let checkout = move |db: &Connection| statements::checkout(db, &name, version, &lease);
        Ok(match self.writer.write(checkout).await? {
            CheckedOut::Granted { buried } => Checkout::Granted { buried },
            CheckedOut::Newer(row) => {
                let record = self.rows.open(row);
                Checkout::Newer(Box::new(record.expect("it was found by its name")))
            }
            CheckedOut::Busy(until) => Checkout::Busy {
                until: from_millis(until),
            },
        })
    }

    async fn save(
        &self,
        name: &Name,
        expected: u64,
        tokens: &TokenSet,
    ) -> Result<Saved, StoreError> {
        let version = expected + 1;
        let tokens = NewTokens {
            key_id: self.rows.cipher.key_id().to_owned(),
            sealed: seal(&self.rows.cipher, name, version, tokens),
            details: json(&tokens.details),
            fingerprint: tokens.refresh_token.as_ref().map(Secret::fingerprint),
        };
        let name = name.clone();
        let save = move |db: &Connection| statements::save(db, &name, expected, &tokens);
        Ok(if self.writer.write(save).await? {
            Saved::Version(version)
        } else {
            Saved::Conflict
        })
    }

    async fn settle(
        &self,
        name: &Name,
        lease: &Lease,
        standing: &Standing,
        bury: Option<Fingerprint>,
    ) -> Result<(), StoreError> {
        let settlement = Settlement {
            owner: lease.owner.clone(),
            standing: json(standing),
            doubtful: standing.doubtful,
            bury,
        };
        let name = name.clone();
        let settle = move |db: &Connection| statements::settle(db, &name, &settlement);
        self.writer.write(settle).await
    }

    async fn is_buried(&self, name: &Name, token: Fingerprint) -> Result<bool, StoreError> {
        let name = name.clone();
        self.look_up(move |db| {
            db.prepare_cached("SELECT 1 FROM buried WHERE name = ? AND fingerprint = ?")?
                .exists(params![name.as_str(), token.0])
        })
        .await
    }

    async fn record_run(&self, run: &RunRecord) -> Result<(), StoreError> {
        let (run, history) = (run.clone(), self.history);
        self.writer
            .write(move |db| statements::add_run(db, &run, history))
            .await
    }

    async fn runs(&self, job: &Name, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let job = job.clone();
        self.look_up(move |db| {
            let read = |row: &Row| {
                Ok(RunRecord {
                    job: job.clone(),
                    trigger: row.get(0)?,
                    outcome: row.get(1)?,
                    started_at: from_millis(row.get(2)?),
                    duration: Duration::from_millis(row.get::<_, i64>(3)? as u64),
                    summary: row.get(4)?,
                    trace_id: row.get(5)?,
                })
            };
            db.prepare_cached(
                r#"SELECT "trigger", outcome, started_at, duration_ms, summary, trace_id
                   FROM runs WHERE job = ? ORDER BY id DESC LIMIT ?"#,
            )?
            .query_map(params![job.as_str(), limit], read)?
            .collect()
        })
        .await
    }

    async fn record_firing(&self, job: &Name, at: Timestamp) -> Result<(), StoreError> {
        let job = job.clone();
        self.writer
            .write(move |db| statements::set_firing(db, &job, at))
            .await
    }

    async fn last_firing(&self, job: &Name) -> Result<Option<Timestamp>, StoreError> {
        let job = job.clone();
        let at = self
            .look_up(move |db| {
                db.prepare_cached("SELECT at FROM firings WHERE job = ?")?
                    .query_row([job.as_str()], |row| row.get(0))
                    .optional()
            })
            .await?;
        Ok(at.map(from_millis))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.writer.write(statements::probe).await
    }

    async fn close(&self) {
        self.reader.lock().await.take();
        self.writer.close().await;
    }
}

/// What it takes to read a row.
struct Rows {
    path: PathBuf,
    cipher: Cipher,
}

impl Rows {
    /// `None` for a row that cannot be any credential's.
    fn open(&self, row: SealedRow) -> Option<Record> {
        let Ok(name) = row.name.parse::<Name>() else {
            events::RowIgnored { name: &row.name }.emit();
            return None;
        };
        let contents = self.contents(&name, &row);
        let unreadable = contents.is_none();
        let (tokens, standing) = contents.unwrap_or_default();
        Some(Record {
            name,
            version: row.version,
            tokens,
            standing,
            unreadable,
        })
    }

    fn contents(&self, name: &Name, row: &SealedRow) -> Option<(Option<TokenSet>, Standing)> {
        let mut standing: Standing = serde_json::from_str(row.standing.as_deref()?).ok()?;
        if row.intended {
            standing = standing.interrupted();
        }
        let Some(sealed) = &row.sealed else {
            return Some((None, standing));
        };
        let details = serde_json::from_str(row.details.as_deref()?).ok()?;
        let tokens = unseal(&self.cipher, name, row.version, sealed, details)?;
        Some((Some(tokens), standing))
    }
}

fn unavailable(error: rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn damaged(path: &Path, problem: impl ToString) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn from_millis(millis: i64) -> Timestamp {
    DateTime::from_timestamp_millis(millis).unwrap_or_default()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data becomes JSON")
}

/// What is sealed of a token set. Borrowed when sealing, owned when opening.
#[derive(Serialize, Deserialize)]
struct Secrets<T> {
    access_token: T,
    refresh_token: Option<T>,
}

/// Binds a ciphertext to its row and version: copied elsewhere, or put back from an older
/// time, it does not open.
fn context(cipher: &Cipher, name: &Name, version: u64) -> String {
    format!(
        "perennial credential v1 {} {name} {version}",
        cipher.key_id()
    )
}

fn seal(cipher: &Cipher, name: &Name, version: u64, tokens: &TokenSet) -> Vec<u8> {
    let secrets = Secrets {
        access_token: tokens.access_token.expose(),
        refresh_token: tokens.refresh_token.as_ref().map(Secret::expose),
    };
    // Room for all of it from the start: growing leaves copies behind that nothing wipes.
    let length = [Some(secrets.access_token), secrets.refresh_token]
        .into_iter()
        .flatten();
    let room = 64 + length.map(str::len).sum::<usize>() * 2;
    let mut plain = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *plain, &secrets).expect("plain data becomes JSON");
    cipher.seal(&context(cipher, name, version), &plain)
}

fn unseal(
    cipher: &Cipher,
    name: &Name,
    version: u64,
    sealed: &[u8],
    details: TokenDetails,
) -> Option<TokenSet> {
    let plain = cipher.open(&context(cipher, name, version), sealed)?;
    let Secrets {
        access_token,
        refresh_token,
    } = serde_json::from_slice::<Secrets<Secret>>(&plain).ok()?;
    Some(TokenSet {
        access_token,
        refresh_token,
        details,
    })
}
