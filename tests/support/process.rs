//! A child process whose output is captured line by line, and which never outlives its value.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Resource, Rlimit, prlimit};

use super::wait;

/// Which of its two outputs a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A running child. Dropping it kills and reaps it.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Output {
    captured: Mutex<Captured>,
    changed: Condvar,
}

#[derive(Default)]
struct Captured {
    lines: Vec<(Stream, String)>,
    closed_streams: usize,
}

/// What a child left when it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code; none when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Process {
    /// Starts `command` with nothing on stdin. `name` stands in messages of failed tests.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name} does not start ({error}): run `make test-parts`")
            });
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().expect("stdout was piped");
        let stderr = child.stderr.take().expect("stderr was piped");
        let readers = vec![
            capture(Stream::Stdout, stdout, Arc::clone(&output)),
            capture(Stream::Stderr, stderr, Arc::clone(&output)),
        ];
        Self {
            name: name.to_owned(),
            child,
            output,
            readers,
        }
    }

    /// The first line so far, or to come, for which `holds`.
    ///
    /// Panics with the whole output when `deadline` passes or the process ends without it.
    pub fn wait_for_line(
        &self,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&str) -> bool,
    ) -> String {
        self.line_or_why_not(deadline, holds)
            .unwrap_or_else(|why| panic!("{}: no line with {what}: {why}", self.name))
    }

    /// Like [`Self::wait_for_line`], for a caller that can do something about a missing line.
    pub fn line_or_why_not(
        &self,
        deadline: Duration,
        holds: impl Fn(&str) -> bool,
    ) -> Result<String, String> {
        let ends = Instant::now() + deadline;
        let mut captured = self.output.captured.lock().expect("no reader panics");
        let mut seen = 0;
        loop {
            let fresh = &captured.lines[seen..];
            if let Some((_, line)) = fresh.iter().find(|(_, line)| holds(line)) {
                return Ok(line.clone());
            }
            seen = captured.lines.len();
            let left = ends.saturating_duration_since(Instant::now());
            let why = if captured.closed_streams == 2 {
                "its output has ended".to_owned()
            } else if left.is_zero() {
                format!("waited {deadline:?}")
            } else {
                let waiting = self.output.changed.wait_timeout(captured, left);
                captured = waiting.expect("no reader panics").0;
                continue;
            };
            return Err(format!("{why}. It wrote:\n{}", text(&captured.lines, None)));
        }
    }

    /// Everything written so far, stdout and stderr interleaved as it came.
    pub fn output(&self) -> String {
        text(&self.captured(), None)
    }

    /// The lines written so far to one of the two.
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.captured().into_iter();
        lines
            .filter(|(of, _)| *of == stream)
            .map(|(_, line)| line)
            .collect()
    }

    fn captured(&self) -> Vec<(Stream, String)> {
        let captured = self.output.captured.lock().expect("no reader panics");
        captured.lines.clone()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        let ended = self.child.try_wait().expect("our own child can be asked");
        ended.is_none()
    }

    /// Sends a signal. Panics when the process has already been reaped.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{} has ended already", self.name);
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("our own child takes signals");
    }

    /// From now on it may write no file beyond so many bytes, and fails with `EFBIG` if it has been
    /// started with SIGXFSZ ignored. `None` lifts the limit.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) {
        assert!(self.is_running(), "{} has ended already", self.name);
        let id = rustix::process::Pid::from_child(&self.child);
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(id), Resource::Fsize, limit).expect("our own child can be limited");
    }

    /// Waits until it ends by itself, and returns all that it wrote. Panics after `deadline`.
    pub fn wait_for_exit(mut self, deadline: Duration) -> Finished {
        let what = format!("{} to end", self.name);
        let ended = wait::until(&what, deadline, || {
            let ended = self.child.try_wait().expect("our own child can be asked");
            ended.ok_or_else(|| format!("it still runs. It wrote:\n{}", self.output()))
        });
        // What it wrote last may still be on its way through the pipes.
        for reader in self.readers.drain(..) {
            reader.join().expect("no reader panics");
        }
        let lines = self.captured();
        Finished {
            status: ended,
            stdout: text(&lines, Some(Stream::Stdout)),
            stderr: text(&lines, Some(Stream::Stderr)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already. SIGKILL reaches a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn capture(
    stream: Stream,
    from: impl Read + Send + 'static,
    output: Arc<Output>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        // An error ends the stream as its close does: the process is gone.
        while from.read_until(b'\n', &mut bytes).unwrap_or(0) > 0 {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            let mut captured = output.captured.lock().expect("no waiter panics");
            captured.lines.push((stream, line));
            output.changed.notify_all();
        }
        let mut captured = output.captured.lock().expect("no waiter panics");
        captured.closed_streams += 1;
        output.changed.notify_all();
    })
}

fn text(lines: &[(Stream, String)], only: Option<Stream>) -> String {
    lines
        .iter()
        .filter(|(stream, _)| only.is_none_or(|only| only == *stream))
        .map(|(_, line)| format!("{line}\n"))
        .collect()
}
