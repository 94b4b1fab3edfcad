use super::*;

const STEADY: Behaviour = Behaviour {
    access_token_lifetime: Duration::from_secs(60),
    unavailable_every: None,
    lose_answer_every: None,
    login_lifetime: None,
    replay_window: Duration::from_secs(3600),
    seed: 0,
};

struct Bench {
    server: AuthorizationServer,
    client: reqwest::Client,
    shutdown: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The parts of an answer that a client looks at.
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Bench {
    async fn new(behaviour: Behaviour) -> Self {
        crate::tls::provide();
        let shutdown = CancellationToken::new();
        Self {
            server: AuthorizationServer::start(behaviour, shutdown.clone())
                .await
                .unwrap(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            shutdown,
        }
    }

    fn request(&self, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        self.client
            .post(self.server.token_url())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body)
    }

    async fn post(&self, fields: &[(&str, &str)]) -> Seen {
        seen(self.request(fields)).await
    }

    async fn refresh(&self, token: &str) -> Seen {
        self.post(&refresh_fields(token)).await
    }
}

fn refresh_fields(token: &str) -> [(&str, &str); 3] {
    [
        ("grant_type", "refresh_token"),
        ("client_id", "player"),
        ("refresh_token", token),
    ]
}

async fn seen(request: reqwest::RequestBuilder) -> Seen {
    let answer = request.send().await.unwrap();
    Seen {
        status: answer.status().as_u16(),
        headers: answer.headers().clone(),
        body: serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default(),
    }
}

impl Seen {
    fn refresh_token(&self) -> &str {
        self.body["refresh_token"].as_str().unwrap()
    }

    #[track_caller]
    fn is_refused(&self, status: u16, error: &str) {
        assert_eq!(
            (self.status, self.body["error"].as_str()),
            (status, Some(error))
        );
        assert_eq!(self.headers[CACHE_CONTROL], "no-store");
    }
}

#[tokio::test]
async fn a_refresh_rotates() {
    let bench = Bench::new(STEADY).await;
    let first = bench.server.new_grant("player");
    let one = bench.refresh(first.expose()).await;
    assert_eq!(one.status, 200);
    assert_eq!(one.headers[CACHE_CONTROL], "no-store");
    assert_eq!(one.headers[CONTENT_TYPE], "application/json");
    assert_eq!(one.body["token_type"], "Bearer");
    assert_eq!(one.body["expires_in"], 60);
    assert_eq!(one.body.as_object().unwrap().len(), 4);

    let two = bench.refresh(one.refresh_token()).await;
    assert_eq!(two.status, 200);
    assert_ne!(two.refresh_token(), one.refresh_token());
    assert_ne!(two.body["access_token"], one.body["access_token"]);
    assert_eq!(
        bench.server.counts(),
        Counts {
            token_requests: 2,
            rotations: 2,
            ..Counts::default()
        }
    );
}

#[tokio::test]
async fn a_replay_within_the_window_gets_the_same_pair() {
    let bench = Bench::new(STEADY).await;
    let first = bench.server.new_grant("player");
    let one = bench.refresh(first.expose()).await;
    let again = bench.refresh(first.expose()).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.refresh_token(), one.refresh_token());
    assert_eq!(again.body["access_token"], one.body["access_token"]);
    assert_eq!(bench.refresh(one.refresh_token()).await.status, 200);
    let counts = bench.server.counts();
    assert_eq!((counts.rotations, counts.replays), (2, 1));
}

#[tokio::test]
async fn a_reuse_outside_the_window_revokes_the_grant() {
    let bench = Bench::new(Behaviour {
        replay_window: Duration::ZERO,
        ..STEADY
    })
    .await;
    let first = bench.server.new_grant("player");
    let one = bench.refresh(first.expose()).await;
    bench
        .refresh(first.expose())
        .await
        .is_refused(400, "invalid_grant");
    bench
        .refresh(one.refresh_token())
        .await
        .is_refused(400, "invalid_grant");
    let counts = bench.server.counts();
    assert_eq!((counts.revoked_grants, counts.refused), (1, 2));
}

