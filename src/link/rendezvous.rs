//! Where the processes of one application meet: a folder of the user, with a lock and a socket for each application.

use crate::base::error::Error;
use crate::base::fork::ClosedInChild;
use crate::net::unix_socket::{self, SocketFile};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The folders in which the folder of the user may be, in the order in which they are tried. `XDG_RUNTIME_DIR` is not among
/// them, because a service and a shell of one user see different ones.
const BASES: [&str; 3] = ["/run", "/tmp", "/dev/shm"];

/// Bytes of the hash of an application's id that are in the names of its files: the address of a Unix socket has room for
/// 107 bytes.
const HASHED: usize = 8;

/// Processes that may wait to be accepted.
const BACKLOG: i32 = 512;

/// The place of one application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    lock: PathBuf,
    socket: PathBuf,
}

/// This process has the node of an application, until the value is dropped. No other process gets a `Tenure` meanwhile.
#[derive(Debug)]
pub struct Tenure {
    // before the listener, so that the file is certainly the one of this listener
    _file: SocketFile,
    listener: UnixListener,
    _closed_in_child: [ClosedInChild; 2],
    // last: the socket is gone when another process gets the lock
    _lock: File,
}

impl Rendezvous {
    /// The place of an application, in the folder of this user below `base`, or below the first of `BASES` where this
    /// process can write. Makes the folder of the user if there is none.
    ///
    /// Errors: `Error::Link` if no folder can be used; the text says why for each.
    pub fn of(app_id: &str, base: Option<&Path>) -> Result<Self, Error> {
        let folder = user_folder(base)?;
        let digest = Sha256::digest(app_id.as_bytes());
        let mut name = String::with_capacity(2 * HASHED);
        for byte in &digest[..HASHED] {
            // writing to a string does not fail
            let _ = write!(name, "{byte:02x}");
        }
        Ok(Self {
            lock: folder.join(format!("{name}.lock")),
            socket: folder.join(format!("{name}.sock")),
        })
    }

    /// The place whose socket has this path; its lock is beside the socket.
    pub fn at(socket: &Path) -> Self {
        let mut lock = socket.as_os_str().to_owned();
        lock.push(".lock");
        Self {
            lock: lock.into(),
            socket: socket.to_owned(),
        }
    }

    /// The socket on which the process with the node listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes this process the one that has the node, and listens. `None` while another process has the node.
    ///
    /// Errors: `Error::Link` if the files cannot be used.
    pub fn claim(&self) -> Result<Option<Tenure>, Error> {
        let failed =
            |error: io::Error| Error::Link(format!("cannot use {}: {error}", self.lock.display()));
        let Some(lock) = self.take_lock().map_err(failed)? else {
            return Ok(None);
        };
        let (listener, file) = unix_socket::listen(&self.socket, 0o600, BACKLOG)?;
        Ok(Some(Tenure {
            _closed_in_child: [
                ClosedInChild::register(&listener),
                ClosedInChild::register(&lock),
            ],
            _file: file,
            listener,
            _lock: lock,
        }))
    }

    fn take_lock(&self) -> io::Result<Option<File>> {
        loop {
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&self.lock)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // the file may have been deleted, and made anew, since it was opened
            let locked = lock.metadata()?;
            match fs::symlink_metadata(&self.lock) {
                Ok(found) if (found.dev(), found.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Some(lock));
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
}

impl Tenure {
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// The folder of this user. Only this user can read it and write to it.
fn user_folder(base: Option<&Path>) -> Result<PathBuf, Error> {
    // SAFETY: geteuid has no arguments and cannot fail (geteuid(2)).
    let user = unsafe { libc::geteuid() };
    let bases = match base {
        Some(base) => vec![base],
        None => BASES.map(Path::new).to_vec(),
    };
    let mut problems = Vec::new();
    for base in bases {
        let folder = base.join(format!("tantor-{user}"));
        match use_folder(&folder, user) {
            Ok(()) => return Ok(folder),
            Err(error) => problems.push(format!("{}: {error}", folder.display())),
        }
    }
    Err(Error::Link(format!(
        "no folder where the processes of an application can meet ({}); the setting runtime_dir names another",
        problems.join("; ")
    )))
}

/// Makes a folder if there is none, and checks that it is safe to use.
fn use_folder(folder: &Path, user: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    let refused = |problem: String| Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    if !found.is_dir() {
        return refused("it is not a folder".to_owned());
    }
    if found.uid() != user {
        return refused(format!(
            "it belongs to the user with the id {}",
            found.uid()
        ));
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return refused(format!("others may use it (mode {mode:o}; it takes 700)"));
    }
    // a read-only file system shows only when it is written to
    let probe = folder.join(format!(
        ".probe-{}-{:x}",
        std::process::id(),
        crate::base::random::random_u64()
    ));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&probe)?;
    fs::remove_file(&probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(base: &Path) -> Rendezvous {
        Rendezvous::of("an app", Some(base)).unwrap()
    }

    #[test]
    fn one_process_at_a_time_has_the_node() {
        let base = tempfile::tempdir().unwrap();
        let place = place(base.path());
        let first = place.claim().unwrap().unwrap();
        assert!(place.claim().unwrap().is_none());
        std::os::unix::net::UnixStream::connect(place.socket()).unwrap();
        drop(first);
        assert!(!place.socket().exists());
        assert!(place.claim().unwrap().is_some());
        let other = Rendezvous::of("another app", Some(base.path())).unwrap();
        assert_ne!(other, place);
    }

    #[test]
    fn a_socket_that_a_killed_process_left_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let place = place(base.path());
        drop(UnixListener::bind(place.socket()).unwrap());
        assert!(place.socket().exists());
        let tenure = place.claim().unwrap().unwrap();
        std::os::unix::net::UnixStream::connect(place.socket()).unwrap();
        // a lock that was deleted is no lock: the next process gets one of its own
        fs::remove_file(&place.lock).unwrap();
        fs::remove_file(&place.socket).unwrap();
        let second = place.claim().unwrap().unwrap();
        drop(tenure);
        assert!(place.socket().exists(), "the file of the second");
        drop(second);
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused_in_words() {
        let base = tempfile::tempdir().unwrap();
        let folder = use_other(base.path());
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let problem = Rendezvous::of("a", Some(base.path()))
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains("mode 755") && problem.contains("runtime_dir"),
            "{problem}"
        );
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        let problem = Rendezvous::of("a", Some(base.path()))
            .unwrap_err()
            .to_string();
        assert!(problem.contains("not a folder"), "{problem}");
        fs::remove_file(&folder).unwrap();
        std::os::unix::fs::symlink("/tmp", &folder).unwrap();
        assert!(Rendezvous::of("a", Some(base.path())).is_err());
    }

    /// Makes the folder of this user below a base.
    fn use_other(base: &Path) -> PathBuf {
        user_folder(Some(base)).unwrap()
    }
}
