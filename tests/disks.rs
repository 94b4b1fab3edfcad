//! The real binary on disks that are full or refuse to be written, with files that somebody
//! touches, beside a second process, and standing still. The rows of `docs/faults.md` are written
//! from here.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::Path,
    sync::{Arc, RwLock},
    thread,
    time::Duration,
};

use rusqlite::{Connection, Row};

use crate::{
    keeps_alive::{samples, successor_of},
    support::{
        authorization_server::{AuthorizationServer, Options},
        disk::Disk,
        fake_server::{Deed, FakeServer},
        fault_table::Fault,
        perennial::{Perennial, Service},
        process::{Finished, Signal},
        wait,
    },
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the disk fails in one test.
const TRIES: usize = 10;

/// How many credentials each service has.
const COUNT: usize = 10;

const FILLED: &str = "the disk is full when a refresh is due";
const FILLED_LATE: &str = "the disk fills up while answers are on their way";
const REFUSED: &str = "the disk refuses every write when a refresh is due";
const REFUSED_LATE: &str = "the disk begins to refuse every write while answers are on their way";

#[test]
fn a_full_disk_spends_nothing() {
    a_disk_that_fails_spends_nothing(FILLED, "full", &|disk, _| disk.fill(), &|disk, _| {
        disk.free();
    });
}

#[test]
fn a_disk_that_fills_up_loses_no_answer() {
    a_disk_that_fails_loses_no_answer(FILLED_LATE, "full", &|disk, _| disk.fill(), &|disk, _| {
        disk.free();
    });
}

/// A file system that the kernel has made read-only after an error cannot be had without breaking
/// one; a limit of the process refuses the same writes.
#[test]
fn a_disk_that_refuses_writes_spends_nothing() {
    a_disk_that_fails_spends_nothing(
        REFUSED,
        "disk I/O error",
        &|_, service| service.process().limit_file_size(Some(0)),
        &|_, service| service.process().limit_file_size(None),
    );
}

#[test]
fn a_disk_that_begins_to_refuse_writes_loses_no_answer() {
    a_disk_that_fails_loses_no_answer(
        REFUSED_LATE,
        "disk I/O error",
        &|_, service| service.process().limit_file_size(Some(0)),
        &|_, service| service.process().limit_file_size(None),
    );
}

/// Breaks or mends the disk.
type Do<'a> = &'a dyn Fn(&Disk, &mut Service);

/// Without an intent that is durable, nothing is sent.
fn a_disk_that_fails_spends_nothing(fault: &str, said: &str, fail: Do, mend: Do) {
    let server = AuthorizationServer::start(&Options::default());
    let place = Place::on_a_disk(&server.token_url(), "", &server.grants(1, "public"));
    let mut service = place.perennial.serve();
    wait_for_version(&service, 1, 2);
    for attempt in 0..TRIES {
        let before = server.summary();
        fail(&place.disk, &mut service);
        let refused = place.perennial.run(&["refresh", "credential-00"]);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        let sentence = "store (nothing_sent); it is tried again in";
        assert!(refused.stderr.contains(sentence), "{refused:?}");
        // It is asked at most every two seconds.
        if attempt == 0 {
            wait_until_ready_says(&service, 503, said);
            assert_eq!(gauge(&service, "perennial_store_writable"), 0.0);
        }
        assert_eq!(server.summary(), before, "failure {attempt}");
        let labels = "credential=\"credential-00\",provider=\"acme\",reason=\"store\"";
        let failures = samples(&service.metrics(), "refresh_failures_total")[labels];
        assert!(failures > attempt as f64, "{failures}");

        mend(&place.disk, &mut service);
        if attempt == 0 {
            wait_until_ready_says(&service, 200, "ready");
        }
        // It may have been tried again by itself already.
        let refreshed = place.perennial.run(&["refresh", "credential-00"]);
        assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    }
    assert_eq!(service.stop().code(), Some(0));
    let summary = server.summary();
    assert_eq!(summary.token_requests_refused, 0, "{summary:?}");
    assert_eq!(summary.grants_revoked, 0, "{summary:?}");
    Fault {
        section: "Disks and files",
        fault,
        tries: TRIES,
        lost: summary.grants_revoked,
        seen: "Nothing is sent. `/readyz` is 503 and says why, `refresh_failures_total` counts \
            reason `store`, `perennial_store_writable` is 0, and it is tried again until the disk can \
            be written.",
    }
    .record();
}

/// Answers that cannot be saved are kept in memory until they can.
fn a_disk_that_fails_loses_no_answer(fault: &str, said: &str, fail: Do, mend: Do) {
    let gate = Gate::default();
    let server = gate.strict_server();
    let tokens: Vec<_> = (0..COUNT).map(|number| format!("t{number}-")).collect();
    let place = Place::on_a_disk(&server.url("/token"), "max_in_flight = 10", &tokens);
    for attempt in 0..2 {
        let closed = gate.close();
        let mut service = place.perennial.serve();
        // The first time by themselves, and then because somebody wants it.
        let asked: Vec<_> = (0..COUNT * attempt)
            .map(|number| {
                let name = format!("credential-{number:02}");
                place.perennial.start(&["refresh", &name])
            })
            .collect();
        server.wait_for_requests(COUNT * (attempt + 1));
        fail(&place.disk, &mut service);
        drop(closed);
        wait::until("a failed save of each", PATIENCE, || {
            let output = service.process().output();
            let failed: BTreeSet<_> = output
                .lines()
                .filter(|line| line.contains("new tokens are not saved yet"))
                .filter_map(|line| line.split("credential-").nth(1)?.get(..2))
                .collect();
            (failed.len() == COUNT)
                .then_some(())
                .ok_or(format!("{failed:?}"))
        });
        wait_until_ready_says(&service, 503, said);
        let versions = samples(&service.metrics(), "token_version");
        let new = versions
            .values()
            .filter(|version| **version == 2.0 + attempt as f64);
        assert_eq!(new.count(), 0, "nothing is published before it is durable");
        let unsaved = gauge(&service, "perennial_store_unsaved_credentials");
        assert_eq!(unsaved, COUNT as f64);
        let errors = samples(&service.metrics(), "perennial_store_errors_total");
        assert!(errors["operation=\"save\""] >= COUNT as f64, "{errors:?}");

        mend(&place.disk, &mut service);
        wait_for_version(&service, COUNT, 2 + attempt as u32);
        wait_until_ready_says(&service, 200, "ready");
        assert_eq!(gauge(&service, "perennial_store_writable"), 1.0);
        assert_eq!(gauge(&service, "perennial_store_unsaved_credentials"), 0.0);
        for told in asked {
            assert_eq!(told.wait_for_exit(PATIENCE).code(), Some(0));
        }
        // What it said to have saved is there after the worst of ends.
        service.kill();
        let service = place.perennial.serve();
        wait_for_version(&service, COUNT, 2 + attempt as u32);
        service.kill();
    }
    assert_eq!(server.count(), 2 * COUNT, "nothing is sent twice");
    Fault {
        section: "Disks and files",
        fault,
        tries: 2 * COUNT,
        lost: 0,
        seen: "`/readyz` is 503 and says why. The new tokens are kept in memory, not published, \
            and saved as soon as the disk can be written; until then the log says `new tokens are not \
            saved yet` and `perennial_store_unsaved_credentials` counts them. Nothing is sent again.",
    }
    .record();
}

#[test]
fn a_read_only_disk_is_refused_at_the_start() {
    let server = AuthorizationServer::start(&Options::default());
    let place = Place::on_a_disk(&server.token_url(), "", &server.grants(1, "public"));
    let service = place.perennial.serve();
    wait_for_version(&service, 1, 2);
    assert_eq!(service.stop().code(), Some(0));
    let before = place.disk.fingerprint();
    for _ in 0..TRIES {
        place.disk.remount("ro");
        for command in [&["serve"][..], &["refresh", "credential-00"]] {
            let finished = place.perennial.run(command);
            assert_eq!(finished.code(), Some(69), "{finished:?}");
            let sentence = "perennial: the store cannot be used: ";
            assert!(finished.stderr.starts_with(sentence), "{finished:?}");
            assert!(
                finished.stderr.contains("Read-only file system"),
                "{finished:?}"
            );
            assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        }
        assert_eq!(place.disk.fingerprint(), before);
        place.disk.remount("rw");
    }
    let refreshed = place.perennial.run(&["refresh", "credential-00"]);
    assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    assert_eq!(server.summary().token_requests_granted, 2);
    assert_eq!(server.summary().token_requests, 2);
    Fault {
        section: "Disks and files",
        fault: "the disk is read-only when the service starts",
        tries: TRIES,
        lost: 0,
        seen: "Exit code 69 and one sentence that names the file. Nothing is sent.",
    }
    .record();
}

/// While the service is stopped, somebody does something to the database.
#[test]
fn a_database_that_was_damaged_is_left_alone() {
    let another = database_of_another_service();
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let garbage = |bytes: &[u8]| vec![b'x'; bytes.len()];
    let nothing = |_: &[u8]| Vec::new();
    let other = |_: &[u8]| another.clone();
    type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let cases: [(&str, Damage, &str); 4] = [
        (
            "truncated to nothing",
            &nothing,
            "(it is empty); nothing was changed",
        ),
        ("cut in half", &cut, "malformed); nothing was changed"),
        (
            "overwritten with garbage",
            &garbage,
            "is not a database); nothing was changed",
        ),
        (
            "replaced by another store",
            &other,
            "was encrypted with key ",
        ),
    ];
    for (what, damage, sentence) in cases {
        let server = AuthorizationServer::start(&Options::default());
        let place = Place::new(&server.token_url(), "", &server.grants(1, "public"));
        let service = place.perennial.serve();
        wait_for_version(&service, 1, 2);
        assert_eq!(service.stop().code(), Some(0));
        let database = place.perennial.folder().join("perennial.db");
        let whole = fs::read(&database).expect("it is there");
        let damaged = damage(&whole);
        fs::write(&database, &damaged).expect("it can be written");
        let commands = [&["serve"][..], &["refresh", "credential-00"], &["status"]];
        for command in commands {
            expect_refusal(&place.perennial.run(command), sentence);
            assert!(
                fs::read(&database).expect("it is there") == damaged,
                "{what}"
            );
        }
        fs::write(&database, &whole).expect("it can be written");
        let refreshed = place.perennial.run(&["refresh", "credential-00"]);
        assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
        assert_eq!(server.summary().token_requests, 2);
        Fault {
            section: "Disks and files",
            fault: &format!("the database is {what} while the service is stopped"),
            tries: commands.len(),
            lost: 0,
            seen: "Exit code 69 and one sentence that says what was found and what to do. Nothing \
                is changed or sent; with the database put back it goes on.",
        }
        .record();
    }
}

/// While the service runs, its database is taken away, and perhaps another file put in its place.
/// Its name leads nobody to what would be written now.
#[test]
fn a_database_that_goes_away_is_noticed() {
    let another = database_of_another_service();
    let garbage = vec![b'x'; another.len()];
    let cases = [
        (
            "deleted",
            None,
            "(the database is missing, but its write-ahead log is there)",
        ),
        (
            "replaced by another store",
            Some(another),
            "was encrypted with key ",
        ),
        (
            "replaced by garbage",
            Some(garbage),
            "is not a database); nothing was changed",
        ),
    ];
    for (what, instead, sentence) in cases {
        let server = AuthorizationServer::start(&Options::default());
        let place = Place::new(&server.token_url(), "", &server.grants(1, "public"));
        let database = place.perennial.folder().join("perennial.db");
        let kept = place.perennial.folder().join("kept");
        let ends: [fn(Service) -> Finished; 2] = [Service::stop, Service::kill];
        for (end, before) in ends.into_iter().zip(1..) {
            let service = place.perennial.serve();
            wait_for_version(&service, 1, 2 * before);
            // What is written now is in the log alone.
            let refreshed = place.perennial.run(&["refresh", "credential-00"]);
            assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
            let asked = server.summary().token_requests;
            fs::hard_link(&database, &kept).expect("one more name for it");
            fs::remove_file(&database).expect("it is there");
            if let Some(instead) = &instead {
                let beside = place.perennial.folder().join("instead");
                fs::write(&beside, instead).expect("a writable folder");
                fs::rename(&beside, &database).expect("a writable folder");
            }
            let refused = place.perennial.run(&["refresh", "credential-00"]);
            assert_eq!(refused.code(), Some(1), "{refused:?}");
            assert!(
                refused.stderr.contains("store (nothing_sent)"),
                "{refused:?}"
            );
            let said = "perennial.db was deleted or replaced while it was in use; put it back";
            wait_until_ready_says(&service, 503, said);
            end(service);
            for command in [&["serve"][..], &["refresh", "credential-00"], &["status"]] {
                expect_refusal(&place.perennial.run(command), sentence);
                assert!(
                    fs::read(&database).ok() == instead,
                    "{what}: it was changed"
                );
            }
            assert_eq!(server.summary().token_requests, asked);

            fs::rename(&kept, &database).expect("it is put back");
            let refreshed = place.perennial.run(&["refresh", "credential-00"]);
            assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
        }
        let summary = server.summary();
        assert_eq!(summary.token_requests, 5, "{summary:?}");
        assert_eq!(summary.token_requests_granted, 5, "{summary:?}");
        Fault {
            section: "Disks and files",
            fault: &format!("the database is {what} while the service runs"),
            tries: ends.len(),
            lost: summary.grants_revoked,
            seen: "Nothing is sent from then on. `/readyz` is 503 and says what happened and what \
                to do. A restart ends with exit code 69 and one sentence, and changes nothing; \
                with the database put back it goes on.",
        }
        .record();
    }
}

/// While the service runs, somebody writes into its database.
#[test]
fn a_database_that_is_overwritten_under_the_service_is_left_alone() {
    type Damage = fn(usize) -> Vec<u8>;
    let cases: [(&str, Damage, &str); 2] = [
        (
            "truncated to nothing",
            |_| Vec::new(),
            "(it is empty); nothing was changed",
        ),
        (
            "overwritten with garbage",
            |size| vec![b'x'; size],
            "is not a database); nothing was",
        ),
    ];
    for (what, damage, sentence) in cases {
        let server = AuthorizationServer::start(&Options::default());
        let place = Place::new(&server.token_url(), "", &server.grants(1, "public"));
        let database = place.perennial.folder().join("perennial.db");
        let service = place.perennial.serve();
        wait_for_version(&service, 1, 2);
        let whole = fs::read(&database).expect("it is there");
        let damaged = damage(whole.len());
        fs::write(&database, &damaged).expect("it can be written");
        // What SQLite has in memory may still do; the answer is then in the log.
        place.perennial.run(&["refresh", "credential-00"]);
        wait_until_ready_says(&service, 503, "malformed");
        service.kill();
        for command in [&["serve"][..], &["refresh", "credential-00"], &["status"]] {
            expect_refusal(&place.perennial.run(command), sentence);
            assert!(
                fs::read(&database).expect("it is there") == damaged,
                "{what}"
            );
        }
        fs::write(&database, &whole).expect("it can be written");
        let refreshed = place.perennial.run(&["refresh", "credential-00"]);
        assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
        let summary = server.summary();
        assert_eq!(summary.token_requests_refused, 0, "{summary:?}");
        Fault {
            section: "Disks and files",
            fault: &format!("the database is {what} while the service runs, which is then killed"),
            tries: 1,
            lost: summary.grants_revoked,
            seen: "`/readyz` is 503 and says that the database is malformed. A restart ends with \
                exit code 69 and one sentence, and changes nothing. With the database put back, \
                its log beside it holds what was saved last, and it goes on.",
        }
        .record();
    }
}

/// A store with a key of its own.
fn database_of_another_service() -> Vec<u8> {
    let other = Perennial::with_config("[server]\nlisten = \"127.0.0.1:0\"\n");
    assert_eq!(other.serve().stop().code(), Some(0));
    fs::read(other.folder().join("perennial.db")).expect("it was made")
}

fn expect_refusal(finished: &Finished, sentence: &str) {
    assert_eq!(finished.code(), Some(69), "{finished:?}");
    assert!(finished.stderr.contains(sentence), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

/// Both begin on an empty place at the same moment, with configurations of their own.
#[test]
fn of_two_processes_on_one_database_one_works() {
    let server = AuthorizationServer::start(&Options::default());
    let tokens = server.grants(TRIES, "public");
    for token in &tokens {
        let place = Place::new(&server.token_url(), "", std::slice::from_ref(token));
        let database = place.perennial.folder().join("perennial.db");
        let config = place.perennial.folder().join("perennial.toml");
        let config = fs::read_to_string(config).expect("it was written");
        let beside = Perennial::with_config(&format!(
            "{config}\n[store]\nurl = \"sqlite:{}\"\n",
            database.display()
        ));
        beside.write("00.token", token);
        let mut both = [&place.perennial, &beside].map(|perennial| perennial.start(&["serve"]));
        let loser = wait::until("one of them to end", PATIENCE, || {
            let ended = both.iter_mut().position(|process| !process.is_running());
            ended.ok_or("both run".to_owned())
        });
        let [first, second] = both;
        let (loser, winner) = if loser == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let finished = loser.wait_for_exit(PATIENCE);
        assert_eq!(finished.code(), Some(69), "{finished:?}");
        let sentence = "perennial.db is in use by another Perennial";
        assert!(finished.stderr.contains(sentence), "{finished:?}");
        winner.wait_for_line("its first token", PATIENCE, |line| {
            line.contains("token refreshed")
        });
    }
    let summary = server.summary();
    assert_eq!(summary.token_requests, TRIES, "{summary:?}");
    assert_eq!(summary.token_requests_granted, TRIES, "{summary:?}");
    Fault {
        section: "Disks and files",
        fault: "two services are started on one database in the same moment",
        tries: TRIES,
        lost: 0,
        seen: "One works. The other ends with exit code 69 and names the process that has the \
            store, where it is known. Each refresh token is sent once.",
    }
    .record();
}

/// The process is stopped while answers are on their way, and goes on when its leases have run out.
/// The answers have been received by then, and are the only copies of the new tokens.
#[test]
fn a_process_that_stands_still_longer_than_a_lease_loses_no_answer() {
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// What a lease lasts beyond the timeout, and a little more.
    const STANDS_STILL: Duration = TIMEOUT.saturating_add(Duration::from_secs(31));
    let gate = Gate::default();
    let server = gate.strict_server();
    let tokens: Vec<_> = (0..COUNT).map(|number| format!("t{number}-")).collect();
    let settings = "max_in_flight = 10\ntimeout = \"5s\"";
    let place = Place::new(&server.url("/token"), settings, &tokens);
    let closed = gate.close();
    let mut service = place.perennial.serve();
    server.wait_for_requests(COUNT);
    service.process().signal(Signal::STOP);
    drop(closed);
    // The time itself is the fault.
    thread::sleep(STANDS_STILL);
    service.process().signal(Signal::CONT);
    wait_for_version(&service, COUNT, 2);
    for number in 0..COUNT {
        let name = format!("credential-{number:02}");
        let refreshed = place.perennial.run(&["refresh", &name]);
        assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    }
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(server.count(), 2 * COUNT);
    Fault {
        section: "Disks and files",
        fault: "the process stands still (SIGSTOP) for longer than timeout and lease, while \
            answers are on their way",
        tries: COUNT,
        lost: 0,
        seen: "When it goes on it reads the answers that have come, and saves them. Nothing is \
            sent again.",
    }
    .record();
}

/// What somebody does to a row of the database, each to another one.
const CHANGES: [&str; 3] = [
    "UPDATE credentials SET sealed = substr(sealed, 1, 30) WHERE name = ?",
    "UPDATE credentials SET sealed = (SELECT sealed FROM credentials WHERE name = 'credential-09')
     WHERE name = ?",
    "UPDATE credentials SET standing = CAST(X'FF' AS TEXT) WHERE name = ?",
];

#[test]
fn a_row_that_cannot_be_read_stops_its_own_credential_alone() {
    let server = Gate::default().strict_server();
    let tokens: Vec<_> = (0..COUNT).map(|number| format!("t{number}-")).collect();
    let place = Place::new(&server.url("/token"), "", &tokens);
    let perennial = &place.perennial;
    let service = perennial.serve();
    wait_for_version(&service, COUNT, 2);
    assert_eq!(service.stop().code(), Some(0));
    let before = with_database(perennial, |database| {
        for (number, change) in CHANGES.iter().enumerate() {
            let changed = database.execute(change, [format!("credential-{number:02}")]);
            assert_eq!(changed.expect("plain SQL"), 1, "{change}");
        }
        rows(database)
    });

    let mut service = perennial.serve();
    for number in 0..COUNT {
        let name = format!("credential-{number:02}");
        let state = |state| {
            let labels = format!("credential=\"{name}\",provider=\"acme\",state=\"{state}\"");
            samples(&service.metrics(), "credential_state")[&labels]
        };
        let unreadable = number < CHANGES.len();
        assert_eq!(state("misconfigured"), f64::from(u8::from(unreadable)));
        let refreshed = perennial.run(&["refresh", &name]);
        if unreadable {
            let cure = format!(
                "its row in the store is damaged or was changed from outside; log in again, \
                 then: perennial import {name} --refresh-token-file FILE"
            );
            assert_eq!(refreshed.code(), Some(1), "{refreshed:?}");
            assert!(refreshed.stderr.contains(&cure), "{refreshed:?}");
            assert!(perennial.run(&["status"]).stdout.contains(&cure));
            let is_told = |line: &str| {
                let words = ["ERROR", &name, "row_unreadable", &cure];
                words.iter().all(|word| line.contains(word))
            };
            let process = service.process();
            process.wait_for_line("the row", PATIENCE, is_told);
        } else {
            assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
        }
    }
    // The files that they were imported from hold tokens that were spent long ago.
    assert_eq!(
        server.count(),
        2 * COUNT - CHANGES.len(),
        "nothing was sent"
    );
    assert_eq!(service.stop().code(), Some(0));
    let after = with_database(perennial, rows);
    assert_eq!(
        after[..CHANGES.len()],
        before[..CHANGES.len()],
        "left as they are"
    );

    let service = perennial.serve();
    for number in 0..CHANGES.len() {
        let name = format!("credential-{number:02}");
        let login = perennial.write("login", &format!("new{number}-"));
        let imported = perennial.run(&["import", &name, "--refresh-token-file", as_text(&login)]);
        assert_eq!(imported.code(), Some(0), "{imported:?}");
    }
    wait_for_version(&service, CHANGES.len(), 4);
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(server.count(), 2 * COUNT);
    Fault {
        section: "Disks and files",
        fault: "the row of a credential is changed from outside while the service is stopped",
        tries: CHANGES.len(),
        lost: CHANGES.len(),
        seen: "That credential alone is `misconfigured`, with an ERROR `row_unreadable` that says \
            what to do; nothing is sent for it and its row is left as it is, until a new login is \
            imported. All others go on.",
    }
    .record();
}

/// As one that was put back from elsewhere, and damaged on the way.
const LATER_AND_TORN: &str = "UPDATE credentials SET version = ?, sealed = substr(sealed, 1, 30)";

#[test]
fn a_row_that_is_changed_while_the_service_runs_is_not_taken_over() {
    let gate = Gate::default();
    let server = gate.strict_server();
    let place = Place::new(&server.url("/token"), "", &["t-".to_owned()]);
    let perennial = &place.perennial;
    let change_to = |version: i64| {
        let changed = with_database(perennial, |database| {
            database.execute(LATER_AND_TORN, [version])
        });
        assert_eq!(changed.expect("plain SQL"), 1);
    };
    let closed = gate.close();
    let service = perennial.serve();
    server.wait_for_requests(1);
    change_to(9);
    drop(closed);
    // What has just come is worth more than what cannot be read.
    wait_for_version(&service, 1, 10);

    change_to(19);
    let refused = perennial.run(&["refresh", "credential-00"]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    let sentence = "its row in the store is damaged or was changed from outside";
    assert!(refused.stderr.contains(sentence), "{refused:?}");
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(server.count(), 1, "nothing more was sent");
}

fn with_database<T>(perennial: &Perennial, act: impl Fn(&Connection) -> T) -> T {
    let path = perennial.folder().join("perennial.db");
    act(&Connection::open(path).expect("a database"))
}

/// What is kept of each credential, in the order of their names.
fn rows(database: &Connection) -> Vec<String> {
    let mut select = database
        .prepare("SELECT * FROM credentials ORDER BY name")
        .expect("plain SQL");
    let columns = select.column_count();
    let row = |row: &Row| {
        let values: Vec<_> = (0..columns).map(|at| row.get_ref(at)).collect();
        Ok(format!("{values:?}"))
    };
    let rows = select.query_map([], row).expect("plain SQL");
    rows.map(|row| row.expect("a row")).collect()
}

/// A way to hold all answers of a server back.
#[derive(Clone, Default)]
struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// Answers wait until this is dropped.
    fn close(&self) -> impl Drop + use<'_> {
        self.0.write().expect("nobody panics with it")
    }

    /// A server behind this gate that rotates, and refuses a refresh token that was spent.
    fn strict_server(&self) -> FakeServer {
        let server = FakeServer::start();
        let gate = self.clone();
        let spent = std::sync::Mutex::new(BTreeSet::new());
        server.always(move |request| {
            let token = request.refresh_token();
            let first_time = spent.lock().expect("no panics").insert(token.clone());
            drop(gate.0.read());
            if first_time {
                successor_of(&token)
            } else {
                Deed::error(400, "invalid_grant")
            }
        });
        server
    }
}

/// A folder with credentials, whose store may be on a disk of its own.
struct Place<D = ()> {
    perennial: Perennial,
    disk: D,
}

impl Place {
    fn new(token_url: &str, settings: &str, refresh_tokens: &[String]) -> Self {
        let perennial = with_credentials(token_url, settings, "", refresh_tokens);
        Self {
            perennial,
            disk: (),
        }
    }
}

impl Place<Disk> {
    fn on_a_disk(token_url: &str, settings: &str, refresh_tokens: &[String]) -> Self {
        let store = "socket = \"control.sock\"\n[store]\nurl = \"sqlite:disk/perennial.db\"\n";
        let mut perennial = with_credentials(token_url, settings, store, refresh_tokens);
        let mount_point = perennial.folder().join("disk");
        fs::create_dir(&mount_point).expect("a writable folder");
        let disk = Disk::mounted_at(&mount_point);
        let folder = as_text(perennial.folder()).to_owned();
        perennial.launch_through(disk.launcher(&folder));
        Self { perennial, disk }
    }
}

fn as_text(path: &Path) -> &str {
    path.to_str().expect("plain names")
}

fn with_credentials(
    token_url: &str,
    settings: &str,
    store: &str,
    refresh_tokens: &[String],
) -> Perennial {
    let mut config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{store}\
         [providers.acme]\ntoken_url = \"{token_url}\"\nclient_id = \"public\"\n{settings}\n"
    );
    for number in 0..refresh_tokens.len() {
        write!(
            config,
            "[credentials.credential-{number:02}]\nprovider = \"acme\"\n\
             refresh_token_file = \"{number:02}.token\"\n"
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    for (number, token) in refresh_tokens.iter().enumerate() {
        perennial.write(&format!("{number:02}.token"), token);
    }
    perennial
}

/// Waits until so many credentials have this version. Version 1 is the import.
fn wait_for_version(service: &Service, count: usize, version: u32) {
    wait::until("the tokens", PATIENCE, || {
        let versions = samples(&service.metrics(), "token_version");
        let there = versions
            .values()
            .filter(|seen| **seen == f64::from(version));
        (there.count() == count)
            .then_some(())
            .ok_or(format!("{versions:?}"))
    });
}

/// Waits until `/readyz` has this status, and these words.
fn wait_until_ready_says(service: &Service, status: u16, words: &str) {
    wait::until("readiness to change", PATIENCE, || {
        let answer = service.get("/readyz");
        (answer.status == status && answer.body.contains(words))
            .then_some(())
            .ok_or(format!("{answer:?}"))
    });
}

/// A gauge without labels.
fn gauge(service: &Service, name: &str) -> f64 {
    samples(&service.metrics(), name)[""]
}
