//! The HTTP edge: [`routes`] for everybody, [`control`] for our own command line, and
//! [`exposition`], what `/metrics` says of credentials and jobs.
//!
//! Beneath them: [`listener`] binds, [`accept`] serves warp routes on it, [`body`] and [`gzip`]
//! are what the routes need and warp does not give.

pub mod accept;
pub mod body;
pub mod control;
pub mod exposition;
pub mod gzip;
pub mod listener;
pub mod routes;
mod runbook;

#[cfg(test)]
mod testing;
