//! The configuration: from `perennial.toml`, `.env` and the environment to one
//! validated [`Config`].
//!
//! The doc comments of the types are the reference that users read: `perennial
//! config` prints them ([`example`]), and the errors are checked against the schema
//! made from them. So a new key is one field with its doc comment.
//!
//! ```text
//! load -> document (text to a tree that knows its lines, ${VAR})
//!      -> environment (PERENNIAL_… on top)   yoto (no file at all)
//!      -> shape (keys, types, ranges)        rules (what must fit together)
//! ```

mod document;
mod duration;
mod environment;
mod example;
mod load;
mod problem;
mod rules;
mod shape;
mod yoto;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::oauth::client_auth::ClientAuth;
use crate::secret::Secret;

pub use environment::{Environment, environment};
pub use example::example;
pub use load::{Found, Input, Loaded, default_file, load, load_or_nothing, resolve};
pub use problem::{Errors, Origin, Problem};

/// Everything that Perennial reads at start.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the service listens, and how it stops.
    #[serde(default)]
    pub server: Server,
    /// Where credentials and run history are kept, and the key that encrypts them.
    #[serde(default)]
    pub store: Store,
    /// One authorization server (RFC 6749) under a name: its endpoints, the client
    /// registered there, its quirks.
    #[serde(default)]
    pub providers: BTreeMap<Name, Provider>,
    /// One grant at one provider under a name. Each is kept alive by itself.
    #[serde(default)]
    pub credentials: BTreeMap<Name, Credential>,
    /// One task under a name. Without any, a job `token-refresh` of kind
    /// `token_refresh` without a schedule looks after every credential.
    #[serde(default)]
    pub jobs: BTreeMap<Name, Job>,
}

impl Config {
    /// The path of the control socket: [`Server::socket`], or the database's path
    /// with the extension `.sock`.
    pub fn socket_path(&self) -> PathBuf {
        let beside_database = || self.store.sqlite_path().with_extension("sock");
        self.server.socket.clone().unwrap_or_else(beside_database)
    }
}

/// Where the service listens, and how it stops.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The address and port of `/metrics`, the status page and the API. Port 0 takes
    /// any free port. There is no authentication: keep it on loopback, or behind
    /// something that has it.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// The Unix socket through which the command line speaks to the running service.
    /// Default: the database's path with the extension `.sock`.
    #[schemars(length(min = 1), example = &"run/perennial.sock")]
    pub socket: Option<PathBuf>,
    /// How long a stop may take, from the signal to the end of the process: runs in
    /// flight finish and are saved, HTTP closes, spans are flushed. 1s to 10m; keep it
    /// below the grace period of whatever sends the signal (Kubernetes: 30s).
    #[serde(with = "duration")]
    #[schemars(with = "String", extend("format" = "duration", "x-range" = ["1s", "10m"]))]
    pub shutdown_timeout: Duration,
    /// How many HTTP connections may be open at once; more wait. 1 to 65536.
    #[schemars(range(min = 1, max = 65536))]
    pub max_connections: u32,
    /// How long a client may take to send the head of a request. 1s to 2m.
    #[serde(with = "duration")]
    #[schemars(with = "String", extend("format" = "duration", "x-range" = ["1s", "2m"]))]
    pub header_timeout: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            socket: None,
            shutdown_timeout: Duration::from_secs(25),
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// Where credentials and run history are kept, and the key that encrypts them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The database: `sqlite:` and a path, relative to the working directory. The file
    /// is created with mode 0600 when it is missing.
    #[schemars(extend("format" = "store-url"))]
    pub url: String,
    /// The key that encrypts tokens at rest: 32 bytes as base64, for example from
    /// `openssl rand -base64 32`. Also read from `PERENNIAL_KEY`. Prefer `key_file`.
    #[schemars(extend("writeOnly" = true, "format" = "key"), example = &"${STORE_KEY}")]
    pub key: Option<Secret>,
    /// A file that holds the key as base64. Also read from `PERENNIAL_KEY_FILE`. Default:
    /// the database's path with `.key` appended, generated with mode 0600 at the first
    /// start; whoever has both files has the tokens, so move it away from the database.
    #[schemars(length(min = 1), example = &"/run/secrets/perennial_key")]
    pub key_file: Option<PathBuf>,
    /// How many finished runs are remembered for each job. 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub keep_runs: u32,
    /// How many failed runs are remembered for each job, beside `keep_runs`. 0 to 100000.
    #[schemars(range(min = 0, max = 100_000))]
    pub keep_failed_runs: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: "sqlite:perennial.db".to_owned(),
            key: None,
            key_file: None,
            keep_runs: 100,
            keep_failed_runs: 500,
        }
    }
}

