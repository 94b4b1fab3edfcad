//! The Grafana dashboards: what is kept is what their generator writes, Grafana's types and the rules of
//! its linter hold, and every expression finds data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fake_server::{Deed, FakeServer};
use crate::support::perennial::Perennial;
use crate::support::process::Process;
use crate::support::prometheus::{self, Prometheus};
use crate::support::wait;

const NAMES: [&str; 4] = ["fleet", "credential", "jobs", "runtime"];

/// With the first scrape after 5 s, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn text(name: &str) -> String {
    let path = folder().join(format!("{name}.json"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&text(name)).expect("JSON")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn string(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text but {value}"))
}

/// All panels of a dashboard that ask for something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    // A row holds panels only while it is folded.
    list(&dashboard["panels"]).flat_map(|panel| match string(&panel["type"]) {
        "row" => list(&panel["panels"]).collect(),
        _ => vec![panel],
    })
}

/// What asks for an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A panel, to show it.
    Panel,
    /// A variable, for the values that it can have.
    Variable,
    /// An annotation, for the moments at which there is one.
    Annotation,
}

/// An expression of a dashboard, with the variables that Grafana fills in.
#[derive(Debug)]
pub struct Expression {
    /// The dashboard's file without its ending.
    pub dashboard: &'static str,
    /// What asks for it.
    pub asker: Asker,
    /// The title of the panel, or the name of the variable or annotation.
    pub place: String,
    /// The legend of the series, or the letter of the query in a table, or the label that a variable takes.
    pub part: String,
    /// PromQL.
    pub promql: String,
}

/// Every expression that the dashboards ask Prometheus for: those of panels, variables and annotations.
pub fn expressions() -> Vec<Expression> {
    let mut all = Vec::new();
    for name in NAMES {
        let dashboard = dashboard(name);
        let mut add = |asker: Asker, place: &Value, part: &str, promql: &str| {
            all.push(Expression {
                dashboard: name,
                asker,
                place: string(place).to_owned(),
                part: part.to_owned(),
                promql: promql.to_owned(),
            });
        };
        for panel in panels(&dashboard) {
            for target in list(&panel["targets"]) {
                if target["datasource"]["type"] == "prometheus" {
                    let part = target["legendFormat"].as_str();
                    let part = part.unwrap_or_else(|| string(&target["refId"]));
                    add(Asker::Panel, &panel["title"], part, string(&target["expr"]));
                }
            }
        }
        for variable in list(&dashboard["templating"]["list"]) {
            if variable["type"] == "query" {
                let query = string(&variable["query"]);
                let inner = query
                    .strip_prefix("label_values(")
                    .and_then(|rest| rest.strip_suffix(')'));
                let (series, label) = inner
                    .and_then(|inner| inner.rsplit_once(", "))
                    .unwrap_or_else(|| panic!("{query} is no label_values(series, label)"));
                add(Asker::Variable, &variable["name"], label, series);
            }
        }
        for annotation in list(&dashboard["annotations"]["list"]) {
            add(
                Asker::Annotation,
                &annotation["name"],
                "",
                string(&annotation["expr"]),
            );
        }
    }
    all
}

/// A folder of its own in which Node finds what the generator of the dashboards uses.
fn workshop() -> TempDir {
    let installed = folder().join("generator/node_modules");
    assert!(
        installed.join("typescript").exists(),
        "the generator of the dashboards is not installed ({} is missing): run `make test-parts`",
        installed.display()
    );
    let workshop = tempfile::tempdir().expect("a temporary folder");
    symlink(installed, workshop.path().join("node_modules")).expect("a writable folder");
    workshop
}

