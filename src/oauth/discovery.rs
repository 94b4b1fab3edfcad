//! Finding the token endpoint from the issuer (RFC 8414, OpenID Connect Discovery 1.0).

use serde::Deserialize;
use tokio::sync::OnceCell;
use url::Url;

use super::GrantError;
use crate::credential::Reason;

/// Where a token endpoint is.
pub enum Location {
    /// As configured.
    Given(Url),
    /// To be asked for once, then remembered until the service is started again.
    Discovered {
        /// The issuer, exactly as configured.
        issuer: Url,
        /// Plain HTTP beyond loopback is accepted.
        allow_http: bool,
        /// The answer.
        found: OnceCell<Url>,
    },
}

/// The part of the metadata that is needed here.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
}

/// Metadata documents are some kilobytes.
const LARGEST_DOCUMENT: usize = 1024 * 1024;

impl Location {
    /// The token endpoint. Nothing is spent by a failure; the next call asks again.
    pub async fn resolve(&self, http: &reqwest::Client) -> Result<Url, GrantError> {
        match self {
            Self::Given(url) => Ok(url.clone()),
            Self::Discovered {
                issuer,
                allow_http,
                found,
            } => found
                .get_or_try_init(|| discover(issuer, *allow_http, http))
                .await
                .cloned(),
        }
    }
}

/// The two places where metadata may be: RFC 8414 puts the well-known part before the
/// issuer's path, OpenID Connect after it.
fn documents(issuer: &Url) -> [Url; 2] {
    let path = issuer.path().trim_end_matches('/');
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    };
    [
        at(format!("{path}/.well-known/openid-configuration")),
        at(format!("/.well-known/oauth-authorization-server{path}")),
    ]
}

async fn discover(
    issuer: &Url,
    allow_http: bool,
    http: &reqwest::Client,
) -> Result<Url, GrantError> {
    let mut failure = GrantError::Misconfigured {
        detail: "discovery_not_found".into(),
        retry_after: None,
    };
    for document in documents(issuer) {
        match fetch(document, http).await {
            Ok(metadata) => return check(issuer, allow_http, &metadata),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn fetch(document: Url, http: &reqwest::Client) -> Result<Metadata, GrantError> {
    let unreachable = |_| GrantError::unsent(Reason::Network, "discovery_unreachable");
    let mut response = http.get(document).send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_server_error() {
        let detail = format!("discovery_http_{}", status.as_u16());
        return Err(GrantError::unsent(Reason::ServerError, detail));
    }
    if !status.is_success() {
        let detail = format!("discovery_http_{}", status.as_u16());
        return Err(GrantError::unsent(Reason::BadAnswer, detail));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST_DOCUMENT {
            return Err(GrantError::unsent(Reason::BadAnswer, "discovery_too_large"));
        }
    }
    serde_json::from_slice(&body)
        .map_err(|_| GrantError::unsent(Reason::BadAnswer, "discovery_not_metadata"))
}

/// Refuses metadata that speaks for another issuer (RFC 8414 section 3.3: a mix-up attack)
/// and an endpoint that would carry secrets in clear.
fn check(issuer: &Url, allow_http: bool, metadata: &Metadata) -> Result<Url, GrantError> {
    let misconfigured = |detail: &str| GrantError::Misconfigured {
        detail: detail.into(),
        retry_after: None,
    };
    if metadata.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
        return Err(misconfigured("discovery_issuer_mismatch"));
    }
    let url = Url::parse(&metadata.token_endpoint)
        .map_err(|_| misconfigured("discovery_bad_token_endpoint"))?;
    if is_safe(&url, allow_http) {
        Ok(url)
    } else {
        Err(misconfigured("discovery_token_endpoint_without_tls"))
    }
}

/// May secrets be sent there? Over TLS, on this machine, or where the operator said so.
pub fn is_safe(url: &Url, allow_http: bool) -> bool {
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && (loopback || allow_http))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_part_goes_to_both_places() {
        let [oidc, rfc8414] = documents(&Url::parse("https://a.example/tenant/").unwrap());
        assert_eq!(
            oidc.as_str(),
            "https://a.example/tenant/.well-known/openid-configuration"
        );
        assert_eq!(
            rfc8414.as_str(),
            "https://a.example/.well-known/oauth-authorization-server/tenant"
        );
    }

    #[test]
    fn metadata_of_another_issuer_is_refused() {
        let issuer = Url::parse("https://a.example").unwrap();
        let metadata = |issuer: &str, token_endpoint: &str| Metadata {
            issuer: issuer.into(),
            token_endpoint: token_endpoint.into(),
        };
        let ok = metadata("https://a.example", "https://a.example/token");
        assert!(check(&issuer, false, &ok).is_ok());
        let other = metadata("https://b.example", "https://a.example/token");
        assert!(
            check(&issuer, false, &other)
                .unwrap_err()
                .detail()
                .contains("mismatch")
        );
        let clear = metadata("https://a.example", "http://a.example/token");
        assert!(
            check(&issuer, false, &clear)
                .unwrap_err()
                .detail()
                .contains("without_tls")
        );
    }
}
