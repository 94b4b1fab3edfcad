//! The series of credentials and jobs, written from their state when Prometheus asks: they
//! exist from the start, tell the truth now, and are gone when their credential is.
//!
//! By hand, and not through the collectors of the prometheus crate: for ten thousand
//! credentials those take ten times as long (see `docs/decisions/0004-metrics.md`). Names need no
//! escaping: see [`crate::name::Name`].

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    clock::{Moment, Timestamp},
    credential::{Credential, Reason, State},
    fleet::{Fleet, Member, View},
    forecast::Forecast,
    job::Trigger,
    name::Name,
    oauth::answer::is_known,
    provider::Provider,
    runner::{Hosted, Missed, RunOutcome},
    scheduler::Scheduler,
};

/// One family with one series for each member, of those that have a value.
type Gauge = (&'static str, &'static str, fn(&Row<'_>) -> Option<f64>);

/// A member at the moment of the scrape.
struct Row<'a> {
    member: &'a Member,
    labels: String,
    view: View,
    next_attempt: Option<f64>,
    now: Moment,
}

impl Row<'_> {
    fn credential(&self) -> &Credential {
        &self.view.credential
    }
}

const GAUGES: [Gauge; 10] = [
    (
        "token_expires_at_seconds",
        "When the access token expires, in seconds since 1970.",
        |row| {
            row.credential()
                .expires_at(&row.member.rules, row.now)
                .map(unix)
        },
    ),
    (
        "token_refresh_due_at_seconds",
        "When policy wants the access token refreshed, in seconds since 1970; in the past while the refresh is overdue.",
        |row| {
            let Row { member, now, .. } = row;
            row.credential()
                .due_at(&member.name, &member.rules, *now)
                .map(unix)
        },
    ),
    (
        "token_refresh_mandatory_at_seconds",
        "From when on readers wait for the refresh, in seconds since 1970.",
        |row| {
            row.credential()
                .mandatory_at(&row.member.rules, row.now)
                .map(unix)
        },
    ),
    (
        "token_refresh_next_attempt_at_seconds",
        "When the next refresh is tried, by policy, schedule or retry, in seconds since 1970. Absent while a person must act first.",
        |row| row.next_attempt,
    ),
    (
        "token_expiry_alert_threshold_seconds",
        "Warn when less than this is left: a quarter of the token's life, at most 6 hours, or as configured.",
        |row| {
            row.credential()
                .alert_threshold(&row.member.rules)
                .map(seconds)
        },
    ),
    (
        "refresh_token_expires_at_seconds",
        "When the refresh token expires, in seconds since 1970, where the provider said it.",
        |row| {
            let end = row.credential().refresh_token_expires_at(row.now);
            end.map(unix)
        },
    ),
    (
        "human_needed_by_timestamp_seconds",
        "When only a new login helps, in seconds since 1970; absent while no answer has shown a deadline that refreshes do not move.",
        |row| row.credential().human_needed_by(row.now).map(unix),
    ),
    (
        "human_needed_alert_threshold_seconds",
        "Warn when a new login is needed in less than this: a quarter of the refresh token's life, at most 7 days.",
        |row| {
            row.credential().human_needed_by(row.now)?;
            row.credential().human_alert_threshold().map(seconds)
        },
    ),
    (
        "refresh_attempts_left",
        "How many attempts the retry policy still has before the access token expires (100: plenty).",
        |row| {
            let attempts =
                row.credential()
                    .attempts_left(&row.member.name, &row.member.rules, row.now);
            Some(attempts.into())
        },
    ),
    (
        "token_version",
        "How many token sets this credential has had.",
        |row| Some(row.credential().version as f64),
    ),
];

