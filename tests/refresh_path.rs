//! The path of one refresh against a token endpoint that misbehaves on purpose and a real store.
//!
//! Time that policy waits for is moved by hand; only what is sent over sockets takes time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta};
use futures_util::future::join_all;
use perennial::{
    clock::{Clock, Moment, Timestamp},
    credential::{
        Credential, LifetimeSource, Reason, Standing, State, TokenSet,
        policy::{Rules, Why},
    },
    fleet::{Fleet, Member},
    job::{Job, Run, Trigger},
    jobs::token_refresh::{Settings, TokenRefresh},
    metrics::Metrics,
    name::Name,
    oauth::{
        self, Form, Grant, GrantError, TokenEndpoint,
        client_auth::{Client, ClientAuth},
        client_credentials::ClientCredentials,
        discovery::Location,
        refresh_token::RefreshToken,
    },
    provider::Provider,
    refresh::{Cause, ImportError, Outcome, Refresher},
    secret::{Fingerprint, Secret},
    store::{
        Checkout, Lease, Record, RunRecord, Saved, Store, StoreError,
        cipher::Cipher,
        probe::Probe,
        sqlite::{History, SqliteStore},
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::fake_server::{At, Deed, FakeServer};

// One refresh at a time

#[tokio::test]
async fn a_thousand_callers_share_one_request() {
    let place = Place::with_one().await;
    let (release, held) = Deed::tokens(1).held();
    place.server.next(held);
    let wishes = (0..1_000).map(|_| place.refresher.refresh(place.one(), Cause::Forced));
    let (outcomes, ()) = tokio::join!(join_all(wishes), async {
        place.requests(1).await;
        release.send(()).unwrap();
    });
    assert_eq!(outcomes, vec![Outcome::Refreshed(2); 1_000]);
    assert_eq!(place.server.spent(), ["refresh-0"]);
}

#[tokio::test]
async fn who_comes_after_the_refresh_finds_its_result() {
    let place = Place::with_one().await;
    assert_eq!(place.due().await, Outcome::Refreshed(2));
    assert_eq!(place.due().await, Outcome::NotNeeded);
    assert_eq!(place.server.count(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let place = Place::with_one().await;
    let (release, held) = Deed::tokens(1).held();
    place.server.next(held);
    let caller = place.begin(Cause::Forced);
    place.requests(1).await;
    caller.abort();
    release.send(()).unwrap();
    place
        .eventually("the tokens are saved", || place.version() == 2)
        .await;
    assert_eq!(place.stored().await.version, 2);
}

#[tokio::test]
async fn a_panic_clears_the_way_and_is_not_repeated_at_once() {
    let place = Place::new(&["one"], Kind::Panics).await;
    place.import("refresh-0").await.unwrap();
    let outcome = place.due().await;
    assert_eq!(outcome, Outcome::Postponed(TimeDelta::seconds(60)));
    assert!(!place.one().is_refreshing());
    assert_eq!(place.due().await, Outcome::NotNeeded, "it waits");
    place.clock.pass(61);
    assert_eq!(place.due().await, Outcome::Refreshed(2));
}

// Nothing is lost

#[tokio::test]
async fn nothing_is_published_before_it_is_saved() {
    let place = Place::with_one().await;
    place.store.fail("save", 3);
    let versions = place.one().versions().expect("it is told to a file");
    let refresh = place.begin(Cause::Due);
    place
        .eventually("a save fails", || place.store.left("save") < 3)
        .await;
    assert_eq!(place.version(), 1);
    assert!(!versions.has_changed().unwrap());
    assert_eq!(refresh.await.unwrap(), Outcome::Refreshed(2));
    assert_eq!(place.store.left("save"), 0);
    assert_eq!(token(&place.stored().await), "refresh-1");
    assert!(versions.has_changed().unwrap());
    assert_eq!(place.server.spent(), ["refresh-0"], "sent once");
}

#[tokio::test]
async fn tokens_whose_save_hangs_are_counted_until_it_ends() {
    let place = Place::with_one().await;
    let unsaved = || {
        let metrics = &place.refresher.metrics;
        let text = metrics.encode(place.clock.now().wall, true);
        text.contains("\nperennial_store_unsaved_credentials 1\n")
    };
    let hung = place.store.saving.lock().await;
    let refresh = place.begin(Cause::Due);
    place.eventually("the save to be slow", unsaved).await;
    assert_eq!(place.version(), 1);
    drop(hung);
    assert_eq!(refresh.await.unwrap(), Outcome::Refreshed(2));
    assert!(!unsaved());
    assert_eq!(token(&place.stored().await), "refresh-1");
}

#[tokio::test]
async fn a_store_that_hangs_is_known_and_asked_once() {
    let place = Place::with_one().await;
    let probe = Probe::new(place.store.clone());
    assert!(probe.is_writable(), "it was opened");
    let hung = place.store.saving.lock().await;
    let asked = join_all((0..100).map(|_| probe.prove())).await;
    for proof in asked {
        assert_eq!(proof.unwrap_err(), "the store has not written for a second");
    }
    assert!(!probe.is_writable());
    assert_eq!(place.store.probes.load(Ordering::SeqCst), 1);
    drop(hung);
    place
        .eventually("the probe to end", || probe.is_writable())
        .await;
    assert_eq!(probe.prove().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_is_known_within_half_a_minute() {
    let place = Place::with_one().await;
    let probe = Probe::new(place.store.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(probe.clone().run(stop.clone()));
    place.store.fail("probe", 1);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(probe.is_writable());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!probe.is_writable());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(probe.is_writable(), "it recovered");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn without_an_intent_nothing_is_sent() {
    let place = Place::with_one().await;
    place.store.fail("checkout", 1);
    assert_eq!(reason(&place.due().await), Some(Reason::Store));
    assert_eq!(place.server.count(), 0);
    place.clock.pass(10);
    assert_eq!(place.due().await, Outcome::Refreshed(2));
}

#[tokio::test]
async fn an_omitted_refresh_token_is_carried_forward() {
    let place = Place::with_one().await;
    place
        .server
        .next(Deed::json(200, r#"{"access_token":"a","expires_in":3600}"#));
    assert_eq!(place.due().await, Outcome::Refreshed(2));
    assert_eq!(token(&place.stored().await), "refresh-0");
    place.clock.pass(3_600);
    assert_eq!(place.due().await, Outcome::Refreshed(3));
    assert_eq!(place.server.spent(), ["refresh-0", "refresh-0"]);
}

#[tokio::test]
async fn a_refresh_token_that_comes_alone_is_kept_and_used() {
    let place = Place::with_one().await;
    assert_eq!(place.due().await, Outcome::Refreshed(2));
    let before = place.credential();
    let (tokens, since) = before.live_tokens().unwrap();
    for (version, failures, new) in [(3, 1, "alone-1"), (4, 2, "alone-2")] {
        let answer = serde_json::json!({ "refresh_token": new, "expires_in": 7 });
        place.server.next(Deed::json(200, answer));
        let outcome = place.refresh(Cause::Forced).await;
        assert_eq!(reason(&outcome), Some(Reason::BadAnswer));
        let wait = retry_in(&outcome).unwrap();
        assert!((1..=20).contains(&wait.as_secs()), "{wait:?}");
        let stored = place.stored().await;
        assert_eq!((stored.version, token(&stored)), (version, new));
        let now = place.credential();
        assert_eq!((now.version, now.failures()), (version, failures));
        assert!(!now.doubtful);
        let (kept, kept_since) = now.live_tokens().unwrap();
        assert_eq!(kept.access_token, tokens.access_token);
        assert_eq!(kept.details, tokens.details);
        assert_eq!(kept_since, since, "it is no younger for that");
    }
    // A restart keeps the wait.
    let place = place.reopen().await;
    assert_eq!(place.credential().failures(), 2);
    assert_eq!(place.due().await, Outcome::NotNeeded);
    place.clock.pass(20);
    assert_eq!(place.due().await, Outcome::Refreshed(5));
    let spent = ["refresh-0", "refresh-1", "alone-1", "alone-2"];
    assert_eq!(place.server.spent(), spent);
}

#[tokio::test]
async fn an_import_during_a_refresh_wins() {
    let place = Place::with_one().await;
    let (release, held) = Deed::tokens(1).held();
    place.server.next(held);
    let refresh = place.begin(Cause::Due);
    place.requests(1).await;
    assert_eq!(place.import("from-a-person").await.unwrap(), 2);
    release.send(()).unwrap();
    assert_eq!(refresh.await.unwrap(), Outcome::Adopted(2));
    assert_eq!(token(&place.stored().await), "from-a-person");
    assert_eq!(place.due().await, Outcome::Refreshed(3));
    assert_eq!(place.server.spent(), ["refresh-0", "from-a-person"]);
}

#[tokio::test]
async fn an_import_during_a_refresh_that_fails_is_used_at_once() {
    for answer in [
        Deed::close(),
        Deed::error(401, "invalid_client"),
        Deed::error(400, "invalid_grant"),
    ] {
        let place = Place::with_one().await;
        let (release, held) = answer.held();
        place.server.next(held);
        let refresh = place.begin(Cause::Due);
        place.requests(1).await;
        place.import("from-a-person").await.unwrap();
        release.send(()).unwrap();
        refresh.await.unwrap();
        assert_eq!(place.due().await, Outcome::Refreshed(3));
        assert_eq!(place.server.spent(), ["refresh-0", "from-a-person"]);
    }
}

#[tokio::test]
async fn an_import_of_the_token_just_spent_does_not_lose_its_successor() {
    let place = Place::with_one().await;
    let (release, held) = Deed::tokens(1).held();
    place.server.next(held);
    let refresh = place.begin(Cause::Due);
    place.requests(1).await;
    place.import("refresh-0").await.unwrap();
    release.send(()).unwrap();
    assert_eq!(refresh.await.unwrap(), Outcome::Refreshed(3));
    assert_eq!(token(&place.stored().await), "refresh-1");
    assert_eq!(place.version(), 3);
    assert_eq!(place.due().await, Outcome::NotNeeded);
}

#[tokio::test]
async fn an_import_whose_caller_goes_away_is_known_all_the_same() {
    let place = Place::with_one().await;
    place.server.next(Deed::error(400, "invalid_grant"));
    place.due().await;
    let import = place.refresher.import(place.one(), Secret::new("new"));
    // Polled once, and dropped: as when a connection closes.
    assert!(tokio::time::timeout(Duration::ZERO, import).await.is_err());
    place
        .eventually("it is known", || place.version() == 2)
        .await;
    assert_eq!(place.due().await, Outcome::Refreshed(3));
}

// Answers that never came

#[tokio::test]
async fn a_lost_answer_is_replayed_once_a_second_later() {
    for lost in [
        Deed::close(),
        Deed::tokens(1).ending(At::Body(20)),
        Deed::json(502, ""),
    ] {
        let place = Place::with_one().await;
        place.server.next(lost);
        assert_eq!(retry_in(&place.due().await), Some(Duration::from_secs(1)));
        let (credential, now) = (place.credential(), place.clock.now());
        let next = credential.next(&place.one().name, &Rules::default(), now);
        assert_eq!(next.why, Why::Replay);
        assert!(place.stored().await.standing.doubtful);

        place.clock.pass(1);
        assert_eq!(place.due().await, Outcome::Refreshed(2));
        assert_eq!(place.server.spent(), ["refresh-0", "refresh-0"]);
        assert!(!place.credential().doubtful);
    }
}

#[tokio::test]
async fn no_answer_in_time_is_a_lost_answer() {
    let patience = Duration::from_millis(500);
    let place = Place::new(&["one"], Kind::Impatient(patience)).await;
    place.import("refresh-0").await.unwrap();
    let (_release, held) = Deed::close().held();
    place.server.next(held);
    let outcome = place.due().await;
    assert_eq!(reason(&outcome), Some(Reason::Timeout));
    assert_eq!(retry_in(&outcome), Some(Duration::from_secs(1)));
}

#[tokio::test]
async fn only_the_first_lost_answer_is_replayed_in_a_hurry() {
    let place = Place::with_one().await;
    place.server.always(|_| Deed::close());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let wait = retry_in(&place.due().await).unwrap();
        waits.push(wait);
        place.clock.pass(wait.as_secs() as i64 + 1);
    }
    assert_eq!(waits[0], Duration::from_secs(1));
    assert!(
        waits[1..].iter().sum::<Duration>() > Duration::from_secs(3),
        "{waits:?}"
    );
}

#[tokio::test]
async fn a_replay_that_is_refused_needs_a_login() {
    let place = Place::with_one().await;
    place.server.next(Deed::close());
    place.server.next(Deed::error(400, "invalid_grant"));
    place.due().await;
    place.clock.pass(1);
    let outcome = place.due().await;
    assert_eq!(
        (reason(&outcome), retry_in(&outcome)),
        (Some(Reason::NeedsLogin), None)
    );
    let last = place.credential().last_result().unwrap();
    assert_eq!(last.result, "needs_login (invalid_grant)");
}

#[tokio::test]
async fn a_refused_connection_spends_nothing() {
    let place = Place::with_one().await;
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}/token").parse().unwrap();
    let place = place.reopen_at(url).await;
    assert_eq!(reason(&place.due().await), Some(Reason::Network));
    assert!(!place.credential().doubtful);
    assert!(!place.stored().await.standing.doubtful);
}

#[tokio::test]
async fn an_open_intent_is_replayed_at_once_after_a_crash() {
    let place = Place::with_one().await;
    assert_eq!(place.due().await, Outcome::Refreshed(2));
    let lease = Lease {
        owner: "the one that died".into(),
        taken_at: place.clock.now().wall,
        lasts: Duration::from_secs(60),
    };
    place
        .store
        .checkout(&place.one().name, 2, &lease)
        .await
        .unwrap();
    let place = place.reopen().await;
    assert!(place.credential().doubtful);
    assert_eq!(place.due().await, Outcome::Refreshed(3));
    assert_eq!(place.server.spent(), ["refresh-0", "refresh-1"]);
}

// Dead grants

#[tokio::test]
async fn a_dead_token_is_never_sent_again() {
    let place = Place::with_one().await;
    place.server.next(Deed::error(400, "invalid_grant"));
    assert_eq!(reason(&place.due().await), Some(Reason::NeedsLogin));
    assert_eq!(place.state(), State::NeedsLogin);
    place.clock.pass(100 * 86_400);
    assert_eq!(place.due().await, Outcome::NotNeeded);
    assert_eq!(
        reason(&place.refresh(Cause::Forced).await),
        Some(Reason::NeedsLogin)
    );

    let place = place.reopen().await;
    assert_eq!(place.due().await, Outcome::NotNeeded);
    assert_eq!(
        reason(&place.refresh(Cause::Forced).await),
        Some(Reason::NeedsLogin)
    );
    let again = place.import("refresh-0").await;
    assert!(matches!(again, Err(ImportError::Buried(_))), "{again:?}");
    assert_eq!(place.server.spent(), ["refresh-0"]);

    place.import("a new login").await.unwrap();
    assert_eq!(place.due().await, Outcome::Refreshed(3));
}

#[tokio::test]
async fn the_store_is_read_before_a_grant_is_believed_dead() {
    let place = Place::with_one().await;
    let (release, held) = Deed::error(400, "invalid_grant").held();
    place.server.next(held);
    let refresh = place.begin(Cause::Due);
    place.requests(1).await;
    // Another replica had been faster.
    let name = &place.one().name;
    let mut theirs = place.credential().tokens.unwrap().0.as_ref().clone();
    theirs.refresh_token = Some(Secret::new("theirs"));
    theirs.details.lifetime = Duration::from_secs(3_600);
    theirs.details.lifetime_source = LifetimeSource::Answer;
    assert_eq!(
        place.store.save(name, 1, &theirs).await.unwrap(),
        Saved::Version(2)
    );
    release.send(()).unwrap();
    assert_eq!(refresh.await.unwrap(), Outcome::Adopted(2));
    assert_eq!(place.state(), State::Fresh);
    let dead = Secret::new("refresh-0").fingerprint();
    assert!(!place.store.is_buried(name, dead).await.unwrap());
}

#[tokio::test]
async fn a_grant_is_not_believed_dead_while_the_store_cannot_be_read() {
    let place = Place::with_one().await;
    place.server.always(|_| Deed::error(400, "invalid_grant"));
    place.store.fail("read", 1);
    let outcome = place.due().await;
    assert_eq!(reason(&outcome), Some(Reason::Store));
    assert!(retry_in(&outcome).is_some());
    place.clock.pass(10);
    assert_eq!(reason(&place.due().await), Some(Reason::NeedsLogin));
    place.clock.pass(86_400);
    assert_eq!(place.due().await, Outcome::NotNeeded);
    assert_eq!(place.server.count(), 2);
}

#[tokio::test]
async fn a_client_without_a_login_is_misconfigured() {
    let place = Place::new(&["one"], Kind::ClientCredentials).await;
    place.server.next(Deed::error(400, "invalid_grant"));
    let outcome = place.due().await;
    assert_eq!(reason(&outcome), Some(Reason::Misconfigured));
    assert!(retry_in(&outcome).unwrap() >= Duration::from_secs(150));
    place.clock.pass(3_600);
    assert_eq!(place.due().await, Outcome::Refreshed(1));
    assert!(matches!(
        place.import("x").await,
        Err(ImportError::NotUsed(_))
    ));
}

#[tokio::test]
async fn a_misconfigured_client_asks_slowly_and_for_no_login() {
    let place = Place::with_one().await;
    place.server.next(Deed::error(401, "invalid_client"));
    let wait = retry_in(&place.due().await).unwrap();
    assert!((150..=300).contains(&wait.as_secs()), "{wait:?}");
    assert_eq!(place.state(), State::Misconfigured);
    let schedule = Cause::Scheduled(place.clock.now().wall);
    assert_eq!(place.refresh(schedule).await, Outcome::NotNeeded);
    place.clock.pass(300);
    assert_eq!(place.due().await, Outcome::Refreshed(2));
}

// A provider in trouble

const SEVEN: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

async fn open_breaker() -> Place {
    let place = Place::new(&SEVEN, Kind::RefreshToken).await;
    place.import_all().await;
    place.server.always(|_| Deed::json(503, ""));
    for name in &SEVEN[..5] {
        let outcome = place.refresh_of(name, Cause::Due).await;
        assert_eq!(reason(&outcome), Some(Reason::ServerError));
    }
    place
}

#[tokio::test]
async fn five_failures_close_a_provider_to_all_until_one_probe_succeeds() {
    let place = open_breaker().await;
    for name in ["f", "g"] {
        let outcome = place.refresh_of(name, Cause::Due).await;
        assert!(matches!(outcome, Outcome::Postponed(_)), "{outcome:?}");
    }
    assert_eq!(place.server.count(), 5);

    place.clock.pass(12);
    let (release, held) = Deed::tokens(6).held();
    place.server.next(held);
    let probe = place.begin_of("f", Cause::Due);
    place.requests(6).await;
    let outcome = place.refresh_of("g", Cause::Due).await;
    assert!(matches!(outcome, Outcome::Postponed(_)), "{outcome:?}");
    assert_eq!(place.server.count(), 6, "one probe");
    release.send(()).unwrap();
    assert_eq!(probe.await.unwrap(), Outcome::Refreshed(2));

    place.server.always(|_| Deed::tokens(7));
    place.clock.pass(60);
    for name in SEVEN.iter().filter(|name| **name != "f") {
        assert_eq!(
            place.refresh_of(name, Cause::Due).await,
            Outcome::Refreshed(2),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_person_may_ask_a_provider_that_is_left_alone() {
    let place = open_breaker().await;
    place.server.next(Deed::tokens(6));
    assert_eq!(
        place.refresh_of("g", Cause::Forced).await,
        Outcome::Refreshed(2)
    );
    place.server.next(Deed::tokens(7));
    assert_eq!(
        place.refresh_of("f", Cause::Due).await,
        Outcome::Refreshed(2)
    );
}

#[tokio::test]
async fn what_sends_nothing_says_nothing_about_a_provider() {
    let place = Place::new(
        &[&SEVEN[..], &["never-had-a-token"]].concat(),
        Kind::RefreshToken,
    )
    .await;
    for name in SEVEN {
        place.import_to(name, "refresh-0").await.unwrap();
    }
    place.server.always(|_| Deed::json(503, ""));
    for name in &SEVEN[..4] {
        place.refresh_of(name, Cause::Due).await;
    }
    let outcome = place.refresh_of("never-had-a-token", Cause::Forced).await;
    assert_eq!(reason(&outcome), Some(Reason::NeedsLogin));
    place.refresh_of("e", Cause::Due).await;
    let outcome = place.refresh_of("f", Cause::Due).await;
    assert!(matches!(outcome, Outcome::Postponed(_)), "{outcome:?}");
    assert_eq!(place.server.count(), 5);
}

#[tokio::test]
async fn retry_after_is_kept_in_both_forms() {
    let place = Place::with_one().await;
    let at = place.clock.now().wall + TimeDelta::seconds(120);
    let date = at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for value in ["120".to_owned(), date] {
        let place = Place::with_one().await;
        place
            .server
            .next(Deed::json(429, "").with_header("retry-after", &value));
        let outcome = place.due().await;
        assert_eq!(reason(&outcome), Some(Reason::RateLimited));
        let wait = retry_in(&outcome).unwrap();
        assert!((110..=120).contains(&wait.as_secs()), "{value}: {wait:?}");
        place.clock.pass(100);
        assert_eq!(place.due().await, Outcome::NotNeeded);
        place.clock.pass(20);
        assert_eq!(place.due().await, Outcome::Refreshed(2));
    }
}

// The end of the service

#[tokio::test]
async fn a_stop_while_waiting_for_a_place_sends_nothing() {
    let place = Place::new(&SEVEN, Kind::RefreshToken).await;
    place.import_all().await;
    let (release, held): (Vec<_>, Vec<_>) = (0..IN_FLIGHT).map(|_| Deed::tokens(1).held()).unzip();
    held.into_iter().for_each(|deed| place.server.next(deed));
    let running: Vec<_> = SEVEN[..IN_FLIGHT]
        .iter()
        .map(|name| place.begin_of(name, Cause::Due))
        .collect();
    place.requests(IN_FLIGHT).await;
    let waiting = place.begin_of("g", Cause::Due);
    place
        .eventually("it waits", || place.member("g").is_refreshing())
        .await;
    place.refresher.stop.cancel();
    assert_eq!(waiting.await.unwrap(), Outcome::Stopped);
    drop(release);
    for refresh in running {
        assert_eq!(refresh.await.unwrap(), Outcome::Refreshed(2));
    }
    assert_eq!(place.server.count(), IN_FLIGHT);
}

#[tokio::test]
async fn a_stop_lets_an_exchange_end_and_its_tokens_be_saved() {
    let place = Place::with_one().await;
    let (release, held) = Deed::tokens(1).held();
    place.server.next(held);
    place.store.fail("save", 1);
    let refresh = place.begin(Cause::Due);
    place.requests(1).await;
    place.refresher.stop.cancel();
    place.refresher.tasks.close();
    release.send(()).unwrap();
    place.refresher.tasks.wait().await;
    assert_eq!(token(&place.stored().await), "refresh-1");
    assert_eq!(refresh.await.unwrap(), Outcome::Refreshed(2));
    assert_eq!(place.refresh(Cause::Forced).await, Outcome::Stopped);
}

// The job that looks when what is due

#[tokio::test]
async fn the_job_wakes_for_an_import_and_then_sleeps() {
    let place = Place::new(&["one"], Kind::RefreshToken).await;
    let job = place.job();
    let soon = Duration::from_secs(10);
    // A credential that never had a token: nothing to send, so nothing to wake for.
    let wake = tokio::time::timeout(Duration::from_millis(50), job.wake());
    assert!(wake.await.is_err(), "pending wakes nobody");

    place.import("refresh-0").await.unwrap();
    tokio::time::timeout(soon, job.wake()).await.unwrap();
    job.run(&due_run()).await.unwrap();
    assert_eq!(place.version(), 2);
    let wake = tokio::time::timeout(Duration::from_millis(50), job.wake());
    assert!(wake.await.is_err(), "a fresh token wakes nobody");
}

#[tokio::test]
async fn the_job_wakes_for_a_replay() {
    let place = Place::with_one().await;
    let job = place.job();
    place.server.next(Deed::close());
    job.wake().await;
    job.run(&due_run()).await.unwrap_err();
    let soon = Duration::from_secs(10);
    tokio::time::timeout(soon, job.wake()).await.unwrap();
    job.run(&due_run()).await.unwrap();
    assert_eq!(place.server.spent(), ["refresh-0", "refresh-0"]);
    assert_eq!(place.version(), 2);
}

#[tokio::test]
async fn no_wake_is_missed_among_many_changes() {
    let names: Vec<String> = (0..100)
        .map(|number| format!("credential-{number}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = Place::new(&names, Kind::RefreshToken).await;
    let job = Arc::new(place.job());
    let looks = tokio::spawn(async move {
        loop {
            job.wake().await;
            let job = job.clone();
            tokio::spawn(async move { job.run(&due_run()).await });
        }
    });
    join_all(names.iter().map(|name| place.import_to(name, "refresh-0"))).await;
    let all = || {
        place
            .refresher
            .fleet
            .iter()
            .all(|member| member.view().credential.version >= 2)
    };
    place.eventually("each is refreshed", all).await;
    looks.abort();
    assert_eq!(place.server.count(), names.len());
}

#[tokio::test]
async fn a_manual_run_is_no_storm() {
    let place = open_breaker().await;
    let manual = Run {
        trigger: Trigger::Manual,
        ..due_run()
    };
    place.job().run(&manual).await.unwrap();
    assert_eq!(place.server.count(), 5);
}

fn due_run() -> Run {
    Run {
        job: "token-refresh".parse().unwrap(),
        trigger: Trigger::Due,
        scheduled_at: DateTime::from_timestamp(1_763_900_000, 0).unwrap(),
        attempt: 0,
        cancel: CancellationToken::new(),
    }
}

// Days on end: how much is asked of a provider

/// Goes from one due refresh to the next until so many hours are over.
async fn live_for(place: &Place, hours: i64) {
    let end = place.clock.now().uptime + TimeDelta::hours(hours);
    loop {
        let now = place.clock.now();
        let members = place.refresher.fleet.iter();
        let waits = members.filter_map(|member| member.next(now).wait);
        let wait = waits.min().unwrap_or(TimeDelta::hours(1));
        if now.uptime + wait >= end {
            return;
        }
        place.clock.pass_exactly(wait);
        join_all(
            place
                .refresher
                .fleet
                .iter()
                .map(|member| place.refresher.refresh(member, Cause::Due)),
        )
        .await;
    }
}

#[tokio::test]
async fn a_dead_provider_is_asked_once_a_minute_for_all_of_its_credentials() {
    let place = Place::new(&SEVEN, Kind::RefreshToken).await;
    place.import_all().await;
    place.server.always(|_| Deed::json(503, ""));
    live_for(&place, 6).await;
    let count = place.server.count();
    assert!(
        (150..=6 * 60 + 20).contains(&count),
        "{count} requests in 6 hours"
    );
}

#[tokio::test]
async fn a_misconfigured_client_is_tried_about_thirty_times_a_day() {
    let place = Place::with_one().await;
    place.server.always(|_| Deed::error(401, "invalid_client"));
    live_for(&place, 3 * 24).await;
    let count = place.server.count();
    assert!(
        (3 * 24..=3 * 48 + 5).contains(&count),
        "{count} requests in 3 days"
    );
}

#[tokio::test]
async fn a_dead_grant_is_tried_once() {
    let place = Place::with_one().await;
    place.server.always(|_| Deed::error(400, "invalid_grant"));
    live_for(&place, 30 * 24).await;
    assert_eq!(place.server.count(), 1);
}

#[tokio::test]
async fn a_healthy_one_hour_token_is_refreshed_every_forty_minutes() {
    let place = Place::with_one().await;
    live_for(&place, 24).await;
    let count = place.server.count();
    // 36 and the first, and a few for the jitter that makes it earlier.
    assert!((36..=41).contains(&count), "{count} requests in a day");
    let spent: std::collections::BTreeSet<_> = place.server.spent().into_iter().collect();
    assert_eq!(spent.len(), count, "each refresh token is spent once");
}

// What the tests stand on

const HISTORY: History = History {
    runs: 10,
    failed_runs: 10,
};
const IN_FLIGHT: usize = 3;

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    RefreshToken,
    /// A refresh token too, at a provider that gets little time to answer.
    Impatient(Duration),
    ClientCredentials,
    /// A grant whose first request panics.
    Panics,
}

/// A service in a folder of its own, before its own token endpoint.
pub(crate) struct Place {
    folder: Arc<tempfile::TempDir>,
    pub(crate) server: Arc<FakeServer>,
    names: Vec<String>,
    kind: Kind,
    pub(crate) clock: Arc<Hands>,
    store: Arc<Flaky>,
    refresher: Arc<Refresher>,
}

impl Place {
    pub(crate) async fn new(names: &[&str], kind: Kind) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let server = Arc::new(FakeServer::start());
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let start = DateTime::from_timestamp(1_763_900_000, 0).unwrap();
        let url = server.url("/token").parse().unwrap();
        Self::open(folder, server, url, names, kind, start).await
    }

    /// With one credential, whose refresh token has just been imported.
    async fn with_one() -> Self {
        let place = Self::new(&["one"], Kind::RefreshToken).await;
        place.import("refresh-0").await.unwrap();
        place
    }

    async fn open(
        folder: Arc<tempfile::TempDir>,
        server: Arc<FakeServer>,
        url: url::Url,
        names: Vec<String>,
        kind: Kind,
        start: Timestamp,
    ) -> Self {
        let cipher = Cipher::from_base64(&Secret::new(format!("{}=", "A".repeat(43)))).unwrap();
        let path = folder.path().join("perennial.db");
        let store = SqliteStore::open(&path, cipher, HISTORY).await.unwrap();
        let store = Arc::new(Flaky {
            store,
            failures: Mutex::default(),
            saving: tokio::sync::Mutex::default(),
            probes: AtomicU32::new(0),
        });
        let clock = Arc::new(Hands {
            start,
            origin: Instant::now(),
            ahead: Mutex::default(),
        });
        // A busy machine needs seconds for what is otherwise done at once.
        let timeout = match kind {
            Kind::Impatient(timeout) => timeout,
            _ => Duration::from_secs(30),
        };
        let endpoint = TokenEndpoint {
            location: Location::Given(url),
            client: Client {
                id: "client".into(),
                secret: None,
                auth: ClientAuth::None,
            },
            params: BTreeMap::new(),
            needs_login_errors: Vec::new(),
            default_expires_in: None,
            timeout,
            http: oauth::http_client(timeout).unwrap(),
            clock: clock.clone(),
        };
        let provider = Provider::new("acme".parse().unwrap(), endpoint, timeout, IN_FLIGHT);
        let provider = Arc::new(provider);
        let mut records: BTreeMap<Name, Record> = store
            .load()
            .await
            .unwrap()
            .into_iter()
            .map(|record| (record.name.clone(), record))
            .collect();
        let members = names.iter().map(|name| {
            let name: Name = name.parse().unwrap();
            let rules = Rules::default();
            let scopes = Vec::new();
            let grant: Box<dyn Grant> = match kind {
                Kind::RefreshToken | Kind::Impatient(_) => Box::new(RefreshToken { scopes }),
                Kind::ClientCredentials => Box::new(ClientCredentials { scopes }),
                Kind::Panics => Box::new(PanicsFirst::default()),
            };
            let credential = records
                .remove(&name)
                .map_or_else(Credential::pending, |record| {
                    record.into_credential(&provider.name, &*grant, &rules, clock.now())
                });
            let (params, sinks, schedules) = Default::default();
            let write_back = folder.path().join(name.as_str());
            Member::new(
                name,
                provider.clone(),
                grant,
                params,
                rules,
                sinks,
                Some(write_back),
                schedules,
                credential,
            )
        });
        let refresher = Arc::new(Refresher {
            fleet: Arc::new(Fleet::new(members)),
            store: store.clone(),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new()),
            owner: "this process".into(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        Self {
            folder,
            server,
            names,
            kind,
            clock,
            store,
            refresher,
        }
    }

    /// The same after a restart.
    async fn reopen(self) -> Self {
        let url = self.server.url("/token").parse().unwrap();
        self.reopen_at(url).await
    }

    async fn reopen_at(self, url: url::Url) -> Self {
        self.store.close().await;
        let start = self.clock.now().wall;
        Self::open(self.folder, self.server, url, self.names, self.kind, start).await
    }

    fn member(&self, name: &str) -> &Arc<Member> {
        self.refresher.fleet.get(name).unwrap()
    }

    pub(crate) fn one(&self) -> &Arc<Member> {
        self.member("one")
    }

    fn credential(&self) -> Credential {
        self.one().view().credential.clone()
    }

    fn version(&self) -> u64 {
        self.credential().version
    }

    pub(crate) fn state(&self) -> State {
        self.one().state(self.clock.now())
    }

    async fn stored(&self) -> Record {
        self.store.read(&self.one().name).await.unwrap().unwrap()
    }

    pub(crate) async fn due(&self) -> Outcome {
        self.refresh(Cause::Due).await
    }

    async fn refresh(&self, cause: Cause) -> Outcome {
        self.refresh_of("one", cause).await
    }

    async fn refresh_of(&self, name: &str, cause: Cause) -> Outcome {
        self.refresher.refresh(self.member(name), cause).await
    }

    fn begin(&self, cause: Cause) -> tokio::task::JoinHandle<Outcome> {
        self.begin_of("one", cause)
    }

    fn begin_of(&self, name: &str, cause: Cause) -> tokio::task::JoinHandle<Outcome> {
        let (refresher, member) = (self.refresher.clone(), self.member(name).clone());
        tokio::spawn(async move { refresher.refresh(&member, cause).await })
    }

    pub(crate) async fn import(&self, token: &str) -> Result<u64, ImportError> {
        self.import_to("one", token).await
    }

    async fn import_to(&self, name: &str, token: &str) -> Result<u64, ImportError> {
        self.refresher
            .import(self.member(name), Secret::new(token))
            .await
    }

    async fn import_all(&self) {
        for name in &self.names {
            self.import_to(name, "refresh-0").await.unwrap();
        }
    }

    fn job(&self) -> TokenRefresh {
        let settings = Settings {
            credentials: vec!["*".into()],
        };
        TokenRefresh::new(&settings, self.refresher.clone())
    }

    async fn requests(&self, count: usize) {
        self.eventually("the requests have come", || self.server.count() == count)
            .await;
    }

    async fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "waited in vain until {what}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Failed { reason, .. } => Some(*reason),
        _ => None,
    }
}

fn retry_in(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Failed { retry_in, .. } => *retry_in,
        _ => None,
    }
}

fn token(record: &Record) -> &str {
    let tokens = record.tokens.as_ref().unwrap();
    tokens.refresh_token.as_ref().unwrap().expose()
}

/// Both clocks, moved by hand.
pub(crate) struct Hands {
    start: Timestamp,
    origin: Instant,
    ahead: Mutex<TimeDelta>,
}

impl Hands {
    fn pass(&self, seconds: i64) {
        self.pass_exactly(TimeDelta::seconds(seconds));
    }

    pub(crate) fn pass_exactly(&self, time: TimeDelta) {
        *self.ahead.lock().unwrap() += time;
    }
}

impl Clock for Hands {
    fn now(&self) -> Moment {
        let real = TimeDelta::from_std(self.origin.elapsed()).unwrap();
        let uptime = real + *self.ahead.lock().unwrap();
        Moment {
            wall: self.start + uptime,
            uptime,
        }
    }
}

/// See [`Kind::Panics`].
#[derive(Default)]
struct PanicsFirst {
    has: AtomicBool,
}

impl Grant for PanicsFirst {
    fn request(&self, current: &Credential) -> Result<Form, GrantError> {
        assert!(self.has.swap(true, Ordering::SeqCst), "on purpose");
        RefreshToken { scopes: Vec::new() }.request(current)
    }

    fn spends_refresh_token(&self) -> bool {
        true
    }
}

/// The real store, which fails when it is told to.
struct Flaky {
    store: SqliteStore,
    failures: Mutex<BTreeMap<&'static str, u32>>,
    /// Who holds it makes every save and every probe hang.
    saving: tokio::sync::Mutex<()>,
    probes: AtomicU32,
}

impl Flaky {
    fn fail(&self, operation: &'static str, times: u32) {
        self.failures.lock().unwrap().insert(operation, times);
    }

    fn left(&self, operation: &'static str) -> u32 {
        self.failures
            .lock()
            .unwrap()
            .get(operation)
            .copied()
            .unwrap_or(0)
    }

    fn perhaps(&self, operation: &'static str) -> Result<(), StoreError> {
        match self.failures.lock().unwrap().get_mut(operation) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(StoreError::Unavailable("on purpose".into()))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Flaky {
    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        self.store.load().await
    }

    async fn read(&self, name: &Name) -> Result<Option<Record>, StoreError> {
        self.perhaps("read")?;
        self.store.read(name).await
    }

    async fn checkout(
        &self,
        name: &Name,
        version: u64,
        lease: &Lease,
    ) -> Result<Checkout, StoreError> {
        self.perhaps("checkout")?;
        self.store.checkout(name, version, lease).await
    }

    async fn save(
        &self,
        name: &Name,
        expected: u64,
        tokens: &TokenSet,
    ) -> Result<Saved, StoreError> {
        self.perhaps("save")?;
        let _saving = self.saving.lock().await;
        self.store.save(name, expected, tokens).await
    }

    async fn settle(
        &self,
        name: &Name,
        lease: &Lease,
        standing: &Standing,
        bury: Option<Fingerprint>,
    ) -> Result<(), StoreError> {
        self.store.settle(name, lease, standing, bury).await
    }

    async fn is_buried(&self, name: &Name, token: Fingerprint) -> Result<bool, StoreError> {
        self.store.is_buried(name, token).await
    }

    async fn record_run(&self, run: &RunRecord) -> Result<(), StoreError> {
        self.store.record_run(run).await
    }

    async fn runs(&self, job: &Name, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.store.runs(job, limit).await
    }

    async fn record_firing(&self, job: &Name, at: Timestamp) -> Result<(), StoreError> {
        self.store.record_firing(job, at).await
    }

    async fn last_firing(&self, job: &Name) -> Result<Option<Timestamp>, StoreError> {
        self.store.last_firing(job).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        self.perhaps("probe")?;
        let _saving = self.saving.lock().await;
        // Time that is moved does not wait for a real disk.
        Ok(())
    }

    async fn close(&self) {
        self.store.close().await;
    }
}
