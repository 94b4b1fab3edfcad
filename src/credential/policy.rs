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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn details(lifetime: u64) -> TokenDetails {
        TokenDetails {
            issued_at: Timestamp::UNIX_EPOCH,
            lifetime: Duration::from_secs(lifetime),
            lifetime_source: LifetimeSource::Answer,
            token_type: "Bearer".into(),
            scope: None,
            refresh_in: None,
            refresh_token_expires_at: None,
            refresh_token_life: None,
            provider: None,
        }
    }

    fn moment(seconds: i64) -> Moment {
        Moment {
            wall: Timestamp::UNIX_EPOCH + TimeDelta::seconds(seconds),
            uptime: TimeDelta::seconds(seconds),
        }
    }

    fn credential(lifetime: u64) -> Credential {
        let tokens = TokenSet {
            access_token: Secret::new("a"),
            refresh_token: Some(Secret::new("r")),
            details: details(lifetime),
        };
        Credential::renewed(1, tokens, moment(0))
    }

    fn name() -> Name {
        "player".parse().unwrap()
    }

    /// A credential whose refresh token has so much left of so long a life.
    fn logged_in(left: TimeDelta, life: TimeDelta) -> Credential {
        let mut credential = credential(3_600);
        let (tokens, _) = credential.tokens.as_mut().unwrap();
        let details = &mut Arc::make_mut(tokens).details;
        details.refresh_token_expires_at = Some(details.issued_at + left);
        details.refresh_token_life = Some(life.to_std().unwrap());
        credential
    }

    #[test]
    fn a_person_is_warned_a_week_ahead_or_in_the_last_quarter_of_a_login() {
        let threshold = |days: i64| {
            let life = TimeDelta::days(days);
            logged_in(life, life).human_alert_threshold().unwrap()
        };
        assert_eq!(threshold(100), TimeDelta::days(7));
        assert_eq!(threshold(28), TimeDelta::days(7));
        assert_eq!(threshold(1), TimeDelta::hours(6));
        assert_eq!(
            credential(3_600).human_alert_threshold(),
            None,
            "no end is known"
        );
    }

    #[test]
    fn a_person_is_needed_only_by_a_deadline_that_no_refresh_moves() {
        let day = TimeDelta::days(1);
        let (hour, second) = (TimeDelta::hours(1), TimeDelta::seconds(1));
        let by = |left| logged_in(left, day).human_needed_by(moment(60));
        assert_eq!(by(day), None, "the first answer, or a new term each time");
        assert_eq!(by(day - second), None, "give or take a second");
        assert_eq!(by(day - hour), Some(moment(0).wall + (day - hour)));
        let end = logged_in(day, day).refresh_token_expires_at(moment(60));
        assert_eq!(end, Some(moment(0).wall + day));
    }

    #[test]
    fn an_overdue_refresh_lies_in_the_past() {
        let (credential, rules) = (credential(3_600), Rules::default());
        for age in [0, 3_000, 5_000] {
            let now = moment(age);
            let due = credential.due_at(&name(), &rules, now).unwrap();
            let mandatory = credential.mandatory_at(&rules, now).unwrap();
            assert!(
                due > moment(2_200).wall && due <= moment(2_400).wall,
                "{due}"
            );
            assert_eq!(mandatory, moment(3_600 - 360).wall);
        }
        assert_eq!(
            Credential::pending().due_at(&name(), &rules, moment(0)),
            None
        );
    }

    #[test]
    fn a_day_long_token_has_the_points_that_its_users_expect() {
        let life = Life::of(&details(86_400), &Rules::default());
        assert_eq!(life.due(0.0), TimeDelta::hours(16));
        assert_eq!(
            life.mandatory,
            TimeDelta::hours(24) - TimeDelta::minutes(10)
        );
        let threshold = credential(86_400).alert_threshold(&Rules::default());
        assert_eq!(threshold, Some(TimeDelta::hours(6)));
    }

    #[test]
    fn a_one_hour_token_warns_a_quarter_hour_before_its_end() {
        let threshold = credential(3_600).alert_threshold(&Rules::default());
        assert_eq!(threshold, Some(TimeDelta::minutes(15)));
        let life = Life::of(&details(3_600), &Rules::default());
        assert_eq!(life.mandatory, TimeDelta::seconds(3_600 - 360));
    }

    #[test]
    fn states_follow_the_age() {
        let (credential, rules) = (credential(3_600), Rules::default());
        let state = |seconds| credential.state(&name(), &rules, moment(seconds));
        assert_eq!(state(0), State::Fresh);
        assert_eq!(state(2_401), State::Due);
        assert_eq!(state(3_241), State::Stale);
        assert_eq!(state(3_600), State::Expired);
        assert_eq!(
            Credential::pending().state(&name(), &rules, moment(0)),
            State::Pending
        );
    }

    #[test]
    fn a_punished_early_refresh_waits_for_the_min_age() {
        // Exact Online: tokens live 10 minutes and may be refreshed after 9.5.
        let rules = Rules {
            min_age: Some(Duration::from_secs(570)),
            ..Rules::default()
        };
        let credential = credential(600);
        assert_eq!(
            credential.next(&name(), &rules, moment(0)).wait,
            Some(TimeDelta::seconds(570))
        );
        assert!(!credential.may_be_forced(&rules, moment(569)));
        assert!(credential.may_be_forced(&rules, moment(570)));
    }

    #[test]
    fn an_idle_refresh_token_is_used_before_it_dies() {
        let idle = Duration::from_secs(6 * 3_600);
        let rules = Rules {
            refresh_token_idle: Some(idle),
            ..Rules::default()
        };
        let wait = credential(30 * 86_400)
            .next(&name(), &rules, moment(0))
            .wait
            .unwrap();
        assert!(wait <= TimeDelta::hours(2), "{wait}");
    }

    proptest! {
        /// However much longer the access token lives than the refresh token may lie idle.
        #[test]
        fn an_idle_refresh_token_is_not_used_at_once(
            lifetime in 60_u64..400 * 86_400,
            idle in 60_u64..400 * 86_400,
            roll in 0.0..1.0,
        ) {
            let rules = Rules {
                refresh_token_idle: Some(Duration::from_secs(idle)),
                ..Rules::default()
            };
            let due = Life::of(&details(lifetime), &rules).due(roll);
            let wanted = TimeDelta::seconds((idle as i64 / 3).min(lifetime as i64 * 2 / 3));
            let wanted = wanted.min(TimeDelta::hours(24));
            prop_assert!(due >= wanted * 9 / 10, "{due} of {wanted}");
            prop_assert!(due <= wanted + TimeDelta::seconds(1), "{due} of {wanted}");
        }

        #[test]
        fn the_next_refresh_is_never_after_the_mandatory_point(
            lifetime in 0_u64..u64::MAX / 2,
            refresh_in in proptest::option::of(0_u64..10_000_000),
            idle in proptest::option::of(0_u64..100_000_000),
            min_age in proptest::option::of(0_u64..1_000_000),
            version in 0_u64..1_000_000,
        ) {
            let rules = Rules {
                min_age: min_age.map(Duration::from_secs),
                refresh_token_idle: idle.map(Duration::from_secs),
                alert_threshold: None,
            };
            let mut details = details(lifetime);
            details.refresh_in = refresh_in.map(Duration::from_secs);
            let life = Life::of(&details, &rules);
            let due = life.due(roll(&name(), version, 0));
            prop_assert!(due <= life.mandatory, "{due} > {:?}", life);
            prop_assert!(life.mandatory <= life.end);
            prop_assert!(due >= TimeDelta::milliseconds(500), "a storm: {due}");
        }

        #[test]
        fn waits_only_shrink_as_time_passes(
            lifetime in 1_u64..10_000_000,
            one in 0_i64..10_000_000,
            more in 0_i64..10_000_000,
        ) {
            let (credential, rules) = (credential(lifetime), Rules::default());
            let wait = |at| credential.next(&name(), &rules, moment(at)).wait.unwrap();
            prop_assert!(wait(one + more) <= wait(one));
            prop_assert!(wait(one) >= TimeDelta::zero());
            let left = |at| credential.time_left(&rules, moment(at)).unwrap();
            prop_assert!(left(one + more) <= left(one));
        }

        #[test]
        fn a_stepped_wall_clock_never_postpones_a_refresh(
            lifetime in 1_u64..10_000_000,
            uptime in 0_i64..10_000_000,
            step in -100_000_000_i64..100_000_000,
        ) {
            let (credential, rules) = (credential(lifetime), Rules::default());
            let steady = moment(uptime);
            let stepped = Moment { wall: steady.wall + TimeDelta::seconds(step), ..steady };
            let wait = |now| credential.next(&name(), &rules, now).wait.unwrap();
            prop_assert!(wait(stepped) <= wait(steady));
            prop_assert!(credential.time_left(&rules, stepped) <= credential.time_left(&rules, steady));
        }

        #[test]
        fn a_restart_on_a_clock_set_back_asks_at_once_but_serves_on(
            lifetime in 60_u64..10_000_000,
            back in 1_i64..100_000_000,
        ) {
            let now = Moment { wall: Timestamp::UNIX_EPOCH - TimeDelta::seconds(back), ..moment(3) };
            let (old, rules) = (credential(lifetime), Rules::default());
            let tokens = old.tokens.clone().map(|(tokens, _)| TokenSet::clone(&tokens));
            let credential = Credential::restored(1, tokens, old.standing(), &rules, now);
            prop_assert_eq!(credential.next(&name(), &rules, now).wait, Some(TimeDelta::zero()));
            prop_assert_eq!(credential.state(&name(), &rules, now), State::Stale);
        }

        #[test]
        fn retries_are_bounded_on_both_sides(
            failures in 0_u32..u32::MAX,
            left in proptest::option::of(-1_000_000_i64..1_000_000),
            roll in 0.0..=1.0_f64,
        ) {
            let wait = retry_wait(failures, left.map(TimeDelta::seconds), roll);
            prop_assert!(wait >= TimeDelta::seconds(1));
            prop_assert!(wait <= TimeDelta::minutes(5));
            if let Some(left) = left && left > 4 {
                prop_assert!(wait <= TimeDelta::milliseconds(left * 250));
            }
            let slow = misconfigured_wait(failures, roll);
            prop_assert!(slow >= TimeDelta::seconds(150) && slow <= TimeDelta::hours(1));
        }

        #[test]
        fn two_refreshes_that_nobody_asked_for_are_a_second_apart(
            lifetime in 0.0..100.0_f64,
            refresh_in in proptest::option::of(0.0..100.0_f64),
            too_short_before in 0_u32..u32::MAX,
            version in 0_u64..1_000_000,
        ) {
            let mut details = details(0);
            details.lifetime = Duration::from_secs_f64(lifetime);
            details.refresh_in = refresh_in.map(Duration::from_secs_f64);
            let due = Life::of(&details, &Rules::default()).due(roll(&name(), version, 0));
            let in_a_row = if is_too_short(details.lifetime) { too_short_before + 1 } else { 0 };
            let wait = breather(in_a_row).map_or(due, |breather| breather.max(due));
            prop_assert!(wait >= TimeDelta::seconds(1), "a storm: {wait}");
            if in_a_row > 9 {
                prop_assert_eq!(wait, TimeDelta::minutes(5));
            }
        }

        #[test]
        fn a_provider_that_wants_to_be_asked_at_once_waits_a_minute_or_most_of_the_life(
            lifetime in 3_u64..10_000_000,
            refresh_in in 0_u64..120,
        ) {
            let mut details = details(lifetime);
            details.refresh_in = Some(Duration::from_secs(refresh_in));
            let due = Life::of(&details, &Rules::default()).due(0.5);
            let asked = TimeDelta::seconds(refresh_in as i64);
            let two_thirds = TimeDelta::milliseconds(lifetime as i64 * 2_000 / 3);
            prop_assert!(due >= TimeDelta::minutes(1).min(two_thirds));
            prop_assert!(due <= asked.max(TimeDelta::minutes(1)));
        }

        #[test]
        fn rolls_are_spread(version in 0_u64..u64::MAX) {
            let roll = roll(&name(), version, 0);
            prop_assert!((0.0..1.0).contains(&roll));
        }
    }
}