fn node(script: &Path, arguments: impl IntoIterator<Item = PathBuf>) -> Output {
    Command::new("node")
        .arg(script)
        .args(arguments)
        .output()
        .expect("node is installed by `make test-parts`")
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_dashboards_are_what_their_generator_writes() {
    let workshop = workshop();
    let built = workshop.path().join("build");
    let compiler = workshop.path().join("node_modules/typescript/bin/tsc");
    let compiled = node(
        &compiler,
        [
            "--project".into(),
            folder().join("generator"),
            "--outDir".into(),
            built.clone(),
        ],
    );
    assert!(compiled.status.success(), "{}", printed(&compiled));
    let written = workshop.path().join("written");
    std::fs::create_dir(&written).expect("a writable folder");
    let generated = node(&built.join("generate.js"), [written.clone()]);
    assert!(generated.status.success(), "{}", printed(&generated));

    let mut files: Vec<_> = std::fs::read_dir(&written)
        .expect("just made")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    let mut expected = NAMES.map(|name| written.join(format!("{name}.json")));
    expected.sort();
    assert_eq!(files, expected);
    for name in NAMES {
        let written = std::fs::read_to_string(written.join(format!("{name}.json")));
        assert!(
            written.expect("just written") == text(name),
            "dashboards/{name}.json is not what its generator writes: run `make dashboards`"
        );
    }
}

/// A dashboard with one value changed, or added.
fn with(name: &str, pointer: &str, value: Value) -> Value {
    let mut changed = dashboard(name);
    let (parent, key) = pointer.rsplit_once('/').expect("a path");
    let parent = changed
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("{name} has no {pointer}"));
    match parent {
        Value::Object(fields) => {
            fields.insert(key.to_owned(), value);
        }
        parent => parent[key.parse::<usize>().expect("a number")] = value,
    }
    changed
}

/// The place of a panel among those of its dashboard.
fn panel(name: &str, title: &str) -> String {
    let dashboard = dashboard(name);
    let at = list(&dashboard["panels"])
        .position(|panel| panel["title"] == title)
        .unwrap_or_else(|| panic!("{name} has no panel {title}"));
    format!("/panels/{at}")
}

