//! `file`: the access token in a file, replaced atomically.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Delivery, Sink, SinkError};
use crate::crash::{self, Step};

/// Keeps the current access token in a file. Readers see the old token or the new one,
/// never a part.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    /// The file. Its folder is made when it is missing; the file is replaced by a rename.
    #[schemars(length(min = 1), example = &"run/family-player.token")]
    pub path: PathBuf,
    /// Who may read it, as an octal number in quotes. Default: "0600", its owner alone.
    #[serde(default = "owner_only")]
    #[schemars(regex(pattern = "^0?[0-7]{3}$"))]
    pub mode: String,
    /// What is written.
    #[serde(default)]
    pub format: Format,
}

/// What the file sink writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The access token and a newline.
    #[default]
    Text,
    /// `access_token`, `token_type`, `expires_at` (RFC 3339), `scope` and `version`.
    Json,
}

fn owner_only() -> String {
    "0600".to_owned()
}

impl FileSink {
    fn mode(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| {
                format!(
                    "mode: {:?} is not an octal file mode such as \"0600\"",
                    self.mode
                )
            })
    }

    /// Checks what the types alone cannot.
    pub fn check(&self) -> Result<(), String> {
        self.mode().map(|_| ())
    }
}

#[async_trait]
impl Sink for FileSink {
    fn kind(&self) -> &'static str {
        "file"
    }

    async fn deliver(&self, delivery: &Delivery) -> Result<(), SinkError> {
        let token = delivery.access_token.expose();
        let content = match self.format {
            Format::Text => format!("{token}\n"),
            Format::Json => {
                let json = serde_json::json!({
                    "access_token": token,
                    "token_type": delivery.token_type,
                    "expires_at": delivery.expires_at,
                    "scope": delivery.scope,
                    "version": delivery.version,
                });
                format!("{json}\n")
            }
        };
        let content = zeroize::Zeroizing::new(content);
        let (path, mode) = (self.path.clone(), self.mode().map_err(SinkError)?);
        tokio::task::spawn_blocking(move || {
            replace(&path, content.as_bytes(), mode)
                .map_err(|error| SinkError(format!("{}: {error}", path.display())))
        })
        .await
        .map_err(|error| SinkError(error.to_string()))?
    }
}

/// Replaces a file in one step, durably: write beside it, sync, rename, sync the folder.
/// The content is never readable by more than `mode` allows.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    // A draft left by a crash may have another mode; it is never written into.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.create_new(true).write(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&draft).and_then(|mut file| {
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    });
    crash::point(Step::Drafted);
    if let Err(error) = written.and_then(|()| fs::rename(&draft, path)) {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Timestamp, secret::Secret};

    fn delivery() -> Delivery {
        Delivery {
            credential: "player".parse().unwrap(),
            version: 3,
            access_token: Secret::new("abc"),
            token_type: "Bearer".into(),
            scope: None,
            expires_at: Timestamp::UNIX_EPOCH,
        }
    }

    async fn delivered(mode: &str, format: Format) -> (String, u32) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/token");
        let sink = FileSink {
            path: path.clone(),
            mode: mode.into(),
            format,
        };
        sink.deliver(&delivery()).await.unwrap();
        sink.deliver(&delivery()).await.unwrap();
        let left = fs::read_dir(folder.path().join("run")).unwrap().count();
        assert_eq!(left, 1, "no draft is left behind");
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        (fs::read_to_string(&path).unwrap(), mode)
    }

    #[tokio::test]
    async fn the_token_and_nothing_else() {
        assert_eq!(
            delivered("0600", Format::Text).await,
            ("abc\n".into(), 0o600)
        );
        let (json, mode) = delivered("0640", Format::Json).await;
        assert_eq!(mode, 0o640);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["access_token"], "abc");
        assert_eq!(json["expires_at"], "1970-01-01T00:00:00Z");
    }

    #[tokio::test]
    async fn a_failure_names_the_file_and_not_the_token() {
        let sink = FileSink {
            path: "/proc/nowhere/token".into(),
            mode: "0600".into(),
            format: Format::Text,
        };
        let error = sink.deliver(&delivery()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("/proc/nowhere/token: ") && !error.contains("abc"),
            "{error}"
        );
    }
}
