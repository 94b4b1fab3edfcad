//! `perennial status`: how each credential stands, from the running service or the store.

use super::{Failure, control::Service};
use crate::{
    app::App,
    clock::{Clock, SystemClock},
    config::Config,
    status,
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
        None => {
            let app = App::open(config).await?;
            let statuses = status::of(&app.refresher.fleet, app.refresher.clock.now());
            app.finish().await;
            statuses
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&statuses)?);
        return Ok(());
    }
    let now = SystemClock::new().now().wall;
    print!("{}", status::table(&statuses, now));
    if service.is_none() {
        println!("\nthe service is not running: nothing is refreshed until it starts");
    }
    Ok(())
}
