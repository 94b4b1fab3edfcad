//! Whether the store can be written: proved when somebody asks, and by itself now and then, so
//! that a disk which refuses or hangs is known before a refresh needs it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Store;

/// Often enough for an alert, seldom enough for the flash of a small computer.
const EVERY: Duration = Duration::from_secs(30);
/// How long a proof is good for: it syncs the disk, and anybody may ask.
const GOOD_FOR: Duration = Duration::from_secs(2);
/// A store that needs longer than this cannot be relied on, and nobody who asks waits longer.
const PATIENCE: Duration = Duration::from_secs(1);

type Proof = Result<(), String>;

/// What is known of one store.
pub struct Probe {
    store: Arc<dyn Store>,
    /// Who holds it writes: one at a time, however many ask and however long it takes.
    turn: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last: Option<(Instant, Proof)>,
    under_way_since: Option<Instant>,
}

impl Probe {
    /// Nothing is known yet but that the store was opened.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            turn: Arc::default(),
            known: Mutex::default(),
        })
    }

    /// Asks now and then, until the service stops.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(EVERY) => {}
            }
            // What came of it is for whoever looks.
            let _ = self.prove().await;
        }
    }

    /// Proves that the store can write, or looks back at a proof that is good still. The error
    /// is for people.
    pub async fn prove(self: &Arc<Self>) -> Proof {
        let proof = async {
            let turn = self.turn.clone().lock_owned().await;
            if let Some((at, result)) = &self.known().last
                && at.elapsed() < GOOD_FOR
            {
                return result.clone();
            }
            let this = self.clone();
            // A task of its own ends what it began, also when nobody waits any more.
            let probe = tokio::spawn(async move {
                let _turn = turn;
                this.known().under_way_since = Some(Instant::now());
                let result = this.store.probe().await.map_err(|error| error.to_string());
                *this.known() = Known {
                    last: Some((Instant::now(), result.clone())),
                    under_way_since: None,
                };
                result
            });
            probe.await.unwrap_or_else(|error| Err(error.to_string()))
        };
        let in_time = timeout(PATIENCE, proof).await;
        in_time.unwrap_or_else(|_| Err("the store has not written for a second".to_owned()))
    }

    /// Could it be written the last time that it was tried? Asks nothing of the disk.
    pub fn is_writable(&self) -> bool {
        let known = self.known();
        let hangs = known
            .under_way_since
            .is_some_and(|since| since.elapsed() >= PATIENCE);
        let refused = matches!(known.last, Some((_, Err(_))));
        !hangs && !refused
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
