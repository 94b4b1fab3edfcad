//! One run of a job, and everything around it that a job's author need not write: overlap,
//! jitter, time-out, retries, panics, misfires, metrics, traces, history, drain.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, field};

use crate::{
    clock::{Clock, Moment, Since, Timestamp},
    config::{Misfire, Overlap},
    credential::policy::roll,
    events,
    job::{Job, JobError, Run, Summary, Trigger},
    metrics::{Metrics, StoreOperation},
    name::Name,
    schedule::{Firing, Schedule},
    scheduler::{Scheduler, SchedulerError},
    store::{RunRecord, Store},
    telemetry,
};

/// A cancelled run may take this long to come to an end.
const GRACE: Duration = Duration::from_secs(10);
/// Every run that a job wakes up for is a row in its history. Ten a second are plenty: what
/// becomes due meanwhile is taken along by the next.
const BETWEEN_WAKES: Duration = Duration::from_millis(100);
/// A job whose `wake` panicked is not asked again at once.
const AFTER_PANIC: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A job as configured.
pub struct Hosted {
    /// Its name.
    pub name: Name,
    /// The kind of plugin.
    pub kind: &'static str,
    /// When it runs, if by itself.
    pub schedule: Option<Schedule>,
    /// What happens when the last run is still going.
    pub overlap: Overlap,
    /// Scheduled runs start later by a part of this.
    pub jitter: Duration,
    /// How long a run may take.
    pub timeout: Duration,
    /// How often a failed run is repeated.
    pub retries: u32,
    /// What happens when firings were missed while the service was down.
    pub misfire: Misfire,
    /// The plugin.
    pub job: Arc<dyn Job>,
    /// How it stands.
    pub state: Mutex<JobState>,
}

/// How a job stands, since the start of this process.
#[derive(Clone, Debug, Default)]
pub struct JobState {
    /// Runs under way.
    pub running: u32,
    /// When the attempt of each run under way began, by a number of the run.
    attempts: BTreeMap<u64, Since>,
    last_number: u64,
    /// A firing that waits for the run under way to end (`queue_one`).
    queued: Option<Timestamp>,
    /// Failed runs in a row.
    pub consecutive_failures: u32,
    /// When the last run started.
    pub last_run: Option<Since>,
    /// When the last successful run ended.
    pub last_success: Option<Since>,
    /// Runs by [`Trigger::ALL`] and [`RunOutcome::ALL`].
    pub runs: [[u64; RunOutcome::ALL.len()]; Trigger::ALL.len()],
    /// Firings without a run, by [`Missed::ALL`].
    pub missed: [u64; Missed::ALL.len()],
}

/// How a run ended: label values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// It did what it should.
    Success,
    /// It returned an error.
    Failure,
    /// It took too long and was cancelled.
    Timeout,
    /// It panicked.
    Panic,
}

impl RunOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Timeout, Self::Panic];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
        }
    }
}

/// Why a firing led to no run: label values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// The service was not running.
    Down,
    /// The last run was still going.
    Overlap,
    /// The machine slept, or its clock was set forward.
    Clock,
}

impl Missed {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Down, Self::Overlap, Self::Clock];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Overlap => "overlap",
            Self::Clock => "clock",
        }
    }
}

impl JobState {
    /// When the oldest attempt under way began.
    pub fn running_since(&self, now: Moment) -> Option<Since> {
        let attempts = self.attempts.values();
        attempts.max_by_key(|since| since.age(now)).copied()
    }
}

impl Hosted {
    /// How it stands. Held for a moment, never across an await.
    pub fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missed(&self, reason: Missed, count: u64, scheduled_at: Timestamp) {
        if count > 0 {
            self.state().missed[reason as usize] += count;
            events::RunsMissed {
                job: &self.name,
                reason: reason.as_str(),
                count,
                scheduled_at,
            }
            .emit();
        }
    }
}

/// Runs jobs.
pub struct Runner {
    /// What there is to run.
    pub jobs: BTreeMap<Name, Arc<Hosted>>,
    /// Where history is kept.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Every run under way; the service waits for them before it ends.
    pub tasks: TaskTracker,
    /// From here on no run starts.
    pub stop: CancellationToken,
}

impl Runner {
    /// Makes up for what was missed while the service was down, then runs each job when its
    /// schedule fires or when it wakes by itself.
    pub async fn start(self: &Arc<Self>, scheduler: &Scheduler) -> Result<(), SchedulerError> {
        for job in self.jobs.values() {
            self.metrics.expect_job(job.name.as_str());
            if let Some(schedule) = &job.schedule {
                self.make_up(job, schedule).await;
                let (runner, ticked) = (self.clone(), job.clone());
                let on_tick = Arc::new(move |firing| runner.tick(&ticked, firing));
                scheduler.add(schedule.clone(), on_tick).await?;
            }
            self.tasks.spawn(self.clone().wake(job.clone()));
        }
        Ok(())
    }

    /// Starts a run because a person wants it, whatever the overlap policy says.
    pub fn run_now(self: &Arc<Self>, job: &Arc<Hosted>) {
        let counted = Counted::new(job.clone(), Trigger::Manual);
        self.spawn(counted, Trigger::Manual, self.clock.now().wall);
    }

