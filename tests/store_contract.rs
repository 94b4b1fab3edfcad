//! The contract of a store: one test for each rule and each store.
//!
//! A new store says where it lives ([`Place`]) and gets a line in [`keep_the_contract`]. Rules look
//! at nothing but the trait `Store`. A restart is a store that was closed and opened again: to
//! the store, a process that died after a commit is the same thing.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta};
use perennial::{
    clock::Timestamp,
    credential::{LifetimeSource, Reason, Standing, TokenDetails, TokenSet, Trouble},
    name::Name,
    secret::Secret,
    store::{
        Checkout, Lease, Record, RunRecord, Saved, Store, StoreError,
        cipher::Cipher,
        sqlite::{History, SqliteStore},
    },
};
use tokio::task::JoinSet;

/// What each store is asked to keep of each job.
const HISTORY: History = History {
    runs: 3,
    failed_runs: 2,
};

/// Where a store of one kind lives. Each test has one of its own, empty at first.
#[async_trait]
trait Place: Sized + Sync {
    /// Makes the place, with nothing in it.
    fn new() -> Self;

    /// Opens the store, with what it kept when it was open before.
    async fn open(&self) -> Arc<dyn Store>;

    /// The store as two processes have it open. One that allows a single process gives the
    /// same handle twice: owners of leases are told apart all the same.
    async fn open_twice(&self) -> [Arc<dyn Store>; 2] {
        let store = self.open().await;
        [store.clone(), store]
    }
}

/// A folder with a SQLite store.
struct Sqlite(tempfile::TempDir);

#[async_trait]
impl Place for Sqlite {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> Arc<dyn Store> {
        let key = Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        let cipher = Cipher::from_base64(&key).unwrap();
        let path = self.0.path().join("perennial.db");
        Arc::new(SqliteStore::open(&path, cipher, HISTORY).await.unwrap())
    }
}

/// Makes a test of each rule for each store: only a macro can name tests. A rule that is missing in
/// the list is dead code, which the lints refuse.
macro_rules! keep_the_contract {
    (stores: { $($store:ident: $place:ty,)* } rules: $rules:tt) => {
        $(keep_the_contract!(@store $store $place, $rules);)*
    };
    (@store $store:ident $place:ty, { $($rule:ident,)* }) => {
        mod $store {
            use super::Place;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $rule() {
                    super::$rule(<$place>::new()).await;
                }
            )*
        }
    };
}

keep_the_contract! {
    stores: { sqlite: super::Sqlite, }
    rules: {
        a_checkout_makes_what_is_not_known,
        names_come_in_order,
        a_save_grows_the_version_by_one,
        the_first_save_needs_no_checkout,
        a_conflicting_save_changes_nothing,
        a_save_closes_the_intent_gives_the_lease_back_and_clears_the_standing,
        a_settle_records_the_standing_and_gives_the_lease_back,
        a_doubtful_settle_keeps_the_intent_open,
        a_checkout_without_an_end_is_doubtful_after_a_restart,
        without_a_refresh_token_nothing_is_intended,
        a_checkout_with_an_old_version_changes_nothing,
        a_held_lease_is_busy_until_it_expires,
        the_holder_of_a_lease_gets_it_again,
        of_many_checkouts_at_once_one_is_granted,
        a_settle_by_another_changes_nothing,
        a_save_needs_the_version_and_not_the_lease,
        a_buried_token_is_recognised,
        a_token_is_buried_for_one_credential,
        the_history_keeps_the_last_good_and_failed_runs_of_each_job,
        the_last_firing_of_each_job_is_remembered,
        tokens_are_kept_byte_for_byte,
        many_saves_at_once_are_all_durable,
        of_two_saves_of_one_version_one_wins,
        a_store_that_takes_writes_proves_it,
        a_closed_store_is_unavailable_and_can_be_opened_again,
    }
}

