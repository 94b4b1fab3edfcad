use super::*;

fn raw(body: &str) -> Raw {
    Raw {
        content_type: None,
        retry_after: None,
        date: None,
        body: Zeroizing::new(body.into()),
    }
}

fn context() -> Context<'static> {
    Context {
        issued_at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        default_expires_in: None,
        needs_login_errors: &[],
        previous: None,
        spends: true,
        secrets: Vec::new(),
    }
}

fn lifetime_of(body: &str) -> (u64, LifetimeSource) {
    let details = read(StatusCode::OK, &raw(body), &context())
        .unwrap()
        .details;
    (details.lifetime.as_secs(), details.lifetime_source)
}

#[test]
fn lifetimes_come_in_many_forms() {
    use LifetimeSource::{Answer, Assumed};
    for (body, expected) in [
        (r#"{"access_token":"a","expires_in":60}"#, (60, Answer)),
        (r#"{"access_token":"a","expires_in":"60"}"#, (60, Answer)),
        (r#"{"access_token":"a","expires_in":60.9}"#, (60, Answer)),
        (
            r#"{"access_token":"a","expires_in":1e300}"#,
            (3_153_600_000, Answer),
        ),
        (r#"{"access_token":"a","expires_in":0}"#, (3_600, Assumed)),
        (r#"{"access_token":"a","expires_in":-5}"#, (3_600, Assumed)),
        (
            r#"{"access_token":"a","expires_in":null}"#,
            (3_600, Assumed),
        ),
        (r#"{"access_token":"a"}"#, (3_600, Assumed)),
        (
            r#"{"access_token":"a","expires_at":1700000060}"#,
            (60, Answer),
        ),
        (
            r#"{"access_token":"a","expires_at":1700000060000}"#,
            (60, Answer),
        ),
        (
            r#"{"access_token":"a","expires_at":"2023-11-14T22:14:20Z"}"#,
            (60, Answer),
        ),
    ] {
        assert_eq!(lifetime_of(body), expected, "{body}");
    }
}

#[test]
fn a_jwt_tells_its_own_lifetime_even_when_the_servers_clock_is_off() {
    let jwt = |claims: &str| {
        format!(
            r#"{{"access_token":"e30.{}.x"}}"#,
            URL_SAFE_NO_PAD.encode(claims)
        )
    };
    let hour_ahead = jwt(r#"{"iat":1700003600,"exp":1700003900}"#);
    assert_eq!(lifetime_of(&hour_ahead), (300, LifetimeSource::JwtExp));
    assert_eq!(
        lifetime_of(&jwt(r#"{"exp":1700000300}"#)),
        (300, LifetimeSource::JwtExp)
    );
    assert_eq!(
        lifetime_of(&jwt(r#"{"exp":1600000000}"#)),
        (3_600, LifetimeSource::Assumed)
    );
}

#[test]
fn what_an_answer_omits_is_carried_forward() {
    let first =
        r#"{"access_token":"a","refresh_token":"r","scope":"s","refresh_token_expires_in":99}"#;
    let first = read(StatusCode::OK, &raw(first), &context()).unwrap();
    let context = Context {
        previous: Some(&first),
        ..context()
    };
    let second = read(StatusCode::OK, &raw(r#"{"access_token":"b"}"#), &context).unwrap();
    assert_eq!(second.refresh_token, first.refresh_token);
    assert_eq!(second.details.scope.as_deref(), Some("s"));
    assert_eq!(
        second.details.refresh_token_expires_at,
        first.details.refresh_token_expires_at
    );
    let third = r#"{"access_token":"c","refresh_token":"new"}"#;
    let third = read(StatusCode::OK, &raw(third), &context).unwrap();
    assert_eq!(third.refresh_token, Some(Secret::new("new")));
    assert_eq!(
        third.details.refresh_token_expires_at, None,
        "said of the old one only"
    );
}

/// What is known of a refresh token's life after answers that came an hour apart and said that
/// so much of it is left.
fn after(left: &[u64]) -> TokenDetails {
    let mut tokens: Option<TokenSet> = None;
    for (hour, left) in left.iter().enumerate() {
        let body = format!(
            r#"{{"access_token":"a","refresh_token":"r{hour}","refresh_token_expires_in":{left}}}"#
        );
        let context = Context {
            issued_at: context().issued_at + TimeDelta::hours(hour as i64),
            previous: tokens.as_ref(),
            ..context()
        };
        tokens = Some(read(StatusCode::OK, &raw(&body), &context).unwrap());
    }
    tokens.unwrap().details
}

#[test]
fn the_whole_life_of_a_refresh_token_is_the_most_that_was_left_of_it() {
    const DAY: u64 = 86_400;
    let life_after = |left: &[u64]| after(left).refresh_token_life.unwrap().as_secs();
    assert_eq!(life_after(&[DAY]), DAY);
    assert_eq!(life_after(&[DAY, DAY - 3_600, DAY - 7_201]), DAY);
    assert_eq!(life_after(&[DAY, DAY, DAY]), DAY);
    assert_eq!(
        life_after(&[DAY, DAY - 3_600, 2 * DAY]),
        2 * DAY,
        "a longer term"
    );
}

#[test]
fn a_client_has_no_login_that_could_end() {
    let body = r#"{"access_token":"a","refresh_expires_in":1800}"#;
    let context = Context {
        spends: false,
        ..context()
    };
    let details = read(StatusCode::OK, &raw(body), &context).unwrap().details;
    assert_eq!(details.refresh_token_expires_at, None);
    assert_eq!(details.refresh_token_life, None);
}

#[test]
fn forms_are_understood_where_they_are_declared() {
    let mut raw = raw("access_token=a&refresh_token=r&expires_in=7");
    assert!(read(StatusCode::OK, &raw, &context()).is_err());
    raw.content_type = Some("application/x-www-form-urlencoded; charset=utf-8".into());
    let tokens = read(StatusCode::OK, &raw, &context()).unwrap();
    assert_eq!(tokens.details.lifetime.as_secs(), 7);
}

fn error(status: u16, body: &str) -> GrantError {
    read(
        StatusCode::from_u16(status).unwrap(),
        &raw(body),
        &context(),
    )
    .unwrap_err()
}

#[test]
fn a_code_counts_more_than_the_status() {
    for status in [200, 400, 401, 403, 429, 500] {
        let reason = |code: &str| error(status, &format!(r#"{{"error":"{code}"}}"#)).reason();
        assert_eq!(reason("invalid_grant"), Reason::NeedsLogin, "{status}");
        for code in MISCONFIGURED {
            assert_eq!(reason(code), Reason::Misconfigured, "{code} {status}");
        }
        for code in TRANSIENT {
            assert_eq!(reason(code), Reason::ServerError, "{code} {status}");
        }
        assert_eq!(reason("slow_down"), Reason::RateLimited, "{status}");
    }
    assert_eq!(
        error(403, r#"{"error":"never_seen"}"#).reason(),
        Reason::Misconfigured
    );
    assert_eq!(
        error(503, r#"{"error":"never_seen"}"#).reason(),
        Reason::ServerError
    );
}

#[test]
fn without_a_code_nothing_is_ever_taken_for_a_dead_grant() {
    for status in [
        200, 201, 204, 302, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504,
    ] {
        for body in [
            "",
            "<html>",
            "[]",
            "null",
            "{}",
            r#"{"error":7}"#,
            "{\"access_tok",
        ] {
            let error = error(status, body);
            assert!(
                matches!(error, GrantError::Transient { .. }),
                "{status} {body}: {error}"
            );
            // Whatever may hide a rotation is doubtful; a refusal is not.
            let hides = status < 300 || [502, 504].contains(&status);
            assert_eq!(error.is_doubtful(), hides, "{status} {body}");
        }
    }
}

#[test]
fn a_providers_own_code_for_a_dead_grant() {
    let aliases = ["bad_refresh_token".to_owned()];
    let context = Context {
        needs_login_errors: &aliases,
        ..context()
    };
    let error = read(
        StatusCode::OK,
        &raw(r#"{"error":"bad_refresh_token"}"#),
        &context,
    );
    assert_eq!(error.unwrap_err().reason(), Reason::NeedsLogin);
}

#[test]
fn retry_after_in_both_forms_and_not_absurdly() {
    let wait = |value: &str| {
        let raw = Raw {
            retry_after: Some(value.into()),
            ..raw("")
        };
        match read(StatusCode::SERVICE_UNAVAILABLE, &raw, &context()).unwrap_err() {
            GrantError::Transient { retry_after, .. } => retry_after.map(|wait| wait.as_secs()),
            other => panic!("{other}"),
        }
    };
    assert_eq!(wait("7"), Some(7));
    assert_eq!(wait("Tue, 14 Nov 2023 22:13:30 GMT"), Some(10));
    assert_eq!(wait("99999999999"), Some(3_600));
    assert_eq!(wait(&"9".repeat(40)), Some(3_600));
    assert_eq!(wait(""), None);
    assert_eq!(wait("Tue, 14 Nov 2000 22:13:30 GMT"), None);
    assert_eq!(wait("soon"), None);
}

/// 2023-11-14T22:13:20Z is our time.
#[test]
fn times_go_by_the_servers_clock() {
    for (date, at) in [
        ("Tue, 14 Nov 2023 23:13:21 GMT", "2023-11-14T23:14:21Z"),
        ("Tue, 14 Nov 2023 21:13:21 GMT", "2023-11-14T21:14:21Z"),
        ("yesterday", "2023-11-14T22:14:20Z"),
    ] {
        let at: Timestamp = at.parse().unwrap();
        let raw = |status: u16, body: &str| {
            let raw = Raw {
                retry_after: Some(at.to_rfc2822()),
                date: Some(date.into()),
                ..raw(body)
            };
            read(StatusCode::from_u16(status).unwrap(), &raw, &context())
        };
        let tokens = format!(r#"{{"access_token":"a","expires_at":{}}}"#, at.timestamp());
        let details = raw(200, &tokens).unwrap().details;
        assert_eq!(details.lifetime, Duration::from_secs(60), "{date}");
        let GrantError::Transient { retry_after, .. } = raw(503, "").unwrap_err() else {
            panic!("a 503 is transient");
        };
        assert_eq!(retry_after, Some(Duration::from_secs(60)), "{date}");
    }
}

#[test]
fn a_hostile_code_is_not_repeated() {
    let context = Context {
        secrets: vec!["", "correcthorsebattery", "xk"],
        ..context()
    };
    for (code, printed) in [
        ("x\\n<script> token=abc", "unreadable_code"),
        ("8xLOxBtZp8", "unreadable_code"),
        ("SpIxLObEtZp", "unreadable_code"),
        ("correcthorsebattery", "unreadable_code"),
        ("horse", "unreadable_code"),
        ("the_xk", "unreadable_code"),
        (&"long_".repeat(9), "unreadable_code"),
        ("bad_refresh_token", "bad_refresh_token"),
        ("INVALID_TOKEN", "INVALID_TOKEN"),
    ] {
        let body = format!(r#"{{"error":"{code}"}}"#);
        let error = read(StatusCode::BAD_REQUEST, &raw(&body), &context).unwrap_err();
        assert_eq!(error.detail(), printed, "{code}");
    }
}

#[test]
fn tokens_beside_an_error_are_not_thrown_away() {
    let body = r#"{"error":"server_error","access_token":"a","refresh_token":"new"}"#;
    let tokens = read(StatusCode::OK, &raw(body), &context()).unwrap();
    assert_eq!(tokens.refresh_token, Some(Secret::new("new")));
    assert_eq!(error(500, body).reason(), Reason::ServerError);
}

#[test]
fn what_stands_beside_the_tokens_does_not_hide_them() {
    for body in [
        &b"\xef\xbb\xbf{\"access_token\":\"a\"}"[..],
        b"{\"access_token\":\"a\",\"name\":\"Jos\xe9\"}",
    ] {
        let raw = Raw {
            body: Zeroizing::new(body.into()),
            ..raw("")
        };
        let tokens = read(StatusCode::OK, &raw, &context()).unwrap();
        assert_eq!(tokens.access_token, Secret::new("a"));
    }
}

mod anything {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        clock::Moment,
        credential::{Credential, policy::Rules},
    };

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number.to_string())),
            ".{0,40}".prop_map(Value::from),
            "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:00:00Z".prop_map(Value::from),
            (any::<i64>(), any::<i64>()).prop_map(|(iat, exp)| {
                let claims = json!({ "iat": iat, "exp": exp }).to_string();
                json!(format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims)))
            }),
            Just(json!({ "access_token": [] })),
        ]
    }

    const FIELDS: [&str; 9] = [
        "access_token",
        "refresh_token",
        "expires_in",
        "expires_at",
        "refresh_in",
        "refresh_token_expires_in",
        "token_type",
        "scope",
        "error",
    ];

    proptest! {
        #[test]
        fn is_read_without_a_panic_and_reckoned_with(
            values in proptest::collection::vec(proptest::option::of(value()), FIELDS.len()),
            status in prop_oneof![Just(200_u16), 100..600_u16],
            retry_after in proptest::option::of(".{0,30}"),
        ) {
            let named = FIELDS.iter().zip(values);
            let fields: Map<String, Value> = named
                .filter_map(|(name, value)| Some(((*name).to_owned(), value?)))
                .collect();
            let raw = Raw { retry_after, ..raw(&Value::Object(fields.clone()).to_string()) };
            let status = StatusCode::from_u16(status).unwrap();
            let issued_at = context().issued_at;
            match read(status, &raw, &context()) {
                Ok(tokens) => {
                    prop_assert_eq!(fields["access_token"].as_str(), Some(tokens.access_token.expose()));
                    prop_assert!(!tokens.details.lifetime.is_zero());
                    // What is shown of it can be reckoned.
                    let now = Moment { wall: issued_at, uptime: TimeDelta::zero() };
                    let (name, rules) = ("player".parse().unwrap(), Rules::default());
                    let credential = Credential::renewed(1, tokens, now);
                    prop_assert!(credential.expires_at(&rules, now).unwrap() > issued_at);
                    prop_assert!(credential.next(&name, &rules, now).wait.unwrap() > TimeDelta::zero());
                    credential.attempts_left(&name, &rules, now);
                }
                Err(GrantError::Transient { retry_after, .. }) => {
                    prop_assert!(retry_after.unwrap_or_default() <= LONGEST_RETRY_AFTER);
                }
                Err(error) => prop_assert!(error.detail().len() <= 40),
            }
        }

        #[test]
        fn bytes_are_read_without_a_panic(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            form in any::<bool>(),
        ) {
            let raw = Raw {
                content_type: form.then(|| "application/x-www-form-urlencoded".into()),
                body: Zeroizing::new(body),
                ..raw("")
            };
            let _ = read(StatusCode::OK, &raw, &context());
        }
    }
}
