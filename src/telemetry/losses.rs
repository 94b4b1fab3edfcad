//! Counts the spans that were recorded and did not arrive, and says so now and then.
//!
//! The SDK counts only what its full queue turned away, tells the number at
//! shutdown and not before, and logs every failed batch. So its batch processor
//! stands between two of ours: [`Admission`] lets no more spans in than its queue
//! holds, which makes us the ones who turn away and count; [`WatchedExporter`] sees
//! what becomes of each batch.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context as LayerContext;

/// Long enough that a receiver which is away for a night does not fill the log.
const BETWEEN_REPORTS: Duration = Duration::from_secs(60);

/// What happened to finished spans, since the process started.
#[derive(Debug)]
pub(super) struct Tally {
    /// Finished, and not yet handed to the exporter.
    waiting: AtomicU64,
    /// In the batch that is being exported; the SDK exports one at a time.
    sending: AtomicU64,
    /// Turned away because the queue was full.
    queue_full: AtomicU64,
    /// In a batch whose export failed after its retries, or left behind at shutdown. A
    /// receiver whose answer was lost may hold them nevertheless.
    not_sent: AtomicU64,
    /// Accepted by HTTP, refused by the receiver (OTLP partial success).
    rejected: AtomicU64,
}

impl Tally {
    pub(super) const fn new() -> Self {
        Self {
            waiting: AtomicU64::new(0),
            sending: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            not_sent: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    /// Every lost span, once.
    pub(super) fn dropped(&self) -> u64 {
        self.queue_full.load(Relaxed) + self.not_sent.load(Relaxed) + self.rejected.load(Relaxed)
    }

    /// Room for one more span in a queue of `capacity`?
    fn admit(&self, capacity: u64) -> bool {
        let admitted = self
            .waiting
            .fetch_update(Relaxed, Relaxed, |waiting| {
                (waiting < capacity).then_some(waiting + 1)
            })
            .is_ok();
        if !admitted {
            self.queue_full.fetch_add(1, Relaxed);
        }
        admitted
    }

    fn sending(&self, spans: u64) {
        // A thread that outlives the shutdown deadline finds 0 waiting: already counted.
        let waiting = self
            .waiting
            .fetch_update(Relaxed, Relaxed, |waiting| {
                Some(waiting.saturating_sub(spans))
            })
            .unwrap_or(0);
        self.sending.store(spans.min(waiting), Relaxed);
    }

    fn sent(&self, success: bool) {
        let spans = self.sending.swap(0, Relaxed);
        if !success {
            self.not_sent.fetch_add(spans, Relaxed);
        }
    }

    /// What the stopped processor still holds, and what hangs in its export, is lost.
    fn give_up(&self) {
        let spans = self.waiting.swap(0, Relaxed) + self.sending.swap(0, Relaxed);
        self.not_sent.fetch_add(spans, Relaxed);
    }
}

/// Passes finished spans to the batch processor while its queue has room.
#[derive(Debug)]
pub(super) struct Admission<P> {
    pub next: P,
    /// The queue size of `next`, in spans.
    pub capacity: u64,
    pub tally: &'static Tally,
}

impl<P: SpanProcessor> SpanProcessor for Admission<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.tally.admit(self.capacity) {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let result = self.next.shutdown_with_timeout(timeout);
        self.tally.give_up();
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Counts the spans of failed batches and reports losses, at most one line a minute.
#[derive(Debug)]
pub(super) struct WatchedExporter<E> {
    next: E,
    tally: &'static Tally,
    reported: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    dropped: u64,
    at: Option<Instant>,
}

impl Reported {
    /// The losses that nobody has been told of, when it is time to tell.
    fn news(&mut self, dropped: u64, now: Instant) -> Option<u64> {
        let fresh = dropped.saturating_sub(self.dropped);
        let soon = self
            .at
            .is_some_and(|at| now.duration_since(at) < BETWEEN_REPORTS);
        if fresh == 0 || soon {
            return None;
        }
        *self = Self {
            dropped,
            at: Some(now),
        };
        Some(fresh)
    }
}

impl<E: SpanExporter> WatchedExporter<E> {
    pub(super) fn new(next: E, tally: &'static Tally) -> Self {
        Self {
            next,
            tally,
            reported: Mutex::default(),
        }
    }

    /// Runs on the batch processor's thread: reporting from `on_end` would log from
    /// inside the subscriber that is just closing a span.
    fn report(&self, result: &OTelSdkResult) {
        let news = self
            .reported
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .news(self.tally.dropped(), Instant::now());
        let Some(spans) = news else { return };
        let reason = match result {
            Err(error) => error.to_string(),
            Ok(()) => "the queue was full or the receiver rejected them".to_owned(),
        };
        tracing::warn!(
            spans,
            reason,
            "spans were dropped, traces have gaps; check OTEL_EXPORTER_OTLP_ENDPOINT and its receiver"
        );
    }
}

impl<E: SpanExporter> SpanExporter for WatchedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.tally.sending(batch.len() as u64);
        let result = self.next.export(batch).await;
        self.tally.sent(result.is_ok());
        self.report(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Hears how many spans the receiver rejected. The exporter keeps that answer to
/// itself and only writes an internal log event about it.
pub(super) struct Rejections(pub &'static Tally);

impl Rejections {
    /// The name of that event.
    pub(super) const EVENT: &'static str = "HttpTraceClient.PartialSuccess";
}

impl<S: Subscriber> Layer<S> for Rejections {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        struct Rejected(u64);
        impl Visit for Rejected {
            fn record_i64(&mut self, field: &Field, value: i64) {
                if field.name() == "rejected_spans" {
                    self.0 = u64::try_from(value).unwrap_or(0);
                }
            }
            fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
        }

        if event.metadata().name() == Self::EVENT {
            let mut rejected = Rejected(0);
            event.record(&mut rejected);
            self.0.rejected.fetch_add(rejected.0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
    use std::sync::mpsc;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn tally() -> &'static Tally {
        Box::leak(Box::new(Tally::new()))
    }

    /// Answers each batch with what the test sends; fails when the test is gone.
    #[derive(Debug)]
    struct Scripted {
        entered: mpsc::Sender<usize>,
        answers: Mutex<mpsc::Receiver<OTelSdkResult>>,
    }

    impl SpanExporter for Scripted {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _ = self.entered.send(batch.len());
            self.answers
                .lock()
                .unwrap()
                .recv()
                .unwrap_or(Err(OTelSdkError::AlreadyShutdown))
        }
    }

    struct Pipeline {
        provider: SdkTracerProvider,
        tally: &'static Tally,
        entered: mpsc::Receiver<usize>,
        answers: mpsc::Sender<OTelSdkResult>,
    }

    fn pipeline(capacity: usize) -> Pipeline {
        let tally = tally();
        let (entered_sender, entered) = mpsc::channel();
        let (answers, answers_receiver) = mpsc::channel();
        let exporter = Scripted {
            entered: entered_sender,
            answers: Mutex::new(answers_receiver),
        };
        let batch = BatchSpanProcessor::builder(WatchedExporter::new(exporter, tally))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(capacity)
                    .with_max_export_batch_size(capacity)
                    .with_scheduled_delay(Duration::from_secs(3600))
                    .build(),
            )
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Admission {
                next: batch,
                capacity: capacity as u64,
                tally,
            })
            .build();
        Pipeline {
            provider,
            tally,
            entered,
            answers,
        }
    }

    impl Pipeline {
        fn finish_spans(&self, count: usize) {
            let tracer = self.provider.tracer("test");
            (0..count).for_each(|_| drop(tracer.start("span")));
        }

        fn batch_size(&self) -> usize {
            self.entered.recv_timeout(DEADLINE).unwrap()
        }
    }

    #[test]
    fn sent_spans_are_no_loss() {
        let pipeline = pipeline(8);
        pipeline.finish_spans(3);
        pipeline.answers.send(Ok(())).unwrap();
        pipeline.provider.shutdown().unwrap();
        assert_eq!(pipeline.batch_size(), 3);
        assert_eq!(pipeline.tally.dropped(), 0);
    }

    #[test]
    fn a_full_queue_and_a_failed_batch_are_both_counted() {
        let pipeline = pipeline(4);
        pipeline.finish_spans(4);
        assert_eq!(pipeline.batch_size(), 4);
        // The first batch is out of the queue and hangs; four more fit, three do not.
        pipeline.finish_spans(7);
        assert_eq!(pipeline.tally.dropped(), 3);

        pipeline
            .answers
            .send(Err(OTelSdkError::InternalFailure("away".into())))
            .unwrap();
        assert_eq!(pipeline.batch_size(), 4);
        assert_eq!(pipeline.tally.dropped(), 3 + 4);

        pipeline.answers.send(Ok(())).unwrap();
        pipeline.provider.shutdown().unwrap();
        assert_eq!(pipeline.tally.dropped(), 3 + 4);
    }

    #[test]
    fn what_is_left_behind_at_the_shutdown_deadline_is_counted_once() {
        let pipeline = pipeline(4);
        pipeline.finish_spans(4);
        assert_eq!(pipeline.batch_size(), 4);
        pipeline.finish_spans(2);
        // The first batch still hangs, so the two behind it cannot go.
        pipeline
            .provider
            .shutdown_with_timeout(Duration::from_millis(1))
            .unwrap_err();
        assert_eq!(pipeline.tally.dropped(), 4 + 2);

        // The abandoned thread fails both batches late: nothing is counted again.
        let Pipeline {
            answers, entered, ..
        } = pipeline;
        drop(answers);
        assert_eq!(entered.recv_timeout(DEADLINE), Ok(2));
        assert_eq!(
            entered.recv_timeout(DEADLINE),
            Err(mpsc::RecvTimeoutError::Disconnected),
            "the thread has ended"
        );
        assert_eq!(pipeline.tally.dropped(), 4 + 2);
    }

    #[test]
    fn losses_are_told_once_and_at_most_once_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reported = Reported::default();
        assert_eq!(reported.news(0, at(0)), None);
        assert_eq!(reported.news(5, at(1)), Some(5));
        assert_eq!(reported.news(9, at(30)), None);
        assert_eq!(reported.news(9, at(61)), Some(4));
        assert_eq!(reported.news(9, at(500)), None);
    }

    #[test]
    fn rejected_spans_are_read_from_the_exporters_event() {
        use tracing_subscriber::layer::SubscriberExt;

        let tally = tally();
        let subscriber = tracing_subscriber::registry().with(Rejections(tally));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(name: "HttpTraceClient.PartialSuccess", rejected_spans = 7_i64);
            tracing::warn!(name: "Something.Else", rejected_spans = 100_i64);
        });
        assert_eq!(tally.dropped(), 7);
    }
}
