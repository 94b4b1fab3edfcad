//! The support code itself: each part starts, answers, and goes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::support::authorization_server::{AuthorizationServer, CLIENT_SECRET, Options};
use crate::support::fake_server::{At, Deed, FakeServer};
use crate::support::http::{self, Answer};
use crate::support::perennial::Perennial;
use crate::support::process::{Process, Signal, Stream};
use crate::support::wait;

const SOON: Duration = Duration::from_secs(10);

const CONFIG: &str = "[server]\nlisten = \"127.0.0.1:0\"\n";

fn refresh(server: &AuthorizationServer, refresh_token: &str) -> Answer {
    let fields = [
        ("grant_type", "refresh_token"),
        ("client_id", "public"),
        ("refresh_token", refresh_token),
    ];
    http::post_form(&server.token_url(), &fields)
}

fn fingerprint(refresh_token: &str) -> String {
    let digest = Sha256::digest(refresh_token);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_spent_refresh_token_revokes_its_grant_at_the_authorization_server() {
    let server = AuthorizationServer::start(&Options {
        access_token_life: Duration::from_secs(7),
        ..Options::default()
    });
    let granted = server.grants(2, "public");
    let [spent, other] = granted.as_slice() else {
        panic!("two were asked for: {granted:?}");
    };

    let rotated = refresh(&server, spent).json();
    assert_eq!(rotated["expires_in"], 7);
    let newest = rotated["refresh_token"].as_str().expect("a rotated token");
    assert_ne!(newest, spent);

    let again = refresh(&server, spent);
    assert_eq!(
        (again.status, &again.json()["error"]),
        (400, &"invalid_grant".into())
    );
    let orphan = refresh(&server, newest);
    assert_eq!(
        orphan.status, 400,
        "the grant is gone, so is its newest token"
    );
    assert_eq!(
        refresh(&server, other).status,
        200,
        "another grant lives on"
    );

    let summary = server.summary();
    assert_eq!(summary.token_requests, 4);
    assert_eq!(summary.token_requests_granted, 2);
    assert_eq!(summary.token_requests_refused, 2);
    assert_eq!(summary.refresh_tokens_consumed, 2);
    assert_eq!(summary.refresh_tokens_saved, 4);
    assert_eq!(summary.grants_revoked, 1);

    let log = server.log();
    let requests: Vec<_> = log
        .iter()
        .filter(|event| event.event == "token_request")
        .collect();
    assert_eq!(requests[0].refresh_token, Some(fingerprint(spent)));
    assert_eq!(requests[0].client.as_deref(), Some("public"));
    assert_eq!(requests[0].grant_type.as_deref(), Some("refresh_token"));
    assert_eq!(requests[0].status, Some(200));
    assert_eq!(requests[1].error.as_deref(), Some("invalid_grant"));
    assert_eq!(
        requests[1].reason.as_deref(),
        Some("refresh token already used")
    );
    assert!(log.is_sorted_by_key(|event| event.at_ms));
    let revoked = log.iter().find(|event| event.event == "grant.revoked");
    assert_eq!(revoked.expect("it was").grant, requests[0].grant);
    let rest = server.log_since(log.len() - 2);
    assert_eq!(
        rest.iter().map(|event| event.number).collect::<Vec<_>>(),
        [log.len() - 2, log.len() - 1]
    );
    assert_eq!(server.complaints(), Vec::<String>::new());
}

#[test]
fn without_rotation_a_refresh_token_serves_again_until_it_expires() {
    let server = AuthorizationServer::start(&Options {
        refresh_token_life: Duration::from_secs(2),
        rotate: false,
        ..Options::default()
    });
    let token = server.grants(1, "public").remove(0);
    assert_eq!(refresh(&server, &token).status, 200);
    assert_eq!(refresh(&server, &token).json()["refresh_token"], *token);
    wait::until("the refresh token to expire", SOON, || {
        let answer = refresh(&server, &token);
        if answer.status == 400 {
            return Ok(());
        }
        Err(answer.body)
    });
    let last = server.log().pop().expect("the refusal");
    assert_eq!(last.reason.as_deref(), Some("refresh token is expired"));
}

#[test]
fn the_authorization_server_knows_its_clients_and_forgets_no_grant() {
    let server = AuthorizationServer::start(&Options::default());
    let discovered = http::get(&format!(
        "{}/.well-known/openid-configuration",
        server.issuer()
    ));
    assert_eq!(discovered.json()["token_endpoint"], server.token_url());

    let basic = |client: &str, fields: &[(&str, &str)]| {
        let credentials = STANDARD.encode(format!("{client}:{CLIENT_SECRET}"));
        let body = fields
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join("&");
        let request = http::request("POST", &server.token_url())
            .header("authorization", format!("Basic {credentials}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        http::send(request).expect("an answer")
    };
    let post = |client: &str, fields: &[(&str, &str)]| {
        let mut fields = fields.to_vec();
        fields.extend([("client_id", client), ("client_secret", CLIENT_SECRET)]);
        http::post_form(&server.token_url(), &fields)
    };

    // More grants than the library's own memory holds, and the first is still there.
    for client in ["basic", "post"] {
        let tokens = server.grants(1500, client);
        let fields = [
            ("grant_type", "refresh_token"),
            ("refresh_token", &*tokens[0]),
        ];
        let unnamed = [("client_id", client), fields[0], fields[1]];
        let refused = http::post_form(&server.token_url(), &unnamed);
        assert_eq!(refused.json()["error"], "invalid_client", "{client}");
        let answer = match client {
            "basic" => basic(client, &fields),
            _ => post(client, &fields),
        };
        assert_eq!(answer.status, 200, "{client}: {answer:?}");
        let last = server.log().pop().expect("this request");
        assert_eq!(last.client_auth.as_deref(), Some(client));
    }

    let fields = [("grant_type", "client_credentials"), ("scope", "api")];
    for answer in [
        basic("service-basic", &fields),
        post("service-post", &fields),
    ] {
        assert_eq!(answer.json()["expires_in"], 3600, "{answer:?}");
        assert_eq!(answer.json()["scope"], "api");
    }
}

#[test]
fn a_command_of_the_binary_runs_in_its_own_folder_and_environment() {
    let mut perennial = Perennial::with_config(CONFIG);
    let valid = perennial.run(&["check"]);
    assert_eq!(valid.code(), Some(0), "{valid:?}");
    assert!(
        valid.stdout.starts_with("perennial.toml: valid;"),
        "{valid:?}"
    );

    let other = perennial.write("other.toml", "[server]\nlisten = \"${ADDRESS}\"\n");
    assert!(other.starts_with(perennial.folder()));
    let missing = perennial.run(&["check", "--config", "other.toml"]);
    assert_eq!(missing.code(), Some(64), "{missing:?}");
    assert!(missing.stderr.contains("ADDRESS is not set"), "{missing:?}");
    perennial.set_env("ADDRESS", "127.0.0.1:0");
    assert_eq!(
        perennial.run(&["check", "--config", "other.toml"]).code(),
        Some(0)
    );
}

#[test]
fn a_service_is_stopped_killed_and_started_again() {
    let perennial = Perennial::with_config(CONFIG);
    let service = perennial.serve();
    assert!(service.metrics().contains("perennial_build_info"));
    let missing = service.get("/missing");
    assert_eq!(missing.status, 404);
    let url = service.url("/healthz");

    let stopped = service.stop();
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    assert!(stopped.stderr.contains("listening"), "{stopped:?}");
    assert!(http::send(http::request("GET", &url)).is_err());

    let service = perennial.serve();
    let url = service.url("/healthz");
    drop(service);
    assert!(
        http::send(http::request("GET", &url)).is_err(),
        "dropping it kills it"
    );

    let killed = perennial.serve().kill();
    assert_eq!(killed.code(), None);
    assert!(perennial.serve().metrics().contains("perennial_build_info"));
}

#[test]
fn a_process_can_be_frozen_and_thawed() {
    let perennial = Perennial::with_config(CONFIG);
    let mut service = perennial.serve();
    service.process().signal(Signal::STOP);
    let url = service.url("/healthz");
    let asked = http::request("GET", &url).timeout(Duration::from_millis(300));
    assert!(http::send(asked).expect_err("it is frozen").is_timeout());
    service.process().signal(Signal::CONT);
    assert_eq!(service.get("/healthz").status, 200);
}

#[test]
fn a_fake_server_answers_tears_and_hangs_up() {
    let server = FakeServer::start();
    let teapot = |status| Deed::text(status, "text/plain", "a teapot");
    server.always(move |request| match request.path.as_str() {
        "/?whole" => teapot(418),
        "/torn" => teapot(200).ending(At::Body(3)),
        _ => Deed::close(),
    });
    let whole = http::post_form(&server.url("/?whole"), &[("a", "b c")]);
    assert_eq!((whole.status, whole.body.as_str()), (418, "a teapot"));
    assert_eq!(whole.content_type, "text/plain");
    for path in ["/torn", "/hang-up"] {
        let error = http::send(http::request("GET", &server.url(path)));
        assert!(error.is_err(), "{path}: {error:?}");
    }
    let requests = server.requests();
    assert_eq!(requests[0].path, "/?whole");
    assert_eq!(requests[0].body, "a=b+c");
    assert_eq!(
        requests[0].header("host"),
        Some(&*server.address().to_string())
    );
    assert_eq!(requests[0].header("cookie"), None);
    let numbers = requests.iter().map(|request| request.number);
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_fake_server_resets_drips_and_never_ends() {
    let server = FakeServer::start();
    let ask = || {
        let mut client = TcpStream::connect(server.address()).expect("it listens");
        client
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("it reads");
        client
    };
    server.next(
        Deed::json(200, "[1]")
            .ending(At::Body(1))
            .then_reset()
            .slowly(Duration::from_millis(1)),
    );
    let mut answer = Vec::new();
    let reset = ask().read_to_end(&mut answer).expect_err("a reset");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert!(answer.ends_with(b"\r\n\r\n["), "{answer:?}");

    server.next(Deed::raw("garbage\r\n", "").and_forever("more"));
    let mut answer = vec![0; 1_000_000];
    ask().read_exact(&mut answer).expect("as much as is wanted");
    assert!(answer.starts_with(b"garbage\r\nconnection: close\r\n\r\nmoremore"));
}

#[test]
fn a_fake_server_holds_an_answer_at_any_place_until_it_is_let_go() {
    let server = FakeServer::start();
    for (at, sent) in [
        (At::Start, None),
        (At::Body(0), Some("")),
        (At::Body(4), Some("half")),
    ] {
        let (release, held) = Deed::text(200, "text/plain", "half and half").held_at(at);
        server.next(held);
        let mut client = TcpStream::connect(server.address()).expect("it listens");
        client
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("it reads");
        // Nothing is read beyond what was sent, so that only the release can bring the rest.
        let mut answer = String::new();
        if let Some(sent) = sent {
            let expected = format!("\r\n\r\n{sent}");
            while !answer.ends_with(&expected) {
                let mut byte = [0];
                client.read_exact(&mut byte).expect("it was sent");
                answer.push(char::from(byte[0]));
            }
        }
        let a_moment = Some(Duration::from_millis(50));
        client.set_read_timeout(a_moment).expect("a socket");
        let more = client.read(&mut [0]).expect_err("the rest is held");
        assert_eq!(more.kind(), ErrorKind::WouldBlock);
        client.set_read_timeout(Some(SOON)).expect("a socket");
        drop(release);
        client.read_to_string(&mut answer).expect("the rest");
        assert!(answer.ends_with("\r\n\r\nhalf and half"), "{answer}");
    }
}

#[test]
fn lines_of_a_process_are_captured_as_they_come() {
    let mut shell = Process::start(
        "a shell",
        Command::new("sh").args(["-c", "echo one; echo two >&2; exec sleep 600"]),
    );
    let two = shell.wait_for_line("two", SOON, |line| line == "two");
    assert_eq!(two, "two");
    shell.wait_for_line("one", SOON, |line| line == "one");
    assert_eq!(shell.lines(Stream::Stdout), ["one"]);
    assert_eq!(shell.lines(Stream::Stderr), ["two"]);
    assert_eq!(shell.output().lines().count(), 2);
    assert!(shell.is_running());

    let late = shell.line_or_why_not(Duration::from_millis(50), |line| line == "three");
    assert!(late.expect_err("it never comes").contains("waited 50ms"));

    let started = Instant::now();
    drop(shell);
    assert!(started.elapsed() < SOON, "dropping it does not wait for it");
}

#[test]
fn waiting_for_a_line_ends_with_the_process() {
    let shell = Process::start("a shell", Command::new("sh").args(["-c", "echo one"]));
    let why = shell
        .line_or_why_not(Duration::from_secs(600), |line| line == "two")
        .expect_err("it never comes");
    assert!(why.contains("its output has ended"), "{why}");
    assert!(why.contains("one"), "{why}");
    assert_eq!(shell.wait_for_exit(SOON).code(), Some(0));
}

#[test]
#[should_panic(expected = "in vain for a miracle; last: nothing of note")]
fn waiting_in_vain_says_for_what() {
    wait::until("a miracle", Duration::from_millis(30), || {
        Err::<(), _>("nothing of note".to_owned())
    });
}
