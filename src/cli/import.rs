//! `perennial import`: a refresh token that exists already. Never on the command line, where
//! every process of the machine could read it.

use std::{io::Read, path::PathBuf};

use anyhow::Context;
use reqwest::Method;

use super::{Failure, control::Service, known, print};
use crate::{app, app::App, config::Config, name::Name, secret::Secret};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The credential
    name: Name,
    /// A file with one line, the refresh token; - reads standard input
    #[arg(long, value_name = "FILE")]
    refresh_token_file: PathBuf,
}

pub(super) async fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let name = &args.name;
    known(name, config)?;
    let token = if args.refresh_token_file.as_os_str() == "-" {
        let mut text = zeroize::Zeroizing::new(String::new());
        std::io::stdin().read_to_string(&mut text)?;
        Secret::from_line(&text).context("standard input")?
    } else {
        app::read_token(&args.refresh_token_file)?
    };
    if let Some(service) = Service::at(&config.socket_path()).await? {
        let path = format!("/api/v1/credentials/{name}/refresh-token");
        let said = service
            .change(Method::PUT, &path, token.expose().to_owned())
            .await?;
        return Ok(print(&format!("{said}\n"))?);
    }
    let app = App::open(config).await?;
    let member = app
        .refresher
        .fleet
        .get(name.as_str())
        .expect("it is configured")
        .clone();
    let imported = app.refresher.import(&member, token).await;
    app.finish().await;
    imported?;
    Ok(print(&format!(
        "{name}: refresh token saved; it is refreshed when the service starts\n"
    ))?)
}
