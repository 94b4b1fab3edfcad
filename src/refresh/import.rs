//! A refresh token from elsewhere takes the place of what there is.

use std::sync::Arc;

use tracing::Instrument;

use super::Refresher;
use crate::{
    credential::{Credential, TokenSet},
    fleet::Member,
    secret::Secret,
    store::{Saved, StoreError},
};

/// Why an import was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store failed; nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token is known to be dead.
    #[error("{0} has declared this refresh token dead; log in again to get a new one")]
    Buried(crate::name::Name),
    /// The grant has no use for one.
    #[error("{0} gets its tokens without a refresh token")]
    NotUsed(crate::name::Name),
}

impl Refresher {
    /// Puts a refresh token from elsewhere in the place of what there is. Durable when it
    /// returns; the first refresh follows by itself. Goes on when the caller stops waiting:
    /// what is in the store must not stay unknown here.
    pub async fn import(
        self: &Arc<Self>,
        member: &Arc<Member>,
        token: Secret,
    ) -> Result<u64, ImportError> {
        let (refresher, member) = (self.clone(), member.clone());
        let task = async move { refresher.import_to_end(&member, token).await };
        let ended = self.tasks.spawn(task.in_current_span()).await;
        ended.expect("it does not panic, and nobody aborts it")
    }

    async fn import_to_end(&self, member: &Arc<Member>, token: Secret) -> Result<u64, ImportError> {
        if !member.grant.spends_refresh_token() {
            return Err(ImportError::NotUsed(member.name.clone()));
        }
        if self
            .store
            .is_buried(&member.name, token.fingerprint())
            .await?
        {
            return Err(ImportError::Buried(member.provider.name.clone()));
        }
        let now = self.clock.now();
        let tokens = TokenSet::imported(token, &member.provider.name, now);
        loop {
            let expected = self
                .store
                .read(&member.name)
                .await?
                .map_or(0, |record| record.version);
            if let Saved::Version(version) =
                self.store.save(&member.name, expected, &tokens).await?
            {
                {
                    let mut view = member.view();
                    // A refresh may have found it in the store, and used it, already.
                    if view.credential.version < version {
                        view.credential = Credential::renewed(version, tokens, now);
                    }
                    view.patience = None;
                }
                self.fleet.announce(member);
                return Ok(version);
            }
        }
    }
}
