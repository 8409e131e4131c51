//! Locks that hold against other copies of SQLite in this process too, as that of Python's `sqlite3`.
//!
//! SQLite's locks are those of the process: a second copy of it does not see them, and drops them when it closes the
//! same file, which can destroy it (sqlite.org, "How To Corrupt An SQLite Database File", section 2.2). Linux has locks of
//! the open file instead (`F_OFD_SETLK`, fcntl(2)). They want that a file is open once in this copy of SQLite, which
//! `FileLock` sees to, and that forks close it, which `ParentsOwn` does.

use crate::fork::ParentsOwn;
use std::path::Path;

/// To be called before the first file is opened.
pub(super) fn install() {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    linux::install();
}

/// The descriptors of these files, for forks to close.
pub(super) fn descriptors_of(paths: &[&Path]) -> Vec<ParentsOwn> {
    #[cfg(target_os = "linux")]
    return linux::descriptors_of(paths);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = paths;
        Vec::new()
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{ParentsOwn, Path};
    use std::os::fd::{AsRawFd, RawFd};

    #[cfg(target_pointer_width = "64")]
    pub fn install() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(replace_fcntl);
    }

    /// Has this copy of SQLite, which no other code uses, take its locks by `fcntl`.
    #[cfg(target_pointer_width = "64")]
    fn replace_fcntl() {
        use rusqlite::ffi;
        // SAFETY: a null name means the default system, which lives as long as the process. SQLite keeps its `fcntl` as
        // a pointer to a function of any kind, and calls it with a descriptor, a command and an argument as wide as a
        // pointer, in registers; that is how `fcntl` below takes them on 64-bit Linux.
        unsafe {
            let system = ffi::sqlite3_vfs_find(std::ptr::null());
            if let Some(set) = system.as_ref().and_then(|system| system.xSetSystemCall) {
                let call = std::mem::transmute::<Fcntl, unsafe extern "C" fn()>(fcntl);
                set(system, c"fcntl".as_ptr(), Some(call));
            }
        }
    }

    #[cfg(target_pointer_width = "64")]
    type Fcntl = unsafe extern "C" fn(libc::c_int, libc::c_int, *mut libc::flock) -> libc::c_int;

    /// `fcntl`, with locks of the open file in place of those of the process.
    ///
    /// # Safety
    /// As for fcntl(2): with a command for locks, `argument` points to a `flock`.
    #[cfg(target_pointer_width = "64")]
    unsafe extern "C" fn fcntl(
        descriptor: libc::c_int,
        command: libc::c_int,
        argument: *mut libc::flock,
    ) -> libc::c_int {
        let own = match command {
            libc::F_GETLK => libc::F_OFD_GETLK,
            libc::F_SETLK => libc::F_OFD_SETLK,
            libc::F_SETLKW => libc::F_OFD_SETLKW,
            // SAFETY: passed on as it came.
            _ => return unsafe { libc::fcntl(descriptor, command, argument) },
        };
        // SAFETY: the caller's flock is valid for these commands. Locks of the open file have no process (fcntl(2)).
        unsafe {
            if let Some(lock) = argument.as_mut() {
                lock.l_pid = 0;
            }
            libc::fcntl(descriptor, own, argument)
        }
    }

    struct Descriptor(RawFd);

    impl AsRawFd for Descriptor {
        fn as_raw_fd(&self) -> RawFd {
            self.0
        }
    }

    pub fn descriptors_of(paths: &[&Path]) -> Vec<ParentsOwn> {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return Vec::new();
        };
        let descriptor = |entry: std::fs::DirEntry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            paths
                .contains(&target.as_path())
                .then(|| ParentsOwn::register(&Descriptor(number)))
        };
        entries.flatten().filter_map(descriptor).collect()
    }
}
