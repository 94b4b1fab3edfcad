//! What a token endpoint answered: tokens, or which error. Pure.
//!
//! Servers are read as they are: an error is judged by its `error` code first, whatever the
//! status, and by the status only where there is no code.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta};
use reqwest::StatusCode;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::GrantError;
use crate::{
    clock::Timestamp,
    credential::{LifetimeSource, Reason, TokenDetails, TokenSet},
    secret::Secret,
};

/// An answer as it came.
pub struct Raw {
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The `Date` header: the server's clock.
    pub date: Option<String>,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

/// What must be known to read an answer.
pub struct Context<'a> {
    /// When the request was sent.
    pub issued_at: Timestamp,
    /// The lifetime where neither answer nor token tell.
    pub default_expires_in: Option<Duration>,
    /// The provider's own codes for a dead grant.
    pub needs_login_errors: &'a [String],
    /// The tokens before: what an answer omits is carried forward.
    pub previous: Option<&'a TokenSet>,
    /// Was its refresh token sent?
    pub spends: bool,
    /// What was sent, and must not come back to us as a word to print.
    pub secrets: Vec<&'a str>,
}

/// A server that asks for longer than this is not believed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// The lifetime assumed where nothing is known.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(3_600);

/// Reads an answer. A token set comes back whenever there is a new token in it: it is saved
/// before anything else about it is judged.
pub fn read(status: StatusCode, raw: &Raw, context: &Context<'_>) -> Result<TokenSet, GrantError> {
    let Some(fields) = fields(raw) else {
        return Err(by_status(status, raw, context));
    };
    // Tokens first: a refresh token that comes beside an `error` has replaced ours.
    if status.is_success()
        && let Some(tokens) = tokens(&fields, raw, context)
    {
        return Ok(tokens);
    }
    if status.is_success()
        && let Some(tokens) = refresh_token_alone(&fields, context)
    {
        return Err(GrantError::RefreshTokenAlone {
            tokens: Box::new(tokens),
            retry_after: retry_after(raw, context.issued_at),
        });
    }
    // Some servers answer 200 to everything.
    match text(&fields, "error") {
        Some(code) => Err(by_code(&code, status, raw, context)),
        None if status.is_success() => Err(bad_answer("no_access_token")),
        None => Err(by_status(status, raw, context)),
    }
}

/// The fields of a JSON object, or of a form for servers that know no other way.
fn fields(raw: &Raw) -> Option<Map<String, Value>> {
    // RFC 8259 section 8.1 allows to ignore a byte order mark, and asks for UTF-8. A server
    // that sends a name in another encoding beside the tokens has rotated them all the same.
    let text = Zeroizing::new(String::from_utf8_lossy(&raw.body).into_owned());
    if let Ok(Value::Object(fields)) = serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        return Some(fields);
    }
    let is_form = raw.content_type.as_deref().is_some_and(|content_type| {
        content_type
            .to_ascii_lowercase()
            .starts_with("application/x-www-form-urlencoded")
    });
    is_form.then(|| {
        url::form_urlencoded::parse(&raw.body)
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect()
    })
}

fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    let text = fields.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// A positive number: an integer, a float or a string with one. Zero and less say nothing.
fn number(fields: &Map<String, Value>, name: &str) -> Option<f64> {
    let number = match fields.get(name)? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    (number > 0.0).then_some(number)
}

fn seconds(fields: &Map<String, Value>, name: &str) -> Option<Duration> {
    // A hundred years: whatever is beyond only overflows. Less than a nanosecond is nothing.
    let duration = Duration::from_secs_f64(number(fields, name)?.min(3_153_600_000.0));
    (!duration.is_zero()).then_some(duration)
}

/// A point in time: seconds or milliseconds since 1970, or RFC 3339.
fn instant(fields: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    let value = fields.get(name)?;
    if let Some(text) = value.as_str()
        && let Ok(at) = DateTime::parse_from_rfc3339(text)
    {
        return Some(at.to_utc());
    }
    let number = number(fields, name)?;
    // As seconds this would be after the year 5000.
    let number = if number > 1e11 {
        number / 1_000.0
    } else {
        number
    };
    DateTime::from_timestamp(number as i64, 0)
}

