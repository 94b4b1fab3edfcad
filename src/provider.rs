//! A provider at run time: its token endpoint, and how much we may ask of it.

pub mod breaker;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::breaker::Breaker;
use crate::{clock::Moment, name::Name, oauth::TokenEndpoint};

/// One authorization server, shared by its credentials.
pub struct Provider {
    /// Its name in the configuration.
    pub name: Name,
    /// Where and as whom we ask.
    pub endpoint: TokenEndpoint,
    /// How long one request may take.
    pub timeout: Duration,
    /// How many requests may be under way at once: also the most rotations that a killed
    /// process can leave without their answers.
    pub max_in_flight: usize,
    slots: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

impl Provider {
    /// A provider of whose health nothing is known yet.
    pub fn new(
        name: Name,
        endpoint: TokenEndpoint,
        timeout: Duration,
        max_in_flight: usize,
    ) -> Self {
        Self {
            name,
            endpoint,
            timeout,
            max_in_flight,
            slots: Arc::new(Semaphore::new(max_in_flight)),
            breaker: Mutex::default(),
        }
    }

    /// Waits for a free slot; given back when dropped.
    pub async fn slot(&self) -> OwnedSemaphorePermit {
        self.slots
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    /// See [`Breaker::admit`].
    pub fn admit(&self, now: Moment) -> Result<(), TimeDelta> {
        self.breaker().admit(now.uptime)
    }

    /// See [`Breaker::report`].
    pub fn report(&self, now: Moment, heard: breaker::Heard) {
        self.breaker().report(now.uptime, heard);
    }

    /// See [`Breaker::failures`].
    pub fn failures(&self) -> u32 {
        self.breaker().failures()
    }

    /// See [`Breaker::is_open`].
    pub fn is_left_alone(&self, now: Moment) -> bool {
        self.breaker().is_open(now.uptime)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker
            .lock()
            .expect("nothing panics while it holds this")
    }
}
