//! A credential whose provider is changed in the configuration: its refresh token is not sent to
//! another server, and nothing is lost by the mistake. The real binary at two servers.

use std::time::Duration;

use rusqlite::Connection;

use crate::{
    keeps_alive::samples,
    support::{
        fake_server::FakeServer,
        perennial::{Perennial, Service},
        wait,
    },
};

/// Long enough for a debug build on a busy machine; no test waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

const CURE: &str = "its tokens are of the provider old, and are not sent to another; give it back \
    its provider, or log in at the new one, then: perennial import reports --refresh-token-file FILE";

#[test]
fn its_refresh_token_is_never_sent_to_another() {
    let place = Place::new();
    let service = place.serve("old");
    wait_for_version(&service, "reports", 2);
    stop(service);
    assert_eq!(place.old.spent(), ["login-at-old"]);

    // The second is the same server under another name.
    for other in ["new", "renamed"] {
        let mut service = place.serve(other);
        let is_told = |line: &str| {
            let words = ["ERROR", "reports", "tokens_of_another_provider", CURE];
            words.iter().all(|word| line.contains(word))
        };
        let process = service.process();
        process.wait_for_line("the provider", PATIENCE, is_told);
        wait_for_runs(&service, 2);
        let labels = format!("credential=\"reports\",provider=\"{other}\",state=\"misconfigured\"");
        let states = samples(&service.metrics(), "credential_state");
        assert_eq!(states.get(&labels), Some(&1.0), "{states:?}");
        let refreshed = place.perennial.run(&["refresh", "reports"]);
        assert_eq!(refreshed.code(), Some(1), "{refreshed:?}");
        assert!(refreshed.stderr.contains(CURE), "{refreshed:?}");
        assert!(place.perennial.run(&["status"]).stdout.contains(CURE));
        stop(service);
        assert_eq!(place.old.count() + place.new.count(), 1, "nothing was sent");
    }

    // Nothing was lost.
    let service = place.serve("old");
    place.refresh();
    stop(service);
    assert_eq!(place.old.spent(), ["login-at-old", "refresh-1"]);

    let service = place.serve("new");
    place.perennial.write("token", "login-at-new");
    let import = ["import", "reports", "--refresh-token-file", "token"];
    let imported = place.perennial.run(&import);
    assert_eq!(imported.code(), Some(0), "{imported:?}");
    wait_for_version(&service, "reports", 5);
    stop(service);
    assert_eq!(place.new.spent(), ["login-at-new"]);

    // Now they are of the other one.
    let service = place.serve("old");
    let refreshed = place.perennial.run(&["refresh", "reports"]);
    assert!(
        refreshed.stderr.contains("of the provider new"),
        "{refreshed:?}"
    );
    stop(service);
    assert_eq!((place.old.count(), place.new.count()), (2, 1));
}

#[test]
fn a_row_of_an_earlier_version_gets_its_provider_with_the_next_refresh() {
    let place = Place::new();
    let service = place.serve("old");
    wait_for_version(&service, "reports", 2);
    stop(service);
    let database = Connection::open(place.perennial.folder().join("perennial.db"));
    let removed = database.expect("a database").execute(
        "UPDATE credentials SET details = json_remove(details, '$.provider')
         WHERE details ->> '$.provider' = 'old'",
        [],
    );
    assert_eq!(removed.expect("plain SQL"), 1);

    let service = place.serve("old");
    place.refresh();
    stop(service);
    let service = place.serve("new");
    let refreshed = place.perennial.run(&["refresh", "reports"]);
    assert!(refreshed.stderr.contains(CURE), "{refreshed:?}");
    stop(service);
    assert_eq!((place.old.count(), place.new.count()), (2, 0));
}

#[test]
fn a_client_in_its_own_name_asks_the_new_one_at_once() {
    let place = Place::new();
    let client = "grant = \"client_credentials\"";
    let service = place.serve_with("old", client);
    wait_for_version(&service, "reports", 1);
    stop(service);
    let service = place.serve_with("new", client);
    wait_for_version(&service, "reports", 2);
    stop(service);
    assert_eq!((place.old.count(), place.new.count()), (1, 1));
}

/// Two servers, a credential, and a schedule that fires every second.
struct Place {
    old: FakeServer,
    new: FakeServer,
    perennial: Perennial,
}

impl Place {
    fn new() -> Self {
        let perennial = Perennial::without_config();
        perennial.write("token", "login-at-old");
        Self {
            old: FakeServer::start(),
            new: FakeServer::start(),
            perennial,
        }
    }

    /// Starts the service with this provider for the credential.
    fn serve(&self, provider: &str) -> Service {
        self.serve_with(provider, "refresh_token_file = \"token\"")
    }

    fn serve_with(&self, provider: &str, settings: &str) -> Service {
        let config = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"

            [providers.old]
            token_url = "{old}"
            client_id = "ours"
            client_secret = "theirs"
            # Longer than the test takes: the schedule forces nothing that is well.
            min_age = "10m"

            [providers.renamed]
            token_url = "{old}"
            client_id = "ours"
            client_secret = "theirs"

            [providers.new]
            token_url = "{new}"
            client_id = "ours"
            client_secret = "theirs"
            min_age = "10m"

            [credentials.reports]
            provider = "{provider}"
            {settings}

            [jobs.often]
            kind = "token_refresh"
            schedule = "* * * * * *"
            "#,
            old = self.old.url("/token"),
            new = self.new.url("/token"),
        );
        self.perennial.write("perennial.toml", &config);
        self.perennial.serve()
    }

    fn refresh(&self) {
        let refreshed = self.perennial.run(&["refresh", "reports"]);
        assert_eq!(refreshed.code(), Some(0), "{refreshed:?}");
    }
}

fn stop(service: Service) {
    assert_eq!(service.stop().code(), Some(0));
}

fn wait_for_version(service: &Service, credential: &str, version: u32) {
    let credential = format!("credential=\"{credential}\"");
    wait::until("the tokens", PATIENCE, || {
        let versions = samples(&service.metrics(), "token_version");
        let seen = versions
            .iter()
            .find(|(labels, _)| labels.contains(&credential));
        (seen.map(|(_, seen)| *seen) == Some(version.into()))
            .then_some(())
            .ok_or(format!("{versions:?}"))
    });
}

/// Waits until the schedule has fired so often, and its runs have ended.
fn wait_for_runs(service: &Service, count: u32) {
    wait::until("runs", PATIENCE, || {
        let runs = samples(&service.metrics(), "perennial_job_runs_total");
        (runs.values().sum::<f64>() >= count.into())
            .then_some(())
            .ok_or(format!("{runs:?}"))
    });
}
