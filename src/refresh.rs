//! The path of one refresh, top to bottom: claim, intend, exchange, save, publish, deliver,
//! settle.
//!
//! Two promises are kept here and nowhere else. A refresh token is sent by one task at a
//! time, whoever asks for the refresh. And once it is sent, nothing but the end of the
//! process stops this path before the answer is durable: it runs in a task of its own
//! (`refresh/flight.rs`), callers only wait for it, and a stop lets it finish.

mod flight;
mod import;

use std::{pin::pin, sync::Arc, time::Duration};

use chrono::TimeDelta;
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub use self::{
    flight::{Cause, Flight, Outcome},
    import::ImportError,
};
use crate::{
    clock::{Clock, Since},
    crash::{self, Step},
    credential::{
        Credential, Reason, TokenSet, Trouble, Withheld,
        policy::{self, delta},
    },
    events,
    fleet::{Fleet, Member},
    metrics::{Metrics, StoreOperation},
    oauth::GrantError,
    provider::breaker::Heard,
    secret::Secret,
    store::{Checkout, Lease, Record, Saved, Store, StoreError},
    telemetry,
};

/// After a new answer became doubtful, the same refresh token is sent again this soon:
/// servers that accept a replay do so for 30 s or more.
const REPLAY_AFTER: TimeDelta = TimeDelta::seconds(1);
/// The lease outlives the request by this much, for the save that follows it.
const LEASE_MARGIN: Duration = Duration::from_secs(30);
/// From here on an operator is told that new tokens are only in memory.
const SAVE_IS_SLOW: Duration = Duration::from_secs(1);

/// Refreshes members of a fleet.
pub struct Refresher {
    /// Who there is.
    pub fleet: Arc<Fleet>,
    /// Where tokens are kept.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// A random name of this process, for leases.
    pub owner: String,
    /// Every refresh under way; the service waits for them before it ends.
    pub tasks: TaskTracker,
    /// From here on nothing new is sent.
    pub stop: CancellationToken,
}

