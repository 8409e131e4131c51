//! The locks of the standard library, with a rank and without poisoning: a panic ends one call or one connection, and
//! leaves the value under the lock whole.
//!
//! A forked child may start a server of its own. Locks that keep their waiting threads in a table of the process, as
//! `parking_lot`'s do, would leave the parent's threads in the child's table, and the child's own threads would crash.

use crate::base::lock_rank::{Held, Order};
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

pub use crate::base::lock_rank::Rank;

/// A lock for one thread at a time. `Default` gives it the rank `Leaf`.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    order: Order,
    value: std::sync::Mutex<T>,
}

/// A lock for one writer or many readers. `Default` gives it the rank `Leaf`.
#[derive(Debug, Default)]
pub struct RwLock<T> {
    order: Order,
    value: std::sync::RwLock<T>,
}

/// A condition that threads wait for under a `Mutex`.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

/// Access to a value, while its lock is held.
#[derive(Debug)]
pub struct Guard<G> {
    // declared first, so that the lock is free before this thread counts as holding nothing
    value: G,
    held: Held,
}

pub type MutexGuard<'a, T> = Guard<std::sync::MutexGuard<'a, T>>;
pub type RwLockReadGuard<'a, T> = Guard<std::sync::RwLockReadGuard<'a, T>>;
pub type RwLockWriteGuard<'a, T> = Guard<std::sync::RwLockWriteGuard<'a, T>>;

impl<T> Mutex<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        Self {
            order: Order::new(rank),
            value: std::sync::Mutex::new(value),
        }
    }

    /// Waits until the lock is free, and takes it.
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        Guard {
            held: self.order.before_lock(),
            value: self.value.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Takes the lock if it is free, else returns `None`.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let value = match self.value.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(Guard {
            held: self.order.after_try_lock(),
            value,
        })
    }
}

impl<T> RwLock<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        Self {
            order: Order::new(rank),
            value: std::sync::RwLock::new(value),
        }
    }

    /// Waits until there is no writer, and takes the lock beside other readers.
    #[track_caller]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        Guard {
            held: self.order.before_lock(),
            value: self.value.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Waits until the lock is free, and takes it alone.
    #[track_caller]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        Guard {
            held: self.order.before_lock(),
            value: self.value.write().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.value
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.value
    }
}

impl Condvar {
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Frees the lock, waits for a notification, and takes the lock again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let Guard { value, held } = guard;
        let value = self.0.wait(value).unwrap_or_else(PoisonError::into_inner);
        Guard { value, held }
    }

    /// As `wait`, for at most `timeout`. Returns true when the timeout has passed.
    pub fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let Guard { value, held } = guard;
        let (value, result) = self
            .0
            .wait_timeout(value, timeout)
            .unwrap_or_else(PoisonError::into_inner);
        (Guard { value, held }, result.timed_out())
    }

    /// As `wait`, until `deadline` at most. Returns true when the deadline has passed.
    pub fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }
}