async fn a_checkout_makes_what_is_not_known(place: impl Place) {
    let store = place.open().await;
    assert_eq!(store.read(&name("one")).await.unwrap(), None);
    assert_eq!(store.load().await.unwrap(), []);

    let new = unknown("one");
    let checkout = store.checkout(&name("one"), 0, &lease("a", 0)).await;
    assert_eq!(checkout.unwrap(), Checkout::Granted { buried: false });
    let store = restart(&place, store).await;
    assert_eq!(store.read(&name("one")).await.unwrap(), Some(new.clone()));
    assert_eq!(store.load().await.unwrap(), [new]);
}

async fn names_come_in_order(place: impl Place) {
    let store = place.open().await;
    let in_order = ["a", "a-b", "a.b", "a0", "a_b", "b", "z"];
    for text in ["b", "a_b", "z", "a0", "a", "a.b", "a-b"] {
        save(&*store, text, 0, &tokens("t")).await;
    }
    let loaded = store.load().await.unwrap();
    let loaded: Vec<_> = loaded.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(loaded, in_order);
}

async fn a_save_grows_the_version_by_one(place: impl Place) {
    let mut store = place.open().await;
    for version in 0..3 {
        let next = tokens(&format!("t{version}"));
        let before = granted(&*store, "one", &lease("a", 0)).await.0;
        assert_eq!(before.version, version);
        assert_eq!(
            store.save(&name("one"), version, &next).await.unwrap(),
            Saved::Version(version + 1)
        );
        store = restart(&place, store).await;
        let record = record(&*store, "one").await;
        assert_eq!(record.version, version + 1);
        assert_eq!(record.tokens, Some(next));
    }
}

async fn the_first_save_needs_no_checkout(place: impl Place) {
    let store = place.open().await;
    save(&*store, "imported", 0, &tokens("t")).await;
    let store = restart(&place, store).await;
    let record = record(&*store, "imported").await;
    assert_eq!(record.version, 1);
    assert_eq!(record.tokens, Some(tokens("t")));
    assert_eq!(record.standing, Standing::default());
}

async fn a_conflicting_save_changes_nothing(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("first")).await;
    save(&*store, "one", 1, &tokens("second")).await;
    settle(&*store, "one", &lease("a", 0), &troubled()).await;
    granted(&*store, "one", &lease("a", 10)).await;

    for wrong in [0, 1, 3] {
        let saved = store.save(&name("one"), wrong, &tokens("lost")).await;
        assert_eq!(saved.unwrap(), Saved::Conflict, "expected {wrong}");
    }
    let saved = store.save(&name("unknown"), 1, &tokens("lost")).await;
    assert_eq!(saved.unwrap(), Saved::Conflict);

    assert!(is_busy(&*store, "one", &lease("b", 11)).await, "the lease");
    let store = restart(&place, store).await;
    let record = record(&*store, "one").await;
    assert_eq!(record.version, 2);
    assert_eq!(record.tokens, Some(tokens("second")));
    assert_eq!(record.standing.trouble, troubled().trouble);
    assert!(record.standing.doubtful, "the intent is still open");
    assert_eq!(store.read(&name("unknown")).await.unwrap(), None);
}

async fn a_save_closes_the_intent_gives_the_lease_back_and_clears_the_standing(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("first")).await;
    settle(&*store, "one", &lease("a", 0), &doubtful()).await;
    granted(&*store, "one", &lease("a", 1)).await;
    save(&*store, "one", 1, &tokens("second")).await;

    let (before, _) = granted(&*store, "one", &lease("b", 2)).await;
    assert_eq!(before.standing, Standing::default());
    save(&*store, "one", 2, &tokens("third")).await;
    let store = restart(&place, store).await;
    assert_eq!(record(&*store, "one").await.standing, Standing::default());
}