/// The series of all members.
pub fn credentials(fleet: &Fleet, now: Moment, out: &mut String) {
    let mut forecast = Forecast::new(now);
    let rows: Vec<Row<'_>> = fleet
        .iter()
        .map(|member| {
            // A statement of its own: the forecast locks the view again.
            let view = member.view().clone();
            Row {
                labels: format!(
                    "credential=\"{}\",provider=\"{}\"",
                    member.name, member.provider.name
                ),
                view,
                next_attempt: forecast.of(member).map(|next| unix(next.at)),
                member,
                now,
            }
        })
        .collect();

    header(
        out,
        "refresh_success_total",
        "counter",
        "Refreshes that ended with new tokens saved.",
    );
    for Row { labels, view, .. } in &rows {
        line(out, "refresh_success_total", labels, view.successes as f64);
    }
    header(
        out,
        "refresh_failures_total",
        "counter",
        "Refreshes that failed, by reason.",
    );
    for Row { labels, view, .. } in &rows {
        for reason in Reason::ALL {
            let labels = format_args!("{labels},reason=\"{}\"", reason.as_str());
            line(
                out,
                "refresh_failures_total",
                labels,
                view.failures[reason.index()] as f64,
            );
        }
    }
    for (name, help, value) in GAUGES {
        header(out, name, "gauge", help);
        for row in &rows {
            if let Some(value) = value(row) {
                line(out, name, &row.labels, value);
            }
        }
    }
    header(
        out,
        "token_lifetime_seconds",
        "gauge",
        "How long the access token lives from its issue, and how that became known.",
    );
    for row in &rows {
        if let Some((tokens, _)) = row.credential().live_tokens() {
            let source = tokens.details.lifetime_source.as_str();
            let labels = format_args!("{},source=\"{source}\"", row.labels);
            line(
                out,
                "token_lifetime_seconds",
                labels,
                tokens.details.lifetime.as_secs_f64(),
            );
        }
    }
    header(
        out,
        "credential_state",
        "gauge",
        "1 for the state that the credential is in, 0 for the others.",
    );
    for row in &rows {
        let current = row
            .credential()
            .state(&row.member.name, &row.member.rules, now);
        for state in State::ALL {
            let labels = format_args!("{},state=\"{}\"", row.labels, state.as_str());
            line(
                out,
                "credential_state",
                labels,
                f64::from(u8::from(state == current)),
            );
        }
    }
    header(
        out,
        "credential_trouble",
        "gauge",
        "1 while the last attempt has failed, with what went wrong; absent otherwise.",
    );
    for row in &rows {
        if let Some((reason, detail)) = row.credential().trouble_in_words() {
            let (reason, error) = (reason.as_str(), error_label(detail));
            let labels = format_args!("{},reason=\"{reason}\",error=\"{error}\"", row.labels);
            line(out, "credential_trouble", labels, 1.0);
        }
    }
    header(
        out,
        "perennial_sink_consecutive_failures",
        "gauge",
        "Failed deliveries in a row; 0 while the newest token is there.",
    );
    for row in &rows {
        for (sink, failures) in row.member.failed_deliveries() {
            let labels = format_args!("{},sink=\"{sink}\"", row.labels);
            line(
                out,
                "perennial_sink_consecutive_failures",
                labels,
                failures.into(),
            );
        }
    }
    let providers: BTreeMap<&Name, &Provider> = rows
        .iter()
        .map(|row| (&row.member.provider.name, &*row.member.provider))
        .collect();
    providers_of(&providers, now, out);
}

/// The series of the providers that have credentials.
fn providers_of(providers: &BTreeMap<&Name, &Provider>, now: Moment, out: &mut String) {
    type ProviderGauge = (&'static str, &'static str, fn(&Provider, Moment) -> f64);
    let gauges: [ProviderGauge; 2] = [
        (
            "perennial_provider_consecutive_failures",
            "Failed requests in a row, over all credentials of the provider.",
            |provider, _| provider.failures().into(),
        ),
        (
            "perennial_provider_paused",
            "1 while the provider is left alone, but for one request now and then that tries it.",
            |provider, now| f64::from(u8::from(provider.is_left_alone(now))),
        ),
    ];
    for (name, help, value) in gauges {
        header(out, name, "gauge", help);
        for (provider, health) in providers {
            let labels = format_args!("provider=\"{provider}\"");
            line(out, name, labels, value(health, now));
        }
    }
}

