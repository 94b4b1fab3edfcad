//! When each credential is refreshed next, by policy or by schedule, whichever is earlier.

use std::collections::HashMap;

use chrono::TimeDelta;

use crate::{
    clock::{Moment, Timestamp},
    fleet::Member,
    schedule::Schedule,
};

/// Looks ahead from one moment. Many members share a schedule, so each schedule is asked once.
pub struct Forecast<'a> {
    now: Moment,
    firings: HashMap<&'a Schedule, Option<Timestamp>>,
}

/// The next refresh of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct NextRefresh {
    /// When, on the wall clock.
    pub at: Timestamp,
    /// Why then, for people.
    pub why: &'static str,
}

impl<'a> Forecast<'a> {
    /// Looks ahead from `now`.
    pub fn new(now: Moment) -> Self {
        Self {
            now,
            firings: HashMap::new(),
        }
    }

    /// The next refresh; `None` when a person must act first.
    pub fn of(&mut self, member: &'a Member) -> Option<NextRefresh> {
        let next = member.next(self.now);
        let policy = NextRefresh {
            at: self.now.wall + next.wait?,
            why: next.why.as_str(),
        };
        Some(match self.schedule_of(member) {
            Some(at) if at < policy.at => NextRefresh {
                at,
                why: "schedule",
            },
            _ => policy,
        })
    }

    fn schedule_of(&mut self, member: &'a Member) -> Option<Timestamp> {
        let view = member.view();
        if view.credential.trouble.is_some() {
            return None;
        }
        let min_age = member
            .rules
            .min_age
            .map_or(TimeDelta::zero(), crate::credential::policy::delta);
        let old_enough = view
            .credential
            .live_tokens()
            .map(|(_, since)| self.now.wall + (min_age - since.age(self.now)));
        drop(view);
        let wall = self.now.wall;
        let firing = |schedule: &'a Schedule| {
            let next = *self
                .firings
                .entry(schedule)
                .or_insert_with(|| schedule.next_after(wall));
            // A firing too early for the provider is passed over.
            match (next, old_enough) {
                (Some(next), Some(earliest)) if next < earliest => schedule.next_after(earliest),
                _ => next,
            }
        };
        member.schedules.iter().filter_map(firing).min()
    }
}
