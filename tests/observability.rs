//! What the service tells about itself: metrics to Prometheus, pages to people, traces over OTLP.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::process::Command;
use std::time::Duration;

use perennial::credential::{Reason, State};
use serde_json::{Value, json};

use crate::support::authorization_server::{AuthorizationServer, CLIENT_SECRET, Options};
use crate::support::fake_server::{Deed, FakeServer};
use crate::support::http;
use crate::support::otlp::{OtlpReceiver, Span};
use crate::support::perennial::{Perennial, Service};
use crate::support::process::Stream;
use crate::support::prometheus::{self, Prometheus};
use crate::support::wait;

const SOON: Duration = Duration::from_secs(20);

/// A token set that lives for an hour, with a known end of the refresh token.
fn tokens() -> Deed {
    let answer = json!({
        "access_token": "an-access-token",
        "refresh_token": "the-next-refresh-token",
        "token_type": "Bearer",
        "expires_in": 3600,
        "refresh_token_expires_in": 86_400,
    });
    Deed::json(200, answer)
}

/// The credentials `good`, with a sink, and `refused`, whose client the endpoint does not know.
fn config(endpoint: &FakeServer) -> String {
    format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [providers.scripted]
        token_url = "{}"
        client_id = "client"
        [providers.refusing]
        token_url = "{}"
        client_id = "stranger"
        [credentials.good]
        provider = "scripted"
        refresh_token_file = "good.refresh"
        sinks = [{{ kind = "file", path = "good.token" }}]
        [credentials.refused]
        provider = "refusing"
        refresh_token_file = "refused.refresh"
        [jobs.token-refresh]
        kind = "token_refresh"
        # Two lines, which a label must not have; and not while a test runs.
        schedule = """0 0
          1 1 *"""
        "#,
        endpoint.url("/good"),
        endpoint.url("/refused"),
    )
}

fn scripted() -> FakeServer {
    let endpoint = FakeServer::start();
    endpoint.always(|request| match request.path.as_str() {
        "/good" => tokens(),
        _ => Deed::error(401, "invalid_client"),
    });
    endpoint
}

fn perennial(endpoint: &FakeServer) -> Perennial {
    let perennial = Perennial::with_config(&config(endpoint));
    perennial.write("good.refresh", "the-first-refresh-token\n");
    perennial.write("refused.refresh", "another-refresh-token\n");
    perennial
}

/// The value of a series as it is written in the text format.
fn value(metrics: &str, series: &str) -> Option<f64> {
    let rest = metrics.lines().find_map(|line| line.strip_prefix(series))?;
    rest.strip_prefix(' ')?.parse().ok()
}

fn wait_for(service: &Service, series: &str, holds: impl Fn(f64) -> bool) -> String {
    wait::until(series, SOON, || {
        let metrics = service.metrics();
        match value(&metrics, series) {
            Some(value) if holds(value) => Ok(metrics),
            _ => Err(metrics),
        }
    })
}

/// Waits until `good` was refreshed and delivered, and `refused` was not refreshed.
fn wait_until_settled(service: &Service) -> String {
    let delivered = r#"perennial_sink_deliveries_total{outcome="success",sink="file"}"#;
    wait_for(service, delivered, |count| count >= 1.0);
    let refused = r#"refresh_failures_total{credential="refused",provider="refusing",reason="misconfigured"}"#;
    wait_for(service, refused, |count| count >= 1.0);
    let ended = r#"perennial_job_runs_total{job_name="token-refresh",kind="token_refresh",outcome="failure",trigger="due"}"#;
    wait_for(service, ended, |count| count >= 1.0)
}

