//! An authorization server with real token families that misbehaves at random, and writes down what
//! it did.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use chrono::DateTime;
use serde_json::json;

use super::log::{Answer, At, Request};
use crate::support::{
    fake_server::{At as Place, Deed, FakeServer},
    token_families::{Grant, TokenFamilies, family_of},
    wall_clock::right_time,
};

/// How long a spent refresh token may be sent again: between Cognito's minute and Xero's half hour.
/// What a lost answer costs in the worst case here (two more faults, a closed provider, a restart)
/// is over by then.
const REPLAY_WINDOW: Duration = Duration::from_secs(120);
/// So many of a hundred requests meet a fault.
const FAULTS_IN_100: u64 = 5;
/// No family meets more faults in a row, or its refresh token might outlive the replay window.
const FAULTS_IN_A_ROW: u32 = 3;
/// The service's limit for one request.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// The server's clock is that much ahead.
const AHEAD: i64 = 3_600;

/// Credentials of one provider: their tokens live equally long.
pub struct Provider {
    pub name: &'static str,
    pub life: Duration,
    pub count: usize,
}

/// 500 credentials, about thirty refreshes a second.
pub const PROVIDERS: [Provider; 4] = [
    Provider {
        name: "blink",
        life: Duration::from_secs(5),
        count: 40,
    },
    Provider {
        name: "short",
        life: Duration::from_secs(15),
        count: 100,
    },
    Provider {
        name: "minute",
        life: Duration::from_secs(60),
        count: 160,
    },
    Provider {
        name: "long",
        life: Duration::from_secs(240),
        count: 200,
    },
];

/// Numbers that look random and follow from a seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ClosedBefore,
    ClosedAfter,
    TornAfter,
    HtmlAfter,
    NoJsonAfter,
    HangBefore,
    HangAfter,
    ServerError,
    Unavailable,
    RateLimited,
}

/// The last two ask to be left alone, which closes a provider: not where tokens live for seconds.
const FAULTS: [Fault; 10] = [
    Fault::ClosedBefore,
    Fault::ClosedAfter,
    Fault::TornAfter,
    Fault::HtmlAfter,
    Fault::NoJsonAfter,
    Fault::HangBefore,
    Fault::HangAfter,
    Fault::ServerError,
    Fault::Unavailable,
    Fault::RateLimited,
];

impl Fault {
    /// Did the server rotate, although no usable answer comes?
    fn rotates(self) -> bool {
        use Fault::{ClosedAfter, HangAfter, HtmlAfter, NoJsonAfter, TornAfter};
        [ClosedAfter, TornAfter, HtmlAfter, NoJsonAfter, HangAfter].contains(&self)
    }

    fn name(self) -> &'static str {
        match self {
            Self::ClosedBefore => "closed before the rotation",
            Self::ClosedAfter => "closed after the rotation",
            Self::TornAfter => "torn after the rotation",
            Self::HtmlAfter => "HTML after the rotation",
            Self::NoJsonAfter => "broken JSON after the rotation",
            Self::HangBefore => "no answer in time, before the rotation",
            Self::HangAfter => "no answer in time, after the rotation",
            Self::ServerError => "500",
            Self::Unavailable => "503 with Retry-After",
            Self::RateLimited => "429 with Retry-After",
        }
    }

    fn wait(self, dice: &mut Dice) -> Option<Duration> {
        [Self::Unavailable, Self::RateLimited]
            .contains(&self)
            .then(|| Duration::from_secs(1 + dice.below(4)))
    }
}

/// The running server.
pub struct Server {
    fake: FakeServer,
    state: Arc<Mutex<State>>,
    started: Instant,
}

struct State {
    families: TokenFamilies,
    dice: Dice,
    misbehaves: bool,
    /// Of each family.
    faults_in_a_row: BTreeMap<usize, u32>,
    log: Vec<Request>,
}

impl Server {
    /// With a family for each credential of [`PROVIDERS`], in their order. Returns their first
    /// refresh tokens too.
    pub fn start(seed: u64) -> (Self, Vec<String>) {
        let mut families = TokenFamilies::new(REPLAY_WINDOW);
        let begin = |provider: &Provider| vec![provider.life; provider.count];
        let lives = PROVIDERS.iter().flat_map(begin);
        let first = lives.map(|life| families.begin(life)).collect();
        let state = Arc::new(Mutex::new(State {
            families,
            dice: Dice(seed),
            misbehaves: true,
            faults_in_a_row: BTreeMap::new(),
            log: Vec::new(),
        }));
        let (fake, started) = (FakeServer::start(), Instant::now());
        let shared = state.clone();
        fake.always(move |request| {
            let token = request.refresh_token();
            let (delay, deed) = lock(&shared).decide(&token, started.elapsed());
            thread::sleep(delay);
            deed
        });
        let this = Self {
            fake,
            state,
            started,
        };
        (this, first)
    }

    /// Its clock, as everything in its log.
    pub fn now(&self) -> At {
        self.started.elapsed()
    }

