//! Tells the program which commit it was built from: `PERENNIAL_COMMIT` where the builder sets
//! it (an image has no repository), else what git says, else `unknown`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=PERENNIAL_COMMIT");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    let commit = std::env::var("PERENNIAL_COMMIT").ok().or_else(from_git);
    // Not under the same name: cargo passes it on to what it runs, and the configuration refuses
    // variables with our prefix that it does not know.
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
