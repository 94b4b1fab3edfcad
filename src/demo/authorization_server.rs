//! A small authorization server on loopback, for the demo and for tests.
//!
//! It behaves like the strict ones: refresh tokens rotate, a reuse revokes the whole
//! grant, a replay within a short window is forgiven. And it misbehaves on purpose: now
//! and then it is unavailable, or rotates a token and loses the answer. It stands on
//! hyper alone, because only there a service may close a connection without an answer.

mod grants;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::secret::Secret;
use grants::{Exchange, Grants, Pair, Refusal};

/// The secret of every client that authenticates. It protects nothing.
pub const CLIENT_SECRET: &str = "demo-secret";

/// RFC 8414 section 3.
const METADATA_PATH: &str = "/.well-known/oauth-authorization-server";
const TOKEN_PATH: &str = "/token";

/// A token request has a few short fields.
const LARGEST_BODY: usize = 16 * 1024;
/// For a slow sender of a header or a body; nobody on loopback needs it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// For answers under way when the server is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How the server behaves and misbehaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// `expires_in` of every access token; whole seconds are sent.
    pub access_token_lifetime: Duration,
    /// Every n-th token request is answered 503 with `Retry-After: 2` and changes
    /// nothing. `None` and 0: never.
    pub unavailable_every: Option<u32>,
    /// At every n-th rotation the new tokens are valid, but the connection closes without
    /// an answer. A replay is always answered. `None` and 0: never.
    pub lose_answer_every: Option<u32>,
    /// How long a login is good for, whatever is refreshed meanwhile: what is left of it is
    /// sent as `refresh_token_expires_in`. `None`: for ever, and nothing is said.
    pub login_lifetime: Option<Duration>,
    /// How long after a rotation the spent token is answered with the same new pair again,
    /// as Okta and WorkOS do (30 s). Zero: every reuse revokes at once.
    pub replay_window: Duration,
    /// Shifts where in their cycles the faults fall: with 0 the n-th request is the first
    /// to fail, with 1 the one before it.
    pub seed: u64,
}

impl Default for Behaviour {
    /// What the demo shows: a refresh in the first minute, and faults that are noticed.
    fn default() -> Self {
        Self {
            access_token_lifetime: Duration::from_secs(60),
            unavailable_every: Some(7),
            lose_answer_every: Some(5),
            login_lifetime: Some(Duration::from_secs(30 * 24 * 3_600)),
            replay_window: Duration::from_secs(30),
            seed: 0,
        }
    }
}

/// What the server has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// POSTs to the token endpoint, of any outcome.
    pub token_requests: u64,
    /// Refresh tokens spent for a new pair, lost answers included.
    pub rotations: u64,
    /// Spent tokens answered with the same pair again.
    pub replays: u64,
    /// Access tokens issued for client credentials.
    pub client_credentials: u64,
    /// Answers with 503.
    pub unavailable: u64,
    /// Rotations whose answer was never sent.
    pub lost_answers: u64,
    /// Grants revoked because a spent refresh token came back too late.
    pub revoked_grants: u64,
    /// All answers with an OAuth error (RFC 6749 section 5.2), those of reuses included.
    pub refused: u64,
}

/// The running server. It stops when the token given to [`AuthorizationServer::start`]
/// is cancelled; dropping this handle does not stop it.
#[derive(Clone)]
pub struct AuthorizationServer {
    address: SocketAddr,
    state: Arc<State>,
}

impl AuthorizationServer {
    /// Listens on a free port of 127.0.0.1. Must be called inside a tokio runtime; the
    /// error is that of binding.
    pub async fn start(behaviour: Behaviour, shutdown: CancellationToken) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            issuer: format!("http://{address}"),
            behaviour,
            book: Mutex::default(),
        });
        tokio::spawn(serve(listener, state.clone(), shutdown));
        Ok(Self { address, state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The issuer, for discovery (RFC 8414 section 2).
    pub fn issuer(&self) -> &str {
        &self.state.issuer
    }

    /// The token endpoint.
    pub fn token_url(&self) -> String {
        format!("{}{TOKEN_PATH}", self.state.issuer)
    }

    /// What a person's login would bring: the first refresh token of a new grant.
    pub fn new_grant(&self, client_id: &str) -> Secret {
        let first = random_token();
        let mut book = self.state.book();
        book.grants.start(client_id, &first, Instant::now());
        first
    }

    /// What a person does who ends a login at the provider. `first` is what
    /// [`Self::new_grant`] returned.
    pub fn revoke(&self, first: &Secret) {
        self.state.book().grants.revoke(first);
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.state.book().counts
    }
}

struct State {
    issuer: String,
    behaviour: Behaviour,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    grants: Grants,
    counts: Counts,
}

impl State {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, state: Arc<State>, shutdown: CancellationToken) {
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of file descriptors, mostly: waiting lets some come back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let state = state.clone();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| answer(state.clone(), request)),
            );
        // Its error is either a lost answer, which is wanted, or a client that went away.
        tokio::spawn(connections.watch(connection));
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown()).await;
}