async fn a_settle_records_the_standing_and_gives_the_lease_back(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("first")).await;
    settle(&*store, "one", &lease("a", 0), &troubled()).await;

    let before = granted(&*store, "one", &lease("b", 1)).await.0;
    assert_eq!(before.standing, troubled());
    let mut worse = troubled();
    worse.trouble.as_mut().unwrap().failures += 1;
    store
        .settle(&name("one"), &lease("b", 1), &worse, None)
        .await
        .unwrap();
    let store = restart(&place, store).await;
    let record = record(&*store, "one").await;
    assert_eq!(record.standing, worse);
    assert_eq!(record.version, 1);
    assert_eq!(record.tokens, Some(tokens("first")));
}

async fn a_doubtful_settle_keeps_the_intent_open(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("first")).await;
    settle(&*store, "one", &lease("a", 0), &doubtful()).await;

    let store = restart(&place, store).await;
    assert_eq!(record(&*store, "one").await.standing, doubtful());
    let (before, _) = granted(&*store, "one", &lease("b", 1)).await;
    assert_eq!(before.standing, doubtful(), "the lease was given back");

    // A sure answer ends the doubt.
    store
        .settle(&name("one"), &lease("b", 1), &troubled(), None)
        .await
        .unwrap();
    let store = restart(&place, store).await;
    assert_eq!(record(&*store, "one").await.standing, troubled());
}

async fn a_checkout_without_an_end_is_doubtful_after_a_restart(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("first")).await;
    let before = granted(&*store, "one", &lease("dead", 0)).await.0;
    assert!(!before.standing.doubtful, "the record as it was before");

    let store = restart(&place, store).await;
    let found = record(&*store, "one").await;
    assert!(found.standing.doubtful);
    assert_eq!(found.tokens, Some(tokens("first")), "still to be replayed");
    assert_eq!(store.load().await.unwrap(), std::slice::from_ref(&found));
    // Whether the lease of the dead is gone at once or expires is the store's own affair.
    let before = granted(&*store, "one", &lease("b", 60)).await.0;
    assert_eq!(before, found);
}

async fn without_a_refresh_token_nothing_is_intended(place: impl Place) {
    let store = place.open().await;
    let mut machine = tokens("first");
    machine.refresh_token = None;
    save(&*store, "machine", 0, &machine).await;
    granted(&*store, "machine", &lease("dead", 0)).await;
    granted(&*store, "new", &lease("dead", 0)).await;

    let store = restart(&place, store).await;
    for record in store.load().await.unwrap() {
        let name = record.name;
        assert!(!record.standing.doubtful, "{name} has nothing to spend");
    }
}

async fn a_checkout_with_an_old_version_changes_nothing(place: impl Place) {
    let [one, other] = place.open_twice().await;
    save(&*one, "one", 0, &tokens("first")).await;
    save(&*one, "one", 1, &tokens("second")).await;

    let newer = record(&*one, "one").await;
    let checkout = other.checkout(&name("one"), 1, &lease("b", 0)).await;
    assert_eq!(checkout.unwrap(), Checkout::Newer(Box::new(newer.clone())));
    assert_eq!(record(&*one, "one").await, newer, "nothing is intended");
    assert!(!is_busy(&*one, "one", &lease("a", 0)).await, "nor leased");

    // While somebody refreshes it, his version is soon an old one as well.
    let checkout = other.checkout(&name("one"), 1, &lease("b", 1)).await;
    let busy = matches!(checkout.unwrap(), Checkout::Busy { .. });
    assert!(busy, "the lease comes first");
}

async fn a_held_lease_is_busy_until_it_expires(place: impl Place) {
    let [one, other] = place.open_twice().await;
    save(&*one, "one", 0, &tokens("t")).await;
    granted(&*one, "one", &lease("a", 0)).await;

    let until = lease("a", 0).taken_at + lease("a", 0).lasts;
    for at in [0, 29] {
        let checkout = other.checkout(&name("one"), 1, &lease("b", at)).await;
        assert_eq!(checkout.unwrap(), Checkout::Busy { until }, "{at} s later");
    }
    granted(&*other, "two", &lease("b", 0)).await;
    let (before, _) = granted(&*other, "one", &lease("b", 30)).await;
    assert!(before.standing.doubtful, "a may have sent it and died");
    assert!(is_busy(&*one, "one", &lease("a", 31)).await);
}

