//! What a forked child must not keep: it has this process's memory and descriptors, but none of its threads.

use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Locked by whoever does what a fork must not cut in two, and for writing while this process forks.
static WHOLE: RwLock<()> = RwLock::new(());

/// This process is a fork that was not announced by `before`: `WHOLE` may be locked for good.
static IS_LOST: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// How often this thread has said that it is not to be cut.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// This thread forks.
    static FORKING: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// While it lives, this process forks on no other thread: a child would have what is under way as it is, and nobody to
/// end it. Threads and what has locks of its own (SQLite, the C library's threads) are started, used and ended under
/// one; nobody waits under it for a thread that may want one.
#[derive(Debug)]
pub struct Whole(#[expect(dead_code, reason = "held")] Option<RwLockReadGuard<'static, ()>>);

impl Whole {
    #[expect(
        clippy::new_without_default,
        reason = "making one waits; a default would hide it"
    )]
    pub fn new() -> Self {
        // a thread that has one already must not wait for a fork that waits for it
        let is_outermost = DEPTH.replace(DEPTH.get() + 1) == 0;
        Self((is_outermost && locks()).then(|| WHOLE.read()))
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// False on a thread that forks, and where a lock may be held by a thread that is not there.
fn locks() -> bool {
    !IS_LOST.load(Ordering::Relaxed) && FORKING.with_borrow(Option::is_none)
}

/// To be called before a fork, by the thread that forks: waits until nothing is under way that must not be cut.
pub fn before() {
    if DEPTH.get() == 0 && locks() {
        let guard = WHOLE.write();
        FORKING.set(Some(guard));
    }
}

/// To be called by the thread that has forked, in the parent.
pub fn in_parent() {
    FORKING.set(None);
}

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

/// To be called first thing in a forked child, by its only thread: the parent's listeners and locks are closed here, so that its port and
/// its files are its own.
pub fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    THREADS.store(0, Ordering::Relaxed);
    if FORKING.take().is_none() {
        IS_LOST.store(true, Ordering::Relaxed);
    }
    // after such a fork it may be locked for good: then the descriptors are left open
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
    /// To be called under a `Whole`, from before the descriptor is opened.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_fork_waits_for_what_is_under_way_and_holds_up_what_is_not() {
        let whole = Whole::new();
        let (tell, told) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let forking = std::thread::spawn(move || {
            before();
            tell.send("forks").unwrap();
            may_go_on.recv().unwrap();
            // what is called before the fork is over, on the same thread
            drop(Whole::new());
            in_parent();
        });
        // a thread that is in the middle of something may begin more of it
        drop(Whole::new());
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        drop(whole);
        assert_eq!(told.recv_timeout(PATIENCE), Ok("forks"));
        let (tell, told) = mpsc::channel();
        let held_up = std::thread::spawn(move || {
            drop(Whole::new());
            tell.send("began").unwrap();
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        go_on.send(()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE), Ok("began"));
        forking.join().unwrap();
        held_up.join().unwrap();
    }
}