impl Store {
    /// The path of the database: `url` without `sqlite:` or `sqlite://`.
    pub fn sqlite_path(&self) -> PathBuf {
        let path = self.url.strip_prefix("sqlite:").unwrap_or(&self.url);
        PathBuf::from(path.strip_prefix("//").unwrap_or(path))
    }

    /// The path of the key file: `key_file`, or the database's path with `.key`
    /// appended. Meaningful only when `key` is not set.
    pub fn key_path(&self) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| {
            let mut path = self.sqlite_path().into_os_string();
            path.push(".key");
            path.into()
        })
    }
}

/// One authorization server and the client registered there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The name of a known provider, whose endpoints and quirks become the defaults of
    /// all keys below. Known: `yoto`.
    #[serde(default)]
    #[schemars(example = &"yoto")]
    pub preset: Option<String>,
    /// The issuer: endpoints are discovered from its metadata (RFC 8414, OpenID Connect
    /// Discovery). One of `issuer`, `token_url` and `preset` is needed.
    #[serde(default)]
    #[schemars(extend("format" = "issuer"), example = &"https://login.acme.example")]
    pub issuer: Option<String>,
    /// The token endpoint (RFC 6749 section 3.2). Beside `issuer` it wins over the
    /// discovered one.
    #[serde(default)]
    #[schemars(extend("format" = "url"), example = &"https://login.acme.example/oauth/token")]
    pub token_url: Option<String>,
    /// The client identifier that the provider gave to you (RFC 6749 section 2.2).
    #[schemars(length(min = 1), example = &"my-client")]
    pub client_id: String,
    /// The client secret (RFC 6749 section 2.3.1). Prefer `client_secret_file`.
    #[serde(default)]
    #[schemars(
        length(min = 1),
        extend("writeOnly" = true),
        example = &"${ACME_CLIENT_SECRET}"
    )]
    pub client_secret: Option<Secret>,
    /// A file that holds the client secret, such as a Docker secret; white space at its
    /// end is not part of the secret. Instead of `client_secret`.
    #[serde(default)]
    #[schemars(length(min = 1), example = &"/run/secrets/acme")]
    pub client_secret_file: Option<PathBuf>,
    /// How the client proves itself to the token endpoint. Default: `basic` when there is
    /// a secret, else `none`. It is never guessed by trying: that would spend a refresh
    /// token twice.
    #[serde(default)]
    #[schemars(example = &"basic")]
    pub client_auth: Option<ClientAuth>,
    /// Form fields sent with every token request, such as `audience` or `resource`
    /// (RFC 8707).
    #[serde(default)]
    #[schemars(example = BTreeMap::from([("audience", "https://api.acme.example")]))]
    pub params: BTreeMap<String, String>,
    /// How long one token request may take, connecting included. 1s to 2m; always
    /// shorter than the lease of a credential.
    #[serde(default = "Provider::default_timeout", with = "duration")]
    #[schemars(with = "String", extend("format" = "duration", "x-range" = ["1s", "2m"]))]
    pub timeout: Duration,
    /// How many token requests may be in flight at once. A killed process can lose at most
    /// this many rotations. 1 to 1024.
    #[serde(default = "Provider::default_max_in_flight")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_in_flight: u32,
    /// A schedule does not refresh tokens younger than this, for providers that punish
    /// early refreshes. 1s to 365d. Default: no limit.
    #[serde(default, with = "duration::option")]
    #[schemars(
        with = "Option<String>",
        extend("format" = "duration", "x-range" = ["1s", "365d"]),
        example = &"10m"
    )]
    pub min_age: Option<Duration>,
    /// How long an access token lives when neither the answer (`expires_in`, RFC 6749
    /// section 5.1) nor the token itself tells. 1s to 365d. Default: 1h.
    #[serde(default, with = "duration::option")]
    #[schemars(
        with = "Option<String>",
        extend("format" = "duration", "x-range" = ["1s", "365d"]),
        example = &"1h"
    )]
    pub default_expires_in: Option<Duration>,
    /// How long a refresh token may lie unused before the provider drops it; it is
    /// refreshed well before, even if its access token still lives. 1m to 3650d. Default:
    /// unknown, no keep-alive.
    #[serde(default, with = "duration::option")]
    #[schemars(
        with = "Option<String>",
        extend("format" = "duration", "x-range" = ["1m", "3650d"]),
        example = &"60d"
    )]
    pub refresh_token_idle: Option<Duration>,
    /// Error codes of this provider that mean that only a new login helps, beside
    /// `invalid_grant` (RFC 6749 section 5.2).
    #[serde(default)]
    #[schemars(example = ["bad_refresh_token"])]
    pub needs_login_errors: Vec<String>,
    /// Allow `http://` to hosts other than loopback. Tokens and secrets then travel in
    /// clear text, against RFC 6749 section 3.2: only for tests in a closed network.
    #[serde(default)]
    pub allow_http: bool,
}

