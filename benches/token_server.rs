//! A token endpoint that answers at once, or after a delay, with new tokens of usual size. In a
//! process of its own, so that what it costs is not counted.

use std::{
    convert::Infallible,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;

/// The first word of the command line that makes this program the server.
pub const ROLE: &str = "token-server";

/// A running server.
pub struct TokenServer {
    pub address: SocketAddr,
    process: Child,
}

impl TokenServer {
    /// Starts one that waits so long before each answer.
    pub fn start(delay: Duration) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args([ROLE, &delay.as_millis().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("its address");
        let address = line.trim().parse().expect("an address");
        Self { address, process }
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves for ever, and prints where.
pub fn serve(delay_in_milliseconds: u64) {
    let delay = Duration::from_millis(delay_in_milliseconds);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        println!("{}", listener.local_addr().expect("an address"));
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                continue;
            };
            tokio::spawn(async move {
                let service = service_fn(|request| token(request, delay));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
}

async fn token(
    request: Request<Incoming>,
    delay: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let _ = request.into_body().collect().await;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let filler = "x".repeat(500);
    let body = format!(
        r#"{{"access_token":"a{number}-{filler}","refresh_token":"r{number}-{filler}","token_type":"Bearer","expires_in":86400}}"#
    );
    let response = Response::builder().header("content-type", "application/json");
    Ok(response
        .body(Full::new(body.into()))
        .expect("a valid answer"))
}
