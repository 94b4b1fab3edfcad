//! The series of credentials and jobs, written from their state when Prometheus asks: they
//! exist from the start, tell the truth now, and are gone when their credential is.
//!
//! By hand, and not through the collectors of the prometheus crate: for ten thousand
//! credentials those take ten times as long (see `docs/decisions/0004-metrics.md`). Names need no
//! escaping: see [`crate::name::Name`].

use std::fmt::Write;

use crate::{
    clock::{Moment, Timestamp},
    credential::{Credential, Reason, State},
    fleet::{Fleet, Member, View},
    forecast::Forecast,
    job::Trigger,
    runner::{Hosted, Missed, RunOutcome},
};

/// One family with one series for each member, of those that have a value.
type Gauge = (&'static str, &'static str, fn(&Row<'_>) -> Option<f64>);

/// A member at the moment of the scrape.
struct Row<'a> {
    member: &'a Member,
    labels: String,
    view: View,
    due: Option<f64>,
    now: Moment,
}

impl Row<'_> {
    fn credential(&self) -> &Credential {
        &self.view.credential
    }
}

const GAUGES: [Gauge; 7] = [
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
        "When the next refresh is due by policy or schedule, in seconds since 1970. Absent while a person must act first.",
        |row| row.due,
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
        |row| refresh_token_end(row).map(unix),
    ),
    (
        "human_needed_by_timestamp_seconds",
        "The earliest time at which only a new login helps, in seconds since 1970, where it is known.",
        |row| refresh_token_end(row).map(unix),
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

fn refresh_token_end(row: &Row<'_>) -> Option<Timestamp> {
    let (tokens, _) = row.credential().tokens.as_ref()?;
    tokens.details.refresh_token_expires_at
}

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
                due: forecast.of(member).map(|next| unix(next.at)),
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
}

/// The series of all jobs.
pub fn jobs<'a>(jobs: impl Iterator<Item = &'a Hosted> + Clone, now: Moment, out: &mut String) {
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
        fn(&Hosted, Moment) -> Option<f64>,
    );
    let gauges: [JobGauge; 6] = [
        (
            "perennial_job_running",
            "Runs under way, those that a job woke up for not counted.",
            |job, _| Some(job.state().running.into()),
        ),
        (
            "perennial_job_paused",
            "1 while the job is paused.",
            |_, _| Some(0.0),
        ),
        (
            "perennial_job_consecutive_failures",
            "Failed runs in a row.",
            |job, _| Some(job.state().consecutive_failures.into()),
        ),
        (
            "perennial_job_next_run_timestamp_seconds",
            "When the schedule fires next, in seconds since 1970.",
            |job, now| job.schedule.as_ref()?.next_after(now.wall).map(unix),
        ),
        (
            "perennial_job_last_run_timestamp_seconds",
            "When the last run started, in seconds since 1970.",
            |job, now| Some(unix(job.state().last_run?.on_wall(now))),
        ),
        (
            "perennial_job_last_success_timestamp_seconds",
            "When the last successful run ended, in seconds since 1970.",
            |job, now| Some(unix(job.state().last_success?.on_wall(now))),
        ),
    ];
    for (name, help, value) in gauges {
        header(out, name, "gauge", help);
        for job in jobs.clone() {
            if let Some(value) = value(job, now) {
                line(out, name, format_args!("job_name=\"{}\"", job.name), value);
            }
        }
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
