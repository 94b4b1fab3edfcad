//! Token endpoints that break, lie and babble: what the user of the real binary then sees, that
//! nothing is lost by it, and how often such a server is asked in the days that follow.
//!
//! One behaviour is one [`Behaviour`]: what the server does to one request, and what must be seen.
//! Those of a section share a service, in which each has a credential and a provider of its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use chrono::TimeDelta;
use perennial::{
    clock::{Clock, SystemClock, Timestamp},
    credential::State,
};
use serde_json::{Value, json};

use crate::refresh_path::{Kind, Place};
use crate::support::{
    fake_server::{At, Deed, FakeServer, Request},
    fault_table::Fault,
    perennial::{Perennial, Service},
    wait,
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Part of every secret. Small letters, so that a token could pass for an error code.
const MARK: &str = "plantedsecret";

/// What a server does to one request, and what comes of it.
struct Behaviour {
    /// The credential, its provider, and the path of its token endpoint.
    name: String,
    /// The fault, for the table. Behaviours that share it share a row.
    does: &'static str,
    deed: Arc<dyn Fn(&Turn) -> Deed + Send + Sync>,
    seen: Seen,
}

/// The request that it is done to.
struct Turn {
    /// What a good server would answer: a token for an hour, and a new refresh token.
    good: Value,
    /// The refresh token that was sent.
    spent: String,
    /// The port that it was sent to.
    port: u16,
    /// When.
    now: Timestamp,
}

impl Turn {
    /// The good answer with another value for this field.
    fn with(&self, field: &str, value: impl Into<Value>) -> Value {
        let mut answer = self.good.clone();
        answer[field] = value.into();
        answer
    }

    /// The good answer without this field.
    fn without(&self, field: &str) -> Value {
        let mut answer = self.good.clone();
        answer.as_object_mut().expect("an object").remove(field);
        answer
    }

    /// A date so many seconds from now, as HTTP writes it.
    fn in_seconds(&self, seconds: i64) -> String {
        let at = self.now + TimeDelta::seconds(seconds);
        at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    /// The good answer, with this text in the place of the lifetime.
    fn with_raw_lifetime(&self, text: &str) -> Deed {
        let marked = self.with("expires_in", "here").to_string();
        Deed::json(200, marked.replace("\"here\"", text))
    }

    fn deed(&self) -> Deed {
        Deed::json(200, &self.good)
    }
}

/// What the user sees.
#[derive(Clone, Copy)]
enum Seen {
    /// New tokens.
    Tokens {
        /// How long the access token is believed to live, in seconds.
        lives: f64,
        /// Where that is known from, as `token_lifetime_seconds` says.
        source: &'static str,
        /// The refresh token to be spent next.
        next: Successor,
    },
    /// A failure.
    Failed {
        /// As `refresh_failures_total` says.
        reason: &'static str,
        /// As the log says.
        detail: &'static str,
        /// When it is tried again.
        next: Next,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Successor {
    /// The one in the answer.
    New,
    /// The one that was spent.
    Same,
    /// This one.
    Odd(&'static str),
}

/// When a failed attempt is repeated.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// At once: the answer may have been lost after a rotation.
    Replay,
    /// Within 10 s.
    Retry,
    /// The same, with the refresh token of the answer.
    RetryWithNew,
    /// When the server said, give or take this many seconds for the way.
    Named(u64),
    /// In minutes: the operator must change something.
    Slowly,
    /// When a person has logged in again.
    Never,
}

const fn tokens(lives: f64, source: &'static str) -> Seen {
    let next = Successor::New;
    Seen::Tokens {
        lives,
        source,
        next,
    }
}

const fn failed(reason: &'static str, detail: &'static str, next: Next) -> Seen {
    Seen::Failed {
        reason,
        detail,
        next,
    }
}

/// A good answer, read as it was meant.
const GOOD: Seen = tokens(3600.0, "answer");

/// The server may have rotated, and its answer is not known.
const fn lost(reason: &'static str, detail: &'static str) -> Seen {
    failed(reason, detail, Next::Replay)
}

fn behaviour(
    name: impl Into<String>,
    does: &'static str,
    deed: impl Fn(&Turn) -> Deed + Send + Sync + 'static,
    seen: Seen,
) -> Behaviour {
    Behaviour {
        name: name.into(),
        does,
        deed: Arc::new(deed),
        seen,
    }
}

/// Nothing from there on is sent, for as long as the client has patience.
fn hangs(at: At, deed: Deed) -> Deed {
    let (release, deed) = deed.held_at(at);
    // The thread that waits for it ends with the test.
    std::mem::forget(release);
    deed
}

// How a connection ends

fn connections() -> Vec<Behaviour> {
    const SILENT: Seen = lost("timeout", "no_answer_in_time");
    const BROKEN: Seen = lost("network", "connection_broke");
    vec![
        behaviour(
            "hangs-before-headers",
            "No answer, and the connection stays open",
            |turn| hangs(At::Start, turn.deed()),
            SILENT,
        ),
        behaviour(
            "hangs-before-body",
            "The headers come, and no body",
            |turn| hangs(At::Body(0), turn.deed()),
            SILENT,
        ),
        behaviour(
            "hangs-in-body",
            "Half of the body comes",
            |turn| hangs(At::Body(60), turn.deed()),
            SILENT,
        ),
        behaviour(
            "hangs-dripping",
            "A byte now and then, for ever",
            |turn| turn.deed().slowly(Duration::from_millis(50)),
            SILENT,
        ),
        behaviour(
            "hangs-with-1xx",
            "`102 Processing` again and again",
            |turn| {
                let again = "HTTP/1.1 102 Processing\r\n\r\n";
                let pause = Duration::from_millis(5);
                let nothing = turn.deed().ending(At::Start);
                nothing.and_forever(again).slowly(pause)
            },
            SILENT,
        ),
        behaviour(
            "closes",
            "The connection is closed without a word",
            |_| Deed::close(),
            BROKEN,
        ),
        behaviour(
            "closes-in-body",
            "The connection is closed in the middle of the body",
            |turn| turn.deed().ending(At::Body(60)),
            BROKEN,
        ),
        behaviour(
            "resets-before-headers",
            "A TCP reset before the headers",
            |_| Deed::close().then_reset(),
            BROKEN,
        ),
        behaviour(
            "resets-before-body",
            "A TCP reset between headers and body",
            |turn| turn.deed().ending(At::Body(0)).then_reset(),
            BROKEN,
        ),
        behaviour(
            "resets-in-body",
            "A TCP reset in the middle of the body",
            |turn| turn.deed().ending(At::Body(60)).then_reset(),
            BROKEN,
        ),
        behaviour(
            "garbage",
            "Something that is not HTTP",
            |_| Deed::raw("\u{1}\u{2}garbage\r\n", "\u{0}").and_forever("garbage"),
            BROKEN,
        ),
        behaviour(
            "endless-status-line",
            "A status line without end",
            |_| Deed::close().and_forever("HTTP/1.1 200 OK and so on "),
            BROKEN,
        ),
        behaviour(
            "thousand-headers",
            "A thousand headers",
            |turn| {
                let add = |deed: Deed, number| deed.with_header(&format!("x-{number}"), "x");
                (0..1_000).fold(turn.deed(), add)
            },
            BROKEN,
        ),
        behaviour(
            "two-lengths",
            "Two different `Content-Length`",
            |turn| turn.deed().with_header("content-length", "7"),
            BROKEN,
        ),
        behaviour(
            "length-too-long",
            "A `Content-Length` longer than the body",
            |turn| {
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n";
                Deed::raw(head, turn.good.to_string())
            },
            BROKEN,
        ),
        behaviour(
            "length-too-short",
            "A `Content-Length` shorter than the body",
            |turn| {
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n";
                Deed::raw(head, turn.good.to_string())
            },
            lost("bad_answer", "http_200"),
        ),
        behaviour(
            "large-headers",
            "64 KB of headers",
            |turn| turn.deed().with_header("x-large", "x".repeat(64 * 1024)),
            GOOD,
        ),
        behaviour(
            "http-1-0",
            "HTTP/1.0, and the end of the connection is the end of the body",
            |turn| Deed::raw("HTTP/1.0 200 OK\r\n", turn.good.to_string()),
            GOOD,
        ),
        behaviour(
            "early-hints",
            "`100 Continue` and `103 Early Hints` before the answer",
            |turn| {
                let head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\
                            link: </x>\r\n\r\nHTTP/1.1 200 OK\r\n";
                Deed::raw(head, turn.good.to_string())
            },
            GOOD,
        ),
        behaviour(
            "slow",
            "An answer byte by byte that ends in time",
            |turn| turn.deed().slowly(Duration::from_millis(1)),
            GOOD,
        ),
    ]
}

// What stands in a body

/// Ten megabytes of zeros in ten kilobytes.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&vec![0; 10_000_000]).expect("it grows");
    packer.finish().expect("it is memory")
});

/// A token that nobody wants.
static TEN_MEGABYTES: LazyLock<String> =
    LazyLock::new(|| format!("{{\"access_token\":\"{}\"}}", "x".repeat(10_000_000)));

/// A chunk of 64 KB, as HTTP writes it.
static CHUNK: LazyLock<String> = LazyLock::new(|| format!("10000\r\n{}\r\n", "x".repeat(65_536)));

fn bodies() -> Vec<Behaviour> {
    const UNREADABLE: Seen = lost("bad_answer", "http_200");
    const TOO_LARGE: Seen = lost("bad_answer", "answer_too_large");
    // Nothing is ever unpacked, so that the same bytes serve for all encodings.
    fn bomb(encoding: &'static str) -> impl Fn(&Turn) -> Deed {
        move |_| {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
                BOMB.len()
            );
            Deed::raw(head, BOMB.as_slice()).with_header("content-encoding", encoding)
        }
    }
    vec![
        behaviour(
            "torn-json",
            "JSON that ends in the middle",
            |turn| Deed::json(200, &turn.good.to_string()[..60]),
            UNREADABLE,
        ),
        behaviour(
            "ten-megabytes",
            "A body of 10 MB",
            |_| Deed::json(200, TEN_MEGABYTES.as_str()),
            TOO_LARGE,
        ),
        behaviour(
            "endless-body",
            "A body without end",
            |_| Deed::raw("HTTP/1.1 200 OK\r\n", "").and_forever("{\"access_token\":"),
            TOO_LARGE,
        ),
        behaviour(
            "endless-chunks",
            "Chunks without end",
            |_| {
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";
                Deed::raw(head, "").and_forever(CHUNK.as_str())
            },
            TOO_LARGE,
        ),
        behaviour(
            "html-with-200",
            "HTML with status 200",
            |_| Deed::text(200, "text/html", "<html><title>Sign in</title></html>"),
            UNREADABLE,
        ),
        behaviour(
            "empty-200",
            "An empty 200",
            |_| Deed::json(200, ""),
            UNREADABLE,
        ),
        behaviour(
            "a-list",
            "JSON that is no object",
            |turn| Deed::json(200, json!([turn.good])),
            UNREADABLE,
        ),
        behaviour(
            "infinite-lifetime",
            "`Infinity`, which is not JSON, as `expires_in`",
            |turn| turn.with_raw_lifetime("Infinity"),
            UNREADABLE,
        ),
        behaviour(
            "status-204",
            "204 No Content",
            |_| no_content(),
            lost("bad_answer", "http_204"),
        ),
        behaviour("bomb-gzip", "A gzip bomb", bomb("gzip"), UNREADABLE),
        behaviour("bomb-brotli", "A brotli bomb", bomb("br"), UNREADABLE),
        behaviour("bomb-zstd", "A zstd bomb", bomb("zstd"), UNREADABLE),
        behaviour(
            "wrong-type",
            "Tokens under the content type of HTML",
            |turn| Deed::text(200, "text/html; charset=latin1", &turn.good.to_string()),
            GOOD,
        ),
        behaviour(
            "byte-order-mark",
            "A byte order mark before the JSON",
            |turn| Deed::json(200, format!("\u{feff}{}", turn.good)),
            GOOD,
        ),
        behaviour(
            "latin-1",
            "A name in Latin-1 beside the tokens",
            |turn| {
                let text = turn.with("name", "Jos#").to_string();
                let latin_1 = text
                    .bytes()
                    .map(|byte| if byte == b'#' { 0xe9 } else { byte });
                Deed::raw("HTTP/1.1 200 OK\r\n", latin_1.collect::<Vec<_>>())
            },
            GOOD,
        ),
        behaviour(
            "form",
            "A form in the place of JSON",
            |turn| {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                for (name, value) in turn.good.as_object().expect("an object") {
                    form.append_pair(name, value.as_str().unwrap_or("3600"));
                }
                Deed::text(200, "application/x-www-form-urlencoded", &form.finish())
            },
            GOOD,
        ),
    ]
}

fn no_content() -> Deed {
    Deed::raw("HTTP/1.1 204 No Content\r\n", "")
}

// Statuses and headers

fn statuses() -> Vec<Behaviour> {
    let mut all = Vec::new();
    for (status, does, detail) in [
        (301, "301, to the same host and to another", "http_301"),
        (302, "302, to the same host and to another", "http_302"),
        (303, "303, to the same host and to another", "http_303"),
        (307, "307, to the same host and to another", "http_307"),
        (308, "308, to the same host and to another", "http_308"),
    ] {
        let seen = failed("bad_answer", detail, Next::Retry);
        for (way, host) in [("near", "127.0.0.1"), ("far", "localhost")] {
            let deed = move |turn: &Turn| {
                let location = format!("http://{host}:{}/elsewhere", turn.port);
                Deed::text(status, "text/plain", "").with_header("location", location)
            };
            all.push(behaviour(
                format!("redirect-{status}-{way}"),
                does,
                deed,
                seen,
            ));
        }
    }
    let retry_after = |name: &str, does, value: fn(&Turn) -> String, next| {
        let seen = failed("rate_limited", "http_429", next);
        let deed = move |turn: &Turn| {
            Deed::text(429, "text/plain", "").with_header("retry-after", value(turn))
        };
        behaviour(name, does, deed, seen)
    };
    all.extend([
        retry_after(
            "wait-seconds",
            "429, `Retry-After` in seconds",
            |_| "120".into(),
            Next::Named(120),
        ),
        retry_after(
            "wait-date",
            "429, `Retry-After` as a date",
            |turn| turn.in_seconds(300),
            Next::Named(300),
        ),
        retry_after(
            "wait-year",
            "429, `Retry-After` of a year",
            |_| "31536000".into(),
            Next::Named(3600),
        ),
        retry_after(
            "wait-year-date",
            "429, `Retry-After` as a date in a year",
            |turn| turn.in_seconds(31_536_000),
            Next::Named(3600),
        ),
        retry_after(
            "wait-huge",
            "429, `Retry-After` beyond 64 bits",
            |_| "99999999999999999999999".into(),
            Next::Named(3600),
        ),
        retry_after(
            "wait-past",
            "429, `Retry-After` as a date in the past",
            |turn| turn.in_seconds(-3600),
            Next::Retry,
        ),
        retry_after(
            "wait-zero",
            "429, `Retry-After: 0`",
            |_| "0".into(),
            Next::Retry,
        ),
        retry_after(
            "wait-negative",
            "429, `Retry-After: -5`",
            |_| "-5".into(),
            Next::Retry,
        ),
        retry_after(
            "wait-garbage",
            "429, `Retry-After: soon`",
            |_| "soon".into(),
            Next::Retry,
        ),
        behaviour(
            "wait-none",
            "429 without `Retry-After`",
            |_| Deed::json(429, "{}"),
            failed("rate_limited", "http_429", Next::Retry),
        ),
        behaviour(
            "status-503",
            "503",
            |_| Deed::text(503, "text/html", "<html>"),
            failed("server_error", "http_503", Next::Retry),
        ),
        behaviour(
            "wait-503",
            "503 with `Retry-After: 120`",
            |_| Deed::json(503, "{}").with_header("retry-after", "120"),
            failed("server_error", "http_503", Next::Named(120)),
        ),
        behaviour(
            "wait-400",
            "400 `invalid_client` with `Retry-After: 1800`",
            |_| Deed::error(400, "invalid_client").with_header("retry-after", "1800"),
            failed("misconfigured", "invalid_client", Next::Named(1800)),
        ),
        behaviour(
            "status-500",
            "500",
            |_| Deed::json(500, ""),
            failed("server_error", "http_500", Next::Retry),
        ),
        behaviour(
            "status-502",
            "502: a gateway that lost its server, which may have rotated",
            |_| Deed::json(502, ""),
            lost("server_error", "http_502"),
        ),
        behaviour(
            "status-504",
            "504: a gateway that lost its server, which may have rotated",
            |_| Deed::json(504, ""),
            lost("server_error", "http_504"),
        ),
        behaviour(
            "status-408",
            "408",
            |_| Deed::json(408, ""),
            failed("server_error", "http_408", Next::Retry),
        ),
        behaviour(
            "empty-400",
            "An empty 400",
            |_| Deed::json(400, ""),
            failed("bad_answer", "http_400", Next::Retry),
        ),
        behaviour(
            "empty-401",
            "An empty 401",
            |_| Deed::json(401, ""),
            failed("bad_answer", "http_401", Next::Retry),
        ),
        behaviour(
            "status-404",
            "404 with HTML",
            |_| Deed::text(404, "text/html", "<html>"),
            failed("bad_answer", "http_404", Next::Retry),
        ),
    ]);
    all
}

// What the answer says of the tokens

fn answers() -> Vec<Behaviour> {
    const ASSUMED: Seen = tokens(3600.0, "assumed");
    const CENTURY: Seen = tokens(3_153_600_000.0, "answer");
    const NONE: Seen = lost("bad_answer", "no_access_token");
    const ALONE: Seen = failed("bad_answer", "no_access_token", Next::RetryWithNew);
    const SAME: Seen = Seen::Tokens {
        lives: 3600.0,
        source: "answer",
        next: Successor::Same,
    };
    fn lifetime(name: &str, does: &'static str, text: &'static str, seen: Seen) -> Behaviour {
        behaviour(name, does, move |turn| turn.with_raw_lifetime(text), seen)
    }
    vec![
        lifetime(
            "lives-string",
            "`expires_in` as a string",
            "\"1800\"",
            tokens(1800.0, "answer"),
        ),
        lifetime(
            "lives-float",
            "`expires_in: 1800.75`",
            "1800.75",
            tokens(1800.75, "answer"),
        ),
        behaviour(
            "lives-missing",
            "No `expires_in`",
            |turn| Deed::json(200, turn.without("expires_in")),
            ASSUMED,
        ),
        lifetime("lives-zero", "`expires_in: 0`", "0", ASSUMED),
        lifetime("lives-negative", "`expires_in: -3600`", "-3600", ASSUMED),
        lifetime("lives-null", "`expires_in: null`", "null", ASSUMED),
        lifetime(
            "lives-object",
            "`expires_in` as an object",
            "{\"seconds\":60}",
            ASSUMED,
        ),
        lifetime("lives-words", "`expires_in: \"soon\"`", "\"soon\"", ASSUMED),
        lifetime("lives-nan", "`expires_in: \"NaN\"`", "\"NaN\"", ASSUMED),
        lifetime("lives-1e18", "`expires_in: 1e18`", "1e18", CENTURY),
        lifetime(
            "lives-2-64",
            "`expires_in` of 2^64",
            "18446744073709551616",
            CENTURY,
        ),
        lifetime(
            "lives-infinite",
            "`expires_in: \"inf\"`",
            "\"inf\"",
            CENTURY,
        ),
        lifetime(
            "lives-a-second",
            "`expires_in: 1`",
            "1",
            tokens(1.0, "answer"),
        ),
        lifetime(
            "lives-a-millisecond",
            "`expires_in: 0.001`",
            "0.001",
            tokens(0.001, "answer"),
        ),
        behaviour(
            "wants-to-be-asked",
            "`refresh_in: 1` beside a lifetime of an hour",
            |turn| Deed::json(200, turn.with("refresh_in", 1)),
            GOOD,
        ),
        behaviour(
            "same-refresh-token",
            "The new refresh token is the old one",
            |turn| Deed::json(200, turn.with("refresh_token", &*turn.spent)),
            SAME,
        ),
        behaviour(
            "refresh-token-missing",
            "No new refresh token",
            |turn| Deed::json(200, turn.without("refresh_token")),
            SAME,
        ),
        behaviour(
            "refresh-token-empty",
            "An empty refresh token",
            |turn| Deed::json(200, turn.with("refresh_token", "")),
            SAME,
        ),
        behaviour(
            "refresh-token-null",
            "`refresh_token: null`",
            |turn| Deed::json(200, turn.with("refresh_token", Value::Null)),
            SAME,
        ),
        behaviour(
            "refresh-token-number",
            "A number as refresh token",
            |turn| Deed::json(200, turn.with("refresh_token", 7)),
            SAME,
        ),
        behaviour(
            "refresh-token-odd",
            "Line breaks, NUL and an emoji in a refresh token",
            |turn| Deed::json(200, turn.with("refresh_token", ODD)),
            Seen::Tokens {
                lives: 3600.0,
                source: "answer",
                next: Successor::Odd(ODD),
            },
        ),
        behaviour(
            "access-token-odd",
            "Line breaks and NUL in an access token",
            |turn| {
                Deed::json(
                    200,
                    turn.with("access_token", format!("{MARK}\r\nx: y\u{0}")),
                )
            },
            GOOD,
        ),
        behaviour(
            "twice",
            "Each field twice",
            |turn| {
                let first = json!({ "access_token": "x", "refresh_token": "x", "expires_in": 7 });
                let twice = format!("{first}{}", turn.good).replace("}{", ",");
                Deed::json(200, twice)
            },
            GOOD,
        ),
        behaviour(
            "access-token-64-kb",
            "An access token of 64 KB",
            |turn| Deed::json(200, turn.with("access_token", "x".repeat(64 * 1024))),
            GOOD,
        ),
        behaviour(
            "access-token-missing",
            "No access token",
            |_| Deed::json(200, json!({ "expires_in": 3600 })),
            NONE,
        ),
        behaviour(
            "access-token-empty",
            "An empty access token",
            |_| Deed::json(200, json!({ "access_token": "" })),
            NONE,
        ),
        behaviour(
            "access-token-number",
            "A number as access token",
            |_| Deed::json(200, json!({ "access_token": 7 })),
            NONE,
        ),
        behaviour(
            "refresh-token-alone",
            "A new refresh token without an access token",
            |turn| Deed::json(200, turn.without("access_token")),
            ALONE,
        ),
        behaviour(
            "refresh-token-beside-an-error",
            "A new refresh token beside an `error`, with 200",
            |turn| {
                let mut answer = turn.without("access_token");
                answer["error"] = "invalid_request".into();
                Deed::json(200, answer)
            },
            ALONE,
        ),
        behaviour(
            "token-type-strange",
            "A strange `token_type`",
            |turn| Deed::json(200, turn.with("token_type", "\n<b>")),
            GOOD,
        ),
        behaviour(
            "token-type-number",
            "A number as `token_type`",
            |turn| Deed::json(200, turn.with("token_type", 7)),
            GOOD,
        ),
        behaviour(
            "beside-an-error",
            "Tokens beside an `error`, with 200",
            |turn| Deed::json(200, turn.with("error", "server_error")),
            GOOD,
        ),
    ]
}

/// See `refresh-token-odd`.
const ODD: &str = "plantedsecret\r\nx: y\u{0}&refresh_token=%🔑";

// Error codes

fn error_codes() -> Vec<Behaviour> {
    const STATUSES: [u16; 6] = [200, 400, 401, 403, 429, 500];
    let mut all = Vec::new();
    for (does, code, seen) in [
        (
            "`invalid_grant`",
            "invalid_grant",
            failed("needs_login", "invalid_grant", Next::Never),
        ),
        (
            "`invalid_request`",
            "invalid_request",
            failed("misconfigured", "invalid_request", Next::Slowly),
        ),
        (
            "`invalid_client`",
            "invalid_client",
            failed("misconfigured", "invalid_client", Next::Slowly),
        ),
        (
            "`unauthorized_client`",
            "unauthorized_client",
            failed("misconfigured", "unauthorized_client", Next::Slowly),
        ),
        (
            "`unsupported_grant_type`",
            "unsupported_grant_type",
            failed("misconfigured", "unsupported_grant_type", Next::Slowly),
        ),
        (
            "`invalid_scope`",
            "invalid_scope",
            failed("misconfigured", "invalid_scope", Next::Slowly),
        ),
        (
            "`server_error`",
            "server_error",
            failed("server_error", "server_error", Next::Retry),
        ),
        (
            "`temporarily_unavailable`",
            "temporarily_unavailable",
            failed("server_error", "temporarily_unavailable", Next::Retry),
        ),
        (
            "`slow_down`",
            "slow_down",
            failed("rate_limited", "slow_down", Next::Retry),
        ),
    ] {
        for status in STATUSES {
            let name = format!("{}-{status}", code.replace('_', "-"));
            all.push(behaviour(
                name,
                does,
                move |_| Deed::error(status, code),
                seen,
            ));
        }
    }
    for status in STATUSES {
        // Of a code that nobody knows, the status decides.
        let (does, reason, next) = match status {
            429 => ("An unknown code with 429", "rate_limited", Next::Retry),
            500 => ("An unknown code with 500", "server_error", Next::Retry),
            _ => (
                "An unknown code with 200, 400, 401, 403",
                "misconfigured",
                Next::Slowly,
            ),
        };
        let seen = failed(reason, "tea_pot_empty", next);
        let deed = move |_: &Turn| Deed::error(status, "tea_pot_empty");
        all.push(behaviour(format!("unknown-{status}"), does, deed, seen));
    }
    let hidden = failed("misconfigured", "unreadable_code", Next::Slowly);
    all.push(behaviour(
        "echo",
        "Our own refresh token as the error code",
        |turn| Deed::error(400, &turn.spent),
        hidden,
    ));
    all.push(behaviour(
        "echo-part",
        "A part of our refresh token as the error code",
        |_| Deed::error(400, MARK),
        hidden,
    ));
    all.push(behaviour(
        "described",
        "Our tokens in `error_description` and `error_uri`",
        |turn| {
            let body = json!({
                "error": "invalid_scope",
                "error_description": turn.good,
                "error_uri": format!("https://x.example/{}", turn.spent),
            });
            Deed::json(400, body)
        },
        failed("misconfigured", "invalid_scope", Next::Slowly),
    ));
    all.push(behaviour(
        "error-number",
        "A number as `error`, with 400",
        |_| Deed::json(400, json!({ "error": 7 })),
        failed("bad_answer", "http_400", Next::Retry),
    ));
    all
}

#[test]
fn connections_that_break() {
    try_all(&connections());
}

#[test]
fn bodies_that_are_no_answer() {
    try_all(&bodies());
}

#[test]
fn statuses_and_named_times() {
    try_all(&statuses());
}

#[test]
fn answers_that_lie_about_tokens() {
    try_all(&answers());
}

#[test]
fn every_error_code_with_every_status() {
    try_all(&error_codes());
}

/// Does everything to one service, each thing to a credential with a live token; looks at what a
/// user sees; and makes sure that each goes on with the right refresh token when the server has
/// come to its senses.
fn try_all(behaviours: &[Behaviour]) {
    let endpoint = Endpoint::start(behaviours);
    let perennial = perennial(behaviours, &endpoint.server);
    let mut service = perennial.serve();
    wait::until("the first tokens", PATIENCE, || {
        let metrics = service.metrics();
        let waiting = behaviours.iter().filter(|behaviour| {
            let labels = behaviour.labels();
            !metrics.contains(&format!("\ntoken_version{{{labels}}} 2\n"))
        });
        let waiting: Vec<&str> = waiting.map(|behaviour| &*behaviour.name).collect();
        waiting
            .is_empty()
            .then_some(())
            .ok_or(format!("{waiting:?}"))
    });

    thread::scope(|scope| {
        for behaviour in behaviours {
            scope.spawn(|| refresh(&perennial, &behaviour.name));
        }
    });
    let seen = What::is_seen(&perennial, &mut service);
    let mut complaints: Vec<String> = Vec::new();
    for behaviour in behaviours {
        let (name, expected) = (&behaviour.name, behaviour.seen.sentence());
        let differences = seen.differences(behaviour).into_iter();
        complaints
            .extend(differences.map(|seen| format!("{name}: {seen}\n    wanted: {expected}")));
    }

    endpoint.come_to_your_senses();
    for behaviour in behaviours {
        let name = &behaviour.name;
        if behaviour.is_dead() {
            let answer =
                perennial.control("PUT", &format!("/{name}/refresh-token"), &token(name, 9));
            assert!(answer.contains("refresh token saved"), "{name}: {answer}");
        }
        // The second one spends what the first one brought.
        for _ in 0..2 {
            wait::until(&format!("{name} to recover"), PATIENCE, || {
                let answer = refresh(&perennial, name);
                let refreshed = answer.contains("refreshed, now version");
                refreshed.then_some(()).ok_or(answer)
            });
        }
    }
    complaints.extend(endpoint.complaints());
    let finished = service.stop();
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    for output in [&finished.stdout, &finished.stderr] {
        for line in output
            .lines()
            .filter(|line| line.contains(MARK) || line.contains("panicked"))
        {
            complaints.push(format!("in the log: {line}"));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    record(behaviours, &endpoint);
}

/// One row for each fault.
fn record(behaviours: &[Behaviour], endpoint: &Endpoint) {
    let refused = endpoint.refused();
    let mut rows: BTreeMap<&str, Vec<&Behaviour>> = BTreeMap::new();
    for behaviour in behaviours {
        rows.entry(behaviour.does).or_default().push(behaviour);
    }
    // In the order of this file, so that the table reads like it.
    let mut done: Vec<&str> = Vec::new();
    for behaviour in behaviours {
        let fault = behaviour.does;
        if done.contains(&fault) {
            continue;
        }
        done.push(fault);
        let same = &rows[fault];
        let seen = behaviour.seen.sentence();
        assert!(
            same.iter().all(|other| other.seen.sentence() == seen),
            "{fault}"
        );
        let is_lost = |other: &&&Behaviour| other.is_dead() || refused.contains(&other.name);
        Fault {
            section: "Hostile servers",
            fault,
            tries: same.len(),
            lost: same.iter().filter(is_lost).count(),
            seen: &seen,
        }
        .record();
    }
}

fn perennial(behaviours: &[Behaviour], endpoint: &FakeServer) -> Perennial {
    let mut config = "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    for Behaviour { name, .. } in behaviours {
        let timeout = if name.starts_with("hangs") {
            "1s"
        } else {
            "30s"
        };
        let url = endpoint.url(&format!("/{name}"));
        write!(
            config,
            "[providers.{name}]\ntoken_url = \"{url}\"\nclient_id = \"client\"\n\
             timeout = \"{timeout}\"\n[credentials.{name}]\nprovider = \"{name}\"\n\
             refresh_token_file = \"{name}.refresh\"\n"
        )
        .expect("strings grow");
    }
    let perennial = Perennial::with_config(&config);
    for Behaviour { name, .. } in behaviours {
        perennial.write(&format!("{name}.refresh"), &token(name, 0));
    }
    perennial
}

fn refresh(perennial: &Perennial, name: &str) -> String {
    perennial.control("POST", &format!("/{name}/refresh"), "")
}

/// The refresh token that a path gives with its n-th answer; number 0 is there from the start.
fn token(name: &str, number: usize) -> String {
    format!("{MARK}_{}_{}", name.replace('-', "_"), "x".repeat(number))
}

/// The token endpoints. Each is good to its first request, misbehaves at the second, and keeps all
/// others waiting; later it is good to all. It knows which refresh token is valid, and refuses any
/// other.
struct Endpoint {
    server: FakeServer,
    paths: Arc<Mutex<BTreeMap<String, Path>>>,
    sane: Arc<AtomicBool>,
}

struct Path {
    valid: String,
    requests: usize,
    refused: bool,
    deed: Arc<dyn Fn(&Turn) -> Deed + Send + Sync>,
    seen: Seen,
}

impl Endpoint {
    fn start(behaviours: &[Behaviour]) -> Self {
        let server = FakeServer::start();
        let path = |behaviour: &Behaviour| {
            let path = Path {
                valid: token(&behaviour.name, 0),
                requests: 0,
                refused: false,
                deed: behaviour.deed.clone(),
                seen: behaviour.seen,
            };
            (behaviour.name.clone(), path)
        };
        let paths = Arc::new(Mutex::new(behaviours.iter().map(path).collect()));
        let sane = Arc::new(AtomicBool::new(false));
        let port = server.address().port();
        let (known, flag) = (paths.clone(), sane.clone());
        server.always(move |request| answer(&known, &flag, port, request));
        Self {
            server,
            paths,
            sane,
        }
    }

    fn come_to_your_senses(&self) {
        self.sane.store(true, Ordering::SeqCst);
    }

    /// The credentials whose refresh token is not the right one any more.
    fn refused(&self) -> Vec<String> {
        let paths = self.paths.lock().expect("nothing panics under it");
        let refused = paths.iter().filter(|(_, path)| path.refused);
        refused.map(|(name, _)| name.clone()).collect()
    }

    /// What should never have been sent.
    fn complaints(&self) -> Vec<String> {
        let names: Vec<String> = {
            let paths = self.paths.lock().expect("nothing panics under it");
            paths.keys().map(|name| format!("/{name}")).collect()
        };
        let mut complaints: Vec<String> = self.refused();
        for complaint in &mut complaints {
            complaint.push_str(": sent another refresh token than the valid one");
        }
        for request in self.server.requests() {
            if !names.contains(&request.path) {
                complaints.push(format!("sent to where nobody is: {request:?}"));
            }
            if request.header("accept-encoding").is_some() {
                complaints.push(format!("asked for compression: {request:?}"));
            }
        }
        complaints
    }
}

fn answer(
    paths: &Mutex<BTreeMap<String, Path>>,
    sane: &AtomicBool,
    port: u16,
    request: &Request,
) -> Deed {
    let name = request.path.trim_start_matches('/');
    let spent = request.refresh_token();
    let in_time = |path: &Path| path.requests <= 2 || sane.load(Ordering::SeqCst);
    let mut paths = paths.lock().expect("nothing panics under it");
    let Some(path) = paths.get_mut(name) else {
        return Deed::text(404, "text/plain", "");
    };
    path.requests += 1;
    if !in_time(path) {
        drop(paths);
        while !sane.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        return Deed::error(503, "temporarily_unavailable");
    }
    let misbehaves = path.requests == 2;
    // A person who logs in again gets a new one.
    if path.seen.is_dead() && spent == token(name, 9) {
        path.valid = spent.clone();
    }
    if spent != path.valid {
        path.refused = true;
        return Deed::error(400, "invalid_grant");
    }
    let new = token(name, path.requests);
    let good = json!({
        "access_token": format!("{MARK}.access.{}", path.requests),
        "refresh_token": new,
        "expires_in": 3600,
        "token_type": "Bearer",
    });
    if !misbehaves {
        path.valid = new;
        return Deed::json(200, good);
    }
    match path.seen {
        Seen::Tokens {
            next: Successor::New,
            ..
        }
        | Seen::Failed {
            next: Next::RetryWithNew,
            ..
        } => path.valid = new,
        Seen::Tokens {
            next: Successor::Odd(odd),
            ..
        } => path.valid = odd.to_owned(),
        Seen::Tokens { .. } | Seen::Failed { .. } => {}
    }
    let deed = path.deed.clone();
    drop(paths);
    deed(&Turn {
        good,
        spent,
        port,
        now: SystemClock::new().now().wall,
    })
}

/// What a user sees of all credentials, at one moment.
struct What {
    statuses: BTreeMap<String, Value>,
    metrics: String,
    log: Vec<Value>,
}

impl What {
    fn is_seen(perennial: &Perennial, service: &mut Service) -> Self {
        let answer = perennial.control("GET", "", "");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let statuses: Vec<Value> = serde_json::from_str(body).expect("JSON");
        let name = |status: &Value| status["name"].as_str().expect("a name").to_owned();
        let output = service.process().output();
        let log = output.lines().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        Self {
            log: log.collect(),
            metrics: service.metrics(),
            statuses: statuses
                .into_iter()
                .map(|status| (name(&status), status))
                .collect(),
        }
    }

    /// What is not as expected.
    fn differences(&self, behaviour: &Behaviour) -> Vec<String> {
        let mut differences: Vec<String> = Vec::new();
        let mut expect = |what: &str, holds: bool| {
            if !holds && differences.last().is_none_or(|last| last != what) {
                differences.push(what.to_owned());
            }
        };
        let status = &self.statuses[&behaviour.name];
        let labels = behaviour.labels();
        let has = |series: String| self.metrics.lines().any(|line| line == series);
        let mut lines = self
            .log
            .iter()
            .filter(|line| line["credential"] == *behaviour.name)
            .skip_while(|line| line["version"] != 2)
            .skip(1);
        let line = lines.next().cloned().unwrap_or_default();
        let message = line["message"].as_str().unwrap_or_default();
        let state = status["state"].as_str().unwrap_or_default();
        expect(
            &format!("the metric of its state {state:?}"),
            has(format!("credential_state{{{labels},state=\"{state}\"}} 1")),
        );
        match behaviour.seen {
            Seen::Tokens { lives, source, .. } => {
                expect(&format!("{status}"), status["version"] == 3);
                expect(&format!("{status}"), status["failures"] == 0);
                // What lives for a moment has not lived until now.
                expect(&format!("{status}"), state == "fresh" || lives < 3.0);
                let level = if lives < 3.0 { "WARN" } else { "INFO" };
                expect(&format!("{line}"), line["level"] == level);
                expect(&format!("{line}"), message.starts_with("token refreshed"));
                let series =
                    format!("token_lifetime_seconds{{{labels},source=\"{source}\"}} {lives}");
                expect(&series, has(series.clone()));
                let series = format!("refresh_success_total{{{labels}}} 2");
                expect(&series, has(series.clone()));
            }
            Seen::Failed {
                reason,
                detail,
                next,
            } => {
                let last = &status["last"]["result"];
                expect(
                    &format!("{status}"),
                    *last == format!("{reason} ({detail})"),
                );
                expect(&format!("{status}"), state == behaviour.seen.state());
                expect(
                    &format!("{status}"),
                    status["next_refresh_at"].is_null() == (next == Next::Never),
                );
                let none = format!("refresh_failures_total{{{labels},reason=\"{reason}\"}} 0");
                expect(
                    &none,
                    self.metrics.contains(&none[..none.len() - 1]) && !has(none.clone()),
                );
                expect(&format!("{line}"), line["detail"] == detail);
                let (level, begins) = match reason {
                    "misconfigured" => ("ERROR", "misconfigured: "),
                    "needs_login" => ("ERROR", "needs login: "),
                    _ => ("WARN", "refresh failed"),
                };
                expect(
                    &format!("{line}"),
                    line["level"] == level && message.starts_with(begins),
                );
                if level == "WARN" {
                    expect(
                        &format!("{line}"),
                        line["reason"] == reason && line["failures"] == 1,
                    );
                    expect(
                        &format!("{line}"),
                        line["doubtful"] == (next == Next::Replay),
                    );
                }
                if let Some((least, most)) = next.wait() {
                    let wait = line["retry_in"].as_str().unwrap_or_default();
                    let wait =
                        humantime::parse_duration(wait).map_or(0.0, |wait| wait.as_secs_f64());
                    expect(&format!("{line}"), (least..=most).contains(&wait));
                }
            }
        }
        differences
    }
}

impl Behaviour {
    fn labels(&self) -> String {
        let name = &self.name;
        format!("credential=\"{name}\",provider=\"{name}\"")
    }

    fn is_dead(&self) -> bool {
        self.seen.is_dead()
    }
}

impl Next {
    /// The shortest and the longest wait after the first failure, in seconds.
    fn wait(self) -> Option<(f64, f64)> {
        match self {
            Self::Replay => Some((1.0, 1.0)),
            Self::Retry | Self::RetryWithNew => Some((1.0, 10.0)),
            // The answer needs a moment, and a date has no fractions.
            Self::Named(seconds) => Some((seconds as f64 - 5.0, seconds as f64)),
            Self::Slowly => Some((150.0, 300.0)),
            Self::Never => None,
        }
    }
}

impl Seen {
    fn is_dead(self) -> bool {
        matches!(
            self,
            Self::Failed {
                next: Next::Never,
                ..
            }
        )
    }

    /// The state of a credential whose access token lives.
    fn state(self) -> &'static str {
        match self {
            Self::Failed {
                reason: state @ ("misconfigured" | "needs_login"),
                ..
            } => state,
            _ => "fresh",
        }
    }

    /// For the table.
    fn sentence(self) -> String {
        match self {
            Self::Tokens {
                lives,
                source,
                next,
            } => {
                let next = match next {
                    Successor::Same => "the refresh token stays the same",
                    _ => "the new refresh token is spent next",
                };
                let lives = format!("`token_lifetime_seconds` {lives} by `{source}`");
                if lives_too_short(self) {
                    format!(
                        "`expired` soon, WARN `token refreshed, but it dies too soon`, {lives}; {next}, after 1 s, then 2 s, up to 5 min."
                    )
                } else {
                    format!("`fresh`, INFO `token refreshed`, {lives}; {next}.")
                }
            }
            Self::Failed {
                reason,
                detail,
                next,
            } => {
                let state = self.state();
                let level = if state == "fresh" { "WARN" } else { "ERROR" };
                let next = match next {
                    Next::Replay => "the same refresh token is sent again after 1 s, then within 10 s, up to 5 min".to_owned(),
                    Next::Retry => "tried again within 10 s, then 20 s, up to 5 min".to_owned(),
                    Next::RetryWithNew => "the new refresh token is tried within 10 s, then 20 s, up to 5 min".to_owned(),
                    Next::Named(seconds) => format!("tried again after {seconds} s"),
                    Next::Slowly => "tried again after 150 s to 300 s, later after up to an hour".to_owned(),
                    Next::Never => "never sent again; a new login goes on".to_owned(),
                };
                format!(
                    "`{state}`, `refresh_failures_total` `{reason}`, {level} with `{detail}`; {next}."
                )
            }
        }
    }
}

fn lives_too_short(seen: Seen) -> bool {
    matches!(seen, Seen::Tokens { lives, .. } if lives < 3.0)
}

// Days on end: how often is such a server asked?

/// What one credential may ask for, and how close together.
struct Allowance {
    a_day: usize,
    /// The smallest gap, in seconds.
    gap: f64,
    /// How long to look. What is asked for slowly is looked at for days; what has come to its
    /// steady pace after some minutes, and costs the test hundreds of requests a day, for hours.
    hours: i64,
}

/// Beside what the steady pace allows: the first attempts come in a hurry.
const HURRY: usize = 12;

impl Behaviour {
    /// One of each kind is looked at for a day all the same.
    fn stands_for_many(&self) -> bool {
        ["closes", "status-503"].contains(&&*self.name)
    }

    fn allowance(&self) -> Allowance {
        let (a_day, gap, hours) = match self.seen {
            Seen::Tokens { .. } if self.name == "wants-to-be-asked" => (1_440, 60.0, 3),
            // An hour is refreshed after 40 minutes.
            Seen::Tokens { lives, .. } if lives >= 3.0 => {
                let gap = lives * 0.63;
                ((86_400.0 / gap) as usize, gap, 72)
            }
            // 1 s, doubling to 5 min.
            Seen::Tokens { .. } => (288, 1.0, 24),
            Seen::Failed { next, .. } => match next {
                // Up to 5 min with full jitter, but a provider that has failed 5 times is asked
                // once a minute at most.
                Next::Replay | Next::Retry | Next::RetryWithNew => {
                    (640, 1.0, if self.stands_for_many() { 24 } else { 3 })
                }
                Next::Named(seconds) => (
                    86_400 / seconds as usize,
                    seconds as f64 - 1.0,
                    seconds as i64 / 50,
                ),
                // The upper half of 5 min doubling to an hour.
                Next::Slowly => (48, 150.0, 72),
                Next::Never => (0, f64::INFINITY, 720),
            },
        };
        Allowance { a_day, gap, hours }
    }
}

/// One credential at a server that gives one good token and then does only this: when it was
/// asked, in seconds.
async fn asked(behaviour: &Behaviour, hours: i64, most: usize) -> Vec<f64> {
    let hangs = behaviour.name.starts_with("hangs");
    let kind = if hangs {
        Kind::Impatient(Duration::from_millis(50))
    } else {
        Kind::RefreshToken
    };
    let place = Place::new(&["one"], kind).await;
    let (port, clock) = (place.server.address().port(), place.clock.clone());
    let deed = behaviour.deed.clone();
    place.server.next(Deed::tokens(1));
    place.server.always(move |request| {
        deed(&Turn {
            good: json!({
                "access_token": "a",
                "refresh_token": format!("{MARK}-{}-{}", request.number, "x".repeat(60)),
                "expires_in": 3600,
            }),
            spent: request.refresh_token(),
            port,
            now: clock.now().wall,
        })
    });
    place.import(MARK).await.expect("a new token");
    live_until_the_end(&place, hours, most).await
}

/// Goes from one due refresh to the next until so many hours are over, or more was asked than may
/// be: when something was asked for, in seconds.
async fn live_until_the_end(place: &Place, hours: i64, most: usize) -> Vec<f64> {
    let uptime = || place.clock.now().uptime;
    let end = uptime() + TimeDelta::hours(hours);
    let mut asked = Vec::new();
    while let Some(wait) = place.one().next(place.clock.now()).wait
        && uptime() + wait < end
        && asked.len() <= most
    {
        place.clock.pass_exactly(wait);
        let (at, before) = (uptime(), place.server.count());
        place.due().await;
        match place.server.count() - before {
            0 => {}
            1 => asked.push(at.as_seconds_f64()),
            more => panic!("{more} requests at once"),
        }
    }
    asked
}

fn smallest_gap(asked: &[f64]) -> f64 {
    let gaps = asked.windows(2).map(|two| two[1] - two[0]);
    gaps.fold(f64::INFINITY, f64::min)
}

/// Lives with each of them for hours or days, one of each row, and counts.
async fn count(behaviours: &[Behaviour]) {
    let mut complaints = Vec::new();
    let mut rows: Vec<&str> = Vec::new();
    for behaviour in behaviours {
        if rows.contains(&behaviour.does) {
            continue;
        }
        rows.push(behaviour.does);
        let Allowance { a_day, gap, hours } = behaviour.allowance();
        let allowed = a_day * hours as usize / 24 + HURRY;
        // The first one is answered well.
        let asked = &asked(behaviour, hours, allowed + 1).await[1..];
        let (count, smallest) = (asked.len(), smallest_gap(asked));
        let dead_and_asked_again = behaviour.is_dead() && count != 1;
        if count == 0 || count > allowed || smallest < gap || dead_and_asked_again {
            complaints.push(format!(
                "{}: {count} requests in {hours} hours, {allowed} are allowed; \
                 at least {smallest} s apart, {gap} s are wanted",
                behaviour.name
            ));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[tokio::test]
async fn broken_connections_are_no_reason_to_hurry() {
    let (slow, quick): (Vec<_>, Vec<_>) = connections()
        .into_iter()
        .partition(|behaviour| behaviour.name.starts_with("hangs"));
    let slow = slow.chunks(1).map(count);
    tokio::join!(count(&quick), futures_util::future::join_all(slow));
}

#[tokio::test]
async fn bodies_that_are_no_answer_are_no_reason_to_hurry() {
    count(&bodies()).await;
}

#[tokio::test]
async fn statuses_and_named_times_are_no_reason_to_hurry() {
    count(&statuses()).await;
}

#[tokio::test]
async fn lies_about_tokens_are_no_reason_to_hurry() {
    count(&answers()).await;
}

#[tokio::test]
async fn error_codes_are_no_reason_to_hurry() {
    count(&error_codes()).await;
}

#[tokio::test]
async fn half_an_hour_of_503_is_over_five_minutes_after_its_end() {
    let place = Place::new(&["one"], Kind::RefreshToken).await;
    let began = place.clock.now().uptime;
    let over = began + TimeDelta::minutes(30);
    let clock = place.clock.clone();
    place.server.always(move |request| {
        if clock.now().uptime < over {
            Deed::json(503, "")
        } else {
            Deed::tokens(request.number)
        }
    });
    place.import(MARK).await.expect("a new token");
    let asked = live_until_the_end(&place, 1, 60).await;
    assert_eq!(place.state(), State::Fresh);
    let over = over.as_seconds_f64();
    let in_vain = asked.iter().filter(|at| **at < over).count();
    assert!((10..=30).contains(&in_vain), "{asked:?}");
    let first = asked.iter().find(|at| **at >= over).expect("it goes on");
    assert!(first - over <= 300.0, "{asked:?}");
    assert!(
        place.server.spent()[..in_vain]
            .iter()
            .all(|sent| sent == MARK)
    );
    Fault {
        section: "Hostile servers",
        fault: "503 for half an hour",
        tries: 1,
        lost: 0,
        seen: "asked 10 to 30 times with the same refresh token; `fresh` at most 5 min after its end.",
    }
    .record();
}

/// Some servers give everybody who asks the same token with what is left of its life. Two thirds
/// of what is left, again and again, would be a storm at its end.
#[tokio::test]
async fn what_is_left_of_a_token_is_no_reason_to_hurry() {
    let place = Place::new(&["one"], Kind::RefreshToken).await;
    let began = place.clock.now().uptime;
    let clock = place.clock.clone();
    place.server.always(move |_| {
        let left = 3600.0 - (clock.now().uptime - began).as_seconds_f64() % 3600.0;
        Deed::json(200, json!({ "access_token": "a", "expires_in": left }))
    });
    place.import(MARK).await.expect("a new token");
    // Seven for each, while three seconds are left, and two or three in the end.
    let most = 24 * 11;
    let asked = live_until_the_end(&place, 24, most).await;
    assert!(asked.len() <= most, "{} requests", asked.len());
    assert!(smallest_gap(&asked) >= 1.0, "{asked:?}");
    // No token is asked for much later than its predecessor has died.
    let late = asked
        .windows(2)
        .filter(|two| (two[0] / 3600.0).floor() != (two[1] / 3600.0).floor());
    let latest = late.map(|two| two[1] % 3600.0).fold(0.0, f64::max);
    assert!(latest < 5.0, "{latest} s after the death of a token");
    Fault {
        section: "Hostile servers",
        fault: "The same token for everybody, with what is left of its life",
        tries: 24,
        lost: 0,
        seen: "asked at most 11 times in a token's life of an hour, at least 1 s apart; `expired` for less than 5 s.",
    }
    .record();
}
