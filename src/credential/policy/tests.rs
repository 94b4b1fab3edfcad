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