async fn the_holder_of_a_lease_gets_it_again(place: impl Place) {
    let store = place.open().await;
    granted(&*store, "one", &lease("a", 0)).await;
    granted(&*store, "one", &lease("a", 20)).await;
    let until = start() + TimeDelta::seconds(50);
    let checkout = store.checkout(&name("one"), 0, &lease("b", 40)).await;
    assert_eq!(checkout.unwrap(), Checkout::Busy { until });
}

async fn of_many_checkouts_at_once_one_is_granted(place: impl Place) {
    let handles = place.open_twice().await;
    let mut tasks = JoinSet::new();
    for (number, store) in (0..40).zip(handles.iter().cycle().cloned()) {
        tasks.spawn(async move {
            let lease = lease(&format!("owner-{number}"), 0);
            is_busy(&*store, "one", &lease).await
        });
    }
    let busy = tasks.join_all().await;
    assert_eq!(busy.iter().filter(|busy| !**busy).count(), 1);
}

async fn a_settle_by_another_changes_nothing(place: impl Place) {
    let [one, other] = place.open_twice().await;
    save(&*one, "one", 0, &tokens("t")).await;
    let overslept = lease("a", 0);
    granted(&*one, "one", &overslept).await;
    granted(&*other, "one", &lease("b", 30)).await;
    let token = tokens("t").refresh_token.unwrap().fingerprint();
    one.settle(&name("one"), &overslept, &troubled(), Some(token))
        .await
        .unwrap();

    assert!(is_busy(&*one, "one", &lease("c", 31)).await, "b's lease");
    assert!(!one.is_buried(&name("one"), token).await.unwrap());
    let found = record(&*one, "one").await;
    assert_eq!(found.standing.trouble, None);
    assert!(found.standing.doubtful, "b's intent");

    // Nor does one who holds nothing, or of whom nobody has heard.
    one.settle(&name("unknown"), &overslept, &troubled(), Some(token))
        .await
        .unwrap();
    assert_eq!(one.load().await.unwrap(), [found]);
    assert!(!one.is_buried(&name("unknown"), token).await.unwrap());
}

async fn a_save_needs_the_version_and_not_the_lease(place: impl Place) {
    let [one, other] = place.open_twice().await;
    save(&*one, "one", 0, &tokens("first")).await;
    granted(&*one, "one", &lease("a", 0)).await;
    granted(&*other, "one", &lease("b", 30)).await;

    // The answer came late, but it came: these tokens are the only ones that work.
    save(&*one, "one", 1, &tokens("late")).await;
    let saved = other.save(&name("one"), 1, &tokens("second")).await;
    assert_eq!(saved.unwrap(), Saved::Conflict);
    other
        .settle(&name("one"), &lease("b", 30), &troubled(), None)
        .await
        .unwrap();
    let record = record(&*other, "one").await;
    assert_eq!(record.tokens, Some(tokens("late")));
    assert_eq!(record.standing, Standing::default());
}

