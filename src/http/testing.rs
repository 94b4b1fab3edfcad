//! A served set of routes and raw clients for it. Every wait has a deadline.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use warp::{Filter, Rejection, Reply};

use super::accept::{Limits, serve};
use super::listener::{Listener, bind_tcp};

/// The header line of a chunked request.
pub const CHUNKED: &str = "transfer-encoding: chunked";

/// A whole request without a body.
pub const GET: &str = "GET / HTTP/1.1\r\n\r\n";

/// Fails the test instead of letting it hang.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("should have happened within 10 s")
}

/// Routes that are being served.
pub struct Server {
    pub addr: SocketAddr,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<()>,
}

impl Server {
    pub async fn start<F>(routes: F) -> Self
    where
        F: Filter + Send + Sync + 'static,
        F::Extract: Reply + Send,
        F::Error: Into<Rejection>,
    {
        Self::start_with(Limits::default(), routes).await
    }

    pub async fn start_with<F>(limits: Limits, routes: F) -> Self
    where
        F: Filter + Send + Sync + 'static,
        F::Extract: Reply + Send,
        F::Error: Into<Rejection>,
    {
        let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let addr = listener.tcp_addr().unwrap();
        let (shutdown, served) = spawn(listener, limits, routes);
        Self {
            addr,
            shutdown,
            served,
        }
    }

    pub async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.addr).await.unwrap())
    }
}

pub fn spawn<F>(
    listener: Listener,
    limits: Limits,
    routes: F,
) -> (CancellationToken, JoinHandle<()>)
where
    F: Filter + Send + Sync + 'static,
    F::Extract: Reply + Send,
    F::Error: Into<Rejection>,
{
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve(listener, routes, limits, shutdown.clone()));
    (shutdown, served)
}

/// A client that sends exactly what it is told.
pub struct Client<S> {
    stream: BufReader<S>,
}

pub struct Answer {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    pub body: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub async fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    pub async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await.unwrap();
        self.answer().await
    }

    pub async fn answer(&mut self) -> Answer {
        within(async {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let read = self.stream.read_line(&mut head).await.unwrap();
                assert_ne!(read, 0, "closed after {head:?}");
            }
            head.make_ascii_lowercase();
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
            let length = header("content-length: ").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.unwrap();
            Answer {
                status: head["http/1.1 ".len()..][..3].parse().unwrap(),
                body: String::from_utf8(body).unwrap(),
                head,
            }
        })
        .await
    }

    /// Waits until the server has closed, and returns what it said before.
    pub async fn closed(&mut self) -> String {
        let mut rest = Vec::new();
        match within(self.stream.read_to_end(&mut rest)).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        String::from_utf8(rest).unwrap()
    }

    /// Whether anything, the end included, comes within this time.
    pub async fn hears_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stream.fill_buf())
            .await
            .is_ok()
    }
}

/// What this thread logs for as long as the guard lives.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let logs = Self::default();
        let writer = logs.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (logs, tracing::subscriber::set_default(subscriber))
    }

    /// The lines with this level or text.
    pub fn lines(&self, containing: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .filter(|line| line.contains(containing))
            .map(str::to_owned)
            .collect()
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
