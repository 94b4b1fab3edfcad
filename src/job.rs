//! All that the author of a job must read.
//!
//! ```
//! use perennial::job::{Job, JobError, Run, Summary};
//!
//! struct Greet;
//!
//! #[async_trait::async_trait]
//! impl Job for Greet {
//!     async fn run(&self, run: &Run) -> Result<Summary, JobError> {
//!         Ok(Summary::new(format!("hello from {}", run.job)))
//!     }
//! }
//! ```
//!
//! Schedule, overlap, jitter, time-out, retries, panics, metrics, traces and history are the
//! host's business: see [`crate::runner`].

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{clock::Timestamp, name::Name};

/// Something that runs when its schedule fires, when a person asks, or when it finds itself
/// due.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// Does it once. When `run.cancel` is cancelled, come to an end soon: 10 s later the
    /// future is dropped wherever it stands.
    async fn run(&self, run: &Run) -> Result<Summary, JobError>;

    /// Resolves when the job wants to run beside its schedule. Called again and again, by
    /// one task; must lose nothing when dropped. By default: never.
    async fn wake(&self) {
        std::future::pending().await
    }
}

/// One execution of a job.
#[derive(Clone, Debug)]
pub struct Run {
    /// The job.
    pub job: Name,
    /// What started it.
    pub trigger: Trigger,
    /// The time that the schedule named; for other triggers, when it was wanted.
    pub scheduled_at: Timestamp,
    /// 0, and one more with each retry.
    pub attempt: u32,
    /// Cancelled when the run has taken too long.
    pub cancel: CancellationToken,
}

/// What started a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Its schedule fired.
    Schedule,
    /// Its schedule had fired while the service was down.
    Misfire,
    /// [`Job::wake`] resolved.
    Due,
    /// A person.
    Manual,
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 4] = [Self::Schedule, Self::Misfire, Self::Due, Self::Manual];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Misfire => "misfire",
            Self::Due => "due",
            Self::Manual => "manual",
        }
    }
}

/// What a run did, in one line for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary(String);

impl Summary {
    /// One line, without secrets.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a run failed, and what happens next.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct JobError {
    message: String,
    retry: bool,
}

impl JobError {
    /// It may work in a moment: the run is repeated, as often as the job's `retries` say.
    pub fn retry(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            retry: true,
        }
    }

    /// It will not work by being repeated.
    pub fn fail(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            retry: false,
        }
    }

    /// Whether another attempt makes sense.
    pub fn wants_retry(&self) -> bool {
        self.retry
    }
}
