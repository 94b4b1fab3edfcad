//! Ten thousand credentials that are all to be refreshed in the same second, by the real binary:
//! every one is, and none twice.

use std::{fmt::Write, time::Duration};

use chrono::TimeDelta;
use perennial::clock::{Clock, SystemClock, Timestamp};

use crate::{
    keeps_alive::samples,
    support::{
        fake_server::FakeServer,
        full_store::{fill, token},
        perennial::{Perennial, Service},
        wait,
    },
};

const COUNT: usize = 10_000;

/// A debug build on a busy machine needs a good part of it.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn ten_thousand_on_one_schedule_are_each_refreshed_once() {
    let server = FakeServer::start();
    // New tokens: for hours nothing but the schedule wants to replace them.
    let place = with_tokens_of_a_day(&server, now());
    // As long as a start may take.
    let firing = now() + TimeDelta::seconds(30);
    let mut config = config(&server);
    write!(
        config,
        "[jobs.all]\nkind = \"token_refresh\"\nschedule = \"{}\"\ntimezone = \"UTC\"\n",
        firing.format("%-S %-M %-H %-d %-m *")
    )
    .expect("strings grow");
    place.write("perennial.toml", &config);

    let service = place.serve();
    assert!(now() < firing, "the machine is too busy for this test");
    assert_eq!(
        server.count(),
        0,
        "nothing is due before the schedule fires"
    );
    each_is_refreshed_once(&server, service, "schedule");
}

#[test]
fn ten_thousand_that_came_due_during_a_stop_are_each_refreshed_once() {
    let server = FakeServer::start();
    let place = with_tokens_of_a_day(&server, now() - TimeDelta::hours(20));
    let service = place.serve();
    each_is_refreshed_once(&server, service, "due");
}

fn each_is_refreshed_once(server: &FakeServer, service: Service, trigger: &str) {
    wait::until("a request for each", PATIENCE, || match server.count() {
        COUNT.. => Ok(()),
        fewer => Err(fewer.to_string()),
    });
    let success = format!("outcome=\"success\",trigger=\"{trigger}\"");
    let metrics = wait::until("the end of the run", PATIENCE, || {
        let metrics = service.metrics();
        let runs = samples(&metrics, "perennial_job_runs_total");
        let ended = runs
            .iter()
            .any(|(run, n)| run.contains(&success) && *n > 0.0);
        ended.then_some(metrics).ok_or(format!("{runs:?}"))
    });

    let versions = samples(&metrics, "token_version");
    assert_eq!(versions.len(), COUNT);
    let others: Vec<_> = versions.iter().filter(|(_, n)| **n != 2.0).collect();
    assert!(others.is_empty(), "not at the next version: {others:?}");
    let sum = |name| samples(&metrics, name).values().sum::<f64>();
    assert_eq!(sum("refresh_success_total"), COUNT as f64);
    assert_eq!(sum("refresh_failures_total"), 0.0);
    assert_eq!(
        sum("perennial_job_runs_total"),
        1.0,
        "one run, and it ended well"
    );
    assert_eq!(sum("perennial_job_missed_runs_total"), 0.0);

    assert_eq!(service.stop().code(), Some(0));
    let mut spent = server.spent();
    spent.sort_unstable();
    let mut given: Vec<_> = (0..COUNT).map(|number| token('r', number)).collect();
    given.sort_unstable();
    assert_eq!(spent.len(), COUNT);
    assert!(spent == given, "each refresh token once");
}

fn with_tokens_of_a_day(server: &FakeServer, issued_at: Timestamp) -> Perennial {
    let place = Perennial::with_config(&config(server));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(fill(place.folder(), COUNT, issued_at));
    place
}

fn config(server: &FakeServer) -> String {
    let mut config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n\
         [providers.acme]\ntoken_url = \"{}\"\nclient_id = \"public\"\nmax_in_flight = 64\n",
        server.url("/token")
    );
    for number in 0..COUNT {
        write!(config, "[credentials.c{number}]\nprovider = \"acme\"\n").expect("strings grow");
    }
    config
}

fn now() -> Timestamp {
    SystemClock::new().now().wall
}
