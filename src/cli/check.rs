//! `perennial check`: what the configuration means, without starting anything.

use std::{fmt::Write, time::Duration};

use chrono::TimeDelta;

use super::{Failure, print};
use crate::{
    app,
    clock::{Clock, SystemClock},
    config::{Config, Loaded},
    name::Name,
    schedule::Schedule,
    status::span,
};

const FIRINGS: usize = 5;

pub(super) fn run(loaded: &Loaded) -> Result<(), Failure> {
    let config = &loaded.config;
    let from = loaded
        .file
        .as_ref()
        .map_or("the environment".into(), |file| file.display().to_string());
    let mut report = format!(
        "{from}: valid; {}, {}, {}\n",
        count(config.credentials.len(), "credential"),
        count(config.providers.len(), "provider"),
        count(config.jobs.len(), "job"),
    );
    let now = SystemClock::new().now().wall;
    for (name, job) in &config.jobs {
        match &job.schedule {
            None => writeln!(
                report,
                "\njobs.{name}: no schedule; runs when something is due"
            )?,
            Some(text) => {
                let schedule = Schedule::parse(text, job.tz())?;
                writeln!(report, "\njobs.{name}: {schedule} in {}", job.timezone)?;
                for at in schedule.upcoming(now).take(FIRINGS) {
                    let wait = span(at - now);
                    writeln!(
                        report,
                        "  {} (in {wait})",
                        at.with_timezone(&job.tz())
                            .format("%a %Y-%m-%d %H:%M:%S %Z")
                    )?;
                }
            }
        }
    }
    let warnings = warnings(config, |_| None)?;
    let warnings = loaded
        .warnings
        .iter()
        .map(ToString::to_string)
        .chain(warnings);
    for (index, warning) in warnings.enumerate() {
        if index == 0 {
            report.push('\n');
        }
        writeln!(report, "warning: {warning}")?;
    }
    print(&report)?;
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// What works, but hardly as meant. `lifetime` is what is known of a credential's access
/// tokens; where nothing is, the provider's `default_expires_in` is taken.
pub(super) fn warnings(
    config: &Config,
    lifetime: impl Fn(&Name) -> Option<Duration>,
) -> anyhow::Result<Vec<String>> {
    let now = SystemClock::new().now().wall;
    let mut warnings = Vec::new();
    for (settings, schedule) in app::schedules(config)? {
        let gap = schedule.largest_gap(now);
        let too_short = config.credentials.iter().find_map(|(name, credential)| {
            let assumed = config.providers[&credential.provider].default_expires_in;
            let lives = lifetime(name)
                .or(assumed)
                .filter(|_| settings.covers(name.as_str()))?;
            (gap > lives.mul_f64(2.0 / 3.0)).then_some((name, lives))
        });
        if let Some((name, lives)) = too_short {
            let say = |duration| span(TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX));
            warnings.push(format!(
                "schedule \"{schedule}\" leaves {} between firings, more than two thirds of the {} that tokens of {name} live; they are refreshed in between all the same",
                say(gap),
                say(lives),
            ));
        }
    }
    let covering = config
        .jobs
        .values()
        .filter(|job| job.kind == "token_refresh");
    let covering: Vec<crate::jobs::token_refresh::Settings> = covering
        .map(|job| crate::plugins::parse(&job.settings).map_err(anyhow::Error::msg))
        .collect::<anyhow::Result<_>>()?;
    for name in config.credentials.keys() {
        if !covering
            .iter()
            .any(|settings| settings.covers(name.as_str()))
        {
            warnings.push(format!(
                "credentials.{name}: no job of kind token_refresh covers it, so nothing keeps it alive"
            ));
        }
    }
    Ok(warnings)
}
