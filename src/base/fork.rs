//! Forks: a child has the memory and the descriptors of its parent, but only the thread that forked.

use crate::base::sync::{Mutex, Rank};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// The number of threads with a `ForkGuard`, and of threads that fork. Atomics: a child could find a lock locked.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How many `ForkGuard`s this thread has.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// True while this thread forks.
    static FORKS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// The longest time that a fork waits for the guards of other threads.
///
/// This time and `MAX_HOLD` are bounded, because a fork also waits for locks of the application and of the interpreter,
/// whose owners may wait for anything. After this time the child may get a state in the middle of a change.
pub const MAX_WAIT: Duration = Duration::from_secs(2);

/// The longest time that a new `ForkGuard` waits for a fork.
const MAX_HOLD: Duration = Duration::from_millis(200);

/// While a guard lives, no other thread forks: a child would have a change in the middle, and no thread to finish the
/// change. Hold a guard while you open, use or close something that has locks of its own (SQLite), or whose descriptor
/// is registered for forks only at the end (the lock of a database, a listener), and while you start threads of a server.
#[derive(Debug)]
pub struct ForkGuard {
    is_counted: bool,
    _of_one_thread: PhantomData<*const ()>,
}

impl ForkGuard {
    #[expect(
        clippy::new_without_default,
        reason = "making one waits; a default would hide it"
    )]
    pub fn new() -> Self {
        // a thread with a guard must not wait for a fork that waits for this guard
        let is_counted = DEPTH.replace(DEPTH.get() + 1) == 0 && !FORKS_HERE.get();
        if is_counted {
            begin();
        }
        Self {
            is_counted,
            _of_one_thread: PhantomData,
        }
    }
}

