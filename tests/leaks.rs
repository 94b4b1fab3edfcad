//! Nothing that the program says holds a secret. Everything secret in here bears a mark, and
//! everything that the program emits, at its most talkative, is searched for it.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::fake_server::{At, Deed, FakeServer, Request};
use crate::support::otlp::OtlpReceiver;
use crate::support::perennial::{Perennial, Service};
use crate::support::process::Finished;
use crate::support::wait;

const SOON: Duration = Duration::from_secs(30);

/// Part of every secret. Letters and digits, so that no escaping hides it.
const MARK: &str = "Pl4ntedS3cret";

/// Everything, from every crate that the binary is made of: more than a person could ask for.
const EVERYTHING: &str = "trace,hyper=trace,hyper_util=trace,h2=trace,reqwest=trace,rustls=trace,\
                          tokio_cron_scheduler=trace,warp=trace,opentelemetry=trace,\
                          tower=trace,mio=trace";

/// The mark as it is, in base64 (it may begin at any of three places in a group), and in hex.
fn forms() -> Vec<String> {
    let mut forms = vec![MARK.to_owned(), MARK.to_lowercase(), MARK.to_uppercase()];
    for shift in 0..3 {
        let text = STANDARD_NO_PAD.encode(format!("{}{MARK}", &"xyz"[..shift]));
        // The first and last letters depend on what stands around the mark.
        forms.push(text[if shift == 0 { 0 } else { 4 }..text.len() - 2].to_owned());
    }
    forms.push(MARK.bytes().map(|byte| format!("{byte:02x}")).collect());
    forms
}

/// What was emitted, by where it was seen.
#[derive(Default)]
struct Emitted(BTreeMap<String, Vec<u8>>);

impl Emitted {
    fn add(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        let number = self.0.len();
        self.0.insert(format!("{number:02} {place}"), bytes.into());
    }

    fn add_finished(&mut self, place: &str, finished: Finished) {
        self.add(&format!("{place}: stdout"), finished.stdout);
        self.add(&format!("{place}: stderr"), finished.stderr);
    }

    /// Where the mark is, and what stands around it.
    fn leaks(&self) -> Vec<String> {
        let found =
            |(place, bytes): (&String, &Vec<u8>)| Some(format!("{place}: {}", find(bytes)?));
        self.0.iter().filter_map(found).collect()
    }

    fn text(&self) -> String {
        let texts = self.0.values().map(|bytes| String::from_utf8_lossy(bytes));
        texts.collect::<Vec<_>>().join("\n")
    }
}

fn find(bytes: &[u8]) -> Option<String> {
    forms().iter().find_map(|form| {
        let at = bytes
            .windows(form.len())
            .position(|part| part == form.as_bytes())?;
        let around = &bytes[at.saturating_sub(200)..(at + 80).min(bytes.len())];
        Some(String::from_utf8_lossy(around).into_owned())
    })
}

fn secret(what: &str) -> String {
    format!("{what}.{MARK}.0123456789")
}

/// A good answer. Each has tokens of its own.
fn tokens(number: usize) -> Deed {
    let claims = URL_SAFE_NO_PAD
        .encode(json!({ "exp": 4_000_000_000_u64, "sub": secret("sub") }).to_string());
    let body = json!({
        "access_token": format!("{}.{claims}.signature", secret("access").replace('.', "-")),
        "refresh_token": secret(&format!("rotated-{number}")),
        "id_token": secret("id"),
        "token_type": "Bearer",
        "expires_in": 3600,
    });
    Deed::json(200, body)
}

