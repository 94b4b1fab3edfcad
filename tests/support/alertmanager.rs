//! A real Alertmanager, and the webhook that it tells of alerts.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::fake_server::{Deed, FakeServer};
use super::process::Process;
use super::{http, wait};

/// A running Alertmanager. What it remembers goes with it.
pub struct Alertmanager {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts one with this configuration.
    pub fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config_path = folder.path().join("alertmanager.yml");
        std::fs::write(&config_path, config).expect("a writable temporary folder");
        let process = Process::start(
            "Alertmanager",
            Command::new("prometheus-alertmanager")
                .arg(format!("--config.file={}", config_path.display()))
                .arg(format!(
                    "--storage.path={}",
                    folder.path().join("data").display()
                ))
                .arg("--web.listen-address=127.0.0.1:0")
                // It needs no others, and would look for an address that they can reach.
                .arg("--cluster.listen-address="),
        );
        let deadline = Duration::from_secs(30);
        let listening = process.wait_for_line("its address", deadline, |line| {
            line.contains("Listening on") && line.contains("address=127.0.0.1:")
        });
        let (_, address) = listening.split_once("address=").expect("as just seen");
        Self {
            address: address.trim().parse().expect("an address"),
            _process: process,
            _folder: folder,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The alerts of this name that it knows to be firing, as its API shows them.
    pub fn alerts(&self, name: &str) -> Vec<Value> {
        let filter = format!("alertname%3D%22{name}%22");
        let answer = http::get(&format!(
            "http://{}/api/v2/alerts?filter={filter}",
            self.address
        ));
        match answer.json() {
            Value::Array(alerts) => alerts,
            other => panic!("no list of alerts: {other}"),
        }
    }
}

/// A server that Alertmanager's webhooks lead to.
pub struct Webhook {
    server: FakeServer,
}

/// One message to a webhook: a group of alerts.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The last part of the URL that it was sent to.
    pub receiver: String,
    /// `firing` or `resolved`.
    pub status: String,
    /// The name that its alerts have in common.
    pub alertname: String,
    /// Each with `status`, `labels` and `annotations`.
    pub alerts: Vec<Value>,
}

impl Webhook {
    /// Starts one.
    pub fn start() -> Self {
        let server = FakeServer::start();
        server.always(|_| Deed::json(200, "{}"));
        Self { server }
    }

    /// The URL of a receiver.
    pub fn url(&self, receiver: &str) -> String {
        self.server.url(&format!("/{receiver}"))
    }

    /// All that came so far, oldest first.
    pub fn notifications(&self) -> Vec<Notification> {
        let requests = self.server.requests().into_iter();
        requests
            .map(|request| {
                let mut body: Value =
                    serde_json::from_str(&request.body).expect("webhooks carry JSON");
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                Notification {
                    receiver: request.path.trim_start_matches('/').to_owned(),
                    status: text(&body["status"]),
                    alertname: text(&body["commonLabels"]["alertname"]),
                    alerts: match body["alerts"].take() {
                        Value::Array(alerts) => alerts,
                        other => panic!("no list of alerts: {other}"),
                    },
                }
            })
            .collect()
    }

    /// Waits for the first message that `status` (`firing` or `resolved`) is the one of alerts of
    /// this name. Panics with all messages after `deadline`.
    pub fn wait_for(&self, status: &str, alertname: &str, deadline: Duration) -> Notification {
        let what = format!("a webhook about {alertname}, {status}");
        wait::until(&what, deadline, || {
            let all = self.notifications();
            let found = all.iter().find(|notification| {
                notification.status == status && notification.alertname == alertname
            });
            found.cloned().ok_or_else(|| format!("{all:#?}"))
        })
    }
}
