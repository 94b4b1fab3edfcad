//! Logs on stderr and traces over OTLP: the tracing subscriber, its start and its end.
//!
//! Logs always go to stderr. Traces go out only when an OTLP endpoint is set in the
//! environment (`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`),
//! as protobuf over HTTP from the batch processor's own thread.

mod lines;
mod losses;
mod variables;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, TracerProvider};
use opentelemetry::{KeyValue, global};
use opentelemetry_http::HeaderInjector;
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use url::Url;

use losses::{Admission, Rejections, Tally, WatchedExporter};
use variables::Propagator;

/// Tracer and default `service.name`.
const NAME: &str = "perennial";

/// The queue of the OpenTelemetry specification, in spans.
const DEFAULT_QUEUE: usize = 2048;

/// One process has one subscriber, so it has one tally.
static TALLY: Tally = Tally::new();

/// Keeps traces flowing; give it back with [`Telemetry::flush_and_stop`] at the end.
#[must_use = "spans that wait are lost unless flush_and_stop is called"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Installs the process's subscriber and, when an OTLP endpoint is set, the exporter.
///
/// `service_version` becomes `service.version`. Call it once, before the first log
/// line; inside or outside a runtime. Fails when a variable cannot be understood
/// (the message names it) or when a subscriber is already installed. What can be
/// ignored safely, such as an unsupported `OTEL_TRACES_EXPORTER`, is one warning.
pub fn start(service_version: &str) -> anyhow::Result<Telemetry> {
    let lookup = |name: &str| std::env::var(name).ok();
    let terminal = std::io::stderr().is_terminal();
    let format = variables::log_format(lookup, terminal)?;
    let filter = variables::log_filter(lookup)?;
    let tracing = variables::tracing(lookup)?;
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());

    let provider = tracing
        .endpoint
        .map(|url| provider(&url, resource(service_version, tracing.service_name)))
        .transpose()?;
    let traces = provider
        .as_ref()
        .map(|provider| span_layer(provider).and_then(rejections()));

    tracing_subscriber::registry()
        .with(lines::layer(format, colour, std::io::stderr).with_filter(filter))
        .with(traces)
        .try_init()
        .context("telemetry was started twice in this process")?;
    global::set_text_map_propagator(composite(&tracing.propagators));

    for warning in &tracing.warnings {
        tracing::warn!("{warning}");
    }
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends the spans that wait and stops; takes at most about `deadline`.
    ///
    /// What could not be sent in time is lost; a warning says so and how much was lost
    /// in all. Spans that end afterwards go nowhere; logs go on as before.
    pub async fn flush_and_stop(self, deadline: Duration) {
        let Some(provider) = self.provider else {
            return;
        };
        // The processor waits for its thread with a blocking channel.
        let stopped =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(deadline)).await;
        match stopped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans could not be sent in time"),
            Err(error) => tracing::warn!(%error, "the span exporter did not stop cleanly"),
        }
        let spans = Self::spans_dropped();
        if spans > 0 {
            tracing::warn!(spans, "spans that never reached the OTLP receiver, in all");
        }
    }

    /// Spans that were sampled and finished and did not reach the OTLP receiver, since
    /// the process started: for `perennial_telemetry_spans_dropped_total`.
    ///
    /// It counts spans that the full queue turned away (`OTEL_BSP_MAX_QUEUE_SIZE`),
    /// spans in batches whose export failed after its retries, spans that the
    /// receiver rejected (OTLP partial success), and those still waiting or on their way
    /// when the shutdown deadline passed. It does not count what the sampler left out, nor
    /// spans that end after the shutdown, and a batch whose answer was lost counts as
    /// lost although the receiver may hold it. Always 0 when no endpoint is set.
    pub fn spans_dropped() -> u64 {
        TALLY.dropped()
    }
}

/// Adds the current span's context to the headers of a request that goes out
/// (W3C `traceparent`, `tracestate` and `baggage`, or what `OTEL_PROPAGATORS` says).
///
/// Adds nothing outside a span and when no traces are sent.
pub fn inject(headers: &mut reqwest::header::HeaderMap) {
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
}

