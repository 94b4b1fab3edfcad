//! A certified authorization server (npm `oidc-provider`) that rotates refresh tokens and revokes
//! the whole grant when a spent one comes again. See `authorization_server/server.mjs`.

use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::http;
use super::process::{Process, Stream};

/// The secret of the clients `basic`, `post`, `service-basic` and `service-post`.
pub const CLIENT_SECRET: &str = "a-secret-that-only-the-tests-know-0123456789";

/// How the server treats its tokens. Lifetimes are rounded down to seconds, at least one.
pub struct Options {
    pub access_token_life: Duration,
    /// Counted anew from each rotation.
    pub refresh_token_life: Duration,
    /// Each refresh answers with a new refresh token and spends the old one.
    pub rotate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            access_token_life: Duration::from_secs(3600),
            refresh_token_life: Duration::from_secs(14 * 86_400),
            rotate: true,
        }
    }
}

/// A running server. Its clients: `public` (no authentication), `basic` and `post` for refresh
/// tokens; `service-basic` and `service-post` for client credentials.
pub struct AuthorizationServer {
    issuer: String,
    process: Process,
}

/// Something that happened at the server.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its position in the log, from 0.
    pub number: usize,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `token_request`, `refresh_token.saved`, `refresh_token.consumed` or `grant.revoked`.
    pub event: String,
    pub client: Option<String>,
    /// How the client authenticated: `none`, `basic` or `post`. The server does not insist on the
    /// one that the client is registered with, but for `none`.
    pub client_auth: Option<String>,
    pub grant_type: Option<String>,
    /// The server's name of the grant.
    pub grant: Option<String>,
    /// SHA-256 in hex of the refresh token that was sent, saved or consumed.
    pub refresh_token: Option<String>,
    /// HTTP status of the answer to a token request.
    pub status: Option<u16>,
    /// The OAuth error code of that answer.
    pub error: Option<String>,
    /// What the server told only its log about that error.
    pub reason: Option<String>,
}

/// How many events of each sort the log holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Summary {
    pub token_requests: usize,
    pub token_requests_granted: usize,
    pub token_requests_refused: usize,
    pub refresh_tokens_saved: usize,
    pub refresh_tokens_consumed: usize,
    pub grants_revoked: usize,
}

impl AuthorizationServer {
    /// Starts a server and waits until it answers.
    pub fn start(options: &Options) -> Self {
        let folder = super::folder().join("authorization_server");
        super::expect_installed(
            "the authorization server",
            &folder.join("node_modules/oidc-provider"),
        );
        let options = serde_json::json!({
            "access_token_seconds": options.access_token_life.as_secs(),
            "refresh_token_seconds": options.refresh_token_life.as_secs(),
            "rotate": options.rotate,
        });
        let process = Process::start(
            "the authorization server",
            Command::new("node")
                .arg(folder.join("server.mjs"))
                .arg(options.to_string()),
        );
        let line = process.wait_for_line("its issuer", Duration::from_secs(30), |line| {
            line.starts_with("{\"issuer\"")
        });
        let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
        let issuer = ready["issuer"].as_str().expect("a URL").to_owned();
        Self { issuer, process }
    }

    /// Its URL, without a slash at the end. Discovery is below it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The URL of its token endpoint.
    pub fn token_url(&self) -> String {
        format!("{}/token", self.issuer)
    }

    /// Creates `count` grants of different people to `client`, with the scopes `openid` and
    /// `offline_access`, and returns the refresh token of each.
    pub fn grants(&self, count: usize, client: &str) -> Vec<String> {
        let url = format!(
            "{}/control/grants?count={count}&client={client}",
            self.issuer
        );
        let answer = http::post_form(&url, &[]);
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_value(answer.json()).expect("a list of refresh tokens")
    }

    /// Everything that has happened since it started, oldest first.
    pub fn log(&self) -> Vec<Event> {
        self.log_since(0)
    }

    /// The events from number `first` on.
    pub fn log_since(&self, first: usize) -> Vec<Event> {
        let answer = http::get(&format!("{}/control/log?since={first}", self.issuer));
        serde_json::from_value(answer.json()).expect("a list of events")
    }

    /// How much has happened since it started.
    pub fn summary(&self) -> Summary {
        let answer = http::get(&format!("{}/control/summary", self.issuer));
        serde_json::from_value(answer.json()).expect("counts")
    }

    /// What it complained about: errors of its own, not of its clients.
    pub fn complaints(&self) -> Vec<String> {
        let mut lines = self.process.lines(Stream::Stderr);
        // It asks for the newest Node at every start.
        lines.retain(|line| !line.contains("Unsupported runtime"));
        lines
    }
}
