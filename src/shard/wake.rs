//! Readiness without a task per connection: each connection's waker puts its slot on the shard's list.

use crate::base::sync::Mutex;
use crate::core::hub::Slot;
use futures_util::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// Connections whose sockets became ready, in that order.
#[derive(Debug, Default)]
pub struct ReadyList {
    slots: Mutex<Vec<Slot>>,
    waker: AtomicWaker,
}

impl ReadyList {
    /// Moves all that is ready into `taken`, which must be empty.
    pub fn take(&self, taken: &mut Vec<Slot>) {
        std::mem::swap(&mut *self.slots.lock(), taken);
    }

    /// Puts connections that were taken and not cleared back in front.
    pub fn put_back(&self, taken: impl Iterator<Item = Slot>) {
        self.slots.lock().splice(..0, taken);
    }

    pub fn is_empty(&self) -> bool {
        self.slots.lock().is_empty()
    }

    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Has no shard woken until the next `register`.
    pub fn disarm(&self) {
        self.waker.take();
    }
}

/// One connection's readiness; it is on the list at most once.
#[derive(Debug)]
pub struct Readiness {
    slot: Slot,
    is_set: AtomicBool,
    list: Arc<ReadyList>,
}

impl Readiness {
    pub fn new(slot: Slot, list: &Arc<ReadyList>) -> Arc<Self> {
        Arc::new(Self {
            slot,
            is_set: AtomicBool::new(false),
            list: Arc::clone(list),
        })
    }

    /// Puts the connection on the list.
    pub fn set(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            self.list.slots.lock().push(self.slot);
            self.list.waker.wake();
        }
    }

    /// To be called when the connection was taken from the list, before its socket is read.
    pub fn clear(&self) {
        self.is_set.store(false, Ordering::Release);
    }
}

impl Wake for Readiness {
    fn wake(self: Arc<Self>) {
        self.set();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
    }
}