#[tokio::test]
async fn a_lost_answer_is_found_again_by_a_replay() {
    let bench = Bench::new(Behaviour {
        lose_answer_every: Some(2),
        ..STEADY
    })
    .await;
    let first = bench.server.new_grant("player");
    let one = bench.refresh(first.expose()).await;

    // On a connection that was used before: clients like to retry there silently.
    let fields = refresh_fields(one.refresh_token());
    let error = bench.request(&fields).send().await.unwrap_err();
    assert!(error.is_request(), "{error:?}");
    let counts = bench.server.counts();
    assert_eq!((counts.rotations, counts.lost_answers), (2, 1));
    assert_eq!(counts.token_requests, 2, "one request, sent once");

    let two = bench.refresh(one.refresh_token()).await;
    assert_eq!(two.status, 200);
    assert_eq!(bench.refresh(two.refresh_token()).await.status, 200);
    assert_eq!(bench.server.counts().replays, 1);
}

#[tokio::test]
async fn every_nth_request_finds_it_unavailable_and_spends_nothing() {
    let bench = Bench::new(Behaviour {
        unavailable_every: Some(3),
        seed: 1,
        ..STEADY
    })
    .await;
    let mut token = bench.server.new_grant("player").expose().to_owned();
    let mut statuses = Vec::new();
    for _ in 0..7 {
        let answer = bench.refresh(&token).await;
        statuses.push(answer.status);
        if answer.status == 200 {
            token = answer.refresh_token().to_owned();
        } else {
            assert_eq!(answer.headers[RETRY_AFTER], "2");
        }
    }
    assert_eq!(statuses, [200, 503, 200, 200, 503, 200, 200]);
    let counts = bench.server.counts();
    assert_eq!((counts.unavailable, counts.rotations), (2, 5));
}

#[tokio::test]
async fn client_credentials_by_post_and_by_basic() {
    let bench = Bench::new(STEADY).await;
    let grant = ("grant_type", "client_credentials");
    let id = ("client_id", "batch");
    let posted = bench
        .post(&[grant, id, ("client_secret", CLIENT_SECRET)])
        .await;
    let basic = seen(
        bench
            .request(&[grant])
            .basic_auth("batch", Some(CLIENT_SECRET)),
    )
    .await;
    for answer in [&posted, &basic] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers[CACHE_CONTROL], "no-store");
        assert_eq!(answer.body["expires_in"], 60);
        assert!(answer.body.get("refresh_token").is_none());
    }
    assert_ne!(posted.body["access_token"], basic.body["access_token"]);
    assert_eq!(bench.server.counts().client_credentials, 2);
}

#[tokio::test]
async fn a_client_that_is_not_who_it_says_is_turned_away() {
    let bench = Bench::new(STEADY).await;
    let grant = ("grant_type", "client_credentials");
    let id = ("client_id", "batch");
    let wrong = bench.post(&[grant, id, ("client_secret", "guess")]).await;
    let basic = seen(bench.request(&[grant]).basic_auth("batch", Some("guess"))).await;
    let none = bench.post(&[grant, id]).await;
    let bearer = seen(bench.request(&[grant]).bearer_auth("x")).await;
    for answer in [wrong, basic, none, bearer] {
        answer.is_refused(401, "invalid_client");
        assert!(answer.headers.contains_key(WWW_AUTHENTICATE));
    }

    let twice = bench
        .request(&[grant, ("client_secret", CLIENT_SECRET)])
        .basic_auth("batch", Some(CLIENT_SECRET));
    seen(twice).await.is_refused(400, "invalid_request");

    // A wrong secret must not spend the token.
    let first = bench.server.new_grant("player");
    let mut fields = refresh_fields(first.expose()).to_vec();
    fields.push(("client_secret", "guess"));
    bench.post(&fields).await.is_refused(401, "invalid_client");
    assert_eq!(bench.refresh(first.expose()).await.status, 200);
}

