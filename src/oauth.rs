//! The client's side of a token endpoint (RFC 6749 section 3.2).
//!
//! One file per grant ([`refresh_token`], [`client_credentials`]), and one for each thing
//! that they share: [`client_auth`], [`discovery`], [`answer`]. A grant only writes a form;
//! [`TokenEndpoint::exchange`] is the one place that sends it.

pub mod answer;
pub mod client_auth;
pub mod client_credentials;
pub mod discovery;
pub mod refresh_token;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::{StatusCode, header};
use tokio::time::timeout;
use tracing::Instrument;
use url::Url;

use crate::{
    clock::{Clock, Moment},
    crash::{self, Step},
    credential::{Credential, Reason, TokenSet},
    telemetry,
};

/// How a credential gets new tokens. One implementation per grant type.
pub trait Grant: Send + Sync + 'static {
    /// The token request for this credential as it stands, or why there can be none.
    fn request(&self, current: &Credential) -> Result<Form, GrantError>;

    /// Does a request spend something that can be spent only once?
    fn spends_refresh_token(&self) -> bool;
}

/// The body of a token request: names and values, to be form-encoded.
pub type Form = Vec<(&'static str, crate::secret::Secret)>;

/// Why a grant gave no tokens, by what happens next.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GrantError {
    /// It may work later. Tried again for ever.
    #[error("{} ({detail})", reason.as_str())]
    Transient {
        /// The kind of trouble.
        reason: Reason,
        /// An HTTP status or error code, never a body.
        detail: String,
        /// The request may have been carried out although no usable answer came.
        doubtful: bool,
        /// How long the server asked us to stay away (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// The server has replaced the refresh token, and gave no access token with the new one.
    #[error("bad_answer (no_access_token)")]
    RefreshTokenAlone {
        /// The tokens before with the new refresh token, to be saved: the old one is spent.
        tokens: Box<TokenSet>,
        /// How long the server asked us to stay away.
        retry_after: Option<Duration>,
    },
    /// The operator must change the client or the request.
    #[error("misconfigured ({detail})")]
    Misconfigured {
        /// The OAuth error code, or what is missing.
        detail: String,
        /// How long the server asked us to stay away.
        retry_after: Option<Duration>,
    },
    /// The grant is dead; a person must log in again.
    #[error("needs login ({detail})")]
    NeedsLogin {
        /// The OAuth error code, or what is missing.
        detail: String,
    },
}

impl GrantError {
    /// The label of this error.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Transient { reason, .. } => *reason,
            Self::RefreshTokenAlone { .. } => Reason::BadAnswer,
            Self::Misconfigured { .. } => Reason::Misconfigured,
            Self::NeedsLogin { .. } => Reason::NeedsLogin,
        }
    }

    /// The code or status behind it.
    pub fn detail(&self) -> &str {
        match self {
            Self::Transient { detail, .. }
            | Self::Misconfigured { detail, .. }
            | Self::NeedsLogin { detail } => detail,
            Self::RefreshTokenAlone { .. } => "no_access_token",
        }
    }

    /// How long the server asked us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Transient { retry_after, .. }
            | Self::RefreshTokenAlone { retry_after, .. }
            | Self::Misconfigured { retry_after, .. } => *retry_after,
            Self::NeedsLogin { .. } => None,
        }
    }

    /// May the server have carried out a request whose answer we do not have?
    pub fn is_doubtful(&self) -> bool {
        matches!(self, Self::Transient { doubtful: true, .. })
    }

    /// A transient error before anything was sent.
    pub(crate) fn unsent(reason: Reason, detail: impl Into<String>) -> Self {
        Self::Transient {
            reason,
            detail: detail.into(),
            doubtful: false,
            retry_after: None,
        }
    }
}

/// An answer larger than this is not one of a token endpoint. Access tokens of 64 KB exist.
const LARGEST_ANSWER: usize = 1024 * 1024;
/// Where the length is not announced.
const USUAL_ANSWER: usize = 8 * 1024;
/// Node's servers close an idle connection after 5 s. A request sent into a closing
/// connection is a lost answer, so ours are given up before that.
const IDLE_CONNECTION: Duration = Duration::from_secs(3);

/// How long the second look at an answer takes.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// One token endpoint, and who we are there.
pub struct TokenEndpoint {
    /// Where the endpoint is, or how to find out.
    pub location: discovery::Location,
    /// Our client id, secret and how they are presented.
    pub client: client_auth::Client,
    /// Sent with every token request, such as `audience`.
    pub params: BTreeMap<String, String>,
    /// Error codes of this provider that mean a dead grant.
    pub needs_login_errors: Vec<String>,
    /// What to assume when the answer does not tell a lifetime.
    pub default_expires_in: Option<Duration>,
    /// How long a token request may take, its answer included.
    pub timeout: Duration,
    /// The HTTP client, shared by everything that talks to this provider.
    pub http: reqwest::Client,
    /// Where the time of sending is read.
    pub clock: Arc<dyn Clock>,
}