/// The series of all jobs.
pub fn jobs<'a>(
    jobs: impl Iterator<Item = &'a Hosted> + Clone,
    scheduler: &Scheduler,
    now: Moment,
    out: &mut String,
) {
    header(
        out,
        "perennial_job_info",
        "gauge",
        "What each job is; always 1.",
    );
    for job in jobs.clone() {
        let (schedule, zone) = match &job.schedule {
            Some(schedule) => (
                schedule.expression().to_owned(),
                schedule.zone().to_string(),
            ),
            None => Default::default(),
        };
        let (name, kind) = (&job.name, job.kind);
        let labels = format_args!(
            "job_name=\"{name}\",kind=\"{kind}\",schedule=\"{}\",timezone=\"{zone}\"",
            escaped(&schedule),
        );
        line(out, "perennial_job_info", labels, 1.0);
    }
    header(
        out,
        "perennial_job_runs_total",
        "counter",
        "Runs that ended, by outcome and trigger.",
    );
    for job in jobs.clone() {
        let runs = job.state().runs;
        for trigger in Trigger::ALL {
            for outcome in RunOutcome::ALL {
                let labels = format_args!(
                    "job_name=\"{}\",kind=\"{}\",outcome=\"{}\",trigger=\"{}\"",
                    job.name,
                    job.kind,
                    outcome.as_str(),
                    trigger.as_str(),
                );
                let count = runs[trigger as usize][outcome as usize];
                line(out, "perennial_job_runs_total", labels, count as f64);
            }
        }
    }
    header(
        out,
        "perennial_job_missed_runs_total",
        "counter",
        "Firings that led to no run, by reason.",
    );
    for job in jobs.clone() {
        let missed = job.state().missed;
        for reason in Missed::ALL {
            let labels = format_args!("job_name=\"{}\",reason=\"{}\"", job.name, reason.as_str());
            line(
                out,
                "perennial_job_missed_runs_total",
                labels,
                missed[reason as usize] as f64,
            );
        }
    }
    type JobGauge = (
        &'static str,
        &'static str,
        fn(&Hosted, &Scheduler, Moment) -> Option<f64>,
    );
    let gauges: [JobGauge; 8] = [
        (
            "perennial_job_running",
            "Runs under way, those that a job woke up for not counted.",
            |job, _, _| Some(job.state().running.into()),
        ),
        (
            "perennial_job_paused",
            "1 while the job is paused.",
            |_, _, _| Some(0.0),
        ),
        (
            "perennial_job_running_since_timestamp_seconds",
            "When the oldest attempt under way began, in seconds since 1970; absent while none is.",
            |job, _, now| Some(unix(job.state().running_since(now)?.on_wall(now))),
        ),
        (
            "perennial_job_timeout_seconds",
            "How long one attempt of the job may take.",
            |job, _, _| Some(job.timeout.as_secs_f64()),
        ),
        (
            "perennial_job_consecutive_failures",
            "Failed runs in a row.",
            |job, _, _| Some(job.state().consecutive_failures.into()),
        ),
        (
            "perennial_job_next_run_timestamp_seconds",
            "The first firing of the schedule that was not dealt with, in seconds since 1970; in the past while it is overdue.",
            |job, scheduler, _| scheduler.next_firing(job.schedule.as_ref()?).map(unix),
        ),
        (
            "perennial_job_last_run_timestamp_seconds",
            "When the last run started, in seconds since 1970.",
            |job, _, now| Some(unix(job.state().last_run?.on_wall(now))),
        ),
        (
            "perennial_job_last_success_timestamp_seconds",
            "When the last successful run ended, in seconds since 1970.",
            |job, _, now| Some(unix(job.state().last_success?.on_wall(now))),
        ),
    ];
    for (name, help, value) in gauges {
        header(out, name, "gauge", help);
        for job in jobs.clone() {
            if let Some(value) = value(job, scheduler, now) {
                line(out, name, format_args!("job_name=\"{}\"", job.name), value);
            }
        }
    }
}

/// What we call things that no server named.
const OWN_WORDS: [&str; 19] = [
    "connect",
    "connection_broke",
    "no_answer_in_time",
    "answer_too_large",
    "no_access_token",
    "no_refresh_token",
    "refresh_token_known_dead",
    "nothing_sent",
    "not_read_again",
    "unreadable_code",
    "row_unreadable",
    "tokens_of_another_provider",
    "discovery_unreachable",
    "discovery_not_found",
    "discovery_too_large",
    "discovery_not_metadata",
    "discovery_issuer_mismatch",
    "discovery_bad_token_endpoint",
    "discovery_token_endpoint_without_tls",
];

/// What went wrong, as a label: an error code of the standards, a word of ours, an HTTP status. A
/// server's own code is any text, so it is `other`.
fn error_label(detail: &str) -> &str {
    let status = detail
        .trim_start_matches("discovery_")
        .strip_prefix("http_");
    let is_status = status.is_some_and(|digits| digits.len() == 3 && digits.parse::<u16>().is_ok());
    if is_status || is_known(detail) || OWN_WORDS.contains(&detail) {
        detail
    } else {
        "other"
    }
}

/// A label value that may hold anything, such as a schedule over two lines.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("strings grow");
}

fn line(out: &mut String, name: &str, labels: impl std::fmt::Display, value: f64) {
    writeln!(out, "{name}{{{labels}}} {value}").expect("strings grow");
}

fn unix(at: Timestamp) -> f64 {
    at.timestamp_millis() as f64 / 1_000.0
}

fn seconds(delta: chrono::TimeDelta) -> f64 {
    delta.num_milliseconds() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_label_is_a_word_of_the_standards_or_ours_or_other() {
        let known = [
            "invalid_grant",
            "invalid_client",
            "slow_down",
            "http_503",
            "discovery_http_404",
        ];
        for known in known.iter().chain(&OWN_WORDS) {
            assert_eq!(error_label(known), *known);
        }
        for foreign in ["bad_refresh_token", "http_", "http_5034", "http_x03", ""] {
            assert_eq!(error_label(foreign), "other", "{foreign}");
        }
    }
}
