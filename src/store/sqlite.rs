//! The embedded store: SQLite, WAL, every commit synced to the disk, one process.
//!
//! `writer` is the only connection that writes; it lets changes that arrive together
//! share a commit. `statements` is every change it knows. Reads have connections of
//! their own.

mod statements;
mod writer;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use chrono::DateTime;
use serde::{Deserialize, Serialize};
use sqlx::{
    ConnectOptions, Connection, Row, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use zeroize::Zeroizing;

use self::writer::Writer;
use super::{
    Checkout, Lease, Record, RunRecord, Saved, Store, StoreError, cipher::Cipher, lock::StoreLock,
    sync_folder_of,
};
use crate::{
    clock::Timestamp,
    credential::{Standing, TokenDetails, TokenSet},
    name::Name,
    secret::{Fingerprint, Secret},
};

const APPLICATION_ID: i32 = 1_347_309_132;

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
    path: PathBuf,
    cipher: Cipher,
    history: History,
    writer: Writer,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes one if there is nothing at all. A file that is
    /// not one of ours, is damaged, or was made with another key is left as it is.
    pub async fn open(path: &Path, cipher: Cipher, history: History) -> Result<Self, StoreError> {
        // The files beside a store go by its own name, whatever link led to it.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let lock = StoreLock::acquire(path)?;
        if path.exists() {
            look(path, &cipher).await?;
        } else {
            create(path, &cipher).await?;
        }
        let mut connection = SqliteConnection::connect_with(&options(path))
            .await
            .map_err(unavailable)?;
        migrate(path, &mut connection).await?;
        // Whoever held a lease on an embedded store is dead, since we have the lock.
        sqlx::query("UPDATE credentials SET lease_owner = NULL WHERE lease_owner IS NOT NULL")
            .execute(&mut connection)
            .await
            .map_err(unavailable)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options(path).read_only(true))
            .await
            .map_err(unavailable)?;
        Ok(Self {
            path: path.to_owned(),
            cipher,
            history,
            writer: Writer::start(connection, lock),
            readers,
        })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self, row: &SqliteRow) -> Result<Record, StoreError> {
        let get = |error| damaged(&self.path, error);
        let name: String = row.try_get("name").map_err(get)?;
        let name: Name = name.parse().map_err(|error| damaged(&self.path, error))?;
        let version = row.try_get::<i64, _>("version").map_err(get)? as u64;
        let standing: String = row.try_get("standing").map_err(get)?;
        let mut standing: Standing =
            serde_json::from_str(&standing).map_err(|error| damaged(&self.path, error))?;
        standing.doubtful |= row.try_get::<bool, _>("doubtful").map_err(get)?;
        let sealed: Option<Vec<u8>> = row.try_get("sealed").map_err(get)?;
        let tokens = match sealed {
            None => None,
            Some(sealed) => {
                let details: String = row.try_get("details").map_err(get)?;
                let details =
                    serde_json::from_str(&details).map_err(|error| damaged(&self.path, error))?;
                let tokens = unseal(&self.cipher, &name, version, &sealed, details);
                Some(tokens.ok_or_else(|| StoreError::Tampered { name: name.clone() })?)
            }
        };
        Ok(Record {
            name,
            version,
            tokens,
            standing,
        })
    }
}

/// What a record is read from.
const COLUMNS: &str = "name, version, sealed, details, standing, intent IS NOT NULL AS doubtful";

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM credentials ORDER BY name"));
        let rows = sqlx::query(sql)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        rows.iter().map(|row| self.record(row)).collect()
    }

    async fn read(&self, name: &Name) -> Result<Option<Record>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM credentials WHERE name = ?"));
        let row = sqlx::query(sql)
            .bind(name.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable)?;
        row.map(|row| self.record(&row)).transpose()
    }

    async fn checkout(&self, name: &Name, lease: &Lease) -> Result<Checkout, StoreError> {
        let checkout = statements::Checkout {
            name: name.clone(),
            lease: lease.clone(),
        };
        match self.writer.write(checkout).await? {
            statements::CheckedOut::Busy(until) => Ok(Checkout::Busy {
                until: from_millis(until),
            }),
            statements::CheckedOut::Granted { before, buried } => Ok(Checkout::Granted {
                record: self.record(&before)?,
                buried,
            }),
        }
    }

    async fn save(
        &self,
        name: &Name,
        expected: u64,
        tokens: &TokenSet,
    ) -> Result<Saved, StoreError> {
        let version = expected + 1;
        let save = statements::Save {
            name: name.clone(),
            expected,
            key_id: self.cipher.key_id().to_owned(),
            sealed: seal(&self.cipher, name, version, tokens),
            details: json(&tokens.details),
            fingerprint: tokens.refresh_token.as_ref().map(Secret::fingerprint),
        };
        let saved = self.writer.write(save).await?;
        Ok(if saved {
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
        let settle = statements::Settle {
            name: name.clone(),
            owner: lease.owner.clone(),
            standing: json(standing),
            doubtful: standing.doubtful,
            bury,
        };
        self.writer.write(settle).await
    }

    async fn is_buried(&self, name: &Name, token: Fingerprint) -> Result<bool, StoreError> {
        sqlx::query("SELECT 1 FROM buried WHERE name = ? AND fingerprint = ?")
            .bind(name.as_str())
            .bind(token.0.to_vec())
            .fetch_optional(&self.readers)
            .await
            .map(|row| row.is_some())
            .map_err(unavailable)
    }

    async fn record_run(&self, run: &RunRecord) -> Result<(), StoreError> {
        self.writer
            .write(statements::AddRun {
                run: run.clone(),
                history: self.history,
            })
            .await
    }

    async fn runs(&self, job: &Name, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let rows = sqlx::query(
            r#"SELECT "trigger", outcome, started_at, duration_ms, summary, trace_id
               FROM runs WHERE job = ? ORDER BY id DESC LIMIT ?"#,
        )
        .bind(job.as_str())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let run = |row: &SqliteRow| -> Result<RunRecord, sqlx::Error> {
            Ok(RunRecord {
                job: job.clone(),
                trigger: row.try_get("trigger")?,
                outcome: row.try_get("outcome")?,
                started_at: from_millis(row.try_get("started_at")?),
                duration: Duration::from_millis(row.try_get::<i64, _>("duration_ms")? as u64),
                summary: row.try_get("summary")?,
                trace_id: row.try_get("trace_id")?,
            })
        };
        rows.iter()
            .map(run)
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(&self.path, error))
    }

    async fn record_firing(&self, job: &Name, at: Timestamp) -> Result<(), StoreError> {
        self.writer
            .write(statements::SetFiring {
                job: job.clone(),
                at,
            })
            .await
    }

    async fn last_firing(&self, job: &Name) -> Result<Option<Timestamp>, StoreError> {
        let row = sqlx::query("SELECT at FROM firings WHERE job = ?")
            .bind(job.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable)?;
        let at = row.map(|row| row.try_get("at")).transpose();
        Ok(at
            .map_err(|error| damaged(&self.path, error))?
            .map(from_millis))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.writer.write(statements::Probe).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // An answer of a commit means that the disk has it.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let first = include_str!("migrations/0001_first.sql").into_sql_str();
    let migrations = vec![Migration::new(
        1,
        "first".into(),
        MigrationType::Simple,
        first,
        false,
    )];
    // Not `run`: the compiler cannot see that its future is `Send`.
    Migrator::with_migrations(migrations)
        .run_direct(None, connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                unavailable(error)
            }
            other => damaged(path, other),
        })
}

