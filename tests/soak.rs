//! A long run: 500 credentials with lifetimes from seconds to minutes, at a server that misbehaves
//! at random, while the service is killed, stopped and paused and its clock is set. At the end the
//! server's log must keep every rule of `soak/check.rs`, and no credential may be lost.
//!
//! `make soak`, with `SOAK_MINUTES` (5) and `SOAK_SEED` (any number; printed at the start).

mod check;
mod log;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use self::{
    log::{Answer, At, Log, Memory, Span, StaleRead},
    server::{Dice, PROVIDERS, Server, TIMEOUT, provider_of},
};
use crate::{
    keeps_alive::{samples, stored},
    support::{
        perennial::{Perennial, Service},
        process::Signal,
        token_families::family_of,
        wall_clock::WallClock,
    },
};

const HOUR: i64 = 3_600;
/// The service comes to its size within this: every credential has been refreshed, or will soon be.
const WARM_AFTER: Duration = Duration::from_secs(40);
/// From then on before the end, nothing ends a process.
const LAST_LIFE: Duration = Duration::from_secs(90);
/// A process that lived on for so long after that can tell whether it grows.
const LIVES_LONG: Duration = Duration::from_secs(20);
/// Longer than the longest wait that a fault in [`server`] can lead to.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);

#[test]
#[ignore = "takes minutes: run `make soak`"]
fn soak() {
    let minutes: f64 = variable("SOAK_MINUTES").unwrap_or(5.0);
    let seed = variable("SOAK_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("soak: {minutes} minutes, SOAK_SEED={seed}");
    let started = Instant::now();
    let (server, first) = Server::start(seed);
    let perennial = configured(&server, &first);
    let mut world = World::new(&server, perennial, seed);
    let over = AtomicBool::new(false);
    let folder = world.perennial.folder().to_owned();
    let (stale_reads, unsettled) = thread::scope(|scope| {
        // However this ends, the reader does too.
        let ends = Ends(&over);
        let reader = scope.spawn(|| read_until(&over, &server, &folder));
        world.trouble_until(started + Duration::from_secs_f64(minutes * 60.0));
        server.behave();
        let unsettled = world.wait_until_settled().err();
        drop(ends);
        let stale_reads = reader.join().expect("the reader does not panic");
        (stale_reads, unsettled)
    });
    world.end(stale_reads);
    let lost = lost(&server, &folder);
    let log = &world.log;
    println!("{}", summary(log, &world.troubles, lost.len()));
    let mut found: Vec<String> = unsettled.into_iter().chain(lost).collect();
    found.extend(check::violations(log));
    assert!(
        found.is_empty(),
        "SOAK_SEED={seed}: {} rules broken:\n{}",
        found.len(),
        found[..found.len().min(20)].join("\n")
    );
    // A run in which nothing happens shows nothing.
    assert!(log.requests.len() > first.len() * 2, "too few requests");
}

/// Ends the reader when it is dropped, by a panic too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What happens to the service.
const TROUBLES: [&str; 6] = [
    "kill",
    "kill and clock jump",
    "stop",
    "stop and clock jump",
    "pause",
    "clock jump",
];

/// How often each.
type Troubles = BTreeMap<&'static str, usize>;

/// The service and what happens to it.
struct World<'a> {
    server: &'a Server,
    perennial: Perennial,
    clock: WallClock,
    dice: Dice,
    service: Option<Service>,
    /// When the process began, and what it took when it was warm and at last.
    serving_since: Instant,
    memory: Option<Memory>,
    log: Log,
    troubles: Troubles,
}

impl<'a> World<'a> {
    fn new(server: &'a Server, mut perennial: Perennial, seed: u64) -> Self {
        let clock = WallClock::of(&mut perennial);
        let service = Some(perennial.serve());
        Self {
            server,
            perennial,
            clock,
            // Its own throws: how many the server makes depends on the requests.
            dice: Dice(!seed),
            service,
            serving_since: Instant::now(),
            memory: None,
            log: Log::default(),
            troubles: Troubles::new(),
        }
    }

    fn service(&mut self) -> &mut Service {
        self.service.as_mut().expect("it is only away in `restart`")
    }

