//! How credentials stand, for people and programs: `perennial status`, the control socket,
//! the index page.

use std::fmt::Write;

use chrono::{SecondsFormat, TimeDelta};
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Moment, Timestamp},
    credential::{Last, State},
    fleet::Fleet,
    forecast::Forecast,
    name::Name,
};

/// How one credential stands. Holds no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: Name,
    /// Its provider.
    pub provider: Name,
    /// How it stands.
    pub state: State,
    /// How many token sets it has had.
    pub version: u64,
    /// When the access token expires (RFC 3339).
    pub expires_at: Option<Timestamp>,
    /// How long it still lives, in seconds; negative once it has expired.
    pub expires_in: Option<i64>,
    /// When it is refreshed next; absent when a person must act first.
    pub next_refresh_at: Option<Timestamp>,
    /// Why then, or what a person must do.
    pub why: String,
    /// How the last attempt ended.
    pub last: Option<Last>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// A refresh is under way.
    pub refreshing: bool,
}

/// The whole fleet, in the order of names.
pub fn of(fleet: &Fleet, now: Moment) -> Vec<Status> {
    let mut forecast = Forecast::new(now);
    let status = fleet.iter().map(|member| {
        let next = forecast.of(member);
        let credential = member.view().credential.clone();
        let state = credential.state(&member.name, &member.rules, now);
        let why = match (&next, state) {
            (None, State::Pending) => {
                format!(
                    "bring a refresh token: perennial import {} --refresh-token-file FILE",
                    member.name
                )
            }
            (_, State::NeedsLogin) => {
                format!(
                    "log in again, then: perennial import {} --refresh-token-file FILE",
                    member.name
                )
            }
            _ if let Some(why) = &credential.withheld => why.cure(&member.name),
            (_, State::Misconfigured) => "correct the configuration; tried again slowly".to_owned(),
            (Some(next), _) => next.why.to_owned(),
            (None, _) => "a person must act first".to_owned(),
        };
        Status {
            name: member.name.clone(),
            provider: member.provider.name.clone(),
            state,
            version: credential.version,
            expires_at: credential.expires_at(&member.rules, now),
            expires_in: credential
                .time_left(&member.rules, now)
                .map(|left| left.num_seconds()),
            next_refresh_at: next.map(|next| next.at),
            why,
            last: credential.last_result(),
            failures: credential.failures(),
            refreshing: member.is_refreshing(),
        }
    });
    status.collect()
}

/// A table for a terminal.
pub fn table(statuses: &[Status], now: Timestamp) -> String {
    let mut rows =
        vec![["NAME", "STATE", "EXPIRES IN", "NEXT REFRESH", "LAST RESULT"].map(str::to_owned)];
    for status in statuses {
        let next = match status.next_refresh_at {
            _ if status.refreshing => "under way".to_owned(),
            Some(at) if at <= now => format!("now ({})", status.why),
            Some(at) => format!("in {} ({})", span(at - now), status.why),
            None => status.why.clone(),
        };
        rows.push([
            status.name.to_string(),
            status.state.as_str().to_owned(),
            status
                .expires_in
                .map_or("-".into(), |left| span(TimeDelta::seconds(left))),
            next,
            status.last.as_ref().map_or("-".into(), |last| {
                let at = last.at.to_rfc3339_opts(SecondsFormat::Secs, true);
                format!("{} at {at}", last.result)
            }),
        ]);
    }
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut table = String::new();
    for [name, state, expires, next, last] in &rows {
        let [a, b, c, d] = [widths[0], widths[1], widths[2], widths[3]];
        writeln!(
            table,
            "{name:a$}  {state:b$}  {expires:c$}  {next:d$}  {last}"
        )
        .expect("strings grow");
    }
    table
}

/// A time span as people say it: its two largest units.
pub fn span(delta: TimeDelta) -> String {
    let total = delta.num_seconds();
    let (sign, total) = if total < 0 {
        ("-", -total)
    } else {
        ("", total)
    };
    let (days, hours, minutes, seconds) = (
        total / 86_400,
        total / 3_600 % 24,
        total / 60 % 60,
        total % 60,
    );
    let text = match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_600, "1h 0m"),
            (90_061, "1d 1h"),
            (-61, "-1m 1s"),
        ] {
            assert_eq!(span(TimeDelta::seconds(seconds)), text);
        }
    }
}
