//! `perennial serve`: until a signal.

use std::{collections::BTreeMap, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::{Failure, check};
use crate::{
    app::{App, Running},
    config::Config,
};

pub(super) async fn run(config: Config, signals: &mut Signals) -> Result<(), Failure> {
    let app = App::open(&config).await?;
    let lifetimes: BTreeMap<_, _> = app
        .refresher
        .fleet
        .iter()
        .filter_map(|member| {
            let view = member.view();
            let (tokens, _) = view.credential.live_tokens()?;
            Some((member.name.clone(), tokens.details.lifetime))
        })
        .collect();
    for warning in check::warnings(&config, |name| lifetimes.get(name).copied())? {
        warn!("{warning}");
    }
    let running = app.start(&config).await?;
    let deadline = config.server.shutdown_timeout;
    // The fleet has taken from it what it needs; for many credentials it is large.
    drop((config, lifetimes));
    signals.next().await;
    stop(running, deadline, signals).await
}

/// Drains; a second signal, or the deadline, ends it at once.
pub(super) async fn stop(
    running: Running,
    deadline: Duration,
    signals: &mut Signals,
) -> Result<(), Failure> {
    info!("stopping: no new runs, runs under way finish");
    tokio::select! {
        drained = running.drain(deadline) => {
            if drained {
                info!("stopped");
                return Ok(());
            }
            warn!("stopped by the deadline: refreshes under way are made again at the next start");
        }
        () = signals.next() => warn!("stopped by a second signal: refreshes under way are made again at the next start"),
    }
    Err(Failure::Aborted)
}

/// The signals that mean "stop".
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on, so that none is missed while the service starts.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
