//! x
pub mod clock;
pub mod credential;
pub mod demo;
pub mod name;
pub mod oauth;
pub mod secret;
pub mod schedule;
pub mod scheduler;
pub mod store;
pub mod telemetry;
