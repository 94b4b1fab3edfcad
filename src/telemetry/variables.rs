//! What the environment asks of telemetry: pure parsing, no effects.
//!
//! The OpenTelemetry crates read most `OTEL_*` variables by themselves (headers,
//! timeout, compression, sampler, `OTEL_BSP_*`, resource attributes). Here stand
//! those which they do not read, or read without telling the user about a mistake.

use anyhow::{Context, bail};
use tracing_subscriber::EnvFilter;
use url::Url;

/// Crates whose `info` or `debug` lines say nothing to an operator. They come first
/// in the filter, so that a user's own directive for the same crate replaces them,
/// while a plain `PERENNIAL_LOG=debug` leaves them quiet. `opentelemetry` is off
/// because it logs every failed batch; our own exporter sums the failures up.
const QUIET: &str = "hyper=warn,h2=warn,reqwest=warn,rustls=warn,\
                     tokio_cron_scheduler=warn,warp=warn,opentelemetry=off";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// One line for a person.
    Text,
    /// One flat JSON object in a line.
    Json,
}

/// A header format for the trace context (W3C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagator {
    /// `traceparent` and `tracestate`.
    TraceContext,
    /// `baggage`.
    Baggage,
}

/// Where traces go, and what to tell the user about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tracing {
    /// The full URL for OTLP/HTTP; `None` when no traces are to be sent.
    pub endpoint: Option<Url>,
    /// `service.name`, from `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// Which headers carry the trace context, in order.
    pub propagators: Vec<Propagator>,
    /// Sentences to log once, when logging has started.
    pub warnings: Vec<String>,
}

/// Reads `PERENNIAL_LOG_FORMAT`; without it the terminal decides.
pub(super) fn log_format(
    lookup: impl Fn(&str) -> Option<String>,
    terminal: bool,
) -> anyhow::Result<LogFormat> {
    match set(&lookup, "PERENNIAL_LOG_FORMAT").as_deref() {
        None if terminal => Ok(LogFormat::Text),
        None => Ok(LogFormat::Json),
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => bail!("PERENNIAL_LOG_FORMAT is {other:?}; write text or json"),
    }
}

/// Reads `PERENNIAL_LOG`, then `RUST_LOG`; without both it is `info`.
pub(super) fn log_filter(lookup: impl Fn(&str) -> Option<String>) -> anyhow::Result<EnvFilter> {
    for name in ["PERENNIAL_LOG", "RUST_LOG"] {
        if let Some(directives) = set(&lookup, name) {
            return EnvFilter::builder()
                .parse(format!("{QUIET},{directives}"))
                .with_context(|| {
                    format!("{name} is {directives:?}; write for example info or perennial=debug")
                });
        }
    }
    Ok(EnvFilter::new(format!("{QUIET},info")))
}

/// Reads the `OTEL_*` variables that decide whether, where and how traces go out.
///
/// Names and meaning: OpenTelemetry specification, "Environment Variable
/// Specification" and "OTLP Exporter Configuration". An empty variable counts as unset.
/// The only error is an endpoint that is no HTTP URL.
pub(super) fn tracing(lookup: impl Fn(&str) -> Option<String>) -> anyhow::Result<Tracing> {
    let mut warnings = Vec::new();
    let endpoint = if disabled(&lookup, &mut warnings) || !wanted(&lookup, &mut warnings) {
        None
    } else {
        endpoint(&lookup)?
    };
    if endpoint.is_some() {
        check_protocol(&lookup, &mut warnings);
        check_sampler(&lookup, &mut warnings);
    } else if warnings.is_empty() && exporters(&lookup).iter().any(|name| name == "otlp") {
        warnings.push(
            "OTEL_TRACES_EXPORTER is otlp but no endpoint is set, so no traces are sent; \
             set OTEL_EXPORTER_OTLP_ENDPOINT, for example http://localhost:4318"
                .into(),
        );
    }
    Ok(Tracing {
        endpoint,
        service_name: set(&lookup, "OTEL_SERVICE_NAME"),
        propagators: propagators(&lookup, &mut warnings),
        warnings,
    })
}