impl Provider {
    fn default_timeout() -> Duration {
        Duration::from_secs(30)
    }

    fn default_max_in_flight() -> u32 {
        16
    }

    /// How the client authenticates: `client_auth`, else `basic` when there is a secret,
    /// else `none`.
    pub fn authentication(&self) -> ClientAuth {
        let by_secret = match self.client_secret {
            Some(_) => ClientAuth::Basic,
            None => ClientAuth::None,
        };
        self.client_auth.unwrap_or(by_secret)
    }
}

/// One grant at one provider.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The name of a provider defined in `[providers.NAME]`.
    #[schemars(example = &"acme")]
    pub provider: Name,
    /// How access tokens are obtained.
    #[serde(default)]
    pub grant: Grant,
    /// The scopes to ask for (RFC 6749 section 3.3), one text each. Default: whatever was
    /// granted at the login.
    #[serde(default)]
    #[schemars(example = ["profile", "offline_access"])]
    pub scopes: Vec<String>,
    /// Form fields sent with the token requests of this credential, on top of the
    /// provider's `params`.
    #[serde(default)]
    #[schemars(example = BTreeMap::from([("resource", "https://api.acme.example")]))]
    pub params: BTreeMap<String, String>,
    /// A file with one line, the raw refresh token. It is imported once, when the store
    /// has no tokens for this credential.
    #[serde(default)]
    #[schemars(length(min = 1), example = &".acme_refresh_token")]
    pub refresh_token_file: Option<PathBuf>,
    /// Keep `refresh_token_file` current with each rotated refresh token, mode 0600, for
    /// other programs that read it.
    #[serde(default)]
    pub write_back: bool,
    /// The alert fires when the access token has less than this left. 1s to 365d.
    /// Default: a quarter of the token's life, at most 6h.
    #[serde(default, with = "duration::option")]
    #[schemars(
        with = "Option<String>",
        extend("format" = "duration", "x-range" = ["1s", "365d"]),
        example = &"6h"
    )]
    pub alert_threshold: Option<Duration>,
    /// Where each fresh access token is delivered. A sink never gets a refresh token.
    #[serde(default)]
    pub sinks: Vec<Plugin>,
}