#[test]
fn grafanas_own_types_hold() {
    let alive = panel("fleet", "Tokens alive");
    let to_do = panel("fleet", "What to do now");
    let saw_tooth = panel("credential", "Time left, over time");
    let heat_map = panel("fleet", "How long refreshes take");
    let broken = [
        with("fleet", "/graphToolTip", json!(1)),
        with("fleet", "/graphTooltip", json!("crosshair")),
        with("fleet", "/templating/list/1/allValues", json!(".*")),
        with("fleet", &format!("{alive}/descripton"), json!("")),
        with("fleet", &format!("{alive}/type"), json!("bignumber")),
        with("fleet", &format!("{alive}/options/colourMode"), json!("")),
        with("fleet", &format!("{alive}/options/colorMode"), json!("all")),
        with("fleet", &format!("{to_do}/options/sortby"), json!([])),
        with("fleet", &format!("{to_do}/targets/0/expression"), json!("")),
        with("fleet", &format!("{heat_map}/options/color/tint"), json!(1)),
        with(
            "credential",
            &format!("{saw_tooth}/fieldConfig/defaults/custom/lineWidht"),
            json!(1),
        ),
        with(
            "credential",
            &format!("{saw_tooth}/fieldConfig/defaults/units"),
            json!("s"),
        ),
        with("credential", "/annotations/list/0/colour", json!("red")),
    ];

    let workshop = workshop();
    let types = folder().join("generator/checks/types.ts");
    std::fs::copy(types, workshop.path().join("types.ts")).expect("a writable folder");
    let write = |name: &str, dashboard: &str| {
        let typed = format!(
            "import type {{ GrafanaDashboard }} from './types';\n\
             export const dashboard: GrafanaDashboard = {dashboard};\n"
        );
        std::fs::write(workshop.path().join(name), typed).expect("a writable folder");
        PathBuf::from(name)
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for name in NAMES {
        files.push(write(&format!("{name}.ts"), &text(name)));
    }
    for (number, dashboard) in broken.iter().enumerate() {
        let name = format!("broken-{number}.ts");
        files.push(write(&name, &dashboard.to_string()));
    }
    let checked = Command::new("node")
        .arg("node_modules/typescript/bin/tsc")
        .args([
            "--noEmit",
            "--strict",
            "--skipLibCheck",
            "--pretty",
            "false",
        ])
        .args(["--module", "node16", "--target", "es2022"])
        .args(&files)
        .current_dir(workshop.path())
        .output()
        .expect("node is installed by `make test-parts`");

    let complaints = printed(&checked);
    let complained: BTreeSet<&str> = complaints
        .lines()
        .filter_map(|line| line.split_once(".ts("))
        .map(|(file, _)| file)
        .collect();
    let expected: Vec<String> = (0..broken.len()).map(|n| format!("broken-{n}")).collect();
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(complained, expected, "{complaints}");
}

#[test]
fn the_rules_of_grafanas_linter_hold() {
    let saw_tooth = panel("credential", "Time left, over time");
    let outcomes = panel("fleet", "Refreshes by outcome");
    let down = panel("fleet", "Perennial down");
    let to_do = panel("fleet", "What to do now");
    let of_panel = |panel: &str, inner: &str| format!("{panel}{inner}");
    // Each rule, with what breaks it and nothing else.
    let broken = [
        (
            "template-datasource-rule",
            with("fleet", "/templating/list/0/label", json!("Source")),
        ),
        (
            "template-datasource-rule",
            with("credential", "/templating/list/5/label", json!("Tempo")),
        ),
        (
            "template-job-rule",
            with("fleet", "/templating/list/1/allValue", json!(".*")),
        ),
        (
            "template-instance-rule",
            with("fleet", "/templating/list/2/multi", json!(false)),
        ),
        (
            "template-label-promql-rule",
            with(
                "fleet",
                "/templating/list/3/query",
                json!("label_values(token_version{, x)"),
            ),
        ),
        (
            "template-on-time-change-reload-rule",
            with("fleet", "/templating/list/3/refresh", json!(1)),
        ),
        (
            "known-variables",
            with("fleet", "/description", json!("of $team")),
        ),
        (
            "uneditable-dashboard",
            with("fleet", "/editable", json!(true)),
        ),
        ("provisionable", with("fleet", "/id", json!(7))),
        ("provisionable", with("fleet", "/__inputs", json!([]))),
        (
            "linked",
            with("fleet", "/links/0/includeVars", json!(false)),
        ),
        ("panel-ids", with("fleet", "/panels/1/id", json!(1))),
        (
            "panel-titles-differ",
            with("fleet", "/panels/1/title", json!("Expired")),
        ),
        (
            "layout",
            with("fleet", &of_panel(&down, "/gridPos/w"), json!(4)),
        ),
        (
            "panel-title-description-rule",
            with("fleet", &of_panel(&to_do, "/description"), json!("")),
        ),
        (
            "panel-units-rule",
            with(
                "fleet",
                &of_panel(&down, "/fieldConfig/defaults/unit"),
                json!("secs"),
            ),
        ),
        (
            "known-properties",
            with(
                "credential",
                &of_panel(&saw_tooth, "/fieldConfig/overrides/0/properties/1/id"),
                json!("custom.style"),
            ),
        ),
        (
            "panel-datasource-rule",
            with(
                "fleet",
                &of_panel(&down, "/targets/0/datasource/uid"),
                json!("abc"),
            ),
        ),
        (
            "ref-ids",
            with(
                "credential",
                &of_panel(&saw_tooth, "/targets/1/refId"),
                json!("A"),
            ),
        ),
        (
            "known-names",
            with(
                "fleet",
                &of_panel(&to_do, "/options/sortBy"),
                json!([{ "displayName": "Name", "desc": false }]),
            ),
        ),
        (
            "known-names",
            with(
                "credential",
                &of_panel(&saw_tooth, "/fieldConfig/overrides/0/matcher/options"),
                json!(".*: soon"),
            ),
        ),
        (
            "target-promql-rule",
            with("fleet", &of_panel(&down, "/targets/0/expr"), json!("sum(1")),
        ),
        (
            "target-job-rule",
            with(
                "fleet",
                &of_panel(&down, "/targets/0/expr"),
                json!("sum(up{instance=~\"$instance\"})"),
            ),
        ),
        (
            "target-instance-rule",
            with(
                "fleet",
                &of_panel(&down, "/targets/0/expr"),
                json!("sum(up{job=~\"$job\",instance=\"a\"})"),
            ),
        ),
        (
            "target-counter-agg-rule",
            with(
                "fleet",
                &of_panel(&down, "/targets/0/expr"),
                json!("sum(a_total{job=~\"$job\",instance=~\"$instance\"})"),
            ),
        ),
        (
            "target-rate-interval-rule",
            with(
                "fleet",
                &of_panel(&outcomes, "/targets/0/expr"),
                json!("rate(a_total{job=~\"$job\",instance=~\"$instance\"}[5m])"),
            ),
        ),
        (
            "annotations",
            with("credential", "/annotations/list/0/target/expr", json!("up")),
        ),
        (
            "panel-no-targets-rule",
            with("fleet", &of_panel(&down, "/targets"), json!([])),
        ),
    ];

    let workshop = tempfile::tempdir().expect("a temporary folder");
    let mut files: Vec<PathBuf> = NAMES
        .map(|name| folder().join(format!("{name}.json")))
        .into();
    for (number, (_, dashboard)) in broken.iter().enumerate() {
        let path = workshop.path().join(format!("{number}"));
        std::fs::write(&path, dashboard.to_string()).expect("a writable folder");
        files.push(path);
    }
    let linted = node(&folder().join("generator/checks/lint.mjs"), files);

    assert!(linted.status.success(), "{}", printed(&linted));
    let findings = printed(&linted);
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in findings.lines() {
        let mut words = line.split('\t');
        let (file, rule) = (words.next(), words.next());
        let file = file.and_then(|file| file.rsplit('/').next());
        let (Some(file), Some(rule)) = (file, rule) else {
            panic!("no finding: {line}");
        };
        found.entry(file).or_default().insert(rule);
    }
    let numbers: Vec<String> = (0..broken.len()).map(|number| number.to_string()).collect();
    let expected = numbers
        .iter()
        .zip(&broken)
        .map(|(number, (rule, _))| (number.as_str(), BTreeSet::from([*rule])))
        .collect();
    assert_eq!(found, expected, "{findings}");
}

/// The words that stand behind `mark` in a text, without those that Grafana fills in.
fn words_behind<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    let rest = text.split(mark).skip(1);
    let words = rest.filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
    words.filter(|word| !word.is_empty()).collect()
}

