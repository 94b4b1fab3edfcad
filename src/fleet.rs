//! All credentials as they stand in memory: what the metrics show, and what a refresh changes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::sync::{mpsc, watch};

use crate::{
    clock::{Moment, Since},
    credential::{
        Credential, Reason, State,
        policy::{self, Next, Rules, Why},
    },
    events,
    name::Name,
    oauth::Grant,
    provider::Provider,
    refresh::Flight,
    schedule::Schedule,
    sinks::Sink,
    telemetry::Origin,
};

/// One credential: how it is configured, and how it stands.
pub struct Member {
    /// Its name.
    pub name: Name,
    /// Where it is from.
    pub provider: Arc<Provider>,
    /// How it gets tokens.
    pub grant: Box<dyn Grant>,
    /// Its own parameters for token requests; they win over the provider's.
    pub params: BTreeMap<String, String>,
    /// What is configured about its timing.
    pub rules: Rules,
    /// Where its access token goes.
    pub sinks: Vec<Arc<dyn Sink>>,
    /// A file that is kept current with its refresh token.
    pub write_back: Option<PathBuf>,
    /// The schedules that may bring its refresh forward.
    pub schedules: Vec<Schedule>,
    /// For each place of delivery its kind, and how many deliveries in a row have failed.
    failed_deliveries: Mutex<Vec<(&'static str, u32)>>,
    /// Tells deliveries that there is a new version, where there are any.
    versions: Option<watch::Sender<Version>>,
    view: Mutex<View>,
    /// The refresh under way, if any.
    pub(crate) flight: Mutex<Option<Flight>>,
}

/// A version that is to be delivered, and the trace of the refresh that brought it.
#[derive(Clone, Debug)]
pub struct Version {
    /// See [`Credential::version`].
    pub number: u64,
    /// Deliveries become part of this trace.
    pub origin: Origin,
}

/// The part of a [`Member`] that changes.
#[derive(Clone, Debug)]
pub struct View {
    /// The credential.
    pub credential: Credential,
    /// Refreshes that ended well, since the start of this process.
    pub successes: u64,
    /// Those that did not, by [`Reason::index`].
    pub failures: [u64; Reason::ALL.len()],
    /// Its provider, or another process, asked for patience: not before this much time
    /// has passed.
    pub patience: Option<(Since, TimeDelta)>,
    /// The last so many tokens died too soon to be kept alive: see [`policy::breather`].
    pub too_short_in_a_row: u32,
}

impl View {
    /// Takes note of a refresh that ended well. When its token is of no use to anybody, the
    /// next one is no sooner for it.
    pub(crate) fn succeeded(&mut self, sent: Moment, lifetime: Duration) {
        self.successes += 1;
        self.too_short_in_a_row = if policy::is_too_short(lifetime) {
            self.too_short_in_a_row.saturating_add(1)
        } else {
            0
        };
        let breather = policy::breather(self.too_short_in_a_row);
        self.patience = breather.map(|breather| (Since::at(sent), breather));
    }
}

impl Member {
    /// A member at the start of this process.
    #[allow(clippy::too_many_arguments, reason = "called once, by the wiring")]
    pub fn new(
        name: Name,
        provider: Arc<Provider>,
        grant: Box<dyn Grant>,
        params: BTreeMap<String, String>,
        rules: Rules,
        sinks: Vec<Arc<dyn Sink>>,
        write_back: Option<PathBuf>,
        schedules: Vec<Schedule>,
        credential: Credential,
    ) -> Self {
        let has_deliveries = !sinks.is_empty() || write_back.is_some();
        let version = Version {
            number: credential.version,
            origin: Origin::none(),
        };
        Self {
            name,
            provider,
            grant,
            params,
            rules,
            sinks,
            write_back,
            schedules,
            versions: has_deliveries.then(|| watch::Sender::new(version)),
            failed_deliveries: Mutex::default(),
            view: Mutex::new(View {
                credential,
                successes: 0,
                failures: [0; Reason::ALL.len()],
                patience: None,
                too_short_in_a_row: 0,
            }),
            flight: Mutex::default(),
        }
    }

    /// How it stands. Held for a moment, never across an await.
    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .expect("nothing panics while it holds this")
    }

