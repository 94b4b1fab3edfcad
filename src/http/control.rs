//! What the service does for its own command line, over a Unix socket that only its user can
//! open: how credentials stand, a refresh now, a refresh token from elsewhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use warp::{Filter, Rejection, Reply, http::StatusCode, reply::Response};

use super::body::body;
use crate::{
    fleet::Member,
    refresh::{Cause, ImportError, Outcome, Refresher},
    secret::{NotOneLine, Secret},
    status,
};

/// Refresh tokens of some kilobytes exist; nothing larger is one.
const LARGEST_TOKEN: u64 = 64 * 1024;

/// The answer to a request that changes something: one sentence for a person.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    /// What happened, or why it did not.
    pub message: String,
}

/// The routes of the control socket.
pub fn routes(
    refresher: Arc<Refresher>,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let with = warp::any().map(move || refresher.clone());
    let list = warp::path!("api" / "v1" / "credentials")
        .and(warp::get())
        .and(with.clone())
        .map(list);
    let refresh = warp::path!("api" / "v1" / "credentials" / String / "refresh")
        .and(warp::post())
        .and(with.clone())
        .then(refresh);
    let import = warp::path!("api" / "v1" / "credentials" / String / "refresh-token")
        .and(warp::put())
        .and(with)
        .and(body(LARGEST_TOKEN))
        .then(import);
    list.or(refresh).unify().or(import).unify()
}

fn list(refresher: Arc<Refresher>) -> Response {
    warp::reply::json(&status::of(&refresher.fleet, refresher.clock.now())).into_response()
}

async fn refresh(name: String, refresher: Arc<Refresher>) -> Response {
    match refresher.fleet.get(&name) {
        Some(member) => refresh_now(&refresher, member).await,
        None => unknown(&name),
    }
}

async fn refresh_now(refresher: &Arc<Refresher>, member: &Arc<Member>) -> Response {
    let (status, message) = outcome(member, &refresher.refresh(member, Cause::Forced).await);
    say(status, message)
}

/// The outcome of a forced refresh, for a person.
pub fn outcome(member: &Member, outcome: &Outcome) -> (StatusCode, String) {
    let name = &member.name;
    match outcome {
        Outcome::Refreshed(version) => (
            StatusCode::OK,
            format!("{name}: refreshed, now version {version}"),
        ),
        Outcome::Adopted(version) => (
            StatusCode::OK,
            format!("{name}: newer tokens were in the store, now version {version}"),
        ),
        Outcome::NotNeeded => (StatusCode::OK, format!("{name}: nothing to do")),
        Outcome::Postponed(wait) => (
            StatusCode::CONFLICT,
            format!(
                "{name}: not now; it is tried again in {}",
                status::span(*wait)
            ),
        ),
        Outcome::Failed {
            reason,
            detail,
            retry_in,
        } => {
            let next = match retry_in {
                Some(wait) => {
                    let wait = chrono::TimeDelta::from_std(*wait).unwrap_or_default();
                    format!("it is tried again in {}", status::span(wait))
                }
                None => match &member.view().credential.withheld {
                    Some(why) => why.cure(name),
                    None => format!(
                        "log in again, then: perennial import {name} --refresh-token-file FILE"
                    ),
                },
            };
            (
                StatusCode::BAD_GATEWAY,
                format!("{name}: {} ({detail}); {next}", reason.as_str()),
            )
        }
        Outcome::Stopped => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the service is stopping".to_owned(),
        ),
    }
}

async fn import(name: String, refresher: Arc<Refresher>, body: bytes::Bytes) -> Response {
    let Some(member) = refresher.fleet.get(&name) else {
        return unknown(&name);
    };
    let token = match std::str::from_utf8(&body).ok().map(Secret::from_line) {
        Some(Ok(token)) => token,
        _ => return say(StatusCode::BAD_REQUEST, format!("the input {NotOneLine}")),
    };
    match refresher.import(member, token).await {
        Ok(_) => say(
            StatusCode::OK,
            format!("{name}: refresh token saved; its first refresh follows at once"),
        ),
        Err(error @ ImportError::Store(_)) => {
            say(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(error) => say(StatusCode::CONFLICT, error.to_string()),
    }
}

fn unknown(name: &str) -> Response {
    let message =
        format!("{name:?} is not a credential of the running service; perennial status lists them");
    say(StatusCode::NOT_FOUND, message)
}

fn say(status: StatusCode, message: String) -> Response {
    warp::reply::with_status(warp::reply::json(&Said { message }), status).into_response()
}
