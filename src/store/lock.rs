//! One process at a time on an embedded store.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::StoreError;

/// Holds a store for this process. The operating system releases it when the process ends,
/// however it ends.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of the store at `database`, in a file beside it that stays there.
    pub fn acquire(database: &Path) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let unavailable = |error: std::io::Error| {
            StoreError::Unavailable(format!("{}: {error}", Path::new(&path).display()))
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(unavailable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                let is_pid = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
                return Err(StoreError::InUse {
                    path: database.to_owned(),
                    pid: is_pid.then(|| pid.to_owned()),
                });
            }
            Err(TryLockError::Error(error)) => return Err(unavailable(error)),
        }
        // For the message of whoever comes second; the lock holds without it, even on a
        // full disk.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}
