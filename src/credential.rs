//! A credential: one grant at one provider, kept under one name.
//!
//! Plain data. What follows from it at a given moment is decided in [`policy`], without a
//! clock and without I/O.

pub mod policy;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Moment, Since, Timestamp},
    name::Name,
    secret::Secret,
};

/// What a token endpoint gave: RFC 6749 section 5.1, and the usual extensions.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenSet {
    /// The access token.
    pub access_token: Secret,
    /// The refresh token to spend next. `None` for grants that have none.
    pub refresh_token: Option<Secret>,
    /// What is known of them beside their text.
    pub details: TokenDetails,
}

impl TokenSet {
    /// A refresh token from elsewhere, with no access token yet.
    pub fn imported(token: Secret, provider: &Name, now: Moment) -> Self {
        Self {
            access_token: Secret::new(""),
            refresh_token: Some(token),
            details: TokenDetails {
                issued_at: now.wall,
                lifetime: Duration::ZERO,
                lifetime_source: LifetimeSource::Imported,
                token_type: "Bearer".into(),
                scope: None,
                refresh_in: None,
                refresh_token_expires_at: None,
                refresh_token_life: None,
                provider: Some(provider.clone()),
            },
        }
    }
}

/// Everything about a [`TokenSet`] that is not secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenDetails {
    /// When the request was sent whose answer this is: a lifetime counts from here, so
    /// that the time on the way never makes a token look younger.
    pub issued_at: Timestamp,
    /// How long the access token lives from `issued_at`.
    pub lifetime: Duration,
    /// Where `lifetime` comes from.
    pub lifetime_source: LifetimeSource,
    /// `Bearer` nearly everywhere.
    pub token_type: String,
    /// The scope granted, where the provider said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When the provider asks to be asked again (`refresh_in`, Microsoft), from `issued_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_in: Option<Duration>,
    /// When the refresh token dies whatever is done, where the provider said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token_expires_at: Option<Timestamp>,
    /// The most that was ever left until `refresh_token_expires_at`, since the login: its whole
    /// life. A provider that names an end which no refresh moves says less and less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token_life: Option<Duration>,
    /// The provider that they were asked of, by its name in the configuration. `None` where
    /// that was not kept: in a bare answer, and in stores of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Name>,
}

/// How the lifetime of an access token became known, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifetimeSource {
    /// `expires_in` (or `expires_at`) of the answer.
    Answer,
    /// The `exp` claim of a JWT access token (RFC 7519 section 4.1.4).
    JwtExp,
    /// `default_expires_in` of the provider's configuration or preset.
    Provider,
    /// Nothing is known; one hour is assumed.
    Assumed,
    /// An imported refresh token: there is no access token yet.
    Imported,
}

impl LifetimeSource {
    /// The label value on `token_lifetime_seconds`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::JwtExp => "jwt_exp",
            Self::Provider => "provider",
            Self::Assumed => "assumed",
            Self::Imported => "imported",
        }
    }
}

/// What the attempts since the last token set left behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// What stands in the way of a refresh, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// A refresh token was sent and its answer is not known: the server may have rotated.
    #[serde(default)]
    pub doubtful: bool,
}

impl Standing {
    /// The same after an attempt of which nothing is known but that it began. It was made before
    /// its time if the wait of the one before it is not over: that wait is void, because servers
    /// that accept a replay do so for seconds.
    pub fn interrupted(mut self) -> Self {
        if let Some(wait) = self
            .trouble
            .as_mut()
            .and_then(|trouble| trouble.wait.as_mut())
            && !self.doubtful
        {
            *wait = Duration::ZERO;
        }
        self.doubtful = true;
        self
    }
}

/// A failed attempt and what it means for the next one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// Why the last attempt failed.
    pub reason: Reason,
    /// What the provider called it: an OAuth error code or an HTTP status. Bounded in
    /// length and character set; never a body.
    pub detail: String,
    /// Failed attempts in a row.
    pub failures: u32,
    /// When the last attempt ended.
    pub failed_at: Timestamp,
    /// How long to wait from then. `None`: until a person has done something.
    pub wait: Option<Duration>,
}

/// Why an attempt failed: a closed list, for labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The provider could not be reached, or the connection broke.
    Network,
    /// No answer in time.
    Timeout,
    /// HTTP 429 or `slow_down`.
    RateLimited,
    /// HTTP 5xx or 408, `server_error`, `temporarily_unavailable`.
    ServerError,
    /// An answer that is not one of a token endpoint: a redirect, HTML, torn or endless.
    BadAnswer,
    /// The store could not record the intent, so nothing was sent.
    Store,
    /// The operator must change the client or the request: `invalid_client` and others.
    Misconfigured,
    /// The grant is dead; only a person can help: `invalid_grant` and its aliases.
    NeedsLogin,
}

impl Reason {
    /// Every reason, in the order of [`Reason::index`].
    pub const ALL: [Self; 8] = [
        Self::Network,
        Self::Timeout,
        Self::RateLimited,
        Self::ServerError,
        Self::BadAnswer,
        Self::Store,
        Self::Misconfigured,
        Self::NeedsLogin,
    ];

