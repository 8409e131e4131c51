//! A Unix socket that listens, and its file.

use crate::base::error::Error;
use crate::settings::hosts::show_unix;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file of a listening socket. Dropping the value removes the file, unless another file has taken its place, or this
/// process is a fork of the process that made the file.
///
/// Drop the value before the socket. A socket that is open keeps its inode number in use, so a file with the same device
/// and number is certainly the file of this socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    number: u64,
    generation: u32,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            number: found.ino(),
            generation: crate::base::fork::generation(),
        })
    }

    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.number))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.generation == crate::base::fork::generation() && self.is_in_place() {
            // if this fails, the next start finds the file stale and removes the file
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that the process at the other end of a connection belongs to the user of this process, or to root.
///
/// Errors: another user; the system does not tell.
pub fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let user = peer_user(stream)?;
    // SAFETY: geteuid has no arguments and cannot fail (geteuid(2)).
    let own = unsafe { libc::geteuid() };
    if user == own || user == 0 {
        return Ok(());
    }
    let problem = format!("it belongs to the user with the id {user}, and this process to {own}");
    Err(io::Error::new(ErrorKind::PermissionDenied, problem))
}

/// The id of the user whose process is at the other end.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn peer_user(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the buffer is a `ucred` of the length given, and the descriptor is open while `stream` lives.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(credentials.uid)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn peer_user(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let (mut user, mut group) = (0, 0);
    // SAFETY: both pointers are to valid ids, and the descriptor is open while `stream` lives.
    let failed = unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut user, &raw mut group) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(user)
}

/// Listens on a path. The permissions are set before a client can connect. Replaces the file of a server that has ended.
///
/// Errors: another server listens there; the file is not a socket; the system refuses the path.
pub fn listen(path: &Path, mode: u32, backlog: i32) -> Result<(UnixListener, SocketFile), Error> {
    let _turn = take_turn(path);
    remove_stale(path)?;
    bind(path, mode, backlog).map_err(|source| {
        let hint = match (source.kind(), path.parent()) {
            (ErrorKind::NotFound, Some(directory)) => {
                Some(format!("the directory {} must exist", directory.display()))
            }
            _ => None,
        };
        cannot_listen(path, source, hint)
    })
}

fn bind(path: &Path, mode: u32, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // connections are refused until the socket listens
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok((socket.into(), file))
}

/// Removes the file of a socket that refuses connections because no process listens on it any more.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let failed = |source| cannot_listen(path, source, None);
    match fs::symlink_metadata(path) {
        // if the path is wrong, `bind` reports the error
        Err(_) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            let hint = "it is not a socket: remove it, or choose another path";
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(cannot_listen(path, source, Some(hint.to_owned())));
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // a server whose backlog is full would let a blocking connect wait
    probe.set_nonblocking(true).map_err(failed)?;
    let connected = SockAddr::unix(path).and_then(|address| probe.connect(&address));
    match connected.map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) => fs::remove_file(path).map_err(failed),
        Err(ErrorKind::NotFound) => Ok(()),
        Err(ErrorKind::PermissionDenied) => Err(failed(io::Error::from_raw_os_error(libc::EACCES))),
        Ok(()) | Err(_) => {
            let source = io::Error::from_raw_os_error(libc::EADDRINUSE);
            let hint = "a server listens on it".to_owned();
            Err(cannot_listen(path, source, Some(hint)))
        }
    }
}

/// Locks the directory, so that one server starts at a time. A socket that is bound but does not listen yet refuses
/// connections, and another start would remove its file as stale. Without the lock if the directory cannot be locked.
fn take_turn(path: &Path) -> Option<File> {
    let directory = File::open(path.parent()?).ok()?;
    for _ in 0..MAX_TRIES {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_INTERVAL),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Another program may lock the directory for a long time, for a purpose of its own.
const MAX_TRIES: usize = 200;
const TRY_INTERVAL: Duration = Duration::from_millis(5);

fn cannot_listen(path: &Path, source: io::Error, hint: Option<String>) -> Error {
    Error::Bind {
        address: show_unix(path),
        source,
        hint,
    }
}
