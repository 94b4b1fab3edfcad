//! A real OTLP receiver (PyPI `oteltap`), HTTP with protobuf. It tells of spans, not of the
//! resource that they came from.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::process::{Process, Stream};
use super::wait;

/// A running receiver.
pub struct OtlpReceiver {
    endpoint: String,
    process: Process,
}

/// A span as it arrived.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// In hex, as the other identifiers.
    pub trace_id: String,
    pub span_id: String,
    /// Empty for the first span of a trace.
    pub parent_span_id: String,
    pub name: String,
    /// As in the protocol: 1 internal, 2 server, 3 client.
    pub kind: u8,
    attributes: Vec<Attribute>,
    status: Status,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Status {
    /// 0 unset, 1 ok, 2 error.
    code: u8,
}

#[derive(Clone, Debug, Deserialize)]
struct Attribute {
    key: String,
    value: Value,
}

impl Span {
    /// Whether its status says so.
    pub fn failed(&self) -> bool {
        self.status.code == 2
    }

    /// How long it was open.
    pub fn duration(&self) -> Duration {
        let at = |text: &str| text.parse::<u64>().expect("nanoseconds");
        Duration::from_nanos(at(&self.end_time_unix_nano) - at(&self.start_time_unix_nano))
    }

    /// The names of its attributes, sorted.
    pub fn attribute_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.attributes.iter().map(|had| had.key.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The value of an attribute as text; none when it is not there or is a list.
    pub fn attribute(&self, key: &str) -> Option<String> {
        let attribute = self.attributes.iter().find(|had| had.key == key)?;
        // OTLP wraps a value in its type: {"intValue": "5"}.
        match attribute.value.as_object()?.values().next()? {
            Value::String(text) => Some(text.clone()),
            plain @ (Value::Bool(_) | Value::Number(_)) => Some(plain.to_string()),
            _ => None,
        }
    }
}

impl OtlpReceiver {
    /// Starts a receiver and waits until it listens.
    pub fn start() -> Self {
        let program = super::folder().join(".parts/venv/bin/oteltap");
        super::expect_installed("the OTLP receiver", &program);
        let mut failures = String::new();
        // It cannot tell which port it was given, so it is told a free one, which another process
        // may take in between.
        for _ in 0..5 {
            let port = free_port();
            let process = Process::start(
                "the OTLP receiver",
                Command::new(&program)
                    .arg(format!("--port={port}"))
                    .env("PYTHONUNBUFFERED", "1"),
            );
            let listening = process.line_or_why_not(Duration::from_secs(30), |line| {
                line.starts_with("Listening for OTLP")
            });
            match listening {
                Ok(_) => {
                    let endpoint = format!("http://127.0.0.1:{port}");
                    return Self { endpoint, process };
                }
                Err(why) => failures.push_str(&why),
            }
        }
        panic!("the OTLP receiver does not start: {failures}");
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans so far, in the order in which they came.
    pub fn spans(&self) -> Vec<Span> {
        let lines = self.process.lines(Stream::Stdout).into_iter();
        lines
            .filter(|line| line.starts_with('{'))
            .map(|line| {
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }

    /// Waits until `holds` for the spans so far, and returns them. Panics with their names after
    /// `deadline`.
    pub fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        wait::until(&format!("spans: {what}"), deadline, || {
            let spans = self.spans();
            if holds(&spans) {
                return Ok(spans);
            }
            let names = spans.iter().map(|span| &*span.name);
            Err(names.collect::<Vec<_>>().join(", "))
        })
    }

    /// Everything that it received, as text: for a test that looks for planted secrets.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}
