//! Brings each version of a member's token to its sinks: at least once, in order, until it
//! works or a newer one is there. One task for each sink, so that a slow one delays none.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Mutex, Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{Delivery, Sink, SinkError, file};
use crate::{
    clock::Clock,
    crash::{self, Step},
    events::Delivered,
    fleet::{Member, Version},
    metrics::Metrics,
    secret::{Fingerprint, Secret},
    telemetry,
};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// A delivery that is not over by then, the wait for its turn included, counts as failed.
const ATTEMPT_IS_SLOW: Duration = Duration::from_secs(60);
/// How many deliveries are under way at once. Writing a file holds a thread, and at the start
/// every credential has something to deliver.
pub const AT_ONCE: usize = 32;

/// What every delivery needs.
#[derive(Clone)]
pub struct Deliveries {
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where the tasks live; the service waits for them before it ends.
    pub tasks: TaskTracker,
    /// After the last refresh: deliver what is new, once, and end.
    pub stop: CancellationToken,
    /// Who delivers holds one: see [`AT_ONCE`].
    pub slots: Arc<Semaphore>,
}

impl Deliveries {
    /// Starts a task for each sink of a member. What the member has now is delivered at
    /// once: a crash may have come between its save and its delivery.
    pub fn start(&self, member: &Arc<Member>) {
        let write_back = member.write_back.clone().map(WriteBack::new);
        let targets = member
            .sinks
            .iter()
            .cloned()
            .map(|sink| Box::new(Handover { sink }) as Box<dyn Target>);
        let Some(versions) = member.versions() else {
            return;
        };
        for target in targets.chain(write_back.map(|target| Box::new(target) as _)) {
            self.metrics.expect_sink(target.kind());
            let place = member.expect_delivery(target.kind());
            let run = self
                .clone()
                .run(member.clone(), versions.clone(), target, place);
            self.tasks.spawn(run);
        }
    }

    async fn run(
        self,
        member: Arc<Member>,
        mut versions: watch::Receiver<Version>,
        target: Box<dyn Target>,
        place: usize,
    ) {
        versions.mark_changed();
        let mut retry_in = FIRST_RETRY;
        loop {
            tokio::select! {
                biased;
                changed = versions.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            loop {
                let version = versions.borrow_and_update().clone();
                let mut attempt = pin!(self.attempt(&member, &*target, &version, retry_in));
                let result = match timeout(ATTEMPT_IS_SLOW, &mut attempt).await {
                    Ok(result) => result,
                    // What hangs does not say that it fails. The attempt goes on.
                    Err(_) => {
                        member.delivered(place, false);
                        attempt.await
                    }
                };
                member.delivered(place, result.is_ok());
                if result.is_ok() {
                    retry_in = FIRST_RETRY;
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(retry_in) => retry_in = (retry_in * 2).min(LONGEST_RETRY),
                    _ = versions.changed() => retry_in = FIRST_RETRY,
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    async fn attempt(
        &self,
        member: &Arc<Member>,
        target: &dyn Target,
        version: &Version,
        retry_in: Duration,
    ) -> Result<(), SinkError> {
        let span = tracing::info_span!(parent: None, "sink.deliver", sink = target.kind());
        version.origin.adopt(&span);
        let _slot = self.slots.acquire().await.expect("it is never closed");
        let result = target
            .deliver(member, &*self.clock)
            .instrument(span.clone())
            .await;
        let failure = match &result {
            Ok(false) => return Ok(()),
            Ok(true) => None,
            Err(error) => {
                telemetry::mark_failed(&span);
                Some((error, retry_in))
            }
        };
        let (credential, sink, version) = (&member.name, target.kind(), version.number);
        span.in_scope(|| {
            Delivered {
                credential,
                sink,
                version,
                failure,
            }
            .emit(&self.metrics)
        });
        result.map(|_| ())
    }
}

/// Where something of a member goes.
#[async_trait]
trait Target: Send + Sync {
    fn kind(&self) -> &'static str;
    /// Whether there was anything to deliver.
    async fn deliver(&self, member: &Arc<Member>, clock: &dyn Clock) -> Result<bool, SinkError>;
}

/// The access token, to a sink.
struct Handover {
    sink: Arc<dyn Sink>,
}

#[async_trait]
impl Target for Handover {
    fn kind(&self) -> &'static str {
        self.sink.kind()
    }

    async fn deliver(&self, member: &Arc<Member>, clock: &dyn Clock) -> Result<bool, SinkError> {
        let delivery = {
            let view = member.view();
            let now = clock.now();
            let (Some((tokens, _)), Some(expires_at)) = (
                view.credential.live_tokens(),
                view.credential.expires_at(&member.rules, now),
            ) else {
                return Ok(false);
            };
            Delivery {
                credential: member.name.clone(),
                version: view.credential.version,
                access_token: tokens.access_token.clone(),
                token_type: tokens.details.token_type.clone(),
                scope: tokens.details.scope.clone(),
                expires_at,
            }
        };
        crash::point(Step::Delivering);
        self.sink.deliver(&delivery).await?;
        crash::point(Step::Delivered);
        Ok(true)
    }
}

/// The refresh token, back into the file that it was imported from. Not a sink: sinks never
/// see a refresh token.
struct WriteBack {
    path: PathBuf,
    /// What we put there last. Anything else in the file was put there by somebody, and
    /// may be the only copy of a token: it is kept beside the file.
    written: Mutex<Option<Fingerprint>>,
}

impl WriteBack {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: Mutex::default(),
        }
    }
}

#[async_trait]
impl Target for WriteBack {
    fn kind(&self) -> &'static str {
        "refresh_token_file"
    }

    async fn deliver(&self, member: &Arc<Member>, _: &dyn Clock) -> Result<bool, SinkError> {
        let Some(token) = member.view().credential.refresh_token().cloned() else {
            return Ok(false);
        };
        let (path, ours) = (self.path.clone(), token.fingerprint());
        let mut last_written = self.written.lock().await;
        let written = *last_written;
        let write = move || {
            let found = match std::fs::read_to_string(&path) {
                Ok(text) => Some(Secret::new(text.trim())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let found = found.filter(|found| !found.expose().is_empty());
            if let Some(found) = found {
                if found.fingerprint() == ours {
                    return Ok(false);
                }
                if written != Some(found.fingerprint()) {
                    let mut beside = path.clone().into_os_string();
                    beside.push(".previous");
                    put(beside.as_ref(), &found)?;
                }
            }
            crash::point(Step::WritingBack);
            put(&path, &token)?;
            crash::point(Step::WrittenBack);
            Ok(true)
        };
        let path = self.path.display();
        let changed = tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| SinkError(error.to_string()))?
            .map_err(|error| SinkError(format!("{path}: {error}")))?;
        *last_written = Some(ours);
        Ok(changed)
    }
}

fn put(path: &Path, token: &Secret) -> std::io::Result<()> {
    let line = zeroize::Zeroizing::new(format!("{}\n", token.expose()));
    file::replace(path, line.as_bytes(), 0o600)
}
