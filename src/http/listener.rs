//! Where HTTP is heard: a TCP port, or a Unix socket that only its owner may open.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio_util::either::Either;

/// The kernel's `sun_path` has 108 bytes, and the last one is the terminating zero.
const LONGEST_UNIX_PATH: usize = 107;

/// Connections that the kernel keeps ready while the accept loop is busy or at its cap; the
/// kernel lowers it to its own `somaxconn`.
const BACKLOG: u32 = 1024;

/// A bound socket. Dropping it stops listening and removes the file of a Unix socket.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket with mode 0600.
    Unix(UnixSocketFile),
}

/// One accepted connection.
pub(super) type Socket = Either<TcpStream, UnixStream>;

/// Binds a TCP port; port 0 takes a free one, see [`Listener::tcp_addr`].
///
/// # Errors
/// [`BindError::Tcp`] when the port is taken or the address is not of this machine.
pub async fn bind_tcp(addr: SocketAddr) -> Result<Listener, BindError> {
    TcpListener::bind(addr)
        .await
        .map(Listener::Tcp)
        .map_err(|reason| BindError::Tcp { addr, reason })
}

/// Binds a Unix socket at `path`, open to its owner only from the first instant on.
///
/// A socket that a crashed process left at `path` is replaced. Nothing else is ever removed:
/// neither a socket that is being listened on, nor one whose state cannot be told, nor a file
/// of another type. Two processes that replace the same leftover in the same instant are not
/// kept apart here; the later one gets the path.
///
/// # Errors
/// Every [`BindError`] but `Tcp`.
pub async fn bind_unix(path: impl Into<PathBuf>) -> Result<Listener, BindError> {
    let path = path.into();
    let length = path.as_os_str().len();
    if length > LONGEST_UNIX_PATH {
        return Err(BindError::PathTooLong { path, length });
    }
    remove_leftover(&path).await?;
    match listen_for_owner(&path) {
        Ok((listener, identity)) => Ok(Listener::Unix(UnixSocketFile {
            listener,
            path,
            identity,
        })),
        Err(reason) => Err(BindError::Unix { path, reason }),
    }
}

async fn remove_leftover(path: &Path) -> Result<(), BindError> {
    let unix = |reason| BindError::Unix {
        path: path.into(),
        reason,
    };
    // A symbolic link is not followed: what it points to is not ours to remove.
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unix(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        // The one proof that nobody listens.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(unix)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unix(error)),
        // Also "would block": somebody listens whose backlog is full.
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.into() }),
    }
}

/// Connecting is refused until `listen`, so the mode is right before anybody can connect,
/// whatever the umask of the process.
fn listen_for_owner(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let listening = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| identity(path))
        .and_then(|identity| Ok((socket.listen(BACKLOG)?, identity)));
    if listening.is_err() {
        // Best effort: the error that is already there says more than a second one.
        let _ = std::fs::remove_file(path);
    }
    listening
}

/// Device and inode: tells our socket file from one that took its path later.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Listener {
    /// The address of a TCP listener, with the port that the system chose for port 0.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are written whole; Nagle's algorithm would only hold back their
                // end. Fails when the client is gone already, which the first read tells too.
                let _ = stream.set_nodelay(true);
                Ok(Either::Left(stream))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok(Either::Right(stream))
            }
        }
    }
}

/// `http://127.0.0.1:9464` or `unix:/run/perennial.sock`, for the log.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.tcp_addr()) {
            (Self::Unix(socket), _) => write!(f, "unix:{}", socket.path.display()),
            (Self::Tcp(_), Some(addr)) => write!(f, "http://{addr}"),
            (Self::Tcp(_), None) => f.write_str("http"),
        }
    }
}

/// A listening Unix socket and its file, which is removed on drop unless another process has
/// put its own in the place since.
#[derive(Debug)]
pub struct UnixSocketFile {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // What stays behind is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken, privileged, or the address is not of this machine.
    #[error("cannot listen on {addr} ({reason}); stop what uses it or choose another address")]
    Tcp {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's error.
        reason: io::Error,
    },
    /// A live process listens on the path.
    #[error("another process listens on {}; stop it or choose another path", path.display())]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something else is at the path, and it is not ours to remove.
    #[error("{} exists and is not a socket; move it away or choose another path", path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The system stores at most 107 bytes of a socket's path.
    #[error(
        "the socket path {} has {length} bytes; choose one of at most {LONGEST_UNIX_PATH}",
        path.display()
    )]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The folder is missing or not writable, or the file system has no sockets.
    #[error(
        "cannot listen on {} ({reason}); make its folder writable or choose another path",
        path.display()
    )]
    Unix {
        /// The path asked for.
        path: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    const ANY_PORT: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = bind_tcp(ANY_PORT).await.unwrap();
        let addr = first.tcp_addr().unwrap();
        let error = bind_tcp(addr).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot listen on {addr} (")),
            "{error}"
        );
        assert_eq!(first.to_string(), format!("http://{addr}"));
    }

    #[tokio::test]
    async fn accepted_tcp_connections_have_nodelay() {
        let listener = bind_tcp(ANY_PORT).await.unwrap();
        let _client = TcpStream::connect(listener.tcp_addr().unwrap())
            .await
            .unwrap();
        let Either::Left(accepted) = listener.accept().await.unwrap() else {
            panic!("a TCP listener accepts TCP");
        };
        assert!(accepted.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_unix_socket_is_for_its_owner_and_goes_with_the_listener() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = bind_unix(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(listener.to_string(), format!("unix:{}", path.display()));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_leftover_socket_is_replaced() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind_unix(&path).await.unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_left_alone() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = bind_unix(&path).await.unwrap();
        let error = bind_unix(&path).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "another process listens on {}; stop it or choose another path",
                path.display()
            )
        );
        let _client = UnixStream::connect(&path).await.unwrap();
        first.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_whose_backlog_is_full_is_in_use() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let _busy = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        while let Ok(client) = UnixStream::connect(&path).await {
            waiting.push(client);
            assert!(waiting.len() < 100, "the backlog never fills");
        }
        let error = bind_unix(&path).await.unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_refused_and_left_alone() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("notes.txt");
        std::fs::write(&file, "mine").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            let error = bind_unix(path).await.unwrap_err();
            assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_path_of_107_bytes_is_bound_and_one_of_108_is_refused() {
        let folder = tempdir().unwrap();
        let room = LONGEST_UNIX_PATH - folder.path().as_os_str().len() - 1;
        let longest = folder.path().join("s".repeat(room));
        bind_unix(&longest).await.unwrap();

        let too_long = folder.path().join("s".repeat(room + 1));
        assert_eq!(
            bind_unix(&too_long).await.unwrap_err().to_string(),
            format!(
                "the socket path {} has 108 bytes; choose one of at most 107",
                too_long.display()
            )
        );
    }

    #[tokio::test]
    async fn a_missing_folder_is_named() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("missing/api.sock");
        let error = bind_unix(&path).await.unwrap_err().to_string();
        assert!(error.contains("missing/api.sock"), "{error}");
    }

    #[tokio::test]
    async fn a_successor_at_the_same_path_is_not_removed() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = bind_unix(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = bind_unix(&path).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
    }
}
