//! Ticks: calls back when a schedule fires. The only importer of `tokio-cron-scheduler`.
//!
//! The library supplies the loop (a poll every 500 ms) and the task that runs a job; we supply
//! its two extension points, the store that names what is due and the code to run, both
//! implemented by `book.rs`. That is deliberate, because of what its own parts do:
//! - Its store computes the next tick with a fixed UTC offset; ours asks [`Schedule`].
//! - Its `add` and `remove` travel through broadcast channels that hang or lose under load; here
//!   both are one insertion in the book, under a lock, and cannot hang.
//! - Its activations travel through such a channel too. A firing is therefore dealt with when it
//!   *arrives* (`line.rs`), not when it was sent: a lost activation is sent again by the
//!   next poll, a doubled one finds nothing left to do, and no more are sent at once than the
//!   channel holds.
//!
//! Firings arrive up to about half a second late, more while the runtime is busy.

#![allow(
    clippy::disallowed_methods,
    reason = "the library reads the real clock, so its storage must read the same"
)]

mod book;
mod line;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::Utc;
use chrono_tz::Tz;
use tokio_cron_scheduler::{
    JobScheduler, JobSchedulerError, SimpleNotificationCode, SimpleNotificationStore,
};

use self::book::{Book, CHANNEL_SIZE, Code, Store, lock};
use crate::clock::Timestamp;
use crate::schedule::{Firing, Schedule};

/// Seldom enough to cost nothing, often enough that a health check need not wait.
const HEARTBEAT: &str = "*/5 * * * * *";

/// What is called at each firing. It must return at once: it sends or spawns, and does no work.
pub type OnTick = Arc<dyn Fn(Firing) + Send + Sync>;

/// Why a scheduler did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The library refused to start.
    #[error("the scheduler did not start ({0}); restart the service")]
    Start(#[from] JobSchedulerError),
    /// [`Scheduler::stop`] was called before.
    #[error("the scheduler has stopped; it takes no more schedules")]
    Stopped,
    /// Removed before, or handed out by another scheduler.
    #[error("the scheduler has no such subscription; remove each subscription once")]
    UnknownSubscription,
}

/// Names one [`Scheduler::add`], to remove it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subscription {
    line: u64,
    follower: u64,
}

/// A running scheduler. Clones are handles to the same one.
///
/// Firings go on until [`Scheduler::stop`], even when every handle is dropped. The library's idle
/// tasks live as long as the runtime, so a process has one scheduler and keeps it.
///
/// # When the wall clock is set
/// - **Forward**, or the machine slept: what was jumped over is delivered once, as the latest
///   firing, with the number that it stands for ([`Firing::skipped`]).
/// - **Backward**: a time that was delivered is not delivered again while the last delivery is less
///   than 30 seconds, or less than half of the schedule's interval, ago in real time. Small
///   corrections so repeat nothing. After a larger one a frequent schedule goes on by the new clock,
///   naming some times again, instead of waiting until the old clock is reached; a daily one
///   repeats the day's firing only when 12 hours have really passed.
#[derive(Clone)]
pub struct Scheduler {
    book: Arc<Book>,
    library: JobScheduler,
    last_beat: Arc<Mutex<Instant>>,
}

impl Scheduler {
    /// Starts ticking on the current tokio runtime.
    ///
    /// # Errors
    /// [`SchedulerError::Start`] when the library does not start.
    pub async fn start() -> Result<Scheduler, SchedulerError> {
        let book = Arc::new(Book::default());
        let library = JobScheduler::new_with_storage_and_code(
            Box::new(Store::new(Arc::clone(&book))),
            Box::new(SimpleNotificationStore::default()),
            Box::new(Code::new(Arc::clone(&book))),
            Box::new(SimpleNotificationCode::default()),
            CHANNEL_SIZE,
        )
        .await?;
        library.start().await?;

        let scheduler = Scheduler {
            book,
            library,
            last_beat: Arc::new(Mutex::new(Instant::now())),
        };
        let every_few_seconds =
            Schedule::parse(HEARTBEAT, Tz::UTC).expect("the heartbeat is a valid constant");
        let last_beat = Arc::clone(&scheduler.last_beat);
        let beat: OnTick = Arc::new(move |_| *lock(&last_beat) = Instant::now());
        scheduler.add(every_few_seconds, beat).await?;
        Ok(scheduler)
    }

    /// Calls `on_tick` at each firing after now. Subscriptions to equal schedules share one
    /// scheduler job; one that joins may still see a firing of the second before it joined.
    /// A panic in `on_tick` is logged and concerns nobody else.
    ///
    /// # Errors
    /// [`SchedulerError::Stopped`].
    pub async fn add(
        &self,
        schedule: Schedule,
        on_tick: OnTick,
    ) -> Result<Subscription, SchedulerError> {
        self.book.add(schedule, on_tick, Utc::now())
    }

