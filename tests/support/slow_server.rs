//! A token endpoint that takes its time, and that accepts a replay: a refresh token that was
//! spent already gets the same successor again, as servers with a grace window do it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::wait;

/// A running endpoint. It takes part in one test process and ends with it.
pub struct SlowServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    answer_after: Mutex<Duration>,
    requests: Mutex<Vec<String>>,
}

impl SlowServer {
    /// Starts an endpoint whose answers come this long after their request.
    pub fn start(answer_after: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        *shared.answer_after.lock().expect("nobody panics") = answer_after;
        let server = Self {
            address,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), shared) = (stream, shared.clone()) else {
                    return;
                };
                // Fails when the client has gone; some tests kill it.
                std::thread::spawn(move || shared.answer(stream));
            }
        });
        server
    }

    /// The URL of its token endpoint.
    pub fn token_url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// From the next request on, answers come this long after their request.
    pub fn answer_after(&self, delay: Duration) {
        *self.shared.answer_after.lock().expect("nobody panics") = delay;
    }

    /// The refresh tokens that were sent so far, in the order in which they came.
    pub fn sent(&self) -> Vec<String> {
        self.shared.requests.lock().expect("nobody panics").clone()
    }

    /// Waits until this many requests have come: from then on one is in flight.
    pub fn wait_for_requests(&self, count: usize) {
        wait::until("requests", Duration::from_secs(30), || {
            let sent = self.sent();
            (sent.len() >= count)
                .then_some(())
                .ok_or(format!("{sent:?}"))
        });
    }

    /// What a refresh token is exchanged for.
    pub fn successor(refresh_token: &str) -> String {
        format!("{refresh_token}+")
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let refresh_token = url::form_urlencoded::parse(&body)
            .find(|(name, _)| name == "refresh_token")
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default();
        let delay = *self.answer_after.lock().expect("nobody panics");
        let mut requests = self.requests.lock().expect("nobody panics");
        requests.push(refresh_token.clone());
        drop(requests);
        // A server that takes its time is what this is.
        std::thread::sleep(delay);
        let answer = serde_json::json!({
            "access_token": "an-access-token",
            "token_type": "Bearer",
            "expires_in": 3600,
            "refresh_token": SlowServer::successor(&refresh_token),
        })
        .to_string();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{answer}",
            answer.len()
        )
    }
}
