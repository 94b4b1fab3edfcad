//! Clocks that are wrong: the machine's, which is set while the real binary runs, sleeps, and
//! changes to summer time and back; and the server's. Tokens stay alive, nothing is asked twice for
//! it, and what the metrics say holds by the clock as it then is.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::DateTime;
use serde_json::{Value, json};

use crate::support::{
    fake_server::{Deed, FakeServer},
    fault_table::Fault,
    perennial::{Perennial, Service},
    process::Signal,
    token_families::{Grant, TokenFamilies},
    wait,
    wall_clock::WallClock,
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// The service looks at everything again after this long, whatever it reckoned.
const LOOK_AGAIN: Duration = Duration::from_secs(37);
/// The default of a provider.
const MAX_IN_FLIGHT: usize = 16;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

// The machine's clock

/// Twenty tokens that live for six seconds, while the clock goes an hour and a day forward and
/// back: a reader of the files never sees a dead one, and each jump costs at most one refresh each.
#[test]
fn short_tokens_live_through_jumps_of_the_wall_clock() {
    const COUNT: usize = 20;
    const LIFE: u64 = 6;
    /// Between two refreshes of one token: two thirds of its life, less the jitter.
    const AT_LEAST: f64 = LIFE as f64 * 0.63;
    let mut place = Place::new(COUNT, LIFE, "");
    let service = place.serve();
    place.wait_until_all_are_alive();
    for off_by in [HOUR, 0, DAY, 0, -HOUR, -DAY] {
        let (before, jumped) = (place.server.count(), Instant::now());
        place.clock.set_off_by(off_by);
        while jumped.elapsed() < Duration::from_secs_f64(AT_LEAST * 2.0) {
            place.expect_all_alive();
            let healthy = service.get("/healthz");
            assert_eq!(healthy.status, 200, "{off_by}: {healthy:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // Two full intervals in that time and one begun before it, and one for the jump.
        let rounds = (jumped.elapsed().as_secs_f64() / AT_LEAST).ceil() as usize + 2;
        let requests = place.server.count() - before;
        assert!((COUNT..=COUNT * rounds).contains(&requests), "{requests}");
        place.expect_true_metrics(&service);
    }
    assert_eq!(service.stop().code(), Some(0));
    place.record(
        "the wall clock is set an hour or a day forward or back, tokens live for seconds",
        6,
        "Nothing but the numbers: `token_expires_at_seconds` and the other times are by the new \
         clock. A jump forward brings one refresh forward; `/healthz` stays 200.",
    );
}

/// Tokens that live for twelve hours: a jump forward by more looks like their end, so each is
/// refreshed, once; a jump back does not.
#[test]
fn long_tokens_are_refreshed_once_by_a_jump_forward() {
    const COUNT: usize = 40;
    let mut place = Place::new(COUNT, 12 * HOUR as u64, "");
    let service = place.serve();
    place.wait_until_all_are_fresh(&service);
    assert_eq!(place.server.count(), COUNT);
    let jumped = Instant::now();
    place.clock.set_off_by(DAY);
    place.wait_for_requests(2 * COUNT, LOOK_AGAIN + PATIENCE);
    place.wait_until_all_are_fresh(&service);
    assert!(jumped.elapsed() < LOOK_AGAIN + Duration::from_secs(5));
    let busiest = place.busiest.load(SeqCst);
    assert!((2..=MAX_IN_FLIGHT).contains(&busiest), "{busiest} at once");
    place.expect_true_metrics(&service);
    place.clock.set_off_by(-DAY);
    place.expect_true_metrics(&service);
    // Until it has looked at everything once more, and a little longer.
    let later = jumped + 2 * LOOK_AGAIN + Duration::from_secs(3);
    wait::until("the second look", 2 * LOOK_AGAIN, || {
        place.expect_all_alive();
        let over = Instant::now() > later;
        over.then_some(()).ok_or(String::new())
    });
    assert_eq!(place.server.count(), 2 * COUNT, "once each, and none since");
    place.expect_true_metrics(&service);
    assert_eq!(service.stop().code(), Some(0));
    place.record(
        "the wall clock is set forward by more than the tokens live, and back",
        2,
        "For 37 s at most the tokens count as `expired`, though they live; then each is refreshed \
         once, no more than `max_in_flight` of them at a time. The way back costs no request.",
    );
}

/// A clock that is set between the request and its answer.
#[test]
fn the_clock_jumps_while_a_refresh_is_in_flight() {
    for (off_by, more) in [(DAY, 1), (-DAY, 0), (HOUR, 0), (-HOUR, 0)] {
        let mut place = Place::new(1, 12 * HOUR as u64, "");
        let (release, held) = {
            let grant = place.families().refresh("refresh-0-0", Duration::ZERO);
            tokens(&grant.expect("it was never spent")).held()
        };
        place.server.next(held);
        let service = place.serve();
        place.server.wait_for_requests(1);
        place.clock.set_off_by(off_by);
        release.send(()).expect("it is held");
        place.wait_for_requests(1 + more, PATIENCE);
        place.wait_until_all_are_fresh(&service);
        place.wait_until_all_are_alive();
        place.expect_true_metrics(&service);
        assert_eq!(place.server.count(), 1 + more, "{off_by}");
        assert_eq!(service.stop().code(), Some(0));
        place.expect_nothing_lost();
    }
    fault(
        "the wall clock is set while an answer is on its way",
        4,
        "The answer is saved. After a jump forward by more than its life the new token counts as \
         old, and is refreshed once more at once.",
    );
}

/// A clock that was set while the service was down: what is not known to be young is refreshed.
#[test]
fn the_clock_was_set_between_stop_and_start() {
    const COUNT: usize = 20;
    let mut place = Place::new(COUNT, 12 * HOUR as u64, "");
    let mut rounds = 1;
    for (off_by, costs) in [(0, 0), (0, 0), (DAY, 1), (0, 1), (-HOUR, 1), (0, 0)] {
        place.clock.set_off_by(off_by);
        let service = place.serve();
        rounds += costs;
        place.wait_for_requests(COUNT * rounds, PATIENCE);
        place.wait_until_all_are_fresh(&service);
        place.expect_true_metrics(&service);
        assert_eq!(service.stop().code(), Some(0));
        assert_eq!(place.server.count(), COUNT * rounds, "{off_by}");
        place.expect_all_alive();
    }
    place.record(
        "the wall clock is set an hour or a day forward or back while the service is down",
        4,
        "A token that is from the future then, or whose time seems to have come, is refreshed once \
         at the start. The others, as without a jump, cost no request.",
    );
}

/// The process stands still for three lives of its tokens, as in a sleep of the machine.
#[test]
fn a_sleep_longer_than_the_life_of_a_token() {
    const COUNT: usize = 20;
    const LIFE: u64 = 3;
    let place = Place::new(COUNT, LIFE, "");
    let mut service = place.serve();
    place.wait_until_all_are_fresh(&service);
    for _ in 0..2 {
        service.process().signal(Signal::STOP);
        let (asleep, before) = (Instant::now(), place.server.count());
        wait::until("a long sleep", PATIENCE, || {
            let over = asleep.elapsed() > Duration::from_secs(3 * LIFE);
            over.then_some(()).ok_or(String::new())
        });
        assert_eq!(place.alive(), 0, "all have died meanwhile");
        service.process().signal(Signal::CONT);
        let awake = Instant::now();
        place.wait_until_all_are_alive();
        let took = awake.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        // One for each, and those whose requests were on their way when it fell asleep.
        let requests = place.server.count() - before;
        assert!((COUNT..2 * COUNT).contains(&requests), "{requests}");
        place.wait_until_all_are_fresh(&service);
        place.expect_true_metrics(&service);
    }
    assert_eq!(service.stop().code(), Some(0));
    place.record(
        "the process stands still (SIGSTOP) for three lives of its tokens",
        2,
        "The tokens die meanwhile. Awake again, all are refreshed within 2 s, each once.",
    );
}

/// A schedule goes on by the new clock, although every token is from the future then.
#[test]
fn a_schedule_goes_on_after_the_clock_was_set_back() {
    let jobs = job("*/5 * * * * *", "UTC");
    let mut place = Place::new(1, 12 * HOUR as u64, &jobs);
    let service = place.serve();
    place.wait_for_requests(2, PATIENCE);
    place.clock.set_off_by(-DAY);
    let (back, before) = (Instant::now(), place.server.count());
    place.wait_for_requests(before + 2, 2 * PATIENCE);
    // Thirty seconds in which nothing is repeated, and two firings.
    assert!(back.elapsed() < Duration::from_secs(45), "{back:?}");
    place.wait_until_all_are_fresh(&service);
    place.expect_true_metrics(&service);
    assert_eq!(service.stop().code(), Some(0));
    place.record(
        "the wall clock is set back a day, with a schedule of every 5 s",
        1,
        "The schedule pauses for 30 s, in which no time is repeated, then fires by the new clock \
         and brings refreshes forward as before.",
    );
}

// Summer time

/// 02:30 does not exist on the day on which Paris changes to summer time.
#[test]
fn a_time_that_summer_time_skips_fires_right_after_it() {
    let changes = unix("2027-03-28T01:00:00Z");
    let jobs = job("30 2 * * *", "Europe/Paris");
    let mut place = Place::new(1, 30 * DAY as u64, &jobs);
    place.clock.set_to(changes - 8);
    let service = place.serve();
    place.wait_until_all_are_fresh(&service);
    assert_eq!(place.server.count(), 1);
    assert_eq!(next_run(&service), changes as f64);
    place.wait_for_requests(2, PATIENCE);
    assert!(place.clock.now() >= changes as f64);
    assert_eq!(next_run(&service), unix("2027-03-29T00:30:00Z") as f64);
    place.wait_for_tick_after(&service, changes + 6);
    assert_eq!((scheduled_runs(&service), place.server.count()), (1.0, 2));
    place.expect_true_metrics(&service);
    place.record(
        "summer time begins, and the schedule names a time that is skipped",
        1,
        "It fires once, at the first instant after the gap; \
         `perennial_job_next_run_timestamp_seconds` names that instant before.",
    );
}

/// 02:30 comes twice on the day on which Paris changes back.
#[test]
fn a_time_that_comes_twice_fires_once() {
    let first = unix("2026-10-25T00:30:00Z");
    let again = first + HOUR;
    let jobs = job("30 2 * * *", "Europe/Paris");
    let mut place = Place::new(1, 30 * DAY as u64, &jobs);
    place.clock.set_to(first - 8);
    let service = place.serve();
    place.wait_until_all_are_fresh(&service);
    assert_eq!(next_run(&service), first as f64);
    place.wait_for_requests(2, PATIENCE);
    assert_eq!(next_run(&service), unix("2026-10-26T01:30:00Z") as f64);
    place.clock.set_to(again - 3);
    place.wait_for_tick_after(&service, again + 3);
    assert_eq!((scheduled_runs(&service), place.server.count()), (1.0, 2));
    place.expect_true_metrics(&service);
    place.record(
        "summer time ends, and the schedule names a time that comes twice",
        1,
        "It fires the first time only; \
         `perennial_job_next_run_timestamp_seconds` then names the next day.",
    );
}

// The server's clock

/// A server whose clock is an hour ahead or behind, and that says only when its tokens end.
#[test]
fn a_server_whose_clock_is_off_by_an_hour() {
    const LIFE: i64 = 600;
    for off_by in [HOUR, -HOUR] {
        for form in ["exp and iat", "exp", "expires_at"] {
            let place = Place::new(1, LIFE as u64, "");
            let clock = place.clock_of_server(off_by);
            place.server.always(move |_| {
                let now = clock();
                let claims = match form {
                    "exp and iat" => json!({ "iat": now, "exp": now + LIFE }),
                    _ => json!({ "exp": now + LIFE }),
                };
                let mut answer = json!({ "access_token": jwt(&claims), "refresh_token": "next" });
                if form == "expires_at" {
                    answer["access_token"] = json!("opaque");
                    answer["expires_at"] = json!(now + LIFE);
                }
                Deed::json(200, answer).with_header("date", http_date(now))
            });
            let service = place.serve();
            place.wait_until_all_are_fresh(&service);
            let life = sample(&service, "token_lifetime_seconds").expect("it has a token");
            assert!((life - LIFE as f64).abs() <= 2.0, "{form} {off_by}: {life}");
            place.expect_true_metrics(&service);
            assert_eq!(place.server.count(), 1);
        }
    }
    fault(
        "the server's clock is off by an hour, and it names the end of a token only as a time",
        6,
        "`token_lifetime_seconds` is right: the time is held against the `Date` of the answer, and \
         `exp` against `iat`.",
    );
}

/// `Retry-After` as a time by a clock that is an hour ahead or behind.
#[test]
fn a_retry_after_by_a_clock_that_is_off_by_an_hour() {
    const WAIT: i64 = 5;
    for off_by in [HOUR, -HOUR] {
        let place = Place::new(1, 600, "");
        let now = place.clock_of_server(off_by)();
        let refusal = Deed::text(503, "text/plain", "")
            .with_header("date", http_date(now))
            .with_header("retry-after", http_date(now + WAIT));
        place.server.next(refusal);
        let service = place.serve();
        place.server.wait_for_requests(1);
        let refused = Instant::now();
        place.wait_for_requests(2, PATIENCE);
        let waited = refused.elapsed();
        assert!(waited > Duration::from_secs(WAIT as u64 - 1), "{waited:?}");
        place.wait_until_all_are_fresh(&service);
        assert_eq!(place.server.count(), 2);
        place.expect_nothing_lost();
    }
    fault(
        "the server's clock is off by an hour, and its `Retry-After` is a time",
        2,
        "The wait is kept as the server meant it: the time is held against the `Date` of the answer.",
    );
}

/// Credentials at a server that rotates, each with a file that its access token is delivered to,
/// and a clock of their own.
struct Place {
    count: usize,
    life: u64,
    started: Instant,
    server: FakeServer,
    families: Arc<Mutex<TokenFamilies>>,
    /// The most requests that were answered at the same time.
    busiest: Arc<AtomicUsize>,
    perennial: Perennial,
    clock: WallClock,
}

impl Place {
    fn new(count: usize, life: u64, jobs: &str) -> Self {
        let (server, started) = (FakeServer::start(), Instant::now());
        let mut families = TokenFamilies::new(Duration::ZERO);
        let mut config = format!(
            "{jobs}\n[server]\nlisten = \"127.0.0.1:0\"\n\
             [providers.acme]\ntoken_url = \"{}\"\nclient_id = \"anybody\"\n",
            server.url("/token")
        );
        let mut imported = Vec::new();
        for number in 0..count {
            imported.push(families.begin(Duration::from_secs(life)));
            write!(
                config,
                "[credentials.credential-{number}]\nprovider = \"acme\"\n\
                 refresh_token_file = \"{number}.refresh\"\nwrite_back = false\n\
                 sinks = [{{ kind = \"file\", path = \"{number}.access\" }}]\n"
            )
            .expect("strings grow");
        }
        let mut perennial = Perennial::with_config(&config);
        for (number, token) in imported.iter().enumerate() {
            perennial.write(&format!("{number}.refresh"), token);
        }
        let families = Arc::new(Mutex::new(families));
        let (shared, busiest) = (families.clone(), Arc::new(AtomicUsize::new(0)));
        let (busy, most) = (AtomicUsize::new(0), busiest.clone());
        server.always(move |request| {
            most.fetch_max(busy.fetch_add(1, SeqCst) + 1, SeqCst);
            // As long as an answer takes nearby, so that requests at the same time are seen.
            std::thread::sleep(Duration::from_millis(20));
            busy.fetch_sub(1, SeqCst);
            let mut families = shared.lock().expect("nothing panics under it");
            match families.refresh(&request.refresh_token(), started.elapsed()) {
                Ok(grant) => tokens(&grant),
                Err(_) => Deed::error(400, "invalid_grant"),
            }
        });
        let clock = WallClock::of(&mut perennial);
        Self {
            count,
            life,
            started,
            server,
            families,
            busiest,
            perennial,
            clock,
        }
    }

    fn serve(&self) -> Service {
        self.perennial.serve()
    }

    fn families(&self) -> MutexGuard<'_, TokenFamilies> {
        self.families.lock().expect("nothing panics under it")
    }

    /// How many of the delivered access tokens the server would take now.
    fn alive(&self) -> usize {
        let now = self.started.elapsed();
        let alive = |number: &usize| {
            let file = self.perennial.folder().join(format!("{number}.access"));
            let token = fs::read_to_string(file).unwrap_or_default();
            self.families().end_of(token.trim()) > Some(now)
        };
        (0..self.count).filter(alive).count()
    }

    fn expect_all_alive(&self) {
        assert_eq!(self.alive(), self.count, "tokens that a reader can use");
    }

    fn wait_until_all_are_alive(&self) {
        wait::until("tokens that a reader can use", PATIENCE, || {
            let alive = self.alive();
            let all = alive == self.count;
            all.then_some(()).ok_or(format!("{alive} are alive"))
        });
    }

    fn wait_for_requests(&self, count: usize, deadline: Duration) {
        wait::until("requests", deadline, || {
            let seen = self.server.count();
            (seen >= count).then_some(()).ok_or(format!("{seen}"))
        });
    }

    fn wait_until_all_are_fresh(&self, service: &Service) {
        wait::until("fresh tokens", PATIENCE, || {
            let fresh = samples(&service.metrics(), "credential_state")
                .filter(|(labels, value)| labels.contains("state=\"fresh\"") && *value == 1.0)
                .count();
            let all = fresh == self.count;
            all.then_some(()).ok_or(format!("{fresh} are fresh"))
        });
    }

    fn wait_for_tick_after(&self, service: &Service, unix: i64) {
        wait::until("a tick", PATIENCE, || {
            let tick = sample(service, "perennial_scheduler_last_tick_timestamp_seconds");
            let there = tick.filter(|tick| *tick >= unix as f64);
            there.map(drop).ok_or(format!("{tick:?}"))
        });
    }

    /// What is said about time holds by the clock as it now is.
    fn expect_true_metrics(&self, service: &Service) {
        let metrics = service.metrics();
        let now = self.clock.now();
        let within = |name: &str, from: f64, to: f64| {
            for (labels, value) in samples(&metrics, name) {
                let left = value - now;
                assert!((from..=to).contains(&left), "{name}{labels}: {left}");
            }
        };
        let life = self.life as f64;
        within("token_expires_at_seconds", 0.0, life + 2.0);
        within("token_refresh_due_at_seconds", -2.0, life);
        within(
            "perennial_scheduler_last_tick_timestamp_seconds",
            -40.0,
            0.5,
        );
        let days = 3.0 * DAY as f64;
        within("perennial_job_last_run_timestamp_seconds", -days, 0.5);
        within("perennial_job_last_success_timestamp_seconds", -days, 0.5);
        within(
            "perennial_job_next_run_timestamp_seconds",
            -1.0,
            26.0 * 3_600.0,
        );
        assert_eq!(
            samples(&metrics, "token_expires_at_seconds").count(),
            self.count
        );
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            assert!(!line.contains(" -"), "{line}");
        }
    }

    /// The clock of a server that is so many seconds ahead, in seconds since 1970.
    fn clock_of_server(&self, ahead: i64) -> impl Fn() -> i64 + Send + Sync + 'static {
        let (started, now) = (Instant::now(), self.clock.now());
        move || (now + started.elapsed().as_secs_f64()) as i64 + ahead
    }

    fn expect_nothing_lost(&self) {
        assert_eq!(self.families().revoked(), Vec::<usize>::new());
    }

    fn record(&self, what: &str, tries: usize, seen: &str) {
        self.expect_nothing_lost();
        let spent = self.server.spent();
        let distinct: BTreeSet<&String> = spent.iter().collect();
        assert_eq!(distinct.len(), spent.len(), "each is spent once");
        fault(what, tries, seen);
    }
}

