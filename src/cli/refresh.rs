//! `perennial refresh NAME`: now, by the running service or without one.

use reqwest::Method;

use super::{Failure, control::Service, known};
use crate::{app::App, config::Config, http::control, name::Name, refresh::Cause};

pub(super) async fn run(name: &Name, config: &Config) -> Result<(), Failure> {
    known(name, config)?;
    if let Some(service) = Service::at(&config.socket_path()).await? {
        let path = format!("/api/v1/credentials/{name}/refresh");
        println!(
            "{}",
            service.change(Method::POST, &path, String::new()).await?
        );
        return Ok(());
    }
    let app = App::open(config).await?;
    app.start_deliveries();
    let member = app
        .refresher
        .fleet
        .get(name.as_str())
        .expect("it is configured")
        .clone();
    let outcome = app.refresher.refresh(&member, Cause::Forced).await;
    app.finish().await;
    let (status, message) = control::outcome(&member, &outcome);
    if !status.is_success() {
        return Err(anyhow::anyhow!(message).into());
    }
    println!("{message}");
    Ok(())
}
