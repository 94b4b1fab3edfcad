//! A server that does to each request what the test says, and remembers what it was sent: for
//! answers that no real server can be made to give, at moments that the test chooses.
//!
//! It runs on threads of its own: that suits a test without an async runtime, and one that moves
//! tokio's time.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Error, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use super::wait;

/// A client that sends half a request does not hold its thread for ever.
const PATIENCE: Duration = Duration::from_secs(30);

const LARGE_WRITE: usize = 64 * 1024;

/// A running server. It answers until the test process ends.
pub struct FakeServer {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

struct Script {
    next: VecDeque<Deed>,
    always: Arc<dyn Fn(&Request) -> Deed + Send + Sync>,
    seen: Vec<Request>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The first one that the server was sent is number 1.
    pub number: usize,
    /// The path, with the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    /// The value of a header, named in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(had, _)| had == name)?;
        Some(&found.1)
    }

    /// The refresh token in the form that is its body; empty when there is none.
    pub fn refresh_token(&self) -> String {
        url::form_urlencoded::parse(self.body.as_bytes())
            .find(|(name, _)| name == "refresh_token")
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    }
}

/// What to do with a request after it was read: send an answer, and close the connection. On the
/// way it may be held once, and it may end early, or never.
pub struct Deed {
    /// The status line and the headers.
    head: String,
    body: Vec<u8>,
    held: Option<(At, mpsc::Receiver<()>)>,
    ends: Option<At>,
    pause: Duration,
    again: Option<&'static str>,
    resets: bool,
}

/// A place in an answer.
#[derive(Clone, Copy)]
pub enum At {
    /// Before the status line.
    Start,
    /// After the headers and so many bytes of the body.
    Body(usize),
}

impl Deed {
    /// An answer of any type.
    pub fn text(status: u16, content_type: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Faked\r\ncontent-length: {length}\r\n");
        Self::raw(head, body).with_header("content-type", content_type)
    }

    /// These lines, which must not end with the empty one, as the head, and this body: for what
    /// is not quite HTTP.
    pub fn raw(head: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            head: head.into(),
            body: body.into(),
            held: None,
            ends: None,
            pause: Duration::ZERO,
            again: None,
            resets: false,
        }
        .with_header("connection", "close")
    }

    /// An answer that says it is JSON.
    pub fn json(status: u16, body: impl ToString) -> Self {
        Self::text(status, "application/json", &body.to_string())
    }

    /// New tokens, by number.
    pub fn tokens(number: usize) -> Self {
        let body = serde_json::json!({
            "access_token": format!("access-{number}"),
            "refresh_token": format!("refresh-{number}"),
            "expires_in": 3600,
        });
        Self::json(200, body)
    }

    /// An OAuth error (RFC 6749 section 5.2).
    pub fn error(status: u16, code: &str) -> Self {
        Self::json(status, serde_json::json!({ "error": code }))
    }

    /// Close the connection without a word.
    pub fn close() -> Self {
        Self::text(200, "text/plain", "").ending(At::Start)
    }

    /// The same, with one more header.
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.head.push_str(&format!("{name}: {}\r\n", value.into()));
        self
    }

    /// The same until there, and then close the connection; the headers promise the whole body.
    pub fn ending(mut self, at: At) -> Self {
        self.ends = Some(at);
        self
    }

    /// The same, byte by byte with so long a pause before each.
    pub fn slowly(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The same, and then this again and again for as long as the client listens.
    pub fn and_forever(mut self, again: &'static str) -> Self {
        self.again = Some(again);
        self
    }

    /// The same, but at its end the connection is reset, and not closed in order.
    pub fn then_reset(mut self) -> Self {
        self.resets = true;
        self
    }

    /// The same, but nothing is sent until the sender is used or dropped.
    pub fn held(self) -> (mpsc::Sender<()>, Self) {
        self.held_at(At::Start)
    }

    /// The same, but nothing from there on is sent until the sender is used or dropped.
    pub fn held_at(mut self, at: At) -> (mpsc::Sender<()>, Self) {
        let (release, released) = mpsc::channel();
        self.held = Some((at, released));
        (release, self)
    }

    fn carry_out(self, stream: &TcpStream) -> std::io::Result<()> {
        let answer = [self.head.as_bytes(), b"\r\n", &self.body].concat();
        let body_begins = answer.len() - self.body.len();
        let place = |at| match at {
            At::Start => 0,
            At::Body(bytes) => body_begins + bytes,
        };
        let mut rest = &answer[..self.ends.map_or(answer.len(), place)];
        if let Some((at, released)) = self.held {
            let first;
            (first, rest) = rest.split_at(place(at));
            write(stream, first, self.pause)?;
            // An error says that the sender was dropped.
            let _ = released.recv();
        }
        write(stream, rest, self.pause)?;
        if let Some(again) = self.again {
            // Few large writes, for the sake of the machine.
            let again = again.repeat(LARGE_WRITE.div_ceil(again.len()));
            loop {
                write(stream, again.as_bytes(), self.pause)?;
            }
        }
        if self.resets {
            // What lingers for no time is not closed in order.
            rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        }
        Ok(())
    }
}

