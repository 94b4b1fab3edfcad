//! Cron expressions in a real time zone: when a job fires next, and what it missed.
//!
//! `croner` reads the expression and walks the calendar. It is only ever asked about wall-clock
//! time without a zone: its own handling of daylight-saving changes drops the repeated hour of an
//! interval, answers with a time before the question inside that hour, and forgets lists of
//! times (`0,30 2 * * *`) that fall into the skipped one. The way from the wall clock to instants is [`Schedule::next_after`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use chrono::{
    DateTime, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, SubsecRound, TimeDelta,
    TimeZone, Utc,
};
use chrono_tz::{GapInfo, Tz};
use croner::Cron;
use croner::parser::CronParser;

/// When to fire: a cron expression and the zone whose wall clock it means. Cheap to clone.
///
/// # Syntax
/// Five fields (minute, hour, day of month, month, weekday) or six (second first). A field is `*`,
/// a number, a range `1-5`, a list `1,15,30`, or a step `*/15`, `10-40/5`, `5/15` (from 5 on).
/// Months and weekdays have names (`JAN`, `MON`, any case); weekday 0 and 7 are Sunday. Day of
/// month also takes `L` (the last) and `15W` (the working day nearest to the 15th), weekday takes
/// `FRI#2` (the second Friday) and `FRIL` (the last). `?` is `*` in both.
/// `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually` stand for
/// the first moment of their period.
///
/// **Day of month and weekday** are joined as POSIX says (crontab, XCU): when both are restricted
/// (anything but `*` or `?`; `*/2` restricts), a day fires that matches *either*:
/// `0 0 13 * FRI` is every 13th and every Friday.
///
/// # Daylight saving
/// A schedule whose hour field names some hours fires once for each wall-clock time that it names:
/// a time that the clock skips fires at the first instant after the gap (several skipped times
/// together once), a time that comes twice fires the first time only.
/// A schedule whose hour field admits every hour (`*/15 * * * *`) is an interval: it fires at
/// every instant that matches, so it neither pauses in the repeated hour nor makes up for the
/// skipped one. (Where the clock moves by half an hour, as on Lord Howe Island, `0 * * * *` has
/// one interval of 90 minutes at either change: the minute stays 0.)
///
/// Two schedules are equal when expression and zone are written alike.
#[derive(Clone)]
pub struct Schedule {
    expression: Arc<str>,
    zone: Tz,
    cron: Arc<Cron>,
}

/// What became due: see [`Schedule::due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firing {
    /// The instant that the schedule named, in whole seconds; never the time it was noticed.
    pub scheduled_at: DateTime<Utc>,
    /// Earlier firings that this one stands for (the machine slept, the clock was set forward).
    /// Counted up to [`MOST_SKIPPED`].
    pub skipped: u32,
}

/// The largest number of skipped firings that is counted; more are reported as this number.
pub const MOST_SKIPPED: u32 = 1_000;

/// Why an expression is no schedule. The text names the expression and the cure; the caller puts
/// the place in the configuration before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Neither five nor six fields.
    #[error(
        "schedule \"{expression}\" has {count} field{}; write 5 (minute first) or 6 (seconds first)",
        if *count == 1 { "" } else { "s" }
    )]
    FieldCount {
        /// As the user wrote it.
        expression: String,
        /// How many fields it has.
        count: usize,
    },
    /// One field cannot be read.
    #[error("schedule \"{expression}\" has the {name} \"{field}\"; write {allowed}")]
    Field {
        /// As the user wrote it.
        expression: String,
        /// Which field: "minute", "hour", …
        name: &'static str,
        /// The field's text.
        field: String,
        /// What the field may hold.
        allowed: &'static str,
    },
    /// An `@` word that is not known.
    #[error(
        "schedule \"{expression}\" is not a known word; write @hourly, @daily, @weekly, @monthly, @yearly, or 5 or 6 cron fields"
    )]
    Word {
        /// As the user wrote it.
        expression: String,
    },
    /// Names only days that do not exist, as `0 0 31 2 *` does.
    #[error("schedule \"{expression}\" never fires; write a day that its months have")]
    NeverFires {
        /// As the user wrote it.
        expression: String,
    },
    /// See [`every_hours`].
    #[error(
        "an interval of {hours} hours cannot be a cron expression; write 1 to 23 hours, or a schedule such as \"@daily\""
    )]
    Interval {
        /// As the user wrote it.
        hours: u8,
    },
}

