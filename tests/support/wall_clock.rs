//! The wall clock of a process under test, which may be set while it runs (libfaketime). Its other
//! clock, that only runs forward, stays as it is: as when an administrator or NTP sets the time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

use super::perennial::Perennial;

/// A wall clock that begins right.
pub struct WallClock {
    folder: TempDir,
    off_by: i64,
}

impl WallClock {
    /// Gives a clock of its own to every command that `perennial` starts from now on.
    pub fn of(perennial: &mut Perennial) -> Self {
        let mut clock = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            off_by: 0,
        };
        clock.set_off_by(0);
        let library = library();
        super::expect_installed("faketime", &library);
        for (name, value) in [
            ("LD_PRELOAD", &*library.to_string_lossy()),
            ("FAKETIME_TIMESTAMP_FILE", &*clock.file().to_string_lossy()),
            // Each reading of the time reads the file, so that a step comes at once.
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ] {
            perennial.set_env(name, value);
        }
        clock
    }

    /// Sets it to so many seconds after the right time, or before when negative.
    pub fn set_off_by(&mut self, seconds: i64) {
        // In one step: half a number would be another time.
        let draft = self.folder.path().join("draft");
        fs::write(&draft, format!("{seconds:+}\n")).expect("a writable temporary folder");
        fs::rename(draft, self.file()).expect("in the same folder");
        self.off_by = seconds;
    }

    /// Sets it to a time in seconds since 1970; from there it runs on.
    pub fn set_to(&mut self, unix: i64) {
        self.set_off_by(unix - right_time() as i64);
    }

    /// By how many seconds it is off.
    pub fn off_by(&self) -> i64 {
        self.off_by
    }

    /// What it shows now, in seconds since 1970.
    pub fn now(&self) -> f64 {
        right_time() + self.off_by as f64
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("off-by")
    }
}

/// Where Debian and its relatives put it.
fn library() -> PathBuf {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    Path::new("/usr/lib")
        .join(triple)
        .join("faketime/libfaketimeMT.so.1")
}

/// What a right clock shows, in seconds since 1970.
#[allow(
    clippy::disallowed_methods,
    reason = "what the process under test says is held against the real time"
)]
pub fn right_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs_f64()
}
