//! Where a fresh access token is delivered. One file per kind; [`delivery`] retries and
//! measures, so that a sink only delivers or says what is wrong.

pub mod delivery;
pub mod file;

use async_trait::async_trait;

use crate::{clock::Timestamp, name::Name, secret::Secret};

/// What a sink gets. Never a refresh token.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The credential.
    pub credential: Name,
    /// Its version: grows, and may be delivered more than once.
    pub version: u64,
    /// The access token.
    pub access_token: Secret,
    /// `Bearer` nearly everywhere.
    pub token_type: String,
    /// The scope, where the provider said it.
    pub scope: Option<String>,
    /// When the access token dies.
    pub expires_at: Timestamp,
}

/// A place for access tokens.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// The kind, as in the configuration: a label value.
    fn kind(&self) -> &'static str;

    /// Delivers one token, whole or not at all.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), SinkError>;
}

/// Why a delivery failed. It is tried again until it works or a newer token is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);
