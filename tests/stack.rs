//! `docker-compose.yml` and `Dockerfile`, as far as they can be judged without an engine. `make
//! stack` starts them on one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs Docker Compose on the stack, with these files beside `docker-compose.yml`'s own, and with
/// what is in `configuration` in place of what may lie in the repository.
fn compose(configuration: &Path, more_files: &[&Path], arguments: &[&str]) -> Output {
    let program = Path::new(ROOT).join("tests/support/.parts/docker-compose");
    let mut command = Command::new(program);
    command.args(["--env-file", "/dev/null", "--file", "docker-compose.yml"]);
    for file in more_files {
        command.arg("--file").arg(file);
    }
    command
        .args(arguments)
        .current_dir(ROOT)
        .env_clear()
        .env("CONFIG_DIR", configuration)
        .output()
        .expect("Docker Compose is there: run `make test-parts`")
}

/// The stack as Docker is told to run it.
fn resolved(configuration: &Path, more_files: &[&Path]) -> Value {
    let output = compose(configuration, more_files, &["config", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON was asked for")
}

fn empty_folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// What is wrong with a stack, by the rules that hold for all of its services.
fn problems(stack: &Value) -> Vec<String> {
    let services = stack["services"].as_object().expect("services");
    services
        .iter()
        .flat_map(|(name, service)| {
            let rules = problems_of_a_service(service);
            rules.map(move |problem| format!("{name}: {problem}"))
        })
        .collect()
}

fn problems_of_a_service(service: &Value) -> impl Iterator<Item = String> {
    let limits = &service["deploy"]["resources"]["limits"];
    let rules = [
        (
            version(service["image"].as_str().unwrap_or_default()).is_none(),
            "its image has no version",
        ),
        (
            all(&service["ports"], |port| port["host_ip"] != "127.0.0.1"),
            "a port is published beyond this machine",
        ),
        (
            ["cpus", "memory", "pids"]
                .iter()
                .any(|what| limits[what].is_null()),
            "it may take all of the machine",
        ),
        (
            service["healthcheck"]["test"].is_null(),
            "nobody sees whether it works",
        ),
        (
            service["read_only"] != true,
            "its root file system can be written",
        ),
        (service["cap_drop"] != json!(["ALL"]), "it has capabilities"),
        (
            service["security_opt"] != json!(["no-new-privileges:true"]),
            "it can gain privileges",
        ),
        (
            service["privileged"] == true
                || !service["cap_add"].is_null()
                || ["pid", "ipc", "network_mode"]
                    .iter()
                    .any(|what| service[what] == "host"),
            "it is more than a container",
        ),
        (
            service["restart"] != "unless-stopped",
            "it does not come back",
        ),
        (
            service["logging"]["options"]["max-size"].is_null(),
            "its log fills the disk",
        ),
        (
            all(&service["volumes"], |volume| {
                volume["type"] == "bind" && volume["read_only"] != true
            }),
            "it can write on the host",
        ),
        (
            all(&service["depends_on"], |on| {
                on["condition"] != "service_healthy"
            }),
            "it does not wait until what it needs is well",
        ),
    ];
    rules
        .into_iter()
        .filter(|(broken, _)| *broken)
        .map(|(_, problem)| problem.to_owned())
}

/// Whether one of a list's, or a table's, entries is bad. There need be none.
fn all(entries: &Value, is_bad: impl Fn(&Value) -> bool) -> bool {
    match entries {
        Value::Array(entries) => entries.iter().any(is_bad),
        Value::Object(entries) => entries.values().any(is_bad),
        _ => false,
    }
}

/// The tag of an image that names one version: at least two numbers, as in `v3.15.0`.
fn version(image: &str) -> Option<&str> {
    let (_, tag) = image.rsplit_once(':')?;
    let mut numbers = tag.strip_prefix('v').unwrap_or(tag).split('.');
    let is_number = |text: Option<&str>| text.is_some_and(|text| text.parse::<u32>().is_ok());
    (is_number(numbers.next()) && is_number(numbers.next())).then_some(tag)
}

fn source_and_target(volume: &Value) -> (&str, &str) {
    let text = |key| volume[key].as_str().expect("a path");
    (text("source"), text("target"))
}

#[test]
fn the_stack_is_valid_and_keeps_every_rule() {
    let nothing = empty_folder();
    let checked = compose(nothing.path(), &[], &["config", "--quiet"]);
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(String::from_utf8_lossy(&checked.stderr), "");
    assert_eq!(problems(&resolved(nothing.path(), &[])), [""; 0]);
}

#[test]
fn the_rules_notice_what_breaks_them() {
    let mut stack = resolved(empty_folder().path(), &[]);
    stack["services"] = json!({ "bad": {
        "image": "grafana/grafana:latest",
        "ports": [{ "host_ip": "127.0.0.1" }, { "published": "80" }],
        "deploy": { "resources": { "limits": { "memory": "1", "cpus": 1 } } },
        "privileged": true,
        "volumes": [{ "type": "volume" }, { "type": "bind", "source": "/" }],
        "depends_on": { "other": { "condition": "service_started" } },
    }});
    assert_eq!(problems(&stack).len(), 12, "{:#?}", problems(&stack));
    for (image, expected) in [
        ("prom/prometheus:v3.15.0", Some("v3.15.0")),
        ("perennial:0.1.0", Some("0.1.0")),
        ("localhost:5000/perennial", None),
        ("perennial", None),
        ("perennial:3", None),
        ("gcr.io/distroless/cc-debian12:nonroot", None),
    ] {
        assert_eq!(version(image), expected, "{image}");
    }
}

#[test]
fn what_is_mounted_exists() {
    // Docker makes an empty folder of what does not, and the service in it fails in strange words.
    let nothing = empty_folder();
    let stack = resolved(nothing.path(), &[]);
    for (name, service) in stack["services"].as_object().expect("services") {
        for volume in service["volumes"].as_array().expect("each has a volume") {
            if volume["type"] == "bind" {
                let (source, _) = source_and_target(volume);
                assert!(Path::new(source).exists(), "{name}: {source}");
            }
        }
    }
}

#[test]
fn every_dashboard_is_in_grafana() {
    let stack = resolved(empty_folder().path(), &[]);
    let volumes = stack["services"]["grafana"]["volumes"].as_array();
    let mounted: BTreeSet<&str> = volumes
        .expect("Grafana has volumes")
        .iter()
        .map(|volume| source_and_target(volume).1)
        .filter_map(|target| target.strip_prefix("/var/lib/grafana/dashboards/perennial/"))
        .collect();
    let dashboards = Path::new(ROOT).join("dashboards");
    let files: Vec<String> = fs::read_dir(dashboards)
        .expect("the dashboards")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.into_string().expect("text"))
        .filter(|name| name.ends_with(".json"))
        .collect();
    assert_eq!(mounted, files.iter().map(String::as_str).collect());

    let home =
        &stack["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert_eq!(home, "/var/lib/grafana/dashboards/perennial/fleet.json");
}

#[test]
fn nobody_looks_into_grafana_without_a_password() {
    let stack = resolved(empty_folder().path(), &[]);
    let settings = &stack["services"]["grafana"]["environment"];
    assert_eq!(settings["GF_AUTH_ANONYMOUS_ENABLED"], "false");
    assert_eq!(settings["GF_USERS_ALLOW_SIGN_UP"], "false");
    assert!(settings["GF_SECURITY_ADMIN_PASSWORD"].is_string());
}

#[test]
fn what_lies_in_the_folder_is_what_perennial_runs() {
    let folder = empty_folder();
    // Neither of ours may be changed from there: nobody would reach the container.
    let variables = "YOTO_CLIENT_ID=mine\nPERENNIAL_SERVER__LISTEN=127.0.0.1:1\n\
                     PERENNIAL_CONFIG=elsewhere.toml\n";
    fs::write(folder.path().join(".env"), variables).expect("a writable folder");
    let stack = resolved(folder.path(), &[]);
    let perennial = &stack["services"]["perennial"];
    let environment = &perennial["environment"];
    assert_eq!(environment["YOTO_CLIENT_ID"], "mine");
    assert_eq!(environment["PERENNIAL_SERVER__LISTEN"], "0.0.0.0:9464");
    assert_eq!(
        environment["PERENNIAL_CONFIG"],
        "/etc/perennial/perennial.toml"
    );
    let mounts = perennial["volumes"].as_array().expect("it has volumes");
    let mounts: Vec<_> = mounts.iter().map(source_and_target).collect();
    let folder = folder.path().to_str().expect("text");
    assert_eq!(mounts, [(folder, "/etc/perennial"), ("perennial", "/data")]);
    // Otherwise a folder with a misspelled name would be made, and the demo would run.
    assert_eq!(
        perennial["volumes"][0]["bind"]["create_host_path"],
        Value::Null
    );
}

#[test]
fn the_secrets_are_given_as_the_comment_says() {
    let text = fs::read_to_string(Path::new(ROOT).join("docker-compose.yml")).expect("it is there");
    let documented: String = text
        .lines()
        .skip_while(|line| *line != "#   services:")
        .take_while(|line| *line != "#")
        .map(|line| format!("{}\n", line.trim_start_matches("#   ")))
        .collect();
    let folder = empty_folder();
    let file = folder.path().join("docker-compose.override.yml");
    fs::write(&file, documented).expect("a writable folder");
    let stack = resolved(folder.path(), &[&file]);
    assert_eq!(problems(&stack), [""; 0]);
    let perennial = &stack["services"]["perennial"];
    assert_eq!(
        perennial["environment"]["PERENNIAL_KEY_FILE"],
        "/run/secrets/perennial_key"
    );
    let secrets = perennial["secrets"].as_array().expect("it has secrets");
    for secret in secrets {
        let name = secret["source"].as_str().expect("a name");
        let file = stack["secrets"][name]["file"].as_str().expect("a file");
        assert_eq!(Path::new(file), Path::new(ROOT).join("secrets").join(name));
    }
    assert_eq!(secrets.len(), 2);
}

#[test]
fn perennial_has_the_time_to_stop() {
    let stack = resolved(empty_folder().path(), &[]);
    let grace = stack["services"]["perennial"]["stop_grace_period"].as_str();
    let grace = humantime::parse_duration(grace.expect("it has one")).expect("a duration");
    assert!(grace > perennial::config::Server::default().shutdown_timeout);
}

#[test]
fn the_versions_are_those_of_the_package() {
    let stack = resolved(empty_folder().path(), &[]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        stack["services"]["perennial"]["image"],
        format!("perennial:{version}")
    );
    let dockerfile = fs::read_to_string(Path::new(ROOT).join("Dockerfile")).expect("it is there");
    for expected in [
        format!("org.opencontainers.image.version=\"{version}\""),
        format!("ARG BUILD_IMAGE=rust:{}.", env!("CARGO_PKG_RUST_VERSION")),
    ] {
        assert!(dockerfile.contains(&expected), "{expected}");
    }
}

#[test]
fn what_the_program_embeds_is_sent_to_the_build() {
    let ignored = fs::read_to_string(Path::new(ROOT).join(".dockerignore")).expect("it is there");
    let sent: BTreeSet<&str> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let root = Path::new(ROOT).canonicalize().expect("it is there");
    let embedded = embedded_files(&root.join("src"));
    assert!(!embedded.is_empty());
    for file in embedded {
        let file = file.strip_prefix(&root).expect("it is in the repository");
        let folder = file.iter().next().and_then(|first| first.to_str());
        assert!(sent.contains(folder.expect("text")), "{}", file.display());
        assert!(!file.starts_with("dashboards/generator"));
    }
}

/// The files that the sources in a folder name in `include_str!`.
fn embedded_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                return embedded_files(&path);
            }
            let text = fs::read_to_string(&path).expect("text");
            let named = text.split("include_str!(").skip(1);
            named
                .filter_map(|rest| rest.split('"').nth(1))
                .map(|name| folder.join(name).canonicalize().expect("it exists"))
                .collect()
        })
        .collect()
}
