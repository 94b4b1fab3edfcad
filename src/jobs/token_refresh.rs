//! `token_refresh`: keeps credentials alive. When its schedule fires it refreshes what may be
//! brought forward; whatever is due by policy it refreshes by itself, schedule or not.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::join_all, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use wildmatch::WildMatch;

use crate::{
    clock::Clock,
    fleet::{Changes, Member},
    job::{Job, JobError, Run, Summary, Trigger},
    name::Name,
    refresh::{Cause, Outcome, Refresher},
};

/// Keeps access tokens alive.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The credentials that this job looks after: names, in which `*` stands for anything.
    #[serde(default = "everything")]
    pub credentials: Vec<String>,
}

fn everything() -> Vec<String> {
    vec!["*".to_owned()]
}

impl Settings {
    /// Does this job look after a credential of this name?
    pub fn covers(&self, name: &str) -> bool {
        self.credentials
            .iter()
            .any(|glob| WildMatch::new(glob).matches(name))
    }
}

/// However well the waits were reckoned, everything is looked at again after this long: 37 s
/// is prime to the usual intervals, and short enough to notice a stepped clock or a resumed
/// laptop.
const LOOK_AGAIN: Duration = Duration::from_secs(37);

/// The job.
pub struct TokenRefresh {
    refresher: Arc<Refresher>,
    members: BTreeMap<Name, Arc<Member>>,
    agenda: tokio::sync::Mutex<Agenda>,
    /// Found due, and not yet taken up by a run.
    ready: Mutex<BTreeMap<Name, Arc<Member>>>,
    /// Taken up by a run that has not come to them yet: at a slow provider the line is long.
    in_line: Mutex<BTreeSet<Name>>,
}

impl TokenRefresh {
    /// Looks after the members of the fleet that the settings cover.
    pub fn new(settings: &Settings, refresher: Arc<Refresher>) -> Self {
        // Subscribed first, so that no change between the two is missed.
        let changes = refresher.fleet.changes();
        let members = refresher
            .fleet
            .iter()
            .filter(|member| settings.covers(member.name.as_str()))
            .map(|member| (member.name.clone(), member.clone()))
            .collect();
        let agenda = tokio::sync::Mutex::new(Agenda::new(changes));
        Self {
            refresher,
            members,
            agenda,
            ready: Mutex::default(),
            in_line: Mutex::default(),
        }
    }

    /// Refreshes what was found due.
    async fn refresh_due(&self, run: &Run) -> Tally {
        let members = std::mem::take(&mut *self.ready());
        let line = Line {
            in_line: &self.in_line,
            names: members.keys().cloned().collect(),
        };
        lock(&self.in_line).extend(line.names.iter().cloned());
        self.refresh_all(members.into_values().collect(), Cause::Due, run)
            .await
    }

    async fn refresh_all(&self, members: Vec<Arc<Member>>, cause: Cause, run: &Run) -> Tally {
        // A slow provider must not hold up the others, so each has a line of its own.
        let mut lines: BTreeMap<Name, Vec<Arc<Member>>> = BTreeMap::new();
        for member in members {
            lines
                .entry(member.provider.name.clone())
                .or_default()
                .push(member);
        }
        let outcomes = join_all(lines.into_values().map(|line| {
            let at_once = line[0].provider.max_in_flight;
            stream::iter(line)
                .map(|member| self.refresh_one(member, cause, run))
                .buffer_unordered(at_once)
                .collect::<Vec<_>>()
        }))
        .await;
        let mut tally = Tally::default();
        outcomes
            .iter()
            .flatten()
            .for_each(|(name, outcome)| tally.count(name, outcome));
        tally
    }

    async fn refresh_one(&self, member: Arc<Member>, cause: Cause, run: &Run) -> (Name, Outcome) {
        if cause == Cause::Due {
            // From here on the refresh itself tells that it is under way.
            lock(&self.in_line).remove(&member.name);
        }
        let outcome = tokio::select! {
            biased;
            () = run.cancel.cancelled() => Outcome::Stopped,
            outcome = self.refresher.refresh(&member, cause) => outcome,
        };
        (member.name.clone(), outcome)
    }

