//! How much the promises of the refresh path cost, as ratios against a bare loop in the same run:
//! `cargo bench`.
//!
//! Both sides talk to the same server in this process, over the same HTTP client; the bare loop
//! sends a request, reads the answer and forgets it. What is measured beside it also claims,
//! intends, encrypts, saves durably and publishes.

use std::{
    convert::Infallible,
    fmt::Write,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use perennial::{
    app::App,
    config::{self, Config, Environment, Input},
    oauth, plugins,
    refresh::Cause,
    secret::Secret,
};

const CREDENTIALS: usize = 10_000;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (delay, in_flight) in [(Duration::ZERO, 64), (Duration::from_millis(50), 512)] {
        runtime.block_on(compare(delay, in_flight));
    }
}

async fn compare(delay: Duration, in_flight: usize) {
    let server = serve(delay);
    let bare = bare_loop(server, in_flight).await;
    let (path, cpu) = refresh_path(server, in_flight).await;
    println!(
        "refresh path, {CREDENTIALS} credentials, {in_flight} in flight, {delay:?} at the server:\n\
         \x20 bare reqwest loop  {bare:>8.0} exchanges/s\n\
         \x20 refresh path       {path:>8.0} refreshes/s, {cpu:.0} us of CPU each (server included)\n\
         \x20 ratio              {:>8.2}\n",
        path / bare
    );
}

/// Requests alone: `in_flight` at a time, as many as there are credentials.
async fn bare_loop(server: SocketAddr, in_flight: usize) -> f64 {
    let http = oauth::http_client(Duration::from_secs(30)).expect("an HTTP client");
    let url = format!("http://{server}/token");
    let started = Instant::now();
    stream::iter(0..CREDENTIALS)
        .for_each_concurrent(in_flight, |number| {
            let body = format!("grant_type=refresh_token&refresh_token=r{number}&client_id=bench");
            let request = http.post(&url).body(body).send();
            async move {
                let answer = request
                    .await
                    .expect("an answer")
                    .bytes()
                    .await
                    .expect("a body");
                let fields: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
                assert!(fields["access_token"].is_string());
            }
        })
        .await;
    CREDENTIALS as f64 / started.elapsed().as_secs_f64()
}

/// The whole path, through what `perennial serve` wires together.
async fn refresh_path(server: SocketAddr, in_flight: usize) -> (f64, f64) {
    let folder = tempfile::tempdir().expect("a folder");
    let app = App::open(&configuration(server, folder.path(), in_flight))
        .await
        .expect("an app");
    let members: Vec<_> = app.refresher.fleet.iter().cloned().collect();
    stream::iter(&members)
        .for_each_concurrent(512, async |member| {
            let token = Secret::new(format!("imported-{}", member.name));
            app.refresher
                .import(member, token)
                .await
                .expect("an import");
        })
        .await;
    let (started, cpu) = (Instant::now(), cpu_time());
    stream::iter(members)
        .for_each_concurrent(in_flight, async |member| {
            let outcome = app.refresher.refresh(&member, Cause::Forced).await;
            assert_eq!(outcome, perennial::refresh::Outcome::Refreshed(2));
        })
        .await;
    let rate = CREDENTIALS as f64 / started.elapsed().as_secs_f64();
    let cpu = (cpu_time() - cpu).as_micros() as f64 / CREDENTIALS as f64;
    app.finish().await;
    (rate, cpu)
}

fn configuration(server: SocketAddr, folder: &Path, in_flight: usize) -> Config {
    let mut text = format!(
        "[store]\nurl = \"sqlite:{}/bench.db\"\n[providers.bench]\ntoken_url = \"http://{server}/token\"\n\
         client_id = \"bench\"\nmax_in_flight = {in_flight}\n",
        folder.display()
    );
    for number in 0..CREDENTIALS {
        write!(text, "[credentials.c{number}]\nprovider = \"bench\"\n").expect("strings grow");
    }
    let read = |path: &Path| std::fs::read_to_string(path);
    let env = Environment::default();
    let input = Input {
        file: Some(("bench", &text)),
        env: &env,
        read: &read,
    };
    config::resolve(&input, &plugins::kinds())
        .expect("a valid configuration")
        .config
}

/// A token endpoint that answers at once, or after a delay, with new tokens of usual size.
fn serve(delay: Duration) -> SocketAddr {
    let (tell, address) = std::sync::mpsc::channel();
    // A runtime of its own, so that the server does not wait in the client's queues.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            tell.send(listener.local_addr().expect("an address"))
                .expect("somebody listens");
            let count = Arc::new(AtomicU64::new(0));
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    continue;
                };
                let count = count.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| token(request, delay, count.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
    });
    address.recv().expect("the server starts")
}

async fn token(
    request: Request<Incoming>,
    delay: Duration,
    count: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let number = count.fetch_add(1, Ordering::Relaxed);
    let filler = "x".repeat(500);
    let body = format!(
        r#"{{"access_token":"a{number}-{filler}","refresh_token":"r{number}-{filler}","token_type":"Bearer","expires_in":86400}}"#
    );
    let response = Response::builder().header("content-type", "application/json");
    Ok(response
        .body(Full::new(body.into()))
        .expect("a valid answer"))
}

/// What this process has used so far, all threads together.
fn cpu_time() -> Duration {
    let usage = std::fs::read_to_string("/proc/self/stat").expect("a proc file system");
    let fields: Vec<&str> = usage
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}
