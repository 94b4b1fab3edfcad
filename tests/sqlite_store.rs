//! What is particular to the embedded store: its files, and what it does when somebody or
//! something else touches them. What it shares with every store is in `store_contract.rs`.

use std::{
    collections::BTreeMap,
    fs,
    future::poll_fn,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    task::Poll,
    time::Duration,
};

use chrono::DateTime;
use futures_util::future::maybe_done;
use perennial::{
    clock::Timestamp,
    credential::{LifetimeSource, TokenDetails, TokenSet},
    name::Name,
    secret::Secret,
    store::{
        Checkout, Lease, Saved, Store, StoreError,
        cipher::{Cipher, generate_key_file, read_key_file},
        sqlite::{History, SqliteStore},
    },
};
use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[tokio::test]
async fn a_second_process_is_told_who_has_the_store() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    let error = folder.open().await.err().expect("it is in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "{} is in use by another Perennial (process {}); \
             stop that one, or give this one a store of its own",
            folder.database().display(),
            std::process::id(),
        )
    );
    store.probe().await.unwrap();
    store.close().await;
    folder.open().await.unwrap();
}

#[tokio::test]
async fn a_link_to_a_store_is_the_same_store() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(folder.database(), &link).unwrap();
    let error = open(&link, 1).await.err().expect("it is in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    store.close().await;
}

#[tokio::test]
async fn its_files_are_for_their_owner_only() {
    let folder = Folder::new();
    let key_file = folder.file("key");
    generate_key_file(&key_file).unwrap();
    let cipher = Cipher::from_base64(&read_key_file(&key_file).unwrap()).unwrap();
    let store = SqliteStore::open(&folder.database(), cipher, HISTORY).await;
    save(&store.unwrap(), "one", 0, "t").await;

    let mut modes = BTreeMap::new();
    for entry in fs::read_dir(folder.0.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        modes.insert(entry.file_name().into_string().unwrap(), mode);
    }
    let files = ["", "-shm", "-wal", ".lock"].map(|suffix| format!("perennial.db{suffix}"));
    let private = files.into_iter().chain(["key".into()]);
    assert_eq!(modes, private.map(|file| (file, 0o600)).collect());
}

#[tokio::test]
async fn a_wrong_key_is_one_sentence_and_touches_nothing() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    save(&store, "one", 0, "t").await;
    // With changes in the log that are not yet in the database, as a crash leaves them.
    let crashed = folder.copy_as_a_crash_leaves_it();
    store.close().await;

    for (folder, left) in [(&folder, "closed"), (&crashed, "crashed")] {
        let before = folder.bytes();
        let error = open(&folder.database(), 2).await.err();
        let error = error.expect("the key is wrong");
        assert!(matches!(error, StoreError::WrongKey { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!(
                "{} was encrypted with key {}, and the key given is {}; nothing was changed: \
                 set PERENNIAL_KEY, PERENNIAL_KEY_FILE or store.key_file to the right key",
                folder.database().display(),
                cipher(1).key_id(),
                cipher(2).key_id(),
            )
        );
        assert!(before == folder.bytes(), "{left}: the files were changed");
        let store = folder.open().await.unwrap();
        let record = store.read(&name("one")).await.unwrap().unwrap();
        assert_eq!(record.tokens, Some(tokens("t")), "{left}");
    }
}

#[tokio::test]
async fn what_is_not_a_store_is_left_as_it_is() {
    let truncated = {
        let folder = Folder::new();
        let store = folder.open().await.unwrap();
        for number in 0..50 {
            save(&store, &format!("credential-{number}"), 0, "t").await;
        }
        store.close().await;
        let whole = fs::read(folder.database()).unwrap();
        whole[..whole.len() / 2].to_vec()
    };
    let cases = [
        ("an empty file", Vec::new(), "it is empty"),
        (
            "garbage",
            b"no database at all\n".repeat(1_000),
            "file is not a database",
        ),
        (
            "another program's database",
            database_of_another_program("DELETE"),
            "it is another program's database",
        ),
        (
            "another program's database with a log",
            database_of_another_program("WAL"),
            "it is another program's database",
        ),
        ("half a store", truncated, "malformed"),
    ];
    for (what, content, problem) in cases {
        let folder = Folder::new();
        fs::write(folder.database(), content).unwrap();
        let before = folder.bytes();
        let error = folder.open().await.err().expect(what);
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{what}: {error:?}"
        );
        let error = error.to_string();
        let path = folder.database().display().to_string();
        assert!(error.starts_with(&path), "{what}: {error}");
        assert!(error.contains(problem), "{what}: {error}");
        assert!(before == folder.bytes(), "{what}: the files were changed");
    }
}

