//! The accept loop when the process has run out of file descriptors.
//!
//! Alone in its file, because the limit is one of the whole process.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use perennial::http::accept::{Limits, serve};
use perennial::http::listener::bind_tcp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;
use warp::Filter;

#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap())
            .matches(text)
            .count()
    }
}

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn running_out_of_file_descriptors_is_logged_once_and_survived() {
    let logs = Logs::default();
    let writer = logs.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    // The kernel completes the connection; it waits in the backlog.
    let mut client = TcpStream::connect(listener.tcp_addr().unwrap()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();

    let usual = getrlimit(Resource::Nofile);
    let exhausted = Rlimit {
        current: Some(3),
        ..usual
    };
    setrlimit(Resource::Nofile, exhausted).unwrap();
    let shutdown = CancellationToken::new();
    let routes = warp::any().map(|| "served at last");
    let served = tokio::spawn(serve(listener, routes, Limits::default(), shutdown.clone()));

    let start = Instant::now();
    while logs.count("failed again") < 3 {
        assert!(start.elapsed() < Duration::from_secs(10), "no retries");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Four attempts have three pauses of 100 ms between them: no busy loop.
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(logs.count("WARN"), 1);
    assert_eq!(logs.count("cannot be accepted"), 1);

    setrlimit(Resource::Nofile, usual).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        client
            .write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap();
    assert!(answer.ends_with("served at last"), "{answer}");

    shutdown.cancel();
    served.await.unwrap();
}
