//! A small disk that a test can fill, free, and make read-only. It is a `tmpfs` in a user and
//! mount namespace, so no privileges are needed; only processes that are started on it see it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::process::{Finished, Process};

/// Far more than mounting takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A disk of one megabyte. It is gone when this is dropped and no process is on it.
pub struct Disk {
    /// Keeps the namespaces.
    _holder: Process,
    holder_id: String,
    mounted_at: PathBuf,
}

impl Disk {
    /// Mounts one on a folder.
    pub fn mounted_at(folder: &Path) -> Self {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o size=1m disk \"$0\" && echo holder $$ && exec sleep 600")
            .arg(folder);
        let holder = Process::start("a disk", &mut unshare);
        let what = "a mount (it needs user namespaces: sysctl kernel.unprivileged_userns_clone=1)";
        let line = holder.wait_for_line(what, PATIENCE, |line| line.starts_with("holder "));
        Self {
            holder_id: line["holder ".len()..].to_owned(),
            _holder: holder,
            mounted_at: folder.to_owned(),
        }
    }

    /// The words before a command that is to see the disk. SIGXFSZ does not end it, so that it may
    /// be limited, and its working folder is the given one.
    pub fn launcher<'a>(&'a self, folder: &'a str) -> [&'a str; 10] {
        [
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--mount",
            "--target",
            &self.holder_id,
            "sh",
            "-c",
            "trap '' XFSZ; cd \"$0\" && exec \"$@\"",
            folder,
        ]
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let filled = self.shell("cat /dev/zero > filler");
        assert!(filled.stderr.contains("No space left"), "{filled:?}");
    }

    /// Makes room again.
    pub fn free(&self) {
        let freed = self.shell("rm filler");
        assert_eq!(freed.code(), Some(0), "{freed:?}");
    }

    /// Makes it read-only, or writable again. Nobody may have a file open for writing.
    pub fn remount(&self, how: &str) {
        let remounted = self.shell(&format!("mount -o remount,{how} ."));
        assert_eq!(remounted.code(), Some(0), "{remounted:?}");
    }

    /// Each file on it, and what is in it.
    pub fn fingerprint(&self) -> String {
        self.shell("sha256sum *").stdout
    }

    fn shell(&self, script: &str) -> Finished {
        let folder = self.mounted_at.to_str().expect("plain names");
        let [program, words @ ..] = self.launcher(folder);
        let mut command = Command::new(program);
        command.args(words).args(["sh", "-c", script]);
        Process::start(script, &mut command).wait_for_exit(PATIENCE)
    }
}