#[tokio::test]
async fn a_log_without_its_database_is_not_overwritten() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    save(&store, "one", 0, "t").await;
    let crashed = folder.copy_as_a_crash_leaves_it();
    store.close().await;
    fs::remove_file(crashed.database()).unwrap();

    let before = crashed.bytes();
    let error = crashed.open().await.err().expect("the database is gone");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(
        error.to_string().contains("write-ahead log"),
        "it says what is there: {error}"
    );
    assert!(before == crashed.bytes(), "the files were changed");
}

#[tokio::test]
async fn a_store_of_the_first_form_is_brought_up_to_date() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    save(&store, "one", 0, "t").await;
    save(&store, "under-way", 0, "u").await;
    store.close().await;
    // As it was made at first: one table for all of a credential, migrations counted in another.
    let first = Folder::new();
    let db = first.connection();
    db.execute_batch(include_str!("../src/store/migrations/0001_first.sql"))
        .unwrap();
    db.execute("ATTACH ? AS now", [folder.database().to_str().unwrap()])
        .unwrap();
    db.execute_batch(
        "CREATE TABLE _sqlx_migrations (version INTEGER PRIMARY KEY);
         INSERT INTO store (id, key_id) SELECT id, key_id FROM now.store;
         INSERT INTO credentials (name, version, key_id, sealed, details, fingerprint)
         SELECT name, version, key_id, sealed, details, fingerprint FROM now.credentials;
         UPDATE credentials SET intent = fingerprint, lease_owner = 'dead', lease_until = 9e15
         WHERE name = 'under-way'",
    )
    .unwrap();
    drop(db);

    for opened in ["the first time", "again"] {
        let store = first.open().await.unwrap();
        let records = store.load().await.unwrap();
        let names: Vec<_> = records.iter().map(|record| record.name.as_str()).collect();
        assert_eq!(names, ["one", "under-way"], "{opened}");
        assert_eq!(records[0].tokens, Some(tokens("t")), "{opened}");
        assert_eq!(records[1].tokens, Some(tokens("u")), "{opened}");
        let doubtful: Vec<_> = records
            .iter()
            .map(|record| record.standing.doubtful)
            .collect();
        assert_eq!(doubtful, [false, true], "{opened}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_of_a_later_version_is_left_as_it_is() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    save(&store, "one", 0, "t").await;
    store.close().await;
    let db = folder.connection();
    db.pragma_update(None, "user_version", 1_000).unwrap();
    db.close().unwrap();
    let before = folder.bytes();
    let error = folder.open().await.err().expect("it is unknown");
    assert!(matches!(error, StoreError::Newer { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "{} was written by a newer Perennial; nothing was changed: run that version, or \
             restore a backup from before it",
            folder.database().display()
        )
    );
    assert!(before == folder.bytes(), "the files were changed");
}

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    for number in 0..20 {
        save(&store, &format!("credential-{number}"), 0, "t").await;
    }
    let held = Lease {
        owner: "dead".into(),
        taken_at: start(),
        lasts: Duration::from_secs(30),
    };
    store
        .checkout(&name("credential-7"), 1, &held)
        .await
        .unwrap();
    let crashed = folder.copy_as_a_crash_leaves_it();
    store.close().await;

    let store = crashed.open().await.unwrap();
    let records = store.load().await.unwrap();
    assert_eq!(records.len(), 20);
    for record in records {
        let name = record.name.as_str();
        assert_eq!(record.tokens, Some(tokens("t")), "{name}");
        assert_eq!(record.standing.doubtful, name == "credential-7", "{name}");
    }
    // Its holder is dead, since nobody else can have had the store open.
    let next = Lease {
        owner: "next".into(),
        ..held
    };
    let checkout = store
        .checkout(&name("credential-7"), 1, &next)
        .await
        .unwrap();
    assert!(matches!(checkout, Checkout::Granted { .. }), "{checkout:?}");
}

#[tokio::test]
async fn secrets_are_not_in_its_files() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    let planted = "planted-secret-0123456789abcdef";
    let checkout = Lease {
        owner: "a".into(),
        taken_at: start(),
        lasts: Duration::from_secs(30),
    };
    save(&store, "credential-in-clear", 0, planted).await;
    let subject = name("credential-in-clear");
    store.checkout(&subject, 1, &checkout).await.unwrap();
    let dead = tokens(planted).refresh_token.unwrap().fingerprint();
    store
        .settle(&subject, &checkout, &Default::default(), Some(dead))
        .await
        .unwrap();

    let has = |files: &BTreeMap<String, Vec<u8>>, text: &str| {
        let text = text.as_bytes();
        let mut windows = files.values().flat_map(|bytes| bytes.windows(text.len()));
        windows.any(|window| window == text)
    };
    let open = folder.bytes();
    store.close().await;
    for (files, state) in [(open, "open"), (folder.bytes(), "closed")] {
        assert!(has(&files, "credential-in-clear"), "{state}: names are");
        assert!(!has(&files, planted), "{state}: the tokens are in clear");
    }
}

