//! Time as it is measured: a wall clock that may be stepped, and one that only runs forward.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// A point on the wall clock, UTC.
pub type Timestamp = DateTime<Utc>;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the machine believes the time is. An administrator, NTP or a resumed
    /// laptop may move it in either direction.
    pub wall: Timestamp,
    /// Time since an arbitrary origin in this process. Never goes back, but stands
    /// still while the machine sleeps.
    pub uptime: TimeDelta,
}

/// Where the service reads the time. Waiting is always `tokio::time`, so that a test
/// that pauses tokio's time moves both.
pub trait Clock: Send + Sync + 'static {
    /// Both clocks, now.
    fn now(&self) -> Moment;
}

/// The machine's clocks.
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// Starts counting uptime now.
    #[allow(
        clippy::new_without_default,
        reason = "a default would hide that time starts here"
    )]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Moment {
        Moment {
            wall: Utc::now(),
            uptime: TimeDelta::from_std(self.origin.elapsed()).unwrap_or(TimeDelta::MAX),
        }
    }
}

/// A clock that follows tokio's (pausable) time from a fixed wall time, and can be
/// stepped: for tests and simulations.
pub struct SteppedClock {
    origin: Instant,
    start: Timestamp,
    step_millis: std::sync::atomic::AtomicI64,
}

impl SteppedClock {
    /// A clock whose wall time is `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self {
            origin: Instant::now(),
            start,
            step_millis: 0.into(),
        }
    }

    /// Moves the wall clock, and it alone, by `delta`.
    pub fn step(&self, delta: TimeDelta) {
        self.step_millis.fetch_add(
            delta.num_milliseconds(),
            std::sync::atomic::Ordering::SeqCst,
        );
    }
}

impl Clock for SteppedClock {
    fn now(&self) -> Moment {
        let uptime = TimeDelta::from_std(self.origin.elapsed()).unwrap_or(TimeDelta::MAX);
        let step = self.step_millis.load(std::sync::atomic::Ordering::SeqCst);
        Moment {
            wall: self.start + uptime + TimeDelta::milliseconds(step),
            uptime,
        }
    }
}

/// When something happened, on both clocks, so that its age is right after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The wall time as it was recorded.
    pub wall: Timestamp,
    uptime: TimeDelta,
}

impl Since {
    /// It happened at `moment`, in this process.
    pub fn at(moment: Moment) -> Self {
        Self {
            wall: moment.wall,
            uptime: moment.uptime,
        }
    }

    /// It happened at `wall`, read back from the store. A time in the future says that
    /// the clock was set back meanwhile and that the age is unknown: `unknown` is taken.
    pub fn restored(wall: Timestamp, now: Moment, unknown: TimeDelta) -> Self {
        let age = now.wall - wall;
        let age = if age < TimeDelta::zero() {
            unknown
        } else {
            age
        };
        Self {
            wall,
            uptime: now.uptime - age,
        }
    }

    /// How long ago that was: the larger of what the two clocks say, and never negative.
    /// A wall clock set back cannot make anything younger than it is; set forward, or
    /// after a sleep of the machine, the thing counts as older: the safe side for a token.
    pub fn age(&self, now: Moment) -> TimeDelta {
        (now.wall - self.wall)
            .max(now.uptime - self.uptime)
            .max(TimeDelta::zero())
    }

    /// When that was, on the wall clock as it is now: as it was recorded, unless the clock was
    /// set back since.
    pub fn on_wall(&self, now: Moment) -> Timestamp {
        let by_age = now.wall - self.age(now);
        // Two clocks never agree to the millisecond; only a step is worth another number.
        let stepped = (self.wall - by_age).abs() > TimeDelta::seconds(2);
        if stepped { by_age } else { self.wall }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall: i64, uptime: i64) -> Moment {
        Moment {
            wall: DateTime::from_timestamp(1_700_000_000 + wall, 0).unwrap(),
            uptime: TimeDelta::seconds(uptime),
        }
    }

    #[test]
    fn age_survives_steps_both_ways() {
        let since = Since::at(moment(0, 100));
        assert_eq!(since.age(moment(50, 150)), TimeDelta::seconds(50));
        assert_eq!(
            since.age(moment(-3_550, 150)),
            TimeDelta::seconds(50),
            "set back an hour"
        );
        assert_eq!(
            since.age(moment(3_650, 150)),
            TimeDelta::seconds(3_650),
            "set forward an hour"
        );
    }

    #[test]
    fn what_was_never_lies_in_the_future() {
        let since = Since::at(moment(0, 100));
        let on_wall = |wall, uptime| since.on_wall(moment(wall, uptime)) - moment(0, 0).wall;
        assert_eq!(on_wall(51, 150), TimeDelta::zero(), "the clocks drift");
        assert_eq!(
            on_wall(3_650, 150),
            TimeDelta::zero(),
            "set forward an hour"
        );
        let set_back = TimeDelta::seconds(-3_600);
        assert_eq!(on_wall(-3_550, 150), set_back, "set back an hour");
    }

    #[test]
    fn restored_from_the_future_takes_the_given_age() {
        let now = moment(0, 5);
        let since = Since::restored(moment(60, 0).wall, now, TimeDelta::seconds(40));
        assert_eq!(since.age(now), TimeDelta::seconds(40));
        let since = Since::restored(moment(-60, 0).wall, now, TimeDelta::seconds(40));
        assert_eq!(since.age(now), TimeDelta::seconds(60));
    }
}
