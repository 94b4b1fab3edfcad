//! A provider at run time: its token endpoint, and how much we may ask of it.

pub mod breaker;

use std::sync::{Arc, Mutex, MutexGuard};

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
    slots: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

impl Provider {
    /// A provider that is asked at most `max_in_flight` things at once: also the most
    /// rotations that a killed process can leave without their answers.
    pub fn new(name: Name, endpoint: TokenEndpoint, max_in_flight: usize) -> Self {
        Self {
            name,
            endpoint,
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

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker
            .lock()
            .expect("nothing panics while it holds this")
    }
}