#[tokio::test]
async fn a_row_that_was_changed_is_unreadable_and_its_neighbour_is_not() {
    let changes = [
        (
            "a changed byte",
            "UPDATE credentials SET sealed = CAST(
                 substr(sealed, 1, 40)
                 || CASE substr(sealed, 41, 1) WHEN X'00' THEN X'01' ELSE X'00' END
                 || substr(sealed, 42) AS BLOB)
             WHERE name = 'one'",
        ),
        (
            "the tokens of another",
            "UPDATE credentials SET sealed =
                 (SELECT sealed FROM credentials WHERE name = 'other')
             WHERE name = 'one'",
        ),
        (
            "another version",
            "UPDATE credentials SET version = 7 WHERE name = 'one'",
        ),
        (
            "torn tokens",
            "UPDATE credentials SET sealed = substr(sealed, 1, 10) WHERE name = 'one'",
        ),
        (
            "details that are not JSON",
            "UPDATE credentials SET details = '{' WHERE name = 'one'",
        ),
        (
            "a standing that is not even text",
            "UPDATE credentials SET standing = CAST(X'FF' AS TEXT) WHERE name = 'one'",
        ),
    ];
    for (what, change) in changes {
        let folder = Folder::new();
        let store = folder.open().await.unwrap();
        save(&store, "one", 0, "t").await;
        save(&store, "other", 0, "u").await;
        store.close().await;
        assert_eq!(folder.connection().execute(change, []).unwrap(), 1);

        let store = folder.open().await.unwrap();
        let one = store.read(&name("one")).await.unwrap().unwrap();
        assert!(one.unreadable, "{what}");
        assert_eq!(one.tokens, None, "{what}");
        let other = store.read(&name("other")).await.unwrap().unwrap();
        assert_eq!(other.tokens, Some(tokens("u")), "{what}: its neighbour");
        assert!(!other.unreadable, "{what}: its neighbour");
        assert_eq!(store.load().await.unwrap(), [one.clone(), other], "{what}");

        // New tokens take its place.
        save(&store, "one", one.version, "v").await;
        let one = store.read(&name("one")).await.unwrap().unwrap();
        assert_eq!(one.tokens, Some(tokens("v")), "{what}");
        assert!(!one.unreadable, "{what}");
    }
}

#[tokio::test]
async fn a_row_without_a_name_is_passed_over() {
    for name_of_nobody in ["'No Name'", "CAST(X'FF' AS TEXT)"] {
        let folder = Folder::new();
        let store = folder.open().await.unwrap();
        save(&store, "one", 0, "t").await;
        save(&store, "other", 0, "u").await;
        store.close().await;
        let change = format!("UPDATE credentials SET name = {name_of_nobody} WHERE name = 'one'");
        assert_eq!(folder.connection().execute(&change, []).unwrap(), 1);

        let store = folder.open().await.unwrap();
        assert_eq!(store.read(&name("one")).await.unwrap(), None);
        let other = store.read(&name("other")).await.unwrap().unwrap();
        assert_eq!(store.load().await.unwrap(), [other]);
    }
}

