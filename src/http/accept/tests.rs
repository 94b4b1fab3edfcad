use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::tempdir;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::http::listener::bind_unix;
use crate::http::testing::{Client, GET, Logs, Server, spawn, within};

fn hello() -> impl Filter<Extract = (&'static str,), Error = Infallible> + Clone {
    warp::any().map(|| "hello")
}

/// A handler that says when it has begun and answers when it is let go.
#[derive(Clone)]
struct Gate {
    begun: Arc<Semaphore>,
    released: Arc<Notify>,
    running: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Self {
        Self {
            begun: Arc::new(Semaphore::new(0)),
            released: Arc::new(Notify::new()),
            running: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn routes(&self) -> impl Filter<Extract = (&'static str,), Error = Rejection> + Clone + use<> {
        let gate = self.clone();
        warp::any().and_then(move || {
            let gate = gate.clone();
            async move {
                let _running = Running::enter(&gate.running);
                gate.begun.add_permits(1);
                gate.released.notified().await;
                Ok::<_, Rejection>("released")
            }
        })
    }

    async fn begun(&self) {
        within(self.begun.acquire()).await.unwrap().forget();
    }
}

struct Running(Arc<AtomicUsize>);

impl Running {
    fn enter(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::SeqCst);
        Self(running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn routes_are_served_over_tcp_with_keep_alive() {
    let server = Server::start(hello()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        let answer = client.ask(GET).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    }
}

#[tokio::test]
async fn routes_are_served_over_a_unix_socket_that_goes_at_shutdown() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = bind_unix(&path).await.unwrap();
    let (shutdown, served) = spawn(listener, Limits::default(), hello());

    let mut client = Client::new(UnixStream::connect(&path).await.unwrap());
    assert_eq!(client.ask(GET).await.body, "hello");

    shutdown.cancel();
    within(served).await.unwrap();
    assert!(!path.exists());
    assert_eq!(client.closed().await, "");
}

#[tokio::test]
async fn a_rejection_keeps_its_status() {
    let server = Server::start(warp::path("known").map(|| "here")).await;
    assert_eq!(server.connect().await.ask(GET).await.status, 404);
}

#[tokio::test]
async fn a_half_sent_header_is_closed_after_the_header_timeout() {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Server::start_with(limits, hello()).await;
    let start = Instant::now();

    let mut silent = server.connect().await;
    let mut stalled = server.connect().await;
    stalled.send("GET / HTTP/1.1\r\nhost: x").await.unwrap();
    // One byte now and then must not buy more time.
    let mut trickling = server.connect().await;
    trickling.send("GET / HTTP/1.1\r\nhost: ").await.unwrap();
    while !trickling.hears_within(Duration::from_millis(20)).await {
        assert!(start.elapsed() < Duration::from_secs(10), "never closed");
        // An error is the close that the next round sees.
        let _ = trickling.send("x").await;
    }

    for client in [&mut silent, &mut stalled, &mut trickling] {
        assert_eq!(client.closed().await, "");
    }
    assert!(start.elapsed() >= limits.header_timeout);
}

#[tokio::test]
async fn an_idle_keep_alive_connection_ends() {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Server::start_with(limits, hello()).await;
    let mut client = server.connect().await;
    client.ask(GET).await;
    let answered = Instant::now();
    assert_eq!(client.closed().await, "");
    assert!(answered.elapsed() >= limits.header_timeout / 2);
}

#[tokio::test]
async fn a_slow_handler_is_not_cut_by_the_header_timeout() {
    let limits = Limits {
        header_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let gate = Gate::new();
    let server = Server::start_with(limits, gate.routes()).await;
    let mut client = server.connect().await;
    client.send(GET).await.unwrap();
    gate.begun().await;
    assert!(!client.hears_within(limits.header_timeout * 4).await);
    gate.released.notify_one();
    assert_eq!(client.answer().await.body, "released");
}

#[tokio::test]
async fn a_header_beyond_16_kib_is_431() {
    let server = Server::start(hello()).await;
    let header = "x".repeat(LARGEST_HEADER);
    let answer = server
        .connect()
        .await
        .ask(&format!("GET / HTTP/1.1\r\ncookie: {header}\r\n\r\n"))
        .await;
    assert_eq!(answer.status, 431);
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_their_turn() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let gate = Gate::new();
    let server = Server::start_with(limits, gate.routes()).await;
    let mut first = server.connect().await;
    let mut second = server.connect().await;
    for client in [&mut first, &mut second] {
        client.send(GET).await.unwrap();
        gate.begun().await;
    }

    let mut third = server.connect().await;
    third.send(GET).await.unwrap();
    // An accepted request begins within a millisecond.
    assert!(!third.hears_within(Duration::from_millis(150)).await);
    assert_eq!(gate.running.load(Ordering::SeqCst), 2);

    drop(first);
    gate.begun().await;
    gate.released.notify_waiters();
    assert_eq!(third.answer().await.status, 200);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn a_panicking_handler_answers_500_is_logged_and_costs_nothing_else() {
    async fn panic_later() -> Result<&'static str, Rejection> {
        tokio::task::yield_now().await;
        std::panic::panic_any("async trouble".to_owned())
    }
    let (logs, _guard) = Logs::capture();
    let panics_at_once = warp::path("sync").map(|| -> &'static str { panic!("sync trouble") });
    let panics_later = warp::path("async").and_then(panic_later);
    let server = Server::start(panics_at_once.or(panics_later).or(hello())).await;
    let mut client = server.connect().await;
    for kind in ["sync", "async"] {
        let answer = client
            .ask(&format!("GET /{kind}?code=s3cret HTTP/1.1\r\n\r\n"))
            .await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.body, "internal error");
        assert!(answer.head.contains("content-type: text/plain"));
        // The same connection goes on.
        assert_eq!(client.ask(GET).await.status, 200);

        let logged = logs.lines(&format!("{kind} trouble"));
        assert_eq!(logged.len(), 1, "{logged:?}");
        assert!(logged[0].contains("ERROR") && logged[0].contains(&format!("/{kind}")));
        assert!(!logged[0].contains("s3cret"), "{logged:?}");
    }
}

#[tokio::test]
async fn a_panic_in_a_streamed_answer_is_logged_and_costs_one_connection() {
    let (logs, _guard) = Logs::capture();
    let streamed = warp::path("stream").map(|| {
        warp::reply::stream(futures_util::stream::poll_fn(
            |_| -> std::task::Poll<Option<Result<hyper::body::Bytes, io::Error>>> {
                panic!("stream trouble")
            },
        ))
    });
    let server = Server::start(streamed.or(hello())).await;
    let mut unlucky = server.connect().await;
    let mut other = server.connect().await;
    unlucky.send("GET /stream HTTP/1.1\r\n\r\n").await.unwrap();
    unlucky.closed().await;
    assert_eq!(other.ask(GET).await.status, 200);
    assert_eq!(logs.lines("cut by a panic").len(), 1);
}

#[tokio::test]
async fn shutdown_refuses_new_connections_and_ends_idle_ones() {
    // Longer than the test waits: neither may be what ends the idle connection.
    let limits = Limits {
        header_timeout: Duration::from_secs(60),
        drain: Duration::from_secs(60),
        ..Limits::default()
    };
    let server = Server::start_with(limits, hello()).await;
    let mut idle = server.connect().await;
    idle.ask(GET).await;

    server.shutdown.cancel();
    assert_eq!(idle.closed().await, "");
    within(server.served).await.unwrap();
    let refused = TcpStream::connect(server.addr).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn shutdown_lets_the_current_answer_finish_and_then_closes() {
    let gate = Gate::new();
    let server = Server::start(gate.routes()).await;
    let mut client = server.connect().await;
    client.send(GET).await.unwrap();
    gate.begun().await;

    server.shutdown.cancel();
    // The listener goes at once, while the answer is still awaited.
    within(async {
        while TcpStream::connect(server.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!server.served.is_finished());

    gate.released.notify_one();
    let answer = client.answer().await;
    assert_eq!(answer.body, "released");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    assert_eq!(client.closed().await, "");
    within(server.served).await.unwrap();
}

#[tokio::test]
async fn the_deadline_cuts_what_does_not_finish() {
    let (logs, _guard) = Logs::capture();
    let limits = Limits {
        drain: Duration::from_millis(100),
        ..Limits::default()
    };
    let gate = Gate::new();
    let server = Server::start_with(limits, gate.routes()).await;
    let mut client = server.connect().await;
    client.send(GET).await.unwrap();
    gate.begun().await;

    let cancelled = Instant::now();
    server.shutdown.cancel();
    within(server.served).await.unwrap();
    assert!(cancelled.elapsed() >= limits.drain);
    assert_eq!(client.closed().await, "");
    assert_eq!(gate.running.load(Ordering::SeqCst), 0, "handler dropped");
    assert_eq!(logs.lines("connections=1").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_does_not_hold_up_the_deadline() {
    let limits = Limits {
        drain: Duration::from_millis(100),
        ..Limits::default()
    };
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(std::sync::Mutex::new(blocked));
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let routes = warp::any().map(move || {
        begins.notify_one();
        // Returns when the test lets go of the sender.
        let _ = blocked.lock().unwrap().recv();
        "late"
    });
    let server = Server::start_with(limits, routes).await;
    let mut client = server.connect().await;
    client.send(GET).await.unwrap();
    within(begun.notified()).await;

    server.shutdown.cancel();
    within(server.served).await.unwrap();
    drop(release);
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_handler() {
    let gate = Gate::new();
    let server = Server::start(gate.routes()).await;
    let mut client = server.connect().await;
    client.send(GET).await.unwrap();
    gate.begun().await;
    drop(client);
    within(async {
        while gate.running.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn a_burst_of_failures_starts_once() {
    let start = Instant::now();
    let mut burst = Burst::default();
    let at = |millis| start + Duration::from_millis(millis);
    assert!(burst.starts_at(at(0)));
    assert!(!burst.starts_at(at(100)));
    // The gap counts from the last failure, not from the first.
    assert!(!burst.starts_at(at(10_000)));
    assert!(!burst.starts_at(at(19_999)));
    assert!(burst.starts_at(at(29_999)));
}

#[test]
fn only_a_client_that_is_gone_is_passed_over_in_silence() {
    assert!(concerns_one_client(
        &io::ErrorKind::ConnectionAborted.into()
    ));
    assert!(concerns_one_client(&io::ErrorKind::ConnectionReset.into()));
    assert!(!concerns_one_client(&io::ErrorKind::Other.into()));
}
