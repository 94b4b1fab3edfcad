//! What `/metrics` shows that is counted as it happens. What is only a view of state is
//! written at scrape time instead, by [`exposition`](crate::http::exposition).

use std::time::Duration;

use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, Opts, Registry,
    core::Collector,
};

use crate::credential::Reason;

/// From a local disk (1 ms) to a provider's time-out (30 s).
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Runs may wait for many providers.
const RUN_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0,
];

/// What the store is asked for: label values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOperation {
    /// See [`crate::store::Store::checkout`].
    Checkout,
    /// See [`crate::store::Store::save`].
    Save,
    /// See [`crate::store::Store::settle`].
    Settle,
    /// A look at a credential.
    Read,
    /// Runs and firings of jobs.
    History,
}

impl StoreOperation {
    /// Every operation.
    pub const ALL: [Self; 5] = [
        Self::Checkout,
        Self::Save,
        Self::Settle,
        Self::Read,
        Self::History,
    ];
    /// The steps of a refresh, which are measured.
    pub const STEPS: [Self; 3] = [Self::Checkout, Self::Save, Self::Settle];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checkout => "checkout",
            Self::Save => "save",
            Self::Settle => "settle",
            Self::Read => "read",
            Self::History => "history",
        }
    }
}

/// Every counter and histogram, registered once.
pub struct Metrics {
    registry: Registry,
    refresh_duration: HistogramVec,
    job_run_duration: HistogramVec,
    job_start_delay: HistogramVec,
    sink_deliveries: CounterVec,
    store_operation_duration: HistogramVec,
    store_errors: CounterVec,
    store_writable: Gauge,
    store_unsaved: Gauge,
    http_request_duration: HistogramVec,
    scheduler_last_tick: Gauge,
    spans_dropped: Counter,
}