    /// One trouble after another, with quiet times between them.
    fn trouble_until(&mut self, end: Instant) {
        while Instant::now() < end {
            let quiet = Duration::from_secs(5 + self.dice.below(25));
            let quiet_until = (Instant::now() + quiet).min(end);
            while Instant::now() < quiet_until {
                self.note_memory();
                thread::sleep(Duration::from_millis(500));
            }
            // The last process lives long enough to tell whether it grows.
            let trouble = match end.saturating_duration_since(Instant::now()) > LAST_LIFE {
                true => self.dice.one_of(&TROUBLES),
                false => self.dice.one_of(&["pause", "clock jump"]),
            };
            match trouble {
                "kill" => self.restart(Service::kill, false),
                "kill and clock jump" => self.restart(Service::kill, true),
                "stop" => self.restart(Service::stop, false),
                "stop and clock jump" => self.restart(Service::stop, true),
                "pause" => self.pause(),
                _ => self.jump(),
            }
            *self.troubles.entry(trouble).or_default() += 1;
        }
    }

    fn restart<T>(&mut self, end: impl FnOnce(Service) -> T, with_jump: bool) {
        self.end_of_process();
        let from = self.server.now();
        let service = self.service.take().expect("it runs");
        end(service);
        if with_jump {
            self.jump();
        }
        self.service = Some(self.perennial.serve());
        self.serving_since = Instant::now();
        let to = self.server.now();
        self.log.down.push(Span { from, to });
    }

    fn pause(&mut self) {
        let length = Duration::from_millis(500 + self.dice.below(6_000));
        let from = self.server.now();
        self.service().process().signal(Signal::STOP);
        thread::sleep(length);
        self.service().process().signal(Signal::CONT);
        let to = self.server.now();
        self.log.paused.push(Span { from, to });
    }

    /// Longer than any token lives: what a shorter step does to a service that is down cannot be
    /// known to anybody (see the limits in the README).
    fn jump(&mut self) {
        let hours = [-24, -1, 0, 1, 24].map(|hours| hours * HOUR);
        let others: Vec<i64> = hours
            .into_iter()
            .filter(|hours| *hours != self.clock.off_by())
            .collect();
        let off_by = self.dice.one_of(&others);
        self.clock.set_off_by(off_by);
        self.log.jumps.push(self.server.now());
    }

    fn note_memory(&mut self) {
        // Scrapes belong to what it does, so they begin before it counts as warm.
        let metrics = self.service().metrics();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        let bytes: f64 = line
            .and_then(|bytes| bytes.parse().ok())
            .expect("it is always there");
        if self.serving_since.elapsed() < WARM_AFTER {
            return;
        }
        let warm = self.memory.map_or(bytes, |memory| memory.warm);
        self.memory = Some(Memory { warm, end: bytes });
    }

    /// Until every credential is well again, and delivered. The error says which are not.
    fn wait_until_settled(&mut self) -> Result<(), String> {
        let count: usize = PROVIDERS.iter().map(|provider| provider.count).sum();
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            let states = samples(&self.service().metrics(), "credential_state");
            let ill = |(labels, value): &(&String, &f64)| {
                let well = ["fresh", "due", "stale"];
                let is_well = |state| labels.ends_with(&format!("state=\"{state}\""));
                **value == 1.0 && !well.into_iter().any(is_well)
            };
            let ill: Vec<&String> = states.iter().filter(ill).map(|(name, _)| name).collect();
            let dead = (0..count).filter(|number| self.delivered_is_dead(*number));
            let dead: Vec<usize> = dead.collect();
            if ill.is_empty() && dead.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "{SETTLED_WITHIN:?} later these are not well: {ill:?}, and these files hold \
                     dead tokens: {dead:?}"
                ));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn end_of_process(&mut self) {
        let memory = self.memory.take();
        if self.serving_since.elapsed() > WARM_AFTER + LIVES_LONG {
            self.log.memory.extend(memory);
        }
    }

    fn delivered_is_dead(&self, number: usize) -> bool {
        let token = delivered(self.perennial.folder(), number);
        let end = self.server.with_families(|of| of.end_of(&token));
        end <= Some(self.server.now())
    }

    /// The database stays.
    fn end(&mut self, stale_reads: Vec<StaleRead>) {
        self.end_of_process();
        let watched = self.log.memory.len();
        assert!(watched > 0, "no process lived long enough to be watched");
        let service = self.service.take().expect("it runs");
        let finished = service.stop();
        assert_eq!(finished.code(), Some(0), "how it ended");
        self.log.requests = self.server.log();
        self.log.stale_reads = stale_reads;
    }
}

