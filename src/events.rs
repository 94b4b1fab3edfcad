//! Every fact that is worth telling: one struct each, whose `emit` writes the log line (which
//! is the span's event too) and feeds the metric. Business code says what happened in one
//! line, and nothing else logs.
//!
//! Fields are names, numbers and closed enums; never a token, a URL or a body.

use std::time::Duration;

use tracing::{error, info, warn};

use crate::{
    clock::Timestamp,
    credential::{Reason, Withheld, policy},
    metrics::{Metrics, StoreOperation},
    name::Name,
};

fn seconds(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_millis(duration.as_millis() as u64));
    // "5s295ms": a value without a space needs no quotes on a terminal.
    text.to_string().replace(' ', "")
}

/// New tokens are durable.
pub struct TokenRefreshed<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// Its provider.
    pub provider: &'a Name,
    /// The new version.
    pub version: u64,
    /// How long the new access token lives.
    pub lifetime: Duration,
    /// How long the refresh took.
    pub took: Duration,
    /// What stood before, if it was trouble.
    pub recovered_after: Option<u32>,
}

impl TokenRefreshed<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.refresh(self.provider.as_str(), "success", self.took);
        let Self {
            credential,
            provider,
            version,
            ..
        } = self;
        let (lives, took) = (seconds(self.lifetime), seconds(self.took));
        match self.recovered_after {
            _ if policy::is_too_short(self.lifetime) => {
                warn!(%credential, %provider, version, %lives, %took, "token refreshed, but it dies too soon to be kept alive; the provider is asked less and less often");
            }
            None => info!(%credential, %provider, version, %lives, %took, "token refreshed"),
            Some(failures) => {
                info!(%credential, %provider, version, %lives, %took, failures, "token refreshed, recovered");
            }
        }
    }
}

/// An attempt failed.
pub struct RefreshFailed<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// Its provider.
    pub provider: &'a Name,
    /// Why.
    pub reason: Reason,
    /// A code or a status.
    pub detail: &'a str,
    /// Failures in a row.
    pub failures: u32,
    /// When it is tried again; `None` when a person must act first.
    pub retry_in: Option<Duration>,
    /// The server may have rotated without our having the answer.
    pub doubtful: bool,
    /// How long the attempt took.
    pub took: Duration,
}

impl RefreshFailed<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.refresh(self.provider.as_str(), self.reason.as_str(), self.took);
        let Self {
            credential,
            provider,
            detail,
            failures,
            doubtful,
            ..
        } = self;
        let reason = self.reason.as_str();
        let retry_in = self.retry_in.map_or("never".into(), seconds);
        match self.reason {
            Reason::NeedsLogin if *doubtful => {
                error!(%credential, %provider, detail, "needs login: an answer was lost after the provider may have rotated the refresh token, and the provider does not accept the old one again");
            }
            Reason::NeedsLogin => {
                error!(%credential, %provider, detail, "needs login: log in again, then import the new refresh token");
            }
            Reason::Misconfigured => {
                error!(%credential, %provider, detail, failures, %retry_in, "misconfigured: the provider refuses the client or the request");
            }
            _ if *doubtful => {
                warn!(%credential, %provider, %reason, detail, failures, %retry_in, doubtful, "refresh failed: no usable answer came, and the provider may have replaced the refresh token; the same one is sent again");
            }
            _ => {
                warn!(%credential, %provider, %reason, detail, failures, %retry_in, doubtful, "refresh failed; it is tried again");
            }
        }
    }
}

/// Another process, or a person, had saved newer tokens; they are used.
pub struct TokensAdopted<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// The version adopted.
    pub version: u64,
}

impl TokensAdopted<'_> {
    /// Tells it.
    pub fn emit(&self) {
        let Self {
            credential,
            version,
        } = self;
        info!(%credential, version, "newer tokens found in the store");
    }
}

/// Tokens that the store has are not used.
pub struct TokensWithheld<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// Why.
    pub why: &'a Withheld,
}

