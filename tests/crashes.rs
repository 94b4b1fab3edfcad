//! The real binary, killed with SIGKILL at each step of the refresh path and started again. What
//! was lost is counted by the authorization server and by a last refresh of everything. The rows
//! of `docs/faults.md` are written from here.

use std::{
    collections::BTreeSet, fmt::Write, fs, os::unix::process::ExitStatusExt, time::Duration,
};

use perennial::crash::{Step, VARIABLE};
use serde_json::Value;

use crate::{
    keeps_alive::{
        count, in_file, lenient_server, newest_saved, of_name, requests, samples, status, stored,
    },
    support::{
        authorization_server::{AuthorizationServer, CLIENT_SECRET, Options},
        fake_server::{Deed, FakeServer},
        fault_table::Fault,
        perennial::{Perennial, Service},
        process::{Finished, Process},
        wait,
    },
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the process is killed at each step.
const TRIES: usize = 20;

/// A crash that loses nothing whatever the server does, and how it is mended.
struct Harmless {
    step: Step,
    /// The first refresh of a process passes the step for this many times.
    time: usize,
    fault: &'static str,
    /// How many requests the server got before the kill.
    sent: usize,
    /// How many it gets at the next start.
    sent_after: usize,
    seen: &'static str,
}

#[test]
fn killed_before_the_claim() {
    Harmless {
        step: Step::Claiming,
        time: 1,
        fault: "killed before the claim",
        sent: 0,
        sent_after: 0,
        seen: NOTHING_HAPPENED,
    }
    .cause();
}

#[test]
fn killed_inside_the_transaction_of_the_claim() {
    Harmless {
        step: Step::Committing,
        time: 1,
        fault: "killed inside the transaction of claim and intent",
        sent: 0,
        sent_after: 0,
        seen: NOTHING_HAPPENED,
    }
    .cause();
}

const NOTHING_HAPPENED: &str = "The next start finds the token as it was, and refreshes it when \
    it is due.";

#[test]
fn killed_between_intent_and_request() {
    Harmless {
        step: Step::Claimed,
        time: 1,
        fault: "killed after the intent, before the request",
        sent: 0,
        sent_after: 1,
        seen: "The next start cannot know that nothing was sent: it sends the refresh token at \
            once, for the first time.",
    }
    .cause();
}

#[test]
fn killed_between_save_and_publication() {
    Harmless {
        step: Step::Saved,
        time: 1,
        fault: "killed after the save, before metrics and sinks know",
        sent: 1,
        sent_after: 0,
        seen: DELIVERED_LATER,
    }
    .cause();
}

#[test]
fn killed_after_publication() {
    Harmless {
        step: Step::Published,
        time: 1,
        fault: "killed after metrics and status show the new token",
        sent: 1,
        sent_after: 0,
        seen: DELIVERED_LATER,
    }
    .cause();
}

#[test]
fn killed_before_the_delivery() {
    Harmless {
        step: Step::Delivering,
        // What there is was delivered when the process started.
        time: 2,
        fault: "killed before a sink gets the new token",
        sent: 1,
        sent_after: 0,
        seen: DELIVERED_LATER,
    }
    .cause();
}

#[test]
fn killed_between_a_file_and_its_rename() {
    Harmless {
        step: Step::Drafted,
        time: 2,
        fault: "killed between writing a file and renaming it into place",
        sent: 1,
        sent_after: 0,
        seen: "Readers of each file see the old token or the new one, whole. The next start \
            delivers the new one, and leaves no draft behind.",
    }
    .cause();
}

#[test]
fn killed_after_the_delivery() {
    Harmless {
        step: Step::Delivered,
        time: 2,
        fault: "killed after a sink got the new token",
        sent: 1,
        sent_after: 0,
        seen: "The next start delivers the same token once more.",
    }
    .cause();
}

#[test]
fn killed_before_the_write_back() {
    Harmless {
        step: Step::WritingBack,
        time: 1,
        fault: "killed before the new refresh token is written back to its file",
        sent: 1,
        sent_after: 0,
        seen: "The file holds a spent refresh token, which is not imported. The next start writes \
            the new one.",
    }
    .cause();
}

#[test]
fn killed_after_the_write_back() {
    Harmless {
        step: Step::WrittenBack,
        time: 1,
        fault: "killed after the new refresh token was written back to its file",
        sent: 1,
        sent_after: 0,
        seen: DELIVERED_LATER,
    }
    .cause();
}

const DELIVERED_LATER: &str = "The next start has the new token, delivers it, and sends nothing.";

impl Harmless {
    /// One credential, again and again: each crash begins where the one before was mended.
    fn cause(self) {
        let server = AuthorizationServer::start(&Options::default());
        let client = format!(
            "token_url = \"{}\"\nclient_id = \"public\"",
            server.token_url()
        );
        let mut victim = Victim::new(&client, &server.grants(1, "public"));
        victim.get_first_tokens();
        for crash in 0..TRIES {
            let before = server.summary().token_requests;
            let handed_out = victim.access_file(0);
            victim.crash_in_refresh(0, self.step, self.time);
            let sent = server.summary().token_requests - before;
            assert_eq!(sent, self.sent, "crash {crash}");
            let left_behind = victim.access_file(0);

            let service = victim.restart();
            let refreshed = self.sent + self.sent_after;
            let version = version_in(&handed_out) + refreshed as u64;
            victim.wait_until_delivered(&service, 0, version);
            victim.wait_for_deliveries(&service);
            wait::until("the file to be current", PATIENCE, || {
                let found = in_file(&victim.token_file(0));
                let newest = newest_saved(&server);
                (found == newest).then_some(()).ok_or(found)
            });
            let now = victim.access_file(0);
            assert!([&handed_out, &now].contains(&&left_behind), "never a part");
            assert!(!victim.perennial.folder().join("0.access.new").exists());
            assert!(!victim.perennial.folder().join("0.token.new").exists());
            service.kill();
            let sent = server.summary().token_requests - before;
            assert_eq!(sent, refreshed, "crash {crash}");
            let record = stored(victim.perennial.folder()).remove("credential-00");
            assert!(!record.expect("it is stored").standing.doubtful);
        }
        let lost = victim.count_lost();
        expect_nothing_spent_twice(&server);
        self.record(lost);
    }

    fn record(&self, lost: usize) {
        assert_eq!(lost, 0);
        Fault {
            section: "Crashes",
            fault: self.fault,
            tries: TRIES,
            lost,
            seen: self.seen,
        }
        .record();
    }
}

/// The window that no client can close: the server has replaced the refresh token, and the new one
/// is not durable.
const WINDOW: [(Step, usize, &str); 3] = [
    (
        Step::Answering,
        1,
        "killed after the request, before its answer is read",
    ),
    (
        Step::Answered,
        1,
        "killed after the answer, before the save",
    ),
    // The claim was the first.
    (
        Step::Committing,
        2,
        "killed inside the transaction of the save",
    ),
];

#[test]
fn killed_before_the_answer_is_read() {
    in_the_window_with_a_strict_server(WINDOW[0]);
}

#[test]
fn killed_between_answer_and_save() {
    in_the_window_with_a_strict_server(WINDOW[1]);
}

#[test]
fn killed_inside_the_transaction_of_the_save() {
    in_the_window_with_a_strict_server(WINDOW[2]);
}

/// A server that takes every replay for theft. Each kill costs the one credential that was under
/// way, which is said, and after one replay it is left alone.
fn in_the_window_with_a_strict_server((step, time, fault): (Step, usize, &str)) {
    let server = AuthorizationServer::start(&Options::default());
    let client = format!(
        "token_url = \"{}\"\nclient_id = \"public\"",
        server.token_url()
    );
    let mut victim = Victim::new(&client, &server.grants(TRIES, "public"));
    victim.get_first_tokens();
    for crash in 0..TRIES {
        let before = server.summary();
        victim.crash_in_refresh(crash, step, time);
        let after_kill = server.summary();
        assert_eq!(
            after_kill.token_requests_granted,
            before.token_requests_granted + 1
        );

        let mut service = victim.restart();
        let sentence = "an answer was lost after the provider may have rotated the refresh token";
        let line = service
            .process()
            .wait_for_line(sentence, PATIENCE, |line| line.contains(sentence));
        assert!(line.contains(&victim.names[crash]), "{line}");
        wait::until("the others", PATIENCE, || {
            let metrics = service.metrics();
            let fresh = victim.in_state(&metrics, "fresh");
            let dead = victim.in_state(&metrics, "needs_login");
            let seen = format!("{fresh} fresh, {dead} dead");
            (fresh == TRIES - crash - 1 && dead == crash + 1)
                .then_some(())
                .ok_or(seen)
        });
        service.kill();
        let after = server.summary();
        assert_eq!(
            after.token_requests,
            before.token_requests + 2,
            "one replay"
        );
        assert_eq!(after.grants_revoked, before.grants_revoked + 1);
    }
    let statuses = status(&victim.perennial);
    for name in &victim.names {
        let status = of_name(&statuses, name);
        assert_eq!(status["state"], "needs_login", "{status}");
        assert_eq!(status["next_refresh_at"], Value::Null, "{status}");
        let cure = format!("log in again, then: perennial import {name} --refresh-token-file FILE");
        assert_eq!(status["why"], cure, "{status}");
    }
    let lost = victim.count_lost();
    assert_eq!(
        server.summary().token_requests,
        3 * TRIES,
        "it is left alone"
    );
    assert_eq!(count(&server.log(), "grant.revoked"), lost);
    assert_eq!(lost, TRIES, "no client can help it");
    Fault {
        section: "Crashes",
        fault: &format!("{fault}; the server takes a replay for theft"),
        tries: TRIES,
        lost,
        seen: "The next start sends the refresh token once more, is refused, and logs `needs \
            login: an answer was lost`. The one credential that was under way is `needs_login` \
            and never asked about again; `status` says how to log in. All others are `fresh`.",
    }
    .record();
}

#[test]
fn killed_before_the_answer_is_read_and_the_replay_is_accepted() {
    in_the_window_with_a_lenient_server(WINDOW[0]);
}

#[test]
fn killed_between_answer_and_save_and_the_replay_is_accepted() {
    in_the_window_with_a_lenient_server(WINDOW[1]);
}

#[test]
fn killed_inside_the_transaction_of_the_save_and_the_replay_is_accepted() {
    in_the_window_with_a_lenient_server(WINDOW[2]);
}

/// The same crashes with a server that answers a replay with the same tokens again.
fn in_the_window_with_a_lenient_server((step, time, fault): (Step, usize, &str)) {
    let server = lenient_server();
    let mut victim = Victim::of(&server);
    victim.get_first_tokens();
    for crash in 0..TRIES {
        let current = format!("t{}", "+".repeat(crash + 1));
        victim.crash_in_refresh(0, step, time);
        assert_eq!(times_sent(&server, &current), 1);
        let service = victim.restart();
        victim.wait_until_delivered(&service, 0, crash as u64 + 3);
        service.kill();
        assert_eq!(times_sent(&server, &current), 2);
    }
    let lost = victim.count_lost();
    assert_eq!(lost, 0);
    assert_eq!(
        server.count(),
        1 + 2 * TRIES + 1,
        "one replay each, and nothing else"
    );
    Fault {
        section: "Crashes",
        fault: &format!("{fault}; the server accepts a replay"),
        tries: TRIES,
        lost,
        seen: "The next start sends the same refresh token once more, at once, and saves the \
            answer.",
    }
    .record();
}

/// The replay is killed as well, at the same place.
#[test]
fn killed_twice_in_the_window() {
    let server = lenient_server();
    let mut victim = Victim::of(&server);
    victim.get_first_tokens();
    for crash in 0..TRIES {
        let current = format!("t{}", "+".repeat(crash + 1));
        victim.crash_in_refresh(0, Step::Answering, 1);
        victim.crash_by_itself(Step::Answering, 1);
        let service = victim.restart();
        victim.wait_until_delivered(&service, 0, crash as u64 + 3);
        service.kill();
        assert_eq!(times_sent(&server, &current), 3);
    }
    let lost = victim.count_lost();
    assert_eq!(lost, 0);
    Fault {
        section: "Crashes",
        fault: "killed before the answer is read, and again at the replay; the server accepts \
            replays",
        tries: TRIES,
        lost,
        seen: "Each start sends the same refresh token once more, at once, until an answer is \
            saved.",
    }
    .record();
}

/// A schedule or a person may want a refresh before the time that a failure asked to wait for.
#[test]
fn killed_in_an_attempt_before_its_time() {
    let server = lenient_server();
    let mut victim = Victim::of(&server);
    victim.get_first_tokens();
    for crash in 0..TRIES {
        server.next(Deed::error(429, "slow_down").with_header("retry-after", "3600"));
        let service = victim.restart();
        let refused = victim.perennial.run(&["refresh", &victim.names[0]]);
        assert!(
            refused.stderr.contains("tried again in 1h 0m"),
            "{refused:?}"
        );
        service.kill();
        victim.crash_in_refresh(0, Step::Answering, 1);
        let service = victim.restart();
        victim.wait_until_delivered(&service, 0, crash as u64 + 3);
        service.kill();
    }
    let lost = victim.count_lost();
    assert_eq!(lost, 0);
    // The first, and then each time one that is refused, one that is killed, one replay.
    assert_eq!(server.count(), 1 + 3 * TRIES + 1);
    Fault {
        section: "Crashes",
        fault: "killed before the answer is read, in an attempt earlier than the one before it \
            asked for (`Retry-After` of an hour); the server accepts a replay",
        tries: TRIES,
        lost,
        seen: "The next start sends the same refresh token once more, at once: the wait was for \
            an attempt that has been made.",
    }
    .record();
}

fn times_sent(server: &FakeServer, refresh_token: &str) -> usize {
    let spent = server.spent();
    spent.iter().filter(|sent| *sent == refresh_token).count()
}

#[test]
fn killed_before_a_refusal_is_settled() {
    while_the_client_is_refused(Harmless {
        step: Step::Settling,
        time: 1,
        fault: "killed after the client was refused, before that is written",
        sent: 1,
        sent_after: 1,
        seen: "The next start sends the same refresh token at once. With the right client secret \
            it is refreshed.",
    });
}

#[test]
fn killed_inside_the_transaction_of_the_settlement() {
    while_the_client_is_refused(Harmless {
        step: Step::Committing,
        time: 2,
        fault: "killed inside the transaction that writes a refusal of the client",
        sent: 1,
        sent_after: 1,
        seen: "The next start sends the same refresh token at once. With the right client secret \
            it is refreshed.",
    });
}

#[test]
fn killed_after_a_refusal_is_settled() {
    while_the_client_is_refused(Harmless {
        step: Step::Settled,
        time: 1,
        fault: "killed after a refusal of the client was written",
        sent: 1,
        sent_after: 1,
        seen: "The next start takes it that something was corrected, and tries at once. With the \
            right client secret it is refreshed.",
    });
}

/// The refresh fails because of a wrong client secret, and the next start has the right one.
fn while_the_client_is_refused(crash: Harmless) {
    let server = AuthorizationServer::start(&Options::default());
    let client = format!(
        "token_url = \"{}\"\nclient_id = \"post\"\nclient_auth = \"post\"\n\
         client_secret = \"${{SECRET}}\"",
        server.token_url()
    );
    let mut victim = Victim::new(&client, &server.grants(1, "post"));
    victim.perennial.set_env("SECRET", CLIENT_SECRET);
    victim.get_first_tokens();
    for version in 3..3 + TRIES as u64 {
        let before = server.summary();
        victim.perennial.set_env("SECRET", "wrong");
        victim.crash_in_refresh(0, crash.step, crash.time);
        let refused = server.summary().token_requests_refused - before.token_requests_refused;
        assert_eq!(refused, crash.sent);
        victim.perennial.set_env("SECRET", CLIENT_SECRET);
        let service = victim.restart();
        victim.wait_until_delivered(&service, 0, version);
        service.kill();
        let sent = server.summary().token_requests - before.token_requests;
        assert_eq!(sent, crash.sent + crash.sent_after);
    }
    let lost = victim.count_lost();
    expect_nothing_spent_twice(&server);
    crash.record(lost);
}

#[test]
fn killed_before_a_dead_grant_is_buried() {
    with_a_dead_grant(Harmless {
        step: Step::Settling,
        time: 1,
        fault: "killed after the server called a grant dead, before that is written",
        sent: 1,
        sent_after: 1,
        seen: "The next start asks once more, and then never again. The grant was dead before.",
    });
}

#[test]
fn killed_after_a_dead_grant_is_buried() {
    with_a_dead_grant(Harmless {
        step: Step::Settled,
        time: 1,
        fault: "killed after it was written that a grant is dead",
        sent: 1,
        sent_after: 0,
        seen: "The grant is never asked about again. It was dead before.",
    });
}

/// Each crash comes at the first refresh of one more credential, whose grant nobody ever gave.
fn with_a_dead_grant(crash: Harmless) {
    let server = AuthorizationServer::start(&Options::default());
    let client = format!(
        "token_url = \"{}\"\nclient_id = \"public\"",
        server.token_url()
    );
    let mut victim = Victim::with_names(&client, TRIES);
    for number in 0..TRIES {
        let token = format!("made-up-{number}");
        fs::write(victim.token_file(number), token).expect("a writable folder");
        let before = server.summary();
        victim.crash_by_itself(crash.step, crash.time);
        let refused = server.summary().token_requests_refused - before.token_requests_refused;
        assert_eq!(refused, crash.sent);
        let service = victim.restart();
        wait::until("the dead", PATIENCE, || {
            let dead = victim.in_state(&service.metrics(), "needs_login");
            (dead == number + 1).then_some(()).ok_or(dead.to_string())
        });
        service.kill();
        let sent = server.summary().token_requests - before.token_requests;
        assert_eq!(sent, crash.sent + crash.sent_after);
    }
    assert_eq!(count(&server.log(), "grant.revoked"), 0);
    crash.record(0);
}

/// The store has nothing yet, and the file is the only copy.
#[test]
fn killed_while_a_refresh_token_is_imported() {
    let server = AuthorizationServer::start(&Options::default());
    let client = format!(
        "token_url = \"{}\"\nclient_id = \"public\"",
        server.token_url()
    );
    let mut victim = Victim::with_names(&client, TRIES);
    for (number, token) in server.grants(TRIES, "public").iter().enumerate() {
        fs::write(victim.token_file(number), token).expect("a writable folder");
        victim.crash_by_itself(Step::Committing, 1);
        let service = victim.restart();
        victim.wait_until_delivered(&service, number, 2);
        service.kill();
        assert_eq!(server.summary().token_requests, number + 1);
    }
    let lost = victim.count_lost();
    expect_nothing_spent_twice(&server);
    assert_eq!(lost, 0);
    Fault {
        section: "Crashes",
        fault: "killed while a refresh token is imported from its file",
        tries: TRIES,
        lost,
        seen: "The next start imports it, and refreshes it.",
    }
    .record();
}

/// A folder with a store, whose process is killed again and again.
struct Victim {
    perennial: Perennial,
    names: Vec<String>,
}

impl Victim {
    /// One credential at a fake server, whose first refresh token is `t`.
    fn of(server: &FakeServer) -> Self {
        let url = server.url("/token");
        let client = format!("token_url = \"{url}\"\nclient_id = \"public\"");
        Self::new(&client, &["t".to_owned()])
    }

    /// A credential for each refresh token, which it finds in its file.
    fn new(client: &str, refresh_tokens: &[String]) -> Self {
        let victim = Self::with_names(client, refresh_tokens.len());
        for (number, token) in refresh_tokens.iter().enumerate() {
            fs::write(victim.token_file(number), token).expect("a writable folder");
        }
        victim
    }

    /// So many credentials, whose refresh tokens may still come. One at a time is refreshed, so
    /// that a kill hits exactly one.
    fn with_names(client: &str, count: usize) -> Self {
        let mut config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[providers.acme]\n{client}\nmax_in_flight = 1\n"
        );
        let names = (0..count).map(|number| format!("credential-{number:02}"));
        let names: Vec<_> = names.collect();
        for (number, name) in names.iter().enumerate() {
            write!(
                config,
                "[credentials.{name}]\nprovider = \"acme\"\n\
                 refresh_token_file = \"{number}.token\"\nwrite_back = true\n\
                 sinks = [{{ kind = \"file\", path = \"{number}.access\", format = \"json\" }}]\n"
            )
            .expect("strings grow");
        }
        let perennial = Perennial::with_config(&config);
        Self { perennial, names }
    }

    fn token_file(&self, number: usize) -> std::path::PathBuf {
        self.perennial.folder().join(format!("{number}.token"))
    }

    /// What the file sink of a credential has written.
    fn access_file(&self, number: usize) -> Value {
        let path = self.perennial.folder().join(format!("{number}.access"));
        let text = fs::read_to_string(path).expect("it is there at any moment");
        serde_json::from_str(&text).expect("it is whole at any moment")
    }

    fn get_first_tokens(&mut self) {
        let service = self.restart();
        for number in 0..self.names.len() {
            // Version 1 is the import.
            self.wait_until_delivered(&service, number, 2);
        }
        // A write-back may be under way.
        assert_eq!(service.stop().code(), Some(0));
    }

    /// Starts the service with nothing that would end it.
    fn restart(&mut self) -> Service {
        self.perennial.set_env(VARIABLE, "");
        self.perennial.serve()
    }

    /// Starts the service, asks for a refresh of one credential, and sees it end at that step.
    fn crash_in_refresh(&mut self, number: usize, step: Step, time: usize) {
        self.arm(step, time);
        let service = self.perennial.serve();
        self.wait_for_deliveries(&service);
        let asked = self.perennial.start(&["refresh", &self.names[number]]);
        expect_killed(step, service.finish());
        // Whoever asked may have heard of the new token before the end.
        asked.wait_for_exit(PATIENCE);
    }

    /// Starts the service, and sees it end at that step of what it does by itself.
    fn crash_by_itself(&mut self, step: Step, time: usize) {
        self.arm(step, time);
        let service: Process = self.perennial.start(&["serve"]);
        expect_killed(step, service.wait_for_exit(PATIENCE));
    }

    fn arm(&mut self, step: Step, time: usize) {
        let value = format!("{step:?}:{time}").to_lowercase();
        self.perennial.set_env(VARIABLE, &value);
    }

    /// Waits until each access token that the process started with is in the hands of its sink.
    fn wait_for_deliveries(&self, service: &Service) {
        wait::until("what there is to be delivered", PATIENCE, || {
            let metrics = service.metrics();
            let deliveries = samples(&metrics, "perennial_sink_deliveries_total");
            let delivered = deliveries["outcome=\"success\",sink=\"file\""] as usize;
            let alive = self.names.len() - self.in_state(&metrics, "needs_login");
            (delivered >= alive)
                .then_some(())
                .ok_or(format!("{deliveries:?}"))
        });
    }

    /// Waits until this version of the access token is published and in the hands of the sink.
    fn wait_until_delivered(&self, service: &Service, number: usize, version: u64) {
        let name = &self.names[number];
        wait::until("the token", PATIENCE, || {
            let versions = samples(&service.metrics(), "token_version");
            let labels = format!("credential=\"{name}\",provider=\"acme\"");
            let published = versions.get(&labels).copied().unwrap_or_default() as u64;
            let path = self.perennial.folder().join(format!("{number}.access"));
            let delivered = path.exists().then(|| version_in(&self.access_file(number)));
            (published == version && delivered == Some(version))
                .then_some(())
                .ok_or(format!("{published} published, {delivered:?} delivered"))
        });
    }

    fn in_state(&self, metrics: &str, state: &str) -> usize {
        let states = samples(metrics, "credential_state");
        let state = format!("state=\"{state}\"");
        let is_it = |(labels, value): &(String, f64)| *value == 1.0 && labels.ends_with(&state);
        states.into_iter().filter(is_it).count()
    }

    /// Refreshes every credential once more: those that cannot be are lost.
    fn count_lost(&mut self) -> usize {
        let service = self.restart();
        let is_lost = |name: &&String| {
            let finished = self.perennial.run(&["refresh", name]);
            let lost = finished.code() != Some(0);
            assert!(
                !lost || finished.stderr.contains("log in again"),
                "{finished:?}"
            );
            lost
        };
        let lost = self.names.iter().filter(is_lost).count();
        assert_eq!(service.stop().code(), Some(0));
        lost
    }
}

fn expect_killed(step: Step, finished: Finished) {
    assert_eq!(finished.status.signal(), Some(9), "{finished:?}");
    let last_word = format!("{VARIABLE}: {step:?}");
    assert!(finished.stderr.contains(&last_word), "{finished:?}");
}

fn version_in(access_file: &Value) -> u64 {
    access_file["version"].as_u64().expect("a number")
}

/// No grant was revoked, and no refresh token was sent again once it was spent.
fn expect_nothing_spent_twice(server: &AuthorizationServer) {
    let log = server.log();
    assert_eq!(count(&log, "grant.revoked"), 0);
    let mut spent = BTreeSet::new();
    for event in requests(&log) {
        let token = event.refresh_token.clone().expect("it was sent");
        assert!(!spent.contains(&token), "spent twice: {event:?}");
        if event.status == Some(200) {
            spent.insert(token);
        }
    }
    assert_eq!(server.complaints(), Vec::<String>::new());
}