async fn a_buried_token_is_recognised(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("dead")).await;
    let dead = tokens("dead").refresh_token.unwrap().fingerprint();
    assert!(!granted(&*store, "one", &lease("a", 0)).await.1);
    for _ in 0..2 {
        store
            .settle(&name("one"), &lease("a", 0), &troubled(), Some(dead))
            .await
            .unwrap();
        let (before, buried) = granted(&*store, "one", &lease("a", 0)).await;
        assert!(buried);
        assert_eq!(before.tokens, Some(tokens("dead")), "it is not erased");
    }

    let store = restart(&place, store).await;
    assert!(store.is_buried(&name("one"), dead).await.unwrap());
    let (before, buried) = granted(&*store, "one", &lease("a", 60)).await;
    assert!(buried);
    assert_eq!(before.standing, troubled(), "it was not going to be sent");

    save(&*store, "one", 1, &tokens("alive")).await;
    assert!(!granted(&*store, "one", &lease("a", 60)).await.1);
    assert!(store.is_buried(&name("one"), dead).await.unwrap());
    let alive = tokens("alive").refresh_token.unwrap().fingerprint();
    assert!(!store.is_buried(&name("one"), alive).await.unwrap());
}

async fn a_token_is_buried_for_one_credential(place: impl Place) {
    let store = place.open().await;
    let shared = tokens("shared").refresh_token.unwrap().fingerprint();
    save(&*store, "one", 0, &tokens("shared")).await;
    save(&*store, "other", 0, &tokens("shared")).await;
    granted(&*store, "one", &lease("a", 0)).await;
    store
        .settle(&name("one"), &lease("a", 0), &troubled(), Some(shared))
        .await
        .unwrap();
    assert!(store.is_buried(&name("one"), shared).await.unwrap());
    assert!(!store.is_buried(&name("other"), shared).await.unwrap());
    assert!(!granted(&*store, "other", &lease("a", 0)).await.1);
}

async fn the_history_keeps_the_last_good_and_failed_runs_of_each_job(place: impl Place) {
    let store = place.open().await;
    // Failures are kept although many good runs came after them, and the other way round.
    let outcomes = [
        "failure", "failure", "timeout", "success", "success", "success", "success", "success",
    ];
    for (number, outcome) in outcomes.iter().enumerate() {
        store
            .record_run(&run("job", number, outcome))
            .await
            .unwrap();
    }
    store.record_run(&run("other", 9, "failure")).await.unwrap();

    let store = restart(&place, store).await;
    let kept = [7, 6, 5, 2, 1].map(|number| run("job", number, outcomes[number]));
    assert_eq!(store.runs(&name("job"), 100).await.unwrap(), kept);
    assert_eq!(store.runs(&name("job"), 2).await.unwrap(), kept[..2]);
    assert_eq!(
        store.runs(&name("other"), 100).await.unwrap(),
        [run("other", 9, "failure")]
    );
    assert_eq!(store.runs(&name("unknown"), 100).await.unwrap(), []);
}

async fn the_last_firing_of_each_job_is_remembered(place: impl Place) {
    let store = place.open().await;
    assert_eq!(store.last_firing(&name("job")).await.unwrap(), None);
    for seconds in [0, 60] {
        let at = start() + TimeDelta::seconds(seconds);
        store.record_firing(&name("job"), at).await.unwrap();
    }
    store.record_firing(&name("other"), start()).await.unwrap();

    let store = restart(&place, store).await;
    let last = start() + TimeDelta::seconds(60);
    assert_eq!(store.last_firing(&name("job")).await.unwrap(), Some(last));
    assert_eq!(
        store.last_firing(&name("other")).await.unwrap(),
        Some(start())
    );
}