    pub fn token_url(&self) -> String {
        self.fake.url("/token")
    }

    /// From now on it is as good as any.
    pub fn behave(&self) {
        lock(&self.state).misbehaves = false;
    }

    /// The families as they stand.
    pub fn with_families<T>(&self, look: impl FnOnce(&TokenFamilies) -> T) -> T {
        look(&lock(&self.state).families)
    }

    pub fn log(&self) -> Vec<Request> {
        lock(&self.state).log.clone()
    }
}

/// The provider that a family belongs to.
pub fn provider_of(family: usize) -> &'static Provider {
    let mut before = 0;
    let of = |provider: &&Provider| {
        before += provider.count;
        family < before
    };
    PROVIDERS.iter().find(of).expect("there are no others")
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nothing panics under it")
}

impl State {
    /// What becomes of a request, and how long that takes.
    fn decide(&mut self, token: &str, now: At) -> (Duration, Deed) {
        // The service sends nothing but refresh tokens; any other text would be refused below.
        let family = family_of(token).unwrap_or_default();
        let provider = provider_of(family);
        let fault = self.choose_fault(family, provider);
        let grant = match fault {
            Some(fault) if !fault.rotates() => None,
            _ => Some(self.families.refresh(token, now)),
        };
        let (delay, deed, answer) = match (fault, grant) {
            (_, Some(Err(_))) => {
                let deed = Deed::error(400, "invalid_grant");
                (Duration::ZERO, deed, Answer::Refused)
            }
            (None, Some(Ok(grant))) => {
                let slow = self.dice.below(10) == 0;
                let delay = Duration::from_millis(if slow { self.dice.below(800) } else { 0 });
                let next = grant.refresh_token.clone();
                (delay, self.tokens(&grant), Answer::Tokens { next })
            }
            (fault, grant) => {
                let fault = fault.expect("without a fault there is a grant");
                let grant = grant.and_then(Result::ok);
                self.carry_out(fault, grant)
            }
        };
        self.log.push(Request {
            at: now,
            ended: now + delay.min(TIMEOUT),
            provider: provider.name,
            family,
            life: provider.life,
            token: token.to_owned(),
            answer,
        });
        (delay, deed)
    }

    fn choose_fault(&mut self, family: usize, provider: &Provider) -> Option<Fault> {
        let in_a_row = self.faults_in_a_row.entry(family).or_default();
        let meets_one = self.dice.below(100) < FAULTS_IN_100;
        if !self.misbehaves || !meets_one || *in_a_row >= FAULTS_IN_A_ROW {
            *in_a_row = 0;
            return None;
        }
        *in_a_row += 1;
        let patient = provider.life >= Duration::from_secs(60);
        let choices = if patient { &FAULTS[..] } else { &FAULTS[..8] };
        Some(self.dice.one_of(choices))
    }

    fn carry_out(&mut self, fault: Fault, grant: Option<Grant>) -> (Duration, Deed, Answer) {
        let wait = fault.wait(&mut self.dice);
        let delay = match fault {
            Fault::HangBefore | Fault::HangAfter => TIMEOUT + Duration::from_secs(1),
            _ => Duration::ZERO,
        };
        let deed = match fault {
            Fault::TornAfter => {
                let grant = grant.expect("it rotates");
                self.tokens(&grant).ending(Place::Body(30))
            }
            Fault::HtmlAfter => Deed::text(200, "text/html", "<html>a login page</html>"),
            Fault::NoJsonAfter => Deed::json(200, "{\"access_token\": \"half"),
            Fault::ServerError => Deed::text(500, "text/plain", "try later"),
            Fault::Unavailable => Deed::text(503, "text/plain", "try later"),
            Fault::RateLimited => Deed::text(429, "text/plain", "slower"),
            _ => Deed::close(),
        };
        let deed = match wait {
            Some(wait) if self.dice.below(2) == 0 => {
                let now = right_time() as i64 + AHEAD;
                let until = now + wait.as_secs() as i64;
                deed.with_header("date", http_date(now))
                    .with_header("retry-after", http_date(until))
            }
            Some(wait) => deed.with_header("retry-after", wait.as_secs().to_string()),
            None => deed,
        };
        let what = fault.name();
        (delay, deed, Answer::Fault { what, wait })
    }

    /// New tokens, with their lifetime in one of the ways that servers have.
    fn tokens(&mut self, grant: &Grant) -> Deed {
        let (now, life) = (right_time() as i64 + AHEAD, grant.life.as_secs());
        let mut body = json!({
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token,
        });
        match self.dice.below(4) {
            // `default_expires_in` of the provider tells.
            0 => {}
            1 => body["expires_at"] = json!(now + life as i64),
            2 => body["expires_in"] = json!(life.to_string()),
            _ => body["expires_in"] = json!(life),
        }
        Deed::json(200, body).with_header("date", http_date(now))
    }
}

fn http_date(unix: i64) -> String {
    let at = DateTime::from_timestamp(unix, 0).expect("in range");
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