    /// Tells deliveries of a new version, which came about in the current span.
    pub(crate) fn tell(&self, number: u64) {
        if let Some(versions) = &self.versions {
            versions.send_replace(Version {
                number,
                origin: Origin::here(),
            });
        }
    }

    /// Hears of each new version; `None` when there is nowhere to deliver to.
    pub fn versions(&self) -> Option<watch::Receiver<Version>> {
        self.versions.as_ref().map(watch::Sender::subscribe)
    }

    /// Adds a place of delivery, and returns its number.
    pub(crate) fn expect_delivery(&self, kind: &'static str) -> usize {
        let mut places = lock(&self.failed_deliveries);
        places.push((kind, 0));
        places.len() - 1
    }

    /// A delivery to the place of this number has ended.
    pub(crate) fn delivered(&self, number: usize, success: bool) {
        let (_, failures) = &mut lock(&self.failed_deliveries)[number];
        *failures = if success {
            0
        } else {
            failures.saturating_add(1)
        };
    }

    /// How many deliveries in a row have failed, for each kind of place the most.
    pub fn failed_deliveries(&self) -> BTreeMap<&'static str, u32> {
        let mut worst: BTreeMap<_, u32> = BTreeMap::new();
        for (kind, failures) in &*lock(&self.failed_deliveries) {
            let most = worst.entry(*kind).or_default();
            *most = (*most).max(*failures);
        }
        worst
    }

    /// How it stands, in one word.
    pub fn state(&self, now: Moment) -> State {
        self.view().credential.state(&self.name, &self.rules, now)
    }

    /// Reports tokens that are not used, if there are any.
    pub(crate) fn tell_if_withheld(&self) {
        if let Some(why) = &self.view().credential.withheld {
            let credential = &self.name;
            events::TokensWithheld { credential, why }.emit();
        }
    }

    /// Has it what a token request needs? Not before a first login, where the grant needs one.
    pub fn can_refresh(&self) -> bool {
        self.has_needed(&self.view().credential)
    }

    fn has_needed(&self, credential: &Credential) -> bool {
        !self.grant.spends_refresh_token() || credential.refresh_token().is_some()
    }

    /// When policy refreshes it next, patience included.
    pub fn next(&self, now: Moment) -> Next {
        let view = self.view();
        if !self.has_needed(&view.credential) {
            return Next {
                wait: None,
                why: Why::NeedsLogin,
            };
        }
        let mut next = view.credential.next(&self.name, &self.rules, now);
        if let (Some(wait), Some((since, patience))) = (next.wait, view.patience) {
            next.wait = Some(wait.max(patience - since.age(now)));
        }
        next
    }

    /// Has somebody asked for patience that is not over?
    pub fn is_left_alone(&self, now: Moment) -> bool {
        let patience = self.view().patience;
        patience.is_some_and(|(since, patience)| since.age(now) < patience)
    }

    /// Is a refresh under way?
    pub fn is_refreshing(&self) -> bool {
        lock(&self.flight).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every member, by name.
pub struct Fleet {
    members: BTreeMap<Name, Arc<Member>>,
    listeners: Mutex<Vec<mpsc::UnboundedSender<Arc<Member>>>>,
}

/// The members that changed, as they change.
pub type Changes = mpsc::UnboundedReceiver<Arc<Member>>;

impl Fleet {
    /// A fleet of these members.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let members = members
            .into_iter()
            .map(|member| (member.name.clone(), Arc::new(member)))
            .collect();
        Self {
            members,
            listeners: Mutex::default(),
        }
    }

    /// One member.
    pub fn get(&self, name: &str) -> Option<&Arc<Member>> {
        self.members.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Member>> {
        self.members.values()
    }

    /// Says that a member may now be due at another time than before.
    pub fn announce(&self, member: &Arc<Member>) {
        self.listeners()
            .retain(|listener| listener.send(member.clone()).is_ok());
    }

    /// Hears of every announcement from now on.
    pub fn changes(&self) -> Changes {
        let (listener, changes) = mpsc::unbounded_channel();
        self.listeners().push(listener);
        changes
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<Arc<Member>>>> {
        self.listeners
            .lock()
            .expect("nothing panics while it holds this")
    }
}
