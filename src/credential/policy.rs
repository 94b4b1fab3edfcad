//! When to refresh, when to retry, and what state a credential is in: pure functions.
//!
//! Everything is reckoned in *ages* (time since the token was asked for) and not in points
//! on the wall clock, so that a stepped clock moves nothing: see [`crate::clock::Since`].

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use sha2::{Digest, Sha256};

use super::{Credential, LifetimeSource, Reason, State, TokenDetails, TokenSet};
use crate::{
    clock::{Moment, Since, Timestamp},
    name::Name,
};

/// What a provider and a credential's configuration say about timing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// The provider punishes a refresh of a token younger than this.
    pub min_age: Option<Duration>,
    /// A refresh token that is not used for this long dies.
    pub refresh_token_idle: Option<Duration>,
    /// Warn when less than this is left, in place of the formula.
    pub alert_threshold: Option<Duration>,
}

/// Lifetimes shorter than this cannot be kept alive by anyone, and would make a storm.
const SHORTEST_LIFE: TimeDelta = TimeDelta::seconds(1);
/// A token that lives shorter than this is dead before it has been of use to anybody, and
/// the way to the provider and back takes as long: see [`breather`].
const SHORTEST_USEFUL_LIFE: TimeDelta = TimeDelta::seconds(3);
/// A provider that wants to be asked sooner than this (`refresh_in`) is asked after this,
/// unless two thirds of the life come earlier.
const SHORTEST_REFRESH_IN: TimeDelta = TimeDelta::minutes(1);
/// Lifetimes beyond this are taken as this; larger numbers only overflow later.
const LONGEST_LIFE: TimeDelta = TimeDelta::days(3_650);
/// The user's own rule: warn below 6 hours.
const ALERT_AT_MOST: TimeDelta = TimeDelta::hours(6);
/// Two answers that give a whole new term may differ by so much, since they count in seconds.
const SAME_TERM: TimeDelta = TimeDelta::seconds(2);
/// A person who is on holiday for a week sees the warning before it is too late.
const HUMAN_ALERT_AT_MOST: TimeDelta = TimeDelta::days(7);

/// The points in the life of one access token, as ages.
///
/// `refresh <= mandatory <= end`, and all are positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// From here on it may be refreshed with profit: two thirds of the life, less jitter
    /// added by [`Life::due`].
    refresh: TimeDelta,
    /// How much earlier than `refresh` jitter may move the refresh.
    spread: TimeDelta,
    /// From here on readers wait for a new token.
    pub mandatory: TimeDelta,
    /// Here the access token is dead.
    pub end: TimeDelta,
    /// A refresh before this age is punished by the provider.
    min_age: TimeDelta,
}

impl Life {
    /// The life of a token set under these rules.
    pub fn of(details: &TokenDetails, rules: &Rules) -> Self {
        let end = delta(details.lifetime).clamp(SHORTEST_LIFE, LONGEST_LIFE);
        // A refresh takes seconds and retries take minutes: 225 s hold four attempts. A
        // short-lived token gives up a third of its life at most.
        let margin = (end / 10)
            .clamp(TimeDelta::seconds(225), TimeDelta::minutes(10))
            .min(end / 3);
        let min_age = rules.min_age.map_or(TimeDelta::zero(), delta).min(end);
        let mandatory = (end - margin).max(min_age);

        let (refresh, has_jitter) = match details.refresh_in {
            // The provider's own word needs no jitter of ours. A word that would make a storm
            // is not taken.
            Some(wanted) => {
                let soonest = SHORTEST_REFRESH_IN.min(end - end / 3);
                (delta(wanted).max(soonest), false)
            }
            None => (end - end / 3, true),
        };
        // An unused refresh token is used well before it dies, however long the access
        // token would still live.
        let keep_alive = rules
            .refresh_token_idle
            .map(|idle| (delta(idle) / 3).clamp(SHORTEST_LIFE, TimeDelta::hours(24)));
        let refresh = keep_alive
            .map_or(refresh, |age| age.min(refresh))
            .min(mandatory);
        // A thirtieth of the life, where two thirds of it rule.
        let spread = match has_jitter {
            true => refresh / 20,
            false => TimeDelta::zero(),
        };
        Self {
            refresh,
            spread,
            mandatory,
            end,
            min_age,
        }
    }

    /// The age at which a refresh is due. `roll` in `0..1` spreads credentials that were
    /// issued together: `E - L/3 * U(1.0, 1.1)`.
    pub fn due(&self, roll: f64) -> TimeDelta {
        let jitter = self.spread.num_milliseconds() as f64 * roll;
        (self.refresh - TimeDelta::milliseconds(jitter as i64))
            .max(SHORTEST_LIFE / 2)
            .max(self.min_age)
    }
}

/// What is to be done about a credential, and why then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// How long from now; zero when the time has come. `None`: a person must act first.
    pub wait: Option<TimeDelta>,
    /// The reason, for people.
    pub why: Why,
}

/// Why a refresh happens when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no token yet.
    First,
    /// The access token has lived two thirds of its life, or the refresh token must be used.
    Due,
    /// A failed attempt is repeated.
    Retry,
    /// The answer to the last attempt never came; the same refresh token is sent again.
    Replay,
    /// Nothing happens until a person logs in.
    NeedsLogin,
}

