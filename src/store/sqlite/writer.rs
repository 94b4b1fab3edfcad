//! Group commit: changes that arrive together share one transaction and one sync.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
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
    pub(super) fn start(db: Connection, files: OpenFiles, lock: StoreLock) -> io::Result<Self> {
        let (queue, waiting) = mpsc::unbounded_channel();
        let (to_make, groups) = std::sync::mpsc::channel();
        let (made, results) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("store".into())
            .spawn(move || make(db, files, lock, groups, made))?;
        let task = tokio::spawn(run(waiting, to_make, results));
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            task: tokio::sync::Mutex::new(Some(task)),
        })
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

type Group = Vec<Box<dyn Waiting>>;
type Results = Vec<Result<(), StoreError>>;

/// Gathers changes, and answers them.
async fn run(
    mut queue: mpsc::UnboundedReceiver<Box<dyn Waiting>>,
    groups: std::sync::mpsc::Sender<Group>,
    mut made: mpsc::UnboundedReceiver<(Group, Results)>,
) {
    let mut group = Group::with_capacity(LARGEST_GROUP);
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
        // Nobody listens only if the thread panicked; who waits then hears that it is closed.
        let _ = groups.send(group);
        let Some((answered, results)) = made.recv().await else {
            return;
        };
        group = answered;
        // Here and not over there: to wake a task from another thread costs a system call.
        for (entry, result) in group.drain(..).zip(results) {
            entry.answer(result);
        }
    }
    drop(groups);
    // Until the thread has let go of the file.
    let _ = made.recv().await;
}

/// Makes the changes, group by group. A thread of its own: the pool that everybody shares may be
/// full of what hangs, such as files on a network, while the only copy of a token is in here.
fn make(
    db: Connection,
    files: OpenFiles,
    lock: StoreLock,
    groups: std::sync::mpsc::Receiver<Group>,
    made: mpsc::UnboundedSender<(Group, Results)>,
) {
    for mut group in groups {
        let results = match files.are_in_place() {
            Ok(()) => commit(&db, &mut group),
            Err(error) => vec![Err(error); group.len()],
        };
        if made.send((group, results)).is_err() {
            break;
        }
    }
    // Closed before anybody else may open it.
    let _ = db.close();
    drop(lock);
}

/// What became of each.
fn commit(db: &Connection, group: &mut [Box<dyn Waiting>]) -> Results {
    // Who does not get the lock of the database for all does not get it for one either.
    if let Err(error) = execute(db, "BEGIN IMMEDIATE") {
        return vec![Err(unavailable(error)); group.len()];
    }
    let together = finish(db, group).map_err(unavailable);
    if together.is_ok() || group.len() == 1 {
        return vec![together; group.len()];
    }
    // One bad change must not fail its neighbours: each again, by itself.
    let alone = |entry| {
        execute(db, "BEGIN IMMEDIATE")?;
        finish(db, entry)
    };
    let each = group.chunks_mut(1);
    each.map(|entry| alone(entry).map_err(unavailable))
        .collect()
}

/// All of the group, or nothing of it.
fn finish(db: &Connection, group: &mut [Box<dyn Waiting>]) -> rusqlite::Result<()> {
    let result = apply(db, group);
    // SQLite has rolled back by itself after some errors, such as a full disk.
    if result.is_err() && !db.is_autocommit() {
        let _ = execute(db, "ROLLBACK");
    }
    result
}

fn apply(db: &Connection, group: &mut [Box<dyn Waiting>]) -> rusqlite::Result<()> {
    for entry in group {
        entry.apply(db)?;
    }
    crash::point(Step::Committing);
    execute(db, "COMMIT")
}

fn execute(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute([]).map(drop)
}