/// One cron field: what it is called, what it may hold.
struct Field {
    name: &'static str,
    low: u16,
    high: u16,
    names: &'static [&'static str],
    allowed: &'static str,
}

const DAY_OF_MONTH: usize = 3;
const WEEKDAY: usize = 5;
const FIELDS: [Field; 6] = [
    Field {
        name: "second",
        low: 0,
        high: 59,
        names: &[],
        allowed: "0 to 59, *, or a range, list or step of these, such as */15",
    },
    Field {
        name: "minute",
        low: 0,
        high: 59,
        names: &[],
        allowed: "0 to 59, *, or a range, list or step of these, such as */15",
    },
    Field {
        name: "hour",
        low: 0,
        high: 23,
        names: &[],
        allowed: "0 to 23, *, or a range, list or step of these, such as */6",
    },
    Field {
        name: "day of month",
        low: 1,
        high: 31,
        names: &[],
        allowed: "1 to 31, *, L (the last), 15W (the working day nearest), or a range, list or step",
    },
    Field {
        name: "month",
        low: 1,
        high: 12,
        names: &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
        allowed: "1 to 12, JAN to DEC, *, or a rising range, list or step of these",
    },
    Field {
        name: "weekday",
        low: 0,
        high: 7,
        names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        allowed: "0 to 7 (0 and 7 are Sunday), SUN to SAT, *, FRI#2, FRIL, or a rising range, list or step",
    },
];

impl Field {
    /// Whether every item of the list is written as this field allows. `croner` checks bounds and
    /// order, but swaps names as substrings of the whole expression (`MON` is January in the month
    /// field), passes empty items, and takes a step beyond the range (`*/90` minutes) as "once".
    fn admits(&self, index: usize, text: &str) -> bool {
        text.split(',').all(|item| {
            let (range, step) = match item.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (item, None),
            };
            step.is_none_or(|step| number(step).is_some_and(|n| (1..=self.high).contains(&n)))
                && match range.split_once('-') {
                    Some((first, last)) => {
                        self.admits_value(index, first) && self.admits_value(index, last)
                    }
                    None => range == "*" || self.admits_value(index, range),
                }
        })
    }

    fn admits_value(&self, index: usize, text: &str) -> bool {
        let plain = match index {
            DAY_OF_MONTH if text == "?" || text == "L" => return true,
            DAY_OF_MONTH => text.strip_suffix('W').unwrap_or(text),
            WEEKDAY if text == "?" => return true,
            WEEKDAY => match text.split_once('#') {
                Some((day, "1" | "2" | "3" | "4" | "5" | "L")) => day,
                _ => text.strip_suffix('L').unwrap_or(text),
            },
            _ => text,
        };
        self.names.contains(&plain)
            || number(plain).is_some_and(|n| (self.low..=self.high).contains(&n))
    }
}

