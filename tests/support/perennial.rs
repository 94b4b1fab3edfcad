//! The real binary, in a folder of its own with a configuration of its own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::http;
use super::process::{Finished, Process, Signal};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// A working folder with a `perennial.toml`, and the environment that commands run in.
///
/// It outlives the processes in it: stop or kill a [`Service`] and call [`Self::serve`] again to
/// see a restart. It is removed when dropped.
pub struct Perennial {
    folder: TempDir,
    environment: BTreeMap<String, String>,
    launcher: Vec<String>,
}

impl Perennial {
    /// A fresh folder with this `perennial.toml`. Write `listen = "127.0.0.1:0"` into it to serve.
    pub fn with_config(toml: &str) -> Self {
        let this = Self::without_config();
        this.write("perennial.toml", toml);
        this
    }

    /// A fresh folder with nothing in it: the environment says all.
    pub fn without_config() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            environment: BTreeMap::new(),
            launcher: Vec::new(),
        }
    }

    /// Sets a variable for the commands that run from now on. They inherit none but `PATH`.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Runs the commands from now on through another one, which gets theirs as its last arguments.
    pub fn launch_through<const N: usize>(&mut self, launcher: [&str; N]) {
        self.launcher = launcher.map(str::to_owned).into();
    }

    /// Its working folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the working folder, and returns its path.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, content).expect("a writable temporary folder");
        path
    }

    /// Runs a command to its end, as a user would in that folder.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).wait_for_exit(PATIENCE)
    }

    /// Starts a command and leaves it running.
    pub fn start(&self, arguments: &[&str]) -> Process {
        let name = format!("perennial {}", arguments.join(" "));
        let launcher = self.launcher.iter().map(String::as_str);
        let mut words = launcher.chain([env!("CARGO_BIN_EXE_perennial")]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command
            .args(words)
            .args(arguments)
            .current_dir(self.folder())
            .env_clear()
            .env("HOME", self.folder())
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(&self.environment);
        Process::start(&name, &mut command)
    }

    /// Asks the control socket of the running service, as the command line does, for a path
    /// beneath that of the credentials, and returns the whole answer.
    pub fn control(&self, method: &str, path: &str, body: &str) -> String {
        let socket = self.folder().join("perennial.sock");
        let mut stream = UnixStream::connect(socket).expect("the service listens");
        let request = format!(
            "{method} /api/v1/credentials{path} HTTP/1.1\r\nHost: perennial\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Starts the service and waits until it logs the address that it listens on.
    pub fn serve(&self) -> Service {
        let process = self.start(&["serve"]);
        let line = process.wait_for_line("its listen address", PATIENCE, |line| {
            listen_address(line).is_some()
        });
        let address = listen_address(&line).expect("as just seen");
        Service { address, process }
    }
}

/// A running `perennial serve`. Dropping it kills it.
pub struct Service {
    address: SocketAddr,
    process: Process,
}

impl Service {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// GETs a path that begins with a slash, whatever the status of the answer.
    pub fn get(&self, path: &str) -> http::Answer {
        http::get(&self.url(path))
    }

    /// What Prometheus would scrape. Panics unless the status is 200.
    pub fn metrics(&self) -> String {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Its process: log lines so far, signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks it to stop, as a service manager does (SIGTERM), and waits until it has.
    pub fn stop(mut self) -> Finished {
        self.process.signal(Signal::TERM);
        self.finish()
    }

    /// Waits until it has ended, after whatever signals it was sent.
    pub fn finish(self) -> Finished {
        self.process.wait_for_exit(PATIENCE)
    }

    /// Ends it without any warning (SIGKILL).
    pub fn kill(mut self) -> Finished {
        self.process.signal(Signal::KILL);
        self.process.wait_for_exit(PATIENCE)
    }
}

/// The address in a log line that says "listening", in text or JSON.
fn listen_address(line: &str) -> Option<SocketAddr> {
    // The level, a quote or the colour of a field's name may stand around both.
    if !line.to_lowercase().contains("listening") {
        return None;
    }
    let address = &line[line.find("127.0.0.1:")?..];
    let host_and_colon = "127.0.0.1:".len();
    let digits = address[host_and_colon..]
        .find(|next: char| !next.is_ascii_digit())
        .unwrap_or(address.len() - host_and_colon);
    address[..host_and_colon + digits].parse().ok()
}

#[test]
fn the_listen_address_is_found_in_text_and_json() {
    let found = Some("127.0.0.1:9464".parse().expect("an address"));
    for (line, expected) in [
        ("INFO listening address=127.0.0.1:9464", found),
        (
            "INFO perennial::http: Listening on http://127.0.0.1:9464/",
            found,
        ),
        (
            r#"{"level":"INFO","message":"listening","address":"127.0.0.1:9464"}"#,
            found,
        ),
        ("INFO connecting address=127.0.0.1:9464", None),
        ("INFO listening address=[::1]:9464", None),
        ("INFO listening address=127.0.0.1:", None),
    ] {
        assert_eq!(listen_address(line), expected, "{line}");
    }
}