#[test]
fn every_link_to_the_runbook_finds_its_section() {
    let sections: BTreeSet<String> = perennial::shipped::RUNBOOK
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(str::to_lowercase)
        .collect();
    let mut linked = BTreeSet::new();
    for text in NAMES.map(text) {
        // In a link, or in a label that a link is made of.
        let direct = words_behind(&text, "/runbook#");
        let labels = words_behind(&text, r#"\"runbook\", \""#);
        linked.extend(direct.union(&labels).map(|&word| word.to_owned()));
    }
    assert!(linked.contains("humanneededsoon"), "{linked:?}");
    assert!(linked.contains("schedulerstalled"), "{linked:?}");
    let missing: Vec<&String> = linked.difference(&sections).collect();
    assert!(missing.is_empty(), "the runbook has no {missing:?}");
}

#[test]
fn what_is_taken_from_recording_rules_is_recorded() {
    let rules = folder()
        .with_file_name("alerts")
        .join("perennial.rules.yml");
    let rules = std::fs::read_to_string(rules).expect("the rules come with Perennial");
    let recorded: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    let all = expressions();
    let used: BTreeSet<&str> = all
        .iter()
        .flat_map(|expression| expression.promql.split('{'))
        .filter_map(|before| {
            before
                .rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                .next()
        })
        .filter(|name| name.contains(':'))
        .collect();
    assert_ne!(used, BTreeSet::new());
    assert!(used.is_subset(&recorded), "{used:?} {recorded:?}");
}

/// An expression as Grafana would send it. Several values of a variable become a group, each of them
/// escaped for a regular expression within quotes; all values become what the dashboard says.
fn filled_in(promql: &str, choice: &[(&str, &str)]) -> String {
    let mut filled = promql
        .replace("$__rate_interval", "1m")
        .replace("$__range", "1h");
    for (variable, value) in choice {
        filled = filled.replace(&format!("\"${variable}\""), &format!("\"{value}\""));
    }
    for variable in ["job", "instance", "provider", "credential", "job_name"] {
        filled = filled.replace(&format!("\"${variable}\""), "\".+\"");
    }
    assert!(!filled.contains('$'), "a variable is left: {filled}");
    filled
}

fn is_empty(result: &Value) -> bool {
    result.as_array().is_some_and(Vec::is_empty)
}

/// Empty though the demo has its troubles: dashboard, panel, part of it, and why. Those at the end come
/// and go, so that nothing can be said about them at a certain moment.
const EMPTY: [(&str, &str, &str, &str); 1] = [(
    "fleet",
    "Firing alerts",
    "A",
    "this Prometheus has no rules, so no alert",
)];
const COMES_AND_GOES: [(&str, &str, &str, &str); 1] = [(
    "jobs",
    "Runs under way",
    "{{job_name}}: running for",
    "a run ends within milliseconds, and is seen only if a scrape falls into it",
)];

/// `perennial demo`, and where it listens.
fn demo(arguments: &[&str]) -> (SocketAddr, Process, Perennial) {
    let perennial = Perennial::without_config();
    let process = perennial.start(&[&["demo", "--listen", "127.0.0.1:0"], arguments].concat());
    let line = process.wait_for_line("where the metrics are", SOON, |line| {
        line.contains("/metrics ")
    });
    let address = line
        .trim_start()
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .and_then(|address| address.parse().ok());
    (address.expect("a URL"), process, perennial)
}

#[test]
fn every_expression_finds_data_where_tokens_are_in_trouble() {
    let (troubled, _process, _folder) = demo(&["--troubled"]);
    // Beside a second one with credentials of the same names: no expression may confuse them.
    let (calm, _process, _folder) = demo(&[]);
    let prometheus = Prometheus::scrape(&[troubled, calm]);
    let all = expressions();
    let listed = |list: &[(&str, &str, &str, &str)], expression: &Expression| {
        list.iter().any(|(dashboard, place, part, _)| {
            (*dashboard, *place, *part)
                == (
                    expression.dashboard,
                    expression.place.as_str(),
                    expression.part.as_str(),
                )
        })
    };
    for (dashboard, place, part, _) in EMPTY.iter().chain(&COMES_AND_GOES) {
        let known = all.iter().any(|expression| {
            (
                expression.dashboard,
                expression.place.as_str(),
                expression.part.as_str(),
            ) == (*dashboard, *place, *part)
        });
        assert!(known, "there is no {dashboard}, {place}, {part}");
    }

    // Longer than a token of the demo lives: one panel shows when it is replaced.
    wait::until("data in every panel", Duration::from_secs(100), || {
        let missing: Vec<String> = all
            .iter()
            .filter(|expression| !listed(&EMPTY, expression))
            .filter(|expression| !listed(&COMES_AND_GOES, expression))
            .filter(|expression| is_empty(&prometheus.query(&filled_in(&expression.promql, &[]))))
            .map(|expression| format!("{expression:?}"))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing.join("\n"))
        }
    });
    for expression in all.iter().filter(|expression| listed(&EMPTY, expression)) {
        let found = prometheus.query(&filled_in(&expression.promql, &[]));
        assert!(is_empty(&found), "not empty: {expression:?} {found}");
    }

    // A label without a column would be one all the same, behind the others.
    for name in NAMES {
        let dashboard = dashboard(name);
        for panel in panels(&dashboard).filter(|panel| panel["type"] == "table") {
            let Some(organized) = list(&panel["transformations"]).last() else {
                continue;
            };
            for target in list(&panel["targets"]) {
                let found = prometheus.query(&filled_in(string(&target["expr"]), &[]));
                for labels in list(&found).flat_map(|series| series["metric"].as_object()) {
                    let named = |by: &str, label: &String| {
                        let options = &organized["options"][by];
                        options
                            .as_object()
                            .is_some_and(|names| names.contains_key(label))
                    };
                    for label in labels.keys() {
                        assert!(
                            named("renameByName", label) || named("excludeByName", label),
                            "{name}, {}: {label} has no column",
                            panel["title"]
                        );
                    }
                }
            }
        }
    }

    // A choice of two credentials on one of the two.
    let instance = format!("(127\\\\.0\\\\.0\\\\.1:{}|elsewhere:9464)", troubled.port());
    let choice = [
        ("instance", instance.as_str()),
        ("credential", "(kitchen|guest-room)"),
    ];
    let chosen = ["kitchen", "guest-room"];
    let mut credentials = BTreeSet::new();
    for expression in all.iter().filter(|one| one.asker != Asker::Variable) {
        let found = prometheus.query(&filled_in(&expression.promql, &choice));
        for series in list(&found) {
            let of = &series["metric"];
            if let Some(credential) = of["credential"].as_str() {
                assert!(chosen.contains(&credential), "{expression:?}: {series}");
                credentials.insert(credential.to_owned());
            }
            if let Some(instance) = of["instance"].as_str() {
                assert_eq!(instance, troubled.to_string(), "{expression:?}: {series}");
            }
        }
    }
    assert_eq!(credentials, chosen.map(str::to_owned).into());
}