/// Digits only: `str::parse` would also take a sign.
fn number(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

impl Schedule {
    /// Reads an expression; its times are meant in `zone`.
    ///
    /// # Errors
    /// [`ScheduleError`] for a wrong number of fields, a field that cannot be read, an unknown
    /// `@` word, and an expression that never fires.
    pub fn parse(expression: &str, zone: Tz) -> Result<Schedule, ScheduleError> {
        let written = expression.trim();
        let upper = written.to_ascii_uppercase();
        let spelled_out = match upper.as_str() {
            "@HOURLY" => "0 * * * *",
            "@DAILY" | "@MIDNIGHT" => "0 0 * * *",
            "@WEEKLY" => "0 0 * * SUN",
            "@MONTHLY" => "0 0 1 * *",
            "@YEARLY" | "@ANNUALLY" => "0 0 1 1 *",
            word if word.starts_with('@') => {
                return Err(ScheduleError::Word {
                    expression: written.to_owned(),
                });
            }
            fields => fields,
        };

        let mut fields: Vec<&str> = spelled_out.split_whitespace().collect();
        match fields.len() {
            5 => fields.insert(0, "0"),
            6 => {}
            count => {
                return Err(ScheduleError::FieldCount {
                    expression: written.to_owned(),
                    count,
                });
            }
        }
        for (index, (field, text)) in FIELDS.iter().zip(&fields).enumerate() {
            // Each field is tried alone, because croner's errors do not say which one they mean.
            let mut alone = ["*"; 6];
            alone[index] = text;
            if !field.admits(index, text) || read(&alone).is_none() {
                return Err(ScheduleError::Field {
                    expression: written.to_owned(),
                    name: field.name,
                    field: (*text).to_owned(),
                    allowed: field.allowed,
                });
            }
        }
        let never_fires = || ScheduleError::NeverFires {
            expression: written.to_owned(),
        };
        let schedule = Schedule {
            expression: written.into(),
            zone,
            cron: Arc::new(read(&fields).ok_or_else(never_fires)?),
        };
        // croner searches to the year 5000. A century holds every calendar: each weekday has been
        // a 29 February after at most 40 years. Starting in 4900 keeps the vain search short.
        let century = NaiveDate::from_ymd_opt(4900, 1, 1)
            .ok_or_else(never_fires)?
            .and_time(NaiveTime::MIN);
        schedule.matching_after(century).ok_or_else(never_fires)?;
        Ok(schedule)
    }

    /// The expression as it was written, without outer blanks.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The zone whose wall clock the expression means.
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first firing strictly after `t`, in whole seconds. `None` only when the calendar ends
    /// (about the year 5000).
    pub fn next_after(&self, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let t = t.trunc_subsecs(0);
        if self.cron.pattern.hours.is_all_set() {
            self.next_of_interval(t)
        } else {
            self.next_of_named_hours(t)
        }
    }

    /// The firings strictly after `from`, in order.
    pub fn upcoming(&self, from: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        iter::successors(self.next_after(from), |at| self.next_after(*at))
    }

    /// What is to be made up for at `now` when the last firing that was dealt with is `last`: the
    /// latest firing in `last < t <= now`, and how many earlier ones it stands for.
    ///
    /// The work is bounded however long the absence was.
    pub fn due(&self, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<Firing> {
        let scheduled_at = self.latest_between(last, now)?;
        let skipped = self
            .upcoming(last)
            .take_while(|at| *at < scheduled_at)
            .zip(1..=MOST_SKIPPED)
            .last()
            .map_or(0, |(_, count)| count);
        Some(Firing {
            scheduled_at,
            skipped,
        })
    }

    /// The longest time between two neighbouring firings after `from`.
    ///
    /// Looks at all firings until 400 days or 5,000 firings have passed, and at two at least; after
    /// 5,000 it goes on in hourly steps to the 400 days, so that from there on gaps of less than an
    /// hour may be overlooked (the night after a job that runs every second of the working day is
    /// not).
    pub fn largest_gap(&self, from: DateTime<Utc>) -> Duration {
        const EVERY_FIRING: usize = 5_000;
        let hour = TimeDelta::hours(1);
        let end = from + TimeDelta::days(400);
        let mut largest = TimeDelta::zero();
        let Some(mut at) = self.next_after(from) else {
            return Duration::ZERO;
        };
        for _ in 0..EVERY_FIRING {
            let Some(next) = self.next_after(at) else {
                break;
            };
            largest = largest.max(next - at);
            at = next;
            if at >= end {
                break;
            }
        }
        while at < end {
            at += hour;
            let Some(next) = self.next_after(at) else {
                break;
            };
            if next - at + hour > largest {
                let before = self.latest_between(at - hour, at).unwrap_or(at);
                largest = largest.max(next - before);
            }
            at = at.max(next - hour);
        }
        largest.to_std().unwrap_or_default()
    }

    /// The latest firing in `after < t <= until`, by halving: about 30 questions for a decade.
    fn latest_between(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let firing_after = |second: i64| {
            let next = self.next_after(DateTime::from_timestamp_secs(second)?)?;
            (next <= until).then_some(next)
        };
        // Always: a firing comes after `low` in time, and none after `high`.
        let (mut low, mut high) = (after.timestamp(), until.timestamp());
        let mut latest = firing_after(low)?;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match firing_after(middle) {
                Some(firing) => (latest, low) = (firing, middle),
                None => high = middle,
            }
        }
        Some(latest)
    }

    /// Fires once for each wall-clock time: see the type's daylight-saving rules.
    fn next_of_named_hours(&self, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut named = self.matching_after(self.wall_clock(t))?;
        loop {
            let instant = match self.zone.from_local_datetime(&named) {
                MappedLocalTime::Single(only) => only,
                MappedLocalTime::Ambiguous(first, _) => first,
                MappedLocalTime::None => GapInfo::new(&named, &self.zone)?.end?,
            };
            if instant > t {
                return Some(instant.to_utc());
            }
            // `t` lies in the repeated hour, which has fired already.
            named = self.matching_after(named)?;
        }
    }

    /// Fires at every instant whose wall-clock time matches.
    fn next_of_interval(&self, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let wall_clock = self.wall_clock(t);
        let mut named = self.matching_after(wall_clock)?;
        let ahead = loop {
            match self.zone.from_local_datetime(&named) {
                MappedLocalTime::Single(only) => break only,
                MappedLocalTime::Ambiguous(first, _) if first > t => break first,
                MappedLocalTime::Ambiguous(_, second) => break second,
                MappedLocalTime::None => named = self.matching_after(named)?,
            }
        };
        // The first time through the repeated hour, the wall clock will still go back behind `t`.
        if let MappedLocalTime::Ambiguous(first, second) =
            self.zone.from_local_datetime(&wall_clock)
            && first == t
        {
            let mut again = self.matching_after(wall_clock - (second - first))?;
            while again <= wall_clock {
                if let MappedLocalTime::Ambiguous(_, second) = self.zone.from_local_datetime(&again)
                {
                    return Some(ahead.min(second).to_utc());
                }
                again = self.matching_after(again)?;
            }
        }
        Some(ahead.to_utc())
    }

    fn wall_clock(&self, t: DateTime<Utc>) -> NaiveDateTime {
        t.with_timezone(&self.zone).naive_local()
    }

    /// The next wall-clock time that matches, as if the clock were never moved.
    fn matching_after(&self, wall_clock: NaiveDateTime) -> Option<NaiveDateTime> {
        self.cron
            .find_next_occurrence(&wall_clock.and_utc(), false)
            .ok()
            .map(|at| at.naive_utc())
    }
}

/// Six fields as croner reads them.
fn read(fields: &[&str]) -> Option<Cron> {
    CronParser::new().parse(&fields.join(" ")).ok()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule(\"{}\", {})", self.expression, self.zone)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.expression == other.expression && self.zone == other.zone
    }
}

impl Eq for Schedule {}

impl Hash for Schedule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expression.hash(state);
        self.zone.hash(state);
    }
}

/// The cron expression that fires every `hours` hours, 1 to 23, counted from midnight.
///
/// Where 24 is not divisible by `hours`, the last interval of each day is shorter: 5 fires at 0, 5,
/// 10, 15 and 20 o'clock, and again 4 hours later at midnight. From 13 on it fires at midnight and
/// once more.
///
/// # Errors
/// [`ScheduleError::Interval`] outside 1 to 23.
pub fn every_hours(hours: u8) -> Result<String, ScheduleError> {
    match hours {
        1 => Ok("0 * * * *".to_owned()),
        2..=23 => Ok(format!("0 */{hours} * * *")),
        _ => Err(ScheduleError::Interval { hours }),
    }
}

#[cfg(test)]
mod tests;
