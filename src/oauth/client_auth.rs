//! Client authentication at the token endpoint (RFC 6749 section 2.3).

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::form_urlencoded::{self, Serializer};

use crate::secret::Secret;

/// How the client authenticates at the token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// A public client: only `client_id` is sent (RFC 6749 section 3.2.1).
    None,
    /// The secret in the `Authorization` header (RFC 6749 section 2.3.1).
    Basic,
    /// The secret in the form (RFC 6749 section 2.3.1).
    Post,
}

/// A client registered at a provider.
#[derive(Clone, Debug)]
pub struct Client {
    /// The `client_id`.
    pub id: String,
    /// The `client_secret`, unless the client is public.
    pub secret: Option<Secret>,
    /// How they are presented.
    pub auth: ClientAuth,
}

impl Client {
    /// Adds the client's authentication to a token request.
    pub fn authenticate(&self, body: &mut Serializer<'_, String>, headers: &mut HeaderMap) {
        let secret = self.secret.as_ref().map_or("", Secret::expose);
        match self.auth {
            ClientAuth::None => {
                body.append_pair("client_id", &self.id);
            }
            ClientAuth::Post => {
                body.append_pair("client_id", &self.id);
                body.append_pair("client_secret", secret);
            }
            ClientAuth::Basic => {
                // RFC 6749 section 2.3.1: both parts are form-encoded first.
                let encode = |text: &str| {
                    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
                };
                let pair = format!("{}:{}", encode(&self.id), encode(secret));
                let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)))
                    .expect("base64 is a valid header value");
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticated(auth: ClientAuth) -> (String, Option<String>) {
        let client = Client {
            id: "my id".into(),
            secret: Some(Secret::new("s:1%")),
            auth,
        };
        let mut body = Serializer::new(String::new());
        let mut headers = HeaderMap::new();
        client.authenticate(&mut body, &mut headers);
        let header = headers
            .get(AUTHORIZATION)
            .map(|value| value.to_str().unwrap().to_owned());
        (body.finish(), header)
    }

    #[test]
    fn each_way_sends_the_secret_in_one_place_only() {
        assert_eq!(
            authenticated(ClientAuth::None),
            ("client_id=my+id".into(), None)
        );
        let form = "client_id=my+id&client_secret=s%3A1%25";
        assert_eq!(authenticated(ClientAuth::Post), (form.into(), None));
        let header = format!("Basic {}", STANDARD.encode("my+id:s%3A1%25"));
        assert_eq!(
            authenticated(ClientAuth::Basic),
            (String::new(), Some(header))
        );
    }
}