    /// Ends a subscription: its `on_tick` is not called again after this returns.
    ///
    /// # Errors
    /// [`SchedulerError::UnknownSubscription`], [`SchedulerError::Stopped`].
    pub async fn remove(&self, subscription: Subscription) -> Result<(), SchedulerError> {
        self.book.remove(subscription)
    }

    /// The next firing of a schedule that somebody follows: the first that was not dealt with.
    /// It lies in the past while it is overdue.
    pub fn next_firing(&self, schedule: &Schedule) -> Option<Timestamp> {
        self.book.next(schedule)
    }

    /// How long ago the scheduler started, or proved to be alive since, by a schedule of its own
    /// that goes the way of all others every 5 seconds. Measured by the clock that nobody sets.
    /// After the wall clock was set back it may pause for 30 seconds: judge it dead after a minute,
    /// not before.
    pub fn silent_for(&self) -> Duration {
        lock(&self.last_beat).elapsed()
    }

    /// Ends all subscriptions and the loop. No firing is delivered after this returns; one that is
    /// being delivered is waited for. Stopping twice is stopping once.
    pub async fn stop(&self) {
        self.book.close();
        // The library only raises a flag here, which its loop sees within a second.
        if let Err(error) = self.library.clone().shutdown().await {
            tracing::warn!(%error, "the scheduler library did not shut down");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const EVERY_SECOND: &str = "* * * * * *";

    fn every_second() -> Schedule {
        Schedule::parse(EVERY_SECOND, Tz::UTC).unwrap()
    }

    /// Remembers what it was called with.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Firing>>>);

    impl Seen {
        fn on_tick(&self) -> OnTick {
            let seen = Arc::clone(&self.0);
            Arc::new(move |firing| seen.lock().unwrap().push(firing))
        }

        fn firings(&self) -> Vec<Firing> {
            self.0.lock().unwrap().clone()
        }

        fn count(&self) -> usize {
            self.0.lock().unwrap().len()
        }

        /// Waits for so many firings more.
        async fn wait_for(&self, more: usize) {
            let enough = self.count() + more;
            wait_until(|| self.count() >= enough).await;
        }
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "waited for 30 seconds in vain");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // Most of these run on one thread, the library's hardest case.

    #[tokio::test]
    async fn fires_at_the_named_seconds_without_doubles() {
        let scheduler = Scheduler::start().await.unwrap();
        let seen = Seen::default();
        let start = Utc::now();
        scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        seen.wait_for(4).await;
        scheduler.stop().await;

        let firings = seen.firings();
        assert!(firings[0].scheduled_at > start);
        for pair in firings.windows(2) {
            let passed = (pair[1].scheduled_at - pair[0].scheduled_at).num_seconds();
            // A busy machine may delay a poll; what it jumps over is then told.
            assert_eq!(passed, 1 + i64::from(pair[1].skipped));
        }
        assert!(
            firings
                .iter()
                .all(|firing| firing.scheduled_at <= Utc::now())
        );
    }

    #[tokio::test]
    async fn what_is_next_is_overdue_until_it_is_dealt_with() {
        let scheduler = Scheduler::start().await.unwrap();
        assert_eq!(
            scheduler.next_firing(&every_second()),
            None,
            "nobody follows it"
        );
        let seen = Seen::default();
        scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        seen.wait_for(1).await;
        let next = scheduler.next_firing(&every_second()).unwrap();
        assert!(next > seen.firings()[0].scheduled_at);
        // Nobody polls while this thread sleeps.
        std::thread::sleep(Duration::from_secs(2));
        let overdue = scheduler.next_firing(&every_second()).unwrap();
        assert!(overdue < Utc::now(), "{overdue}");
        seen.wait_for(1).await;
        assert!(scheduler.next_firing(&every_second()).unwrap() > overdue);
        scheduler.stop().await;
    }

    #[tokio::test]
    async fn removing_stops_one_subscription_and_not_its_neighbour() {
        let scheduler = Scheduler::start().await.unwrap();
        let (removed, stays) = (Seen::default(), Seen::default());
        let subscription = scheduler
            .add(every_second(), removed.on_tick())
            .await
            .unwrap();
        scheduler
            .add(every_second(), stays.on_tick())
            .await
            .unwrap();
        removed.wait_for(1).await;

        scheduler.remove(subscription).await.unwrap();
        let count = removed.count();
        stays.wait_for(2).await;
        assert_eq!(removed.count(), count);
        assert!(matches!(
            scheduler.remove(subscription).await,
            Err(SchedulerError::UnknownSubscription)
        ));
        scheduler.stop().await;
    }

    #[tokio::test]
    async fn the_last_to_leave_ends_the_job_and_it_can_begin_again() {
        let scheduler = Scheduler::start().await.unwrap();
        let before = scheduler.book.len();
        let seen = Seen::default();
        let first = scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        let second = scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        assert_eq!(
            scheduler.book.len(),
            before + 1,
            "equal schedules share a job"
        );
        scheduler.remove(first).await.unwrap();
        scheduler.remove(second).await.unwrap();
        assert_eq!(scheduler.book.len(), before);

        scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        seen.wait_for(1).await;
        scheduler.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_delivered_after_stop() {
        let (stopped, witness) = (
            Scheduler::start().await.unwrap(),
            Scheduler::start().await.unwrap(),
        );
        let (seen, clock) = (Seen::default(), Seen::default());
        let subscription = stopped.add(every_second(), seen.on_tick()).await.unwrap();
        witness.add(every_second(), clock.on_tick()).await.unwrap();
        seen.wait_for(1).await;

        stopped.stop().await;
        let count = seen.count();
        clock.wait_for(3).await;
        assert_eq!(seen.count(), count);
        assert!(matches!(
            stopped.add(every_second(), seen.on_tick()).await,
            Err(SchedulerError::Stopped)
        ));
        assert!(matches!(
            stopped.remove(subscription).await,
            Err(SchedulerError::Stopped)
        ));
        stopped.stop().await;
        witness.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stop_waits_for_a_delivery_under_way() {
        let scheduler = Scheduler::start().await.unwrap();
        let (entered, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (enters, leaves) = (Arc::clone(&entered), Arc::clone(&left));
        let slow: OnTick = Arc::new(move |_| {
            enters.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            leaves.fetch_add(1, Ordering::SeqCst);
        });
        scheduler.add(every_second(), slow).await.unwrap();
        wait_until(|| entered.load(Ordering::SeqCst) > 0).await;
        scheduler.stop().await;
        assert_eq!(left.load(Ordering::SeqCst), entered.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_concerns_nobody_else() {
        let scheduler = Scheduler::start().await.unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let panics: OnTick = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            panic!("on purpose");
        });
        scheduler.add(every_second(), panics).await.unwrap();
        let seen = Seen::default();
        scheduler.add(every_second(), seen.on_tick()).await.unwrap();
        seen.wait_for(2).await;
        wait_until(|| calls.load(Ordering::Relaxed) >= 2).await;
        scheduler.stop().await;
    }

    #[tokio::test]
    async fn two_thousand_followers_of_one_schedule_are_all_called() {
        let scheduler = Scheduler::start().await.unwrap();
        let followers: Vec<Seen> = (0..2_000).map(|_| Seen::default()).collect();
        for follower in &followers {
            scheduler
                .add(every_second(), follower.on_tick())
                .await
                .unwrap();
        }
        wait_until(|| followers.iter().all(|follower| follower.count() >= 2)).await;
        scheduler.stop().await;
        for follower in &followers {
            let firings = follower.firings();
            let distinct: HashSet<_> = firings.iter().map(|firing| firing.scheduled_at).collect();
            assert_eq!(distinct.len(), firings.len());
        }
    }

    /// So many different schedules that fire each second: the same expression, with more or fewer
    /// of its seconds written out, in many zones.
    fn different(count: usize) -> Vec<Schedule> {
        let expressions = [
            "* * * * * *",
            "*/1 * * * * *",
            "0-59 * * * * *",
            "0/1 * * * * *",
        ];
        let schedules: Vec<Schedule> = chrono_tz::TZ_VARIANTS
            .iter()
            .flat_map(|zone| expressions.map(|expression| (expression, *zone)))
            .take(count)
            .map(|(expression, zone)| Schedule::parse(expression, zone).unwrap())
            .collect();
        assert_eq!(schedules.len(), count);
        schedules
    }

    async fn all_fire(count: usize) {
        let scheduler = Scheduler::start().await.unwrap();
        let mut tasks = Vec::new();
        for schedule in different(count) {
            let scheduler = scheduler.clone();
            tasks.push(tokio::spawn(async move {
                let seen = Seen::default();
                scheduler.add(schedule, seen.on_tick()).await.unwrap();
                seen
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        wait_until(|| all.iter().all(|seen| seen.count() >= 2)).await;
        scheduler.stop().await;
        for seen in &all {
            for pair in seen.firings().windows(2) {
                let passed = (pair[1].scheduled_at - pair[0].scheduled_at).num_seconds();
                assert_eq!(
                    passed,
                    1 + i64::from(pair[1].skipped),
                    "neither lost nor doubled"
                );
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_hundred_schedules_added_at_once_all_fire() {
        all_fire(200).await;
    }

    /// More than one poll may activate.
    #[tokio::test]
    async fn a_thousand_schedules_on_one_thread_all_fire() {
        all_fire(1_000).await;
    }

    #[tokio::test]
    async fn the_heartbeat_proves_life() {
        let scheduler = Scheduler::start().await.unwrap();
        let started = Instant::now();
        // Less silent than it has run: a beat came in between.
        wait_until(|| scheduler.silent_for() + Duration::from_secs(1) < started.elapsed()).await;
        scheduler.stop().await;
    }
}