fn configured(server: &Server, first: &[String]) -> Perennial {
    let mut config = "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    for provider in &PROVIDERS {
        write!(
            config,
            "[providers.{}]\ntoken_url = \"{}\"\nclient_id = \"anybody\"\ntimeout = \"{}s\"\n\
             default_expires_in = \"{}s\"\n",
            provider.name,
            server.token_url(),
            TIMEOUT.as_secs(),
            provider.life.as_secs(),
        )
        .expect("strings grow");
    }
    for number in 0..first.len() {
        write!(
            config,
            "[credentials.credential-{number}]\nprovider = \"{}\"\n\
             refresh_token_file = \"{number}.refresh\"\nwrite_back = false\n\
             sinks = [{{ kind = \"file\", path = \"{number}.access\" }}]\n",
            provider_of(number).name,
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    for (number, token) in first.iter().enumerate() {
        perennial.write(&format!("{number}.refresh"), token);
    }
    perennial
}

/// Reads every delivered file again and again, as programs do that use the tokens.
fn read_until(over: &AtomicBool, server: &Server, folder: &Path) -> Vec<StaleRead> {
    let count: usize = PROVIDERS.iter().map(|provider| provider.count).sum();
    let mut stale = Vec::new();
    while !over.load(SeqCst) {
        for number in 0..count {
            // Before it is read: what is dead now was dead when it was read.
            let at = server.now();
            let token = delivered(folder, number);
            if token.is_empty() {
                continue;
            }
            let died = server.with_families(|families| families.end_of(&token));
            let died = died.unwrap_or(At::ZERO);
            if died < at {
                let family = family_of(&token).unwrap_or(number);
                let provider = provider_of(number).name;
                stale.push(StaleRead {
                    at,
                    provider,
                    family,
                    died,
                });
            }
        }
        thread::sleep(Duration::from_millis(300));
    }
    stale
}

/// The credentials that the store has not kept, or of which it does not know.
fn lost(server: &Server, folder: &Path) -> Vec<String> {
    let records = stored(folder);
    let tokens = records.iter().filter_map(|(name, record)| {
        let token = record.tokens.as_ref()?.refresh_token.as_ref()?;
        let number = name.strip_prefix("credential-")?.parse().ok()?;
        Some((number, token.expose().to_owned()))
    });
    let tokens: BTreeMap<usize, String> = tokens.collect();
    let in_doubt = records
        .iter()
        .filter(|(_, record)| record.standing.doubtful);
    let in_doubt = in_doubt.map(|(name, _)| format!("{name} is in doubt"));
    server
        .with_families(|families| check::lost(&families.newest(), &families.revoked(), &tokens))
        .into_iter()
        .chain(in_doubt)
        .collect()
}

/// What a sink's file holds; nothing before the first delivery.
fn delivered(folder: &Path, number: usize) -> String {
    let file = fs::read_to_string(folder.join(format!("{number}.access")));
    file.unwrap_or_default().trim().to_owned()
}

fn summary(log: &Log, troubles: &Troubles, lost: usize) -> String {
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut refreshed, mut replays) = (0, 0);
    let mut spent = BTreeSet::new();
    for request in &log.requests {
        replays += usize::from(!spent.insert(&request.token));
        match &request.answer {
            Answer::Tokens { .. } => refreshed += 1,
            Answer::Fault { what, .. } => *faults.entry(what).or_default() += 1,
            Answer::Refused => *faults.entry("refused").or_default() += 1,
        }
    }
    let list = |counts: &BTreeMap<&str, usize>| {
        let lines = counts
            .iter()
            .map(|(what, count)| format!("\n  {count:6} {what}"));
        lines.collect::<String>()
    };
    format!(
        "soak: {} requests, {refreshed} answered with tokens, {replays} replays\n\
         faults:{}\ntroubles:{}\n\
         stale reads while nothing could be done: {}\nprocesses whose memory was watched: {}\n\
         lost: {lost}",
        log.requests.len(),
        list(&faults),
        list(troubles),
        log.stale_reads.len(),
        log.memory.len(),
    )
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let value = text.parse().ok();
    Some(value.unwrap_or_else(|| panic!("{name}={text} is no number")))
}