/// Every way to fail that we know of, with a secret wherever one fits.
fn fail(path: &str) -> Deed {
    let described = |status, code: &str| {
        let body = json!({
            "error": code,
            "error_description": secret("description"),
            "error_uri": format!("https://{}.example/", MARK),
            "refresh_token": secret("in-an-error"),
        });
        Deed::json(status, body)
    };
    match path {
        "needs-login" => described(400, "invalid_grant"),
        "misconfigured" => described(401, "invalid_client"),
        "server-error" => described(503, "server_error"),
        "weird-code" => described(400, &format!("\n\u{1b}[31m<script>{MARK}</script>")),
        "long-code" => described(400, &format!("{}{MARK}", "x".repeat(64))),
        "html" => Deed::text(500, "text/html", &format!("<html>{MARK}</html>")),
        "html-200" => Deed::text(200, "text/html", &format!("<html>{MARK}</html>")),
        "no-access-token" => Deed::json(200, json!({ "refresh_token": secret("orphan") })),
        "wrong-types" => Deed::json(200, json!({ "access_token": [secret("list")] })),
        "not-json" => Deed::json(200, format!("{{\"access_token\":\"{MARK}")),
        "torn" => {
            let body = json!({ "access_token": secret("torn"), "x": "y".repeat(100) });
            Deed::json(200, body).ending(At::Body(60))
        }
        "redirect" => Deed::text(307, "text/plain", "")
            .with_header("location", format!("/elsewhere?token={MARK}")),
        "headers" => Deed::text(429, "text/plain", MARK)
            .with_header("retry-after", secret("retry"))
            .with_header("www-authenticate", format!("Bearer error=\"{MARK}\""))
            .with_header("set-cookie", format!("session={MARK}")),
        _ => Deed::close(),
    }
}

/// The names of [`fail`], and `hang-up`, one of the many that it hangs up on.
const FAILURES: [&str; 14] = [
    "needs-login",
    "misconfigured",
    "server-error",
    "weird-code",
    "long-code",
    "html",
    "html-200",
    "no-access-token",
    "wrong-types",
    "not-json",
    "torn",
    "redirect",
    "headers",
    "hang-up",
];

fn endpoint() -> FakeServer {
    let endpoint = FakeServer::start();
    endpoint.always(|request: &Request| {
        let path = request.path.trim_start_matches('/');
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        if path.contains(".well-known") {
            let host = request.header("host").unwrap_or_default();
            let metadata = json!({
                "issuer": format!("http://{host}/issuer"),
                "token_endpoint": format!("http://user:{MARK}@login.example/token?key={MARK}"),
            });
            return Deed::json(200, metadata);
        }
        match path {
            "good" => tokens(request.number),
            _ => fail(path),
        }
    });
    endpoint
}

/// One credential for each way to succeed or fail, all with secrets of their own.
fn perennial(endpoint: &FakeServer) -> Perennial {
    let mut config = r#"
        [server]
        listen = "127.0.0.1:0"
        [jobs.token-refresh]
        kind = "token_refresh"
        schedule = "0 */12 * * *"
    "#
    .to_owned();
    let mut credential = |name: &str, provider: &str, sink: &str| {
        config.push_str(&format!(
            r#"
            [providers.{name}]
            client_id = "client"
            {provider}
            [credentials.{name}]
            provider = "{name}"
            refresh_token_file = "{name}.refresh"
            params = {{ resource = "{resource}" }}
            sinks = [{{ kind = "file", path = "{sink}" }}]
            "#,
            resource = secret("resource"),
        ));
    };
    let given = |auth: &str, path: &str| {
        format!(
            "token_url = \"{}?key={}\"\nclient_secret = \"{}\"\nclient_auth = \"{auth}\"\nparams = {{ audience = \"{}\" }}",
            endpoint.url(&format!("/{path}")),
            secret("query"),
            secret("client"),
            secret("audience"),
        )
    };
    credential("basic", &given("basic", "good"), "basic.token");
    credential("post", &given("post", "good"), "post.token");
    // A file cannot be a folder.
    credential("no-sink", &given("basic", "good"), "basic.refresh/token");
    for name in FAILURES {
        credential(name, &given("basic", name), "never.token");
    }
    let nobody = format!(
        "token_url = \"http://127.0.0.1:9/{MARK}?key={MARK}\"\nclient_secret_file = \"client-secret\""
    );
    credential("no-connection", &nobody, "never.token");
    let discovered = format!(
        "issuer = \"{}\"\nclient_secret_file = \"client-secret\"",
        endpoint.url("/issuer")
    );
    credential("discovered", &discovered, "never.token");

    let mut perennial = Perennial::with_config(&config);
    perennial.write("client-secret", &secret("client-file"));
    for name in names() {
        perennial.write(
            &format!("{name}.refresh"),
            &secret(&format!("first-{name}")),
        );
    }
    perennial.set_env("PERENNIAL_LOG", EVERYTHING);
    perennial
}

