//! What is shipped in `alerts/`: checked by the tools of Prometheus and Alertmanager, and at work in
//! both, with the real binary and a webhook.
//!
//! The shipped files are used as they are, except that time is scaled: a minute takes a second.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::alertmanager::{Alertmanager, Notification, Webhook};
use crate::support::fake_server::{Deed, FakeServer};
use crate::support::perennial::Perennial;
use crate::support::prometheus::Prometheus;
use crate::support::wait;

/// Longer than anything here takes when all is well.
const PATIENCE: Duration = Duration::from_secs(90);

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("alerts")
        .join(name)
}

fn text_of(name: &str) -> String {
    fs::read_to_string(shipped(name)).expect("it is shipped")
}

/// Runs a tool of Prometheus or Alertmanager, and panics with what it says unless it is content.
fn expect_content(tool: &str, arguments: &[&str], file: &Path) {
    let output = Command::new(tool)
        .args(arguments)
        .arg(file)
        .output()
        .unwrap_or_else(|error| panic!("{tool} does not start ({error}): run `make test-parts`"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {said}");
}

#[test]
fn the_rules_pass_their_unit_tests() {
    let tests = shipped("perennial.rules.test.yml");
    expect_content("promtool", &["test", "rules"], &tests);
}

#[test]
fn promtool_and_amtool_accept_what_is_shipped() {
    let rules = shipped("perennial.rules.yml");
    expect_content("promtool", &["check", "rules"], &rules);
    let prometheus = shipped("prometheus.yml");
    expect_content("promtool", &["check", "config"], &prometheus);
    let alertmanager = shipped("alertmanager.yml");
    expect_content("amtool", &["check-config"], &alertmanager);
}

#[test]
fn each_example_of_a_receiver_works_when_it_is_uncommented() {
    let config = text_of("alertmanager.yml");
    let lines: Vec<&str> = config.lines().collect();
    let is_head = |line: &str| line.starts_with("    # ") && line.ends_with("_configs:");
    let heads: Vec<usize> = (0..lines.len()).filter(|at| is_head(lines[*at])).collect();
    assert!(heads.len() >= 3, "too few examples: {heads:?}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for head in heads {
        let body = lines[head + 1..]
            .iter()
            .take_while(|line| line.starts_with("    #   "));
        let last = head + body.count();
        let with_example: Vec<String> = lines
            .iter()
            .enumerate()
            .map(|(at, line)| match (head..=last).contains(&at) {
                true => line.replacen("# ", "", 1),
                false => (*line).to_owned(),
            })
            .collect();
        let path = folder.path().join("alertmanager.yml");
        fs::write(&path, with_example.join("\n")).expect("a writable temporary folder");
        expect_content("amtool", &["check-config"], &path);
    }
}

/// The text of each entry of a list in a file of ours, from the line that begins so to the next.
fn entries<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
    text.split(begin).skip(1).collect()
}

/// The value behind a key such as `severity: `, up to the end of the word.
fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    let is_end = |letter: char| !letter.is_ascii_alphanumeric();
    Some(&rest[..rest.find(is_end).unwrap_or(rest.len())])
}

/// What tells the rules of one name apart.
fn kind(text: &str) -> (Option<&str>, Option<&str>) {
    (word_after(text, "severity: "), word_after(text, "burn: "))
}

#[test]
fn each_alert_is_described_tested_and_in_the_runbook() {
    let (rules, tests) = (
        text_of("perennial.rules.yml"),
        text_of("perennial.rules.test.yml"),
    );
    let runbook = text_of("RUNBOOK.md");
    let sections: BTreeSet<&str> = entries(&runbook, "\n## ")
        .iter()
        .filter_map(|section| section.lines().next())
        .collect();
    // Each case is the name of an alert and what is expected of it.
    let cases: Vec<(&str, &str)> = entries(&tests, "alertname: ")
        .into_iter()
        .filter_map(|case| {
            let (name, rest) = case.split_at(case.find([',', '\n'])?);
            Some((name, rest.split("eval_time: ").next()?))
        })
        .filter(|(_, expected)| expected.contains("exp_alerts:"))
        .collect();

    let mut names = BTreeSet::new();
    for rule in entries(&rules, "      - alert: ") {
        let rule = rule.split("\n      - ").next().expect("at least one part");
        let name = rule.lines().next().expect("its name");
        names.insert(name);
        let severity = word_after(rule, "severity: ");
        assert!(
            severity.is_some_and(|is| ["critical", "warning", "info"].contains(&is)),
            "{name} has the severity {severity:?}"
        );
        for annotation in ["summary:", "description:"] {
            assert!(rule.contains(annotation), "{name} has no {annotation}");
        }
        let anchor = name.to_lowercase();
        let link = format!("runbook_url: http://localhost:9464/runbook#{anchor}\n");
        assert!(rule.contains(&link), "{name} does not have {link}");
        assert!(
            sections.contains(name),
            "{name} has no section in the runbook"
        );

        // Of the cases for its name, one must expect this very rule, and one must not.
        let expects_it = |expected: &&str| {
            entries(expected, "exp_labels: ")
                .iter()
                .any(|labels| kind(labels) == kind(rule))
        };
        let of_its_name = || {
            cases
                .iter()
                .filter(|case| case.0 == name)
                .map(|case| case.1)
        };
        assert!(
            of_its_name().any(|expected| expects_it(&expected)),
            "no test expects {name} {:?} to fire",
            kind(rule)
        );
        assert!(
            of_its_name().any(|expected| !expects_it(&expected)),
            "no test expects {name} {:?} not to fire",
            kind(rule)
        );
    }
    assert!(names.len() >= 22, "{names:?}");
    assert_eq!(
        sections, names,
        "the runbook has a section that is no alert"
    );
}

