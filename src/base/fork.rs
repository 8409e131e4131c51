//! What a forked child must not keep: it has this process's memory and descriptors, but none of its threads.

use crate::base::sync::{Mutex, Rank};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Threads that do what a fork must not cut in two, and threads that fork. No lock: a child could find it locked.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How often this thread has said that it is not to be cut.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// This thread forks.
    static FORKS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// The longest that a fork waits for what is under way, and the longest that the like of it waits for a fork. Both have
/// an end, because a fork also waits for locks of the application and of the interpreter, behind which anything may be
/// waited for; past it, a child may be cut off in the middle.
pub const MAX_WAIT: Duration = Duration::from_secs(2);
const MAX_HOLD: Duration = Duration::from_millis(200);

/// While it lives, this process forks on no other thread: a child would have what is under way as it is, and nobody to
/// end it. What has locks of its own (SQLite), or is known to forks only once it is done (a database's lock, a
/// listener), is begun, used and ended under one; servers' threads are started under one.
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
        // a thread that has one already must not wait for a fork that waits for it
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
        // counted before it is looked: of two that look at each other, one sees the other
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

/// Says of something with locks that it is being worked on: a child that is forked meanwhile finds them locked for good,
/// and is not to touch it.
#[derive(Debug, Default)]
pub struct ForkSensitive {
    workers: AtomicUsize,
    generation: AtomicU32,
}

/// While it lives, the work goes on.
#[derive(Debug)]
pub struct Worker<'a>(&'a ForkSensitive);

impl ForkSensitive {
    /// To be called before the locks are taken.
    pub fn begin(&self) -> Worker<'_> {
        self.generation.store(generation(), Ordering::SeqCst);
        self.workers.fetch_add(1, Ordering::SeqCst);
        Worker(self)
    }

    /// True in a child that was forked in the middle of it.
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

/// To be called before a fork, by the thread that forks: nothing more is begun that must not be cut, and up to `most` is
/// waited for what is under way. `pause` is to call `wait`, and may let go of something meanwhile; it is looked again
/// after it.
pub fn before(most: Duration, mut pause: impl FnMut(Duration) -> Duration) {
    if !FORKS_HERE.replace(true) {
        FORKING.fetch_add(1, Ordering::SeqCst);
    }
    let mut left = most;
    while DEPTH.get() == 0 && UNDER_WAY.load(Ordering::SeqCst) > 0 && !left.is_zero() {
        left = left.saturating_sub(pause(left));
    }
}

/// Blocks for a moment, and until nothing is under way or `most` has passed; returns for how long, about.
pub fn wait(most: Duration) -> Duration {
    let mut waited = POLL;
    std::thread::sleep(POLL);
    while UNDER_WAY.load(Ordering::SeqCst) > 0 && waited < most {
        std::thread::sleep(POLL);
        waited += POLL;
    }
    waited
}

/// To be called by the thread that has forked, in the parent.
pub fn in_parent() {
    if FORKS_HERE.replace(false) {
        FORKING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Descriptors that a child closes.
static PARENTS_OWN: Mutex<Vec<Descriptor>> = Mutex::new(Rank::Leaf, Vec::new());

#[cfg(unix)]
type Descriptor = std::os::fd::RawFd;
#[cfg(not(unix))]
type Descriptor = usize;

/// `PARENTS_OWN` is locked for good, by a thread that is not there.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Threads of servers that may yet call into Python.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A server's own thread until it has ended, or a thread in a call that runs Python code: before the end of either, the
/// interpreter must not end.
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

const POLL: Duration = Duration::from_micros(500);

/// How often this process is a fork, counted from the first that loaded this library. What was started under
/// another number is not this process's.
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// To be called first thing in a forked child, by its only thread: the parent's listeners and locks are closed here, so
/// that its port and its files are its own.
pub fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    THREADS.store(0, Ordering::Relaxed);
    // of the other threads nothing goes on here
    UNDER_WAY.store(usize::from(DEPTH.get() > 0), Ordering::SeqCst);
    FORKING.store(0, Ordering::SeqCst);
    FORKS_HERE.set(false);
    // a fork that was not announced may find it locked: then the descriptors are left open
    match PARENTS_OWN.try_lock() {
        Some(mut descriptors) => descriptors.drain(..).for_each(close),
        None => IS_LOST.store(true, Ordering::Relaxed),
    }
}

/// Has forks close a descriptor. To be called under a `ForkGuard`, from before it is opened.
pub fn note_opened(descriptor: Descriptor) {
    if !IS_LOST.load(Ordering::Relaxed) {
        PARENTS_OWN.lock().push(descriptor);
    }
}

/// Has forks close a descriptor no more. To be called under a `ForkGuard`, until after it is closed: its number may be given
/// to another file.
pub fn note_closing(descriptor: Descriptor) {
    if !IS_LOST.load(Ordering::Relaxed) {
        PARENTS_OWN.lock().retain(|known| *known != descriptor);
    }
}

/// A descriptor that a child is to close, for as long as this value lives; as `note_opened` and `note_closing`.
#[derive(Debug)]
pub struct ClosedInChild(Option<Descriptor>);

impl ClosedInChild {
    #[cfg(unix)]
    pub fn register(file: &impl std::os::fd::AsRawFd) -> Self {
        let descriptor = file.as_raw_fd();
        note_opened(descriptor);
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
            note_closing(descriptor);
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
