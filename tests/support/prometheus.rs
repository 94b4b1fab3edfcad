//! A real Prometheus that scrapes what a test gives it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::{http, wait};

/// A running Prometheus. Its data go with it.
pub struct Prometheus {
    url: String,
    _process: Process,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `/metrics` of `targets` every 200 ms, as the job `perennial`.
    ///
    /// Prometheus looks at its list of targets every 5 s, so the first sample comes after 5 s.
    pub fn scrape(targets: &[SocketAddr]) -> Self {
        // JSON is YAML, and needs no quoting by hand.
        let config = serde_json::json!({
            "global": { "scrape_interval": "200ms", "evaluation_interval": "200ms" },
            "scrape_configs": [{
                "job_name": "perennial",
                "static_configs": [{ "targets": targets }],
            }],
        });
        Self::start(&config.to_string(), &[])
    }

    /// Starts one with this configuration, and with these files, by name, beside it.
    pub fn start(config: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config_path = folder.path().join("prometheus.yml");
        for (name, text) in [("prometheus.yml", config)].iter().chain(files) {
            std::fs::write(folder.path().join(name), text).expect("a writable temporary folder");
        }
        let process = Process::start(
            "Prometheus",
            Command::new("prometheus")
                .arg(format!("--config.file={}", config_path.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    folder.path().join("data").display()
                ))
                .arg("--web.listen-address=127.0.0.1:0"),
        );
        let deadline = Duration::from_secs(30);
        let listening = process.wait_for_line("its address", deadline, |line| {
            line.contains("Listening on") && line.contains("address=127.0.0.1:")
        });
        let (_, address) = listening.split_once("address=").expect("as just seen");
        process.wait_for_line("that it is ready", deadline, |line| {
            line.contains("Server is ready to receive web requests")
        });
        Self {
            url: format!("http://{}", address.trim()),
            _process: process,
            _folder: folder,
        }
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The result of an instant query: for a vector a list of `{"metric": {…}, "value": [t, "v"]}`.
    ///
    /// Panics when Prometheus refuses the expression.
    pub fn query(&self, promql: &str) -> Value {
        let answer = http::post_form(&format!("{}/api/v1/query", self.url), &[("query", promql)]);
        let mut body = answer.json();
        assert_eq!(body["status"], "success", "{promql}: {body}");
        body["data"]["result"].take()
    }

    /// Queries until `holds` for the result, and returns it. Panics with the last result after
    /// `deadline`.
    pub fn wait_for(
        &self,
        promql: &str,
        deadline: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        wait::until(&format!("the query {promql}"), deadline, || {
            let result = self.query(promql);
            if holds(&result) {
                return Ok(result);
            }
            Err(result.to_string())
        })
    }
}

/// The value of the only series in a result of [`Prometheus::query`]; none when there is no series
/// or more than one.
pub fn single_value(result: &Value) -> Option<f64> {
    match result.as_array()?.as_slice() {
        [series] => series["value"][1].as_str()?.parse().ok(),
        _ => None,
    }
}
