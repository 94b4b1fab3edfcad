//! Real parts for the tests: an authorization server, Prometheus, an OTLP receiver, and the binary
//! itself. Each listens on a port of its own on loopback, and is killed when its value is dropped.
//!
//! The tests that use them are plain `#[test]` functions without an async runtime: the parts are
//! other processes, and such a test reads from top to bottom.

pub mod alertmanager;
pub mod authorization_server;
pub mod disk;
pub mod fake_server;
pub mod fault_table;
pub mod full_store;
pub mod http;
pub mod otlp;
pub mod perennial;
pub mod process;
pub mod prometheus;
pub mod token_families;
pub mod wait;
pub mod wall_clock;

use std::path::{Path, PathBuf};

/// The folder of this support code, where `install` puts the parts.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support")
}

/// Panics, naming the cure, unless a part that the tests need is at `path`.
fn expect_installed(part: &str, path: &Path) {
    assert!(
        path.exists(),
        "{part} is not installed ({} is missing): run `make test-parts`",
        path.display()
    );
}
