//! The refresh token grant (RFC 6749 section 6).

use super::{Form, Grant, GrantError};
use crate::{credential::Credential, secret::Secret};

/// Spends the refresh token for new tokens.
pub struct RefreshToken {
    /// Sent again where configured: some providers narrow the scope otherwise.
    pub scopes: Vec<String>,
}

impl Grant for RefreshToken {
    fn request(&self, current: &Credential) -> Result<Form, GrantError> {
        let token = current
            .refresh_token()
            .ok_or_else(|| GrantError::NeedsLogin {
                detail: "no_refresh_token".into(),
            })?;
        let mut form = vec![
            ("grant_type", Secret::new("refresh_token")),
            ("refresh_token", token.clone()),
        ];
        if !self.scopes.is_empty() {
            form.push(("scope", Secret::new(self.scopes.join(" "))));
        }
        Ok(form)
    }

    fn spends_refresh_token(&self) -> bool {
        true
    }
}
