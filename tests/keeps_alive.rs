//! The promise itself, kept by the real binary against a real authorization server: tokens do not
//! expire, no refresh token is spent twice, none is lost, and what is dead is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    sync::mpsc::Sender,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use perennial::{
    secret::{Fingerprint, Secret},
    store::{
        Record, Store,
        cipher::{Cipher, read_key_file},
        sqlite::{History, SqliteStore},
    },
};
use serde_json::{Value, json};

use crate::support::{
    authorization_server::{AuthorizationServer, CLIENT_SECRET, Event, Options},
    fake_server::{Deed, FakeServer},
    http,
    perennial::{Perennial, Service},
    process::{Finished, Process, Signal},
    wait,
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

const SERVER: &str = r#"
[server]
listen = "127.0.0.1:0"
"#;

/// Fifty credentials whose tokens live for five seconds, for a minute, with a SIGKILL in the
/// middle.
///
/// A request that is in flight at a kill has an unknown outcome: the server may have rotated, and
/// one without a replay window, as this one, then takes the replay for theft. No client can help
/// that, and `a_killed_process_replays_the_refresh_token_once` shows what is done about it where
/// the server can. So the kill here comes at a moment without an exchange under way: the process
/// is stopped (SIGSTOP), and killed only if every answer that the server has ever given is known to
/// be saved; otherwise it goes on and another moment is tried.
#[test]
fn fifty_credentials_live_for_a_minute() {
    const COUNT: usize = 50;
    const LIFE: Duration = Duration::from_secs(5);
    const RUN: Duration = Duration::from_secs(62);
    let server = AuthorizationServer::start(&Options {
        access_token_life: LIFE,
        ..Options::default()
    });
    let mut config = SERVER.to_owned();
    for client in ["public", "basic", "post"] {
        let found = format!("issuer = \"{}\"", server.issuer());
        let given = format!("token_url = \"{}\"", server.token_url());
        for (way, endpoint) in [("discovered", found), ("given", given)] {
            let secret = match client {
                "public" => String::new(),
                auth => {
                    format!("client_secret = \"{CLIENT_SECRET}\"\nclient_auth = \"{auth}\"\n")
                }
            };
            writeln!(
                config,
                "[providers.{client}-{way}]\n{endpoint}\nclient_id = \"{client}\"\n{secret}"
            )
            .expect("strings grow");
        }
    }
    let clients = ["public", "basic", "post"];
    let mut grants = clients.map(|client| server.grants(COUNT.div_ceil(3), client));
    let mut imported = BTreeMap::new();
    for number in 0..COUNT {
        let (client, way) = (number % 3, ["discovered", "given"][number / 3 % 2]);
        let (name, client_id) = (format!("credential-{number:02}"), clients[client]);
        let token = grants[client].pop().expect("there is one for each");
        imported.insert(name.clone(), token);
        writeln!(
            config,
            "[credentials.{name}]\nprovider = \"{client_id}-{way}\"\n\
             refresh_token_file = \"{name}.token\"\n"
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    for (name, token) in &imported {
        perennial.write(&format!("{name}.token"), token);
    }

    let started = Instant::now();
    let mut service = perennial.serve();
    let mut watch = Watch::new(COUNT);
    watch.until_all_have_tokens(&service);
    watch.until(&service, started + RUN / 2);
    let (service, before_kill) = {
        wait_for_a_quiet_moment(&mut service, &server, COUNT);
        let finished = service.kill();
        assert_eq!(finished.code(), None, "{finished:?}");
        let saved = stored(perennial.folder());
        assert_eq!(
            fingerprints(&saved),
            last_saved(&server, &imported),
            "every answer of the server was saved before the kill",
        );
        (perennial.serve(), server.summary())
    };
    watch.forgive_until = unix_now();
    watch.until(&service, started + RUN);
    let finished = service.stop();
    assert_eq!(finished.code(), Some(0), "{finished:?}");

    // From the server's point of view.
    let log = server.log();
    assert_eq!(count(&log, "grant.revoked"), 0);
    let refused: Vec<&Event> = requests(&log)
        .filter(|event| event.status != Some(200))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut spent = BTreeSet::new();
    for event in requests(&log) {
        let token = event.refresh_token.clone().expect("it was sent");
        assert!(spent.insert(token), "spent twice: {event:?}");
        let client = event.client.as_deref();
        let expected = if client == Some("public") {
            Some("none")
        } else {
            client
        };
        assert_eq!(event.client_auth.as_deref(), expected);
    }
    // A token is refreshed at two thirds of its life.
    let rounds = RUN.as_secs() / LIFE.as_secs();
    assert!(spent.len() > COUNT * rounds as usize, "{}", spent.len());
    let after_kill = requests(&log).count() - before_kill.token_requests;
    assert!(after_kill > COUNT * rounds as usize / 2, "{after_kill}");
    assert_eq!(server.complaints(), Vec::<String>::new());

    // Every rotation is in the database.
    let saved = stored(perennial.folder());
    assert_eq!(saved.len(), COUNT);
    assert_eq!(fingerprints(&saved), last_saved(&server, &imported));
    for record in saved.values() {
        assert!(!record.standing.doubtful, "{}", record.name);
        assert_eq!(record.standing.trouble, None, "{}", record.name);
    }
    assert!(watch.scrapes > 200, "{} looks in a minute", watch.scrapes);
}

/// Looks at `/metrics` all the time, and panics at the sight of an expired token.
struct Watch {
    count: usize,
    scrapes: usize,
    /// Tokens that died before this time died while nobody was there to refresh them.
    forgive_until: f64,
}

impl Watch {
    fn new(count: usize) -> Self {
        Self {
            count,
            scrapes: 0,
            forgive_until: 0.0,
        }
    }

    fn until_all_have_tokens(&mut self, service: &Service) {
        wait::until("the first tokens", PATIENCE, || {
            let expiries = samples(&service.metrics(), "token_expires_at_seconds");
            let seen = format!("{} of {}", expiries.len(), self.count);
            (expiries.len() == self.count).then_some(()).ok_or(seen)
        });
    }

    fn until(&mut self, service: &Service, end: Instant) {
        while Instant::now() < end {
            self.look(service);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn look(&mut self, service: &Service) {
        // Taken before the scrape: nothing that was alive when it was read can look dead.
        let now = unix_now();
        let metrics = service.metrics();
        self.scrapes += 1;
        let expiries = samples(&metrics, "token_expires_at_seconds");
        assert_eq!(expiries.len(), self.count, "every credential has a token");
        let mut forgiven = BTreeSet::new();
        for (credential, expires_at) in expiries {
            if expires_at < self.forgive_until {
                forgiven.insert(credential);
            } else {
                let ago = now - expires_at;
                assert!(ago < 0.0, "{credential} expired {ago} s ago");
            }
        }
        // With so short a life the mandatory point comes right after the due one, so `stale`,
        // which is valid, is seen while a refresh is on its way.
        let states = samples(&metrics, "credential_state").into_iter();
        for (labels, _) in states.filter(|(_, value)| *value == 1.0) {
            let (credential, state) = labels.rsplit_once(",state=").expect("it has a state");
            let valid = ["\"fresh\"", "\"due\"", "\"stale\""].contains(&state);
            assert!(valid || forgiven.contains(credential), "{labels}");
        }
    }
}

/// Stops the process (SIGSTOP) at a moment at which no answer of the server is on its way.
fn wait_for_a_quiet_moment(service: &mut Service, server: &AuthorizationServer, imported: usize) {
    for _ in 0..200 {
        // What is published has been saved. Version 1 is the import.
        let versions = samples(&service.metrics(), "token_version");
        let saved = versions.values().sum::<f64>() as usize - imported;
        service.process().signal(Signal::STOP);
        // What was sent before the stop may still be on its way to the server: it has come when
        // the counts stand still.
        let mut seen = server.summary();
        let mut still = 0;
        while still < 5 {
            std::thread::sleep(Duration::from_millis(20));
            let now = server.summary();
            still = if now == seen { still + 1 } else { 0 };
            seen = now;
        }
        if seen.token_requests_granted == saved && seen.token_requests == saved {
            return;
        }
        service.process().signal(Signal::CONT);
    }
    panic!("never a moment without a refresh under way");
}

/// A killed process has an exchange under way: its outcome is unknown, so the same refresh token
/// is sent again, once, although the access token would live for another hour.
#[test]
fn a_killed_process_replays_the_refresh_token_once() {
    let slow = Slow::in_flight("25s");
    slow.service.kill();
    expect_one_replay(&slow.perennial, &slow.server);
}

/// The other side of `fifty_credentials_live_for_a_minute`: a kill in the midst of a burst, and a
/// server that takes every replay for theft. What is lost is at most what was in flight.
#[test]
fn a_kill_at_any_moment_loses_no_more_than_was_in_flight() {
    const COUNT: usize = 30;
    const IN_FLIGHT: usize = 2;
    let server = AuthorizationServer::start(&Options::default());
    let mut config = format!(
        "{SERVER}\n[providers.acme]\nissuer = \"{}\"\nclient_id = \"public\"\n\
         max_in_flight = {IN_FLIGHT}\n",
        server.issuer()
    );
    for number in 0..COUNT {
        write!(
            config,
            "[credentials.credential-{number:02}]\nprovider = \"acme\"\n\
             refresh_token_file = \"{number:02}.token\"\n"
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    for (number, token) in server.grants(COUNT, "public").iter().enumerate() {
        perennial.write(&format!("{number:02}.token"), token);
    }
    let service = perennial.serve();
    wait::until("the burst", PATIENCE, || {
        let summary = server.summary();
        (summary.token_requests >= 5)
            .then_some(())
            .ok_or(format!("{summary:?}"))
    });
    service.kill();
    let asked_before = server.summary().token_requests;
    assert!(
        asked_before < COUNT,
        "the kill came too late to tell anything"
    );

    let service = perennial.serve();
    let lost = wait::until("an end for each", PATIENCE, || {
        let states = samples(&service.metrics(), "credential_state");
        let in_state = |state: &str| {
            let this = |(labels, value): &(&String, &f64)| {
                **value == 1.0 && labels.ends_with(&format!("state=\"{state}\""))
            };
            states.iter().filter(this).count()
        };
        let (fresh, lost) = (in_state("fresh"), in_state("needs_login"));
        let seen = format!("{fresh} fresh, {lost} lost");
        (fresh + lost == COUNT).then_some(lost).ok_or(seen)
    });
    assert!(lost <= IN_FLIGHT, "{lost} lost");
    assert_eq!(service.stop().code(), Some(0));
    // Each was lost by one replay of its own token, and by nothing else.
    let log = server.log();
    assert_eq!(count(&log, "grant.revoked"), lost);
    let refused = requests(&log).filter(|event| event.status != Some(200));
    assert_eq!(refused.count(), lost);
    assert_eq!(requests(&log).count(), COUNT + lost);
}

/// Not ready at once, the refresh under way is saved and told to whoever waits for it, and the
/// process ends well.
#[test]
fn a_stop_waits_for_the_refresh_under_way() {
    let mut slow = Slow::in_flight("25s");
    assert_eq!(slow.service.get("/readyz").status, 200);
    let asked = Instant::now();
    slow.service.process().signal(Signal::TERM);
    wait_until_not_ready(&slow.service);
    assert_eq!(slow.service.get("/healthz").status, 200);
    drop(slow.release);
    let finished = slow.service.finish();
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    let told = slow.refresh.wait_for_exit(PATIENCE);
    assert_eq!(told.stdout, "patient: refreshed, now version 3\n");
    expect_saved(&slow.perennial, "first++");
    assert_eq!(slow.server.spent(), ["first", "first+"]);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut slow = Slow::in_flight("25s");
    slow.service.process().signal(Signal::TERM);
    wait_until_not_ready(&slow.service);
    let asked = Instant::now();
    slow.service.process().signal(Signal::TERM);
    let finished = slow.service.finish();
    assert_eq!(finished.code(), Some(130), "{finished:?}");
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(finished.stderr.contains("second signal"), "{finished:?}");
    expect_one_replay(&slow.perennial, &slow.server);
}

#[test]
fn a_deadline_shorter_than_the_answer_ends_it_and_the_next_start_replays() {
    let slow = Slow::in_flight("1s");
    let asked = Instant::now();
    let finished = slow.service.stop();
    assert_eq!(finished.code(), Some(130), "{finished:?}");
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert!(asked.elapsed() < Duration::from_secs(6));
    assert!(finished.stderr.contains("deadline"), "{finished:?}");
    expect_one_replay(&slow.perennial, &slow.server);
}

/// A credential with a token that lives for an hour, and a second refresh of it under way.
struct Slow {
    server: FakeServer,
    /// The answer to it comes when this is dropped.
    release: Sender<()>,
    perennial: Perennial,
    service: Service,
    /// The command that asked for the refresh, and waits for it.
    refresh: Process,
}

impl Slow {
    fn in_flight(shutdown_timeout: &str) -> Self {
        let server = lenient_server();
        let perennial = patient(&server, shutdown_timeout);
        let service = perennial.serve();
        wait_for_version(&service, 2);
        let (release, held) = successor_of("first+").held();
        server.next(held);
        let refresh = perennial.start(&["refresh", "patient"]);
        server.wait_for_requests(2);
        Self {
            server,
            release,
            perennial,
            service,
            refresh,
        }
    }
}

/// A server that accepts a replay: a refresh token that was spent already gets the same successor
/// again, as servers with a grace window do it.
pub fn lenient_server() -> FakeServer {
    let server = FakeServer::start();
    server.always(|request| successor_of(&request.refresh_token()));
    server
}

pub fn successor_of(refresh_token: &str) -> Deed {
    Deed::json(
        200,
        json!({
            "access_token": "an-access-token",
            "token_type": "Bearer",
            "expires_in": 3600,
            "refresh_token": format!("{refresh_token}+"),
        }),
    )
}

/// One credential at a lenient server, with the refresh token "first".
fn patient(server: &FakeServer, shutdown_timeout: &str) -> Perennial {
    let config = format!(
        r#"{SERVER}
        shutdown_timeout = "{shutdown_timeout}"
        [providers.slow]
        token_url = "{}"
        client_id = "anybody"
        timeout = "2m"
        [credentials.patient]
        provider = "slow"
        refresh_token_file = "token"
        "#,
        server.url("/token")
    );
    let perennial = Perennial::with_config(&config);
    perennial.write("token", "first\n");
    perennial
}

/// Version 1 is the import.
fn wait_for_version(service: &Service, version: u32) {
    wait::until("the new token", PATIENCE, || {
        let versions = samples(&service.metrics(), "token_version");
        let there = versions.values().any(|seen| *seen == f64::from(version));
        there.then_some(()).ok_or(format!("{versions:?}"))
    });
}

fn wait_until_not_ready(service: &Service) {
    wait::until("not ready", PATIENCE, || {
        let answer = service.get("/readyz");
        let refused = answer.status == 503;
        refused.then_some(()).ok_or(format!("{answer:?}"))
    });
}

/// After an end without an answer to "first+": it is sent once more, its answer is saved, and
/// nothing else is ever sent.
fn expect_one_replay(perennial: &Perennial, server: &FakeServer) {
    let record = stored(perennial.folder()).remove("patient").expect("it is");
    assert!(record.standing.doubtful, "the intent is still open");
    let service = perennial.serve();
    wait_for_version(&service, 3);
    let finished = service.stop();
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    expect_saved(perennial, "first++");
    let service = perennial.serve();
    wait_for_version(&service, 3);
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(server.spent(), ["first", "first+", "first+"]);
}

fn expect_saved(perennial: &Perennial, refresh_token: &str) {
    let record = stored(perennial.folder()).remove("patient").expect("it is");
    let tokens = record.tokens.expect("it has tokens");
    assert_eq!(tokens.refresh_token, Some(Secret::new(refresh_token)));
    assert!(!record.standing.doubtful);
}

/// The case without a file, end to end but for the server: two variables, and the refresh token in
/// the file is kept current.
#[test]
fn a_rotated_refresh_token_replaces_the_old_one_in_its_file() {
    let server = AuthorizationServer::start(&Options {
        access_token_life: Duration::from_secs(3),
        ..Options::default()
    });
    let token = server.grants(1, "public").remove(0);
    let mut perennial = Perennial::without_config();
    let file = perennial.write(".yoto_refresh_token", &format!("{token}\n"));
    for (name, value) in [
        ("YOTO_CLIENT_ID", "public"),
        ("YOTO_REFRESH_TOKEN_FILE", ".yoto_refresh_token"),
        ("TOKEN_REFRESH_INTERVAL_HOURS", "12"),
        ("PERENNIAL_PROVIDERS__YOTO__TOKEN_URL", &*server.token_url()),
        ("PERENNIAL_SERVER__LISTEN", "127.0.0.1:0"),
    ] {
        perennial.set_env(name, value);
    }
    let service = perennial.serve();
    wait::until("three rotations", PATIENCE, || {
        let summary = server.summary();
        (summary.token_requests_granted >= 3)
            .then_some(())
            .ok_or(format!("{summary:?}"))
    });
    // While it runs, and not only at its end.
    wait::until("the newest token in the file", PATIENCE, || {
        let found = in_file(&file);
        let newest = newest_saved(&server);
        (found == newest)
            .then_some(())
            .ok_or(format!("{found}, not {newest}"))
    });
    let metrics = service.metrics();
    let labels = "credential=\"yoto\",provider=\"yoto\"";
    assert!(samples(&metrics, "refresh_success_total")[labels] >= 3.0);
    let finished = service.stop();
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert_eq!(in_file(&file), newest_saved(&server));
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).expect("it is there"));
    assert_eq!(mode & 0o7777, 0o600);
    let hint = "TOKEN_REFRESH_CRON=\"0 */12 * * *\"";
    let said = format!("{}{}", finished.stdout, finished.stderr).replace("\\\"", "\"");
    assert!(said.contains(hint), "{said}");

    // It goes on from the file and the store alike.
    let service = perennial.serve();
    let before = server.summary().token_requests_granted;
    wait::until("another rotation", PATIENCE, || {
        let summary = server.summary();
        (summary.token_requests_granted > before)
            .then_some(())
            .ok_or(format!("{summary:?}"))
    });
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(in_file(&file), newest_saved(&server));
    let summary = server.summary();
    assert_eq!(summary.grants_revoked, 0, "{summary:?}");
    assert_eq!(summary.token_requests_refused, 0, "{summary:?}");
}

/// The fingerprint of the refresh token in a file, as the server's log writes it.
pub fn in_file(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("it is there at any moment");
    hex(Secret::new(text.trim()).fingerprint())
}

pub fn newest_saved(server: &AuthorizationServer) -> String {
    let log = server.log();
    let saved = log
        .iter()
        .rfind(|event| event.event == "refresh_token.saved");
    cut(saved.and_then(|event| event.refresh_token.as_deref()))
}

#[test]
fn client_credentials_by_basic_and_by_post_with_discovery() {
    let server = AuthorizationServer::start(&Options {
        access_token_life: Duration::from_secs(3),
        ..Options::default()
    });
    let mut config = SERVER.to_owned();
    for auth in ["basic", "post"] {
        write!(
            config,
            r#"
            [providers.{auth}]
            issuer = "{}"
            client_id = "service-{auth}"
            client_secret_file = "secret"
            client_auth = "{auth}"
            [credentials.by-{auth}]
            provider = "{auth}"
            grant = "client_credentials"
            scopes = ["api"]
            "#,
            server.issuer()
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    perennial.write("secret", &format!("{CLIENT_SECRET}\n"));
    let service = perennial.serve();
    let log = wait::until("three tokens for each", PATIENCE, || {
        let log = server.log();
        let of = |auth: &str| {
            requests(&log)
                .filter(|event| event.client_auth.as_deref() == Some(auth))
                .count()
        };
        let seen = format!("{} by basic, {} by post", of("basic"), of("post"));
        if of("basic") >= 3 && of("post") >= 3 {
            Ok(log)
        } else {
            Err(seen)
        }
    });
    for event in requests(&log) {
        assert_eq!(event.status, Some(200), "{event:?}");
        assert_eq!(event.grant_type.as_deref(), Some("client_credentials"));
        let auth = event.client_auth.as_deref().unwrap_or_default();
        assert_eq!(event.client, Some(format!("service-{auth}")), "{event:?}");
    }
    let statuses = status(&perennial);
    assert_eq!(statuses.as_array().map(Vec::len), Some(2), "{statuses}");
    assert_eq!(service.stop().code(), Some(0));
    // Their tokens are worth keeping too: a restart within their life asks for none.
    for record in stored(perennial.folder()).values() {
        assert!(record.version >= 3, "{record:?}");
    }
}

#[test]
fn the_second_of_two_processes_on_one_store_ends_with_69() {
    let perennial = Perennial::with_config(SERVER);
    let mut service = perennial.serve();
    let finished = perennial.run(&["serve"]);
    assert_eq!(finished.code(), Some(69), "{finished:?}");
    let sentence = "perennial.db is in use by another Perennial (process ";
    assert!(finished.stderr.contains(sentence), "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("stop that one, or give this one a store of its own"),
        "{finished:?}"
    );
    assert!(service.process().is_running());
    assert_eq!(service.get("/readyz").status, 200);
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(perennial.serve().stop().code(), Some(0));
}

#[test]
fn a_wrong_key_ends_with_69_and_changes_nothing() {
    let server = lenient_server();
    let mut perennial = patient(&server, "25s");
    let service = perennial.serve();
    wait_for_version(&service, 2);
    assert_eq!(service.stop().code(), Some(0));
    let before = files(perennial.folder());
    assert!(before.contains_key("perennial.db"), "{:?}", before.keys());
    perennial.set_env(
        "PERENNIAL_KEY",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    );
    for command in [&["serve"][..], &["status"], &["refresh", "patient"]] {
        let finished = perennial.run(command);
        assert_eq!(finished.code(), Some(69), "{finished:?}");
        for part in [
            "perennial.db was encrypted with key ",
            "nothing was changed: set PERENNIAL_KEY, PERENNIAL_KEY_FILE or store.key_file",
        ] {
            assert!(finished.stderr.contains(part), "{finished:?}");
        }
    }
    let after = files(perennial.folder());
    assert!(
        before.keys().eq(after.keys()),
        "{:?} {:?}",
        before.keys(),
        after.keys()
    );
    for (name, content) in &before {
        // The lock names the process that had the store last.
        if name != "perennial.db.lock" {
            assert!(after[name] == *content, "{name} was changed");
        }
    }
    expect_saved(&perennial, "first+");
    assert_eq!(server.spent(), ["first"]);
}

/// One request tells that a grant is dead; from then on it is left alone, whatever the schedule
/// says and however often the service starts, until a person brings another refresh token.
#[test]
fn a_dead_grant_is_asked_about_once() {
    let server = AuthorizationServer::start(&Options {
        access_token_life: Duration::from_secs(3),
        ..Options::default()
    });
    let config = format!(
        r#"{SERVER}
        [providers.acme]
        token_url = "{}"
        client_id = "public"
        [credentials.alive]
        provider = "acme"
        refresh_token_file = "alive.token"
        [credentials.dead]
        provider = "acme"
        refresh_token_file = "dead.token"
        [jobs.token-refresh]
        kind = "token_refresh"
        schedule = "* * * * * *"
        "#,
        server.token_url()
    );
    let mut grants = server.grants(2, "public");
    let perennial = Perennial::with_config(&config);
    perennial.write("alive.token", &grants.remove(0));
    perennial.write("dead.token", "made-up");
    let made_up = hex(Secret::new("made-up").fingerprint());
    let mut service = perennial.serve();
    // The living one beside it shows that refreshes go on, and that time passes: its schedule
    // fires every second.
    let living = |more: usize| {
        let before = server.summary().token_requests_granted;
        wait::until("refreshes of the other", PATIENCE, || {
            let summary = server.summary();
            (summary.token_requests_granted >= before + more)
                .then_some(())
                .ok_or(format!("{summary:?}"))
        });
    };
    let asked = || {
        let log = server.log();
        requests(&log)
            .filter(|event| {
                event
                    .refresh_token
                    .as_deref()
                    .is_some_and(|sent| sent.starts_with(&made_up))
            })
            .count()
    };
    living(4);
    assert_eq!(asked(), 1);
    expect_needs_login(&perennial, &service);
    for _ in 0..2 {
        assert_eq!(service.stop().code(), Some(0));
        // From the store alone, too.
        assert_eq!(state_of(&status(&perennial), "dead"), "needs_login");
        service = perennial.serve();
        living(3);
        assert_eq!(asked(), 1, "after a restart");
        expect_needs_login(&perennial, &service);
    }

    // Nor does insisting: a person who wants it now is told what to do instead.
    let refused = perennial.run(&["refresh", "dead"]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("log in again"), "{refused:?}");
    assert_eq!(asked(), 1);

    // The same token again helps nobody.
    let refused = perennial.run(&["import", "dead", "--refresh-token-file", "dead.token"]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("log in again"), "{refused:?}");

    perennial.write("fresh.token", &grants.remove(0));
    let imported = perennial.run(&["import", "dead", "--refresh-token-file", "fresh.token"]);
    assert_eq!(imported.code(), Some(0), "{imported:?}");
    wait::until("it to be fresh", PATIENCE, || {
        let state = state_of(&status(&perennial), "dead");
        (state == "fresh" || state == "due")
            .then_some(())
            .ok_or(state)
    });
    living(2);
    assert_eq!(asked(), 1);
    assert_eq!(service.stop().code(), Some(0));
    let summary = server.summary();
    assert_eq!(summary.token_requests_refused, 1, "{summary:?}");
    assert_eq!(summary.grants_revoked, 0, "{summary:?}");
}

/// Somebody revokes the grant at the server. The access token that was given before is kept: it is
/// good until it expires.
#[test]
fn a_revoked_grant_needs_a_login() {
    let server = AuthorizationServer::start(&Options::default());
    let config = format!(
        r#"{SERVER}
        [providers.acme]
        issuer = "{}"
        client_id = "public"
        [credentials.dead]
        provider = "acme"
        refresh_token_file = "token"
        write_back = true
        "#,
        server.issuer()
    );
    let perennial = Perennial::with_config(&config);
    let file = perennial.write("token", &server.grants(1, "public").remove(0));
    let service = perennial.serve();
    wait_for_version(&service, 2);
    wait::until("the newest token in the file", PATIENCE, || {
        let (found, newest) = (in_file(&file), newest_saved(&server));
        (found == newest).then_some(()).ok_or(found)
    });
    let token = fs::read_to_string(&file).expect("it is there");
    let revocation = format!("{}/token/revocation", server.issuer());
    let fields = [("token", token.trim()), ("client_id", "public")];
    assert_eq!(http::post_form(&revocation, &fields).status, 200);

    let refused = perennial.run(&["refresh", "dead"]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("log in again"), "{refused:?}");
    expect_needs_login(&perennial, &service);
    let expiries = samples(&service.metrics(), "token_expires_at_seconds");
    let expires_at = expiries["credential=\"dead\",provider=\"acme\""];
    assert!(expires_at > unix_now() + 3_000.0, "{expires_at}");
    assert_eq!(service.stop().code(), Some(0));
    let summary = server.summary();
    assert_eq!(summary.token_requests_granted, 1, "{summary:?}");
    assert_eq!(summary.token_requests_refused, 1, "{summary:?}");
}

fn expect_needs_login(perennial: &Perennial, service: &Service) {
    let statuses = status(perennial);
    let dead = of_name(&statuses, "dead");
    assert_eq!(dead["state"], "needs_login", "{dead}");
    let cure = "log in again, then: perennial import dead --refresh-token-file FILE";
    assert_eq!(dead["why"], cure, "{dead}");
    assert_eq!(dead["next_refresh_at"], Value::Null, "{dead}");
    let last = dead["last"]["result"].as_str().unwrap_or_default();
    assert!(last.contains("invalid_grant"), "{dead}");
    let states = samples(&service.metrics(), "credential_state");
    let labels = "credential=\"dead\",provider=\"acme\",state=\"needs_login\"";
    assert_eq!(states[labels], 1.0);
}

/// `perennial status --json`.
pub fn status(perennial: &Perennial) -> Value {
    let finished: Finished = perennial.run(&["status", "--json"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).expect("JSON and nothing else")
}

pub fn of_name<'a>(statuses: &'a Value, name: &str) -> &'a Value {
    let found = statuses
        .as_array()
        .and_then(|all| all.iter().find(|status| status["name"] == name));
    found.unwrap_or_else(|| panic!("no {name} in {statuses}"))
}

fn state_of(statuses: &Value, name: &str) -> String {
    of_name(statuses, name)["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What the store of a service that is not running holds.
pub fn stored(folder: &Path) -> BTreeMap<String, Record> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let key = read_key_file(&folder.join("perennial.db.key")).expect("it was made");
    let cipher = Cipher::from_base64(&key).expect("it is one");
    let history = History {
        runs: 100,
        failed_runs: 500,
    };
    let records = runtime.block_on(async {
        let store = SqliteStore::open(&folder.join("perennial.db"), cipher, history).await?;
        let records = store.load().await;
        store.close().await;
        records
    });
    let records = records.expect("the store opens").into_iter();
    records
        .map(|record| (record.name.to_string(), record))
        .collect()
}

/// The stored refresh token of each credential.
fn fingerprints(records: &BTreeMap<String, Record>) -> BTreeMap<String, String> {
    let of = |(name, record): (&String, &Record)| {
        let tokens = record.tokens.as_ref().expect("it has tokens");
        let token = tokens
            .refresh_token
            .as_ref()
            .expect("it is a grant with one");
        (name.clone(), hex(token.fingerprint()))
    };
    records.iter().map(of).collect()
}

/// The last refresh token of each credential that the server gave, whatever became of it.
fn last_saved(
    server: &AuthorizationServer,
    imported: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let log = server.log();
    let saved = || {
        log.iter()
            .filter(|event| event.event == "refresh_token.saved")
    };
    let of = |(name, token): (&String, &String)| {
        let first = hex(Secret::new(token.as_str()).fingerprint());
        let first = saved()
            .find(|event| cut(event.refresh_token.as_deref()) == first)
            .expect("the server made it");
        let last = saved().rfind(|event| event.grant == first.grant);
        (
            name.clone(),
            cut(last.and_then(|event| event.refresh_token.as_deref())),
        )
    };
    imported.iter().map(of).collect()
}

/// A fingerprint is the first half of what the server's log writes.
pub fn hex(fingerprint: Fingerprint) -> String {
    fingerprint
        .0
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn cut(sha256: Option<&str>) -> String {
    sha256.expect("the event has one")[..32].to_owned()
}

/// The samples of one metric, by their labels.
pub fn samples(metrics: &str, name: &str) -> BTreeMap<String, f64> {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of).collect()
}

pub fn requests(log: &[Event]) -> impl Iterator<Item = &Event> {
    log.iter().filter(|event| event.event == "token_request")
}

pub fn count(log: &[Event], what: &str) -> usize {
    log.iter().filter(|event| event.event == what).count()
}

/// Every file in a folder, and what is in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("it is there");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("it can be listed");
        let name = entry.file_name().into_string().expect("plain names");
        (name, fs::read(entry.path()).unwrap_or_default())
    };
    entries.map(read).collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "what the metrics say is held against the real time"
)]
fn unix_now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs_f64()
}
