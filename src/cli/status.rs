//! `perennial status`: how each credential stands, from the running service or the store.

use std::sync::Arc;

use super::{Failure, control::Service, print};
use crate::{
    app::{self, App},
    clock::{Clock, SystemClock},
    config::Config,
    status,
    store::sqlite::SqliteStore,
};

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
        // To look must not make anything: the store comes with the first start.
        None if SqliteStore::is_absent(&config.store.sqlite_path()) => {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            status::of(&app::fleet(config, Vec::new(), &clock)?, clock.now())
        }
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
    let now = SystemClock::new().now().wall;
    let mut text = status::table(&statuses, now);
    if service.is_none() {
        text.push_str("\nthe service is not running: nothing is refreshed until it starts\n");
    }
    Ok(print(&text)?)
}