fn set(lookup: impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    lookup(name)
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

fn disabled(lookup: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> bool {
    match set(lookup, "OTEL_SDK_DISABLED") {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("true") => true,
        Some(value) if value.eq_ignore_ascii_case("false") => false,
        Some(value) => {
            // The specification: anything but "true" means false, with a warning.
            warnings.push(format!(
                "OTEL_SDK_DISABLED is {value:?} and is taken as false; write true or false"
            ));
            false
        }
    }
}

fn exporters(lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
    set(lookup, "OTEL_TRACES_EXPORTER")
        .unwrap_or_default()
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

fn wanted(lookup: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> bool {
    let names = exporters(lookup);
    for name in &names {
        if name != "otlp" && name != "none" {
            warnings.push(format!(
                "OTEL_TRACES_EXPORTER={name} is not supported and is ignored; write otlp or none"
            ));
        }
    }
    names.is_empty() || names.iter().any(|name| name == "otlp")
}

fn endpoint(lookup: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Url>> {
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const ALL_SIGNALS: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

    // The signal's own variable is used as it is; the general one gets the path.
    let (name, text) = if let Some(url) = set(&lookup, TRACES) {
        (TRACES, url)
    } else if let Some(base) = set(&lookup, ALL_SIGNALS) {
        (
            ALL_SIGNALS,
            format!("{}/v1/traces", base.trim_end_matches('/')),
        )
    } else {
        return Ok(None);
    };
    // The value stays out of the message: a URL may carry a password.
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(url)),
        _ => bail!("{name} is not an HTTP URL; write for example http://localhost:4318"),
    }
}

fn check_protocol(lookup: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) {
    let Some((name, protocol)) = [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ]
    .into_iter()
    .find_map(|name| Some((name, set(&lookup, name)?))) else {
        return;
    };
    if protocol != "http/protobuf" {
        warnings.push(format!(
            "{name}={protocol} is not supported and http/protobuf is used; \
             the endpoint must speak OTLP over HTTP, usually on port 4318"
        ));
    }
}

/// The SDK falls back to `parentbased_always_on` without a word that anyone could
/// see: it is built before logging has started.
fn check_sampler(lookup: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) {
    const SAMPLERS: [&str; 6] = [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ];
    if let Some(sampler) = set(lookup, "OTEL_TRACES_SAMPLER")
        && !SAMPLERS.contains(&sampler.as_str())
    {
        warnings.push(format!(
            "OTEL_TRACES_SAMPLER={sampler} is not supported and every trace is kept; write one of {}",
            SAMPLERS.join(", ")
        ));
    }
}

fn propagators(
    lookup: impl Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Vec<Propagator> {
    let names = set(lookup, "OTEL_PROPAGATORS").unwrap_or_else(|| "tracecontext,baggage".into());
    let mut chosen = Vec::new();
    for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let propagator = match name.to_ascii_lowercase().as_str() {
            "tracecontext" => Propagator::TraceContext,
            "baggage" => Propagator::Baggage,
            "none" => return Vec::new(),
            _ => {
                warnings.push(format!(
                    "OTEL_PROPAGATORS: {name} is not supported and is ignored; \
                     write tracecontext, baggage or none"
                ));
                continue;
            }
        };
        if !chosen.contains(&propagator) {
            chosen.push(propagator);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        }
    }

    fn parsed(pairs: &[(&str, &str)]) -> Tracing {
        tracing(lookup(pairs)).unwrap()
    }

    const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn nothing_configured_sends_nothing_and_says_nothing() {
        assert_eq!(
            parsed(&[]),
            Tracing {
                endpoint: None,
                service_name: None,
                propagators: vec![Propagator::TraceContext, Propagator::Baggage],
                warnings: vec![],
            }
        );
    }

    #[test]
    fn the_endpoint() {
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t.example/x");
        for (pairs, url) in [
            (&[BASE][..], Some("http://collector:4318/v1/traces")),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/otlp/")][..],
                Some("http://collector:4318/otlp/v1/traces"),
            ),
            (&[own, BASE][..], Some("https://t.example/x")),
            (
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", " "), BASE][..],
                Some("http://collector:4318/v1/traces"),
            ),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")][..], None),
            (&[BASE, ("OTEL_SDK_DISABLED", "TRUE")][..], None),
            (&[BASE, ("OTEL_TRACES_EXPORTER", "none")][..], None),
            (
                &[BASE, ("OTEL_TRACES_EXPORTER", "otlp")][..],
                Some("http://collector:4318/v1/traces"),
            ),
        ] {
            let got = parsed(pairs);
            assert_eq!(got.endpoint.as_ref().map(Url::as_str), url, "{pairs:?}");
            assert_eq!(got.warnings, Vec::<String>::new(), "{pairs:?}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_names_the_variable_and_hides_the_value() {
        for value in ["collector:4318", "ftp://u:hunter2@host", "hunter2"] {
            let error = tracing(lookup(&[("OTEL_EXPORTER_OTLP_ENDPOINT", value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                "OTEL_EXPORTER_OTLP_ENDPOINT is not an HTTP URL; \
                 write for example http://localhost:4318"
            );
        }
    }

    #[test]
    fn each_mistake_is_one_warning() {
        for (pairs, sends, warning) in [
            (
                &[BASE, ("OTEL_TRACES_EXPORTER", "console")][..],
                false,
                "OTEL_TRACES_EXPORTER=console is not supported",
            ),
            (
                &[BASE, ("OTEL_TRACES_EXPORTER", "zipkin, otlp")][..],
                true,
                "OTEL_TRACES_EXPORTER=zipkin is not supported",
            ),
            (
                &[("OTEL_TRACES_EXPORTER", "otlp")][..],
                false,
                "OTEL_TRACES_EXPORTER is otlp but no endpoint is set",
            ),
            (
                &[BASE, ("OTEL_SDK_DISABLED", "1")][..],
                true,
                "OTEL_SDK_DISABLED is \"1\" and is taken as false",
            ),
            (
                &[BASE, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")][..],
                true,
                "OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported and http/protobuf is used",
            ),
            (
                &[
                    BASE,
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ][..],
                true,
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json is not supported",
            ),
            (
                &[BASE, ("OTEL_TRACES_SAMPLER", "xray")][..],
                true,
                "OTEL_TRACES_SAMPLER=xray is not supported and every trace is kept",
            ),
            (
                &[("OTEL_PROPAGATORS", "b3,baggage")][..],
                false,
                "OTEL_PROPAGATORS: b3 is not supported and is ignored",
            ),
        ] {
            let got = parsed(pairs);
            assert_eq!(got.endpoint.is_some(), sends, "{pairs:?}");
            assert_eq!(got.warnings.len(), 1, "{:?}", got.warnings);
            assert!(got.warnings[0].starts_with(warning), "{:?}", got.warnings);
        }
    }

    #[test]
    fn a_protocol_without_an_endpoint_is_nobodys_business() {
        let got = parsed(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert_eq!(got.warnings, Vec::<String>::new());
    }

    #[test]
    fn propagators_in_order_and_once() {
        use Propagator::{Baggage, TraceContext};
        for (value, expected) in [
            ("", vec![TraceContext, Baggage]),
            (
                "baggage, TraceContext ,baggage",
                vec![Baggage, TraceContext],
            ),
            ("none", vec![]),
            ("tracecontext,none", vec![]),
            ("b3", vec![]),
        ] {
            assert_eq!(
                parsed(&[("OTEL_PROPAGATORS", value)]).propagators,
                expected,
                "{value:?}"
            );
        }
    }

    #[test]
    fn the_log_format() {
        let format =
            |value, terminal| log_format(lookup(&[("PERENNIAL_LOG_FORMAT", value)]), terminal);
        assert_eq!(format("", true).unwrap(), LogFormat::Text);
        assert_eq!(format("", false).unwrap(), LogFormat::Json);
        assert_eq!(format("json", true).unwrap(), LogFormat::Json);
        assert_eq!(format("text", false).unwrap(), LogFormat::Text);
        assert_eq!(
            format("xml", true).unwrap_err().to_string(),
            "PERENNIAL_LOG_FORMAT is \"xml\"; write text or json"
        );
    }

    #[test]
    fn the_log_filter() {
        let filter = |pairs: &[(&str, &str)]| log_filter(lookup(pairs)).unwrap().to_string();
        let has = |filter: &str, directive| filter.split(',').any(|part| part == directive);

        let default = filter(&[]);
        assert!(has(&default, "info") && has(&default, "hyper=warn"));

        let own = filter(&[
            ("PERENNIAL_LOG", "debug,hyper=trace"),
            ("RUST_LOG", "error"),
        ]);
        assert!(has(&own, "debug") && has(&own, "hyper=trace") && has(&own, "h2=warn"));
        assert!(!has(&own, "error") && !has(&own, "hyper=warn"));

        assert!(has(&filter(&[("RUST_LOG", "error")]), "error"));

        let error = log_filter(lookup(&[("PERENNIAL_LOG", "perennial=loud")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "PERENNIAL_LOG is \"perennial=loud\"; write for example info or perennial=debug"
        );
    }
}
