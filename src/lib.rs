//! Perennial keeps OAuth 2.0 tokens alive: it refreshes each one well before it expires, saves
//! the answer durably before anything else, shows how all of them stand, and says when only a
//! person can help.
//!
//! # The path
//! ```text
//! config -> app (the only wiring)
//! tick:     scheduler -> runner -> jobs/token_refresh -> refresh -> oauth -> store -> sinks
//! edges:    cli, http, telemetry call inwards; nothing inside imports them
//! everyone: may call events (facts to report), clock, secret
//! ```
//! To understand the program, read [`refresh`]: the path of one refresh, top to bottom. To
//! understand *when*, read [`credential::policy`]: pure functions without clock or I/O.
//!
//! # Layout
//! - [`config`]: types whose doc comments are the reference that users read; every error at once.
//! - [`app`]: from a configuration to a running service, and to its end.
//! - [`cli`]: one file per command. [`demo`]: the authorization server of `perennial demo`.
//! - [`job`]: all that the author of a job must read. [`jobs`]: one file per kind of job.
//!   [`plugins`]: the one list of kinds.
//! - [`schedule`]: cron texts in real time zones. [`scheduler`]: ticks. [`runner`]: one run and
//!   all around it (overlap, retries, panics, history, drain).
//! - [`credential`], [`fleet`], [`forecast`]: the domain, all of it in memory, and what is next.
//! - [`refresh`]: claim, intend, exchange, save, publish, deliver, settle. [`provider`]: what is
//!   shared by the credentials of one authorization server.
//! - [`oauth`]: the token endpoint, one file per grant. [`store`]: what must survive.
//!   [`sinks`]: where access tokens are delivered.
//! - [`events`]: every fact that is reported. [`metrics`], [`telemetry`], [`status`], [`http`]:
//!   how it is seen. [`shipped`]: dashboards and alerts, inside the binary.
//! - [`clock`], [`name`], [`secret`], [`tls`]: time that may be stepped, names that need no
//!   escaping, text that is never printed, who does the cryptography.
//! - [`crash`]: where a debug build can be made to die, for the tests.
//!
//! Why things are as they are: `docs/decisions/`.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod credential;
pub mod demo;
pub mod events;
pub mod fleet;
pub mod forecast;
pub mod http;
pub mod job;
pub mod jobs;
pub mod metrics;
pub mod name;
pub mod oauth;
pub mod plugins;
pub mod provider;
pub mod refresh;
pub mod runner;
pub mod schedule;
pub mod scheduler;
pub mod secret;
pub mod shipped;
pub mod sinks;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;

/// The commit that this was built from.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
