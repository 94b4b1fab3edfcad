//! x
pub mod clock;
pub mod config;
pub mod credential;
pub mod demo;
pub mod http;
pub mod name;
pub mod oauth;
pub mod provider;
pub mod schedule;
pub mod scheduler;
pub mod secret;
pub mod sinks;
pub mod store;
pub mod telemetry;