#[tokio::test]
async fn one_bad_change_does_not_fail_those_that_share_its_commit() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    // No change that the store makes is refused by SQLite on a whole disk, so one is forbidden.
    let db = folder.connection();
    db.execute_batch(
        "CREATE TRIGGER forbidden BEFORE INSERT ON firings WHEN NEW.job = 'forbidden'
         BEGIN SELECT RAISE(ABORT, 'it is forbidden'); END",
    )
    .unwrap();
    let jobs: Vec<_> = (0..20).map(|number| format!("job-{number}")).collect();
    let jobs: Vec<_> = jobs[..10]
        .iter()
        .map(String::as_str)
        .chain(["forbidden"])
        .chain(jobs[10..].iter().map(String::as_str))
        .map(name)
        .collect();
    // While the first one waits for the lock of this connection, the others become a group.
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut changes = Vec::new();
    for job in &jobs {
        changes.push(begun(store.record_firing(job, start())).await);
    }
    db.execute_batch("ROLLBACK").unwrap();
    for (change, job) in changes.into_iter().zip(&jobs) {
        let result = change.await;
        if job.as_str() == "forbidden" {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("it is forbidden"), "{error}");
            assert_eq!(store.last_firing(job).await.unwrap(), None);
        } else {
            result.unwrap();
            assert_eq!(store.last_firing(job).await.unwrap(), Some(start()));
        }
    }
}

#[tokio::test]
async fn closing_finishes_every_change_that_was_asked_for() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    let names: Vec<_> = (0..1_000)
        .map(|n| name(&format!("credential-{n}")))
        .collect();
    let tokens = tokens("t");
    let mut saves = Vec::new();
    for name in &names {
        saves.push(begun(store.save(name, 0, &tokens)).await);
    }
    store.close().await;
    for (save, name) in saves.into_iter().zip(&names) {
        assert_eq!(save.await.unwrap(), Saved::Version(1), "{name}");
    }
    let store = folder.open().await.unwrap();
    assert_eq!(store.load().await.unwrap().len(), names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn closing_ends_although_changes_keep_coming() {
    let folder = Folder::new();
    let store = std::sync::Arc::new(folder.open().await.unwrap());
    let mut writers = tokio::task::JoinSet::new();
    // One after the other, so that some always ask while the changes of others are synced.
    for _ in 0..64 {
        let store = store.clone();
        writers.spawn(async move { while store.probe().await.is_ok() {} });
        tokio::task::yield_now().await;
    }
    store.probe().await.unwrap();
    tokio::time::timeout(DEADLINE, store.close())
        .await
        .expect("it closes under load");
    writers.join_all().await;
}

#[tokio::test]
async fn a_change_whose_caller_gave_up_is_made_all_the_same() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    drop(begun(store.save(&name("one"), 0, &tokens("t"))).await);
    store.close().await;
    let store = folder.open().await.unwrap();
    let record = store.read(&name("one")).await.unwrap().unwrap();
    assert_eq!(record.tokens, Some(tokens("t")));
}

#[tokio::test]
async fn a_dropped_store_is_locked_until_its_last_change_is_made() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    let db = folder.connection();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    drop(begun(store.save(&name("one"), 0, &tokens("t"))).await);
    drop(store);

    let error = folder.open().await.err().expect("a change is under way");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    db.execute_batch("ROLLBACK").unwrap();
    let reopened = async {
        loop {
            match folder.open().await {
                Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        }
    };
    let store = tokio::time::timeout(DEADLINE, reopened).await.unwrap();
    let record = store.read(&name("one")).await.unwrap().unwrap();
    assert_eq!(record.tokens, Some(tokens("t")));
}

/// The disk is full when a file may not grow: `RLIMIT_FSIZE`, in a process of its own, because the
/// limit holds for all its threads.
#[test]
fn a_full_disk_is_unavailable_and_passes() {
    const IN_CHILD: &str = "PERENNIAL_TEST_FULL_DISK";
    if std::env::var_os(IN_CHILD).is_some() {
        return on_a_full_disk();
    }
    // Without the trap, the kernel ends a process that writes beyond its limit.
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sqlite_store::a_full_disk_is_unavailable_and_passes",
        ])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}"
    );
}

