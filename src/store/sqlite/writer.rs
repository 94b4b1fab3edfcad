//! Group commit: changes that arrive together share one transaction and one sync.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
};

use super::{OpenFiles, StoreError, StoreLock, unavailable};
use crate::crash::{self, Step};

/// How many changes share a commit at most: beyond this the sync no longer shows.
const LARGEST_GROUP: usize = 128;

/// A change with somebody waiting for it, whatever its type.
trait Waiting: Send {
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Entry<C, T> {
    change: C,
    output: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<C, T> Waiting for Entry<C, T>
where
    C: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.output = Some((self.change)(db)?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { output, reply, .. } = *self;
        // Nobody listens any more when a reader gave up; the change is durable all the same.
        let _ = reply.send(committed.map(|()| output.expect("committed means applied")));
    }
}

type Queue = mpsc::UnboundedSender<Box<dyn Waiting>>;

/// The one connection that writes, and the lock that says so.
pub(super) struct Writer {
    // Unbounded, so that a change is in the queue as soon as it is asked for, whatever
    // becomes of its caller, and `close` finds it there. Its callers bound it: each waits.
    // Nobody can ask any more once it is taken out.
    queue: Mutex<Option<Queue>>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts to write. `lock` is let go after the last change, when nobody can ask for
    /// another: after `close`, or when the writer is dropped.
    pub(super) fn start(db: Connection, files: OpenFiles, lock: StoreLock) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(db, files, waiting, lock));
        Self {
            queue: Mutex::new(Some(queue)),
            task: tokio::sync::Mutex::new(Some(task)),
        }
    }

    /// Makes a change and waits until it is durable. The change is made even if the caller
    /// stops waiting.
    pub(super) async fn write<C, T>(&self, change: C) -> Result<T, StoreError>
    where
        C: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let closed = || StoreError::Unavailable("it is closed".into());
        let entry = Box::new(Entry {
            change,
            output: None,
            reply,
        });
        let sent = match &*self.queue() {
            Some(queue) => queue.send(entry).is_ok(),
            None => false,
        };
        if !sent {
            return Err(closed());
        }
        answer.await.map_err(|_| closed())?
    }

    /// Makes the changes that were asked for, and takes no more.
    pub(super) async fn close(&self) {
        self.queue().take();
        // Taken out only when it has ended, so that a second caller waits as well.
        let mut task = self.task.lock().await;
        if let Some(running) = task.as_mut() {
            let _ = running.await;
        }
        *task = None;
    }

    fn queue(&self) -> MutexGuard<'_, Option<Queue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    db: Connection,
    files: OpenFiles,
    mut queue: mpsc::UnboundedReceiver<Box<dyn Waiting>>,
    lock: StoreLock,
) {
    // In this order, and always together: it is closed before anybody else may open it.
    let mut file = (db, files, lock);
    let mut group = Vec::with_capacity(LARGEST_GROUP);
    // Takes what is there: a lone change never waits for company, and while one commit is
    // synced the next group gathers by itself.
    while queue.recv_many(&mut group, LARGEST_GROUP).await > 0 {
        // Whoever is ready to ask gets his word in before the sync.
        tokio::task::yield_now().await;
        while group.len() < LARGEST_GROUP
            && let Ok(entry) = queue.try_recv()
        {
            group.push(entry);
        }
        let committing = spawn_blocking(move || {
            let results = match file.1.are_in_place() {
                Ok(()) => commit(&file.0, &mut group),
                Err(error) => vec![Err(error); group.len()],
            };
            (file, group, results)
        });
        let results;
        (file, group, results) = committing.await.expect("no change panics");
        // Here and not over there: to wake a task from another thread costs a system call.
        for (entry, result) in group.drain(..).zip(results) {
            entry.answer(result);
        }
    }
    let _ = spawn_blocking(move || drop(file)).await;
}

/// What became of each.
fn commit(db: &Connection, group: &mut [Box<dyn Waiting>]) -> Vec<Result<(), StoreError>> {
    let together = transaction(db, group).map_err(unavailable);
    if together.is_ok() || group.len() == 1 {
        return vec![together; group.len()];
    }
    // One bad change must not fail its neighbours: each again, by itself.
    group
        .chunks_mut(1)
        .map(|alone| transaction(db, alone).map_err(unavailable))
        .collect()
}

/// All of the group, or nothing of it.
fn transaction(db: &Connection, group: &mut [Box<dyn Waiting>]) -> rusqlite::Result<()> {
    let result = apply(db, group);
    // SQLite has rolled back by itself after some errors, such as a full disk.
    if result.is_err() && !db.is_autocommit() {
        let _ = execute(db, "ROLLBACK");
    }
    result
}

fn apply(db: &Connection, group: &mut [Box<dyn Waiting>]) -> rusqlite::Result<()> {
    execute(db, "BEGIN IMMEDIATE")?;
    for entry in group {
        entry.apply(db)?;
    }
    crash::point(Step::Committing);
    execute(db, "COMMIT")
}

fn execute(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute([]).map(drop)
}
