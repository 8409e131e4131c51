//! What a forked child must not keep: it has this process's memory and descriptors, but none of its threads.

use crate::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Descriptors that a child closes.
static PARENTS_OWN: Mutex<Vec<Descriptor>> = Mutex::new(Vec::new());

#[cfg(unix)]
type Descriptor = std::os::fd::RawFd;
#[cfg(not(unix))]
type Descriptor = usize;

/// Threads of servers that may yet call into Python.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A server's own thread, counted until it has ended: before that, the interpreter must not end.
#[derive(Debug)]
pub struct CountedThread(());

impl CountedThread {
    #[expect(
        clippy::new_without_default,
        reason = "making one counts; a default would hide it"
    )]
    pub fn new() -> Self {
        THREADS.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for CountedThread {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Blocks until no counted thread is left; false when `timeout` passed before.
pub fn wait_for_threads(timeout: Duration) -> bool {
    // without a lock, which a fork could find locked
    let mut left = timeout;
    while THREADS.load(Ordering::Acquire) > 0 {
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(POLL);
        left = left.saturating_sub(POLL);
    }
    true
}

const POLL: Duration = Duration::from_millis(1);

/// How often this process is a fork, counted from the first that loaded this library. What was started under
/// another number is not this process's.
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// To be called first thing in a forked child: the parent's listeners and locks are closed here, so that its port and
/// its files are its own.
pub fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    THREADS.store(0, Ordering::Relaxed);
    // locked by another thread at the moment of the fork, it stays so: then the descriptors are left open
    if let Some(mut descriptors) = PARENTS_OWN.try_lock() {
        for descriptor in descriptors.drain(..) {
            close(descriptor);
        }
    }
}

/// A descriptor that a child is to close, for as long as this value lives.
#[derive(Debug)]
pub struct ParentsOwn(Option<Descriptor>);

impl ParentsOwn {
    #[cfg(unix)]
    pub fn register(file: &impl std::os::fd::AsRawFd) -> Self {
        let descriptor = file.as_raw_fd();
        PARENTS_OWN.lock().push(descriptor);
        Self(Some(descriptor))
    }

    #[cfg(not(unix))]
    pub fn register<T>(_: &T) -> Self {
        Self(None)
    }
}

impl Drop for ParentsOwn {
    fn drop(&mut self) {
        PARENTS_OWN.lock().retain(|known| Some(*known) != self.0);
    }
}

#[cfg(unix)]
fn close(descriptor: Descriptor) {
    // SAFETY: the descriptor was registered by its owner, which lives on a thread that this process does not
    // have, so nothing here uses it or closes it again.
    unsafe { libc::close(descriptor) };
}

#[cfg(not(unix))]
fn close(_: Descriptor) {}