fn names() -> impl Iterator<Item = &'static str> {
    let others = ["basic", "post", "no-sink", "no-connection", "discovered"];
    others.into_iter().chain(FAILURES)
}

/// Waits until each credential has been tried, and the sinks too.
fn wait_until_tried(perennial: &Perennial, service: &Service) {
    wait::until("every credential to be tried", SOON, || {
        let answer = perennial.control("GET", "", "");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let statuses: Vec<Value> = serde_json::from_str(body).expect("JSON");
        assert_eq!(statuses.len(), names().count());
        let tried = statuses.iter().all(|status| !status["last"].is_null());
        let metrics = service.metrics();
        let sank = |outcome: &str| {
            let series = format!(
                "perennial_sink_deliveries_total{{outcome=\"{outcome}\",sink=\"file\"}} 0\n"
            );
            !metrics.contains(&series)
        };
        if tried && sank("success") && sank("failure") {
            return Ok(());
        }
        Err(body.to_owned())
    });
}

fn run_all(perennial: &Perennial, emitted: &mut Emitted, when: &str, commands: &[&[&str]]) {
    for command in commands {
        let place = format!("{when}: {}", command.join(" "));
        emitted.add_finished(&place, perennial.run(command));
    }
}

#[test]
fn no_secret_leaves_the_program() {
    let receiver = OtlpReceiver::start();
    let endpoint = endpoint();
    let mut perennial = perennial(&endpoint);
    perennial.set_env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    perennial.set_env(
        "OTEL_EXPORTER_OTLP_HEADERS",
        &format!("authorization={}", secret("otlp")),
    );
    let mut emitted = Emitted::default();

    let service = perennial.serve();
    wait_until_tried(&perennial, &service);
    for path in ["/metrics", "/", "/healthz", "/readyz", "/missing"] {
        emitted.add(path, format!("{:?}", service.get(path)));
    }
    emitted.add("control: list", perennial.control("GET", "", ""));
    for name in names() {
        let path = format!("/{name}/refresh");
        emitted.add(
            &format!("control: {path}"),
            perennial.control("POST", &path, ""),
        );
    }
    for (name, token) in [
        ("post", secret("imported")),
        ("post", format!("two {}", secret("words"))),
        ("post", String::new()),
        // The server has declared this one dead.
        ("needs-login", secret("first-needs-login")),
    ] {
        let path = format!("/{name}/refresh-token");
        let answer = perennial.control("PUT", &path, &token);
        emitted.add(&format!("control: import {name}"), answer);
    }
    let token_file = perennial.write("imported", &secret("imported-by-command"));
    let token_file = token_file.display().to_string();
    let words = perennial.write("words", &format!("two {}", secret("words")));
    let words = words.display().to_string();
    let commands: [&[&str]; 10] = [
        &["status"],
        &["status", "--json"],
        &["check"],
        &["config"],
        &["refresh", "basic"],
        &["refresh", "weird-code"],
        &["import", "post", "--refresh-token-file", &token_file],
        &["import", "post", "--refresh-token-file", &words],
        &[
            "import",
            "needs-login",
            "--refresh-token-file",
            "needs-login.refresh",
        ],
        // The store is in use.
        &["serve"],
    ];
    run_all(&perennial, &mut emitted, "running", &commands);
    let database = |perennial: &Perennial, suffix: &str| {
        std::fs::read(perennial.folder().join(format!("perennial.db{suffix}")))
    };
    for suffix in ["", "-wal", "-shm"] {
        let bytes = database(&perennial, suffix).expect("the database is open");
        emitted.add(&format!("running: database{suffix}"), bytes);
    }
    emitted.add_finished("serve", service.stop());
    // The same without a service, where the commands open the store themselves.
    perennial.set_env("PERENNIAL_LOG_FORMAT", "text");
    run_all(&perennial, &mut emitted, "stopped", &commands[..9]);
    emitted.add(
        "stopped: database",
        database(&perennial, "").expect("a database"),
    );
    // A key file that is damaged, and the key of another store.
    let start: [&[&str]; 2] = [&["status"], &["serve"]];
    perennial.write("perennial.db.key", &secret("damaged-key"));
    run_all(&perennial, &mut emitted, "damaged key", &start);
    let key = STANDARD.encode(format!("{MARK:=<32}"));
    perennial.set_env("PERENNIAL_KEY", &key);
    run_all(&perennial, &mut emitted, "another key", &start);
    receiver.wait_for("some of everything", SOON, |spans| {
        ["job.run", "refresh", "POST", "store.save", "sink.deliver"]
            .iter()
            .all(|name| spans.iter().any(|span| span.name == *name))
    });
    emitted.add("OTLP", receiver.output());

    assert_eq!(emitted.leaks(), Vec::<String>::new());

    // The search finds what is there: in the files that are meant to hold tokens, and in what the
    // endpoint was sent, where Basic authentication hides it in base64.
    let sink = std::fs::read(perennial.folder().join("basic.token")).expect("a token");
    assert!(find(&sink).is_some());
    let sent = endpoint.requests();
    for path in ["/good", "/torn", "/hang-up"] {
        let sent = sent.iter().find(|request| request.path.starts_with(path));
        let sent = sent.expect("every endpoint was asked");
        assert!(find(sent.body.as_bytes()).is_some());
    }
    let basic = sent
        .iter()
        .find_map(|request| request.header("authorization"));
    assert!(find(basic.expect("it authenticates").as_bytes()).is_some());
    assert!(find(MARK.bytes().rev().collect::<Vec<_>>().as_slice()).is_none());
    // And it was searched where something is: words that each place must hold.
    let all = emitted.text();
    for word in [
        "\"level\":\"TRACE\"",
        "token refreshed",
        "delivery failed",
        "unreadable_code",
        "needs_login",
        "invalid_client",
        "connection_broke",
        "no_access_token",
        "discovery_",
        "\"detail\":\"connect\"",
        "http_500",
        "http_307",
        "is not one token in one line",
        "declared this refresh token dead",
        "SQLite format 3",
        "# TYPE refresh_success_total counter",
        "<h1>Perennial",
        "sink.deliver",
        "was encrypted with key",
        "store key:",
    ] {
        assert!(all.contains(word), "{word} is nowhere");
    }
}

