//! Every line of the scheduler, in the shape that the library asks for: a store that names what is
//! due, and the code to run for it.

use std::collections::HashMap;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use tokio::sync::RwLock;
use tokio_cron_scheduler::job::JobId;
use tokio_cron_scheduler::job::job_data::{JobAndNextTick, JobStoredData, JobType, Uuid};
use tokio_cron_scheduler::store::{DataStore, InitStore};
use tokio_cron_scheduler::{
    Context, JobCode, JobSchedulerError, JobToRunAsync, MetaDataStorage, PinnedGetFuture, ToCode,
};

use super::line::Line;
use super::{OnTick, SchedulerError, Subscription};
use crate::schedule::Schedule;

/// Slots of each of the library's ten broadcast channels; all of them together take about 2 MB.
pub(super) const CHANNEL_SIZE: usize = 2_048;

/// How many lines one poll may activate: each costs the fullest channel three messages, and a
/// channel that overflows loses some. What is left waits for the next poll, half a second later.
const MOST_PER_POLL: usize = CHANNEL_SIZE / 4;

/// No code of ours panics under a lock; if one did, the state would still be whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All lines. Locks are taken in the order book, then line.
#[derive(Default)]
pub(super) struct Book {
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    closed: bool,
    /// The last number given to a line or a follower.
    last_number: u64,
    by_number: HashMap<u64, Arc<Line>>,
    numbers: HashMap<Schedule, u64>,
}

impl Lines {
    fn new_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

impl Book {
    pub(super) fn add(
        &self,
        schedule: Schedule,
        on_tick: OnTick,
        now: DateTime<Utc>,
    ) -> Result<Subscription, SchedulerError> {
        let mut lines = lock(&self.lines);
        if lines.closed {
            return Err(SchedulerError::Stopped);
        }
        let number = match lines.numbers.get(&schedule) {
            Some(number) => *number,
            None => {
                let number = lines.new_number();
                let line = Arc::new(Line::new(schedule.clone(), now));
                lines.by_number.insert(number, line);
                lines.numbers.insert(schedule, number);
                number
            }
        };
        let follower = lines.new_number();
        lines.by_number[&number].follow(follower, on_tick);
        Ok(Subscription {
            line: number,
            follower,
        })
    }

    pub(super) fn remove(&self, subscription: Subscription) -> Result<(), SchedulerError> {
        let mut lines = lock(&self.lines);
        if lines.closed {
            return Err(SchedulerError::Stopped);
        }
        let remaining = lines
            .by_number
            .get(&subscription.line)
            .and_then(|line| line.unfollow(subscription.follower))
            .ok_or(SchedulerError::UnknownSubscription)?;
        if remaining == 0
            && let Some(line) = lines.by_number.remove(&subscription.line)
        {
            lines.numbers.remove(line.schedule());
        }
        Ok(())
    }

    /// The first firing of a line that was not dealt with.
    pub(super) fn next(&self, schedule: &Schedule) -> Option<DateTime<Utc>> {
        let lines = lock(&self.lines);
        let line = lines.by_number[lines.numbers.get(schedule)?].clone();
        drop(lines);
        line.next()
    }

    /// Ends every line; waits for deliveries under way.
    pub(super) fn close(&self) {
        let ended = {
            let mut lines = lock(&self.lines);
            lines.closed = true;
            lines.numbers.clear();
            std::mem::take(&mut lines.by_number)
        };
        for line in ended.values() {
            line.close();
        }
    }

    /// The lines to activate at `now`, those longest due first.
    fn due(&self, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, u64)> {
        let mut due: Vec<_> = lock(&self.lines)
            .by_number
            .iter()
            .filter_map(|(number, line)| Some((line.due(now)?, *number)))
            .collect();
        due.sort_unstable();
        due.truncate(MOST_PER_POLL);
        due
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.lines).by_number.len()
    }

    fn fire(&self, number: u64) {
        let line = lock(&self.lines).by_number.get(&number).cloned();
        if let Some(line) = line {
            line.fire(Utc::now(), Instant::now());
        }
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, JobSchedulerError>> + Send>>;

fn answer<T: Send + 'static>(value: T) -> Answer<T> {
    Box::pin(ready(Ok(value)))
}

/// The book as the library's job store. What the library wants to write is ignored: a line moves on
/// when its firing is delivered.
pub(super) struct Store {
    book: Arc<Book>,
}

impl Store {
    pub(super) fn new(book: Arc<Book>) -> Store {
        Store { book }
    }
}

impl MetaDataStorage for Store {
    fn list_next_ticks(&mut self) -> Answer<Vec<JobAndNextTick>> {
        let due = self.book.due(Utc::now());
        answer(
            due.into_iter()
                .map(|(at, number)| JobAndNextTick {
                    id: Some(Uuid {
                        id1: 0,
                        id2: number,
                    }),
                    job_type: JobType::Cron.into(),
                    // 0 would mean "delete this job"; before 1970 any time that has passed will do.
                    next_tick: u64::try_from(at.timestamp()).unwrap_or(1).max(1),
                    last_tick: None,
                })
                .collect(),
        )
    }

    fn set_next_and_last_tick(
        &mut self,
        _: JobId,
        _: Option<DateTime<Utc>>,
        _: Option<DateTime<Utc>>,
    ) -> Answer<()> {
        answer(())
    }

    /// Only asked by callers of the library's method of the same name; we are none.
    fn time_till_next_job(&mut self) -> Answer<Option<std::time::Duration>> {
        answer(None)
    }
}

impl DataStore<JobStoredData> for Store {
    /// Asked for after each activation, to compute a next tick that we ignore. A line that is gone
    /// is answered too, or the library would log an error for each removal that races with a tick.
    fn get(&mut self, id: JobId) -> Answer<Option<JobStoredData>> {
        answer(Some(JobStoredData {
            id: Some(id.into()),
            last_updated: None,
            last_tick: None,
            next_tick: 0,
            job_type: JobType::Cron.into(),
            count: 0,
            extra: Vec::new(),
            ran: false,
            stopped: false,
            job: None,
            time_offset_seconds: 0,
        }))
    }

    fn add_or_update(&mut self, _: JobStoredData) -> Answer<()> {
        answer(())
    }

    fn delete(&mut self, _: JobId) -> Answer<()> {
        answer(())
    }
}

impl InitStore for Store {
    fn init(&mut self) -> Answer<()> {
        answer(())
    }

    fn inited(&mut self) -> Answer<bool> {
        answer(true)
    }
}

/// The book as the library's code store: one function that fires whichever line it is called for.
pub(super) struct Code {
    fire: Arc<RwLock<Box<JobToRunAsync>>>,
}

impl Code {
    pub(super) fn new(book: Arc<Book>) -> Code {
        let fire: Box<JobToRunAsync> = Box::new(move |id, _| {
            let book = Arc::clone(&book);
            // Not before it is polled: the library polls it in a task of its own.
            Box::pin(async move { book.fire(Uuid::from(id).id2) })
        });
        Code {
            fire: Arc::new(RwLock::new(fire)),
        }
    }
}

impl ToCode<Box<JobToRunAsync>> for Code {
    fn init(&mut self, _: &Context) -> Answer<()> {
        answer(())
    }

    fn get(&mut self, _: JobId) -> PinnedGetFuture<Box<JobToRunAsync>> {
        answer(Some(Arc::clone(&self.fire)))
    }
}

impl JobCode for Code {}
