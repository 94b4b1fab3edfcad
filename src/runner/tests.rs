//! One run and what is around it, in tokio's paused time: the ticks are called by hand.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::{
    clock::SteppedClock,
    credential::{Standing, TokenSet},
    secret::Fingerprint,
    store::{Checkout, Lease, Record, Saved, StoreError},
};

const HOUR: Duration = Duration::from_secs(3_600);

// Overlap

#[tokio::test(start_paused = true)]
async fn skip_counts_a_firing_that_finds_a_run_under_way() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::Skip);
    host.tick(0);
    host.settle().await;
    host.tick(60);
    host.tick(120);
    assert_eq!(host.hosted.state().missed[Missed::Overlap as usize], 2);
    assert_eq!(host.job.begun(), 1);
    host.job.end(1);
    host.settle().await;
    host.tick(180);
    host.settle().await;
    assert_eq!(host.job.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn queue_one_keeps_one_firing_and_counts_the_others() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::QueueOne);
    host.tick(0);
    host.settle().await;
    host.tick(60);
    host.tick(120);
    assert_eq!(host.hosted.state().missed[Missed::Overlap as usize], 1);
    host.job.end(1);
    host.settle().await;
    assert_eq!((host.job.begun(), host.running()), (2, 1));
    host.job.end(1);
    host.settle().await;
    assert_eq!((host.job.begun(), host.running()), (2, 0));
    assert_eq!(host.store.runs_of("schedule"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_job_woke_up_for_does_not_start_what_is_queued() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::QueueOne);
    host.tick(0);
    host.settle().await;
    host.tick(60);
    // Its own run ends, while the one that the firing is queued behind goes on.
    host.job.due_runs_end_at_once.add_permits(1);
    let due = Counted::new(host.hosted.clone(), Trigger::Due);
    host.runner.spawn(due, Trigger::Due, host.clock.now().wall);
    host.settle().await;
    assert_eq!(host.store.runs_of("due"), 1);
    assert_eq!(host.store.runs_of("schedule"), 0);
    assert_eq!(
        host.job.begun(),
        2,
        "the first and the one for what was due"
    );
    host.job.end(2);
    host.settle().await;
    assert_eq!(host.store.runs_of("schedule"), 2);
}

#[tokio::test(start_paused = true)]
async fn allow_runs_beside_a_run_under_way() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::Allow);
    host.tick(0);
    host.tick(60);
    host.settle().await;
    assert_eq!((host.job.begun(), host.running()), (2, 2));
    assert_eq!(host.hosted.state().missed, [0; 3]);
    host.job.end(2);
    host.settle().await;
    assert_eq!(host.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_attempt_under_way_is_known() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::Allow);
    let age = || {
        let now = host.clock.now();
        let since = host.hosted.state().running_since(now)?;
        Some(since.age(now).num_seconds())
    };
    assert_eq!(age(), None);
    host.tick(0);
    host.settle().await;
    sleep(Duration::from_secs(90)).await;
    host.tick(0);
    host.settle().await;
    assert_eq!(age(), Some(90));
    host.job.end(1);
    host.settle().await;
    assert_eq!(age(), Some(0));
    host.job.end(1);
    host.settle().await;
    assert_eq!(age(), None);
}

#[tokio::test(start_paused = true)]
async fn a_person_need_not_wait() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::Skip);
    host.tick(0);
    host.runner.run_now(&host.hosted);
    host.settle().await;
    assert_eq!(host.job.begun(), 2);
}

// Jitter