#[tokio::main(flavor = "current_thread")]
async fn on_a_full_disk() {
    let folder = Folder::new();
    let store = folder.open().await.unwrap();
    save(&store, "one", 0, "first").await;
    let used = fs::metadata(folder.file("perennial.db-wal")).unwrap().len();
    let limit = |bytes| {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let current = bytes;
        setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
    };

    limit(Some(used));
    let full = |result: Result<(), StoreError>| {
        let error = result.expect_err("the disk is full");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    };
    for round in 0..3 {
        let saved = store.save(&name("one"), 1, &tokens("lost")).await;
        full(saved.map(drop));
        full(store.probe().await);
        // A group, and what becomes of each of it.
        let at = [(); 5].map(|()| name("job"));
        let mut group = Vec::new();
        for job in &at {
            group.push(begun(store.record_firing(job, start())).await);
        }
        for change in group {
            full(change.await);
        }
        let record = store.read(&name("one")).await.unwrap().unwrap();
        assert_eq!(record.version, 1, "round {round}: reads go on");
    }

    limit(None);
    store.probe().await.unwrap();
    save(&store, "one", 1, "second").await;
    store.close().await;
    let store = folder.open().await.unwrap();
    let record = store.read(&name("one")).await.unwrap().unwrap();
    assert_eq!((record.version, record.tokens), (2, Some(tokens("second"))));
    assert_eq!(store.last_firing(&name("job")).await.unwrap(), None);
}

const HISTORY: History = History {
    runs: 10,
    failed_runs: 10,
};

/// Far beyond what anything here takes: only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(10);

/// A folder for the files of one store.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.file("perennial.db")
    }

    async fn open(&self) -> Result<SqliteStore, StoreError> {
        open(&self.database(), 1).await
    }

    /// What its files hold, but for two that hold nothing of the store: the lock, and the index of
    /// the log, which SQLite makes anew.
    fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.0.path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !name.ends_with(".lock") && !name.ends_with("-shm") {
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
        files
    }

    /// The files of an open store at a moment when nothing is being written.
    fn copy_as_a_crash_leaves_it(&self) -> Self {
        let copy = Self::new();
        for (name, bytes) in self.bytes() {
            fs::write(copy.file(&name), bytes).unwrap();
        }
        assert!(
            fs::metadata(copy.file("perennial.db-wal")).is_ok_and(|log| log.len() > 0),
            "there is something in the log"
        );
        copy
    }

    /// The database, past the store.
    fn connection(&self) -> Connection {
        Connection::open(self.database()).unwrap()
    }
}

async fn open(path: &Path, key: u8) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, cipher(key), HISTORY).await
}

fn cipher(key: u8) -> Cipher {
    let digit = char::from(b'A' + key);
    let text = format!("{}=", digit.to_string().repeat(42) + "A");
    Cipher::from_base64(&Secret::new(text)).unwrap()
}

fn database_of_another_program(journal_mode: &str) -> Vec<u8> {
    let folder = Folder::new();
    let db = folder.connection();
    db.pragma_update(None, "journal_mode", journal_mode)
        .unwrap();
    db.execute_batch("CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('Perennial')")
        .unwrap();
    db.close().unwrap();
    fs::read(folder.database()).unwrap()
}

/// Starts a change and does not wait for it: when this returns, the change has been asked for.
async fn begun<F: Future>(change: F) -> impl Future<Output = F::Output> {
    // Without tokio's budget, which makes even what is ready wait now and then.
    let mut change = Box::pin(maybe_done(tokio::task::unconstrained(change)));
    poll_fn(|context| {
        let _ = change.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
    async move {
        change.as_mut().await;
        change.as_mut().take_output().expect("it is done")
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn start() -> Timestamp {
    DateTime::from_timestamp(1_763_900_000, 0).unwrap()
}

fn tokens(text: &str) -> TokenSet {
    TokenSet {
        access_token: Secret::new(format!("access {text}")),
        refresh_token: Some(Secret::new(format!("refresh {text}"))),
        details: TokenDetails {
            issued_at: start(),
            lifetime: Duration::from_secs(3_600),
            lifetime_source: LifetimeSource::Answer,
            token_type: "Bearer".into(),
            scope: None,
            refresh_in: None,
            refresh_token_expires_at: None,
            refresh_token_life: None,
            provider: None,
        },
    }
}

async fn save(store: &SqliteStore, text: &str, expected: u64, token: &str) {
    let saved = store.save(&name(text), expected, &tokens(token)).await;
    assert_eq!(saved.unwrap(), Saved::Version(expected + 1), "{text}");
}