/// The error that makes hyper close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the answer is lost on purpose")]
struct LostAnswer;

type Answer = Response<Full<Bytes>>;

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, LostAnswer> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, TOKEN_PATH) => token(&state, request).await,
        (&Method::GET, METADATA_PATH) => Ok(json_answer(StatusCode::OK, &metadata(&state.issuer))),
        (_, TOKEN_PATH) => Ok(plain(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST")),
        (_, METADATA_PATH) => Ok(plain(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "GET")),
        _ => Ok(plain(StatusCode::NOT_FOUND, CACHE_CONTROL, "no-store")),
    }
}

/// RFC 8414 section 2. There is no authorization endpoint, hence no response types.
fn metadata(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}{TOKEN_PATH}"),
        "response_types_supported": [],
        "grant_types_supported": ["refresh_token", "client_credentials"],
        "token_endpoint_auth_methods_supported":
            ["none", "client_secret_basic", "client_secret_post"],
    })
}

async fn token(state: &State, request: Request<Incoming>) -> Result<Answer, LostAnswer> {
    {
        let mut book = state.book();
        book.counts.token_requests += 1;
        let due = falls_on(
            state.behaviour.unavailable_every,
            book.counts.token_requests,
            state.behaviour.seed,
        );
        if due {
            book.counts.unavailable += 1;
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, RETRY_AFTER, "2"));
        }
    }
    let issued = match read(request).await {
        Ok(request) => issue(state, &request),
        Err(refused) => Err(refused),
    };
    match issued {
        Ok(Issued::Answered(body)) => Ok(json_answer(StatusCode::OK, &body)),
        Ok(Issued::Lost) => Err(LostAnswer),
        Err(refused) => {
            state.book().counts.refused += 1;
            Ok(refused.answer())
        }
    }
}

/// Is the `count`-th event, counted from 1, one of every n?
fn falls_on(every: Option<u32>, count: u64, seed: u64) -> bool {
    every.is_some_and(|n| n > 0 && count.wrapping_add(seed).is_multiple_of(n.into()))
}

/// An OAuth error (RFC 6749 section 5.2).
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    error: &'static str,
    description: &'static str,
}

impl Refused {
    fn invalid_request(description: &'static str) -> Self {
        Self {
            error: "invalid_request",
            description,
        }
    }

    fn invalid_client(description: &'static str) -> Self {
        Self {
            error: "invalid_client",
            description,
        }
    }

    fn answer(&self) -> Answer {
        let status = match self.error {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            _ => StatusCode::BAD_REQUEST,
        };
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut answer = json_answer(status, &body);
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"demo\""),
            );
        }
        answer
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            error: "invalid_grant",
            description: match refusal {
                Refusal::Unknown => "unknown refresh token",
                Refusal::OtherClient => "the refresh token was issued to another client",
                Refusal::Reused => "the refresh token was used before; the grant is revoked",
                Refusal::Revoked => "the grant is revoked",
            },
        }
    }
}

/// A token request whose client is known.
struct TokenRequest {
    fields: HashMap<String, String>,
    client_id: String,
    /// Whether the client proved who it is, or only said so.
    authenticated: bool,
}

async fn read(request: Request<Incoming>) -> Result<TokenRequest, Refused> {
    let (head, body) = request.into_parts();
    if !is_form(&head.headers) {
        return Err(Refused::invalid_request(
            "the body must be application/x-www-form-urlencoded",
        ));
    }
    let body = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, LARGEST_BODY).collect()).await;
    let Ok(Ok(body)) = body else {
        return Err(Refused::invalid_request(
            "the body is too long, too slow or torn",
        ));
    };
    let fields = fields(&body.to_bytes())?;
    let (client_id, authenticated) = authenticate(&head.headers, &fields)?;
    Ok(TokenRequest {
        fields,
        client_id,
        authenticated,
    })
}

