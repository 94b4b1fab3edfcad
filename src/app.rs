//! The only wiring: from a configuration to a running service, and to its end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, anyhow};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use url::Url;

use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config},
    credential::{Credential, Reason, policy::Rules},
    fleet::{Fleet, Member},
    http::{
        accept::{self, Limits},
        control, listener,
        routes::{self, Service},
    },
    jobs::token_refresh,
    metrics::Metrics,
    name::Name,
    oauth::{
        self, Grant, TokenEndpoint, client_auth::Client, client_credentials::ClientCredentials,
        discovery::Location, refresh_token::RefreshToken,
    },
    plugins,
    provider::Provider,
    refresh::Refresher,
    runner::{Hosted, Runner},
    schedule::Schedule,
    scheduler::Scheduler,
    secret::Secret,
    sinks::delivery::{self, Deliveries},
    store::{
        Record, Store, StoreError,
        cipher::{self, Cipher},
        probe::Probe,
        sqlite::{History, SqliteStore},
    },
};

/// Connections may finish their current answer for this long when the service stops.
const HTTP_DRAIN: Duration = Duration::from_secs(3);

/// Everything that works on credentials, wired together; nothing runs by itself yet.
pub struct App {
    /// Refreshes.
    pub refresher: Arc<Refresher>,
    runner: Arc<Runner>,
    deliveries: Deliveries,
    store: Arc<dyn Store>,
    /// Cancelled when the service is to stop.
    stop: CancellationToken,
}

/// A service that runs.
pub struct Running {
    app: App,
    /// Where HTTP is served, with the port that was free.
    pub address: SocketAddr,
    scheduler: Scheduler,
    http_stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
}

impl App {
    /// Opens the store and makes everything that the configuration names.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let store: Arc<dyn Store> = Arc::new(open_store(&config.store).await?);
        let metrics = Arc::new(Metrics::new());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();

