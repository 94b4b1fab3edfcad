//! `perennial dashboards` and `perennial alerts`: the files that are inside the binary, as files.

use std::{fs, io::ErrorKind, path::PathBuf};

use anyhow::{Context, bail};

use crate::{
    shipped::{ALERTS, DASHBOARDS, RUNBOOK_URL, TO_BE_CHANGED},
    sinks::file,
};

#[derive(clap::Args)]
pub(super) struct Dashboards {
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args)]
pub(super) struct Alerts {
    #[command(flatten)]
    target: Target,
    /// Where your people find the runbook; each alert links to its section below it
    #[arg(long, value_name = "URL", default_value = RUNBOOK_URL)]
    runbook_url: String,
}

#[derive(clap::Args)]
struct Target {
    /// The folder that they are written to; made if there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace what differs. Configurations that are there to be changed are kept all the same
    #[arg(long)]
    force: bool,
}

pub(super) fn dashboards(args: &Dashboards) -> anyhow::Result<()> {
    let files = DASHBOARDS.map(|(name, text)| (name, text.to_owned()));
    args.target.write(&files)
}

pub(super) fn alerts(args: &Alerts) -> anyhow::Result<()> {
    let base = args.runbook_url.trim_end_matches(['#', '/']);
    let files = ALERTS.map(|(name, text)| (name, text.replace(RUNBOOK_URL, base)));
    args.target.write(&files)
}

/// What becomes of one file.
enum Fate {
    /// It is not there, or it is the same.
    Written,
    /// It is there, and it is the user's.
    Kept,
    /// It is there, and was changed or is of another version.
    Replaced,
}

impl Target {
    /// All of them, or none where one would overwrite something else.
    fn write(&self, files: &[(&str, String)]) -> anyhow::Result<()> {
        let mut fates = Vec::new();
        for (name, text) in files {
            let path = self.out.join(name);
            let fate = match fs::read(&path) {
                Ok(found) if found == text.as_bytes() => Fate::Written,
                Ok(_) if TO_BE_CHANGED.contains(name) => Fate::Kept,
                Ok(_) => Fate::Replaced,
                Err(error) if error.kind() == ErrorKind::NotFound => Fate::Written,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            };
            fates.push((path, text, fate));
        }
        let replaced: Vec<String> = fates
            .iter()
            .filter(|(.., fate)| matches!(fate, Fate::Replaced))
            .map(|(path, ..)| path.display().to_string())
            .collect();
        if !replaced.is_empty() && !self.force {
            bail!(
                "there already, and different: {}; nothing was written: add --force to replace, or name another folder",
                replaced.join(", ")
            );
        }
        for (path, text, fate) in fates {
            let shown = path.display();
            if let Fate::Kept = fate {
                super::print(&format!("{shown} (yours, kept)\n"))?;
                continue;
            }
            file::replace(&path, text.as_bytes(), 0o644).with_context(|| shown.to_string())?;
            super::print(&format!("{shown}\n"))?;
        }
        Ok(())
    }
}