fn tokens(fields: &Map<String, Value>, raw: &Raw, context: &Context<'_>) -> Option<TokenSet> {
    let access_token = text(fields, "access_token")?;
    let (lifetime, lifetime_source) = lifetime(fields, &access_token, raw, context);
    let previous = context.previous;
    // RFC 6749 section 6: without a new refresh token the old one stays in use, and so
    // does the end that was announced for it.
    let (refresh_token, carried_end) = match text(fields, "refresh_token") {
        Some(new) => (Some(Secret::new(new)), None),
        None => (
            previous.and_then(|previous| previous.refresh_token.clone()),
            previous.and_then(|previous| previous.details.refresh_token_expires_at),
        ),
    };
    let refresh_token_expires_at = refresh_token_end(fields, context).or(carried_end);
    let refresh_token_life = life_until(refresh_token_expires_at, context);
    Some(TokenSet {
        access_token: Secret::new(access_token),
        refresh_token,
        details: TokenDetails {
            issued_at: context.issued_at,
            lifetime,
            lifetime_source,
            token_type: text(fields, "token_type").unwrap_or_else(|| "Bearer".into()),
            scope: text(fields, "scope")
                .or_else(|| previous.and_then(|previous| previous.details.scope.clone())),
            refresh_in: seconds(fields, "refresh_in"),
            refresh_token_expires_at,
            refresh_token_life,
            provider: None,
        },
    })
}

/// The tokens before with a new refresh token, where an answer has that and no access token.
fn refresh_token_alone(fields: &Map<String, Value>, context: &Context<'_>) -> Option<TokenSet> {
    let previous = context.previous.filter(|_| context.spends)?;
    let new = Secret::new(text(fields, "refresh_token")?);
    let end = refresh_token_end(fields, context);
    (previous.refresh_token.as_ref()? != &new).then(|| TokenSet {
        refresh_token: Some(new),
        details: TokenDetails {
            refresh_token_expires_at: end,
            refresh_token_life: life_until(end, context),
            ..previous.details.clone()
        },
        ..previous.clone()
    })
}

/// How long a refresh token still lives, in seconds: no RFC names it. Google and Microsoft, Keycloak,
/// Intuit.
const REFRESH_TOKEN_LEFT: [&str; 3] = [
    "refresh_token_expires_in",
    "refresh_expires_in",
    "x_refresh_token_expires_in",
];

/// When the refresh token dies, where the answer says it.
fn refresh_token_end(fields: &Map<String, Value>, context: &Context<'_>) -> Option<Timestamp> {
    // A client has no login that could end.
    if !context.spends {
        return None;
    }
    let lifetime = REFRESH_TOKEN_LEFT
        .iter()
        .find_map(|name| seconds(fields, name))?;
    let lifetime = TimeDelta::from_std(lifetime).ok()?;
    context.issued_at.checked_add_signed(lifetime)
}

/// The whole life of a refresh token that dies at `end`: the most that was ever left of it.
fn life_until(end: Option<Timestamp>, context: &Context<'_>) -> Option<Duration> {
    let left = (end? - context.issued_at).to_std().unwrap_or_default();
    let before = context
        .previous
        .and_then(|previous| previous.details.refresh_token_life);
    Some(before.map_or(left, |before| before.max(left)))
}

/// The lifetime and where it comes from, best source first.
fn lifetime(
    fields: &Map<String, Value>,
    access_token: &str,
    raw: &Raw,
    context: &Context<'_>,
) -> (Duration, LifetimeSource) {
    let until = |at| from_now(at, raw, context.issued_at);
    if let Some(lifetime) = seconds(fields, "expires_in") {
        return (lifetime, LifetimeSource::Answer);
    }
    if let Some(lifetime) = instant(fields, "expires_at").and_then(until) {
        return (lifetime, LifetimeSource::Answer);
    }
    // `iat` is the server's clock too, so the difference is right when that clock is not.
    if let Some(claims) = claims(access_token)
        && let Some(end) = instant(&claims, "exp")
    {
        let by_server = instant(&claims, "iat").and_then(|start| (end - start).to_std().ok());
        if let Some(lifetime) = by_server
            .filter(|life| !life.is_zero())
            .or_else(|| until(end))
        {
            return (lifetime, LifetimeSource::JwtExp);
        }
    }
    match context.default_expires_in {
        Some(lifetime) => (lifetime, LifetimeSource::Provider),
        None => (ASSUMED_LIFETIME, LifetimeSource::Assumed),
    }
}