impl Why {
    /// For people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first token",
            Self::Due => "due",
            Self::Retry => "retry",
            Self::Replay => "replay of a lost answer",
            Self::NeedsLogin => "needs login",
        }
    }
}

impl Credential {
    /// When the next refresh happens by policy alone; a schedule may bring it forward.
    pub fn next(&self, name: &Name, rules: &Rules, now: Moment) -> Next {
        if let Some((trouble, since)) = &self.trouble {
            let Some(wait) = trouble.wait else {
                return Next {
                    wait: None,
                    why: Why::NeedsLogin,
                };
            };
            let left = (delta(wait) - since.age(now)).max(TimeDelta::zero());
            let why = if self.doubtful {
                Why::Replay
            } else {
                Why::Retry
            };
            return Next {
                wait: Some(left),
                why,
            };
        }
        let now_at_once = |why| Next {
            wait: Some(TimeDelta::zero()),
            why,
        };
        match &self.tokens {
            _ if self.doubtful => now_at_once(Why::Replay),
            None => now_at_once(Why::First),
            Some((tokens, _)) if tokens.details.lifetime_source == LifetimeSource::Imported => {
                now_at_once(Why::First)
            }
            Some((tokens, since)) => {
                let due = Life::of(&tokens.details, rules).due(roll(name, self.version, 0));
                Next {
                    wait: Some((due - since.age(now)).max(TimeDelta::zero())),
                    why: Why::Due,
                }
            }
        }
    }

    /// How it stands.
    pub fn state(&self, name: &Name, rules: &Rules, now: Moment) -> State {
        if self.withheld.is_some() {
            return State::Misconfigured;
        }
        match self.trouble.as_ref().map(|(trouble, _)| trouble.reason) {
            Some(Reason::NeedsLogin) => return State::NeedsLogin,
            Some(Reason::Misconfigured) => return State::Misconfigured,
            _ => {}
        }
        let Some((tokens, since)) = self.live_tokens() else {
            return State::Pending;
        };
        let life = Life::of(&tokens.details, rules);
        let age = since.age(now);
        if age >= life.end {
            State::Expired
        } else if age >= life.mandatory {
            State::Stale
        } else if age >= life.due(roll(name, self.version, 0)) {
            State::Due
        } else {
            State::Fresh
        }
    }

    /// How long the access token still lives; negative once it is dead, `None` without one.
    pub fn time_left(&self, rules: &Rules, now: Moment) -> Option<TimeDelta> {
        let (tokens, since) = self.live_tokens()?;
        Some(Life::of(&tokens.details, rules).end - since.age(now))
    }

    /// May a schedule bring the refresh forward? Not while a person or a wait stands in
    /// the way, and not for a token that the provider would punish us for.
    pub fn may_be_forced(&self, rules: &Rules, now: Moment) -> bool {
        if self.trouble.is_some() {
            return false;
        }
        let min_age = rules.min_age.map_or(TimeDelta::zero(), delta);
        self.live_tokens()
            .is_none_or(|(_, since)| since.age(now) >= min_age)
    }

    /// Below this much time left, somebody should know: `min(6 h, L/4)`, so that a one-hour
    /// token does not warn for ever and a day-long one warns at the 6 hours asked for.
    pub fn alert_threshold(&self, rules: &Rules) -> Option<TimeDelta> {
        let (tokens, _) = self.live_tokens()?;
        let life = Life::of(&tokens.details, rules);
        Some(
            rules
                .alert_threshold
                .map_or((life.end / 4).min(ALERT_AT_MOST), delta),
        )
    }

    /// When the refresh token dies, on the wall clock of `now`; `None` where it is not known.
    pub fn refresh_token_expires_at(&self, now: Moment) -> Option<Timestamp> {
        let (tokens, since) = self.tokens.as_ref()?;
        let details = &tokens.details;
        // The provider named a span: a clock that was set meanwhile moves both of its ends.
        let left = details.refresh_token_expires_at? - details.issued_at;
        Some(since.on_wall(now) + left)
    }

    /// When only a new login helps, whatever is refreshed until then. `None` where it is not
    /// known, and while nothing shows that the provider's deadline stays where it is: one that
    /// each refresh moves needs no person.
    pub fn human_needed_by(&self, now: Moment) -> Option<Timestamp> {
        let (tokens, _) = self.tokens.as_ref()?;
        let details = &tokens.details;
        let left = details.refresh_token_expires_at? - details.issued_at;
        let stays = delta(details.refresh_token_life?) > left + SAME_TERM;
        stays.then(|| self.refresh_token_expires_at(now))?
    }

    /// Below this much time until [`Self::human_needed_by`], somebody should know: a week, or
    /// a quarter of the refresh token's whole life where that is shorter. A login that lasts a
    /// day would otherwise warn for ever.
    pub fn human_alert_threshold(&self) -> Option<TimeDelta> {
        let (tokens, _) = self.tokens.as_ref()?;
        let life = delta(tokens.details.refresh_token_life?);
        Some((life / 4).min(HUMAN_ALERT_AT_MOST))
    }

