//! When to leave a provider alone. Pure: time is given, as uptime.

use std::time::Duration;

use chrono::TimeDelta;

/// Failures in a row, over all credentials of the provider, until it is left alone.
const FAILURES_TO_OPEN: u32 = 5;
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(10);
/// Long enough to be no burden, short enough that a recovery is seen within a minute.
const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(60);
/// While one request tries whether the provider is back, the others look again then.
const WHILE_PROBING: TimeDelta = TimeDelta::seconds(2);
/// A probe that never reported (its task was lost) blocks no longer than this.
const PROBE_LOST: TimeDelta = TimeDelta::minutes(3);

/// What a request told about the provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It answered sensibly, if only by refusing.
    Answer,
    /// Nothing was sent after all.
    Nothing,
    /// It did not, or said that it cannot now.
    Trouble {
        /// The server named a time (RFC 9110 section 10.2.3): everybody keeps it.
        retry_after: Option<Duration>,
    },
}

/// Counts failures in a row and pauses after some; then lets one request try.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    pauses: u32,
    left_alone_until: Option<TimeDelta>,
    probing_since: Option<TimeDelta>,
}

impl Breaker {
    /// May a request go out now? If not, how long until it is worth asking again.
    pub fn admit(&mut self, now: TimeDelta) -> Result<(), TimeDelta> {
        if let Some(until) = self.left_alone_until {
            if now < until {
                return Err(until - now);
            }
            self.left_alone_until = None;
            self.probing_since = Some(now);
            return Ok(());
        }
        match self.probing_since {
            None => Ok(()),
            Some(since) if now - since < PROBE_LOST => Err(WHILE_PROBING),
            Some(_) => {
                self.probing_since = Some(now);
                Ok(())
            }
        }
    }

    /// Failures in a row, over all credentials of the provider.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Is the provider left alone, but for one request now and then that tries it?
    pub fn is_open(&self, now: TimeDelta) -> bool {
        let left_alone = self.left_alone_until.is_some_and(|until| now < until);
        left_alone || self.probing_since.is_some() || self.failures >= FAILURES_TO_OPEN
    }

    /// Takes note of how a request ended.
    pub fn report(&mut self, now: TimeDelta, heard: Heard) {
        let probing = self.probing_since.take().is_some();
        let retry_after = match heard {
            Heard::Trouble { retry_after } => retry_after,
            Heard::Answer => {
                *self = Self::default();
                return;
            }
            Heard::Nothing => {
                // The next request is the probe then.
                if probing {
                    self.left_alone_until = Some(now);
                }
                return;
            }
        };
        self.failures = self.failures.saturating_add(1);
        // What fails while it is left alone was sent before, and says nothing new.
        let left_alone = self.left_alone_until.is_some_and(|until| now < until);
        let enough = probing || self.failures >= FAILURES_TO_OPEN;
        let pause = (enough && !left_alone).then(|| {
            let doublings = self.pauses.min(3);
            self.pauses += 1;
            (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
        });
        let asked = retry_after.map(crate::credential::policy::delta);
        if let Some(pause) = pause.max(asked) {
            let until = self
                .left_alone_until
                .map_or(now + pause, |until| until.max(now + pause));
            self.left_alone_until = Some(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TROUBLE: Heard = Heard::Trouble { retry_after: None };

    fn at(seconds: i64) -> TimeDelta {
        TimeDelta::seconds(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 0..4 {
                breaker.report(at(0), TROUBLE);
            }
            breaker.report(at(0), Heard::Answer);
            assert_eq!(breaker.admit(at(0)), Ok(()));
        }
        for _ in 0..5 {
            breaker.report(at(0), TROUBLE);
        }
        assert_eq!(breaker.admit(at(1)), Err(at(9)));
    }

    #[test]
    fn requests_that_fail_together_count_as_one_pause() {
        let mut breaker = Breaker::default();
        for _ in 0..16 {
            breaker.report(at(0), TROUBLE);
        }
        assert_eq!(breaker.admit(at(1)), Err(at(9)));
        assert_eq!(breaker.admit(at(10)), Ok(()), "the probe");
        breaker.report(at(11), TROUBLE);
        assert_eq!(breaker.admit(at(12)), Err(at(19)), "twice as long");
    }

    #[test]
    fn one_request_tries_and_decides_for_all() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.report(at(0), TROUBLE));
        assert_eq!(breaker.admit(at(10)), Ok(()), "the probe");
        assert_eq!(breaker.admit(at(10)), Err(WHILE_PROBING));
        breaker.report(at(11), TROUBLE);
        assert_eq!(breaker.admit(at(12)), Err(at(19)), "twice as long");
        assert_eq!(breaker.admit(at(31)), Ok(()));
        breaker.report(at(32), Heard::Answer);
        assert_eq!(breaker.admit(at(32)), Ok(()));
        assert_eq!(breaker.admit(at(32)), Ok(()));
    }

    #[test]
    fn a_dead_provider_is_asked_about_once_a_minute() {
        let mut breaker = Breaker::default();
        let mut asked = 0;
        for second in 0..86_400 {
            if breaker.admit(at(second)).is_ok() {
                asked += 1;
                breaker.report(at(second), TROUBLE);
            }
        }
        assert!((1_400..1_460).contains(&asked), "{asked} requests in a day");
    }

    #[test]
    fn it_is_open_until_the_provider_answers() {
        let mut breaker = Breaker::default();
        (0..4).for_each(|_| breaker.report(at(0), TROUBLE));
        assert!(!breaker.is_open(at(0)));
        breaker.report(at(0), TROUBLE);
        // Also between two requests that try it.
        for second in [1, 9, 10, 1_000] {
            assert!(breaker.is_open(at(second)), "{second}");
        }
        assert_eq!(breaker.failures(), 5);
        assert_eq!(breaker.admit(at(1_000)), Ok(()));
        assert!(breaker.is_open(at(1_000)));
        breaker.report(at(1_001), Heard::Answer);
        assert!(!breaker.is_open(at(1_001)));
        let retry_after = Some(Duration::from_secs(120));
        breaker.report(at(2_000), Heard::Trouble { retry_after });
        assert!(breaker.is_open(at(2_119)) && !breaker.is_open(at(2_120)));
    }

    #[test]
    fn a_named_time_is_kept() {
        let mut breaker = Breaker::default();
        let retry_after = Some(Duration::from_secs(120));
        breaker.report(at(0), Heard::Trouble { retry_after });
        assert_eq!(breaker.admit(at(100)), Err(at(20)));
        assert_eq!(breaker.admit(at(120)), Ok(()));
    }

    #[test]
    fn a_lost_probe_does_not_block_for_ever() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.report(at(0), TROUBLE));
        assert_eq!(breaker.admit(at(10)), Ok(()));
        assert!(breaker.admit(at(100)).is_err());
        assert_eq!(breaker.admit(at(191)), Ok(()));
        assert_eq!(breaker.admit(at(191)), Err(WHILE_PROBING), "one at a time");
    }
}
