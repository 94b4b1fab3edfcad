//! `perennial refresh NAME`: now, by the running service or without one.

use reqwest::Method;
use tracing::warn;

use super::{Failure, control::Service, known, print, serve::Signals};
use crate::{
    app::App,
    config::Config,
    http::control,
    name::Name,
    refresh::{Cause, Outcome},
};

pub(super) async fn run(name: &Name, config: &Config) -> Result<(), Failure> {
    known(name, config)?;
    if let Some(service) = Service::at(&config.socket_path()).await? {
        let path = format!("/api/v1/credentials/{name}/refresh");
        let said = service.change(Method::POST, &path, String::new()).await?;
        return Ok(print(&format!("{said}\n"))?);
    }
    let mut signals = Signals::new()?;
    let app = App::open(config).await?;
    app.import_files(config).await?;
    app.start_deliveries();
    let member = app
        .refresher
        .fleet
        .get(name.as_str())
        .expect("it is configured")
        .clone();
    let refreshed = app.refresher.refresh(&member, Cause::Forced);
    let outcome = finish(refreshed, &mut signals).await?;
    app.finish().await;
    let (status, message) = control::outcome(&member, &outcome);
    if !status.is_success() {
        return Err(anyhow::anyhow!(message).into());
    }
    Ok(print(&format!("{message}\n"))?)
}

/// A refresh token may have been spent, so the first signal waits for the answer.
async fn finish(
    refreshed: impl Future<Output = Outcome>,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    tokio::pin!(refreshed);
    tokio::select! {
        outcome = &mut refreshed => return Ok(outcome),
        () = signals.next() => {
            warn!("waiting for the answer, which may hold a new refresh token; a second signal gives it up");
        }
    }
    tokio::select! {
        outcome = refreshed => Ok(outcome),
        () = signals.next() => Err(Failure::Aborted),
    }
}
