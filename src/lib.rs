//! x
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
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
pub mod sinks;
pub mod status;
pub mod store;
pub mod telemetry;

/// The commit that this was built from.
pub const COMMIT: &str = env!("BUILT_FROM_COMMIT");

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILT_FROM_COMMIT"),
    ")"
);