fn is_form(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let kind = value.and_then(|v| v.split(';').next()).unwrap_or_default();
    kind.trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// RFC 6749 section 3.2: an empty field counts as missing, a field may come only once.
fn fields(body: &[u8]) -> Result<HashMap<String, String>, Refused> {
    let mut fields = HashMap::new();
    for (name, value) in url::form_urlencoded::parse(body) {
        if value.is_empty() {
            continue;
        }
        if fields
            .insert(name.into_owned(), value.into_owned())
            .is_some()
        {
            return Err(Refused::invalid_request("a field comes twice"));
        }
    }
    Ok(fields)
}

/// The client's name, and whether it proved it (RFC 6749 section 2.3.1).
fn authenticate(
    headers: &HeaderMap,
    fields: &HashMap<String, String>,
) -> Result<(String, bool), Refused> {
    let posted_id = fields.get("client_id");
    let posted_secret = fields.get("client_secret");
    let (client_id, secret) = match headers.get(AUTHORIZATION) {
        Some(_) if posted_secret.is_some() => {
            return Err(Refused::invalid_request(
                "the client authenticates in two ways at once",
            ));
        }
        Some(header) => {
            let (id, secret) = basic(header)
                .ok_or_else(|| Refused::invalid_client("the Authorization header is not Basic"))?;
            if posted_id.is_some_and(|posted| *posted != id) {
                return Err(Refused::invalid_request("two client ids"));
            }
            (id, Some(secret))
        }
        None => match posted_id {
            Some(id) => (id.clone(), posted_secret.cloned()),
            None => return Err(Refused::invalid_client("no client_id")),
        },
    };
    match secret {
        Some(secret) if secret != CLIENT_SECRET => {
            Err(Refused::invalid_client("wrong client secret"))
        }
        secret => Ok((client_id, secret.is_some())),
    }
}

/// Both halves are form-encoded inside the base64 (RFC 6749 section 2.3.1).
fn basic(header: &HeaderValue) -> Option<(String, String)> {
    let (scheme, encoded) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decoded = |text: &str| {
        let (name, _) = url::form_urlencoded::parse(text.as_bytes()).next()?;
        Some(name.into_owned())
    };
    Some((decoded(id)?, decoded(secret).unwrap_or_default()))
}

enum Issued {
    Answered(Value),
    Lost,
}

fn issue(state: &State, request: &TokenRequest) -> Result<Issued, Refused> {
    match request.fields.get("grant_type").map(String::as_str) {
        Some("refresh_token") => refresh(state, request),
        Some("client_credentials") if !request.authenticated => {
            Err(Refused::invalid_client("this grant needs a client secret"))
        }
        Some("client_credentials") => {
            state.book().counts.client_credentials += 1;
            // No refresh token: RFC 6749 section 4.4.3.
            let lifetime = state.behaviour.access_token_lifetime;
            Ok(Issued::Answered(token_answer(&random_token(), lifetime)))
        }
        Some(_) => Err(Refused {
            error: "unsupported_grant_type",
            description: "write refresh_token or client_credentials",
        }),
        None => Err(Refused::invalid_request("no grant_type")),
    }
}

fn refresh(state: &State, request: &TokenRequest) -> Result<Issued, Refused> {
    let presented = request
        .fields
        .get("refresh_token")
        .ok_or_else(|| Refused::invalid_request("no refresh_token"))?;
    let presented = Secret::new(presented.as_str());
    let new = Pair {
        access: random_token(),
        refresh: random_token(),
    };
    let behaviour = &state.behaviour;

    let now = Instant::now();
    let mut book = state.book();
    let login_left = behaviour.login_lifetime.map(|lifetime| {
        let age = book.grants.age(&presented, now).unwrap_or_default();
        lifetime.saturating_sub(age)
    });
    if login_left == Some(Duration::ZERO) {
        book.grants.revoke(&presented);
    }
    let exchange = book.grants.exchange(
        &request.client_id,
        &presented,
        &new,
        now,
        behaviour.replay_window,
    );
    let (pair, age) = match exchange {
        Exchange::Rotated => {
            book.counts.rotations += 1;
            let rotations = book.counts.rotations;
            if falls_on(behaviour.lose_answer_every, rotations, behaviour.seed) {
                book.counts.lost_answers += 1;
                return Ok(Issued::Lost);
            }
            (new, Duration::ZERO)
        }
        Exchange::Replayed(pair, age) => {
            book.counts.replays += 1;
            (pair, age)
        }
        Exchange::Refused(refusal) => {
            if refusal == Refusal::Reused {
                book.counts.revoked_grants += 1;
            }
            return Err(refusal.into());
        }
    };
    let left = behaviour.access_token_lifetime.saturating_sub(age);
    let mut body = token_answer(&pair.access, left);
    body["refresh_token"] = pair.refresh.expose().into();
    if let Some(left) = login_left {
        body["refresh_token_expires_in"] = left.as_secs().into();
    }
    Ok(Issued::Answered(body))
}

/// RFC 6749 section 5.1.
fn token_answer(access: &Secret, lifetime: Duration) -> Value {
    json!({
        "access_token": access.expose(),
        "token_type": "Bearer",
        "expires_in": lifetime.as_secs(),
    })
}

/// 256 bits as text.
///
/// Panics when the operating system has no random bytes: no token may be guessable.
fn random_token() -> Secret {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::from(body.to_string()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn plain(status: StatusCode, name: HeaderName, value: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    answer
}

#[cfg(test)]
mod tests;
