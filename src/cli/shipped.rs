//! `perennial dashboards` and `perennial alerts`: the files that are inside the binary, as files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::shipped::{ALERTS, DASHBOARDS, RUNBOOK_URL};

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
    /// Replace files that were changed, or that are of another version
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

impl Target {
    /// All of them, or none where one would overwrite something else.
    fn write(&self, files: &[(&str, String)]) -> anyhow::Result<()> {
        for (name, text) in files {
            let path = self.out.join(name);
            let differs = match fs::read(&path) {
                Ok(found) => found != text.as_bytes(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            };
            if differs && !self.force {
                bail!(
                    "{} is there and differs; nothing was written: add --force to replace it, or name another folder",
                    path.display()
                );
            }
        }
        for (name, text) in files {
            let path = self.out.join(name);
            put(&path, text).with_context(|| path.display().to_string())?;
            super::print(&format!("{}\n", path.display()))?;
        }
        Ok(())
    }
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}