impl TokenEndpoint {
    /// Sends one token request and waits for its answer; `extra` are the credential's own
    /// parameters, which win over the provider's. The moment returned is when the request
    /// was sent.
    ///
    /// The request is sent at most once: no redirects, no retries, and the way of client
    /// authentication is configured, never tried out.
    pub async fn exchange(
        &self,
        url: Url,
        form: &Form,
        extra: &BTreeMap<String, String>,
        current: &Credential,
    ) -> Result<(TokenSet, Moment), GrantError> {
        let span = tracing::info_span!(
            "POST",
            otel.kind = "client",
            http.request.method = "POST",
            server.address = url.host_str().unwrap_or_default(),
            server.port = url.port_or_known_default(),
            http.response.status_code = tracing::field::Empty,
            error.r#type = tracing::field::Empty,
        );
        async {
            let sent = self.clock.now();
            let answer = in_time(self.timeout, self.send(url, form, extra)).await;
            let result = answer.and_then(|(status, answer)| {
                let context = answer::Context {
                    issued_at: sent.wall,
                    default_expires_in: self.default_expires_in,
                    needs_login_errors: &self.needs_login_errors,
                    previous: current.tokens.as_ref().map(|(tokens, _)| &**tokens),
                    spends: form.iter().any(|(name, _)| *name == "refresh_token"),
                    secrets: self.secrets(form, extra, current),
                };
                answer::read(status, &answer, &context)
            });
            if let Err(error) = &result {
                let span = tracing::Span::current();
                span.record("error.type", error.reason().as_str());
                telemetry::mark_failed(&span);
            }
            result.map(|tokens| (tokens, sent))
        }
        .instrument(span)
        .await
    }

    /// Everything in a request that must not be seen, and the access token that there is.
    fn secrets<'a>(
        &'a self,
        form: &'a Form,
        extra: &'a BTreeMap<String, String>,
        current: &'a Credential,
    ) -> Vec<&'a str> {
        let access_token = current.tokens.as_ref().map(|(set, _)| &set.access_token);
        form.iter()
            .filter(|(name, _)| !["grant_type", "scope"].contains(name))
            .map(|(_, value)| value)
            .chain(&self.client.secret)
            .chain(access_token)
            .map(|secret| secret.expose())
            .chain(
                self.params
                    .values()
                    .chain(extra.values())
                    .map(String::as_str),
            )
            .collect()
    }

    async fn send(
        &self,
        url: Url,
        form: &Form,
        extra: &BTreeMap<String, String>,
    ) -> Result<(StatusCode, answer::Raw), GrantError> {
        let (headers, body) = self.encode(form, extra);
        let request = self.http.post(url).headers(headers).body(body);
        // The client's own limit would throw away what is there; see `in_time`.
        let request = request.timeout(Duration::MAX);
        let response = request.send().await.map_err(|error| broken(&error))?;
        crash::point(Step::Answering);
        let status = response.status();
        tracing::Span::current().record("http.response.status_code", status.as_u16());
        Ok((status, read_bounded(response).await?))
    }

    fn encode(&self, form: &Form, extra: &BTreeMap<String, String>) -> (header::HeaderMap, String) {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in form {
            body.append_pair(name, value.expose());
        }
        let inherited = self
            .params
            .iter()
            .filter(|(name, _)| !extra.contains_key(*name));
        for (name, value) in inherited.chain(extra) {
            body.append_pair(name, value);
        }
        let mut headers = header::HeaderMap::new();
        headers.insert(
            header::ACCEPT,
            header::HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        self.client.authenticate(&mut body, &mut headers);
        telemetry::inject(&mut headers);
        (headers, body.finish())
    }
}

/// Waits for an answer this long, and then takes a second look: when the whole process stood still
/// past that (it was stopped, or its container was frozen), what has come meanwhile is not read
/// yet, and it may be the only copy of a token.
async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, GrantError>>,
) -> Result<T, GrantError> {
    tokio::pin!(answer);
    if let Ok(answer) = timeout(limit, &mut answer).await {
        return answer;
    }
    if let Ok(answer) = timeout(SECOND_LOOK, &mut answer).await {
        return answer;
    }
    Err(GrantError::Transient {
        reason: Reason::Timeout,
        detail: "no_answer_in_time".into(),
        doubtful: true,
        retry_after: None,
    })
}

/// Reads an answer of at most [`LARGEST_ANSWER`] bytes.
async fn read_bounded(mut response: reqwest::Response) -> Result<answer::Raw, GrantError> {
    let text = |name| {
        let value: &header::HeaderValue = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let content_type = text(header::CONTENT_TYPE);
    let retry_after = text(header::RETRY_AFTER);
    let date = text(header::DATE);
    // Room for a usual answer: growing leaves copies behind that nothing wipes.
    let announced = response.content_length().unwrap_or_default() as usize;
    let room = announced.clamp(USUAL_ANSWER, LARGEST_ANSWER);
    let mut body = zeroize::Zeroizing::new(Vec::with_capacity(room));
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(GrantError::Transient {
                reason: Reason::BadAnswer,
                detail: "answer_too_large".into(),
                doubtful: true,
                retry_after: None,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(answer::Raw {
        content_type,
        retry_after,
        date,
        body,
    })
}

/// What a failure of the connection means. Only one that never came about is sure to have
/// carried nothing; after that the server may have rotated.
fn broken(error: &reqwest::Error) -> GrantError {
    let reason = if error.is_timeout() {
        Reason::Timeout
    } else {
        Reason::Network
    };
    let detail = if error.is_connect() {
        "connect"
    } else if error.is_timeout() {
        "no_answer_in_time"
    } else {
        "connection_broke"
    };
    GrantError::Transient {
        reason,
        detail: detail.into(),
        doubtful: !error.is_connect(),
        retry_after: None,
    }
}

/// The HTTP client for one provider: no redirects (a token request must not be repeated
/// elsewhere), no retries (they would spend a refresh token twice), no decompression
/// (nothing to bomb), TLS verified against the system's roots.
pub fn http_client(timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    crate::tls::provide();
    reqwest::Client::builder()
        .user_agent(concat!("perennial/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .timeout(timeout)
        .pool_idle_timeout(IDLE_CONNECTION)
        .build()
}