/// The claims of a JWT (RFC 7519), unverified: only the resource server must verify them.
fn claims(access_token: &str) -> Option<Map<String, Value>> {
    let mut parts = access_token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// Codes that only a person can help with, at every provider. The last four are of OpenID
/// Connect Core section 3.1.2.6; Microsoft answers them to a refresh.
const NEEDS_LOGIN: [&str; 5] = [
    "invalid_grant",
    "interaction_required",
    "login_required",
    "consent_required",
    "account_selection_required",
];
/// Codes that pass by themselves.
const TRANSIENT: [&str; 3] = [
    "server_error",
    "temporarily_unavailable",
    "internal_failure",
];

fn by_code(code: &str, status: StatusCode, raw: &Raw, context: &Context<'_>) -> GrantError {
    let detail = printable(code, context);
    let retry_after = retry_after(raw, context.issued_at);
    let transient = |reason| GrantError::Transient {
        reason,
        detail: detail.clone(),
        doubtful: false,
        retry_after,
    };
    if NEEDS_LOGIN.contains(&code) || context.needs_login_errors.iter().any(|alias| alias == code) {
        GrantError::NeedsLogin { detail }
    } else if TRANSIENT.contains(&code) {
        transient(Reason::ServerError)
    } else if code == "slow_down" {
        transient(Reason::RateLimited)
    } else if MISCONFIGURED.contains(&code) {
        GrantError::Misconfigured {
            detail,
            retry_after,
        }
    } else if status == StatusCode::TOO_MANY_REQUESTS {
        transient(Reason::RateLimited)
    } else if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        transient(Reason::ServerError)
    } else {
        // An unknown refusal: a person should look, and it is asked again, slowly.
        GrantError::Misconfigured {
            detail,
            retry_after,
        }
    }
}

/// Codes of RFC 6749 section 5.2 and RFC 8707 that blame the client or the request.
const MISCONFIGURED: [&str; 6] = [
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_request",
    "invalid_target",
];

fn by_status(status: StatusCode, raw: &Raw, context: &Context<'_>) -> GrantError {
    let reason = match status {
        StatusCode::TOO_MANY_REQUESTS => Reason::RateLimited,
        StatusCode::REQUEST_TIMEOUT => Reason::ServerError,
        status if status.is_server_error() => Reason::ServerError,
        _ => Reason::BadAnswer,
    };
    // A gateway that lost its server, and a success that cannot be read, may both hide a
    // rotation. Everything else is a refusal.
    let gateway = [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT].contains(&status);
    GrantError::Transient {
        reason,
        detail: format!("http_{}", status.as_u16()),
        doubtful: gateway || status.is_success(),
        retry_after: retry_after(raw, context.issued_at),
    }
}

/// Is this error code in one of our lists?
pub fn is_known(code: &str) -> bool {
    let lists = [&NEEDS_LOGIN[..], &TRANSIENT, &MISCONFIGURED, &["slow_down"]];
    lists.iter().any(|list| list.contains(&code))
}

fn bad_answer(detail: &str) -> GrantError {
    GrantError::Transient {
        reason: Reason::BadAnswer,
        detail: detail.into(),
        doubtful: true,
        retry_after: None,
    }
}

/// How long it is until a time that the server named; none when it has passed. It goes by the
/// server's clock, which may be hours off ours: so it is held against the `Date` of the answer
/// (RFC 9110 section 6.6.1), and against our clock only where there is none.
fn from_now(at: Timestamp, raw: &Raw, now: Timestamp) -> Option<Duration> {
    let now = raw.date.as_deref().and_then(http_date).unwrap_or(now);
    let left = (at - now).to_std().ok()?;
    (!left.is_zero()).then_some(left)
}

fn http_date(text: &str) -> Option<Timestamp> {
    Some(DateTime::parse_from_rfc2822(text.trim()).ok()?.to_utc())
}

/// `Retry-After` in both forms (RFC 9110 section 10.2.3), at most [`LONGEST_RETRY_AFTER`].
fn retry_after(raw: &Raw, now: Timestamp) -> Option<Duration> {
    let value = raw.retry_after.as_deref()?.trim();
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if is_number => LONGEST_RETRY_AFTER,
        Err(_) => from_now(http_date(value)?, raw, now)?,
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// An error code fit for a log. What we know is safe. Anything else might be anything, even
/// our own token sent back or a new one, so it must look like a code (`bad_refresh_token`; no
/// digits, one case) and share nothing with what was sent.
fn printable(code: &str, context: &Context<'_>) -> String {
    let known = is_known(code) || context.needs_login_errors.iter().any(|own| own == code);
    let words = |letter: fn(&char) -> bool| code.chars().all(|c| c == '_' || letter(&c));
    let looks_like_one =
        code.len() <= 40 && (words(char::is_ascii_lowercase) || words(char::is_ascii_uppercase));
    let secrets = || context.secrets.iter().filter(|secret| !secret.is_empty());
    let shares = || secrets().any(|secret| secret.contains(code) || code.contains(secret));
    if known || (looks_like_one && !shares()) {
        code.to_owned()
    } else {
        "unreadable_code".into()
    }
}

#[cfg(test)]
mod tests;
