//! The command line as a user drives it: the real binary, its output, its exit codes.

use std::fs::File;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::perennial::Perennial;
use crate::support::process::Signal;
use crate::support::{http, wait};

/// Nothing here takes that long; a debug build on a busy machine may take some of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nobody listens there: each refresh fails at once, and no test leaves this machine.
const UNREACHABLE: &str = r#"
[server]
listen = "127.0.0.1:0"

[providers.acme]
token_url = "http://127.0.0.1:9/token"
client_id = "me"

[credentials.kitchen]
provider = "acme"
"#;

fn with_env(toml: &str, name: &str, value: &str) -> Perennial {
    let mut perennial = Perennial::with_config(toml);
    perennial.set_env(name, value);
    perennial
}

/// Runs a command with what [`Perennial::run`] does not give it: its own standard input or output.
fn run_with(perennial: &Perennial, arguments: &[&str], set: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command
        .args(arguments)
        .current_dir(perennial.folder())
        .env_clear();
    set(&mut command);
    command.output().expect("the binary under test starts")
}

#[test]
fn a_reader_who_leaves_early_is_no_failure() {
    let perennial = Perennial::with_config("");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = run_with(&perennial, &["config"], |command| {
        command.stdout(writer);
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_refresh_token_comes_from_standard_input() {
    let perennial = Perennial::with_config(UNREACHABLE);
    let token = perennial.write("token", "first-token\n");
    let arguments = ["import", "kitchen", "--refresh-token-file", "-"];
    let output = run_with(&perennial, &arguments, |command| {
        command.stdin(File::open(token).expect("just written"));
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let nothing = perennial.run(&arguments);
    assert_eq!(nothing.code(), Some(1), "{nothing:?}");
    assert!(
        nothing
            .stderr
            .contains("standard input: is not one token in one line"),
        "{nothing:?}"
    );
}

#[test]
fn the_version_names_the_commit() {
    let finished = Perennial::with_config("").run(&["--version"]);
    assert_eq!(finished.code(), Some(0));
    let expected = format!(
        "perennial {} ({})\n",
        env!("CARGO_PKG_VERSION"),
        perennial::COMMIT
    );
    assert_eq!(finished.stdout, expected);
}

#[test]
fn the_help_documents_the_exit_codes() {
    let help = Perennial::with_config("").run(&["--help"]);
    assert_eq!(help.code(), Some(0));
    for code in ["  0  ", "  1  ", "  64  ", "  69  ", "  130  "] {
        assert!(help.stdout.contains(code), "{code}: {}", help.stdout);
    }
}

#[test]
fn a_bad_command_line_is_64() {
    let perennial = Perennial::with_config(UNREACHABLE);
    for (arguments, said) in [
        (&["bogus"][..], "unrecognized subcommand 'bogus'"),
        (&["refresh"], "<NAME>"),
        (
            &["refresh", "cellar"],
            "credential cellar is not configured; there is: kitchen",
        ),
        (
            &["check", "--config", "nowhere.toml"],
            "nowhere.toml: cannot be read",
        ),
    ] {
        let finished = perennial.run(arguments);
        assert_eq!(finished.code(), Some(64), "{arguments:?}: {finished:?}");
        assert!(
            finished.stderr.contains(said),
            "{arguments:?}: {finished:?}"
        );
    }
}

#[test]
fn every_error_comes_at_once() {
    let perennial = Perennial::with_config(
        r#"
        [providers.acme]
        issuer = "http://login.acme.example"
        client_id = ""

        [credentials.kitchen]
        provider = "acmee"

        [jobs.nightly]
        kind = "token_refresh"
        schedule = "*/5 * * *"
        timezone = "Europe/Pari"
        "#,
    );
    for command in ["check", "serve", "status"] {
        let finished = perennial.run(&[command]);
        assert_eq!(finished.code(), Some(64));
        assert_eq!(finished.stdout, "");
        let lines: Vec<&str> = finished.stderr.lines().collect();
        assert_eq!(lines.len(), 5, "{lines:#?}");
        for (line, place) in lines.iter().zip([
            "perennial.toml:3: providers.acme.issuer: ",
            "perennial.toml:4: providers.acme.client_id: ",
            "perennial.toml:7: credentials.kitchen.provider: ",
            "perennial.toml:11: jobs.nightly: schedule ",
            "perennial.toml:12: jobs.nightly.timezone: ",
        ]) {
            assert!(line.starts_with(place), "{line}");
        }
    }
}

#[test]
fn check_shows_five_firings_in_their_zone_and_warns_of_a_sparse_schedule() {
    let perennial = Perennial::with_config(
        r#"
        [providers.yoto]
        preset = "yoto"
        client_id = "me"

        [credentials.kitchen]
        provider = "yoto"

        [jobs.weekly]
        kind = "token_refresh"
        schedule = "0 3 * * 1"
        timezone = "Europe/Paris"
        "#,
    );
    let finished = perennial.run(&["check"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(
        finished
            .stdout
            .starts_with("perennial.toml: valid; 1 credential, 1 provider, 1 job\n"),
        "{finished:?}"
    );
    let firings: Vec<&str> = finished
        .stdout
        .lines()
        .filter(|line| line.contains(" (in "))
        .collect();
    assert_eq!(firings.len(), 5, "{finished:?}");
    for firing in firings {
        // "  Mon 2026-11-30 03:00:00 CET (in 6d 13h)"
        let (at, _) = firing.trim().split_once(" (in ").expect("as just seen");
        let words: Vec<&str> = at.split(' ').collect();
        assert_eq!((words[0], words[2]), ("Mon", "03:00:00"), "{firing}");
        let day: chrono::NaiveDate = words[1].parse().expect("a date");
        let local = day.and_hms_opt(3, 0, 0).expect("a time");
        let paris = local.and_local_timezone(chrono_tz::Europe::Paris);
        let zone = paris.single().expect("no change at 03:00:00 on a Monday");
        assert_eq!(words[3], zone.format("%Z").to_string(), "{firing}");
    }
    assert!(
        finished.stdout.contains(
            "warning: schedule \"0 3 * * 1\" leaves 7d 1h between firings, more than two thirds \
             of the 1d 0h that tokens of kitchen live"
        ),
        "{finished:?}"
    );
    assert!(!perennial.folder().join("perennial.db").exists());
}

#[test]
fn the_example_configuration_is_valid_once_its_variable_is_set() {
    let example = Perennial::with_config("").run(&["config"]);
    assert_eq!(example.code(), Some(0));
    let without = Perennial::with_config(&example.stdout).run(&["check"]);
    assert_eq!(without.code(), Some(64));
    assert!(
        without
            .stderr
            .contains("the variable YOTO_CLIENT_ID is not set"),
        "{without:?}"
    );
    let with = with_env(&example.stdout, "YOTO_CLIENT_ID", "me").run(&["check"]);
    assert_eq!(with.code(), Some(0), "{with:?}");
}

#[test]
fn without_a_service_the_store_is_used() {
    let perennial = Perennial::with_config(UNREACHABLE);
    perennial.write("token", "first-token\n");

    let status = perennial.run(&["status"]);
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert!(status.stdout.contains("pending"), "{status:?}");
    assert!(
        status.stdout.contains("perennial import kitchen"),
        "{status:?}"
    );
    assert!(
        status.stdout.contains("the service is not running"),
        "{status:?}"
    );
    assert!(
        !perennial.folder().join("perennial.db").exists(),
        "to look makes nothing"
    );

    let import = perennial.run(&["import", "kitchen", "--refresh-token-file", "token"]);
    assert_eq!(import.code(), Some(0), "{import:?}");
    assert_eq!(
        import.stdout,
        "kitchen: refresh token saved; it is refreshed when the service starts\n"
    );

    let refresh = perennial.run(&["refresh", "kitchen"]);
    assert_eq!(refresh.code(), Some(1), "{refresh:?}");
    assert!(refresh.stderr.contains("kitchen: network"), "{refresh:?}");

    let status = perennial.run(&["status", "--json"]);
    let statuses: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(statuses[0]["name"], "kitchen");
    assert_eq!(statuses[0]["failures"], 1, "{statuses}");
}

#[test]
fn with_a_service_it_is_asked() {
    let perennial = Perennial::with_config(UNREACHABLE);
    perennial.write("token", "first-token\n");
    perennial.write("two", "one two\n");
    let service = perennial.serve();

    let import = perennial.run(&["import", "kitchen", "--refresh-token-file", "token"]);
    assert_eq!(import.code(), Some(0), "{import:?}");
    assert_eq!(
        import.stdout,
        "kitchen: refresh token saved; its first refresh follows at once\n"
    );
    let two = perennial.run(&["import", "kitchen", "--refresh-token-file", "two"]);
    assert_eq!(two.code(), Some(1), "{two:?}");
    assert!(
        two.stderr.contains("two: is not one token in one line"),
        "{two:?}"
    );

    let refresh = perennial.run(&["refresh", "kitchen"]);
    assert_eq!(refresh.code(), Some(1), "{refresh:?}");
    assert!(refresh.stderr.contains("kitchen: network"), "{refresh:?}");

    let status = perennial.run(&["status"]);
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert!(!status.stdout.contains("not running"), "{status:?}");
    assert!(status.stdout.contains("network"), "{status:?}");

    let second = perennial.run(&["serve"]);
    assert_eq!(second.code(), Some(69), "{second:?}");
    assert!(
        second.stderr.contains("is in use by another Perennial"),
        "{second:?}"
    );

    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn the_first_signal_waits_for_the_answer_and_the_second_gives_it_up() {
    // It takes connections, and answers none.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    let perennial = Perennial::with_config(&UNREACHABLE.replace("127.0.0.1:9", &address));
    perennial.write("token", "first-token\n");
    let import = perennial.run(&["import", "kitchen", "--refresh-token-file", "token"]);
    assert_eq!(import.code(), Some(0), "{import:?}");

    let mut refresh = perennial.start(&["refresh", "kitchen"]);
    let _request = silent.accept().expect("the token request");
    refresh.signal(Signal::INT);
    refresh.wait_for_line("that it waits", PATIENCE, |line| {
        line.contains("waiting for the answer")
    });
    refresh.signal(Signal::INT);
    assert_eq!(refresh.wait_for_exit(PATIENCE).code(), Some(130));

    // The refresh token may be spent: the store says so, and the next start sends it again.
    let status = perennial.run(&["status"]);
    assert!(
        status.stdout.contains("replay of a lost answer"),
        "{status:?}"
    );
    let mut service = perennial.serve();
    let _replay = silent.accept().expect("the token request, again");
    service.process().signal(Signal::TERM);
    service
        .process()
        .wait_for_line("that it stops", PATIENCE, |line| line.contains("stopping"));
    assert_eq!(service.stop().code(), Some(130));
}

#[test]
fn a_wrong_key_is_69_and_changes_nothing() {
    let mut perennial = Perennial::with_config(UNREACHABLE);
    perennial.write("token", "first-token\n");
    let import = perennial.run(&["import", "kitchen", "--refresh-token-file", "token"]);
    assert_eq!(import.code(), Some(0), "{import:?}");
    let database = perennial.folder().join("perennial.db");
    let before = std::fs::read(&database).expect("the import made it");
    perennial.set_env(
        "PERENNIAL_KEY",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    );
    let finished = perennial.run(&["status"]);
    assert_eq!(finished.code(), Some(69), "{finished:?}");
    assert!(finished.stderr.contains("was encrypted with key"));
    assert!(before == std::fs::read(&database).expect("still there"));
}

#[test]
fn the_demo_refreshes_within_seconds_and_leaves_nothing() {
    let mut perennial = Perennial::with_config("");
    let temporary = perennial.folder().join("tmp");
    std::fs::create_dir(&temporary).expect("a writable folder");
    perennial.set_env("TMPDIR", temporary.to_str().expect("text"));

    let mut demo = perennial.start(&["demo", "--listen", "127.0.0.1:0"]);
    let line = demo.wait_for_line("where the metrics are", PATIENCE, |line| {
        line.contains("/metrics ")
    });
    let url = line.split_whitespace().next().expect("it begins with it");
    wait::until("each of three to be refreshed", PATIENCE, || {
        let body = http::get(url).body;
        let refreshed = body
            .lines()
            .filter(|line| line.starts_with("refresh_success_total{"))
            .filter(|line| !line.ends_with(" 0"));
        if refreshed.count() == 3 {
            Ok(())
        } else {
            Err(body)
        }
    });

    let second = perennial.run(&["demo", "--listen", url_address(url)]);
    assert_eq!(second.code(), Some(1), "{second:?}");
    assert!(second.stderr.contains("cannot listen on"), "{second:?}");

    demo.signal(Signal::INT);
    let finished = demo.wait_for_exit(PATIENCE);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(!finished.stderr.contains("key"), "{finished:?}");
    let left = std::fs::read_dir(&temporary).expect("still there").count();
    assert_eq!(left, 0, "nothing is left behind");
}

#[test]
fn with_nothing_configured_serve_runs_the_demo_where_it_was_asked_to() {
    let mut perennial = Perennial::without_config();
    let file = perennial.folder().join("no-such-folder/perennial.toml");
    perennial.set_env("PERENNIAL_CONFIG", file.to_str().expect("text"));
    perennial.set_env("PERENNIAL_SERVER__LISTEN", "127.0.0.1:0");
    let mut demo = perennial.start(&["serve", "--or-demo"]);
    let line = demo.wait_for_line("what to do for tokens of one's own", PATIENCE, |line| {
        line.contains("nothing is configured, so this is the demo")
    });
    assert!(line.contains(file.to_str().expect("text")), "{line}");
    let line = demo.wait_for_line("where the metrics are", PATIENCE, |line| {
        line.contains("/metrics ")
    });
    let url = line.split_whitespace().next().expect("it begins with it");
    assert_ne!(url, "http://127.0.0.1:9464/metrics");

    perennial.set_env("PERENNIAL_SERVER__LISTEN", url_address(url));
    let health = perennial.run(&["health"]);
    assert_eq!(health.code(), Some(0), "{health:?}");
    demo.signal(Signal::TERM);
    assert_eq!(demo.wait_for_exit(PATIENCE).code(), Some(0));
}

#[test]
fn the_demo_gives_way_to_a_configuration() {
    let mut perennial = Perennial::without_config();
    perennial.set_env("PERENNIAL_SERVER__LISTEN", "127.0.0.1:0");
    let mut serving = perennial.start(&["serve", "--or-demo"]);
    let listens = |line: &str| line.contains("listening");
    serving.wait_for_line("the demo's address", PATIENCE, |line| {
        listens(line) && line.contains("\"credentials\":3")
    });
    // As an editor may do it, step by step.
    perennial.write("perennial.toml", "");
    perennial.write("perennial.toml", "[server]\nlis");
    serving.wait_for_line("that it looked", PATIENCE, |line| {
        line.contains("the demo goes on until this is mended")
    });
    perennial.write("perennial.toml", UNREACHABLE);
    serving.wait_for_line("the service's address", PATIENCE, |line| {
        listens(line) && line.contains("\"credentials\":1")
    });
    let status = perennial.run(&["status"]);
    assert!(status.stdout.contains("kitchen"), "{status:?}");
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait_for_exit(PATIENCE).code(), Some(0));
}

#[test]
fn a_broken_configuration_is_no_reason_for_the_demo() {
    let broken = Perennial::with_config("listen = 1\n");
    let mut misspelled = Perennial::without_config();
    misspelled.set_env("PERENNIAL_PROVIDRS__ACME__CLIENT_ID", "me");
    let mut nowhere = Perennial::without_config();
    nowhere.set_env("PERENNIAL_SERVER__LISTEN", "everywhere");
    let mut folder = Perennial::without_config();
    std::fs::create_dir(folder.folder().join("perennial.toml")).expect("a writable folder");
    folder.set_env("PERENNIAL_SERVER__LISTEN", "127.0.0.1:0");
    let mut half = Perennial::without_config();
    half.set_env("TOKEN_REFRESH_CRON", "@hourly");
    let mut elsewhere = Perennial::without_config();
    elsewhere.set_env("PERENNIAL_STORE__URL", "sqlite:elsewhere.db");
    let dangling = Perennial::without_config();
    let link = dangling.folder().join("perennial.toml");
    std::os::unix::fs::symlink("dotfiles/perennial.toml", link).expect("a writable folder");
    let lost = Perennial::without_config();
    lost.write("perennial.db", "of a service that ran here before");
    for (perennial, arguments, said) in [
        (
            &broken,
            &["serve", "--or-demo"][..],
            "perennial.toml:1: listen: unknown key",
        ),
        (&half, &["serve", "--or-demo"], "nothing is configured"),
        (&elsewhere, &["serve", "--or-demo"], "nothing is configured"),
        (
            &dangling,
            &["serve", "--or-demo"],
            "cannot be read: No such",
        ),
        (&lost, &["serve", "--or-demo"], "but perennial.db is; bring"),
        (&misspelled, &["serve", "--or-demo"], "unknown variable"),
        (&nowhere, &["serve", "--or-demo"], "is not an address"),
        (
            &folder,
            &["serve", "--or-demo"],
            "perennial.toml: cannot be read: Is a directory",
        ),
        (
            &misspelled,
            &["serve", "--or-demo", "--config", "given.toml"],
            "given.toml: cannot be read",
        ),
    ] {
        let finished = perennial.run(arguments);
        assert_eq!(finished.code(), Some(64), "{finished:?}");
        assert!(finished.stderr.contains(said), "{said}: {finished:?}");
    }
}

#[test]
fn health_is_the_word_of_the_service() {
    let service = Perennial::with_config(UNREACHABLE);
    let running = service.serve();
    let address = running.address();
    let healthz = running.url("/healthz");

    let mut asking =
        Perennial::with_config(&UNREACHABLE.replace("127.0.0.1:0", &address.to_string()));
    let said = |perennial: &Perennial, arguments: &[&str]| {
        let finished = perennial.run(arguments);
        (finished.code(), finished.stderr)
    };
    let well = (Some(0), String::new());
    assert_eq!(said(&asking, &["health"]), well);
    assert_eq!(said(&service, &["health", "--url", &healthz]), well);

    let (code, why) = said(&service, &["health", "--url", &running.url("/nowhere")]);
    assert_eq!(code, Some(1));
    assert!(why.ends_with("/nowhere answered 404 Not Found\n"), "{why}");
    let (code, why) = said(&service, &["health"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("any free port; say with --url"), "{why}");

    // As in a container: every address, and a file that somebody is just editing.
    asking.set_env(
        "PERENNIAL_SERVER__LISTEN",
        &format!("0.0.0.0:{}", address.port()),
    );
    asking.write("perennial.toml", "[serv");
    assert_eq!(said(&asking, &["health"]), well);

    assert_eq!(running.stop().code(), Some(0));
    let (code, why) = said(&asking, &["health"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("/healthz does not answer: "), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");
}

/// The host and port of a URL.
fn url_address(url: &str) -> &str {
    url.trim_start_matches("http://")
        .split('/')
        .next()
        .expect("split gives one part at least")
}

#[test]
fn what_is_shipped_is_written_once_and_never_over_something_else() {
    let perennial = Perennial::without_config();
    for (command, some_file) in [("dashboards", "fleet.json"), ("alerts", "RUNBOOK.md")] {
        let out = format!("shipped/{command}");
        let write = |more: &[&str]| perennial.run(&[&[command, "--out", &out][..], more].concat());
        let first = write(&[]);
        assert_eq!(first.code(), Some(0), "{first:?}");
        let names: Vec<&str> = first.stdout.lines().collect();
        assert!(
            names.contains(&format!("{out}/{some_file}").as_str()),
            "{names:?}"
        );
        for name in &names {
            let path = name.strip_prefix("shipped/").expect("where it was told to");
            let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let shipped = std::fs::read(&shipped).expect("a file of the repository");
            let written = std::fs::read(perennial.folder().join(name)).expect("as it says");
            assert!(shipped == written, "{name}");
        }
        assert_eq!(write(&[]).code(), Some(0), "the same again does no harm");

        let changed = perennial.write(&format!("{out}/{some_file}"), "mine");
        let mut others = names.iter().map(|name| perennial.folder().join(name));
        let gone = others
            .find(|path| *path != changed)
            .expect("there are several");
        std::fs::remove_file(&gone).expect("it was written");
        let refused = write(&[]);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(!gone.exists(), "all or nothing");
        assert!(
            refused.stderr.contains("nothing was written: add --force"),
            "{refused:?}"
        );
        assert_eq!(std::fs::read_to_string(&changed).expect("it stays"), "mine");
        let forced = write(&["--force"]);
        assert_eq!(forced.code(), Some(0), "{forced:?}");
        let text = std::fs::read_to_string(&changed).expect("it is there");
        assert_ne!(text, "mine");
    }
}

#[test]
fn a_configuration_that_was_filled_in_is_never_written_over() {
    let perennial = Perennial::without_config();
    let write = |more: &[&str]| perennial.run(&[&["alerts", "--out", "."][..], more].concat());
    assert_eq!(write(&[]).code(), Some(0));
    let mine = perennial.write("alertmanager.yml", "receivers: [mine]\n");
    for more in [&[][..], &["--force"]] {
        let again = write(more);
        assert_eq!(again.code(), Some(0), "{again:?}");
        assert!(
            again.stdout.contains("alertmanager.yml (yours, kept)"),
            "{again:?}"
        );
        let text = std::fs::read_to_string(&mine).expect("it stays");
        assert_eq!(text, "receivers: [mine]\n");
    }
}

#[test]
fn every_alert_leads_to_its_section_of_the_runbook() {
    let perennial = Perennial::with_config(UNREACHABLE);
    let service = perennial.serve();
    let page = service.get("/runbook");
    assert_eq!(page.status, 200);
    let links = |rules: &str, base: &str| -> Vec<String> {
        let links = rules
            .lines()
            .filter_map(|line| line.trim().strip_prefix("runbook_url: "));
        let anchors = links.map(|link| {
            let anchor = link
                .strip_prefix(base)
                .and_then(|rest| rest.strip_prefix('#'));
            anchor
                .unwrap_or_else(|| panic!("{link} is not below {base}"))
                .to_owned()
        });
        anchors.collect()
    };
    let written = perennial.run(&["alerts", "--out", "alerts"]);
    assert_eq!(written.code(), Some(0), "{written:?}");
    let rules = || {
        let path = perennial.folder().join("alerts/perennial.rules.yml");
        std::fs::read_to_string(path).expect("just written")
    };
    let anchors = links(&rules(), "http://localhost:9464/runbook");
    assert_eq!(anchors.len(), rules().matches("- alert: ").count());
    for anchor in &anchors {
        let id = format!("id=\"{anchor}\"");
        assert!(page.body.contains(&id), "{id}");
    }

    let elsewhere = "https://wiki.example/perennial";
    let again = [
        "alerts",
        "--out",
        "alerts",
        "--force",
        "--runbook-url",
        elsewhere,
    ];
    let written = perennial.run(&again);
    assert_eq!(written.code(), Some(0), "{written:?}");
    assert_eq!(links(&rules(), elsewhere), anchors);
}
