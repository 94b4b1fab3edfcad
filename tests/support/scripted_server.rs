//! A token endpoint that does to each request what the test says, and remembers what it was sent.
//!
//! It runs on threads of its own, so that a test may move tokio's time under it.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

/// What to do with a request, after it was read.
pub enum Deed {
    /// Answer with a status, headers and a body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Close the connection without an answer.
    Close,
    /// Promise a body, send the first half of it, and close.
    Tear,
    /// First wait until the sender was used or dropped.
    Held(mpsc::Receiver<()>, Box<Deed>),
}

impl Deed {
    /// New tokens, by number.
    pub fn tokens(number: usize) -> Self {
        Self::json(
            200,
            &format!(
                r#"{{"access_token":"access-{number}","refresh_token":"refresh-{number}","expires_in":3600}}"#
            ),
        )
    }

    /// An OAuth error (RFC 6749 section 5.2).
    pub fn error(status: u16, code: &str) -> Self {
        Self::json(status, &format!(r#"{{"error":"{code}"}}"#))
    }

    /// Some JSON.
    pub fn json(status: u16, body: &str) -> Self {
        Self::Answer(status, Vec::new(), body.to_owned())
    }

    /// The same, when the sender is used or dropped.
    pub fn held(self) -> (mpsc::Sender<()>, Self) {
        let (release, released) = mpsc::channel();
        (release, Self::Held(released, Box::new(self)))
    }
}

/// A running server on a port of its own. The thread that accepts lives as long as the test binary.
pub struct ScriptedServer {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Deed>,
    always: Option<fn() -> Deed>,
    seen: Vec<BTreeMap<String, String>>,
}

impl ScriptedServer {
    /// Starts one that gives new tokens to everybody.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Mutex<Script>> = Arc::default();
        let shared = script.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, script) = (stream.unwrap(), shared.clone());
                // A client that went away is part of some tests.
                thread::spawn(move || drop(serve(stream, &script)));
            }
        });
        Self { address, script }
    }

    /// Where it is.
    pub fn url(&self) -> url::Url {
        format!("http://{}/token", self.address).parse().unwrap()
    }

    /// Does this to the next request that has no deed yet.
    pub fn next(&self, deed: Deed) {
        lock(&self.script).next.push_back(deed);
    }

    /// Does this to every request that has no deed.
    pub fn always(&self, deed: fn() -> Deed) {
        lock(&self.script).always = Some(deed);
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        lock(&self.script).seen.len()
    }

    /// The refresh tokens that came, in their order.
    pub fn spent(&self) -> Vec<String> {
        let script = lock(&self.script);
        let token = |form: &BTreeMap<String, String>| form.get("refresh_token").cloned();
        script.seen.iter().filter_map(token).collect()
    }
}

fn lock(script: &Mutex<Script>) -> std::sync::MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
    let body = read_request(&stream)?;
    let form = url::form_urlencoded::parse(&body).into_owned().collect();
    let deed = {
        let mut script = lock(script);
        script.seen.push(form);
        let number = script.seen.len();
        let always = script.always;
        script
            .next
            .pop_front()
            .unwrap_or_else(|| always.map_or_else(|| Deed::tokens(number), |deed| deed()))
    };
    carry_out(deed, &mut stream)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn carry_out(deed: Deed, stream: &mut TcpStream) -> std::io::Result<()> {
    match deed {
        Deed::Answer(status, headers, body) => {
            let mut head = format!(
                "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n",
                body.len()
            );
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            stream.write_all(format!("{head}\r\n{body}").as_bytes())
        }
        Deed::Close => Ok(()),
        Deed::Tear => stream
            .write_all(b"HTTP/1.1 200 -\r\ncontent-length: 100\r\n\r\n{\"access_token\":\"acc"),
        Deed::Held(released, deed) => {
            let _ = released.recv();
            carry_out(*deed, stream)
        }
    }
}
