//! What happened in a soak, as the server and its surroundings saw it. Nothing in here comes from
//! the service itself but how much memory it says that it takes.

use std::time::Duration;

/// Time since the server started.
pub type At = Duration;

/// Everything, each sort in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub requests: Vec<Request>,
    /// What a reader of the delivered files read and could not use.
    pub stale_reads: Vec<StaleRead>,
    /// The service was not there: from its end until it listened again.
    pub down: Vec<Span>,
    /// The service stood still (SIGSTOP).
    pub paused: Vec<Span>,
    /// Its wall clock was set.
    pub jumps: Vec<At>,
    /// Of each process that lived long enough to tell.
    pub memory: Vec<Memory>,
}

/// A token request.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it had come.
    pub at: At,
    /// When the service knew how it ended, unless it was not there.
    pub ended: At,
    pub provider: &'static str,
    pub family: usize,
    /// How long the access tokens of its family live.
    pub life: Duration,
    /// The refresh token that it spent.
    pub token: String,
    pub answer: Answer,
}

/// What a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// New tokens, whole.
    Tokens { next: String },
    /// Nothing of use; perhaps with the wish to be left alone for so long.
    Fault {
        what: &'static str,
        wait: Option<Duration>,
    },
    /// `invalid_grant`.
    Refused,
}

/// A time without the service.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: At,
    pub to: At,
}

/// An access token that was dead when it was read.
#[derive(Clone, Debug)]
pub struct StaleRead {
    pub at: At,
    pub provider: &'static str,
    pub family: usize,
    pub died: At,
}

/// Resident bytes of one process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub warm: f64,
    pub end: f64,
}
