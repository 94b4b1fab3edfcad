//! What a scrape of 10,000 credentials takes, beside the prometheus crate's own way, and what
//! everybody else feels of it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};

use super::{bar, fleet::Fleet};

const CREDENTIALS: usize = 10_000;
const SCRAPES: usize = 10;

pub fn run() {
    let fleet = Fleet::with_tokens(CREDENTIALS);
    let service = fleet.serve();
    let metrics = format!("{}/metrics", service.url);
    let http = client();
    let text = get(&http, &metrics);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let ours = median(|| drop(get(&http, &metrics)));
    let plain = gather_and_encode(series);
    println!(
        "  {CREDENTIALS} credentials: {series} series, {:.1} MB\n    a scrape over HTTP{:>42.1} ms\n    \
         gather and encode of as many gauges{:>25.1} ms",
        text.len() as f64 / 1e6,
        ours * 1e3,
        plain * 1e3
    );
    bar(
        "a scrape of the prometheus crate's own",
        ours / plain,
        ours <= plain,
        "at most 1.00",
    );

    let healthz = format!("{}/healthz", service.url);
    let quiet = p99(&healthz);
    let scraping = AtomicBool::new(true);
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| {
            while scraping.load(Ordering::Relaxed) {
                get(&http, &metrics);
            }
        });
        let busy = p99(&healthz);
        scraping.store(false, Ordering::Relaxed);
        busy
    });
    println!(
        "    p99 of /healthz, nothing else going on{:>22.2} ms\n    \
         p99 of /healthz, one scrape after the other{:>17.2} ms",
        quiet * 1e3,
        busy * 1e3
    );
    bar(
        "/healthz during scrapes of the quiet one",
        busy / quiet,
        busy <= 2.0 * quiet,
        "at most 2.00",
    );
}

fn client() -> reqwest::blocking::Client {
    // Fails when it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::builder()
        .no_proxy()
        .build()
        .expect("an HTTP client")
}

fn get(http: &reqwest::blocking::Client, url: &str) -> String {
    let answer = http
        .get(url)
        .send()
        .and_then(|answer| answer.error_for_status());
    answer.and_then(|answer| answer.text()).expect("an answer")
}

/// Seconds.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..SCRAPES)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The time of so many plain gauges, with the two labels that ours have.
fn gather_and_encode(series: usize) -> f64 {
    let registry = Registry::new();
    let gauges = GaugeVec::new(Opts::new("gauge", "A gauge."), &["credential", "provider"]);
    let gauges = gauges.expect("a valid family");
    for number in 0..series {
        gauges
            .with_label_values(&[&format!("c{number}"), "bench"])
            .set(number as f64);
    }
    registry.register(Box::new(gauges)).expect("a new family");
    median(|| {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut text)
            .expect("text");
        assert!(text.len() > series);
    })
}

/// The time in which 99 of 100 requests are answered, one after the other for two seconds.
fn p99(url: &str) -> f64 {
    let http = client();
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        get(&http, url);
        times.push(asked.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}