    fn ready(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Member>>> {
        lock(&self.ready)
    }
}

/// What a run has taken up stands in line until its turn, or until the run is gone.
struct Line<'a> {
    in_line: &'a Mutex<BTreeSet<Name>>,
    names: Vec<Name>,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let mut in_line = lock(self.in_line);
        for name in &self.names {
            in_line.remove(name);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Job for TokenRefresh {
    async fn run(&self, run: &Run) -> Result<Summary, JobError> {
        let tally = match run.trigger {
            Trigger::Due => self.refresh_due(run).await,
            // A person who runs the job wants what its schedule would do now. Forced would
            // be a request for each credential, past every wait and an open breaker.
            Trigger::Schedule | Trigger::Misfire | Trigger::Manual => {
                let everything = self.members.values().cloned().collect();
                self.refresh_all(everything, Cause::Scheduled(run.scheduled_at), run)
                    .await
            }
        };
        match tally.failed {
            0 => Ok(Summary::new(tally.to_string())),
            // Each credential has its own retries; the run as a whole needs none.
            _ => Err(JobError::fail(tally.to_string())),
        }
    }

    async fn wake(&self) {
        let mut agenda = self.agenda.lock().await;
        loop {
            let mut due = agenda.due(&self.members, &*self.refresher.clock);
            due.retain(|member| !lock(&self.in_line).contains(&member.name));
            if !due.is_empty() {
                let mut ready = self.ready();
                let was_empty = ready.is_empty();
                ready.extend(due.into_iter().map(|member| (member.name.clone(), member)));
                // Otherwise a run is on its way already, and takes these along.
                if was_empty {
                    return;
                }
            }
            agenda.changed_or_later().await;
        }
    }
}

/// When to look at which member next. A look too many does no harm, so entries are never
/// removed; they are checked when their time comes.
struct Agenda {
    looks: BinaryHeap<Reverse<(Instant, Name)>>,
    changes: Changes,
    everything_at: Instant,
}

impl Agenda {
    fn new(changes: Changes) -> Self {
        Self {
            looks: BinaryHeap::new(),
            changes,
            everything_at: Instant::now(),
        }
    }

    /// The members that are due now; all others are on the agenda afterwards.
    fn due(
        &mut self,
        members: &BTreeMap<Name, Arc<Member>>,
        clock: &dyn Clock,
    ) -> Vec<Arc<Member>> {
        let mut looked_at: Vec<Name> = Vec::new();
        while let Ok(changed) = self.changes.try_recv() {
            looked_at.push(changed.name.clone());
        }
        let now = Instant::now();
        if now >= self.everything_at {
            self.everything_at = now + LOOK_AGAIN;
            self.looks.clear();
            looked_at = members.keys().cloned().collect();
        }
        while let Some(Reverse((at, _))) = self.looks.peek()
            && *at <= now
        {
            looked_at.extend(self.looks.pop().map(|Reverse((_, name))| name));
        }
        let moment = clock.now();
        let mut due = Vec::new();
        for member in looked_at.iter().filter_map(|name| members.get(name)) {
            // One under way announces itself when it has landed.
            if member.is_refreshing() {
                continue;
            }
            let Some(wait) = member.next(moment).wait else {
                continue;
            };
            match wait.to_std() {
                Ok(wait) if !wait.is_zero() => {
                    self.looks
                        .push(Reverse((now + wait.min(LOOK_AGAIN), member.name.clone())));
                }
                _ => due.push(member.clone()),
            }
        }
        due
    }

    async fn changed_or_later(&mut self) {
        let next = self
            .looks
            .peek()
            .map_or(self.everything_at, |Reverse((at, _))| *at);
        tokio::select! {
            () = tokio::time::sleep_until(next.min(self.everything_at)) => {}
            changed = self.changes.recv() => {
                let Some(changed) = changed else { return std::future::pending().await };
                self.looks.push(Reverse((Instant::now(), changed.name.clone())));
            }
        }
    }
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    refreshed: u32,
    not_needed: u32,
    postponed: u32,
    failed: u32,
    first_failure: Option<String>,
}

impl Tally {
    fn count(&mut self, name: &Name, outcome: &Outcome) {
        match outcome {
            Outcome::Refreshed(_) | Outcome::Adopted(_) => self.refreshed += 1,
            Outcome::NotNeeded => self.not_needed += 1,
            Outcome::Postponed(_) | Outcome::Stopped => self.postponed += 1,
            Outcome::Failed { reason, .. } => {
                self.failed += 1;
                self.first_failure
                    .get_or_insert_with(|| format!("{name}: {}", reason.as_str()));
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} refreshed", self.refreshed)?;
        let others = [
            (self.not_needed, "not needed"),
            (self.postponed, "postponed"),
            (self.failed, "failed"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        match &self.first_failure {
            Some(failure) => write!(f, " (first: {failure})"),
            None => Ok(()),
        }
    }
}