#[tokio::test]
async fn malformed_requests_are_named() {
    let bench = Bench::new(STEADY).await;
    let id = ("client_id", "player");
    for (fields, error) in [
        (vec![id], "invalid_request"),
        (vec![id, ("grant_type", "")], "invalid_request"),
        (
            vec![id, ("grant_type", "password")],
            "unsupported_grant_type",
        ),
        (vec![id, ("grant_type", "refresh_token")], "invalid_request"),
        (
            vec![id, id, ("grant_type", "refresh_token")],
            "invalid_request",
        ),
        (
            vec![id, ("grant_type", "refresh_token"), ("refresh_token", "x")],
            "invalid_grant",
        ),
    ] {
        bench.post(&fields).await.is_refused(400, error);
    }
    let long = "x".repeat(LARGEST_BODY);
    bench
        .refresh(&long)
        .await
        .is_refused(400, "invalid_request");
    let json = bench
        .client
        .post(bench.server.token_url())
        .header(CONTENT_TYPE, "application/json")
        .body("{}");
    seen(json).await.is_refused(400, "invalid_request");
    let get = bench.client.get(bench.server.token_url());
    assert_eq!(seen(get).await.status, 405);
}

#[tokio::test]
async fn metadata_leads_to_the_token_endpoint() {
    let bench = Bench::new(STEADY).await;
    let url = format!("{}{METADATA_PATH}", bench.server.issuer());
    let metadata = seen(bench.client.get(url)).await.body;
    assert_eq!(metadata["issuer"], bench.server.issuer());
    assert_eq!(metadata["token_endpoint"], bench.server.token_url());
    assert!(bench.server.address().ip().is_loopback());
}

#[tokio::test]
async fn it_stops_when_told() {
    let bench = Bench::new(STEADY).await;
    let first = bench.server.new_grant("player");
    bench.refresh(first.expose()).await; // leaves an idle connection open
    bench.shutdown.cancel();
    let closed = async {
        while tokio::net::TcpStream::connect(bench.server.address())
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .expect("the port is closed");
}

#[test]
fn faults_fall_on_every_nth() {
    let hits = |every, seed| {
        (1..=9)
            .filter(|count| falls_on(every, *count, seed))
            .collect::<Vec<u64>>()
    };
    assert_eq!(hits(Some(3), 0), [3, 6, 9]);
    assert_eq!(hits(Some(3), 1), [2, 5, 8]);
    assert_eq!(hits(Some(1), 5), (1..=9).collect::<Vec<_>>());
    assert!(hits(Some(0), 0).is_empty());
    assert!(hits(None, 0).is_empty());
}

#[tokio::test]
async fn a_login_is_good_for_its_time_and_no_refresh_prolongs_it() {
    let bench = Bench::new(Behaviour {
        login_lifetime: Some(Duration::from_secs(2)),
        ..STEADY
    })
    .await;
    let began = Instant::now();
    let mut token = bench.server.new_grant("player").expose().to_owned();
    let mut last = 2;
    let refused = loop {
        let answer = bench.refresh(&token).await;
        if answer.status != 200 {
            break answer;
        }
        let left = answer.body["refresh_token_expires_in"].as_u64().unwrap();
        assert!(left <= last, "{left} after {last}");
        last = left;
        token = answer.refresh_token().to_owned();
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    refused.is_refused(400, "invalid_grant");
    assert!(began.elapsed() >= Duration::from_secs(2), "it ended early");
}

#[tokio::test]
async fn a_revoked_login_is_refused_with_every_token() {
    let bench = Bench::new(STEADY).await;
    let first = bench.server.new_grant("player");
    let one = bench.refresh(first.expose()).await;
    bench.server.revoke(&first);
    for token in [first.expose(), one.refresh_token()] {
        bench.refresh(token).await.is_refused(400, "invalid_grant");
    }
}