impl Metrics {
    /// Registers everything. Each process has its own registry, so tests do not share.
    #[allow(
        clippy::new_without_default,
        reason = "registers with the process collector"
    )]
    pub fn new() -> Self {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, HistogramVec::new(options, labels))
        };
        let metrics = Self {
            refresh_duration: histogram(
                "refresh_duration_seconds",
                "Time of one refresh, from its start until the new tokens are durable or it failed.",
                SECONDS,
                &["provider", "outcome"],
            ),
            job_run_duration: histogram(
                "perennial_job_run_duration_seconds",
                "Time of one run of a job.",
                RUN_SECONDS,
                &["job_name"],
            ),
            job_start_delay: histogram(
                "perennial_job_start_delay_seconds",
                "Time from a firing of the schedule to the start of its run.",
                RUN_SECONDS,
                &["job_name"],
            ),
            sink_deliveries: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "perennial_sink_deliveries_total",
                        "Deliveries of an access token to a sink.",
                    ),
                    &["sink", "outcome"],
                ),
            ),
            store_operation_duration: histogram(
                "perennial_store_operation_duration_seconds",
                "Time of one operation of the store, until it is durable.",
                SECONDS,
                &["operation"],
            ),
            store_errors: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "perennial_store_errors_total",
                        "Operations of the store that failed.",
                    ),
                    &["operation"],
                ),
            ),
            store_writable: register(
                &registry,
                Gauge::new(
                    "perennial_store_writable",
                    "1 while the store proves every 30 s that it can write durably, within a second, else 0.",
                ),
            ),
            store_unsaved: register(
                &registry,
                Gauge::new(
                    "perennial_store_unsaved_credentials",
                    "Credentials whose new tokens could not be written yet and are only in memory: do not stop the process.",
                ),
            ),
            http_request_duration: histogram(
                "perennial_http_request_duration_seconds",
                "Time of one HTTP request to this service.",
                SECONDS,
                &["route", "method", "status"],
            ),
            scheduler_last_tick: register(
                &registry,
                Gauge::new(
                    "perennial_scheduler_last_tick_timestamp_seconds",
                    "When the scheduler started, or last proved to be alive, by the clock as it now is.",
                ),
            ),
            spans_dropped: register(
                &registry,
                Counter::new(
                    "perennial_telemetry_spans_dropped_total",
                    "Spans that did not reach the OTLP receiver.",
                ),
            ),
            registry,
        };
        let build = register(
            &metrics.registry,
            prometheus::GaugeVec::new(
                Opts::new("perennial_build_info", "Which Perennial this is; always 1."),
                &["version", "commit"],
            ),
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), crate::COMMIT])
            .set(1.0);
        let reload = register(
            &metrics.registry,
            Gauge::new(
                "perennial_config_last_reload_successful",
                "Whether the configuration was read without an error, the last time it was read.",
            ),
        );
        reload.set(1.0);
        for operation in StoreOperation::ALL {
            metrics
                .store_errors
                .with_label_values(&[operation.as_str()]);
        }
        for step in StoreOperation::STEPS {
            metrics.store_operation(step);
        }
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics
            .registry
            .register(Box::new(process))
            .expect("registered once");
        metrics
    }

    /// Every family in the registry, in the text format of Prometheus.
    pub fn encode(
        &self,
        scheduler_last_tick: crate::clock::Timestamp,
        store_writable: bool,
    ) -> String {
        self.store_writable.set(f64::from(u8::from(store_writable)));
        self.scheduler_last_tick
            .set(scheduler_last_tick.timestamp_millis() as f64 / 1_000.0);
        let dropped = crate::telemetry::Telemetry::spans_dropped() as f64;
        self.spans_dropped
            .inc_by((dropped - self.spans_dropped.get()).max(0.0));
        prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("every family has metrics")
    }

    /// `outcome` is `success` or a [`crate::credential::Reason`].
    pub fn refresh(&self, provider: &str, outcome: &str, took: Duration) {
        self.refresh_duration
            .with_label_values(&[provider, outcome])
            .observe(took.as_secs_f64());
    }

    /// Makes the series of a provider exist from the start.
    pub fn expect_provider(&self, provider: &str) {
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
        for outcome in reasons.chain(["success"]) {
            self.refresh_duration
                .with_label_values(&[provider, outcome]);
        }
    }

    /// Makes the series of a job exist from the start.
    pub fn expect_job(&self, job: &str) {
        self.job_run_duration.with_label_values(&[job]);
        self.job_start_delay.with_label_values(&[job]);
    }

    /// Makes the series of a kind of sink exist from the start.
    pub fn expect_sink(&self, sink: &str) {
        for outcome in ["success", "failure"] {
            self.sink_deliveries.with_label_values(&[sink, outcome]);
        }
    }

    /// One run of a job.
    pub fn job_run(&self, job: &str, took: Duration) {
        self.job_run_duration
            .with_label_values(&[job])
            .observe(took.as_secs_f64());
    }

    /// One start of a scheduled run.
    pub fn job_start(&self, job: &str, delay: Duration) {
        self.job_start_delay
            .with_label_values(&[job])
            .observe(delay.as_secs_f64());
    }

    /// One delivery to a kind of sink.
    pub fn sink_delivery(&self, sink: &str, success: bool) {
        let outcome = if success { "success" } else { "failure" };
        self.sink_deliveries
            .with_label_values(&[sink, outcome])
            .inc();
    }

    /// The histogram of one operation of the store.
    pub fn store_operation(&self, operation: StoreOperation) -> Histogram {
        self.store_operation_duration
            .with_label_values(&[operation.as_str()])
    }

    /// An operation of the store failed.
    pub fn store_error(&self, operation: StoreOperation) {
        self.store_errors
            .with_label_values(&[operation.as_str()])
            .inc();
    }

    /// A credential whose new tokens are only in memory, until what is returned is dropped.
    pub fn unsaved(&self) -> Unsaved {
        self.store_unsaved.inc();
        Unsaved(self.store_unsaved.clone())
    }

    /// One HTTP request. `route` is a template, never a path.
    pub fn http_request(&self, route: &str, method: &str, status: &str, took: Duration) {
        self.http_request_duration
            .with_label_values(&[route, method, status])
            .observe(took.as_secs_f64());
    }
}

/// See [`Metrics::unsaved`].
pub struct Unsaved(Gauge);

impl Drop for Unsaved {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: Result<C, prometheus::Error>,
) -> C {
    let collector = collector.expect("names and labels are constants");
    registry
        .register(Box::new(collector.clone()))
        .expect("each name is registered once");
    collector
}