#[tokio::test(start_paused = true)]
async fn jitter_is_the_same_for_each_firing_of_a_job() {
    let host = Host::new(Gated::default(), |job| job.jitter = HOUR);
    let mut waits = Vec::new();
    for _ in 0..2 {
        let before = Instant::now();
        let now = host.clock.now().wall;
        assert!(host.runner.wait_for_turn(&host.hosted, now).await);
        waits.push(before.elapsed());
    }
    assert_eq!(waits[0].as_secs(), waits[1].as_secs());
    assert!(waits[0] > Duration::ZERO && waits[0] < HOUR, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_run_waits_for_its_turn_starts_nothing() {
    let host = Host::new(Gated::default(), |job| job.jitter = HOUR);
    host.tick(0);
    host.runner.stop.cancel();
    host.drained().await;
    assert_eq!((host.job.begun(), host.running()), (0, 0));
}

// How a run ends

#[tokio::test(start_paused = true)]
async fn a_run_that_takes_too_long_is_cancelled_and_then_dropped() {
    for listens in [true, false] {
        let job = Endless {
            listens,
            ..Endless::default()
        };
        let host = Host::new(job, |job| job.timeout = Duration::from_secs(60));
        let before = Instant::now();
        host.runner.run_now(&host.hosted);
        host.drained().await;
        let expected = if listens { 60 } else { 70 };
        assert_eq!(before.elapsed().as_secs(), expected);
        let run = host.store.last();
        assert_eq!(
            (run.outcome.as_str(), run.trigger.as_str()),
            ("timeout", "manual")
        );
        tokio::task::yield_now().await;
        assert_eq!(host.job.dropped.load(Ordering::SeqCst), 1);
        assert_eq!(host.running(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_one_failed_run() {
    let host = Host::new(Scripted::new([Step::Panic, Step::Succeed]), |_| ());
    host.tick(0);
    host.settle().await;
    let state = host.hosted.state().clone();
    assert_eq!(
        state.runs[Trigger::Schedule as usize][RunOutcome::Panic as usize],
        1
    );
    assert_eq!((state.running, state.consecutive_failures), (0, 1));
    assert_eq!(host.store.last().outcome, "panic");
    host.tick(60);
    host.settle().await;
    assert_eq!(host.store.last().outcome, "success");
    assert_eq!(host.hosted.state().consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn only_what_asks_for_it_is_retried_and_only_so_often() {
    let retry = || Step::Fail(JobError::retry("in a moment"));
    let host = Host::new(Scripted::new([retry(), Step::Succeed]), |job| {
        job.retries = 2
    });
    host.runner.run_now(&host.hosted);
    host.drained().await;
    assert_eq!(
        (host.job.attempts(), host.store.last().outcome),
        (vec![0, 1], "success".into())
    );

    let host = Host::new(Scripted::new([retry(), retry(), retry(), retry()]), |job| {
        job.retries = 2
    });
    let before = Instant::now();
    host.runner.run_now(&host.hosted);
    host.drained().await;
    assert_eq!(
        (host.job.attempts(), host.store.last().outcome),
        (vec![0, 1, 2], "failure".into())
    );
    assert!(
        before.elapsed() >= Duration::from_secs(3),
        "1 s and 2 s at least"
    );
    assert_eq!(host.store.count(), 1, "one run, whatever its attempts");

    let host = Host::new(Scripted::new([Step::Fail(JobError::fail("no"))]), |job| {
        job.retries = 2
    });
    host.runner.run_now(&host.hosted);
    host.drained().await;
    assert_eq!(host.job.attempts(), [0]);
    assert_eq!(host.store.last().summary, "no");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_pause_before_a_retry_and_the_run() {
    let retry = || Step::Fail(JobError::retry("in a moment"));
    let host = Host::new(Scripted::new([retry(), retry()]), |job| job.retries = 5);
    host.runner.run_now(&host.hosted);
    host.settle().await;
    host.runner.stop.cancel();
    host.drained().await;
    assert_eq!(host.job.attempts(), [0]);
    assert_eq!(host.store.last().outcome, "failure");
}

// Firings while the service was down

#[tokio::test(start_paused = true)]
async fn a_first_start_has_missed_nothing() {
    let host = Host::new(Scripted::new([]), |_| ());
    host.make_up().await;
    assert_eq!(host.store.fired(), Some(host.clock.now().wall));
    assert_eq!(host.store.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_made_up_for_by_one_run_or_none() {
    for (misfire, runs, missed) in [(Misfire::RunOnce, 1, 4), (Misfire::Skip, 0, 5)] {
        let host = Host::new(Scripted::new([]), |job| job.misfire = misfire);
        let now = host.clock.now().wall;
        // 12:00 to 17:00 were due since half past eleven, less the one of the last start.
        host.store
            .record_firing(&host.hosted.name, now - TimeDelta::hours(5))
            .await
            .unwrap();
        host.make_up().await;
        host.settle().await;
        assert_eq!(host.store.runs_of("misfire"), runs, "{misfire:?}");
        assert_eq!(
            host.hosted.state().missed[Missed::Down as usize],
            missed,
            "{misfire:?}"
        );
        assert!(host.store.fired().unwrap() > now - TimeDelta::hours(1));
        // A second start in the same hour has nothing left to make up for.
        host.make_up().await;
        host.settle().await;
        assert_eq!(host.store.runs_of("misfire"), runs);
    }
}

// Wakes and the stop

#[tokio::test(start_paused = true)]
async fn a_job_that_wakes_gets_a_run_of_its_own() {
    let host = Host::new(Waking::default(), |_| ());
    host.runner
        .tasks
        .spawn(host.runner.clone().wake(host.hosted.clone()));
    host.job.wanted.notify_one();
    host.settle().await;
    assert_eq!(host.store.runs_of("due"), 1);
    assert_eq!(host.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_never_sleeps_makes_ten_runs_a_second_at_most() {
    let job = Waking {
        always: true,
        ..Waking::default()
    };
    let host = Host::new(job, |_| ());
    host.runner
        .tasks
        .spawn(host.runner.clone().wake(host.hosted.clone()));
    sleep(Duration::from_secs(10)).await;
    assert!(
        (90..=101).contains(&host.store.count()),
        "{}",
        host.store.count()
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_wake_does_not_end_it() {
    let job = Waking {
        panics: AtomicU32::new(1),
        ..Waking::default()
    };
    let host = Host::new(job, |_| ());
    host.runner
        .tasks
        .spawn(host.runner.clone().wake(host.hosted.clone()));
    host.job.wanted.notify_one();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.store.runs_of("due"), 1);
}

#[tokio::test(start_paused = true)]
async fn after_the_stop_runs_end_and_none_begins() {
    let host = Host::new(Gated::default(), |job| job.overlap = Overlap::QueueOne);
    host.runner
        .tasks
        .spawn(host.runner.clone().wake(host.hosted.clone()));
    host.tick(0);
    host.settle().await;
    host.tick(60);
    host.runner.stop.cancel();
    host.tick(120);
    host.job.end(1);
    host.drained().await;
    assert_eq!(host.job.begun(), 1);
    assert_eq!(host.store.last().outcome, "success");
}

// What the tests stand on

struct Host<J> {
    runner: Arc<Runner>,
    hosted: Arc<Hosted>,
    job: Arc<J>,
    store: Arc<Ledger>,
    clock: Arc<SteppedClock>,
}

impl<J: Job> Host<J> {
    /// A job that runs each hour, at 17:30.
    fn new(job: J, change: impl FnOnce(&mut Hosted)) -> Self {
        let job = Arc::new(job);
        let name: Name = "nightly".parse().unwrap();
        let mut hosted = Hosted {
            name: name.clone(),
            kind: "test",
            schedule: Some(Schedule::parse("0 * * * *", Tz::UTC).unwrap()),
            overlap: Overlap::Skip,
            jitter: Duration::ZERO,
            timeout: HOUR,
            retries: 0,
            misfire: Misfire::RunOnce,
            job: job.clone(),
            state: Mutex::default(),
        };
        change(&mut hosted);
        let hosted = Arc::new(hosted);
        let start = DateTime::parse_from_rfc3339("2025-11-23T17:30:00Z").unwrap();
        let clock = Arc::new(SteppedClock::starting_at(start.to_utc()));
        let store = Arc::new(Ledger::default());
        let runner = Arc::new(Runner {
            jobs: BTreeMap::from([(name, hosted.clone())]),
            store: store.clone(),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        Self {
            runner,
            hosted,
            job,
            store,
            clock,
        }
    }

    fn tick(&self, seconds: i64) {
        let scheduled_at = self.clock.now().wall + TimeDelta::seconds(seconds);
        let firing = Firing {
            scheduled_at,
            skipped: 0,
        };
        self.runner.tick(&self.hosted, firing);
    }

    async fn make_up(&self) {
        let schedule = self.hosted.schedule.as_ref().unwrap();
        self.runner.make_up(&self.hosted, schedule).await;
    }

    fn running(&self) -> u32 {
        self.hosted.state().running
    }

    /// Paused time goes on only when nothing else can.
    async fn settle(&self) {
        sleep(Duration::from_millis(10)).await;
    }

    async fn drained(&self) {
        self.runner.tasks.close();
        self.runner.tasks.wait().await;
    }
}

/// Its runs end when they are let.
struct Gated {
    begun: AtomicU32,
    gate: Semaphore,
    due_runs_end_at_once: Semaphore,
}

impl Default for Gated {
    fn default() -> Self {
        Self {
            begun: AtomicU32::new(0),
            gate: Semaphore::new(0),
            due_runs_end_at_once: Semaphore::new(0),
        }
    }
}

impl Gated {
    fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    fn end(&self, runs: usize) {
        self.gate.add_permits(runs);
    }
}

#[async_trait]
impl Job for Gated {
    async fn run(&self, run: &Run) -> Result<Summary, JobError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let gate = match run.trigger {
            Trigger::Due => &self.due_runs_end_at_once,
            _ => &self.gate,
        };
        gate.acquire().await.unwrap().forget();
        Ok(Summary::new("done"))
    }
}

/// Never ends by itself.
#[derive(Default)]
struct Endless {
    listens: bool,
    dropped: AtomicU32,
}

struct CountsDrop<'a>(&'a AtomicU32);

impl Drop for CountsDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Job for Endless {
    async fn run(&self, run: &Run) -> Result<Summary, JobError> {
        let _dropped = CountsDrop(&self.dropped);
        if self.listens {
            run.cancel.cancelled().await;
            return Ok(Summary::new("too late"));
        }
        std::future::pending().await
    }
}

enum Step {
    Succeed,
    Fail(JobError),
    Panic,
}

/// Does what it is told, attempt by attempt, and then succeeds.
struct Scripted {
    steps: Mutex<std::collections::VecDeque<Step>>,
    attempts: Mutex<Vec<u32>>,
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: Mutex::new(steps.into_iter().collect()),
            attempts: Mutex::default(),
        }
    }

    fn attempts(&self) -> Vec<u32> {
        self.attempts.lock().unwrap().clone()
    }
}

#[async_trait]
impl Job for Scripted {
    async fn run(&self, run: &Run) -> Result<Summary, JobError> {
        self.attempts.lock().unwrap().push(run.attempt);
        let step = self.steps.lock().unwrap().pop_front();
        match step {
            None | Some(Step::Succeed) => Ok(Summary::new("done")),
            Some(Step::Fail(error)) => Err(error),
            Some(Step::Panic) => panic!("on purpose"),
        }
    }
}

/// Wakes when it is told, or always.
#[derive(Default)]
struct Waking {
    wanted: Notify,
    always: bool,
    panics: AtomicU32,
}

#[async_trait]
impl Job for Waking {
    async fn run(&self, _: &Run) -> Result<Summary, JobError> {
        Ok(Summary::new("done"))
    }

    async fn wake(&self) {
        let panics = self.panics.swap(0, Ordering::SeqCst);
        assert_eq!(panics, 0, "on purpose");
        if !self.always {
            self.wanted.notified().await;
        }
    }
}

/// The part of a store that a runner uses, in memory: a real one does not live in paused time.
#[derive(Default)]
struct Ledger {
    runs: Mutex<Vec<RunRecord>>,
    fired: Mutex<Option<Timestamp>>,
}

impl Ledger {
    fn count(&self) -> usize {
        self.runs.lock().unwrap().len()
    }

    fn runs_of(&self, trigger: &str) -> usize {
        let runs = self.runs.lock().unwrap();
        runs.iter().filter(|run| run.trigger == trigger).count()
    }

    fn last(&self) -> RunRecord {
        self.runs.lock().unwrap().last().unwrap().clone()
    }

    fn fired(&self) -> Option<Timestamp> {
        *self.fired.lock().unwrap()
    }
}

#[async_trait]
impl Store for Ledger {
    async fn record_run(&self, run: &RunRecord) -> Result<(), StoreError> {
        self.runs.lock().unwrap().push(run.clone());
        Ok(())
    }

    async fn record_firing(&self, _: &Name, at: Timestamp) -> Result<(), StoreError> {
        *self.fired.lock().unwrap() = Some(at);
        Ok(())
    }

    async fn last_firing(&self, _: &Name) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.fired())
    }

    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        unreachable!("a runner does not")
    }

    async fn read(&self, _: &Name) -> Result<Option<Record>, StoreError> {
        unreachable!("a runner does not")
    }

    async fn checkout(&self, _: &Name, _: u64, _: &Lease) -> Result<Checkout, StoreError> {
        unreachable!("a runner does not")
    }

    async fn save(&self, _: &Name, _: u64, _: &TokenSet) -> Result<Saved, StoreError> {
        unreachable!("a runner does not")
    }

    async fn settle(
        &self,
        _: &Name,
        _: &Lease,
        _: &Standing,
        _: Option<Fingerprint>,
    ) -> Result<(), StoreError> {
        unreachable!("a runner does not")
    }

    async fn is_buried(&self, _: &Name, _: Fingerprint) -> Result<bool, StoreError> {
        unreachable!("a runner does not")
    }

    async fn runs(&self, _: &Name, _: u32) -> Result<Vec<RunRecord>, StoreError> {
        unreachable!("a runner does not")
    }

    async fn probe(&self) -> Result<(), StoreError> {
        unreachable!("a runner does not")
    }

    async fn close(&self) {}
}