/// How access tokens are obtained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// With a refresh token that a login gave (RFC 6749 section 6).
    #[default]
    RefreshToken,
    /// With the client's own secret, for a service without a user (RFC 6749 section 4.4).
    ClientCredentials,
}

/// One sink: its kind, and that kind's own keys beside it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Plugin {
    /// The kind of sink; `perennial config` shows them all.
    #[schemars(example = &"file")]
    pub kind: String,
    /// All other keys: the kind's own.
    #[serde(flatten)]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub settings: toml::Table,
}

/// One task: what runs, when, and what happens when it cannot.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Job {
    /// What the job does; `perennial config` shows the kinds. All keys not named below
    /// are the kind's own.
    #[schemars(example = &"token_refresh")]
    pub kind: String,
    /// A cron expression: 5 fields (minute first), 6 fields (second first), or a word
    /// such as `@hourly`. Default: none; the job runs when its kind finds it due, or when
    /// started by hand.
    #[serde(default)]
    #[schemars(example = &"0 */12 * * *")]
    pub schedule: Option<String>,
    /// The IANA time zone in which the schedule is read.
    #[serde(default = "Job::default_timezone")]
    #[schemars(extend("format" = "time-zone"))]
    pub timezone: String,
    /// What happens when the last run is still going.
    #[serde(default)]
    pub overlap: Overlap,
    /// Each run starts later by a part of this, always the same part for the same job,
    /// so that many jobs do not start in the same second. 0s to 1d.
    #[serde(default, with = "duration")]
    #[schemars(with = "String", extend("format" = "duration", "x-range" = ["0s", "1d"]))]
    pub jitter: Duration,
    /// How long one run may take before it is cancelled. 1s to 1d.
    #[serde(default = "Job::default_timeout", with = "duration")]
    #[schemars(with = "String", extend("format" = "duration", "x-range" = ["1s", "1d"]))]
    pub timeout: Duration,
    /// How often a failed run is tried again, with growing pauses. 0 to 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub retries: u32,
    /// What happens at start when firings were missed while the service was down.
    #[serde(default)]
    pub misfire: Misfire,
    /// All other keys: the kind's own.
    #[serde(flatten)]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub settings: toml::Table,
}

impl Job {
    fn default_timezone() -> String {
        "UTC".to_owned()
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(600)
    }

    /// The time zone of `timezone`, which the loader has checked; UTC for a job made by
    /// hand with a name that is none.
    pub fn tz(&self) -> Tz {
        self.timezone.parse().unwrap_or(Tz::UTC)
    }
}

/// What happens when a job is due while its last run is still going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The new run does not take place.
    #[default]
    Skip,
    /// One run waits for the last to end; more are skipped.
    QueueOne,
    /// Both run.
    Allow,
}

/// What happens at start when firings were missed while the service was down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Misfire {
    /// One run makes up for all missed ones.
    #[default]
    RunOnce,
    /// Missed firings stay missed.
    Skip,
}

/// One kind of job or sink, as its plugin describes it to the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The name that users write as `kind = "…"`.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// The schema of its own keys, made from the doc comments of its settings type.
    pub schema: fn() -> schemars::Schema,
    /// Checks that go beyond the schema; called only when keys and types are right. The
    /// error is one sentence `what is wrong; the cure`, without the place.
    pub check: fn(&toml::Table) -> Result<(), String>,
    /// Its own keys as TOML lines, for the example configuration; may be empty.
    pub example: &'static str,
}

/// The kinds that this program knows.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    /// The kinds of jobs.
    pub jobs: Vec<Kind>,
    /// The kinds of sinks.
    pub sinks: Vec<Kind>,
}

#[cfg(test)]
mod tests;
