//! A store that has tokens for many credentials before anything is started. The benchmarks use it
//! as well.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt, stream};
use perennial::{
    clock::Timestamp,
    credential::{LifetimeSource, TokenDetails, TokenSet},
    secret::Secret,
    store::{
        Store,
        cipher::{Cipher, generate_key_file},
        sqlite::{History, SqliteStore},
    },
};

/// How long each of the two tokens of a credential is.
pub const TOKEN_BYTES: usize = 500;

/// Makes `perennial.db` and its key in a folder, with tokens that live for a day from `issued_at`
/// for the credentials `c0`, `c1` and so on.
pub async fn fill(folder: &Path, credentials: usize, issued_at: Timestamp) {
    let key = generate_key_file(&folder.join("perennial.db.key")).expect("a key");
    let cipher = Cipher::from_base64(&key).expect("a cipher");
    let history = History {
        runs: 1,
        failed_runs: 1,
    };
    let store = SqliteStore::open(&folder.join("perennial.db"), cipher, history)
        .await
        .expect("a store");
    stream::iter(0..credentials)
        .for_each_concurrent(512, async |number| {
            let tokens = TokenSet {
                access_token: Secret::new(token('a', number)),
                refresh_token: Some(Secret::new(token('r', number))),
                details: TokenDetails {
                    issued_at,
                    lifetime: Duration::from_secs(86_400),
                    lifetime_source: LifetimeSource::Answer,
                    token_type: "Bearer".into(),
                    scope: None,
                    refresh_in: None,
                    refresh_token_expires_at: None,
                    refresh_token_life: None,
                    provider: None,
                },
            };
            let name = format!("c{number}").parse().expect("a name");
            store.save(&name, 0, &tokens).await.expect("a save");
        })
        .await;
    store.close().await;
}

/// The access token (`a`) or the refresh token (`r`) of a credential.
pub fn token(kind: char, number: usize) -> String {
    format!("{kind}{number:0width$}", width = TOKEN_BYTES - 1)
}