async fn tokens_are_kept_byte_for_byte(place: impl Place) {
    let store = place.open().await;
    let full = TokenSet {
        access_token: Secret::new("x".repeat(64 * 1024)),
        refresh_token: Some(Secret::new("\"quoted\\ \u{0} \u{1f511} ключ e\u{301}\r\n ")),
        details: TokenDetails {
            issued_at: DateTime::from_timestamp(1_763_900_000, 123_456_789).unwrap(),
            lifetime: Duration::new(86_399, 5),
            lifetime_source: LifetimeSource::JwtExp,
            token_type: "bEaReR".into(),
            scope: Some(String::new()),
            refresh_in: Some(Duration::from_millis(1)),
            refresh_token_expires_at: Some(DateTime::from_timestamp(4_000_000_000, 0).unwrap()),
            refresh_token_life: None,
            provider: Some(name("acme")),
        },
    };
    let bare = TokenSet {
        access_token: Secret::new(""),
        refresh_token: None,
        details: TokenDetails {
            lifetime: Duration::ZERO,
            lifetime_source: LifetimeSource::Imported,
            token_type: String::new(),
            scope: None,
            refresh_in: None,
            refresh_token_expires_at: None,
            refresh_token_life: None,
            ..full.details.clone()
        },
    };
    save(&*store, "full", 0, &full).await;
    save(&*store, "bare", 0, &bare).await;
    let store = restart(&place, store).await;
    assert_eq!(record(&*store, "full").await.tokens, Some(full));
    assert_eq!(record(&*store, "bare").await.tokens, Some(bare));
}

async fn many_saves_at_once_are_all_durable(place: impl Place) {
    let store = place.open().await;
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let store = store.clone();
        tasks.spawn(async move {
            let name = format!("credential-{number}");
            granted(&*store, &name, &lease("a", 0)).await;
            save(&*store, &name, 0, &tokens(&name)).await;
        });
    }
    tasks.join_all().await;

    let store = restart(&place, store).await;
    let records = store.load().await.unwrap();
    let names: HashSet<_> = records.iter().map(|record| &record.name).collect();
    assert_eq!(names.len(), 200);
    for record in &records {
        assert_eq!(record.version, 1, "{}", record.name);
        assert_eq!(record.tokens, Some(tokens(record.name.as_str())));
        assert_eq!(record.standing, Standing::default(), "{}", record.name);
    }
}

async fn of_two_saves_of_one_version_one_wins(place: impl Place) {
    let [one, other] = place.open_twice().await;
    for version in 0..20 {
        let subject = name("one");
        let (left, right) = (tokens("left"), tokens("right"));
        let (left_saved, right_saved) = tokio::join!(
            one.save(&subject, version, &left),
            other.save(&subject, version, &right),
        );
        let won = Saved::Version(version + 1);
        let winner = match (left_saved.unwrap(), right_saved.unwrap()) {
            (saved, Saved::Conflict) if saved == won => left,
            (Saved::Conflict, saved) if saved == won => right,
            both => panic!("version {version}: {both:?}"),
        };
        assert_eq!(record(&*one, "one").await.tokens, Some(winner));
    }
}

async fn a_store_that_takes_writes_proves_it(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("t")).await;
    let before = store.load().await.unwrap();
    store.probe().await.unwrap();
    store.probe().await.unwrap();
    assert_eq!(store.load().await.unwrap(), before);
}

async fn a_closed_store_is_unavailable_and_can_be_opened_again(place: impl Place) {
    let store = place.open().await;
    save(&*store, "one", 0, &tokens("t")).await;
    store.close().await;
    store.close().await;

    fn refused<T>(method: &str, result: Result<T, StoreError>) {
        match result {
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{method}: {error:?}"),
            Ok(_) => panic!("{method} works on a closed store"),
        }
    }
    let one = name("one");
    let fingerprint = Secret::new("t").fingerprint();
    refused("load", store.load().await);
    refused("read", store.read(&one).await);
    refused("checkout", store.checkout(&one, 1, &lease("a", 0)).await);
    refused("save", store.save(&one, 1, &tokens("lost")).await);
    let settled = store.settle(&one, &lease("a", 0), &troubled(), None).await;
    refused("settle", settled);
    refused("is_buried", store.is_buried(&one, fingerprint).await);
    refused(
        "record_run",
        store.record_run(&run("j", 0, "success")).await,
    );
    refused("runs", store.runs(&one, 1).await);
    refused("record_firing", store.record_firing(&one, start()).await);
    refused("last_firing", store.last_firing(&one).await);
    refused("probe", store.probe().await);

    // The closed handle is still there, as it is in a service that is being stopped.
    let again = place.open().await;
    assert_eq!(record(&*again, "one").await.version, 1);
}

