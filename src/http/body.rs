//! Request bodies with bounds in size and time.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hyper::body::{Buf, Bytes};
use tokio::time::timeout;
use warp::http::StatusCode;
use warp::reject::{self, Reject};
use warp::{Filter, Rejection, Reply};

/// How long a client may take to send a whole body. The bodies of this API are a few hundred
/// bytes; without an end, a client that sends one byte a minute keeps its connection for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Extracts the request body, at most `limit` bytes of it, with or without `Content-Length`.
///
/// Rejects with [`BodyError`]. No more than `limit` bytes and one read of the connection are
/// ever held, and a body announced as too large is refused before its first byte is read.
///
/// Put it last in a chain: warp hands out a body once, so a route tried after this one gets none.
pub fn body(limit: u64) -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    body_within(limit, PATIENCE)
}

fn body_within(
    limit: u64,
    patience: Duration,
) -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    warp::header::optional("content-length")
        .and(warp::body::stream())
        .and_then(move |announced: Option<u64>, stream| async move {
            if announced.is_some_and(|length| length > limit) {
                return Err(reject::custom(BodyError::TooLarge));
            }
            timeout(patience, read(stream, limit))
                .await
                .unwrap_or(Err(BodyError::TooSlow))
                .map_err(reject::custom)
        })
}

async fn read(
    stream: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limit: u64,
) -> Result<Bytes, BodyError> {
    let mut stream = std::pin::pin!(stream);
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let mut piece = piece.map_err(|_| BodyError::Broken)?;
        if (bytes.len() + piece.remaining()) as u64 > limit {
            return Err(BodyError::TooLarge);
        }
        bytes.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    Ok(bytes.into())
}

/// Why [`body`] refused. [`accept::serve`](super::accept::serve) answers with
/// [`BodyError::status`] and the error's text unless the routes recover from it themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More bytes than the limit: 413 (RFC 9110 section 15.5.14).
    #[error("the request body is too large")]
    TooLarge,
    /// Not complete within 10 s: 408 (RFC 9110 section 15.5.9).
    #[error("the request body took too long")]
    TooSlow,
    /// The client hung up, or its chunked coding is wrong: 400.
    #[error("the request body could not be read")]
    Broken,
}

impl BodyError {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }
}

impl Reject for BodyError {}

/// Answers a [`BodyError`] as plain text and passes every other rejection on.
pub(super) async fn answer(rejection: Rejection) -> Result<impl Reply, Rejection> {
    match rejection.find::<BodyError>() {
        Some(error) => Ok(warp::reply::with_status(error.to_string(), error.status())),
        None => Err(rejection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::{CHUNKED, Server};

    fn echo() -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
        body(8).map(|bytes: Bytes| bytes.to_vec())
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_arrives_whole() {
        let server = Server::start(echo()).await;
        let requests = [
            "POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\n12345678".to_owned(),
            format!("POST / HTTP/1.1\r\n{CHUNKED}\r\n\r\n3\r\n123\r\n5\r\n45678\r\n0\r\n\r\n"),
        ];
        for request in requests {
            let answer = server.connect().await.ask(&request).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "12345678"));
        }
        let empty = server.connect().await.ask("POST / HTTP/1.1\r\n\r\n").await;
        assert_eq!((empty.status, empty.body.as_str()), (200, ""));
    }

    #[tokio::test]
    async fn a_body_announced_too_large_is_refused_before_it_is_sent() {
        let server = Server::start(echo()).await;
        let answer = server
            .connect()
            .await
            .ask("POST / HTTP/1.1\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(answer.status, 413);
        assert_eq!(answer.body, "the request body is too large");
    }

    #[tokio::test]
    async fn a_chunked_body_is_refused_when_it_passes_the_limit() {
        let server = Server::start(echo()).await;
        // The last chunk never comes: the refusal must not wait for it.
        let request = format!("POST / HTTP/1.1\r\n{CHUNKED}\r\n\r\n5\r\n12345\r\n4\r\n6789\r\n");
        let answer = server.connect().await.ask(&request).await;
        assert_eq!(answer.status, 413);
    }

    #[tokio::test]
    async fn a_stalled_body_ends_with_408() {
        let routes = body_within(8, Duration::from_millis(50)).map(|_| "complete");
        let server = Server::start(routes).await;
        let answer = server
            .connect()
            .await
            .ask("POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\n1234")
            .await;
        assert_eq!(answer.status, 408);
    }

    #[tokio::test]
    async fn a_broken_chunk_is_400() {
        let server = Server::start(echo()).await;
        let request = format!("POST / HTTP/1.1\r\n{CHUNKED}\r\n\r\nnot a size\r\n");
        let answer = server.connect().await.ask(&request).await;
        assert_eq!(answer.status, 400);
    }

    #[tokio::test]
    async fn routes_may_answer_for_themselves() {
        let routes = echo().recover(|rejection: Rejection| async move {
            match rejection.find::<BodyError>() {
                Some(error) => Ok(warp::reply::with_status("own words", error.status())),
                None => Err(rejection),
            }
        });
        let server = Server::start(routes).await;
        let answer = server
            .connect()
            .await
            .ask("POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n")
            .await;
        assert_eq!((answer.status, answer.body.as_str()), (413, "own words"));
    }
}