#[test]
fn prometheus_answers_on_the_names_that_the_user_gave() {
    let server = AuthorizationServer::start(&Options {
        access_token_life: Duration::from_secs(1800),
        ..Options::default()
    });
    let perennial = Perennial::with_config(&format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [providers.public]
        issuer = "{issuer}"
        client_id = "public"
        [providers.post]
        token_url = "{token_url}"
        client_id = "post"
        client_secret = "{CLIENT_SECRET}"
        client_auth = "post"
        [providers.service]
        token_url = "{token_url}"
        client_id = "service-basic"
        client_secret = "{CLIENT_SECRET}"
        [credentials.by-discovery]
        provider = "public"
        refresh_token_file = "public.refresh"
        [credentials.by-url]
        provider = "post"
        refresh_token_file = "post.refresh"
        [credentials.robot]
        provider = "service"
        grant = "client_credentials"
        scopes = ["api"]
        "#,
        issuer = server.issuer(),
        token_url = server.token_url(),
    ));
    for client in ["public", "post"] {
        let file = format!("{client}.refresh");
        perennial.write(&file, &server.grants(1, client)[0]);
    }
    let mut service = perennial.serve();
    let prometheus = Prometheus::scrape(&[service.address()]);

    assert_eq!(
        http::get(&format!("{}/-/ready", prometheus.url())).status,
        200
    );
    let three = |result: &Value| result.as_array().is_some_and(|series| series.len() == 3);
    prometheus.wait_for("refresh_success_total == 1", SOON, three);
    let answers = |promql: &str| {
        let result = prometheus.query(promql);
        prometheus::single_value(&result)
            .unwrap_or_else(|| panic!("{promql}: {result}; {:?}", server.summary()))
    };
    // Prometheus has the name of the target under `job`, so ours must not be called that.
    assert_eq!(answers(r#"count(up{job="perennial"} == 1)"#), 1.0);
    assert_eq!(
        answers(r#"count(credential_state{state="fresh"} == 1)"#),
        3.0
    );
    assert_eq!(answers("sum(credential_state)"), 3.0);
    assert_eq!(
        answers("count(token_version == 1 or token_version == 2)"),
        3.0
    );
    assert_eq!(answers(r#"sum(refresh_failures_total)"#), 0.0);
    assert_eq!(answers("count(token_lifetime_seconds == 1800)"), 3.0);
    let left = answers("min(token_expires_at_seconds - time())");
    assert!((1500.0..=1800.0).contains(&left), "{left}");
    assert_eq!(
        answers("count(token_expiry_alert_threshold_seconds == 450)"),
        3.0
    );
    let slowest = answers(
        r#"histogram_quantile(1, sum by (le) (refresh_duration_seconds_bucket{outcome="success"}))"#,
    );
    assert!(slowest > 0.0, "{slowest}");
    assert_eq!(answers("sum(refresh_duration_seconds_count)"), 3.0);
    let runs = r#"sum(perennial_job_runs_total{job_name="token-refresh",outcome="success"})"#;
    prometheus.wait_for(runs, SOON, |result| {
        prometheus::single_value(result) >= Some(1.0)
    });
    let success = answers("time() - perennial_job_last_success_timestamp_seconds");
    assert!((0.0..60.0).contains(&success), "{success}");
    let version = format!(
        r#"perennial_build_info{{version="{}"}}"#,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(answers(&version), 1.0);
    assert!(answers("process_resident_memory_bytes") > 1e6);
    assert!(answers("time() - process_start_time_seconds") < 120.0);
    let tick = answers("time() - perennial_scheduler_last_tick_timestamp_seconds");
    assert!(tick < 60.0, "{tick}");
    assert_eq!(server.complaints(), Vec::<String>::new());

    service
        .process()
        .signal(crate::support::process::Signal::KILL);
    prometheus.wait_for("up", SOON, |up| prometheus::single_value(up) == Some(0.0));
}

#[test]
fn each_family_is_there_once_and_promtool_has_no_complaint() {
    let endpoint = scripted();
    let perennial = perennial(&endpoint);
    let service = perennial.serve();
    // A run succeeds as a whole only when nothing in it fails.
    let refreshed = perennial.run(&["refresh", "good"]);
    assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    wait_until_settled(&service);
    let tick = "perennial_scheduler_last_tick_timestamp_seconds";
    let metrics = wait_for(&service, tick, |at| at > 0.0);

    let typed = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let typed: Vec<&str> = typed.filter_map(|line| line.split(' ').next()).collect();
    let families: BTreeSet<&str> = typed.iter().copied().collect();
    assert_eq!(
        families.len(),
        typed.len(),
        "a family is there twice:\n{metrics}"
    );

    let path = perennial.write("metrics", &metrics);
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(File::open(path).expect("just written"))
        .output()
        .expect("promtool comes with Prometheus: run `make test-parts`");
    let complaints = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success() && complaints.is_empty(),
        "{complaints}"
    );
}

#[test]
fn counters_exist_at_zero_before_anything_happened() {
    // Each of the two credentials gets its answer when the test lets go of its sender.
    let endpoint = FakeServer::start();
    let held: [_; 2] = std::array::from_fn(|_| {
        let (release, held) = tokens().held();
        endpoint.next(held);
        release
    });
    let perennial = perennial(&endpoint);
    let service = perennial.serve();
    // The first scrape is counted when it is over.
    service.metrics();
    let metrics = service.metrics();

    let mut expected = vec![
        r#"perennial_telemetry_spans_dropped_total"#.to_owned(),
        r#"refresh_duration_seconds_count{outcome="success",provider="scripted"}"#.to_owned(),
        r#"perennial_job_run_duration_seconds_count{job_name="token-refresh"}"#.to_owned(),
        r#"perennial_job_start_delay_seconds_count{job_name="token-refresh"}"#.to_owned(),
        r#"perennial_job_consecutive_failures{job_name="token-refresh"}"#.to_owned(),
        r#"perennial_store_operation_duration_seconds_count{operation="save"}"#.to_owned(),
        r#"perennial_store_operation_duration_seconds_count{operation="settle"}"#.to_owned(),
    ];
    for outcome in ["success", "failure"] {
        expected.push(format!(
            r#"perennial_sink_deliveries_total{{outcome="{outcome}",sink="file"}}"#
        ));
    }
    for (credential, provider) in [("good", "scripted"), ("refused", "refusing")] {
        let labels = format!(r#"credential="{credential}",provider="{provider}""#);
        expected.push(format!("refresh_success_total{{{labels}}}"));
        for reason in Reason::ALL {
            let reason = reason.as_str();
            expected.push(format!(
                r#"refresh_failures_total{{{labels},reason="{reason}"}}"#
            ));
        }
    }
    for trigger in ["schedule", "misfire", "manual", "due"] {
        for outcome in ["success", "failure", "timeout", "panic"] {
            expected.push(format!(
                r#"perennial_job_runs_total{{job_name="token-refresh",kind="token_refresh",outcome="{outcome}",trigger="{trigger}"}}"#
            ));
        }
    }
    for reason in ["down", "overlap", "clock"] {
        expected.push(format!(
            r#"perennial_job_missed_runs_total{{job_name="token-refresh",reason="{reason}"}}"#
        ));
    }
    for series in expected {
        assert_eq!(value(&metrics, &series), Some(0.0), "{series}\n{metrics}");
    }
    let states = State::ALL.iter().map(|state| {
        let state = state.as_str();
        let series =
            format!(r#"credential_state{{credential="good",provider="scripted",state="{state}"}}"#);
        value(&metrics, &series).unwrap_or_else(|| panic!("{series}\n{metrics}"))
    });
    assert_eq!(states.sum::<f64>(), 1.0, "one state at a time");

    drop(held);
    let success = r#"refresh_success_total{credential="good",provider="scripted"}"#;
    wait_for(&service, success, |count| count == 1.0);
}

#[test]
fn metrics_are_compressed_only_when_asked() {
    let endpoint = scripted();
    let perennial = perennial(&endpoint);
    let service = perennial.serve();
    let scrape = |accepted: Option<&str>| {
        let mut request = http::request("GET", &service.url("/metrics"));
        if let Some(accepted) = accepted {
            request = request.header("accept-encoding", accepted);
        }
        let response = request.send().expect("an answer");
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().expect("ASCII").to_owned())
        };
        assert_eq!(
            header("content-type").as_deref(),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        assert_eq!(header("vary").as_deref(), Some("Accept-Encoding"));
        let encoding = header("content-encoding");
        (encoding, response.bytes().expect("a body").to_vec())
    };
    for accepted in [None, Some("identity"), Some("br"), Some("gzip;q=0")] {
        let (encoding, body) = scrape(accepted);
        assert_eq!(encoding, None, "{accepted:?}");
        assert!(body.starts_with(b"# HELP "), "{accepted:?}");
    }
    // As Prometheus asks.
    let (encoding, body) = scrape(Some("gzip"));
    assert_eq!(encoding.as_deref(), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(body.as_slice())
        .read_to_string(&mut text)
        .expect("it is gzip");
    assert!(text.contains("\nrefresh_success_total{"), "{text}");
    assert!(text.ends_with('\n'));
}

#[test]
fn people_and_probes_see_how_it_stands() {
    let endpoint = FakeServer::start();
    endpoint.always(|request| match request.path.as_str() {
        "/good" => tokens(),
        _ => Deed::error(400, "<script>alert(1)</script>&"),
    });
    let perennial = perennial(&endpoint);
    let service = perennial.serve();
    wait_until_settled(&service);

    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = service.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
    }
    assert_eq!(service.get("/missing").status, 404);

    let page = service.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(page.content_type, "text/html; charset=utf-8");
    let html = page.body;
    assert!(html.starts_with("<!doctype html>"), "{html}");
    for part in [
        "good",
        "fresh",
        "refused",
        "misconfigured",
        "unreadable_code",
    ] {
        assert!(html.contains(part), "{part} is missing in {html}");
    }
    assert!(!html.contains("script>"), "{html}");
    // "perennial import NAME --refresh-token-file FILE" and such may not look like markup.
    for tag in ["html", "title", "style", "h1", "pre", "p", "a"] {
        let opened =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        let closed = html.matches(&format!("</{tag}>")).count();
        assert!(
            opened > 0 && opened == closed,
            "{tag}: {opened}, {closed}\n{html}"
        );
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(html.contains(&format!("href=\"{path}\"")), "{html}");
    }
}

fn one<'a>(spans: &'a [Span], name: &str, holds: impl Fn(&Span) -> bool) -> &'a Span {
    let found: Vec<&Span> = spans
        .iter()
        .filter(|span| span.name == name && holds(span))
        .collect();
    match found.as_slice() {
        [span] => span,
        _ => panic!("{} spans {name} in {spans:#?}", found.len()),
    }
}

fn child_of<'a>(parent: &'a Span) -> impl Fn(&Span) -> bool + 'a {
    |span| span.trace_id == parent.trace_id && span.parent_span_id == parent.span_id
}

#[test]
fn one_trace_leads_from_the_run_to_the_sink() {
    let receiver = OtlpReceiver::start();
    let endpoint = scripted();
    let mut perennial = perennial(&endpoint);
    perennial.set_env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    perennial.set_env("OTEL_BSP_SCHEDULE_DELAY", "100");
    perennial.set_env("PERENNIAL_LOG", "debug");
    let mut service = perennial.serve();
    wait_until_settled(&service);

    // While it runs: a trace that waits for the next refresh would come hours late.
    let spans = receiver.wait_for("the whole tree", SOON, |spans| {
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        count("job.run") >= 1 && count("refresh") >= 2 && count("sink.deliver") >= 1
    });
    let good = |span: &Span| span.attribute("credential").as_deref() == Some("good");
    let refused = |span: &Span| span.attribute("credential").as_deref() == Some("refused");
    let refresh = one(&spans, "refresh", good);
    let run = one(&spans, "job.run", |span| {
        span.span_id == refresh.parent_span_id
    });
    assert_eq!(run.parent_span_id, "");
    assert_eq!(run.attribute("job_name").as_deref(), Some("token-refresh"));
    assert_eq!(run.attribute("trigger").as_deref(), Some("due"));
    assert_eq!(run.attribute("outcome").as_deref(), Some("failure"));
    assert_eq!(refresh.trace_id, run.trace_id);
    assert_eq!(refresh.attribute("outcome").as_deref(), Some("success"));
    assert!(!refresh.failed());
    assert!(refresh.duration() < SOON, "{:?}", refresh.duration());
    for name in ["store.checkout", "store.save"] {
        assert!(!one(&spans, name, child_of(refresh)).failed());
    }
    let deliver = one(&spans, "sink.deliver", child_of(refresh));
    assert_eq!(deliver.attribute("sink").as_deref(), Some("file"));

    // Semantic conventions for HTTP client spans, without a URL.
    let post = one(&spans, "POST", child_of(refresh));
    let port = endpoint.address().port().to_string();
    assert_eq!((run.kind, post.kind), (1, 3));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(post.attribute(key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(post.attribute("error.type"), None);
    assert!(!post.failed());

    // What failed says so.
    let failed = one(&spans, "refresh", refused);
    assert_eq!(
        failed.attribute("outcome").as_deref(),
        Some("misconfigured")
    );
    let failed_post = one(&spans, "POST", child_of(failed));
    assert_eq!(
        failed_post.attribute("error.type").as_deref(),
        Some("misconfigured")
    );
    assert_eq!(
        failed_post
            .attribute("http.response.status_code")
            .as_deref(),
        Some("401")
    );
    assert!(failed_post.failed() && failed.failed() && run.failed());
    let known: BTreeSet<&str> = [
        "code.namespace",
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "server.address",
        "server.port",
        "target",
    ]
    .into();
    for name in failed_post.attribute_names() {
        assert!(known.contains(name), "{name} is new: is it harmless?");
    }

    // The endpoint was told which span asks.
    let requests = endpoint.requests();
    for (path, post) in [("/good", post), ("/refused", failed_post)] {
        let expected = format!("00-{}-{}-01", post.trace_id, post.span_id);
        let asked = requests.iter().find(|request| request.path == path);
        let traceparent = asked.and_then(|request| request.header("traceparent"));
        assert_eq!(traceparent, Some(expected.as_str()), "{path}");
    }

    // The same ids stand in the log.
    let lines = service.process().lines(Stream::Stderr);
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let traced = |message: &str, credential: &str| {
        let mut lines = lines.iter();
        let line =
            lines.find(|line| line["message"] == message && line["credential"] == credential);
        line.map(|line| line["trace_id"].clone())
    };
    let id = Some(json!(run.trace_id));
    assert_eq!(traced("token refreshed", "good"), id, "{lines:#?}");
    assert_eq!(traced("delivered", "good"), id, "{lines:#?}");
    let refusal = "misconfigured: the provider refuses the client or the request";
    assert_eq!(traced(refusal, "refused"), Some(json!(failed.trace_id)));
    let listening = lines.iter().find(|line| line["message"] == "listening");
    assert_eq!(listening.and_then(|line| line.get("trace_id")), None);
}

#[test]
fn spans_are_sent_at_the_stop_and_none_when_the_sdk_is_disabled() {
    let receiver = OtlpReceiver::start();
    let endpoint = scripted();
    let mut perennial = perennial(&endpoint);
    perennial.set_env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    // Only the stop sends them.
    perennial.set_env("OTEL_BSP_SCHEDULE_DELAY", "3600000");

    perennial.set_env("OTEL_SDK_DISABLED", "true");
    let service = perennial.serve();
    wait_until_settled(&service);
    let stopped = service.stop();
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    assert!(!stopped.stderr.contains("trace_id"), "{}", stopped.stderr);
    let asked = endpoint.requests();
    assert!(
        asked
            .iter()
            .all(|request| request.header("traceparent").is_none())
    );

    perennial.set_env("OTEL_SDK_DISABLED", "false");
    let service = perennial.serve();
    let refreshed = perennial.run(&["refresh", "good"]);
    assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    let stopped = service.stop();
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    let spans = receiver.wait_for("those of the second service", SOON, |spans| {
        spans.iter().any(|span| span.name == "sink.deliver")
            && spans.iter().any(|span| span.name == "refresh")
    });
    let posts = spans.iter().filter(|span| span.name == "POST");
    let traced = endpoint.requests();
    let traced = traced
        .iter()
        .filter(|request| request.header("traceparent").is_some());
    assert_eq!(posts.count(), traced.count(), "{spans:#?}");
    assert!(
        !stopped.stderr.contains("never reached"),
        "{}",
        stopped.stderr
    );
}