/// The id of the current trace in 32 hexadecimal digits; `None` outside a span, when
/// the sampler left the trace out, and when no traces are sent.
pub fn trace_id() -> Option<String> {
    // The subscriber's span lookup is closed to a formatter that runs inside it; the
    // context that the layer attaches on entering a span is not.
    opentelemetry::Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_sampled().then(|| span.trace_id().to_string())
    })
}

/// Marks a span as failed, so that trace viewers show it and samplers keep it. Why it failed
/// is for its attributes and events.
pub fn mark_failed(span: &tracing::Span) {
    span.set_status(Status::error(""));
}

/// A place in a trace, for work that belongs to it and outlives it.
///
/// Holding the span itself would keep it open: a span is exported, with its parents, when its
/// last handle is gone.
#[derive(Clone, Debug)]
pub struct Origin(SpanContext);

impl Origin {
    /// No place: what begins here has a trace of its own.
    pub fn none() -> Self {
        Self(SpanContext::NONE)
    }

    /// The current span.
    pub fn here() -> Self {
        Self(opentelemetry::Context::map_current(|context| {
            context.span().span_context().clone()
        }))
    }

    /// Makes a span that was never entered a child of this place.
    pub fn adopt(&self, span: &tracing::Span) {
        if self.0.is_valid() {
            let parent = opentelemetry::Context::new().with_remote_span_context(self.0.clone());
            // Fails only for a span that is not exported.
            let _ = span.set_parent(parent);
        }
    }
}

fn provider(endpoint: &Url, resource: Resource) -> anyhow::Result<SdkTracerProvider> {
    crate::tls::provide();

    // The crate builds its blocking client on a thread of its own, so this may be called
    // inside a runtime.
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint.as_str())
        .build()
        .context("the OTLP exporter could not be built from the OTEL_EXPORTER_OTLP_… variables")?;

    // Set here rather than left to the SDK, because Admission must know it.
    let queue = std::env::var("OTEL_BSP_MAX_QUEUE_SIZE")
        .ok()
        .and_then(|size| size.trim().parse().ok())
        .filter(|size| *size > 0)
        .unwrap_or(DEFAULT_QUEUE);
    let batch = BatchSpanProcessor::builder(WatchedExporter::new(exporter, &TALLY))
        .with_batch_config(
            BatchConfigBuilder::default()
                .with_max_queue_size(queue)
                .build(),
        )
        .build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(Admission {
            next: batch,
            capacity: queue as u64,
            tally: &TALLY,
        })
        .build())
}

/// Later wins: our defaults, then `OTEL_RESOURCE_ATTRIBUTES`, then `OTEL_SERVICE_NAME`.
fn resource(service_version: &str, service_name: Option<String>) -> Resource {
    let resource = Resource::builder_empty()
        .with_service_name(NAME)
        .with_attribute(KeyValue::new("service.version", service_version.to_owned()))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match service_name {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Spans become OpenTelemetry spans, whatever the log filter says.
fn span_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(NAME))
        .with_location(false) // source paths of the build machine help nobody
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(exported_targets())
}

/// The crates that carry our spans away must not make spans of that: a loop.
fn exported_targets() -> Targets {
    Targets::new().with_default(LevelFilter::INFO).with_targets(
        [
            "hyper",
            "h2",
            "reqwest",
            "rustls",
            "tonic",
            "tower",
            "opentelemetry",
        ]
        .map(|target| (target, LevelFilter::OFF)),
    )
}

fn rejections<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let is_ours = |metadata: &Metadata<'_>| metadata.name() == Rejections::EVENT;
    Rejections(&TALLY).with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::WARN))
}

