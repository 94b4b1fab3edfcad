//! Plain HTTP requests to the parts and to the binary.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder};

// One client for the whole test process: connections are reused.
static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    // reqwest is built without a TLS provider and wants one even for plain HTTP. The error says
    // that another test in this process has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .build()
        .expect("an HTTP client without options can be built")
});

/// An answer with any status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON. Panics with the whole answer when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("expected JSON ({error}): {self:?}"))
    }
}

/// A request that the caller may add headers or a body to; send it with [`send`].
pub fn request(method: &str, url: &str) -> RequestBuilder {
    let method = method
        .parse()
        .expect("tests name methods as HTTP knows them");
    CLIENT.request(method, url)
}

/// Sends a request. An error means that no answer came, whatever its status.
pub fn send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send()?;
    let content_type = response
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    Ok(Answer {
        status: response.status().as_u16(),
        content_type,
        body: response.text()?,
    })
}

/// GETs `url`. Panics when no answer comes.
pub fn get(url: &str) -> Answer {
    send(request("GET", url)).unwrap_or_else(|error| panic!("GET {url}: {error:?}"))
}

/// POSTs a form to `url`. Panics when no answer comes.
pub fn post_form(url: &str, fields: &[(&str, &str)]) -> Answer {
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let request = request("POST", url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    send(request).unwrap_or_else(|error| panic!("POST {url}: {error:?}"))
}