async fn restart(place: &impl Place, store: Arc<dyn Store>) -> Arc<dyn Store> {
    store.close().await;
    place.open().await
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn start() -> Timestamp {
    DateTime::from_timestamp(1_763_900_000, 0).unwrap()
}

/// A lease of 30 s, taken `seconds` after the start.
fn lease(owner: &str, seconds: i64) -> Lease {
    Lease {
        owner: owner.into(),
        taken_at: start() + TimeDelta::seconds(seconds),
        lasts: Duration::from_secs(30),
    }
}

fn tokens(text: &str) -> TokenSet {
    TokenSet {
        access_token: Secret::new(format!("access {text}")),
        refresh_token: Some(Secret::new(format!("refresh {text}"))),
        details: TokenDetails {
            issued_at: start(),
            lifetime: Duration::from_secs(3_600),
            lifetime_source: LifetimeSource::Answer,
            token_type: "Bearer".into(),
            scope: Some("profile offline_access".into()),
            refresh_in: None,
            refresh_token_expires_at: None,
            refresh_token_life: None,
            provider: None,
        },
    }
}

/// The server answered, and it said no.
fn troubled() -> Standing {
    Standing {
        trouble: Some(Trouble {
            reason: Reason::NeedsLogin,
            detail: "invalid_grant".into(),
            failures: 3,
            failed_at: start(),
            wait: None,
        }),
        doubtful: false,
    }
}

/// The request was sent, and no answer came.
fn doubtful() -> Standing {
    Standing {
        trouble: Some(Trouble {
            reason: Reason::Timeout,
            detail: "timeout".into(),
            failures: 1,
            failed_at: start(),
            wait: Some(Duration::from_secs(10)),
        }),
        doubtful: true,
    }
}

fn run(job: &str, number: usize, outcome: &str) -> RunRecord {
    RunRecord {
        job: name(job),
        trigger: "schedule".into(),
        outcome: outcome.into(),
        started_at: start() + TimeDelta::seconds(number as i64),
        duration: Duration::from_millis(1_234),
        summary: format!("run {number}"),
        trace_id: number.is_multiple_of(2).then(|| format!("{number:032x}")),
    }
}

async fn record(store: &dyn Store, text: &str) -> Record {
    store.read(&name(text)).await.unwrap().unwrap()
}

async fn save(store: &dyn Store, text: &str, expected: u64, tokens: &TokenSet) {
    let saved = store.save(&name(text), expected, tokens).await.unwrap();
    assert_eq!(saved, Saved::Version(expected + 1), "{text}");
}

/// A credential that no store has heard of.
fn unknown(text: &str) -> Record {
    Record {
        name: name(text),
        version: 0,
        tokens: None,
        standing: Standing::default(),
        unreadable: false,
    }
}

/// Checks out, expecting the lease. Returns the record as it was before, and whether its refresh
/// token is buried.
async fn granted(store: &dyn Store, text: &str, lease: &Lease) -> (Record, bool) {
    let known = store.read(&name(text)).await.unwrap();
    let before = known.unwrap_or_else(|| unknown(text));
    let checkout = store.checkout(&name(text), before.version, lease).await;
    match checkout.unwrap() {
        Checkout::Granted { buried } => (before, buried),
        other => panic!("{text}: {other:?}"),
    }
}

async fn is_busy(store: &dyn Store, text: &str, lease: &Lease) -> bool {
    let checkout = store.checkout(&name(text), u64::MAX, lease).await.unwrap();
    matches!(checkout, Checkout::Busy { .. })
}

/// A whole attempt without new tokens.
async fn settle(store: &dyn Store, text: &str, lease: &Lease, standing: &Standing) {
    granted(store, text, lease).await;
    store
        .settle(&name(text), lease, standing, None)
        .await
        .unwrap();
}