    async fn make_up(self: &Arc<Self>, job: &Arc<Hosted>, schedule: &Schedule) {
        let now = self.clock.now().wall;
        let last = match self.store.last_firing(&job.name).await {
            Ok(last) => last,
            Err(error) => {
                return events::StoreFailed {
                    operation: StoreOperation::History,
                    what: "last firing",
                    error: &error,
                }
                .emit(&self.metrics);
            }
        };
        match last.and_then(|last| schedule.due(last, now)) {
            Some(firing) => {
                let run_once = job.misfire == Misfire::RunOnce;
                let missed = u64::from(firing.skipped) + u64::from(!run_once);
                job.missed(Missed::Down, missed, firing.scheduled_at);
                self.remember(job, firing.scheduled_at).await;
                if run_once {
                    let counted = Counted::new(job.clone(), Trigger::Misfire);
                    self.spawn(counted, Trigger::Misfire, firing.scheduled_at);
                }
            }
            // The first start: from now on firings can be missed.
            None if last.is_none() => self.remember(job, now).await,
            None => {}
        }
    }

    async fn remember(&self, job: &Hosted, at: Timestamp) {
        if let Err(error) = self.store.record_firing(&job.name, at).await {
            events::StoreFailed {
                operation: StoreOperation::History,
                what: "firing",
                error: &error,
            }
            .emit(&self.metrics);
        }
    }

    /// The schedule fired. Returns at once.
    fn tick(self: &Arc<Self>, job: &Arc<Hosted>, firing: Firing) {
        if self.stop.is_cancelled() {
            return;
        }
        job.missed(Missed::Clock, firing.skipped.into(), firing.scheduled_at);
        let (runner, remembered) = (self.clone(), job.clone());
        self.tasks
            .spawn(async move { runner.remember(&remembered, firing.scheduled_at).await });
        // Looked at and counted under one lock, so that no other run begins in between.
        let mut state = job.state();
        if state.running > 0 && job.overlap == Overlap::QueueOne && state.queued.is_none() {
            state.queued = Some(firing.scheduled_at);
            return;
        }
        if state.running > 0 && job.overlap != Overlap::Allow {
            drop(state);
            return job.missed(Missed::Overlap, 1, firing.scheduled_at);
        }
        state.running += 1;
        drop(state);
        let counted = Counted {
            job: job.clone(),
            counts: true,
        };
        self.spawn(counted, Trigger::Schedule, firing.scheduled_at);
    }