/// Makes a store beside its final place and moves it there when it is whole, so that an
/// empty file at that place is always damage and never a beginning.
async fn create(path: &Path, cipher: &Cipher) -> Result<(), StoreError> {
    let beside = |suffix: &str| {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        PathBuf::from(beside)
    };
    if fs::metadata(beside("-wal")).is_ok_and(|log| log.len() > 0) {
        let problem = "the database is missing, but its write-ahead log is there".into();
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            problem,
        });
    }
    let io =
        |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
    let draft = beside(".new");
    // Left behind by a crash in here; it never held anything.
    for suffix in [".new", ".new-journal", ".new-wal", ".new-shm"] {
        let _ = fs::remove_file(beside(suffix));
    }
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io)?;
    let mut connection = SqliteConnection::connect_with(&options(&draft))
        .await
        .map_err(unavailable)?;
    migrate(&draft, &mut connection).await?;
    sqlx::query("INSERT INTO store (id, key_id) VALUES (1, ?)")
        .bind(cipher.key_id())
        .execute(&mut connection)
        .await
        .map_err(unavailable)?;
    // Folds the log into the file, so that the file alone is the store.
    connection.close().await.map_err(unavailable)?;
    fs::rename(&draft, path)
        .and_then(|()| sync_folder_of(path))
        .map_err(io)
}

/// Looks at a store without changing it: is it one, is it whole, does the key fit?
async fn look(path: &Path, cipher: &Cipher) -> Result<(), StoreError> {
    let size = |suffix: &str| {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        fs::metadata(file).map_or(0, |file| file.len())
    };
    if size("") == 0 {
        return Err(damaged(path, "it is empty"));
    }
    // Whoever opens a database for writing may change it: its journal mode, and at the end
    // the changes in its log are moved into it. Without a log it is read as if it were on a
    // CD, so that not even a file is made beside it.
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .immutable(size("-wal") == 0)
        .disable_statement_logging();
    let refused = |error| {
        if is_damage(&error) {
            damaged(path, error)
        } else {
            unavailable(error)
        }
    };
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(refused)?;
    let seen = inspect(&mut connection).await;
    // Not left to a drop, which closes it some time later.
    let _ = connection.close().await;
    match seen.map_err(refused)? {
        Seen::Problem(problem) => Err(damaged(path, problem)),
        Seen::Store { key_id } if key_id != cipher.key_id() => Err(StoreError::WrongKey {
            path: path.to_owned(),
            expected: key_id,
            given: cipher.key_id().to_owned(),
        }),
        Seen::Store { .. } => Ok(()),
    }
}

/// What is in a file that SQLite can open.
enum Seen {
    Store { key_id: String },
    Problem(String),
}

async fn inspect(connection: &mut SqliteConnection) -> Result<Seen, sqlx::Error> {
    let id: i32 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await?;
    if id != APPLICATION_ID {
        return Ok(Seen::Problem("it is another program's database".into()));
    }
    let check: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(&mut *connection)
        .await?;
    if check != "ok" {
        return Ok(Seen::Problem(check));
    }
    let key_id = sqlx::query_scalar("SELECT key_id FROM store")
        .fetch_one(connection)
        .await?;
    Ok(Seen::Store { key_id })
}

/// Says this error that the file is not, or no longer, a store? The others pass: a disk that
/// fails, memory that is short.
fn is_damage(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return matches!(
            error,
            sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. }
        );
    };
    // The low byte is the primary code: 1 SQLITE_ERROR (no such table), 11 SQLITE_CORRUPT,
    // 26 SQLITE_NOTADB.
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| [1, 11, 26].contains(&(code & 0xff)))
}

fn unavailable(error: sqlx::Error) -> StoreError {
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
    let plain = Zeroizing::new(serde_json::to_vec(&secrets).expect("plain data becomes JSON"));
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
