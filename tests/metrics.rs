//! `docs/metrics.md` is made from a real `/metrics`, the alert rules and the dashboards, so that
//! the three cannot drift apart: what is exported is documented and used, and what is used or
//! documented is exported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use perennial::shipped;
use serde_json::json;

use crate::dashboards;
use crate::support::fake_server::{Deed, FakeServer};
use crate::support::perennial::Perennial;
use crate::support::wait;

const SOON: Duration = Duration::from_secs(30);
const BEGIN: &str = "<!-- made by `make metrics`, not by hand -->";

/// Words in our documents that begin like metrics.
const NO_METRICS: [&str; 3] = ["refresh_token", "token_refresh", "refresh_in"];

/// A family, as Prometheus is told of it.
struct Family {
    name: String,
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

impl Family {
    /// The names of its series.
    fn series(&self) -> Vec<String> {
        let name = &self.name;
        match self.kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"]
                .map(|suffix| format!("{name}{suffix}"))
                .to_vec(),
            _ => vec![name.clone()],
        }
    }
}

#[test]
fn every_metric_is_documented_and_used_and_the_others_do_not_exist() {
    let families = families();
    let exported: BTreeSet<String> = families.iter().flat_map(Family::series).collect();
    let alerts = metrics_by_alert();
    let dashboards = metrics_by_dashboard();

    for (place, names) in alerts.iter().chain(&dashboards) {
        for name in names {
            assert!(
                exported.contains(name),
                "{place} uses {name}, which is not exported"
            );
        }
    }
    let table = table(&families, &alerts, &dashboards);
    let path = root().join("docs/metrics.md");
    let written = fs::read_to_string(&path).expect("docs/metrics.md");
    let (head, _) = written.split_once(BEGIN).expect("the place of the table");
    let expected = format!("{head}{BEGIN}\n{table}");
    if env::var("METRICS").as_deref() == Ok("write") {
        fs::write(&path, expected).expect("it can be written");
    } else {
        assert_eq!(
            written, expected,
            "`make metrics` writes docs/metrics.md anew"
        );
    }
    let known: BTreeSet<String> = families.iter().map(|family| family.name.clone()).collect();
    let known: BTreeSet<String> = known.union(&exported).cloned().collect();
    for (document, names) in names_in_documents() {
        let unknown: Vec<&String> = names.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{document} names {unknown:?}, which are not exported"
        );
    }
}

/// Every family that is exported, from a service with everything: a run that succeeded, one that
/// failed and one that is under way, a sink, a schedule, and a login with a known end.
fn families() -> Vec<Family> {
    let endpoint = FakeServer::start();
    let (release, held) = Deed::error(503, "busy").held();
    let held = std::sync::Mutex::new(Some(held));
    let refreshes = std::sync::atomic::AtomicU32::new(0);
    endpoint.always(move |request| match request.path.as_str() {
        // No refresh moves the end of the login.
        "/good" => {
            let before = refreshes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Deed::json(
                200,
                json!({ "access_token": "an-access-token", "expires_in": 3600,
                    "refresh_token": format!("number-{before}"),
                    "refresh_token_expires_in": 86_400 - 60 * before }),
            )
        }
        "/slow" => held.lock().expect("a lock").take().expect("one request"),
        _ => Deed::error(401, "invalid_client"),
    });
    let mut config = "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    for name in ["good", "refused", "slow"] {
        config += &format!(
            r#"
            [providers.{name}]
            token_url = "{}"
            client_id = "client"
            [credentials.{name}]
            provider = "{name}"
            refresh_token_file = "{name}.refresh"
            write_back = false
            sinks = [{{ kind = "file", path = "{name}.token" }}]
            [jobs.{name}]
            kind = "token_refresh"
            schedule = "@yearly"
            credentials = ["{name}"]
            "#,
            endpoint.url(&format!("/{name}")),
        );
    }
    let perennial = Perennial::with_config(&config);
    for name in ["good", "refused", "slow"] {
        perennial.write(&format!("{name}.refresh"), &format!("a-token-of-{name}\n"));
    }
    let service = perennial.serve();
    // A request is counted when it is over.
    service.metrics();
    let refreshed = perennial.run(&["refresh", "good"]);
    assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    let again = perennial.run(&["refresh", "good"]);
    assert_eq!(again.code(), Some(0), "{again:?}");
    let mut families = wait::until("a sample of every family", SOON, || {
        let families = parsed(&service.metrics());
        let is_silent = |family: &&Family| family.labels.contains("-");
        let silent: Vec<&str> = families
            .iter()
            .filter(is_silent)
            .map(|family| family.name.as_str())
            .collect();
        if silent.is_empty() {
            return Ok(families);
        }
        Err(silent.join(", "))
    });
    drop(release);
    families.sort_by(|one, other| one.name.cmp(&other.name));
    families
}

