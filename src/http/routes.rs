//! What the service answers to everybody: `/metrics`, `/healthz`, `/readyz`, `/runbook`, `/`.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use warp::{Filter, Rejection, Reply, http::StatusCode, http::header, reply::Response};

use super::{exposition, gzip, runbook};
use crate::{
    clock::Clock, credential::policy::delta, fleet::Fleet, metrics::Metrics, runner::Runner,
    scheduler::Scheduler, status, store::probe::Probe,
};

/// Prometheus 3 refuses a scrape without this.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The scheduler beats every 5 s, and may pause for 30 s after its clock was set back.
const SCHEDULER_DEAD_AFTER: Duration = Duration::from_secs(60);

/// What the routes look at.
pub struct Service {
    /// The credentials.
    pub fleet: Arc<Fleet>,
    /// The jobs.
    pub runner: Arc<Runner>,
    /// Whether it ticks.
    pub scheduler: Scheduler,
    /// Whether the store can be written.
    pub probe: Arc<Probe>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Cancelled when the service is to stop: from then on it is not ready.
    pub stop: CancellationToken,
}

/// The routes, measured.
pub fn routes(
    service: Arc<Service>,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let with = {
        let service = service.clone();
        warp::any().map(move || service.clone())
    };
    let metrics = warp::path!("metrics")
        .and(warp::get())
        .and(with.clone())
        .and(warp::header::optional("accept-encoding"))
        .then(scrape);
    let healthz = warp::path!("healthz")
        .and(warp::get())
        .and(with.clone())
        .map(healthz);
    let readyz = warp::path!("readyz")
        .and(warp::get())
        .and(with.clone())
        .then(readyz);
    let runbook = warp::path!("runbook")
        .and(warp::get())
        .map(|| page(runbook::page()));
    let index = warp::path::end().and(warp::get()).and(with).map(index);
    let measured = warp::log::custom(move |info| {
        let route = match info.path() {
            route @ ("/" | "/metrics" | "/healthz" | "/readyz" | "/runbook") => route,
            _ => "other",
        };
        let method = match info.method().as_str() {
            method @ ("GET" | "HEAD") => method,
            _ => "other",
        };
        service
            .metrics
            .http_request(route, method, info.status().as_str(), info.elapsed());
    });
    metrics
        .or(healthz)
        .unify()
        .or(readyz)
        .unify()
        .or(runbook)
        .unify()
        .or(index)
        .unify()
        .with(measured)
}

async fn scrape(service: Arc<Service>, accept_encoding: Option<String>) -> Response {
    let store_writable = service.probe.is_writable();
    // Writing and compressing take milliseconds for ten thousand credentials: not on a thread
    // that readers wait for.
    let encoded = tokio::task::spawn_blocking(move || {
        let now = service.clock.now();
        let last_tick = now.wall - delta(service.scheduler.silent_for());
        let mut text = service.metrics.encode(last_tick, store_writable);
        let jobs = service.runner.jobs.values().map(|job| &**job);
        exposition::jobs(jobs, &service.scheduler, now, &mut text);
        exposition::credentials(&service.fleet, now, &mut text);
        let compressed = gzip::accepts_gzip(accept_encoding.as_deref());
        let body = if compressed {
            gzip::gzip(text.as_bytes())
        } else {
            text.into_bytes()
        };
        (body, compressed)
    });
    let Ok((body, compressed)) = encoded.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(TEXT_FORMAT),
    );
    headers.insert(
        header::VARY,
        header::HeaderValue::from_static("Accept-Encoding"),
    );
    if compressed {
        headers.insert(
            header::CONTENT_ENCODING,
            header::HeaderValue::from_static("gzip"),
        );
    }
    response
}

/// Is the process worth keeping? Only if it ticks.
fn healthz(service: Arc<Service>) -> Response {
    if service.scheduler.silent_for() < SCHEDULER_DEAD_AFTER {
        answer(StatusCode::OK, "ok")
    } else {
        answer(
            StatusCode::SERVICE_UNAVAILABLE,
            "the scheduler has not ticked for a minute",
        )
    }
}

/// Is it worth sending requests to? Only if it can save what it refreshes.
async fn readyz(service: Arc<Service>) -> Response {
    if service.stop.is_cancelled() {
        return answer(StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    match service.probe.prove().await {
        Ok(()) => answer(StatusCode::OK, "ready"),
        Err(error) => answer(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

fn answer(status: StatusCode, text: &str) -> Response {
    warp::reply::with_status(format!("{text}\n"), status).into_response()
}

/// A page with how everything stands and where to look. No script, nothing loaded.
fn index(service: Arc<Service>) -> Response {
    let now = service.clock.now();
    let statuses = status::of(&service.fleet, now);
    // Names and closed words only: nothing in them can be markup, but error details come
    // from servers.
    let table = status::table(&statuses, now.wall)
        .replace('&', "&amp;")
        .replace('<', "&lt;");
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"refresh\" content=\"5\">\n<title>Perennial</title>\n\
         <style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }} \
         pre {{ font-size: 14px; overflow-x: auto }}</style>\n\
         <h1>Perennial {version}</h1>\n<pre>{table}</pre>\n\
         <p><a href=\"/runbook\">what to do</a> · <a href=\"/metrics\">metrics</a> · <a href=\"/healthz\">healthz</a> · \
         <a href=\"/readyz\">readyz</a></p>\n</html>\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    page(html)
}

/// A page without scripts, into which nothing is loaded.
fn page(html: impl Into<hyper::body::Bytes>) -> Response {
    let mut response = warp::reply::html(html.into()).into_response();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static(policy),
    );
    response
}
