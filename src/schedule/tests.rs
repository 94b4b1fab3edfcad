use chrono::Timelike;
use chrono_tz::{America, Asia, Australia, Europe};
use proptest::prelude::*;

use super::*;

fn schedule(expression: &str, zone: Tz) -> Schedule {
    Schedule::parse(expression, zone).unwrap()
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The firings after `from`, as wall-clock time with offset.
fn firings(expression: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
    schedule(expression, zone)
        .upcoming(utc(from))
        .take(count)
        .map(|at| {
            at.with_timezone(&zone)
                .format("%m-%d %H:%M:%S%:z")
                .to_string()
        })
        .collect()
}

fn error(expression: &str) -> String {
    Schedule::parse(expression, Tz::UTC)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_wrong_number_of_fields_is_counted() {
    assert_eq!(
        error("*/5 * * *"),
        "schedule \"*/5 * * *\" has 4 fields; write 5 (minute first) or 6 (seconds first)"
    );
    assert_eq!(
        error("12"),
        "schedule \"12\" has 1 field; write 5 (minute first) or 6 (seconds first)"
    );
    assert!(error("").starts_with("schedule \"\" has 0 fields;"));
    assert!(error("0 0 0 1 1 * 2030").contains("has 7 fields;"));
}

#[test]
fn a_field_that_cannot_be_read_is_named() {
    for (expression, field) in [
        ("61 * * * *", "minute \"61\""),
        ("60 * * * * *", "second \"60\""),
        ("*/90 * * * *", "minute \"*/90\""),
        ("*/0 * * * *", "minute \"*/0\""),
        ("1,,2 * * * *", "minute \"1,,2\""),
        ("+5 * * * *", "minute \"+5\""),
        ("MON * * * *", "minute \"MON\""),
        ("0 24 * * *", "hour \"24\""),
        ("0 18-6 * * *", "hour \"18-6\""),
        ("0 0 0 * *", "day of month \"0\""),
        ("0 0 LW * *", "day of month \"LW\""),
        ("0 0 1 MON *", "month \"MON\""),
        ("0 0 1 13 *", "month \"13\""),
        ("0 0 * * TUESDAY", "weekday \"TUESDAY\""),
        ("0 0 * * 1MON", "weekday \"1MON\""),
        ("0 0 * * SAT-MON", "weekday \"SAT-MON\""),
        ("0 0 * * FRI#6", "weekday \"FRI#6\""),
        ("0 0 13 * +FRI", "weekday \"+FRI\""),
        ("0 0 * * L", "weekday \"L\""),
    ] {
        let error = error(expression);
        let expected = format!("schedule \"{expression}\" has the {field}; write ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn words_stand_for_the_start_of_their_period() {
    for (word, spelled_out) in [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@ANNUALLY", "0 0 1 1 *"),
    ] {
        let from = "2026-11-23T11:00:00Z";
        assert_eq!(
            firings(word, Tz::UTC, from, 3),
            firings(spelled_out, Tz::UTC, from, 3),
            "{word}"
        );
    }
    assert!(error("@reboot").starts_with("schedule \"@reboot\" is not a known word; write "));
    assert_eq!(schedule(" @daily ", Tz::UTC).to_string(), "@daily");
}

#[test]
fn names_mean_numbers() {
    for (names, numbers) in [
        ("0 0 * * mon-fri", "0 0 * * 1-5"),
        ("0 0 * * MON-SUN", "0 0 * * *"),
        ("0 0 * * 7", "0 0 * * SUN"),
        ("0 0 1 jan,Dec *", "0 0 1 1,12 *"),
        ("0 0 ? * FRI", "0 0 * * 5"),
    ] {
        let from = "2026-11-23T11:00:00Z";
        assert_eq!(
            firings(names, Tz::UTC, from, 9),
            firings(numbers, Tz::UTC, from, 9),
            "{names}"
        );
    }
}

#[test]
fn special_days() {
    let from = "2026-11-01T12:00:00Z";
    let first = |expression| firings(expression, Tz::UTC, from, 1).remove(0);
    assert_eq!(first("0 0 L * *"), "11-30 00:00:00+00:00");
    assert_eq!(first("0 0 15W * *"), "11-16 00:00:00+00:00");
    assert_eq!(first("0 0 * * FRI#2"), "11-13 00:00:00+00:00");
    assert_eq!(first("0 0 * * FRIL"), "11-27 00:00:00+00:00");
    assert_eq!(first("0 0 * * 5#L"), "11-27 00:00:00+00:00");
}

#[test]
fn day_of_month_or_weekday() {
    assert_eq!(
        firings("0 0 13 * FRI", Tz::UTC, "2026-12-05T00:00:00Z", 4),
        [
            "12-11 00:00:00+00:00",
            "12-13 00:00:00+00:00",
            "12-18 00:00:00+00:00",
            "12-25 00:00:00+00:00",
        ]
    );
    // A step restricts: every second day, and every Sunday.
    assert_eq!(
        firings("0 0 */2 * SUN", Tz::UTC, "2026-12-04T00:00:00Z", 3),
        [
            "12-05 00:00:00+00:00",
            "12-06 00:00:00+00:00",
            "12-07 00:00:00+00:00",
        ]
    );
}

#[test]
fn what_never_fires_is_refused() {
    for expression in ["0 0 31 2 *", "0 0 30 FEB *", "0 0 31 4,6,9,11 ?"] {
        assert_eq!(
            error(expression),
            format!("schedule \"{expression}\" never fires; write a day that its months have")
        );
    }
    assert_eq!(
        firings("0 0 29 2 *", Tz::UTC, "2097-01-01T00:00:00Z", 1),
        ["02-29 00:00:00+00:00"]
    );
}

#[test]
fn seconds_come_first_in_six_fields() {
    assert_eq!(
        firings("*/20 0 12 * * *", Tz::UTC, "2026-11-23T12:00:00.7Z", 3),
        [
            "11-23 12:00:20+00:00",
            "11-23 12:00:40+00:00",
            "11-24 12:00:00+00:00",
        ]
    );
}

#[test]
fn paris_spring() {
    // 02:00 to 03:00 on 29 March 2026 does not exist; it is skipped at 01:00Z.
    let from = "2026-03-29T00:15:00Z";
    assert_eq!(
        firings("30 2 * * *", Europe::Paris, from, 2),
        ["03-29 03:00:00+02:00", "03-30 02:30:00+02:00"]
    );
    // Several skipped times, and one that exists, are one.
    assert_eq!(
        firings("*/15 2,3 * * *", Europe::Paris, from, 2),
        ["03-29 03:00:00+02:00", "03-29 03:15:00+02:00"]
    );
    assert_eq!(
        firings("0,30 2 * * *", Europe::Paris, from, 2),
        ["03-29 03:00:00+02:00", "03-30 02:00:00+02:00"]
    );
    assert_eq!(
        firings("0 */2 * * *", Europe::Paris, from, 2),
        ["03-29 03:00:00+02:00", "03-29 04:00:00+02:00"]
    );
    assert_eq!(
        firings("*/30 * * * *", Europe::Paris, from, 3),
        [
            "03-29 01:30:00+01:00",
            "03-29 03:00:00+02:00",
            "03-29 03:30:00+02:00",
        ]
    );
    assert_eq!(
        firings("45 * * * *", Europe::Paris, from, 3),
        [
            "03-29 01:45:00+01:00",
            "03-29 03:45:00+02:00",
            "03-29 04:45:00+02:00",
        ]
    );
}

#[test]
fn paris_autumn() {
    // 02:00 to 03:00 on 25 October 2026 comes twice, the second time from 01:00Z on.
    let from = "2026-10-24T23:50:00Z";
    assert_eq!(
        firings("30 2 * * *", Europe::Paris, from, 2),
        ["10-25 02:30:00+02:00", "10-26 02:30:00+01:00"]
    );
    assert_eq!(
        firings("30 2 * * *", Europe::Paris, "2026-10-25T01:10:00Z", 1),
        ["10-26 02:30:00+01:00"]
    );
    assert_eq!(
        firings("*/30 * * * *", Europe::Paris, from, 6),
        [
            "10-25 02:00:00+02:00",
            "10-25 02:30:00+02:00",
            "10-25 02:00:00+01:00",
            "10-25 02:30:00+01:00",
            "10-25 03:00:00+01:00",
            "10-25 03:30:00+01:00",
        ]
    );
    assert_eq!(
        firings("@hourly", Europe::Paris, from, 3),
        [
            "10-25 02:00:00+02:00",
            "10-25 02:00:00+01:00",
            "10-25 03:00:00+01:00",
        ]
    );
    assert_eq!(
        schedule("* * * * * *", Europe::Paris).next_after(utc("2026-10-25T00:59:59Z")),
        Some(utc("2026-10-25T01:00:00Z"))
    );
}

#[test]
fn new_york_both() {
    assert_eq!(
        firings("30 2 * * *", America::New_York, "2026-03-08T05:00:00Z", 2),
        ["03-08 03:00:00-04:00", "03-09 02:30:00-04:00"]
    );
    assert_eq!(
        firings("30 1 * * *", America::New_York, "2026-11-01T04:00:00Z", 2),
        ["11-01 01:30:00-04:00", "11-02 01:30:00-05:00"]
    );
    assert_eq!(
        firings("0 9 * * MON", America::New_York, "2026-10-31T00:00:00Z", 1),
        ["11-02 09:00:00-05:00"]
    );
}

#[test]
fn lord_howe_moves_by_half_an_hour() {
    // 5 April 2026: 01:30 to 02:00 comes twice. 4 October: 02:00 to 02:30 is missing.
    assert_eq!(
        firings(
            "*/15 * * * *",
            Australia::Lord_Howe,
            "2026-04-04T14:20:00Z",
            6
        ),
        [
            "04-05 01:30:00+11:00",
            "04-05 01:45:00+11:00",
            "04-05 01:30:00+10:30",
            "04-05 01:45:00+10:30",
            "04-05 02:00:00+10:30",
            "04-05 02:15:00+10:30",
        ]
    );
    assert_eq!(
        firings(
            "45 1 * * *",
            Australia::Lord_Howe,
            "2026-04-04T14:00:00Z",
            2
        ),
        ["04-05 01:45:00+11:00", "04-06 01:45:00+10:30"]
    );
    assert_eq!(
        firings(
            "15 2 * * *",
            Australia::Lord_Howe,
            "2026-10-03T14:00:00Z",
            2
        ),
        ["10-04 02:30:00+11:00", "10-05 02:15:00+11:00"]
    );
    assert_eq!(
        firings("0 * * * *", Australia::Lord_Howe, "2026-10-03T14:00:00Z", 2),
        ["10-04 01:00:00+10:30", "10-04 03:00:00+11:00"]
    );
}

#[test]
fn kolkata_is_half_an_hour_off() {
    assert_eq!(
        schedule("0 6 * * *", Asia::Kolkata).next_after(utc("2026-11-23T00:00:00Z")),
        Some(utc("2026-11-23T00:30:00Z"))
    );
}

#[test]
fn a_midnight_that_does_not_exist() {
    // Cairo went from 23:59:59 on 23 April 2026 to 01:00:00 on the 24th.
    assert_eq!(
        firings(
            "@daily",
            chrono_tz::Africa::Cairo,
            "2026-04-23T12:00:00Z",
            2
        ),
        ["04-24 01:00:00+03:00", "04-25 00:00:00+03:00"]
    );
}

#[test]
fn due_stands_for_what_was_skipped() {
    let hourly = schedule("@hourly", Tz::UTC);
    let last = utc("2026-11-23T10:00:00Z");
    assert_eq!(hourly.due(last, utc("2026-11-23T10:59:59.999Z")), None);
    for (now, scheduled_at, skipped) in [
        ("2026-11-23T11:00:00Z", "2026-11-23T11:00:00Z", 0),
        ("2026-11-23T11:59:59.9Z", "2026-11-23T11:00:00Z", 0),
        ("2026-11-23T13:00:00.1Z", "2026-11-23T13:00:00Z", 2),
        ("2046-11-23T13:30:00Z", "2046-11-23T13:00:00Z", MOST_SKIPPED),
    ] {
        let scheduled_at = utc(scheduled_at);
        assert_eq!(
            hourly.due(last, utc(now)),
            Some(Firing {
                scheduled_at,
                skipped
            })
        );
    }
    assert_eq!(hourly.due(last, utc("2020-01-01T00:00:00Z")), None);
}

#[test]
fn largest_gaps() {
    let from = utc("2026-11-23T11:07:00Z");
    for (expression, zone, hours) in [
        ("0 */12 * * *", Tz::UTC, 12.0),
        ("0 */5 * * *", Tz::UTC, 5.0),
        ("*/15 * * * *", Europe::Paris, 0.25),
        ("@daily", Europe::Paris, 25.0),
        ("0 8,18 * * MON-FRI", Tz::UTC, 62.0),
        // Far more than 5,000 firings before the first night.
        ("* * 9-17 * * MON-FRI", Tz::UTC, 63.0 + 1.0 / 3600.0),
        ("* * * * * *", Tz::UTC, 1.0 / 3600.0),
        // Two firings at least.
        ("0 0 29 2 *", Tz::UTC, 24.0 * 1461.0),
    ] {
        let gap = schedule(expression, zone).largest_gap(from);
        let expected = Duration::from_secs_f64(hours * 3600.0);
        assert_eq!(
            gap.as_secs(),
            expected.as_secs_f64().round() as u64,
            "{expression}"
        );
    }
}

#[test]
fn hours_become_an_expression() {
    assert_eq!(every_hours(12).unwrap(), "0 */12 * * *");
    assert_eq!(every_hours(1).unwrap(), "0 * * * *");
    for hours in 1..=23 {
        let expression = every_hours(hours).unwrap();
        let gap = schedule(&expression, Tz::UTC).largest_gap(utc("2026-11-23T11:07:00Z"));
        assert!(gap.as_secs() <= u64::from(hours) * 3600, "{expression}");
    }
    assert_eq!(
        every_hours(24).unwrap_err().to_string(),
        "an interval of 24 hours cannot be a cron expression; write 1 to 23 hours, or a schedule such as \"@daily\""
    );
    assert!(every_hours(0).is_err());
}

/// The documented rule, second by second, without croner's search.
fn by_brute_force(schedule: &Schedule, from: DateTime<Utc>, seconds: i64) -> Vec<DateTime<Utc>> {
    let matches = |wall: NaiveDateTime| schedule.cron.is_time_matching(&wall.and_utc()).unwrap();
    let interval = (0..24).all(|hour| schedule.cron.pattern.hour_match(hour).unwrap());
    (1..=seconds)
        .map(|second| from + TimeDelta::seconds(second))
        .filter(|at| {
            let wall = schedule.wall_clock(*at);
            if interval {
                return matches(wall);
            }
            let first = schedule.zone.from_local_datetime(&wall).earliest().unwrap();
            // What the clock skipped between the second before and this one.
            let before = schedule.wall_clock(*at - TimeDelta::seconds(1));
            let skipped = (1..(wall - before).num_seconds())
                .any(|second| matches(before + TimeDelta::seconds(second)));
            first == *at && (matches(wall) || skipped)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_rule_holds_around_every_kind_of_change(
        (zone, change) in prop::sample::select(vec![
            (Europe::Paris, "2026-03-29T01:00:00Z"),
            (Europe::Paris, "2026-10-25T01:00:00Z"),
            (America::New_York, "2026-03-08T07:00:00Z"),
            (America::New_York, "2026-11-01T06:00:00Z"),
            (America::Havana, "2026-11-01T05:00:00Z"),
            (Australia::Lord_Howe, "2026-04-04T15:00:00Z"),
            (Australia::Lord_Howe, "2026-10-03T15:30:00Z"),
            (chrono_tz::Africa::Cairo, "2026-04-23T22:00:00Z"),
        ]),
        second in prop::sample::select(vec!["0", "*/20", "7", "59"]),
        minute in prop::sample::select(vec!["*", "*/15", "0", "59", "10-20", "5/25"]),
        hour in prop::sample::select(vec!["*", "*/2", "0", "1", "2", "3", "1-5", "0,23", "*/1"]),
        day in prop::sample::select(vec!["*", "1", "29", "*/2"]),
        weekday in prop::sample::select(vec!["*", "SUN", "MON-FRI"]),
        start in -7200i64..0,
    ) {
        let expression = format!("{second} {minute} {hour} {day} * {weekday}");
        let schedule = schedule(&expression, zone);
        let from = utc(change) + TimeDelta::seconds(start);
        let span = 4 * 3600;
        let expected = by_brute_force(&schedule, from, span);
        let end = from + TimeDelta::seconds(span);
        let actual: Vec<_> = schedule.upcoming(from).take_while(|at| *at <= end).collect();
        prop_assert_eq!(actual, expected, "{} from {}", expression, from);
    }

    #[test]
    fn next_is_later_and_whole(
        second in 0i64..4_000_000_000,
        nanosecond in 0u32..1_000_000_000,
        zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
        expression in prop::sample::select(vec![
            "* * * * * *", "*/7 * * * *", "0 */5 * * *", "30 2 * * *", "0 0 1 * MON", "@yearly",
        ]),
    ) {
        let schedule = schedule(expression, zone);
        let mut at = DateTime::from_timestamp(second, nanosecond).unwrap();
        for _ in 0..5 {
            let next = schedule.next_after(at).unwrap();
            prop_assert!(next > at);
            prop_assert_eq!(next.nanosecond(), 0);
            // Nothing was jumped over: asked from anywhere before, the answer is the same.
            let between = at + (next - at) / 2;
            if between < next {
                prop_assert_eq!(schedule.next_after(between), Some(next));
            }
            at = next;
        }
    }
}