impl TokensWithheld<'_> {
    /// Tells it.
    pub fn emit(&self) {
        let Self { credential, why } = self;
        let (detail, cure) = (why.as_str(), why.cure(credential));
        error!(%credential, detail, "misconfigured: {cure}");
    }
}

/// A row of the store cannot be any credential's.
pub struct RowIgnored<'a> {
    /// What stands where its name should be.
    pub name: &'a str,
}

impl RowIgnored<'_> {
    /// Tells it.
    pub fn emit(&self) {
        let Self { name } = self;
        error!(row = ?name, "a row of the store is ignored: its name is damaged or was changed from outside; log in again for the credential that it was of");
    }
}

/// New tokens could not be written yet. They are kept in memory and tried again.
pub struct SaveFailed<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// What the store said.
    pub error: &'a crate::store::StoreError,
    /// When it is tried again.
    pub retry_in: Duration,
}

impl SaveFailed<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.store_error(StoreOperation::Save);
        let Self {
            credential, error, ..
        } = self;
        let retry_in = seconds(self.retry_in);
        error!(%credential, %error, %retry_in, "new tokens are not saved yet: free the disk, and do not stop this process");
    }
}

/// The store failed where nothing is lost by it.
pub struct StoreFailed<'a> {
    /// The operation.
    pub operation: StoreOperation,
    /// What was to be written or read.
    pub what: &'a str,
    /// What the store said.
    pub error: &'a crate::store::StoreError,
}

impl StoreFailed<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.store_error(self.operation);
        let Self { what, error, .. } = self;
        error!(%error, what, "the store failed");
    }
}

/// A token came to a sink, or did not.
pub struct Delivered<'a> {
    /// The credential.
    pub credential: &'a Name,
    /// The kind of sink.
    pub sink: &'static str,
    /// The version.
    pub version: u64,
    /// What went wrong, and when it is tried again.
    pub failure: Option<(&'a crate::sinks::SinkError, Duration)>,
}

impl Delivered<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.sink_delivery(self.sink, self.failure.is_none());
        let Self {
            credential,
            sink,
            version,
            ..
        } = self;
        match &self.failure {
            None => tracing::debug!(%credential, sink, version, "delivered"),
            Some((error, retry_in)) => {
                let retry_in = seconds(*retry_in);
                warn!(%credential, sink, version, %error, %retry_in, "delivery failed");
            }
        }
    }
}

/// A run of a job ended.
pub struct RunEnded<'a> {
    /// The job.
    pub job: &'a Name,
    /// What started it.
    pub trigger: &'static str,
    /// How it ended.
    pub outcome: &'static str,
    /// One line for people.
    pub summary: &'a str,
    /// How long it took.
    pub took: Duration,
}

impl RunEnded<'_> {
    /// Tells it.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.job_run(self.job.as_str(), self.took);
        let Self {
            job,
            trigger,
            outcome,
            summary,
            ..
        } = self;
        let took = seconds(self.took);
        match *outcome {
            // What a run did is logged by itself; that it went well is for the history.
            "success" => tracing::debug!(%job, trigger, summary, %took, "run ended"),
            // A job that woke up by itself has told of each thing that it found.
            "failure" if self.trigger == "due" => {
                tracing::debug!(%job, trigger, outcome, summary, %took, "run ended");
            }
            _ => warn!(%job, trigger, outcome, summary, %took, "run ended"),
        }
    }
}

/// Firings of a schedule did not lead to a run.
pub struct RunsMissed<'a> {
    /// The job.
    pub job: &'a Name,
    /// Why.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// The last of them.
    pub scheduled_at: Timestamp,
}

impl RunsMissed<'_> {
    /// Tells it.
    pub fn emit(&self) {
        let Self {
            job,
            reason,
            count,
            scheduled_at,
        } = self;
        warn!(%job, reason, count, %scheduled_at, "firings missed");
    }
}
