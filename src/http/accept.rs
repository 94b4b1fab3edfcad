//! The accept loop: warp routes on HTTP/1.1, with the bounds that warp's own server lacks.
//!
//! A client can hold a connection only for as long as [`Limits`] say, a panicking handler
//! costs one answer, and shutdown ends in bounded time.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use super::body;
use super::listener::{Listener, Socket};

/// Request line and headers together, in bytes; more is answered with 431. A browser's
/// cookies and a bearer token fit; hyper's own bound is 400 KiB for each connection.
const LARGEST_HEADER: usize = 16 * 1024;

/// Pause after a failed accept. The listener stays ready while file descriptors are missing,
/// so without a pause the loop would take a whole processor just when things are bad.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// So long without a failed accept ends a burst of failures, and the next one is logged again.
const BURST_GAP: Duration = Duration::from_secs(10);

/// What one listener grants its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a connection's start, or from its last answer, to the end of the next request's
    /// header; then the connection is closed. So it also ends idle keep-alive connections.
    pub header_timeout: Duration,
    /// Connections served at the same time; 0 counts as 1. Beyond it nobody is turned away:
    /// the kernel keeps new connections in its backlog until one of the served ends.
    pub max_connections: usize,
    /// How long after the shutdown connections may finish their current answer. Then they are
    /// cut, and their handlers are dropped where they wait.
    pub drain: Duration,
}

impl Default for Limits {
    /// 10 s, 1024 connections, 5 s.
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            max_connections: 1024,
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves `routes` on `listener` until `shutdown` is cancelled and the open connections have
/// finished, at the latest `limits.drain` after the cancellation.
///
/// At the shutdown the listener is closed at once, and a Unix socket's file removed. Idle
/// connections are closed; the others get their current answer, with `Connection: close`.
/// Dropping this future cuts every connection.
///
/// A handler is dropped when its client hangs up or the drain ends. Work that must not stop
/// halfway, such as a refresh, belongs in a task of its own that the handler only awaits.
///
/// A handler that panics is logged and answered with 500 and the text `internal error`.
/// Rejections by [`body`](body::body) are answered here unless the routes do it.
pub async fn serve<F>(listener: Listener, routes: F, limits: Limits, shutdown: CancellationToken)
where
    F: Filter + Send + Sync + 'static,
    F::Extract: Reply + Send,
    F::Error: Into<Rejection>,
{
    // Boxing gives every set of routes the same error type and makes a clone cheap.
    let routes = routes.boxed().recover(body::answer);
    let service = TowerToHyperService::new(warp::service(routes));
    let mut connections = JoinSet::new();
    let mut failures = Burst::default();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => report(ended),
            socket = accept(&listener, &mut failures),
                if connections.len() < limits.max_connections.max(1) =>
            {
                let served = connection(socket, service.clone(), limits, shutdown.clone());
                connections.spawn(served);
            }
        }
    }
    drop(listener);

    let drained = timeout(limits.drain, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        // Dropping the set aborts the rest without waiting for it: a handler that blocks its
        // thread cannot hold up the deadline.
        tracing::warn!(
            connections = connections.len(),
            "HTTP connections did not finish in time after the shutdown and are cut"
        );
    }
}

/// The next connection. An error never ends it: the listener itself cannot break, so an error
/// means that one client is gone or that the process lacks something for a while.
async fn accept(listener: &Listener, failures: &mut Burst) -> Socket {
    loop {
        match listener.accept().await {
            Ok(socket) => return socket,
            Err(error) if concerns_one_client(&error) => {}
            Err(error) => {
                if failures.starts_at(Instant::now()) {
                    tracing::warn!(
                        %error,
                        "new HTTP connections cannot be accepted; trying again until they can"
                    );
                } else {
                    tracing::debug!(%error, "accepting an HTTP connection failed again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The client hung up while its connection waited in the backlog.
fn concerns_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// Tells the first failure of a burst from those that follow it.
#[derive(Default)]
struct Burst {
    last: Option<Instant>,
}

impl Burst {
    fn starts_at(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.duration_since(last) >= BURST_GAP)
    }
}

/// Logs a connection whose task panicked: outside a handler, so in a streamed answer.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP connection was cut by a panic");
    }
}

/// Serves one connection to its end.
async fn connection<S>(socket: Socket, service: S, limits: Limits, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone,
{
    let handler = service_fn(|request| answer(service.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(LARGEST_HEADER)
        .serve_connection(TokioIo::new(socket), handler);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        // First, so that a request which is already here when the shutdown comes is answered.
        biased;
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Answers one request, with 500 when its handler panics.
async fn answer<S>(service: S, request: Request<Incoming>) -> Result<Response, Infallible>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let method = request.method().clone();
    // Without the query, which may carry an authorization code.
    let path = request.uri().path().to_owned();
    // Sound to go on after a panic: the future that panicked is never polled again, and what
    // the routes share is behind locks or atomics, as they are used from several threads.
    let handled = AssertUnwindSafe(async { service.call(request).await });
    match handled.catch_unwind().await {
        Ok(answered) => answered,
        Err(panic) => {
            let panic = message(&*panic);
            tracing::error!(%method, path, panic, "an HTTP handler panicked");
            let reply =
                warp::reply::with_status("internal error", StatusCode::INTERNAL_SERVER_ERROR);
            Ok(reply.into_response())
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown type")
}

#[cfg(test)]
mod tests;