fn begin() {
    let mut left = MAX_HOLD;
    loop {
        // counts before it checks: of a guard and a fork that begin at once, one sees the other
        UNDER_WAY.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 || left.is_zero() {
            return;
        }
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
        std::thread::sleep(POLL);
        left = left.saturating_sub(POLL);
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if self.is_counted {
            UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Marks an object with locks as in use. A child that is forked meanwhile finds the locks locked forever, and must not
/// touch the object.
#[derive(Debug, Default)]
pub struct ForkSensitive {
    workers: AtomicUsize,
    generation: AtomicU32,
}

/// Marks a `ForkSensitive` object as in use while the worker lives.
#[derive(Debug)]
pub struct Worker<'a>(&'a ForkSensitive);

impl ForkSensitive {
    /// Call this before you take the locks.
    pub fn begin(&self) -> Worker<'_> {
        self.generation.store(generation(), Ordering::SeqCst);
        self.workers.fetch_add(1, Ordering::SeqCst);
        Worker(self)
    }

    /// True in a child that was forked while the object was in use.
    pub fn was_cut(&self) -> bool {
        self.workers.load(Ordering::SeqCst) > 0
            && self.generation.load(Ordering::SeqCst) != generation()
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.0.workers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The process that has something open or running, if any: this process, or one that this process is a fork of. Forks
/// copy the value.
#[derive(Debug, Default)]
pub struct OwningProcess(
    /// 0 for none, else 1 more than the `generation` of the process.
    AtomicU64,
);

impl OwningProcess {
    /// Makes this process the owner.
    pub fn claim(&self) {
        self.0.store(Self::this(), Ordering::Release);
    }

    /// Makes no process the owner. Returns true if there was one.
    pub fn release(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) != 0
    }

    /// True if this process or an ancestor is the owner.
    pub fn is_some(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// True if the owner is a process that this process is a fork of.
    pub fn is_ancestor(&self) -> bool {
        let owner = self.0.load(Ordering::Acquire);
        owner != 0 && owner != Self::this()
    }

    fn this() -> u64 {
        u64::from(generation()) + 1
    }
}

/// Call this before a fork, on the thread that forks. New guards wait from now on. Waits up to `most` for the guards of
/// other threads. `pause` must call `wait`, and may release a lock meanwhile; the guards are checked again after each
/// `pause`.
pub fn before(most: Duration, mut pause: impl FnMut(Duration) -> Duration) {
    if !FORKS_HERE.replace(true) {
        FORKING.fetch_add(1, Ordering::SeqCst);
    }
    let mut left = most;
    while DEPTH.get() == 0 && UNDER_WAY.load(Ordering::SeqCst) > 0 && !left.is_zero() {
        left = left.saturating_sub(pause(left));
    }
}

/// Blocks for a moment, and then until there are no guards or `most` has passed. Returns the approximate time waited.
pub fn wait(most: Duration) -> Duration {
    let mut waited = POLL;
    std::thread::sleep(POLL);
    while UNDER_WAY.load(Ordering::SeqCst) > 0 && waited < most {
        std::thread::sleep(POLL);
        waited += POLL;
    }
    waited
}

/// Call this after a fork, in the parent, on the thread that forked.
pub fn in_parent() {
    if FORKS_HERE.replace(false) {
        FORKING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Descriptors that a child closes.
static CLOSED_IN_CHILD: Mutex<Vec<Descriptor>> = Mutex::new(Rank::Leaf, Vec::new());

#[cfg(unix)]
type Descriptor = std::os::fd::RawFd;
#[cfg(not(unix))]
type Descriptor = usize;

/// True in a child where `CLOSED_IN_CHILD` stays locked, by a thread that the child does not have.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// How many `CountedThread`s there are.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A thread of a server, or a thread that runs Python code for a call. The interpreter must not end before these threads
/// end.
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

/// Blocks until there is no `CountedThread`; false if `timeout` passed before.
pub fn wait_for_threads(timeout: Duration) -> bool {
    // without a lock, because a child could find the lock locked
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

const POLL: Duration = Duration::from_micros(500);

/// How many forks lie between this process and the first process that loaded this library. Threads that were started
/// under another number do not exist in this process.
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Call this first in a forked child, on its only thread. Closes the registered descriptors, so that the child does not
/// hold the port and the files of its parent.
pub fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    THREADS.store(0, Ordering::Relaxed);
    // the guards of other threads do not end here
    UNDER_WAY.store(usize::from(DEPTH.get() > 0), Ordering::SeqCst);
    FORKING.store(0, Ordering::SeqCst);
    FORKS_HERE.set(false);
    // a fork that was not announced may find the lock locked: then the descriptors stay open
    match CLOSED_IN_CHILD.try_lock() {
        Some(mut descriptors) => descriptors.drain(..).for_each(close),
        None => IS_LOST.store(true, Ordering::Relaxed),
    }
}

/// Registers a descriptor that a child closes. Hold a `ForkGuard` from before the descriptor is opened.
pub fn close_in_child(descriptor: Descriptor) {
    if !IS_LOST.load(Ordering::Relaxed) {
        CLOSED_IN_CHILD.lock().push(descriptor);
    }
}

/// Removes a descriptor from those that a child closes. Hold a `ForkGuard` until after the descriptor is closed, because
/// its number may be given to another file.
pub fn keep_in_child(descriptor: Descriptor) {
    if !IS_LOST.load(Ordering::Relaxed) {
        CLOSED_IN_CHILD.lock().retain(|known| *known != descriptor);
    }
}

/// A descriptor that a child closes while this value lives. As `close_in_child` and `keep_in_child`.
#[derive(Debug)]
pub struct ClosedInChild(Option<Descriptor>);

impl ClosedInChild {
    #[cfg(unix)]
    pub fn register(file: &impl std::os::fd::AsRawFd) -> Self {
        let descriptor = file.as_raw_fd();
        close_in_child(descriptor);
        Self(Some(descriptor))
    }

    #[cfg(not(unix))]
    pub fn register<T>(_: &T) -> Self {
        Self(None)
    }
}

impl Drop for ClosedInChild {
    fn drop(&mut self) {
        if let Some(descriptor) = self.0 {
            keep_in_child(descriptor);
        }
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
    fn an_owner_is_none_or_this_process_or_an_ancestor() {
        let owner = OwningProcess::default();
        assert!(!owner.is_some() && !owner.is_ancestor());
        owner.claim();
        assert!(owner.is_some() && !owner.is_ancestor());
        // as a fork has it that was made by another process
        owner.0.store(OwningProcess::this() + 1, Ordering::Release);
        assert!(owner.is_some() && owner.is_ancestor());
        assert!(owner.release() && !owner.release());
        assert!(!owner.is_some() && !owner.is_ancestor());
    }

    #[test]
    fn a_fork_waits_for_what_is_under_way_and_holds_up_what_is_not() {
        let whole = ForkGuard::new();
        let (tell, told) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let forking = std::thread::spawn(move || {
            before(PATIENCE, wait);
            tell.send("forks").unwrap();
            may_go_on.recv().unwrap();
            // what is called before the fork is over, on the same thread
            drop(ForkGuard::new());
            in_parent();
        });
        // a thread that is in the middle of something may begin more of it
        drop(ForkGuard::new());
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        drop(whole);
        assert_eq!(told.recv_timeout(PATIENCE), Ok("forks"));
        let (tell, told) = mpsc::channel();
        let held_up = std::thread::spawn(move || {
            drop(ForkGuard::new());
            tell.send("began").unwrap();
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        go_on.send(()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE), Ok("began"));
        forking.join().unwrap();
        held_up.join().unwrap();
        // whatever each of them waits for besides, neither waits for ever
        let whole = ForkGuard::new();
        std::thread::spawn(|| {
            before(Duration::from_millis(20), wait);
            let began = std::thread::spawn(|| drop(ForkGuard::new()));
            began.join().unwrap();
            in_parent();
        })
        .join()
        .unwrap();
        drop(whole);
    }
}
