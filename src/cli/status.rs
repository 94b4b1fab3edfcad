//! `perennial status`: how each credential stands, from the running service or the store.

use chrono::Utc;

use super::{Failure, control::Service, print};
use crate::{app::App, config::Config, status};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let service = Service::at(&config.socket_path()).await?;
    let statuses: Vec<status::Status> = match &service {
        Some(service) => service.get("/api/v1/credentials").await?,
        None => {
            let app = App::open(config).await?;
            let statuses = status::of(&app.refresher.fleet, app.refresher.clock.now());
            app.finish().await;
            statuses
        }
    };
    if args.json {
        let json = serde_json::to_string_pretty(&statuses)?;
        return Ok(print(&format!("{json}\n"))?);
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "a command for a person, who asks about now"
    )]
    let now = Utc::now();
    let mut text = status::table(&statuses, now);
    if service.is_none() {
        text.push_str("\nthe service is not running: nothing is refreshed until it starts\n");
    }
    Ok(print(&text)?)
}