impl Refresher {
    /// Waits for a place at the provider, unless it is left alone or the service stops.
    async fn admit(&self, member: &Arc<Member>, cause: Cause) -> Outcome {
        let _slot = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Outcome::Stopped,
            slot = member.provider.slot() => slot,
        };
        let admitted = member.provider.admit(self.clock.now());
        if let Err(wait) = admitted
            && cause != Cause::Forced
        {
            return self.postpone(member, wait);
        }
        let (outcome, heard) = self.attempt(member).await;
        // One that was let past is not the probe, and must not speak for it.
        if let Some(heard) = heard
            && (admitted.is_ok() || heard != Heard::Nothing)
        {
            member.provider.report(self.clock.now(), heard);
        }
        let word = match &outcome {
            Outcome::Failed { reason, .. } => reason.as_str(),
            Outcome::Refreshed(_) => "success",
            _ => "nothing_sent",
        };
        let span = tracing::Span::current();
        span.record("outcome", word);
        if matches!(outcome, Outcome::Failed { .. }) {
            telemetry::mark_failed(&span);
        }
        outcome
    }

    /// The path itself, and what is still to be told of the provider's health.
    async fn attempt(&self, member: &Arc<Member>) -> (Outcome, Option<Heard>) {
        let started = Instant::now();
        let current = member.view().credential.clone();
        let endpoint = &member.provider.endpoint;
        let failed = async |lease, error| {
            let (outcome, heard) = self.fail(member, &current, lease, error, started).await;
            (outcome, Some(heard))
        };

        if let Some(why) = &current.withheld {
            return (withheld(why), Some(Heard::Nothing));
        }
        // Whatever can fail without the refresh token comes before it is touched.
        let form = match member.grant.request(&current) {
            Ok(form) => form,
            // It says what a person must do first; no attempt was made.
            Err(error) => {
                let (reason, detail) = (error.reason(), error.detail().to_owned());
                let outcome = Outcome::Failed {
                    reason,
                    detail,
                    retry_in: None,
                };
                return (outcome, Some(Heard::Nothing));
            }
        };
        let url = match endpoint.location.resolve(&endpoint.http).await {
            Ok(url) => url,
            Err(error) => return failed(None, error).await,
        };

        // The last moment to stop: from the claim on, this goes to its end.
        if self.stop.is_cancelled() {
            return (Outcome::Stopped, Some(Heard::Nothing));
        }

        crash::point(Step::Claiming);
        // Claim and intend, in one commit: it proves that the store can write, and a crash
        // from here on leaves a trace.
        let lease = self.lease(member);
        let checkout = self.store.checkout(&member.name, current.version, &lease);
        match self.timed(StoreOperation::Checkout, checkout).await {
            Ok(Checkout::Newer(record)) => {
                return (self.adopt(member, *record), Some(Heard::Nothing));
            }
            Ok(Checkout::Granted { buried: true }) => {
                let error = GrantError::NeedsLogin {
                    detail: "refresh_token_known_dead".into(),
                };
                let (outcome, _) = failed(Some(&lease), error).await;
                return (outcome, Some(Heard::Nothing));
            }
            Ok(Checkout::Granted { .. }) => {}
            Ok(Checkout::Busy { until }) => {
                let wait = (until - lease.taken_at).min(delta(lease.lasts));
                return (self.postpone(member, wait), Some(Heard::Nothing));
            }
            Err(error) => {
                events::StoreFailed {
                    operation: StoreOperation::Checkout,
                    what: "intent",
                    error: &error,
                }
                .emit(&self.metrics);
                let error = GrantError::unsent(Reason::Store, "nothing_sent");
                let (outcome, _) = failed(None, error).await;
                return (outcome, Some(Heard::Nothing));
            }
        }

        crash::point(Step::Claimed);
        // Exchange: the refresh token is spent here. Until the save below has ended, this
        // task is all that knows the new one.
        let (mut tokens, sent) = match endpoint
            .exchange(url, &form, &member.params, &current)
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                let GrantError::RefreshTokenAlone { tokens, .. } = &error else {
                    return failed(Some(&lease), error).await;
                };
                let tokens = TokenSet::clone(tokens);
                return self.keep(member, &current, tokens, error, started).await;
            }
        };
        tokens.details.provider = Some(member.provider.name.clone());
        crash::point(Step::Answered);
        // The provider is well, however long the save may take.
        member.provider.report(self.clock.now(), Heard::Answer);

        // Save, before anything else happens with them.
        let version = match self.save(member, &current, &tokens).await {
            Ok(version) => version,
            Err(newer) => return (self.adopt(member, *newer), None),
        };

        crash::point(Step::Saved);
        // Publish, and let the deliveries know; each is retried by itself.
        let lifetime = tokens.details.lifetime;
        {
            let mut view = member.view();
            view.succeeded(sent, lifetime);
            // An import may have come right after the save: then its version is newer.
            let seen = view.credential.version;
            if seen == current.version || seen < version {
                view.credential = Credential::renewed(version, tokens, sent);
            }
        }
        member.tell(version);
        events::TokenRefreshed {
            credential: &member.name,
            provider: &member.provider.name,
            version,
            lifetime,
            took: started.elapsed(),
            recovered_after: current
                .trouble
                .as_ref()
                .map(|(trouble, _)| trouble.failures),
        }
        .emit(&self.metrics);
        crash::point(Step::Published);
        (Outcome::Refreshed(version), None)
    }

    /// Keeps a refresh token that came alone: the one before it is spent, and the access token
    /// lives on. The attempt has failed all the same.
    async fn keep(
        &self,
        member: &Arc<Member>,
        current: &Credential,
        mut tokens: TokenSet,
        error: GrantError,
        started: Instant,
    ) -> (Outcome, Option<Heard>) {
        let retry_after = error.retry_after();
        tokens.details.provider = Some(member.provider.name.clone());
        crash::point(Step::Answered);
        let version = match self.save(member, current, &tokens).await {
            Ok(version) => version,
            Err(newer) => {
                let heard = Heard::Trouble { retry_after };
                return (self.adopt(member, *newer), Some(heard));
            }
        };
        crash::point(Step::Saved);
        let since = current.tokens.as_ref().map(|(_, since)| *since);
        let kept = Credential {
            version,
            tokens: since.map(|since| (Arc::new(tokens), since)),
            doubtful: false,
            ..current.clone()
        };
        {
            let mut view = member.view();
            let seen = view.credential.version;
            if seen == current.version || seen < version {
                view.credential = kept.clone();
            }
        }
        member.tell(version);
        // The save gave the lease back, and whoever holds none cannot settle.
        let lease = self.lease(member);
        let checkout = self.store.checkout(&member.name, version, &lease);
        let checkout = self.timed(StoreOperation::Checkout, checkout).await;
        let lease = matches!(checkout, Ok(Checkout::Granted { .. })).then_some(&lease);
        let (outcome, heard) = self.fail(member, &kept, lease, error, started).await;
        (outcome, Some(heard))
    }

    /// The right to refresh a member, from now on.
    fn lease(&self, member: &Member) -> Lease {
        Lease {
            owner: self.owner.clone(),
            taken_at: self.clock.now().wall,
            lasts: member.provider.timeout + LEASE_MARGIN,
        }
    }

    /// Saves for as long as it takes. There is nothing better to do: these tokens exist
    /// nowhere else. They yield only to another grant that somebody saved meanwhile, which
    /// is the error.
    async fn save(
        &self,
        member: &Member,
        before: &Credential,
        tokens: &TokenSet,
    ) -> Result<u64, Box<Record>> {
        let mut expected = before.version;
        let mut retry_in = Duration::from_millis(100);
        let mut unsaved = None;
        loop {
            let saved = self.store.save(&member.name, expected, tokens);
            let mut saved = pin!(self.timed(StoreOperation::Save, saved));
            let saved = match timeout(SAVE_IS_SLOW, &mut saved).await {
                Ok(saved) => saved,
                // A disk that hangs says nothing. The save goes on.
                Err(_) => {
                    unsaved.get_or_insert_with(|| self.metrics.unsaved());
                    saved.await
                }
            };
            let found = match saved {
                Ok(Saved::Version(version)) => return Ok(version),
                Ok(Saved::Conflict) => self.store.read(&member.name).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(Some(record)) if is_newer(&record, before) => return Err(Box::new(record)),
                // The token that we spent, imported once more, or a store put back to an
                // earlier state: ours are the successors.
                Ok(record) => {
                    expected = record.map_or(0, |record| record.version);
                    continue;
                }
                Err(error) => {
                    unsaved.get_or_insert_with(|| self.metrics.unsaved());
                    events::SaveFailed {
                        credential: &member.name,
                        error: &error,
                        retry_in,
                    }
                    .emit(&self.metrics);
                }
            }
            tokio::time::sleep(retry_in).await;
            retry_in = (retry_in * 2).min(Duration::from_secs(5));
        }
    }

    /// Settles a failed attempt: what it means, when the next one is.
    async fn fail(
        &self,
        member: &Arc<Member>,
        current: &Credential,
        lease: Option<&Lease>,
        error: GrantError,
        started: Instant,
    ) -> (Outcome, Heard) {
        let spends = member.grant.spends_refresh_token();
        // No person can log in for a client; and a login that is wanted before anything
        // was sent is no answer of the server.
        let (mut error, mut declared_dead) = match error {
            GrantError::NeedsLogin { detail } if !spends => {
                let retry_after = None;
                let error = GrantError::Misconfigured {
                    detail,
                    retry_after,
                };
                (error, false)
            }
            error => {
                let dead = lease.is_some() && matches!(error, GrantError::NeedsLogin { .. });
                (error, dead)
            }
        };
        if declared_dead {
            // Somebody may have refreshed it meanwhile, and killed ours by that.
            match self.store.read(&member.name).await {
                Ok(Some(record)) if record.version > current.version => {
                    return (self.adopt(member, record), Heard::Answer);
                }
                Ok(_) => {}
                // Who cannot look must not say that a person is needed.
                Err(failed) => {
                    events::StoreFailed {
                        operation: StoreOperation::Read,
                        what: "second look at a dead grant",
                        error: &failed,
                    }
                    .emit(&self.metrics);
                    error = GrantError::unsent(Reason::Store, "not_read_again");
                    declared_dead = false;
                }
            }
        }

        let now = self.clock.now();
        let failures = current.failures() + 1;
        let doubtful = spends && (current.doubtful || error.is_doubtful());
        let roll = policy::roll(&member.name, current.version, failures);
        let wait = match &error {
            GrantError::NeedsLogin { .. } => None,
            GrantError::Misconfigured { .. } => Some(policy::misconfigured_wait(failures, roll)),
            GrantError::Transient { .. } if doubtful && !current.doubtful => Some(REPLAY_AFTER),
            GrantError::Transient { .. } | GrantError::RefreshTokenAlone { .. } => {
                let time_left = current.time_left(&member.rules, now);
                Some(policy::retry_wait(failures, time_left, roll))
            }
        };
        let named = error.retry_after().map_or(TimeDelta::zero(), delta);
        let wait = wait.map(|wait| wait.max(named));
        let retry_in = wait.map(|wait| wait.to_std().unwrap_or_default());
        let trouble = Trouble {
            reason: error.reason(),
            detail: error.detail().to_owned(),
            failures,
            failed_at: now.wall,
            wait: retry_in,
        };
        let failed = Credential {
            trouble: Some((trouble, Since::at(now))),
            // A dead grant is certain.
            doubtful: doubtful && wait.is_some(),
            ..current.clone()
        };
        if let Some(lease) = lease {
            let dead = current
                .refresh_token()
                .filter(|_| declared_dead)
                .map(Secret::fingerprint);
            crash::point(Step::Settling);
            self.settle(member, lease, &failed.standing(), dead).await;
            crash::point(Step::Settled);
        }
        {
            let mut view = member.view();
            // An import meanwhile is not undone: what failed were the tokens before it.
            if view.credential.version == current.version {
                view.credential = failed;
            }
            view.failures[error.reason().index()] += 1;
        }
        events::RefreshFailed {
            credential: &member.name,
            provider: &member.provider.name,
            reason: error.reason(),
            detail: error.detail(),
            failures,
            retry_in,
            doubtful,
            took: started.elapsed(),
        }
        .emit(&self.metrics);

        let heard = match &error {
            GrantError::Transient {
                reason: Reason::Store,
                ..
            } => Heard::Nothing,
            GrantError::Transient { .. } | GrantError::RefreshTokenAlone { .. } => Heard::Trouble {
                retry_after: error.retry_after(),
            },
            _ => Heard::Answer,
        };
        let (reason, detail) = (error.reason(), error.detail().to_owned());
        (
            Outcome::Failed {
                reason,
                detail,
                retry_in,
            },
            heard,
        )
    }

    async fn settle(
        &self,
        member: &Member,
        lease: &Lease,
        standing: &crate::credential::Standing,
        dead: Option<crate::secret::Fingerprint>,
    ) {
        let settled = self.store.settle(&member.name, lease, standing, dead);
        // Nothing is lost by a failure: the lease runs out, memory knows the rest, and
        // after a restart the attempt is simply made again.
        if let Err(error) = self.timed(StoreOperation::Settle, settled).await {
            events::StoreFailed {
                operation: StoreOperation::Settle,
                what: "settlement",
                error: &error,
            }
            .emit(&self.metrics);
        }
    }

    /// Takes over what the store has.
    fn adopt(&self, member: &Arc<Member>, record: Record) -> Outcome {
        let version = record.version;
        {
            let mut view = member.view();
            view.credential = record.into_credential(
                &member.provider.name,
                &*member.grant,
                &member.rules,
                self.clock.now(),
            );
            view.patience = None;
            if let Some(why) = &view.credential.withheld {
                let credential = &member.name;
                events::TokensWithheld { credential, why }.emit();
                return withheld(why);
            }
        }
        member.tell(version);
        events::TokensAdopted {
            credential: &member.name,
            version,
        }
        .emit();
        Outcome::Adopted(version)
    }

    fn postpone(&self, member: &Member, wait: TimeDelta) -> Outcome {
        // A little apart from each other, and never at once.
        let roll = policy::roll(&member.name, 0, 0);
        let wait =
            wait.max(TimeDelta::seconds(1)) + TimeDelta::milliseconds((1_000.0 * roll) as i64);
        member.view().patience = Some((Since::at(self.clock.now()), wait));
        Outcome::Postponed(wait)
    }

    /// Measures an operation of the store, and puts it into the trace.
    async fn timed<T>(
        &self,
        operation: StoreOperation,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let span = match operation {
            StoreOperation::Checkout => tracing::info_span!("store.checkout"),
            StoreOperation::Save => tracing::info_span!("store.save"),
            _ => tracing::info_span!("store.settle"),
        };
        let timer = self.metrics.store_operation(operation).start_timer();
        let result = future.instrument(span.clone()).await;
        timer.observe_duration();
        if result.is_err() {
            telemetry::mark_failed(&span);
        }
        result
    }
}

/// Does the store have tokens that are not from before a refresh, and that it did not spend?
/// What cannot be read is not worth ours.
fn is_newer(record: &Record, before: &Credential) -> bool {
    let refresh_token = record.tokens.as_ref().map(|set| set.refresh_token.as_ref());
    record.version > before.version
        && !record.unreadable
        && refresh_token.flatten() != before.refresh_token()
}

/// The outcome where the tokens in the store are not used.
fn withheld(why: &Withheld) -> Outcome {
    Outcome::Failed {
        reason: Reason::Misconfigured,
        detail: why.as_str().to_owned(),
        retry_in: None,
    }
}