/// The families of a scrape; one without samples has the label `-`.
fn parsed(metrics: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut help = "";
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').expect("a name and a text").1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            families.push(Family {
                name: name.to_owned(),
                kind: kind.to_owned(),
                help: help.to_owned(),
                labels: BTreeSet::from(["-".to_owned()]),
            });
        } else if let Some(family) = families.last_mut() {
            family.labels.remove("-");
            let labels = line.split_once('{').map_or("", |(_, labels)| labels);
            let names = labels.split("=\"").filter_map(|part| {
                let name = part.rsplit(['"', ',', '{']).next()?;
                (name != "le" && name.chars().all(is_of_a_name)).then(|| name.to_owned())
            });
            // The last part is the last value.
            let count = labels.matches("=\"").count();
            family.labels.extend(names.take(count));
        }
    }
    families
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

/// The metrics in a PromQL expression: nothing else in it begins like one of ours.
fn metrics_in(promql: &str) -> BTreeSet<String> {
    // Label values are quoted, and may be anything.
    let outside: String = promql.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    outside
        .split(|letter| !is_of_a_name(letter))
        .filter(|word| !word.contains(':') && looks_like_ours(word))
        .map(str::to_owned)
        .collect()
}

fn looks_like_ours(word: &str) -> bool {
    let prefixes = [
        "refresh_",
        "token_",
        "credential_",
        "human_needed_",
        "perennial_",
        "process_",
    ];
    prefixes.iter().any(|prefix| word.starts_with(prefix))
}

/// For each alert the metrics that it goes by, recorded ones resolved.
fn metrics_by_alert() -> BTreeMap<String, BTreeSet<String>> {
    let (_, rules) = shipped::ALERTS[0];
    let mut alerts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut recorded: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for rule in rules.split("\n      - ").skip(1) {
        let (head, body) = rule.split_once('\n').expect("more than a name");
        // What an annotation looks up is for its text only.
        let body = body.split("annotations:").next().unwrap_or_default();
        let expression: String = body
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n");
        let mut metrics = metrics_in(&expression);
        for (record, of) in &recorded {
            if expression.contains(record.as_str()) {
                metrics.extend(of.iter().cloned());
            }
        }
        match head.split_once(": ").expect("a kind and a name") {
            ("alert", name) => alerts.entry(name.to_owned()).or_default().extend(metrics),
            ("record", name) => drop(recorded.insert(name.to_owned(), metrics)),
            (kind, name) => panic!("{kind} {name} is neither alert nor record"),
        }
    }
    assert!(alerts.len() > 10, "{alerts:?}");
    alerts
}

/// For each dashboard the metrics of its expressions.
fn metrics_by_dashboard() -> BTreeMap<String, BTreeSet<String>> {
    let mut dashboards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for expression in dashboards::expressions() {
        let metrics = metrics_in(&expression.promql);
        let name = expression.dashboard.to_owned();
        dashboards.entry(name).or_default().extend(metrics);
    }
    dashboards
}

fn table(
    families: &[Family],
    alerts: &BTreeMap<String, BTreeSet<String>>,
    dashboards: &BTreeMap<String, BTreeSet<String>>,
) -> String {
    let mut table =
        "\n| metric | type | what it says | alerts | dashboards |\n|---|---|---|---|---|\n"
            .to_owned();
    for family in families {
        let users = |places: &BTreeMap<String, BTreeSet<String>>| {
            let uses = |metrics: &BTreeSet<String>| {
                family
                    .series()
                    .iter()
                    .any(|series| metrics.contains(series))
            };
            let names = places.iter().filter(|(_, metrics)| uses(metrics));
            names
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (alerts, dashboards) = (users(alerts), users(dashboards));
        assert!(
            !alerts.is_empty() || !dashboards.is_empty(),
            "{} is on no dashboard and in no rule",
            family.name
        );
        let labels: Vec<&str> = family.labels.iter().map(String::as_str).collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let Family {
            name, kind, help, ..
        } = family;
        table += &format!("| `{name}{labels}` | {kind} | {help} | {alerts} | {dashboards} |\n");
    }
    table
}

/// The metrics that each document for people names. Keys of the configuration may look like
/// metrics, and are known.
fn names_in_documents() -> BTreeMap<String, BTreeSet<String>> {
    let keys = Perennial::without_config().run(&["config"]).stdout;
    let is_key = |word: &str| {
        keys.split(|letter| !is_of_a_name(letter))
            .any(|key| key == word)
    };
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let docs = docs.map(|entry| entry.expect("a readable folder").path());
    let others = ["README.md", "alerts/RUNBOOK.md"].map(|name| root().join(name));
    docs.filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .chain(others)
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a readable document");
            // What is between backticks, in a line.
            let quoted = text
                .lines()
                .flat_map(|line| line.split('`').skip(1).step_by(2));
            let names = quoted.flat_map(metrics_in);
            let names = names.filter(|name| !NO_METRICS.contains(&name.as_str()) && !is_key(name));
            (path.display().to_string(), names.collect())
        })
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
