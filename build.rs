//! Tells the program which commit it was built from: `BUILT_FROM_COMMIT` where the builder sets
//! it (an image has no repository), else what git says, else `unknown`.
//!
//! The name does not begin with `PERENNIAL_`: cargo hands it to what it runs, and there it would be
//! an unknown setting.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=BUILT_FROM_COMMIT");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    let commit = std::env::var("BUILT_FROM_COMMIT").ok().or_else(from_git);
    println!(
        "cargo::rustc-env=BUILT_FROM_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
}

fn from_git() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}