fn write(mut stream: &TcpStream, bytes: &[u8], pause: Duration) -> std::io::Result<()> {
    if pause.is_zero() {
        return stream.write_all(bytes);
    }
    for byte in bytes {
        thread::sleep(pause);
        stream.write_all(&[*byte])?;
    }
    Ok(())
}

impl FakeServer {
    /// Starts one on a port of its own. It gives new tokens to everybody, by the number of the
    /// request, until it is told otherwise.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        let script = Arc::new(Mutex::new(Script {
            next: VecDeque::new(),
            always: Arc::new(|request| Deed::tokens(request.number)),
            seen: Vec::new(),
        }));
        let shared = script.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = shared.clone();
                // An error means that the client has gone, which is part of some tests and which
                // the others notice.
                thread::spawn(move || drop(serve(&stream, &script)));
            }
        });
        Self { address, script }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Does this to the next request that has no deed yet.
    pub fn next(&self, deed: Deed) {
        lock(&self.script).next.push_back(deed);
    }

    /// From now on, does this to every request that has no deed.
    pub fn always(&self, deed: impl Fn(&Request) -> Deed + Send + Sync + 'static) {
        lock(&self.script).always = Arc::new(deed);
    }

    /// Everything that it was sent, oldest first. A request is in here before its deed begins.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.script).seen.clone()
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        lock(&self.script).seen.len()
    }

    /// The refresh token of each request, oldest first; empty for a request that has none.
    pub fn spent(&self) -> Vec<String> {
        let script = lock(&self.script);
        script.seen.iter().map(Request::refresh_token).collect()
    }

    /// Blocks until at least so many requests have come.
    pub fn wait_for_requests(&self, count: usize) {
        wait::until("requests", PATIENCE, || {
            let seen = self.requests();
            (seen.len() >= count)
                .then_some(())
                .ok_or(format!("{seen:?}"))
        });
    }
}

fn lock(script: &Mutex<Script>) -> std::sync::MutexGuard<'_, Script> {
    script
        .lock()
        .expect("nothing that can panic is done under it")
}

fn serve(stream: &TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = read(stream)?;
    let (planned, always) = {
        let mut script = lock(script);
        request.number = script.seen.len() + 1;
        script.seen.push(request.clone());
        (script.next.pop_front(), script.always.clone())
    };
    let deed = planned.unwrap_or_else(|| always(&request));
    deed.carry_out(stream)
}

/// Reads a request, which has no number yet.
fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let path = lines.first().and_then(|line| line.split(' ').nth(1));
    let headers: Vec<(String, String)> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| value.parse().expect("a number"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request {
        number: 0,
        path: path.unwrap_or_default().to_owned(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}
