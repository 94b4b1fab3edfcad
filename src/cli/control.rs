//! Speaking to the running service over its control socket.

use std::{path::Path, time::Duration};

use anyhow::{Context, anyhow};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

use crate::http::control::Said;

/// A refresh may wait for a slow provider.
const PATIENCE: Duration = Duration::from_secs(150);

/// A running service.
pub(super) struct Service {
    http: reqwest::Client,
}

impl Service {
    /// The service that listens on this socket; `None` if none does.
    pub(super) async fn at(socket: &Path) -> anyhow::Result<Option<Self>> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        match tokio::net::UnixStream::connect(socket).await {
            Ok(_) => {}
            Err(error) if [NotFound, ConnectionRefused].contains(&error.kind()) => return Ok(None),
            Err(error) => return Err(error).with_context(|| socket.display().to_string()),
        }
        crate::tls::provide();
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .timeout(PATIENCE)
            .build()?;
        Ok(Some(Self { http }))
    }

    /// Asks for something.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let (status, body) = self.send(Method::GET, path, String::new()).await?;
        anyhow::ensure!(status.is_success(), "the service answered {status}");
        Ok(serde_json::from_slice(&body)?)
    }

    /// Changes something. The service's sentence comes back, as an error if it refused.
    pub(super) async fn change(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<String> {
        let (status, body) = self.send(method, path, body).await?;
        let message = match serde_json::from_slice::<Said>(&body) {
            Ok(Said { message }) => message,
            Err(_) => format!("the service answered {status}"),
        };
        if status.is_success() {
            Ok(message)
        } else {
            Err(anyhow!(message))
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let request = self
            .http
            .request(method, format!("http://perennial{path}"))
            .body(body);
        let response = request
            .send()
            .await
            .context("the service does not answer")?;
        Ok((response.status(), response.bytes().await?.to_vec()))
    }
}