/// The same text with each duration (`5m`, `15s`, …) made so many times shorter.
fn with_shorter_durations(text: &str, divisor: u64) -> String {
    let mut out = String::new();
    let is_of_a_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut rest = text;
    while !rest.is_empty() {
        let word_end = rest.find(|letter| !is_of_a_word(letter));
        let (word, after) = rest.split_at(word_end.unwrap_or(rest.len()));
        match milliseconds(word) {
            Some(duration) => out += &format!("{}ms", duration / divisor),
            None => out += word,
        }
        let next_word = after.find(is_of_a_word).unwrap_or(after.len());
        out += &after[..next_word];
        rest = &after[next_word..];
    }
    out
}

fn milliseconds(word: &str) -> Option<u64> {
    let unit = match word.chars().last()? {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    Some(word[..word.len() - 1].parse::<u64>().ok()? * unit)
}

#[test]
fn durations_become_shorter_and_nothing_else_does() {
    let text = "for: 5m\nexpr: max(x_1h[6h:1m] * 60) # 15s, 1mo\n";
    let scaled = "for: 5000ms\nexpr: max(x_1h[360000ms:1000ms] * 60) # 250ms, 1mo\n";
    assert_eq!(with_shorter_durations(text, 60), scaled);
}

/// The shipped rules with all their times so many times shorter.
fn rules_with_shorter_times(divisor: u64) -> String {
    let mut rules = with_shorter_durations(&text_of("perennial.rules.yml"), divisor);
    // The thresholds in seconds; not the one of SchedulerStalled, for the scheduler ticks no faster.
    for (constant, seconds) in [("/ 20, ", 60), ("[5m]) > ", 60), (" + ", 120)] {
        let constant = with_shorter_durations(constant, divisor);
        let before = format!("{constant}{seconds}");
        let after = format!("{constant}{}", seconds as f64 / divisor as f64);
        assert!(rules.contains(&before), "no rule has {before}");
        rules = rules.replace(&before, &after);
    }
    rules
}

/// The shipped Prometheus, rules and Alertmanager, at work on one Perennial.
struct Watch {
    webhook: Webhook,
    alertmanager: Alertmanager,
    prometheus: Prometheus,
}

impl Watch {
    /// All their times are so many times shorter.
    fn over(perennial: SocketAddr, divisor: u64) -> Self {
        let webhook = Webhook::start();
        let mut config = with_shorter_durations(&text_of("alertmanager.yml"), divisor);
        for receiver in ["critical", "warning", "info"] {
            let empty = format!("  - name: {receiver}\n");
            assert!(config.contains(&empty), "no receiver {receiver}");
            let url = webhook.url(receiver);
            let told = format!("{empty}    webhook_configs: [{{url: {url:?}}}]\n");
            config = config.replace(&empty, &told);
        }
        let alertmanager = Alertmanager::start(&config);

        let mut config = with_shorter_durations(&text_of("prometheus.yml"), divisor);
        for (host, address) in [
            ("perennial:9464", perennial),
            ("alertmanager:9093", alertmanager.address()),
        ] {
            let quoted = format!("\"{host}\"");
            assert!(config.contains(&quoted), "no {quoted}");
            config = config.replace(&quoted, &format!("\"{address}\""));
        }
        let rules = rules_with_shorter_times(divisor);
        let prometheus = Prometheus::start(&config, &[("perennial.rules.yml", &rules)]);
        Self {
            webhook,
            alertmanager,
            prometheus,
        }
    }
}

/// A minute takes a second.
const A_SECOND_FOR_A_MINUTE: u64 = 60;

/// New tokens that live for so many seconds.
fn tokens_for(seconds: u64) -> Deed {
    let body = json!({ "access_token": "a", "refresh_token": "r", "expires_in": seconds });
    Deed::json(200, body)
}

/// Credentials at one provider.
struct Credentials<'a> {
    provider: &'a str,
    server: &'a FakeServer,
    names: Vec<String>,
}

