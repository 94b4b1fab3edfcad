//! `perennial health`: one question to the service on this machine. A container image has no
//! shell and no curl to ask it with.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow};
use reqwest::{Client, StatusCode, Url, redirect};

use super::{Failure, from_here};
use crate::{
    config::{self, Found},
    tls,
};

/// An answer takes a millisecond; whoever runs health checks waits longer, and hears why.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(super) struct Args {
    /// Ask this address [default: /healthz where the configured service, or the demo, listens]
    #[arg(long)]
    url: Option<Url>,
}

pub(super) async fn run(
    args: Args,
    load: impl FnOnce() -> Result<Found, Failure>,
) -> Result<(), Failure> {
    let url = match args.url {
        Some(url) => url,
        None => default_url(load)?,
    };
    tls::provide();
    let http = Client::builder()
        .timeout(PATIENCE)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()?;
    let answer = http.get(url.clone()).send().await;
    let status = answer
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("{url} does not answer"))?
        .status();
    if status == StatusCode::OK {
        Ok(())
    } else {
        Err(anyhow!("{url} answered {status}").into())
    }
}

fn default_url(load: impl FnOnce() -> Result<Found, Failure>) -> Result<Url, Failure> {
    let listen = match listen_of_the_environment() {
        Some(listen) => listen,
        None => match load()? {
            Found::Configuration(found) => found.config.server.listen,
            Found::Nothing(server) => server.listen,
        },
    };
    if listen.port() == 0 {
        return Err(anyhow!("the service listens on any free port; say with --url which").into());
    }
    Ok(format!("http://{}/healthz", from_here(listen)).parse()?)
}

/// It wins over the file. So a container, whose image sets it, stays healthy while somebody
/// edits the configuration that it has read long ago.
fn listen_of_the_environment() -> Option<SocketAddr> {
    let environment = config::environment().ok()?;
    environment.get("PERENNIAL_SERVER__LISTEN")?.parse().ok()
}