        let records = store.load().await?;
        let fleet = Arc::new(fleet(config, records, &clock)?);
        for member in fleet.iter() {
            member.tell_if_withheld();
            metrics.expect_provider(member.provider.name.as_str());
        }
        let refresher = Arc::new(Refresher {
            fleet: fleet.clone(),
            store: store.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            owner: random_name(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let runner = Arc::new(Runner {
            jobs: jobs(config, &refresher)?,
            store: store.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks,
            stop: stop.clone(),
        });
        let deliveries = Deliveries {
            metrics,
            clock,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(delivery::AT_ONCE)),
        };
        Ok(Self {
            refresher,
            runner,
            deliveries,
            store,
            stop,
        })
    }

    /// Starts what runs by itself: deliveries, jobs, HTTP.
    pub async fn start(self, config: &Config) -> anyhow::Result<Running> {
        // Ports first: a service that cannot be seen should not refresh unseen.
        let tcp = listener::bind_tcp(config.server.listen).await?;
        let address = tcp.tcp_addr().context("a TCP listener has an address")?;
        let socket = listener::bind_unix(config.socket_path()).await?;

        self.import_files(config).await?;
        self.start_deliveries();
        let scheduler = Scheduler::start().await?;
        let service = Arc::new(Service {
            fleet: self.refresher.fleet.clone(),
            runner: self.runner.clone(),
            scheduler: scheduler.clone(),
            probe: Probe::new(self.store.clone()),
            metrics: self.refresher.metrics.clone(),
            clock: self.refresher.clock.clone(),
            stop: self.stop.clone(),
        });
        let probing = service.probe.clone().run(self.stop.clone());
        self.refresher.tasks.spawn(probing);
        self.runner.start(&scheduler).await?;

        let http_stop = CancellationToken::new();
        let limits = Limits {
            header_timeout: config.server.header_timeout,
            max_connections: config.server.max_connections as usize,
            drain: HTTP_DRAIN,
        };
        let control = control::routes(self.refresher.clone());
        let servers = vec![
            tokio::spawn(accept::serve(
                tcp,
                routes::routes(service),
                limits,
                http_stop.clone(),
            )),
            tokio::spawn(accept::serve(socket, control, limits, http_stop.clone())),
        ];
        info!(%address, credentials = self.refresher.fleet.iter().len(), "listening");
        Ok(Running {
            app: self,
            address,
            scheduler,
            http_stop,
            servers,
        })
    }

    /// Imports the refresh tokens that lie in files: once, when the store has nothing, and
    /// again when what it has is dead and a person has put another one there.
    pub async fn import_files(&self, config: &Config) -> anyhow::Result<()> {
        let fleet = &self.refresher.fleet;
        for (name, credential) in &config.credentials {
            let Some(path) = &credential.refresh_token_file else {
                continue;
            };
            let member = fleet
                .get(name.as_str())
                .context("every credential is a member")?;
            let (wanted, current) = {
                let credential = &member.view().credential;
                // The file may still hold a token that was spent long ago, or that is of the
                // provider before: only a person can tell.
                if credential.withheld.is_some() {
                    continue;
                }
                let trouble = credential.trouble.as_ref();
                let dead = trouble.is_some_and(|(trouble, _)| trouble.reason == Reason::NeedsLogin);
                let current = credential.refresh_token().map(Secret::fingerprint);
                (credential.tokens.is_none() || dead, current)
            };
            if !wanted {
                continue;
            }
            let imported = match read_token(path) {
                Ok(token) if Some(token.fingerprint()) == current => continue,
                Ok(token) => self
                    .refresher
                    .import(member, token)
                    .await
                    .map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            let file = path.display();
            match imported {
                Ok(_) => info!(credential = %name, %file, "refresh token imported"),
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(credential = %name, %file, error, "refresh token not imported");
                }
            }
        }
        Ok(())
    }

    /// Starts delivering what the credentials have, and what they will get.
    pub fn start_deliveries(&self) {
        for member in self.refresher.fleet.iter() {
            self.deliveries.start(member);
        }
    }

    /// Lets everything under way come to its end, then closes the store.
    pub async fn finish(self) {
        self.stop.cancel();
        self.refresher.tasks.close();
        self.refresher.tasks.wait().await;
        // Only now has every refresh told the deliveries of its tokens.
        self.deliveries.stop.cancel();
        self.deliveries.tasks.close();
        self.deliveries.tasks.wait().await;
        self.store.close().await;
    }
}

impl Running {
    /// Stops in order: not ready, no new runs, runs under way finish and are saved, HTTP
    /// closes. False when that took longer than `deadline`.
    pub async fn drain(self, deadline: Duration) -> bool {
        let drained = async {
            self.app.stop.cancel();
            self.scheduler.stop().await;
            self.app.finish().await;
            self.http_stop.cancel();
            for server in self.servers {
                let _ = server.await;
            }
        };
        tokio::time::timeout(deadline, drained).await.is_ok()
    }
}

/// Opens the embedded store with its key; makes both where there is neither.
async fn open_store(config: &config::Store) -> Result<SqliteStore, StoreError> {
    let path = config.sqlite_path();
    let key = match &config.key {
        Some(key) => key.clone(),
        None => {
            let file = config.key_path();
            // A database without its key is not given a new one: it would not open it.
            if file.exists() || path.exists() || config.key_file.is_some() {
                cipher::read_key_file(&file)?
            } else {
                match cipher::generate_key_file(&file) {
                    // Another process was faster; the store will say so.
                    Err(_) if file.exists() => cipher::read_key_file(&file)?,
                    made => {
                        let key = made?;
                        warn!(
                            file = %file.display(),
                            "made a key for the store; whoever has it and the database has the tokens: keep it elsewhere (PERENNIAL_KEY_FILE)"
                        );
                        key
                    }
                }
            }
        }
    };
    let history = History {
        runs: config.keep_runs,
        failed_runs: config.keep_failed_runs,
    };
    let cipher = Cipher::from_base64(&key).map_err(|error| match (error, &config.key) {
        (StoreError::Key(why), None) => {
            StoreError::Key(format!("{}: {why}", config.key_path().display()))
        }
        (error, _) => error,
    })?;
    SqliteStore::open(&path, cipher, history).await
}

/// The credentials that the configuration names, as the records say that they stand.
pub fn fleet(
    config: &Config,
    records: Vec<Record>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Fleet> {
    let mut records: BTreeMap<Name, Record> = records
        .into_iter()
        .map(|record| (record.name.clone(), record))
        .collect();
    let providers = providers(config, clock)?;
    let schedules = schedules(config)?;
    let members = config.credentials.iter().map(|(name, credential)| {
        let provider = &config.providers[&credential.provider];
        let rules = Rules {
            min_age: provider.min_age,
            refresh_token_idle: provider.refresh_token_idle,
            alert_threshold: credential.alert_threshold,
        };
        let sinks = credential.sinks.iter().map(|sink| {
            let kind = plugins::SINKS
                .iter()
                .find(|kind| kind.kind.name == sink.kind);
            let kind = kind.ok_or_else(|| anyhow!("there is no kind of sink {}", sink.kind))?;
            (kind.build)(&sink.settings)
                .map_err(|error| anyhow!("credentials.{name}.sinks: {error}"))
        });
        let scopes = credential.scopes.clone();
        let grant: Box<dyn Grant> = match credential.grant {
            config::Grant::RefreshToken => Box::new(RefreshToken { scopes }),
            config::Grant::ClientCredentials => Box::new(ClientCredentials { scopes }),
        };
        let stands = match records.remove(name) {
            Some(record) => {
                record.into_credential(&credential.provider, &*grant, &rules, clock.now())
            }
            None => Credential::pending(),
        };
        let covering = schedules
            .iter()
            .filter(|(settings, _)| settings.covers(name.as_str()));
        Ok(Member::new(
            name.clone(),
            providers[&credential.provider].clone(),
            grant,
            credential.params.clone(),
            rules,
            sinks.collect::<anyhow::Result<_>>()?,
            credential
                .refresh_token_file
                .clone()
                .filter(|_| credential.write_back),
            covering.map(|(_, schedule)| schedule.clone()).collect(),
            stands,
        ))
    });
    Ok(Fleet::new(members.collect::<anyhow::Result<Vec<_>>>()?))
}

fn providers(
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<BTreeMap<Name, Arc<Provider>>> {
    let provider = |(name, provider): (&Name, &config::Provider)| {
        let url = |text: &str| Url::parse(text).with_context(|| format!("providers.{name}"));
        let location = match (&provider.token_url, &provider.issuer) {
            (Some(token_url), _) => Location::Given(url(token_url)?),
            (None, Some(issuer)) => Location::Discovered {
                issuer: url(issuer)?,
                allow_http: provider.allow_http,
                found: Default::default(),
            },
            (None, None) => return Err(anyhow!("providers.{name}: no issuer and no token_url")),
        };
        let endpoint = TokenEndpoint {
            location,
            client: Client {
                id: provider.client_id.clone(),
                secret: provider.client_secret.clone(),
                auth: provider.authentication(),
            },
            params: provider.params.clone(),
            needs_login_errors: provider.needs_login_errors.clone(),
            default_expires_in: provider.default_expires_in,
            timeout: provider.timeout,
            http: oauth::http_client(provider.timeout)?,
            clock: clock.clone(),
        };
        let max_in_flight = provider.max_in_flight as usize;
        let provider = Provider::new(name.clone(), endpoint, provider.timeout, max_in_flight);
        Ok((name.clone(), Arc::new(provider)))
    };
    config.providers.iter().map(provider).collect()
}

/// The schedules of the jobs that refresh tokens, and what each covers.
pub fn schedules(config: &Config) -> anyhow::Result<Vec<(token_refresh::Settings, Schedule)>> {
    let refreshing = config
        .jobs
        .values()
        .filter(|job| job.kind == "token_refresh");
    let scheduled = refreshing.filter_map(|job| Some((job, job.schedule.as_ref()?)));
    scheduled
        .map(|(job, schedule)| {
            let settings = plugins::parse(&job.settings).map_err(anyhow::Error::msg)?;
            Ok((settings, Schedule::parse(schedule, job.tz())?))
        })
        .collect()
}

fn jobs(
    config: &Config,
    refresher: &Arc<Refresher>,
) -> anyhow::Result<BTreeMap<Name, Arc<Hosted>>> {
    let job = |(name, job): (&Name, &config::Job)| {
        let kind = plugins::JOBS.iter().find(|kind| kind.kind.name == job.kind);
        let kind = kind.ok_or_else(|| anyhow!("there is no kind of job {}", job.kind))?;
        let plugin = (kind.build)(&job.settings, refresher)
            .map_err(|error| anyhow!("jobs.{name}: {error}"))?;
        let schedule = job
            .schedule
            .as_deref()
            .map(|text| Schedule::parse(text, job.tz()));
        let hosted = Hosted {
            name: name.clone(),
            kind: kind.kind.name,
            schedule: schedule.transpose()?,
            overlap: job.overlap,
            jitter: job.jitter,
            timeout: job.timeout,
            retries: job.retries,
            misfire: job.misfire,
            job: plugin,
            state: Mutex::default(),
        };
        Ok((name.clone(), Arc::new(hosted)))
    };
    config.jobs.iter().map(job).collect()
}

/// One refresh token from a file with one line.
pub fn read_token(path: &Path) -> anyhow::Result<Secret> {
    let place = || path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map(zeroize::Zeroizing::new)
        .with_context(place)?;
    Secret::from_line(&text).with_context(place)
}

/// Names this process in leases.
fn random_name() -> String {
    let number = getrandom::u64().expect("the operating system gives random bytes");
    format!("{}-{number:016x}", std::process::id())
}