/// A Perennial that keeps them, listening there.
fn keeper_of(credentials: &[Credentials<'_>], listen: &str) -> Perennial {
    let perennial = Perennial::with_config(&configuration(credentials, listen));
    for name in credentials.iter().flat_map(|of| &of.names) {
        perennial.write(&format!("{name}.refresh"), name);
    }
    perennial
}

fn configuration(credentials: &[Credentials<'_>], listen: &str) -> String {
    let mut config = format!("[server]\nlisten = \"{listen}\"\n");
    for Credentials {
        provider,
        server,
        names,
    } in credentials
    {
        let url = server.url("/token");
        config += &format!(
            "[providers.{provider}]\ntoken_url = \"{url}\"\nclient_id = \"client\"\n\
             max_in_flight = 100\n"
        );
        for name in names {
            config += &format!(
                "[credentials.{name}]\nprovider = \"{provider}\"\n\
                 refresh_token_file = \"{name}.refresh\"\n"
            );
        }
    }
    config
}

fn label(alert: &Value, name: &str) -> String {
    let value = alert["labels"][name].as_str();
    value
        .unwrap_or_else(|| panic!("no label {name}: {alert}"))
        .to_owned()
}

#[test]
fn an_overdue_refresh_is_told_and_its_end_too() {
    let server = FakeServer::start();
    server.always(|_| tokens_for(24));
    let credentials = Credentials {
        provider: "acme",
        server: &server,
        names: vec!["reports".to_owned()],
    };
    let perennial = keeper_of(&[credentials], "127.0.0.1:0");
    let service = perennial.serve();
    server.wait_for_requests(1);
    // A few failures only, so that no ProviderUnhealthy takes the word.
    server.always(|_| Deed::error(503, "temporarily_unavailable").with_header("retry-after", "3"));
    let watch = Watch::over(service.address(), A_SECOND_FOR_A_MINUTE);

    let told = watch
        .webhook
        .wait_for("firing", "TokenRefreshOverdue", PATIENCE);
    assert_eq!(told.receiver, "warning");
    let [alert] = told.alerts.as_slice() else {
        panic!("one alert: {told:?}");
    };
    assert_eq!(label(alert, "credential"), "reports");
    assert_eq!(label(alert, "provider"), "acme");
    let description = alert["annotations"]["description"].to_string();
    assert!(description.contains("reason server_error"), "{description}");

    server.always(|_| tokens_for(3600));
    let refreshed = "token_lifetime_seconds == 3600";
    watch
        .prometheus
        .wait_for(refreshed, PATIENCE, |found| found != &json!([]));
    watch
        .webhook
        .wait_for("resolved", "TokenRefreshOverdue", PATIENCE);
    let firing = "ALERTS{alertstate=\"firing\"}";
    watch
        .prometheus
        .wait_for(firing, PATIENCE, |found| found == &json!([]));
}

#[test]
fn dead_grants_are_told_at_once_and_together() {
    let server = FakeServer::start();
    server.always(|_| tokens_for(3600));
    let names: Vec<String> = (0..10).map(|number| format!("grant-{number}")).collect();
    let credentials = Credentials {
        provider: "acme",
        server: &server,
        names: names.clone(),
    };
    let perennial = keeper_of(&[credentials], "127.0.0.1:0");
    let service = perennial.serve();
    server.wait_for_requests(names.len());
    // One look each second.
    let watch = Watch::over(service.address(), 15);
    let needs_login = "credential_state{state=\"needs_login\"}";
    let alive = |found: &Value| found.as_array().is_some_and(|all| all.len() == 10);
    watch.prometheus.wait_for(needs_login, PATIENCE, alive);

    server.always(|_| Deed::error(400, "invalid_grant"));
    for name in &names {
        perennial.control("POST", &format!("/{name}/refresh"), "");
    }
    let told = watch
        .webhook
        .wait_for("firing", "TokenNeedsLogin", PATIENCE);
    assert_eq!(told.receiver, "critical");
    let of: BTreeSet<String> = told
        .alerts
        .iter()
        .map(|alert| label(alert, "credential"))
        .collect();
    assert_eq!(of, names.into_iter().collect(), "all of them in one");
    for alert in &told.alerts {
        let description = alert["annotations"]["description"].to_string();
        let named = format!("Credential {} at provider acme", label(alert, "credential"));
        assert!(description.contains(&named), "{description}");
        assert!(
            description.contains("reason needs_login, error invalid_grant"),
            "{description}"
        );
    }

    // By Prometheus's own clock: a grant dies between two scrapes, and the alert fires with the
    // evaluation that follows the second. That is within two intervals.
    let first = |selector: &str, value: &str| -> f64 {
        let series = watch.prometheus.query(&format!("{selector}[5m]"));
        let samples = series[0]["values"].as_array().expect("samples");
        let sample = samples.iter().find(|sample| sample[1] == value);
        sample.and_then(|it| it[0].as_f64()).expect("such a sample")
    };
    let seen = first(
        "credential_state{state=\"needs_login\",credential=\"grant-0\"}",
        "1",
    );
    let fired = first(
        "ALERTS{alertname=\"TokenNeedsLogin\",alertstate=\"firing\",credential=\"grant-0\"}",
        "1",
    );
    // A scrape that is under way while rules are evaluated is seen by the next evaluation: half a second
    // for that.
    assert!(
        fired - seen <= 1.5,
        "seen at {seen}, and the alert fired at {fired}"
    );
}

#[test]
fn a_dead_provider_is_one_notification_and_not_one_for_each_of_its_tokens() {
    let (server, other) = (FakeServer::start(), FakeServer::start());
    server.always(|_| tokens_for(18));
    // Of another provider one token expires later. It must be told: when it is, the time for words about
    // the hundred has passed.
    other.always(|_| tokens_for(22));
    let names: Vec<String> = (0..100).map(|number| format!("pod-{number}")).collect();
    let perennial = keeper_of(
        &[
            Credentials {
                provider: "acme",
                server: &server,
                names: names.clone(),
            },
            Credentials {
                provider: "other",
                server: &other,
                names: vec!["last".to_owned()],
            },
        ],
        "127.0.0.1:0",
    );
    let service = perennial.serve();
    server.wait_for_requests(names.len());
    other.wait_for_requests(1);
    let watch = Watch::over(service.address(), A_SECOND_FOR_A_MINUTE);
    server.always(|_| Deed::error(503, "temporarily_unavailable"));
    other.always(|_| Deed::error(503, "temporarily_unavailable").with_header("retry-after", "600"));
    for name in &names[..5] {
        perennial.control("POST", &format!("/{name}/refresh"), "");
    }

    let last = watch.webhook.wait_for("firing", "TokenExpired", PATIENCE);
    let providers: Vec<String> = last
        .alerts
        .iter()
        .map(|alert| label(alert, "provider"))
        .collect();
    assert_eq!(providers, ["other"]);

    let told = watch.webhook.notifications();
    let about = |notification: &&Notification| {
        let alerts = notification.alerts.iter();
        let mut providers = alerts.map(|alert| label(alert, "provider"));
        providers.any(|provider| provider == "acme")
    };
    let words: Vec<(&str, &str, usize)> = told
        .iter()
        .filter(about)
        .map(|it| (it.receiver.as_str(), it.alertname.as_str(), it.alerts.len()))
        .collect();
    assert_eq!(
        words,
        [
            ("warning", "ProviderUnhealthy", 1),
            ("critical", "ProviderUnhealthy", 1)
        ]
    );
    // Not because there was nothing to tell.
    for name in ["TokenExpired", "TokenRefreshOverdue"] {
        wait::until(name, PATIENCE, || {
            let alerts = watch.alertmanager.alerts(name);
            let silenced = alerts.iter().filter(|alert| {
                let by = alert["status"]["inhibitedBy"].as_array();
                label(alert, "provider") == "acme" && by.is_some_and(|by| !by.is_empty())
            });
            match silenced.count() {
                100 => Ok(()),
                count => Err(format!("{count} of {} silenced", alerts.len())),
            }
        });
    }
}

#[test]
fn a_perennial_that_is_gone_is_told_and_its_return_too() {
    let server = FakeServer::start();
    let credentials = [Credentials {
        provider: "acme",
        server: &server,
        names: vec!["reports".to_owned()],
    }];
    let perennial = keeper_of(&credentials, "127.0.0.1:0");
    let service = perennial.serve();
    // It comes back where it was.
    let address = service.address();
    let config = configuration(&credentials, &address.to_string());
    perennial.write("perennial.toml", &config);
    let watch = Watch::over(address, A_SECOND_FOR_A_MINUTE);
    watch
        .prometheus
        .wait_for("up == 1", PATIENCE, |found| found != &json!([]));

    service.kill();
    let told = watch.webhook.wait_for("firing", "PerennialDown", PATIENCE);
    assert_eq!(told.receiver, "critical");
    assert_eq!(label(&told.alerts[0], "instance"), address.to_string());

    let _service = perennial.serve();
    watch
        .webhook
        .wait_for("resolved", "PerennialDown", PATIENCE);
    let names: BTreeSet<String> = watch
        .webhook
        .notifications()
        .into_iter()
        .map(|notification| notification.alertname)
        .collect();
    assert_eq!(names, BTreeSet::from(["PerennialDown".to_owned()]));
}
