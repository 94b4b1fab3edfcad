//! The client credentials grant (RFC 6749 section 4.4).

use super::{Form, Grant, GrantError};
use crate::{credential::Credential, secret::Secret};

/// Asks for a token in the client's own name. Nothing is spent, and no person is needed.
pub struct ClientCredentials {
    /// The scope to ask for.
    pub scopes: Vec<String>,
}

impl Grant for ClientCredentials {
    fn request(&self, _: &Credential) -> Result<Form, GrantError> {
        let mut form = vec![("grant_type", Secret::new("client_credentials"))];
        if !self.scopes.is_empty() {
            form.push(("scope", Secret::new(self.scopes.join(" "))));
        }
        Ok(form)
    }

    fn spends_refresh_token(&self) -> bool {
        false
    }
}
