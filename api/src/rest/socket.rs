//! The server's Unix socket: made so that nobody else can open it for a moment, and so that a dead predecessor does not block the next start.
//!
//! Promises: mode 0600 from the moment the file exists; a socket that somebody answers, or any other kind of file, is never touched; on drop
//! the file is removed if it is still ours. Must never: leave a lock behind.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// How often, and how long between, the directory's lock is tried: two seconds in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody is there already.
    #[error("another process answers on socket {}", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something else.
    #[error("{} is there and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit the kernel's address structure.
    #[error("socket path {} is longer than 107 bytes", .0.display())]
    TooLong(PathBuf),
    /// Another start holds the directory.
    #[error("directory {} stays locked by another process", .0.display())]
    Locked(PathBuf),
    /// The system refused.
    #[error("cannot {what} socket {}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket's file, removed on drop.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself, so that its inode's number can't pass to a successor's file while this one is to be told from it.
    inode: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let identity = |meta: io::Result<fs::Metadata>| meta.ok().map(|m| (m.dev(), m.ino()));
        let there = identity(fs::symlink_metadata(&self.path));
        let ours = there.is_some() && there == identity(self.inode.metadata());
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file could not be removed");
        }
    }
}

/// Makes the socket and listens on it.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |what| move |source| SocketError::System { what, path: path.to_owned(), source };
    let address = SockAddr::unix(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
    if path.as_os_str().is_empty() {
        return Err(failed("make")(io::ErrorKind::InvalidInput.into()));
    }
    // Two starts at once would each find the same stale file, and the slower one would remove the faster one's fresh socket. The lock is on
    // the directory, so there is no file to leave behind, and the kernel drops it whatever happens to this process.
    let _lock = lock_directory(path)?;
    remove_stale(path, &address)?;

    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make"))?;
    // The kernel gives the file the mode that the socket's own inode has at the time of the bind, less the umask: unlike a chmod after the
    // bind there is no moment with another mode, and unlike a changed umask no other thread sees it.
    let descriptor = File::from(OwnedFd::from(socket));
    descriptor.set_permissions(Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    let socket = Socket::from(OwnedFd::from(descriptor));
    socket.bind(&address).map_err(failed("bind"))?;
    let inode = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
    let file = SocketFile { path: path.to_owned(), inode: inode.map_err(failed("inspect"))? };
    socket.listen(128).map_err(failed("listen on"))?;
    Ok((UnixListener::from(OwnedFd::from(socket)), file))
}

fn lock_directory(path: &Path) -> Result<File, SocketError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |source| SocketError::System { what: "reach the directory of", path: path.to_owned(), source };
    let file = File::open(directory).map_err(failed)?;
    // Anybody who can read the directory can lock it, so waiting has an end.
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(SocketError::Locked(directory.to_owned()))
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::System { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make"))?;
    // A listener whose backlog is full would hold a blocking connect.
    probe.set_nonblocking(true).map_err(failed("make"))?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove stale")(error)),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed("reach")(error)),
        // Answered, or busy, or of another kind: somebody's.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn in_directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        (directory, path)
    }

    #[test]
    fn the_file_has_mode_0600_and_goes_with_its_owner() {
        let (_directory, path) = in_directory();
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced() {
        let (_directory, path) = in_directory();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_answers_is_refused_and_left() {
        let (_directory, path) = in_directory();
        let (listener, _file) = listen(&path).unwrap();
        let error = listen(&path).unwrap_err();
        assert!(matches!(&error, SocketError::InUse(p) if *p == path), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(listener);
    }

    #[test]
    fn a_listener_with_a_full_backlog_is_not_taken_for_dead() {
        let (_directory, path) = in_directory();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn what_is_no_stream_socket_is_refused_and_left() {
        let (_directory, path) = in_directory();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        fs::remove_file(&path).unwrap();

        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_path_that_cannot_be_is_refused_in_words() {
        let long = PathBuf::from("/tmp").join("x".repeat(120));
        assert_eq!(
            listen(&long).unwrap_err().to_string(),
            format!("socket path {} is longer than 107 bytes", long.display())
        );
        let (directory, _) = in_directory();
        let error = listen(&directory.path().join("no/api.sock")).unwrap_err();
        assert!(matches!(&error, SocketError::System { what: "reach the directory of", .. }), "{error}");
        assert!(matches!(listen(Path::new("")), Err(SocketError::System { what: "make", .. })));
    }

    #[test]
    fn a_successors_file_is_not_removed() {
        let (_directory, path) = in_directory();
        let (listener, file) = listen(&path).unwrap();
        drop(listener);
        let (_listener, _successor) = listen(&path).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn of_many_starts_at_once_on_a_stale_socket_one_wins() {
        let (_directory, path) = in_directory();
        drop(UnixListener::bind(&path).unwrap());
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || listen(&path))
            })
            .collect();
        // Kept until all have tried, or a loser would find the winner gone.
        let results: Vec<_> = starts.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(SocketError::InUse(_)))));
        UnixStream::connect(&path).unwrap();
    }
}
