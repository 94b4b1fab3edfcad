//! x
pub mod clock;
pub mod config;
pub mod credential;
pub mod demo;
pub mod events;
pub mod fleet;
pub mod http;
pub mod job;
pub mod jobs;
pub mod metrics;
pub mod name;
pub mod oauth;
pub mod provider;
pub mod refresh;
pub mod runner;
pub mod schedule;
pub mod scheduler;
pub mod secret;
pub mod sinks;
pub mod store;
pub mod telemetry;

/// The commit that this was built from, or `unknown`.
pub const COMMIT: &str = match option_env!("PERENNIAL_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
