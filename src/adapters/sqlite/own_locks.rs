//! File locks that also hold against other copies of SQLite in this process, such as that of Python's `sqlite3`.
//!
//! SQLite uses locks of the process. A second copy of SQLite in the process does not see these locks, and releases them
//! when it closes the same file, which can destroy the file (sqlite.org, "How To Corrupt An SQLite Database File", section
//! 2.2). Linux has locks of the open file instead (`F_OFD_SETLK`, fcntl(2)). They belong to one descriptor, so the
//! connection of the writer has all of them: `FileLock` keeps other users away, and the connection of the reader is opened
//! later and closed earlier, so SQLite counts the reader and takes no lock for it. A forked child must close the
//! descriptors, so this module keeps a list of them.

/// Must be called before the first file is opened.
pub(super) fn install() {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    linux::install();
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod linux {
    use crate::base::fork::{ForkGuard, close_in_child, keep_in_child};
    use rusqlite::ffi;

    /// Makes this copy of SQLite, which no other code uses, open, lock and close files by the functions below.
    pub fn install() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: a null name means the default system, which lives as long as the process. SQLite keeps its
            // system calls as pointers to functions of any kind. It calls `open` and `close` with the arguments that
            // these have here, and `fcntl` with a descriptor, a command and an argument as wide as a pointer, in
            // registers; that is how `fcntl` takes them on 64-bit Linux.
            unsafe {
                let system = ffi::sqlite3_vfs_find(std::ptr::null_mut());
                if let Some(system) = system.as_mut()
                    && let Some(set) = system.xSetSystemCall
                {
                    let calls = [
                        (c"open", std::mem::transmute::<Open, Call>(open)),
                        (c"fcntl", std::mem::transmute::<Fcntl, Call>(fcntl)),
                        (c"close", std::mem::transmute::<Close, Call>(close)),
                    ];
                    for (name, call) in calls {
                        set(system, name.as_ptr(), Some(call));
                    }
                }
            }
        });
    }

    type Call = unsafe extern "C" fn();
    type Fcntl = unsafe extern "C" fn(libc::c_int, libc::c_int, *mut libc::flock) -> libc::c_int;

    /// Calls `fcntl`, with locks of the open file in place of locks of the process.
    ///
    /// # Safety
    /// As for fcntl(2): with a command for locks, `argument` points to a `flock`.
    unsafe extern "C" fn fcntl(
        descriptor: libc::c_int,
        command: libc::c_int,
        argument: *mut libc::flock,
    ) -> libc::c_int {
        let own = match command {
            libc::F_GETLK => libc::F_OFD_GETLK,
            libc::F_SETLK => libc::F_OFD_SETLK,
            libc::F_SETLKW => libc::F_OFD_SETLKW,
            // SAFETY: the arguments are those of the caller, unchanged.
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

    type Open = unsafe extern "C" fn(*const libc::c_char, libc::c_int, libc::c_int) -> libc::c_int;

    /// # Safety
    /// As for open(2).
    unsafe extern "C" fn open(
        path: *const libc::c_char,
        flags: libc::c_int,
        mode: libc::c_int,
    ) -> libc::c_int {
        let _whole = ForkGuard::new();
        // SAFETY: the arguments are those of the caller, unchanged.
        let descriptor = unsafe { libc::open(path, flags, mode.cast_unsigned()) };
        // SQLite does not use the numbers of the standard streams, and only fills them
        if descriptor > 2 {
            close_in_child(descriptor);
        }
        descriptor
    }

    type Close = unsafe extern "C" fn(libc::c_int) -> libc::c_int;

    /// # Safety
    /// As for close(2).
    unsafe extern "C" fn close(descriptor: libc::c_int) -> libc::c_int {
        let _whole = ForkGuard::new();
        keep_in_child(descriptor);
        // SAFETY: the arguments are those of the caller, unchanged.
        unsafe { libc::close(descriptor) }
    }
}
