//! How many refreshes a second the whole path makes, beside loops that promise less: a bare one,
//! which sends the request, reads the answer and forgets it, and one that also saves the answer
//! durably, many in one commit.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use perennial::{app::App, oauth, refresh, secret::Secret};
use tokio::sync::{mpsc, oneshot};

use super::{bar, fleet::Fleet, token_server::TokenServer};

const CREDENTIALS: usize = 10_000;

pub fn run() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // In a task, as in the service: not on the thread that only waits for it.
    let compared = runtime.spawn(async {
        let (bare, grouped, path) = compare(Duration::ZERO, 64).await;
        let ratio = path.rate / bare.rate;
        bar(
            "refresh path of the bare loop",
            ratio,
            ratio >= 0.35,
            "at least 0.35",
        );
        let ratio = path.rate / grouped.rate;
        bar(
            "refresh path of the loop that saves",
            ratio,
            ratio >= 0.7,
            "at least 0.70",
        );
        bar(
            "CPU of one refresh, us",
            path.cpu,
            path.cpu <= 100.0,
            "at most 100",
        );
        let (bare, _, path) = compare(Duration::from_millis(50), 512).await;
        let ratio = path.rate / bare.rate;
        bar(
            "refresh path of the bare loop",
            ratio,
            ratio >= 0.9,
            "at least 0.90",
        );
    });
    runtime.block_on(compared).expect("no panic");
}

async fn compare(delay: Duration, in_flight: usize) -> (Pace, Pace, Pace) {
    println!("  {CREDENTIALS} credentials, {in_flight} in flight, {delay:?} at the server");
    let server = TokenServer::start(delay);
    let url = format!("http://{}/token", server.address);
    // The least disturbed of three rounds of each.
    let (mut bare, mut grouped, mut path) = (Pace::WORST, Pace::WORST, Pace::WORST);
    for _ in 0..3 {
        bare = bare.or_better(bare_loop(&url, in_flight).await);
        grouped = grouped.or_better(loop_that_saves(&url, in_flight).await);
        path = path.or_better(refresh_path(&url, in_flight).await);
    }
    bare.print("bare loop of requests");
    grouped.print("the same, each saved in a group commit");
    path.print("refresh path");
    (bare, grouped, path)
}

/// How fast it went.
struct Pace {
    /// A second.
    rate: f64,
    /// Microseconds for each, of this process.
    cpu: f64,
}

impl Pace {
    async fn of(work: impl Future<Output = ()>) -> Self {
        let (started, cpu) = (Instant::now(), cpu_time());
        work.await;
        Self {
            rate: CREDENTIALS as f64 / started.elapsed().as_secs_f64(),
            cpu: (cpu_time() - cpu).as_micros() as f64 / CREDENTIALS as f64,
        }
    }

    const WORST: Self = Self {
        rate: 0.0,
        cpu: f64::INFINITY,
    };

    fn or_better(self, other: Self) -> Self {
        Self {
            rate: self.rate.max(other.rate),
            cpu: self.cpu.min(other.cpu),
        }
    }

    fn print(&self, what: &str) {
        println!(
            "    {what:<48}{:>9.0}/s {:>5.0} us of CPU each",
            self.rate, self.cpu
        );
    }
}

async fn exchange(http: &reqwest::Client, url: &str, number: usize) -> bytes::Bytes {
    let body = format!("grant_type=refresh_token&refresh_token=r{number}&client_id=bench");
    let answer = http.post(url).body(body).send().await.expect("an answer");
    let body = answer.bytes().await.expect("a body");
    let fields: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert!(fields["access_token"].is_string());
    body
}

async fn bare_loop(url: &str, in_flight: usize) -> Pace {
    let http = oauth::http_client(Duration::from_secs(30)).expect("an HTTP client");
    let requests = stream::iter(0..CREDENTIALS).for_each_concurrent(in_flight, async |number| {
        exchange(&http, url, number).await;
    });
    Pace::of(requests).await
}

/// No claim, no intent, no encryption, nothing to observe.
async fn loop_that_saves(url: &str, in_flight: usize) -> Pace {
    let folder = tempfile::tempdir().expect("a folder");
    let db = rusqlite::Connection::open(folder.path().join("bare.db")).expect("a database");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE answers (number INTEGER PRIMARY KEY, answer BLOB)",
    )
    .expect("a table");
    let (queue, mut answers) =
        mpsc::unbounded_channel::<(usize, bytes::Bytes, oneshot::Sender<()>)>();
    let writer = std::thread::spawn(move || {
        let mut group = Vec::new();
        while answers.blocking_recv_many(&mut group, 128) > 0 {
            db.execute_batch("BEGIN").expect("a transaction");
            for (number, answer, _) in &group {
                db.prepare_cached("INSERT OR REPLACE INTO answers VALUES (?, ?)")
                    .and_then(|mut insert| insert.execute((*number as i64, &answer[..])))
                    .expect("a row");
            }
            db.execute_batch("COMMIT").expect("a commit");
            for (_, _, saved) in group.drain(..) {
                let _ = saved.send(());
            }
        }
    });
    let http = oauth::http_client(Duration::from_secs(30)).expect("an HTTP client");
    let requests = stream::iter(0..CREDENTIALS).for_each_concurrent(in_flight, async |number| {
        let answer = exchange(&http, url, number).await;
        let (saved, durable) = oneshot::channel();
        queue
            .send((number, answer, saved))
            .expect("the writer runs");
        durable.await.expect("it was saved");
    });
    let pace = Pace::of(requests).await;
    drop(queue);
    writer.join().expect("the writer ends");
    pace
}

/// The whole path, through what `perennial serve` wires together: claim, intent, exchange,
/// encryption, durable save, publication.
async fn refresh_path(url: &str, in_flight: usize) -> Pace {
    let fleet = Fleet::new(CREDENTIALS, url, in_flight);
    let app = App::open(&fleet.config()).await.expect("an app");
    let refresher = &app.refresher;
    let members: Vec<_> = refresher.fleet.iter().cloned().collect();
    stream::iter(&members)
        .for_each_concurrent(512, async |member| {
            let token = Secret::new(format!("imported-{}", member.name));
            refresher.import(member, token).await.expect("an import");
        })
        .await;
    let refreshes = stream::iter(members).for_each_concurrent(in_flight, async |member| {
        let outcome = refresher.refresh(&member, refresh::Cause::Forced).await;
        assert_eq!(outcome, refresh::Outcome::Refreshed(2));
    });
    let pace = Pace::of(refreshes).await;
    app.finish().await;
    pace
}

/// What this process has used so far, all threads together.
fn cpu_time() -> Duration {
    let usage = std::fs::read_to_string("/proc/self/stat").expect("a proc file system");
    let fields = usage.rsplit(") ").next().expect("fields");
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}