#[test]
fn a_scrape_that_fails_is_no_trouble() {
    let endpoint = FakeServer::start();
    endpoint.always(|_| Deed::tokens(1));
    let perennial = Perennial::with_config(&format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [providers.scripted]
        token_url = "{}"
        client_id = "client"
        [credentials.one]
        provider = "scripted"
        refresh_token_file = "one.refresh"
        [jobs.token-refresh]
        kind = "token_refresh"
        "#,
        endpoint.url("/token"),
    ));
    perennial.write("one.refresh", "the-first-refresh-token\n");
    let service = perennial.serve();
    let prometheus = Prometheus::scrape(&[service.address()]);
    let fresh = r#"credential_state{state="fresh"} == 1"#;
    prometheus.wait_for(fresh, SOON, |found| !is_empty(found));
    service.kill();
    prometheus.wait_for("up", SOON, |up| prometheus::single_value(up) == Some(0.0));

    // The top row, which a person sees first.
    for expression in expressions() {
        let titles = [
            ("Perennial down", 0.0),
            ("In danger", 0.0),
            ("Expired", 0.0),
            ("Need a login", 0.0),
            ("Misconfigured", 0.0),
            ("Providers paused", 0.0),
            ("Not saved", 0.0),
            ("Tokens alive", 1.0),
        ];
        let expected = titles.iter().find(|(title, _)| *title == expression.place);
        if let (Some((_, expected)), "fleet") = (expected, expression.dashboard) {
            let found = prometheus.query(&filled_in(&expression.promql, &[]));
            let value = prometheus::single_value(&found);
            assert_eq!(value, Some(*expected), "{expression:?}: {found}");
        }
    }
}
