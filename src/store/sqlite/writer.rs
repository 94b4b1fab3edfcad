//! Group commit: changes that arrive together share one transaction and one sync.

use async_trait::async_trait;
use sqlx::{Connection, SqliteConnection};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{StoreError, StoreLock, unavailable};

/// How many changes share a commit at most: beyond this the sync no longer shows.
const LARGEST_GROUP: usize = 128;

/// One change of the store, as statements. It may be applied twice, if a group that it was
/// in had to be rolled back because of another.
#[async_trait]
pub(super) trait Change: Send + Sync + 'static {
    /// What the caller wants to know afterwards.
    type Output: Send;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Self::Output, sqlx::Error>;
}

/// A change with somebody waiting for it, whatever its type.
#[async_trait]
trait Waiting: Send {
    async fn apply(&mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Entry<C: Change> {
    change: C,
    output: Option<C::Output>,
    reply: oneshot::Sender<Result<C::Output, StoreError>>,
}

#[async_trait]
impl<C: Change> Waiting for Entry<C> {
    async fn apply(&mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.output = Some(self.change.apply(connection).await?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { output, reply, .. } = *self;
        // Nobody listens any more when a reader gave up; the change is durable all the same.
        let _ = reply.send(committed.map(|()| output.expect("committed means applied")));
    }
}

/// The one connection that writes, and the lock that says so.
pub(super) struct Writer {
    // Unbounded, so that a change is in the queue as soon as it is asked for, whatever
    // becomes of its caller, and `close` finds it there. Its callers bound it: each waits.
    queue: mpsc::UnboundedSender<Box<dyn Waiting>>,
    task: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
}

impl Writer {
    /// Starts to write. `lock` is let go after the last change, when nobody can ask for
    /// another: after `close`, or when the writer is dropped.
    pub(super) fn start(connection: SqliteConnection, lock: StoreLock) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(connection, waiting, stop.clone(), lock));
        Self {
            queue,
            task: Mutex::new(Some(task)),
            stop,
        }
    }

    /// Applies a change and waits until it is durable. The change is made even if the
    /// caller stops waiting.
    pub(super) async fn write<C: Change>(&self, change: C) -> Result<C::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        let closed = || StoreError::Unavailable("it is closed".into());
        let entry = Box::new(Entry {
            change,
            output: None,
            reply,
        });
        self.queue.send(entry).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Makes the changes that were asked for, and takes no more.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        // Taken out only when it has ended, so that a second caller waits as well.
        let mut task = self.task.lock().await;
        if let Some(running) = task.as_mut() {
            let _ = running.await;
        }
        *task = None;
    }
}

async fn run(
    mut connection: SqliteConnection,
    mut queue: mpsc::UnboundedReceiver<Box<dyn Waiting>>,
    stop: CancellationToken,
    _lock: StoreLock,
) {
    let mut group = Vec::with_capacity(LARGEST_GROUP);
    loop {
        // Takes what is there: a lone change never waits for company, and while one
        // commit is synced the next group gathers by itself. The stop is looked at first:
        // a queue that never runs dry must not hide it.
        tokio::select! {
            biased;
            () = stop.cancelled(), if !queue.is_closed() => queue.close(),
            count = queue.recv_many(&mut group, LARGEST_GROUP) => if count == 0 { break },
        }
        if !group.is_empty() {
            commit(&mut connection, &mut group).await;
        }
    }
    let _ = connection.close().await;
}

async fn commit(connection: &mut SqliteConnection, group: &mut Vec<Box<dyn Waiting>>) {
    let result = transaction(connection, group).await.map_err(unavailable);
    if result.is_ok() || group.len() == 1 {
        group
            .drain(..)
            .for_each(|entry| entry.answer(result.clone()));
        return;
    }
    // One bad change must not fail its neighbours: each again, by itself.
    for entry in group.drain(..) {
        let mut alone = [entry];
        let result = transaction(connection, &mut alone)
            .await
            .map_err(unavailable);
        let [entry] = alone;
        entry.answer(result);
    }
}

/// All of the group, or nothing of it.
async fn transaction(
    connection: &mut SqliteConnection,
    group: &mut [Box<dyn Waiting>],
) -> Result<(), sqlx::Error> {
    let result = apply(connection, group).await;
    if result.is_err() {
        // Fails where SQLite has rolled back by itself, as it does on a full disk. sqlx's
        // own transactions take that for a transaction still open, and never begin another.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    result
}

async fn apply(
    connection: &mut SqliteConnection,
    group: &mut [Box<dyn Waiting>],
) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut *connection)
        .await?;
    for entry in group {
        entry.apply(connection).await?;
    }
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}
