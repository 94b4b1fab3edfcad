//! `perennial demo`: the whole service with nothing configured, against a small authorization
//! server on loopback that rotates refresh tokens, fails now and then, and loses answers.

mod trouble;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::anyhow;
use base64::Engine;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::trouble::{TROUBLES, Trouble};
use super::{Failure, serve, serve::Signals};
use crate::{
    app::App,
    config::{self, Config, Found, Input, Loaded, Server},
    demo::authorization_server::{AuthorizationServer, Behaviour, CLIENT_SECRET},
    http::listener::BindError,
    plugins,
    secret::Secret,
};

#[derive(clap::Args, Default)]
pub(super) struct Args {
    /// Where to serve /metrics and the status page [default: 127.0.0.1:9464]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Show trouble too: a login that was ended, a refused client, a provider that goes down
    #[arg(long)]
    troubled: bool,
}

/// A container need not be started anew when its configuration is there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The demo's client at every server.
const CLIENT: &str = "demo";

/// How a demo ended.
pub(super) enum Ended {
    /// Somebody wanted it to.
    Stopped,
    /// There is this to serve now.
    Configured(Box<Loaded>),
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let never = std::future::pending();
    demonstrate(args, Server::default(), never, &mut Signals::new()?).await?;
    Ok(())
}

/// The demo in place of a service for which nothing is configured, until `look` finds that
/// something is.
pub(super) async fn run_unasked(
    server: Server,
    look: impl Fn() -> Result<Found, config::Errors>,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let environment = config::environment().map_err(Failure::Configuration)?;
    let file = config::default_file(&environment);
    info!(
        file,
        "nothing is configured, so this is the demo; for tokens of your own write that file (\"perennial config\" prints one with every key explained), or set YOTO_CLIENT_ID"
    );
    let configured = async {
        let mut said = String::new();
        let found = loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            match look() {
                Ok(Found::Nothing(_)) => {}
                Ok(Found::Configuration(found)) => break found,
                // Somebody may be in the middle of writing it.
                Err(errors) if errors.to_string() == said => {}
                Err(errors) => {
                    said = errors.to_string();
                    warn!("the demo goes on until this is mended: {said}");
                }
            }
        };
        info!(file, "there is a configuration: the demo ends");
        found
    };
    demonstrate(Args::default(), server, configured, signals).await
}

/// `settings` say how to serve, where the arguments do not.
async fn demonstrate(
    args: Args,
    mut settings: Server,
    configured: impl Future<Output = Box<Loaded>>,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    settings.listen = args.listen.unwrap_or(settings.listen);
    let folder = Folder::new()?;
    let stop = CancellationToken::new();
    let server = AuthorizationServer::start(Behaviour::default(), stop.clone()).await?;
    let trouble = match args.troubled {
        true => Some(Trouble::start(&stop).await?),
        false => None,
    };
    let config = configuration(settings, &server, trouble.as_ref(), &folder.0)?;
    let app = App::open(&config).await?;
    for name in ["living-room", "kitchen"] {
        log_in(&app, name, server.new_grant(CLIENT)).await?;
    }
    if let Some(trouble) = trouble {
        trouble.begin(&app, &server).await?;
    }
    let running = app.start(&config).await.map_err(|error| {
        let taken = error.is::<BindError>();
        let hint = "for example: perennial demo --listen 127.0.0.1:0";
        if taken {
            anyhow!("{error:#}, {hint}")
        } else {
            error
        }
    })?;
    let address = super::from_here(running.address);
    let troubles = match args.troubled {
        true => TROUBLES,
        false => "",
    };
    super::print(&format!(
        "\nThree credentials are kept alive against a small authorization server on this machine.\n\
         Their tokens live for a minute and are refreshed after about 40 seconds. The server\n\
         rotates refresh tokens, is unavailable now and then, and sometimes loses an answer.\n{troubles}\n\
         \x20 http://{address}/          how they stand\n\
         \x20 http://{address}/metrics   what Prometheus scrapes\n\n\
         Ctrl-C ends it; nothing is left behind.\n\n"
    ))?;
    let ended = tokio::select! {
        () = signals.next() => Ended::Stopped,
        found = configured => Ended::Configured(found),
    };
    let stopped = serve::stop(running, config.server.shutdown_timeout, signals).await;
    stop.cancel();
    stopped.map(|()| ended)
}

/// What a login would bring.
async fn log_in(app: &App, name: &str, refresh_token: Secret) -> anyhow::Result<()> {
    let member = app
        .refresher
        .fleet
        .get(name)
        .expect("it is configured")
        .clone();
    app.refresher.import(&member, refresh_token).await?;
    Ok(())
}

/// What a user would write, so that the demo goes the way of every configuration.
fn configuration(
    settings: Server,
    server: &AuthorizationServer,
    trouble: Option<&Trouble>,
    folder: &Path,
) -> anyhow::Result<Config> {
    let (token_url, folder) = (server.token_url(), folder.display());
    // In memory alone: a key file beside the database would be worth a warning.
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    let key = base64::prelude::BASE64_STANDARD.encode(key);
    let mut text = format!(
        r#"
        [store]
        url = "sqlite:{folder}/demo.db"
        key = "{key}"

        [providers.players]
        token_url = "{token_url}"
        client_id = "{CLIENT}"

        [providers.machines]
        token_url = "{token_url}"
        client_id = "{CLIENT}"
        client_secret = "{CLIENT_SECRET}"

        [credentials.living-room]
        provider = "players"
        sinks = [{{ kind = "file", path = "{folder}/living-room.token" }}]

        [credentials.kitchen]
        provider = "players"

        [credentials.robot]
        provider = "machines"
        grant = "client_credentials"

        [jobs.token-refresh]
        kind = "token_refresh"
        schedule = "@hourly"
        "#
    );
    text.extend(trouble.map(Trouble::configuration));
    let environment = config::Environment::default();
    let read = |path: &Path| std::fs::read_to_string(path);
    let input = Input {
        file: Some(("demo", &text)),
        env: &environment,
        read: &read,
    };
    let loaded =
        config::resolve(&input, &plugins::kinds()).map_err(|errors| anyhow!("{errors}"))?;
    Ok(Config {
        server: settings,
        ..loaded.config
    })
}

/// A folder that only we can read, and that goes when the demo does.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let number = getrandom::u64()?;
        let path = std::env::temp_dir().join(format!("perennial-demo-{number:016x}"));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
