//! The file of an embedded store: made whole, looked at before it is touched, brought up to
//! date.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use url::Url;

use super::{StoreError, damaged, unavailable};
use crate::store::{cipher::Cipher, sync_folder_of};

const APPLICATION_ID: i32 = 1_347_309_132;

/// What brings a store from one form to the next; `user_version` counts those that were applied.
const MIGRATIONS: [&str; 2] = [
    include_str!("../migrations/0001_first.sql"),
    include_str!("../migrations/0002_rows.sql"),
];

/// A connection to a store that exists, for writing.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(unavailable)?;
    db.busy_timeout(Duration::from_secs(5))
        .map_err(unavailable)?;
    // An answer of a commit means that the disk has it. The log may grow to 16 MB before it is
    // moved into the database, since everybody waits while it is.
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000",
    )
    .map_err(unavailable)?;
    Ok(db)
}

/// A connection that cannot write.
pub(super) fn connect_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(unavailable)?;
    db.busy_timeout(Duration::from_secs(5))
        .map_err(unavailable)?;
    Ok(db)
}

/// Brings a store to the form that this version knows.
pub(super) fn migrate(path: &Path, db: &mut Connection) -> Result<(), StoreError> {
    let applied = applied(db).map_err(unavailable)?;
    if applied > MIGRATIONS.len() {
        return Err(StoreError::Newer {
            path: path.to_owned(),
        });
    }
    for (number, sql) in (1..).zip(MIGRATIONS).skip(applied) {
        let migration = db.transaction().map_err(unavailable)?;
        migration
            .execute_batch(sql)
            .and_then(|()| migration.pragma_update(None, "user_version", number))
            .and_then(|()| migration.commit())
            .map_err(unavailable)?;
    }
    Ok(())
}

fn applied(db: &Connection) -> rusqlite::Result<usize> {
    let counted: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // The first stores kept their count in a table.
    let uncounted = counted == 0 && db.table_exists(None, "_sqlx_migrations")?;
    Ok(if uncounted { 1 } else { counted as usize })
}

/// Makes a store beside its final place and moves it there when it is whole, so that an
/// empty file at that place is always damage and never a beginning.
pub(super) fn create(path: &Path, cipher: &Cipher) -> Result<(), StoreError> {
    if has_log(path) {
        let problem = "the database is missing, but its write-ahead log is there";
        return Err(damaged(path, problem));
    }
    let io = |error| unusable(path, error);
    let draft = beside(path, ".new");
    // Left behind by a crash in here; it never held anything.
    for suffix in [".new", ".new-journal", ".new-wal", ".new-shm"] {
        let _ = fs::remove_file(beside(path, suffix));
    }
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io)?;
    let mut db = connect(&draft)?;
    migrate(&draft, &mut db)?;
    db.execute(
        "INSERT INTO store (id, key_id) VALUES (1, ?)",
        [cipher.key_id()],
    )
    .map_err(unavailable)?;
    // Folds the log into the file, so that the file alone is the store.
    db.close().map_err(|(_, error)| unavailable(error))?;
    // It does not say so when it could not.
    if has_log(&draft) {
        let problem = format!(
            "{}: its first log could not be written to it",
            path.display()
        );
        return Err(StoreError::Unavailable(problem));
    }
    fs::rename(&draft, path)
        .and_then(|()| sync_folder_of(path))
        .map_err(io)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    PathBuf::from(beside)
}

/// Is there a write-ahead log beside a database, with something in it?
pub(super) fn has_log(path: &Path) -> bool {
    fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// The database and the log of a store that is open. Their names must go on to mean them: what
/// is written to a file that was deleted or replaced is found by nobody.
pub(super) struct OpenFiles([(PathBuf, (u64, u64)); 2]);

impl OpenFiles {
    /// Of a store that a connection has written to.
    pub(super) fn of(path: &Path) -> Result<Self, StoreError> {
        let file = |suffix| {
            let path = beside(path, suffix);
            let identity = identity_of(&path).map_err(|error| unusable(&path, error))?;
            Ok((path, identity))
        };
        Ok(Self([file("")?, file("-wal")?]))
    }

    /// Fails when somebody has taken one away.
    pub(super) fn are_in_place(&self) -> Result<(), StoreError> {
        for (path, identity) in &self.0 {
            match identity_of(path) {
                Ok(found) if found == *identity => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(unusable(path, error));
                }
                _ => {
                    return Err(StoreError::Unavailable(format!(
                        "{} was deleted or replaced while it was in use; put it back, or stop \
                         this process and then put the right one there",
                        path.display()
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Tells a file from every other, whatever its name.
fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

fn unusable(path: &Path, error: io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

/// Looks at a store without changing it: is it one, is it whole, does the key fit?
pub(super) fn look(path: &Path, cipher: &Cipher) -> Result<(), StoreError> {
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(damaged(path, "it is empty"));
    }
    // Whoever opens a database for writing may change it: its journal mode, and at the end
    // the changes in its log are moved into it. Without a log it is read as if it were on a
    // CD, so that not even a file is made beside it.
    let alone = || {
        let mut url = Url::from_file_path(path).expect("it exists, so it was made absolute");
        url.set_query(Some("immutable=1"));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(url.as_str(), flags)
    };
    let seen = if has_log(path) {
        // SQLite would take the log for that of any database that was put beside it. An error
        // says nothing: a crash may leave a database that only its log makes whole.
        if let Ok(seen) = alone().and_then(|db| identify(&db)) {
            judge(path, seen, cipher)?;
        }
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|db| inspect(&db))
    } else {
        alone().and_then(|db| inspect(&db))
    };
    let seen = seen.map_err(|error| {
        if is_damage(&error) {
            damaged(path, error)
        } else {
            unavailable(error)
        }
    });
    judge(path, seen?, cipher)
}

fn judge(path: &Path, seen: Seen, cipher: &Cipher) -> Result<(), StoreError> {
    match seen {
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

fn inspect(db: &Connection) -> rusqlite::Result<Seen> {
    let seen = identify(db)?;
    if matches!(seen, Seen::Store { .. }) {
        let check: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if check != "ok" {
            return Ok(Seen::Problem(check));
        }
    }
    Ok(seen)
}

fn identify(db: &Connection) -> rusqlite::Result<Seen> {
    let id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID {
        return Ok(Seen::Problem("it is another program's database".into()));
    }
    let key_id = db
        .query_row("SELECT key_id FROM store", [], |row| row.get(0))
        .optional()?;
    Ok(match key_id {
        Some(key_id) => Seen::Store { key_id },
        None => Seen::Problem("it does not say which key it was made with".into()),
    })
}

/// Says this error that the file is not, or no longer, a store? The others pass: a disk that
/// fails, memory that is short.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        // `Unknown` is SQLITE_ERROR, such as a table that is missing.
        Some(ErrorCode::Unknown | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    ) || matches!(error, rusqlite::Error::InvalidColumnType(..))
}