    /// The label value on `refresh_failures_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::BadAnswer => "bad_answer",
            Self::Store => "store",
            Self::Misconfigured => "misconfigured",
            Self::NeedsLogin => "needs_login",
        }
    }

    /// The place of this reason in [`Reason::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// How a credential stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Valid, and not yet due.
    Fresh,
    /// Valid; a refresh is wanted, and there is time.
    Due,
    /// Valid, but past its mandatory point: readers wait for the refresh.
    Stale,
    /// No valid access token; refreshes go on.
    Expired,
    /// Only a person can help: a new login is needed.
    NeedsLogin,
    /// The operator must change something; tried again slowly.
    Misconfigured,
    /// Never had a token.
    Pending,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Fresh,
        Self::Due,
        Self::Stale,
        Self::Expired,
        Self::NeedsLogin,
        Self::Misconfigured,
        Self::Pending,
    ];

    /// The label value on `credential_state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Due => "due",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::NeedsLogin => "needs_login",
            Self::Misconfigured => "misconfigured",
            Self::Pending => "pending",
        }
    }
}

/// Why tokens that the store has are not used: nothing is sent, and nothing is written over
/// them, until a person has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// Their row was changed from outside, or is damaged.
    Unreadable,
    /// They are of this provider, and the configuration names another.
    OfProvider(Name),
}

impl Withheld {
    /// In one word, as the detail of a failed attempt.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreadable => "row_unreadable",
            Self::OfProvider(_) => "tokens_of_another_provider",
        }
    }

    /// What is wrong, and what a person can do.
    pub fn cure(&self, credential: &Name) -> String {
        match self {
            // A backup is no cure: what it has of the others was spent since.
            Self::Unreadable => format!(
                "its row in the store is damaged or was changed from outside; log in again, \
                 then: perennial import {credential} --refresh-token-file FILE"
            ),
            Self::OfProvider(provider) => format!(
                "its tokens are of the provider {provider}, and are not sent to another; give \
                 it back its provider, or log in at the new one, \
                 then: perennial import {credential} --refresh-token-file FILE"
            ),
        }
    }
}

/// The end of an attempt, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// When.
    pub at: Timestamp,
    /// `refreshed`, or the reason and its detail.
    pub result: String,
}

/// A credential as it stands in memory: its tokens with their age on both clocks, and the
/// trouble it is in.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Grows by one with each token set; 0 before the first.
    pub version: u64,
    /// The tokens, and since when they have been there.
    pub tokens: Option<(Arc<TokenSet>, Since)>,
    /// The trouble, and since when.
    pub trouble: Option<(Trouble, Since)>,
    /// See [`Standing::doubtful`].
    pub doubtful: bool,
    /// Why the tokens in the store are not among `tokens`.
    pub withheld: Option<Withheld>,
}

impl Credential {
    /// A credential that has never had a token.
    pub fn pending() -> Self {
        Self {
            version: 0,
            tokens: None,
            trouble: None,
            doubtful: false,
            withheld: None,
        }
    }

    /// A credential whose tokens in the store are not used.
    pub fn withheld(version: u64, why: Withheld) -> Self {
        Self {
            version,
            withheld: Some(why),
            ..Self::pending()
        }
    }

    /// A credential as the store knows it. Where the wall clock has been set back behind
    /// what the store says, tokens count as past their mandatory point (they are asked
    /// for at once), and waits as over.
    pub fn restored(
        version: u64,
        tokens: Option<TokenSet>,
        standing: Standing,
        rules: &policy::Rules,
        now: Moment,
    ) -> Self {
        let tokens = tokens.map(|tokens| {
            let unknown = policy::Life::of(&tokens.details, rules).mandatory;
            let since = Since::restored(tokens.details.issued_at, now, unknown);
            (Arc::new(tokens), since)
        });
        let trouble = standing.trouble.map(|mut trouble| {
            // A restart is how an operator says that something was changed.
            if trouble.reason == Reason::Misconfigured {
                trouble.wait = Some(Duration::ZERO);
            }
            let since = Since::restored(trouble.failed_at, now, chrono::TimeDelta::MAX / 4);
            (trouble, since)
        });
        Self {
            version,
            tokens,
            trouble,
            doubtful: standing.doubtful,
            withheld: None,
        }
    }

    /// A credential that got new tokens just now.
    pub fn renewed(version: u64, tokens: TokenSet, sent: Moment) -> Self {
        Self {
            version,
            tokens: Some((Arc::new(tokens), Since::at(sent))),
            trouble: None,
            doubtful: false,
            withheld: None,
        }
    }

    /// The part that the store keeps beside the tokens.
    pub fn standing(&self) -> Standing {
        Standing {
            trouble: self.trouble.as_ref().map(|(trouble, _)| trouble.clone()),
            doubtful: self.doubtful,
        }
    }

    /// Failed attempts in a row.
    pub fn failures(&self) -> u32 {
        self.trouble
            .as_ref()
            .map_or(0, |(trouble, _)| trouble.failures)
    }

    /// Why the last attempt failed, and what that was called; none when it did not.
    pub fn trouble_in_words(&self) -> Option<(Reason, &str)> {
        if let Some(why) = &self.withheld {
            return Some((Reason::Misconfigured, why.as_str()));
        }
        let (trouble, _) = self.trouble.as_ref()?;
        Some((trouble.reason, &trouble.detail))
    }

    /// How the last attempt ended, as far as the credential itself tells.
    pub fn last_result(&self) -> Option<Last> {
        if let Some((trouble, _)) = &self.trouble {
            let result = format!("{} ({})", trouble.reason.as_str(), trouble.detail);
            return Some(Last {
                at: trouble.failed_at,
                result,
            });
        }
        self.live_tokens().map(|(tokens, _)| Last {
            at: tokens.details.issued_at,
            result: "refreshed".into(),
        })
    }

    /// The refresh token that the next refresh would spend.
    pub fn refresh_token(&self) -> Option<&Secret> {
        self.tokens
            .as_ref()
            .and_then(|(tokens, _)| tokens.refresh_token.as_ref())
    }
}
