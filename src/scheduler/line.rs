//! One schedule and everyone who follows it: what to deliver, whatever the clock does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::OnTick;
use super::book::lock;
use crate::schedule::{Firing, Schedule};

/// How long a delivered time is surely not repeated after the clock was set back: longer than the
/// steps by which time daemons correct a clock, short enough that no job misses a pause.
const NO_REPEAT: Duration = Duration::from_secs(30);

/// One scheduler job: a schedule with its followers.
pub(super) struct Line {
    schedule: Schedule,
    state: Mutex<State>,
}

struct State {
    cursor: Cursor,
    followers: BTreeMap<u64, OnTick>,
}

impl Line {
    /// Nothing before or at `now` will be delivered.
    pub(super) fn new(schedule: Schedule, now: DateTime<Utc>) -> Line {
        let cursor = Cursor::new(&schedule, now);
        Line {
            schedule,
            state: Mutex::new(State {
                cursor,
                followers: BTreeMap::new(),
            }),
        }
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub(super) fn follow(&self, follower: u64, on_tick: OnTick) {
        lock(&self.state).followers.insert(follower, on_tick);
    }

    /// Waits for a delivery under way. `None` when there is no such follower, otherwise how many
    /// remain.
    pub(super) fn unfollow(&self, follower: u64) -> Option<usize> {
        let mut state = lock(&self.state);
        state.followers.remove(&follower)?;
        Some(state.followers.len())
    }

    /// Ends every subscription; waits for a delivery under way.
    pub(super) fn close(&self) {
        lock(&self.state).followers.clear();
    }

    /// The first firing that was not dealt with; none while one is being delivered, because whoever
    /// asks must not wait for that.
    pub(super) fn next(&self) -> Option<DateTime<Utc>> {
        match self.state.try_lock() {
            Ok(state) => state.cursor.next,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().cursor.next,
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The time of the firing that waits to be delivered at `now`.
    pub(super) fn due(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Being delivered right now; the next poll asks again.
            Err(TryLockError::WouldBlock) => return None,
        };
        state.cursor.due(&self.schedule, now)
    }

    /// Delivers what is due, if anything still is. The lock is held throughout, so that removing a
    /// follower waits for its last call.
    pub(super) fn fire(&self, now: DateTime<Utc>, instant: Instant) {
        let mut state = lock(&self.state);
        let Some(firing) = state.cursor.claim(&self.schedule, now, instant) else {
            return;
        };
        for on_tick in state.followers.values() {
            if catch_unwind(AssertUnwindSafe(|| on_tick(firing))).is_err() {
                tracing::error!(schedule = %self.schedule, "a subscriber of this schedule panicked at its tick");
            }
        }
    }
}

/// How far a schedule was dealt with.
struct Cursor {
    /// Nothing at or before this is due any more.
    dealt_with: DateTime<Utc>,
    /// The first firing after it.
    next: Option<DateTime<Utc>>,
    /// The last delivery: the time it named, and when it happened on a clock that nobody sets.
    delivered: Option<(DateTime<Utc>, Instant)>,
}

impl Cursor {
    fn new(schedule: &Schedule, now: DateTime<Utc>) -> Cursor {
        Cursor {
            dealt_with: now,
            next: schedule.next_after(now),
            delivered: None,
        }
    }

    /// The next firing when it is not in the future; notices that the clock was set back.
    fn due(&mut self, schedule: &Schedule, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if now < self.dealt_with {
            self.dealt_with = now;
            self.next = schedule.next_after(now);
        }
        self.next.filter(|next| *next <= now)
    }

    /// Takes what is due: each firing is answered once. See [`super::Scheduler`] for the rule.
    fn claim(
        &mut self,
        schedule: &Schedule,
        now: DateTime<Utc>,
        instant: Instant,
    ) -> Option<Firing> {
        self.due(schedule, now)?;
        let firing = schedule.due(self.dealt_with, now)?;
        self.dealt_with = firing.scheduled_at;
        self.next = schedule.next_after(firing.scheduled_at);

        if let Some((named, when)) = self.delivered
            && firing.scheduled_at <= named
        {
            let interval = self
                .next
                .and_then(|next| (next - firing.scheduled_at).to_std().ok())
                .unwrap_or_default();
            if instant.saturating_duration_since(when) < NO_REPEAT.max(interval / 2) {
                return None;
            }
        }
        self.delivered = Some((firing.scheduled_at, instant));
        Some(firing)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use chrono_tz::Tz;

    use super::*;

    /// A wall clock that can be set, beside one that cannot.
    struct Clocks {
        wall: DateTime<Utc>,
        instant: Instant,
    }

    impl Clocks {
        fn at(text: &str) -> Clocks {
            Clocks {
                wall: text.parse().unwrap(),
                instant: Instant::now(),
            }
        }

        /// Polls twice a second for `seconds`, as the library does; answers what was delivered.
        fn run(&mut self, cursor: &mut Cursor, schedule: &Schedule, seconds: u32) -> Vec<Firing> {
            let mut delivered = Vec::new();
            for _ in 0..seconds * 2 {
                self.wall += TimeDelta::milliseconds(500);
                self.instant += Duration::from_millis(500);
                if cursor.due(schedule, self.wall).is_some() {
                    delivered.extend(cursor.claim(schedule, self.wall, self.instant));
                }
            }
            delivered
        }
    }

    fn named(firings: &[Firing]) -> Vec<String> {
        firings
            .iter()
            .map(|firing| firing.scheduled_at.format("%H:%M:%S").to_string())
            .collect()
    }

    fn setup(expression: &str, start: &str) -> (Clocks, Schedule, Cursor) {
        let clocks = Clocks::at(start);
        let schedule = Schedule::parse(expression, Tz::UTC).unwrap();
        let cursor = Cursor::new(&schedule, clocks.wall);
        (clocks, schedule, cursor)
    }

    #[test]
    fn each_firing_once() {
        let (mut clocks, schedule, mut cursor) = setup("*/2 * * * * *", "2026-11-23T12:00:00.3Z");
        let firings = clocks.run(&mut cursor, &schedule, 6);
        assert_eq!(named(&firings), ["12:00:02", "12:00:04", "12:00:06"]);
        assert!(firings.iter().all(|firing| firing.skipped == 0));
    }

    #[test]
    fn a_second_activation_finds_nothing() {
        let (clocks, schedule, mut cursor) = setup("* * * * *", "2026-11-23T12:00:30Z");
        let later = clocks.wall + TimeDelta::seconds(31);
        assert!(cursor.claim(&schedule, later, clocks.instant).is_some());
        assert!(cursor.claim(&schedule, later, clocks.instant).is_none());
    }

    #[test]
    fn forward_is_delivered_once_with_a_count() {
        let (mut clocks, schedule, mut cursor) = setup("*/15 * * * *", "2026-11-23T12:01:00Z");
        clocks.wall += TimeDelta::hours(3);
        let firings = clocks.run(&mut cursor, &schedule, 60);
        assert_eq!(named(&firings), ["15:00:00"]);
        assert_eq!(firings[0].skipped, 11);
    }

    #[test]
    fn a_small_step_back_repeats_nothing() {
        let (mut clocks, schedule, mut cursor) = setup("* * * * * *", "2026-11-23T12:00:00.3Z");
        assert_eq!(clocks.run(&mut cursor, &schedule, 10).len(), 10);
        clocks.wall -= TimeDelta::seconds(5);
        let after = clocks.run(&mut cursor, &schedule, 7);
        assert_eq!(named(&after), ["12:00:11", "12:00:12"]);

        let (mut clocks, schedule, mut cursor) = setup("0 3 * * *", "2026-11-23T02:59:59.8Z");
        assert_eq!(clocks.run(&mut cursor, &schedule, 1).len(), 1);
        clocks.wall -= TimeDelta::seconds(2);
        assert!(clocks.run(&mut cursor, &schedule, 60).is_empty());
    }

    #[test]
    fn a_large_step_back_does_not_stop_a_frequent_schedule() {
        let (mut clocks, schedule, mut cursor) = setup("*/15 * * * *", "2026-11-23T12:01:00Z");
        assert_eq!(clocks.run(&mut cursor, &schedule, 3600).len(), 4);
        clocks.wall -= TimeDelta::days(365);
        let after = clocks.run(&mut cursor, &schedule, 3600);
        assert_eq!(
            named(&after),
            ["13:15:00", "13:30:00", "13:45:00", "14:00:00"]
        );

        let (mut clocks, schedule, mut cursor) = setup("* * * * * *", "2026-11-23T12:00:00.3Z");
        clocks.run(&mut cursor, &schedule, 10);
        clocks.wall -= TimeDelta::hours(1);
        let after = clocks.run(&mut cursor, &schedule, 40);
        assert_eq!(after.len(), 11, "silent for 30 seconds, then every second");
    }

    #[test]
    fn a_daily_firing_is_not_repeated_an_hour_later() {
        let (mut clocks, schedule, mut cursor) = setup("0 3 * * *", "2026-11-23T02:59:00Z");
        assert_eq!(clocks.run(&mut cursor, &schedule, 660).len(), 1);
        clocks.wall -= TimeDelta::hours(1);
        assert!(clocks.run(&mut cursor, &schedule, 2 * 3600).is_empty());
        let tomorrow = clocks.run(&mut cursor, &schedule, 24 * 3600);
        assert_eq!(named(&tomorrow), ["03:00:00"]);
    }

    #[test]
    fn a_clock_that_was_wrong_and_is_put_right() {
        let (mut clocks, schedule, mut cursor) = setup("@hourly", "2026-11-23T12:10:00Z");
        clocks.wall += TimeDelta::days(1500);
        assert_eq!(clocks.run(&mut cursor, &schedule, 60).len(), 1);
        clocks.wall -= TimeDelta::days(1500);
        let after = clocks.run(&mut cursor, &schedule, 2 * 3600);
        assert_eq!(named(&after), ["13:00:00", "14:00:00"]);
    }
}