    /// Runs the job whenever it wants to beside its schedule. These runs are not subject to
    /// the overlap policy: what is due cannot wait for what hangs.
    async fn wake(self: Arc<Self>, job: Arc<Hosted>) {
        loop {
            let woken = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                woken = AssertUnwindSafe(job.job.wake()).catch_unwind() => woken,
            };
            // After a panic, which the hook has logged, it is asked again all the same.
            if woken.is_err() {
                sleep(AFTER_PANIC).await;
                continue;
            }
            let counted = Counted::new(job.clone(), Trigger::Due);
            self.spawn(counted, Trigger::Due, self.clock.now().wall);
            sleep(BETWEEN_WAKES).await;
        }
    }

    fn spawn(self: &Arc<Self>, mut counted: Counted, trigger: Trigger, scheduled_at: Timestamp) {
        let runner = self.clone();
        self.tasks.spawn(async move {
            let (mut trigger, mut scheduled_at) = (trigger, scheduled_at);
            loop {
                let job = counted.job.clone();
                if trigger == Trigger::Schedule && !runner.wait_for_turn(&job, scheduled_at).await {
                    return;
                }
                runner.run(&job, trigger, scheduled_at).await;
                let Some(queued) = counted.end() else { return };
                (trigger, scheduled_at) = (Trigger::Schedule, queued);
            }
        });
    }

    /// Waits for the job's share of its jitter. False when the service stops meanwhile.
    async fn wait_for_turn(&self, job: &Hosted, scheduled_at: Timestamp) -> bool {
        let turn = tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = sleep(job.jitter.mul_f64(roll(&job.name, 0, 0))) => true,
        };
        let delay = (self.clock.now().wall - scheduled_at)
            .to_std()
            .unwrap_or_default();
        self.metrics.job_start(job.name.as_str(), delay);
        turn
    }

    async fn run(&self, job: &Arc<Hosted>, trigger: Trigger, scheduled_at: Timestamp) {
        let span = tracing::info_span!(
            "job.run",
            job_name = %job.name,
            kind = job.kind,
            trigger = trigger.as_str(),
            outcome = field::Empty,
        );
        async {
            let started = Instant::now();
            let now = self.clock.now();
            let started_at = now.wall;
            job.state().last_run = Some(Since::at(now));
            // Until the run is in the history: a store that hangs holds it up too.
            let under_way = UnderWay::new(job);
            let (outcome, summary) = self.attempts(job, trigger, scheduled_at, &under_way).await;
            let span = tracing::Span::current();
            span.record("outcome", outcome.as_str());
            if outcome != RunOutcome::Success {
                telemetry::mark_failed(&span);
            }
            {
                let mut state = job.state();
                state.runs[trigger as usize][outcome as usize] += 1;
                if outcome == RunOutcome::Success {
                    state.consecutive_failures = 0;
                    state.last_success = Some(Since::at(self.clock.now()));
                } else {
                    state.consecutive_failures += 1;
                }
            }
            let (trigger, outcome, took) = (trigger.as_str(), outcome.as_str(), started.elapsed());
            events::RunEnded {
                job: &job.name,
                trigger,
                outcome,
                summary: &summary,
                took,
            }
            .emit(&self.metrics);
            let record = RunRecord {
                job: job.name.clone(),
                trigger: trigger.to_owned(),
                outcome: outcome.to_owned(),
                started_at,
                duration: took,
                summary,
                trace_id: telemetry::trace_id(),
            };
            if let Err(error) = self.store.record_run(&record).await {
                events::StoreFailed {
                    operation: StoreOperation::History,
                    what: "run",
                    error: &error,
                }
                .emit(&self.metrics);
            }
        }
        .instrument(span)
        .await;
    }

    async fn attempts(
        &self,
        job: &Arc<Hosted>,
        trigger: Trigger,
        scheduled_at: Timestamp,
        under_way: &UnderWay<'_>,
    ) -> (RunOutcome, String) {
        let mut attempt = 0;
        loop {
            under_way.begin(self.clock.now());
            let run = Run {
                job: job.name.clone(),
                trigger,
                scheduled_at,
                attempt,
                cancel: CancellationToken::new(),
            };
            match attempt_once(job, run).await {
                Ended::Returned(Ok(summary)) => {
                    return (RunOutcome::Success, summary.as_str().to_owned());
                }
                Ended::Returned(Err(error)) => {
                    let again = error.wants_retry() && attempt < job.retries;
                    if !again || !self.pause(job, attempt + 1).await {
                        return (RunOutcome::Failure, error.to_string());
                    }
                }
                Ended::Panicked => return (RunOutcome::Panic, "the job panicked".to_owned()),
                Ended::TimedOut => {
                    return (RunOutcome::Timeout, "the job took too long".to_owned());
                }
            }
            attempt += 1;
        }
    }

    /// Waits before an attempt is repeated. False when the service stops meanwhile.
    async fn pause(&self, job: &Hosted, attempt: u32) -> bool {
        let pause = Duration::from_secs(1 << attempt.min(6)).min(LONGEST_RETRY);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = sleep(pause.mul_f64(0.5 + roll(&job.name, 0, attempt) / 2.0)) => true,
        }
    }
}

/// A run in the list of what is under way, for as long as it is.
struct UnderWay<'a> {
    job: &'a Hosted,
    number: u64,
}

impl<'a> UnderWay<'a> {
    fn new(job: &'a Hosted) -> Self {
        let mut state = job.state();
        state.last_number += 1;
        let number = state.last_number;
        drop(state);
        Self { job, number }
    }

    /// An attempt of it begins: what is allowed to one counts from here.
    fn begin(&self, now: Moment) {
        self.job
            .state()
            .attempts
            .insert(self.number, Since::at(now));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.job.state().attempts.remove(&self.number);
    }
}

enum Ended {
    Returned(Result<Summary, JobError>),
    Panicked,
    TimedOut,
}

/// One attempt, in a task of its own so that a panic ends it and nothing else. A time-out
/// cancels by token; only a job that does not listen is dropped where it stands.
async fn attempt_once(job: &Arc<Hosted>, run: Run) -> Ended {
    let (plugin, cancel) = (job.job.clone(), run.cancel.clone());
    let mut task = tokio::spawn(async move { plugin.run(&run).await }.in_current_span());
    let result = match timeout(job.timeout, &mut task).await {
        Ok(result) => result,
        Err(_) => {
            cancel.cancel();
            if timeout(GRACE, &mut task).await.is_err() {
                task.abort();
            }
            return Ended::TimedOut;
        }
    };
    match result {
        Ok(returned) => Ended::Returned(returned),
        Err(_) => Ended::Panicked,
    }
}

/// Counts a run as under way for as long as it is. Runs that a job wakes up for do not stand
/// in the way of its schedule.
struct Counted {
    job: Arc<Hosted>,
    counts: bool,
}

impl Counted {
    fn new(job: Arc<Hosted>, trigger: Trigger) -> Self {
        let counts = trigger != Trigger::Due;
        job.state().running += u32::from(counts);
        Self { job, counts }
    }

    /// The run has ended. If a firing was queued behind it, and no other run is under way,
    /// that one takes its place and is counted in its stead.
    fn end(&mut self) -> Option<Timestamp> {
        if !self.counts {
            return None;
        }
        let mut state = self.job.state();
        if state.running == 1
            && let Some(queued) = state.queued.take()
        {
            return Some(queued);
        }
        state.running -= 1;
        self.counts = false;
        None
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.job.state().running -= u32::from(self.counts);
    }
}

#[cfg(test)]
mod tests;