#[test]
fn no_secret_is_in_the_errors_of_a_configuration() {
    const GOOD: &str =
        "[providers.p]\ntoken_url = \"https://login.example/token\"\nclient_id = \"c\"\n";
    let mut emitted = Emitted::default();
    let mut refuse = |what: &str, config: String, dotenv: &str, variables: &[(&str, String)]| {
        let mut perennial = Perennial::with_config(&config);
        if !dotenv.is_empty() {
            perennial.write(".env", dotenv);
        }
        for (name, value) in variables {
            perennial.set_env(name, value);
        }
        perennial.set_env("PERENNIAL_LOG", EVERYTHING);
        for command in ["check", "serve", "status"] {
            let finished = perennial.run(&[command]);
            let code = finished.code();
            assert!(code.is_some_and(|code| code != 0), "{what}: {finished:?}");
            emitted.add_finished(&format!("{what}: {command}"), finished);
        }
    };
    let provider = |lines: String| format!("[providers.p]\nclient_id = \"c\"\n{lines}\n");
    let url = |url: String| provider(format!("token_url = \"{url}\""));

    refuse(
        "user name and password",
        url(format!("https://u:{MARK}@login.example/token")),
        "",
        &[],
    );
    refuse(
        "user name",
        url(format!("https://{MARK}@login.example/token")),
        "",
        &[],
    );
    refuse(
        "fragment",
        url(format!("https://login.example/token#{MARK}")),
        "",
        &[],
    );
    refuse(
        "scheme",
        url(format!("ftp://login.example/{MARK}")),
        "",
        &[],
    );
    refuse(
        "clear text",
        url(format!("http://login.example/token?key={MARK}")),
        "",
        &[],
    );
    refuse("no URL", url(format!("//{MARK}")), "", &[]);
    let query = format!("issuer = \"https://login.example/?key={MARK}\"");
    refuse("query of an issuer", provider(query), "", &[]);
    refuse(
        "store",
        format!("[store]\nurl = \"postgres://u:{MARK}@db/x\"\n"),
        "",
        &[],
    );
    refuse("key", format!("[store]\nkey = \"{MARK}\"\n"), "", &[]);
    let variable = [("PERENNIAL_KEY", secret("key"))];
    refuse("key in a variable", GOOD.to_owned(), "", &variable);
    refuse(
        "syntax",
        format!("{GOOD}client_secret = \"{MARK}\nx = 1\n"),
        "",
        &[],
    );
    refuse(
        "bare word",
        format!("{GOOD}client_secret = {MARK}\n"),
        "",
        &[],
    );
    refuse(
        "twice",
        format!("{GOOD}client_secret = \"{MARK}\"\nclient_secret = \"{MARK}\"\n"),
        "",
        &[],
    );
    for typo in ["client_secrt", "secret", "client_id_secret"] {
        refuse(
            "unknown key",
            format!("{GOOD}{typo} = \"{MARK}\"\n"),
            "",
            &[],
        );
    }
    refuse(
        "list",
        format!("{GOOD}client_secret = [\"{MARK}\"]\n"),
        "",
        &[],
    );
    refuse(
        "table",
        format!("{GOOD}client_secret = {{ value = \"{MARK}\" }}\n"),
        "",
        &[],
    );
    refuse("params", format!("{GOOD}params = \"{MARK}\"\n"), "", &[]);
    refuse(
        "reserved",
        format!("{GOOD}params = {{ client_secret = \"{MARK}\" }}\n"),
        "",
        &[],
    );
    refuse(
        "not a text",
        format!("{GOOD}params = {{ api_key = [\"{MARK}\"] }}\n"),
        "",
        &[],
    );
    let none = format!("{GOOD}client_secret = \"{MARK}\"\nclient_auth = \"none\"\n");
    refuse("no use for it", none, "", &[]);

    // A variable may hold a secret, wherever it is used.
    let held = [("HELD", secret("held"))];
    for key in [
        "server.listen",
        "server.header_timeout",
        "store.url",
        "providers.p.preset",
        "providers.p.timeout",
        "providers.p.issuer",
        "providers.p.client_auth",
        "credentials.c.provider",
        "credentials.c.grant",
        "credentials.c.alert_threshold",
        "jobs.j.kind",
        "jobs.j.schedule",
        "jobs.j.timezone",
        "jobs.j.overlap",
    ] {
        let (table, key) = key.rsplit_once('.').expect("a table and a key");
        let config = format!("[{table}]\n{key} = \"${{HELD}}\"\n");
        refuse(&format!("{table}.{key}"), config, "", &held);
    }
    refuse(
        "variable for a number",
        GOOD.to_owned(),
        "",
        &[("PERENNIAL_PROVIDERS__P__MAX_IN_FLIGHT", secret("n"))],
    );
    refuse(
        "variable of no key",
        GOOD.to_owned(),
        "",
        &[("PERENNIAL_PROVIDERS__P__SECRT", secret("n"))],
    );
    refuse(
        "line of .env",
        GOOD.to_owned(),
        &format!("A=1\n{MARK} x\n"),
        &[],
    );
    refuse(
        "value in .env",
        GOOD.to_owned(),
        &format!("A=1\nB={MARK} \"x\n"),
        &[],
    );
    refuse(
        "OTLP endpoint",
        GOOD.to_owned(),
        "",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", format!("u:{MARK}@h"))],
    );

    assert_eq!(emitted.leaks(), Vec::<String>::new());
    let all = emitted.text();
    for word in [
        "has a user name or password",
        "not valid TOML",
        ".env:2",
        "is not 32 bytes",
    ] {
        assert!(all.contains(word), "{word} is nowhere");
    }
}