    /// When policy wants the access token refreshed, on the wall clock of `now`; it has passed
    /// where the refresh is overdue.
    pub fn due_at(&self, name: &Name, rules: &Rules, now: Moment) -> Option<Timestamp> {
        let (tokens, since) = self.live_tokens()?;
        let due = Life::of(&tokens.details, rules).due(roll(name, self.version, 0));
        Some(since.on_wall(now) + due)
    }

    /// From when on readers wait for a new token, on the wall clock of `now`.
    pub fn mandatory_at(&self, rules: &Rules, now: Moment) -> Option<Timestamp> {
        let (tokens, since) = self.live_tokens()?;
        Some(since.on_wall(now) + Life::of(&tokens.details, rules).mandatory)
    }

    /// How many attempts the retry policy still has before the access token dies, if all
    /// of them take the longest wait.
    pub fn attempts_left(&self, name: &Name, rules: &Rules, now: Moment) -> u32 {
        let Some(mut left) = self.time_left(rules, now) else {
            return 0;
        };
        let Some(until_next) = self.next(name, rules, now).wait else {
            return 0;
        };
        left -= until_next;
        let mut attempts = 0;
        // Waits shrink with the time left, so this ends soon; 100 is "plenty".
        while left > TimeDelta::zero() && attempts < 100 {
            attempts += 1;
            left -= retry_wait(self.failures() + attempts, Some(left), 1.0);
        }
        attempts
    }

    /// The tokens, unless they are only an imported refresh token.
    pub fn live_tokens(&self) -> Option<&(Arc<TokenSet>, Since)> {
        self.tokens
            .as_ref()
            .filter(|(tokens, _)| tokens.details.lifetime_source != LifetimeSource::Imported)
    }

    /// When the access token dies, on the wall clock of `now`.
    pub fn expires_at(&self, rules: &Rules, now: Moment) -> Option<Timestamp> {
        let (tokens, since) = self.live_tokens()?;
        Some(since.on_wall(now) + Life::of(&tokens.details, rules).end)
    }
}

/// How long to wait after the `failures`-th transient failure in a row: 10 s doubling to
/// 5 min with full jitter (`roll` in `0..=1`), at most a quarter of the time left, at least
/// 1 s. `time_left` is `None` or negative when there is nothing left to save.
pub fn retry_wait(failures: u32, time_left: Option<TimeDelta>, roll: f64) -> TimeDelta {
    let doublings = failures.saturating_sub(1).min(5);
    let ceiling = (TimeDelta::seconds(10) * (1 << doublings)).min(TimeDelta::minutes(5));
    let jittered = TimeDelta::milliseconds((ceiling.num_milliseconds() as f64 * roll) as i64);
    let hurry = match time_left {
        Some(left) if left > TimeDelta::zero() => left / 4,
        _ => ceiling,
    };
    jittered.min(hurry).max(TimeDelta::seconds(1))
}

/// How long to wait after the `failures`-th answer in a row that only the operator can
/// change: 5 min doubling to 1 h, of which the upper half is jitter.
pub fn misconfigured_wait(failures: u32, roll: f64) -> TimeDelta {
    let doublings = failures.saturating_sub(1).min(4);
    let ceiling = (TimeDelta::minutes(5) * (1 << doublings)).min(TimeDelta::hours(1));
    let half = ceiling.num_milliseconds() / 2;
    TimeDelta::milliseconds(half + (half as f64 * roll) as i64)
}

/// Does an access token die too soon to be kept alive by anyone?
pub fn is_too_short(lifetime: Duration) -> bool {
    delta(lifetime) < SHORTEST_USEFUL_LIFE
}

/// How long to leave a provider alone after so many tokens in a row that were
/// [too short-lived](is_too_short): 1 s doubling to 5 min. `None` when there is no need.
///
/// The first ones come from honest servers too, at the end of a token that they give to
/// everybody who asks until it dies; so it begins in a hurry. A server that never gives
/// anything better is asked some 300 times a day, and no other rule lets two refreshes that
/// nobody asked for come closer together than a second.
pub fn breather(too_short_in_a_row: u32) -> Option<TimeDelta> {
    let doublings = too_short_in_a_row.checked_sub(1)?.min(9);
    Some((TimeDelta::seconds(1) * (1 << doublings)).min(TimeDelta::minutes(5)))
}

/// A number in `0..1` that is the same for the same credential, version and attempt, and
/// unrelated between them: restarts and replicas agree, herds do not form.
pub fn roll(name: &Name, version: u64, attempt: u32) -> f64 {
    let digest = Sha256::new()
        .chain_update(name.as_str())
        .chain_update(version.to_be_bytes())
        .chain_update(attempt.to_be_bytes())
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // 53 bits: as many as an f64 holds exactly.
    (u64::from_be_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A configured duration, in the arithmetic of clocks. Absurd ones become the longest.
pub fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration)
        .unwrap_or(LONGEST_LIFE)
        .min(LONGEST_LIFE)
}

#[cfg(test)]
mod tests;