fn fault(what: &str, tries: usize, seen: &str) {
    Fault {
        section: "Clocks",
        fault: what,
        tries,
        lost: 0,
        seen,
    }
    .record();
}

/// A grant as an answer.
fn tokens(grant: &Grant) -> Deed {
    let body = json!({
        "access_token": grant.access_token,
        "refresh_token": grant.refresh_token,
        "expires_in": grant.life.as_secs(),
    });
    Deed::json(200, body)
}

fn job(schedule: &str, timezone: &str) -> String {
    format!(
        "[jobs.refresh]\nkind = \"token_refresh\"\nschedule = \"{schedule}\"\n\
         timezone = \"{timezone}\"\n"
    )
}

/// An access token with these claims, and no more than looks like a signature.
fn jwt(claims: &Value) -> String {
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("e30.{claims}.c2ln")
}

fn http_date(unix: i64) -> String {
    let at = DateTime::from_timestamp(unix, 0).expect("in range");
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn unix(text: &str) -> i64 {
    let at = DateTime::parse_from_rfc3339(text).expect("RFC 3339");
    at.timestamp()
}

fn next_run(service: &Service) -> f64 {
    sample(service, "perennial_job_next_run_timestamp_seconds").expect("it has a schedule")
}

fn scheduled_runs(service: &Service) -> f64 {
    let metrics = service.metrics();
    samples(&metrics, "perennial_job_runs_total")
        .filter(|(labels, _)| labels.contains("trigger=\"schedule\""))
        .map(|(_, value)| value)
        .sum()
}

/// The only sample of a metric.
fn sample(service: &Service, name: &str) -> Option<f64> {
    let metrics = service.metrics();
    let mut values = samples(&metrics, name).map(|(_, value)| value);
    let first = values.next();
    assert_eq!(values.next(), None, "{name} has one sample");
    first
}

/// The samples of a metric, with their labels.
fn samples<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.parse().ok()?))
    })
}
