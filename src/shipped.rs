//! What is shipped beside the binary, and inside it: alerts, dashboards, and what they are run
//! with. So a user without the repository has them in the version of the binary.

/// A file: its path below the folder that it is written to, and its text.
pub type Shipped = (&'static str, &'static str);

/// Files that are there to be changed: where there is one already, it is the user's.
pub const TO_BE_CHANGED: [&str; 3] = [
    "prometheus.yml",
    "alertmanager.yml",
    "provisioning/datasources/perennial.yml",
];

/// Where the runbook of the alerts is taken to be: this service serves it.
pub const RUNBOOK_URL: &str = "http://localhost:9464/runbook";

/// The runbook: a section for each alert.
pub const RUNBOOK: &str = include_str!("../alerts/RUNBOOK.md");

/// Rules and their tests, the runbook, and configurations of Prometheus and Alertmanager.
pub const ALERTS: [Shipped; 5] = [
    (
        "perennial.rules.yml",
        include_str!("../alerts/perennial.rules.yml"),
    ),
    (
        "perennial.rules.test.yml",
        include_str!("../alerts/perennial.rules.test.yml"),
    ),
    ("prometheus.yml", include_str!("../alerts/prometheus.yml")),
    (
        "alertmanager.yml",
        include_str!("../alerts/alertmanager.yml"),
    ),
    ("RUNBOOK.md", RUNBOOK),
];

/// Grafana's dashboards, and how it is told of them.
pub const DASHBOARDS: [Shipped; 6] = [
    ("fleet.json", include_str!("../dashboards/fleet.json")),
    (
        "credential.json",
        include_str!("../dashboards/credential.json"),
    ),
    ("jobs.json", include_str!("../dashboards/jobs.json")),
    ("runtime.json", include_str!("../dashboards/runtime.json")),
    (
        "provisioning/datasources/perennial.yml",
        include_str!("../dashboards/provisioning/datasources/perennial.yml"),
    ),
    (
        "provisioning/dashboards/perennial.yml",
        include_str!("../dashboards/provisioning/dashboards/perennial.yml"),
    ),
];