fn composite(propagators: &[Propagator]) -> TextMapCompositePropagator {
    TextMapCompositePropagator::new(
        propagators
            .iter()
            .map(|propagator| -> Box<dyn opentelemetry::propagation::TextMapPropagator + Send + Sync> {
                match propagator {
                    Propagator::TraceContext => Box::new(TraceContextPropagator::new()),
                    Propagator::Baggage => Box::new(BaggagePropagator::new()),
                }
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::variables::LogFormat;
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Runs with log lines captured and spans recorded, but sent nowhere.
    fn captured(format: LogFormat, colour: bool, run: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let provider = SdkTracerProvider::builder().build();
        let subscriber = tracing_subscriber::registry()
            .with(lines::layer(format, colour, written.clone()))
            .with(span_layer(&provider));
        tracing::subscriber::with_default(subscriber, run);
        written.lines()
    }

    /// `2026-11-23T09:00:00Z`: everything but the digits is fixed.
    fn is_utc_seconds(text: &str) -> bool {
        text.replace(|c: char| c.is_ascii_digit(), "0") == "0000-00-00T00:00:00Z"
    }

    #[test]
    fn text_is_one_calm_line() {
        let lines = captured(LogFormat::Text, false, || {
            tracing::info!(credential = "home", seconds = 3, "refreshed");
        });
        let (time, rest) = lines[0].split_once(' ').unwrap();
        assert!(is_utc_seconds(time), "{time}");
        assert_eq!(rest, r#" INFO refreshed credential="home" seconds=3"#);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn only_what_needs_an_eye_is_coloured() {
        let lines = captured(LogFormat::Text, true, || {
            tracing::info!("calm");
            tracing::warn!("look");
        });
        assert!(lines[0].ends_with("  INFO calm"), "{}", lines[0]);
        assert!(
            lines[1].contains("\x1b[33m WARN\x1b[0m look"),
            "{}",
            lines[1]
        );
    }

    #[test]
    fn json_is_flat() {
        let lines = captured(LogFormat::Json, false, || {
            tracing::info_span!("refresh", credential = "hidden").in_scope(|| {
                tracing::info!(target: "perennial::x", seconds = 3, "a \"quoted\" word");
            });
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], "perennial::x");
        assert_eq!(line["message"], "a \"quoted\" word");
        assert_eq!(line["seconds"], 3);
        assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(line.as_object().unwrap().len(), 6, "{line}");
    }

    #[test]
    fn the_trace_id_is_the_one_that_goes_out() {
        global::set_text_map_propagator(composite(&[Propagator::TraceContext]));
        let mut seen = None;
        let mut headers = reqwest::header::HeaderMap::new();
        let lines = captured(LogFormat::Text, false, || {
            assert_eq!(trace_id(), None);
            tracing::info!("outside");
            tracing::info_span!("run").in_scope(|| {
                tracing::info_span!("inner").in_scope(|| {
                    tracing::info!("inside");
                    seen = trace_id();
                    inject(&mut headers);
                });
            });
            tracing::info!("after");
        });
        let id = seen.unwrap();
        assert!(
            lines[1].ends_with(&format!("inside trace_id={id}")),
            "{lines:?}"
        );
        assert!(!lines[0].contains("trace_id") && !lines[2].contains("trace_id"));
        let parent = headers["traceparent"].to_str().unwrap();
        assert!(
            parent.starts_with(&format!("00-{id}-")) && parent.ends_with("-01"),
            "{parent}"
        );
    }

    #[tokio::test]
    async fn the_trace_id_follows_a_task_over_an_await() {
        use tracing::Instrument;

        let provider = SdkTracerProvider::builder().build();
        let subscriber = tracing_subscriber::registry().with(span_layer(&provider));
        let _guard = tracing::subscriber::set_default(subscriber);
        async {
            let before = trace_id();
            tokio::task::yield_now().await;
            assert!(before.is_some());
            assert_eq!(trace_id(), before);
        }
        .instrument(tracing::info_span!("run"))
        .await;
        assert_eq!(trace_id(), None);
    }

    #[test]
    fn the_carriers_make_no_spans() {
        let targets = exported_targets();
        for silent in [
            "hyper_util::client",
            "h2::frame",
            "reqwest::connect",
            "opentelemetry_sdk",
            "opentelemetry-otlp",
        ] {
            assert!(
                !targets.would_enable(silent, &tracing::Level::ERROR),
                "{silent}"
            );
        }
        assert!(targets.would_enable("perennial::refresh", &tracing::Level::INFO));
        assert!(!targets.would_enable("perennial::refresh", &tracing::Level::DEBUG));
    }

    #[test]
    fn the_service_name_can_be_given() {
        let name = |resource: Resource| resource.get(&"service.name".into()).unwrap().to_string();
        let version =
            |resource: &Resource| resource.get(&"service.version".into()).unwrap().to_string();
        assert_eq!(version(&resource("1.2.3", None)), "1.2.3");
        assert_eq!(name(resource("1.2.3", Some("tokens".into()))), "tokens");
    }
}
