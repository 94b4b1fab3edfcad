//! The command line: one file per command.

mod check;
mod control;
mod demo;
mod health;
mod import;
mod refresh;
mod serve;
mod shipped;
mod status;

use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::{demo::Ended, serve::Signals};
use crate::{
    config::{self, Config, Found, Loaded},
    name::Name,
    plugins,
    refresh::ImportError,
    store::StoreError,
    telemetry,
};

/// Keeps OAuth 2.0 tokens alive, shows them, and warns days ahead when a person must act.
#[derive(Parser)]
#[command(name = "perennial", version = crate::VERSION, after_help = EXIT_CODES)]
pub struct Cli {
    /// The configuration [default: PERENNIAL_CONFIG or else perennial.toml, if there is such a file]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0    done
  1    it did not work; the message says why
  64   bad command line or configuration
  69   the store cannot be used: in use, damaged, or the wrong key
  130  stopped by a second signal, or by the deadline, before runs under way had finished";

#[derive(Subcommand)]
enum Command {
    /// Keep the configured credentials alive until stopped by SIGTERM or Ctrl-C
    Serve {
        /// Run the demo when nothing at all is configured
        #[arg(long)]
        or_demo: bool,
    },
    /// Keep three made-up credentials alive against a built-in authorization server
    Demo(demo::Args),
    /// Ask the service on this machine whether it works, for the health check of a container
    Health(health::Args),
    /// Check the configuration, and show when each job will run
    Check,
    /// Put a refresh token that you have into the store
    Import(import::Args),
    /// Show how each credential stands
    Status(status::Args),
    /// Refresh one credential now
    Refresh {
        /// The credential
        name: Name,
    },
    /// Write the Grafana dashboards of this version into a folder
    Dashboards(shipped::Dashboards),
    /// Write the alert rules of this version, their runbook and an Alertmanager configuration
    Alerts(shipped::Alerts),
    /// Print a complete example configuration with every key explained
    Config,
}

/// Why a command ended badly.
#[derive(Debug)]
enum Failure {
    /// Each problem is printed on its line.
    Configuration(config::Errors),
    /// The command line or a variable asks for something that there is not.
    Usage(anyhow::Error),
    /// The message is printed.
    Other(anyhow::Error),
    /// Everything was said already.
    Aborted,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Runs the command that the arguments of this process name.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr();
            let _ = error.print();
            return if asked_for {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(64)
            };
        }
    };
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(errors)) => {
            complain(format_args!("{errors}"));
            ExitCode::from(64)
        }
        Err(Failure::Usage(error)) => {
            complain(format_args!("perennial: {error:#}"));
            ExitCode::from(64)
        }
        Err(Failure::Other(error)) => {
            complain(format_args!("perennial: {error:#}"));
            ExitCode::from(if is_of_the_store(&error) { 69 } else { 1 })
        }
        Err(Failure::Aborted) => ExitCode::from(130),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let telemetry = telemetry::start(env!("CARGO_PKG_VERSION")).map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let result = command(cli).await;
        telemetry.flush_and_stop(Duration::from_secs(3)).await;
        result
    });
    // Whatever still runs has had its deadline.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn command(cli: Cli) -> Result<(), Failure> {
    let file = cli.config.as_deref();
    let load = || config::load(file, &plugins::kinds()).map_err(Failure::Configuration);
    let look = || config::load_or_nothing(file, &plugins::kinds());
    let load_or_nothing = || look().map_err(Failure::Configuration);
    match cli.command {
        Command::Serve { or_demo: false } => {
            let mut signals = Signals::new()?;
            serve::run(loaded(load()?), &mut signals).await
        }
        Command::Serve { or_demo: true } => {
            let mut signals = Signals::new()?;
            let found = match load_or_nothing()? {
                Found::Configuration(found) => found,
                Found::Nothing(server) => {
                    match demo::run_unasked(server, look, &mut signals).await? {
                        Ended::Configured(found) => found,
                        Ended::Stopped => return Ok(()),
                    }
                }
            };
            serve::run(loaded(*found), &mut signals).await
        }
        Command::Demo(args) => demo::run(args).await,
        Command::Health(args) => health::run(args, load_or_nothing).await,
        Command::Check => check::run(&load()?),
        Command::Import(args) => import::run(args, &load()?.config).await,
        Command::Status(args) => status::run(args, &load()?.config).await,
        Command::Refresh { name } => refresh::run(&name, &load()?.config).await,
        Command::Dashboards(args) => Ok(shipped::dashboards(&args)?),
        Command::Alerts(args) => Ok(shipped::alerts(&args)?),
        Command::Config => {
            print(&config::example(&plugins::kinds()))?;
            Ok(())
        }
    }
}

/// Prints to standard output. A reader who has seen enough, as in `| head -1`, has closed it:
/// that is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    match printed.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("standard output"),
    }
}

/// Prints to standard error, where nobody may be listening.
fn complain(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

fn is_of_the_store(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some()
        || matches!(error.downcast_ref(), Some(ImportError::Store(_)))
}

/// The configuration, its warnings logged: once, by the service, and not by each command beside it.
fn loaded(loaded: Loaded) -> Config {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    loaded.config
}

/// Where a service that listens on this address is reached from its own machine.
fn from_here(listen: SocketAddr) -> SocketAddr {
    let host = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(host, listen.port())
}

/// The credential of that name, or which ones there are.
fn known<'a>(name: &Name, config: &'a Config) -> Result<&'a config::Credential, Failure> {
    config.credentials.get(name).ok_or_else(|| {
        let names: Vec<&str> = config.credentials.keys().map(Name::as_str).collect();
        Failure::Usage(match names.as_slice() {
            [] => anyhow::anyhow!(
                "credential {name} is not configured, nor is any other; add [credentials.{name}]"
            ),
            _ => anyhow::anyhow!(
                "credential {name} is not configured; there is: {}",
                names.join(", ")
            ),
        })
    })
}
