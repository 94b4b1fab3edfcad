//! One refresh at a time for each credential: whoever wants one joins the one under way.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::sync::SetOnce;
use tracing::{Instrument, field};

use super::Refresher;
use crate::{
    clock::{Moment, Since, Timestamp},
    credential::Reason,
    fleet::Member,
};

/// A refresh under way: whoever holds this hears how it ended.
pub type Flight = Arc<SetOnce<Outcome>>;

/// Why somebody wants a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The policy says that it is time.
    Due,
    /// A schedule fired; it may bring a refresh forward.
    Scheduled(Timestamp),
    /// A person wants it now.
    Forced,
}

/// How a wish for a refresh ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// New tokens are durable under this version.
    Refreshed(u64),
    /// Somebody else had saved newer tokens, which are used now.
    Adopted(u64),
    /// It was not wanted any more: another refresh had come first.
    NotNeeded,
    /// Nothing was sent: the provider is left alone, or another process is at it.
    Postponed(TimeDelta),
    /// The attempt failed.
    Failed {
        /// Why.
        reason: Reason,
        /// A code or a status.
        detail: String,
        /// When it is tried again; `None` when a person must act first.
        retry_in: Option<Duration>,
    },
    /// The service is stopping; nothing was sent.
    Stopped,
}

/// A refresh that panicked is not repeated at once.
const AFTER_PANIC: TimeDelta = TimeDelta::seconds(60);

impl Refresher {
    /// Refreshes one member, or joins the refresh of it that is under way. The refresh
    /// goes on when the caller stops waiting.
    pub async fn refresh(self: &Arc<Self>, member: &Arc<Member>, cause: Cause) -> Outcome {
        match self.board(member, cause) {
            Some(flight) => flight.wait().await.clone(),
            None => Outcome::NotNeeded,
        }
    }

    fn board(self: &Arc<Self>, member: &Arc<Member>, cause: Cause) -> Option<Flight> {
        let mut flight = member.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = &*flight {
            return Some(flight.clone());
        }
        if !is_wanted(member, cause, self.clock.now()) {
            return None;
        }
        let boarded = Flight::default();
        *flight = Some(boarded.clone());
        let (refresher, member) = (self.clone(), member.clone());
        let span = tracing::info_span!(
            "refresh",
            credential = %member.name,
            provider = %member.provider.name,
            outcome = field::Empty,
        );
        let landed = boarded.clone();
        let task = async move {
            let mut landing = Landing {
                refresher: &refresher,
                member: &member,
                landed,
                outcome: Outcome::Postponed(AFTER_PANIC),
            };
            landing.outcome = refresher.admit(&member, cause).await;
        };
        self.tasks.spawn(task.instrument(span));
        Some(boarded)
    }
}

/// Is a refresh still wanted? Asked with the flight's lock held, so that of two wishes for
/// the same thing the second finds the first one's result.
fn is_wanted(member: &Member, cause: Cause, now: Moment) -> bool {
    match cause {
        Cause::Scheduled(_) if !member.can_refresh() || member.is_left_alone(now) => false,
        Cause::Forced => true,
        Cause::Due => member.next(now).wait.is_some_and(|wait| wait.is_zero()),
        Cause::Scheduled(at) => {
            let credential = &member.view().credential;
            // By ages: after a step of the wall clock its times say nothing of what came first.
            let fired = (now.wall - at).max(TimeDelta::zero());
            let came_first = credential
                .live_tokens()
                .is_some_and(|(_, since)| since.age(now) <= fired);
            !came_first && credential.may_be_forced(&member.rules, now)
        }
    }
}

/// Clears the way for the next refresh and tells the outcome, however this one ended.
struct Landing<'a> {
    refresher: &'a Refresher,
    member: &'a Arc<Member>,
    landed: Flight,
    /// If it ends without a word, it panicked, and the hook has logged it.
    outcome: Outcome,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let since = Since::at(self.refresher.clock.now());
            let mut view = self.member.view();
            view.patience = Some((since, AFTER_PANIC));
        }
        *self
            .member
            .flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        self.refresher.fleet.announce(self.member);
        let _ = self.landed.set(self.outcome.clone());
    }
}
