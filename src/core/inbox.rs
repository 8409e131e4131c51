//! The queue of deliveries to a shard: any thread may push, one thread takes.

use crate::base::sync::{Condvar, Mutex, Rank};
use futures_util::task::AtomicWaker;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

/// An item whose memory is counted while the item waits.
pub trait Weigh {
    /// The weight in bytes.
    fn weight(&self) -> usize;
}

/// Ordering: the items of one thread are taken in the order of its pushes; items that are pushed under a common lock are
/// taken in the order in which that lock was held. A push wakes the owner only if the queue was empty.
#[derive(Debug)]
pub struct Inbox<T> {
    items: Mutex<Items<T>>,
    waker: AtomicWaker,
    bytes: AtomicUsize,
    max_bytes: usize,
    room: Condvar,
}

#[derive(Debug)]
struct Items<T> {
    queue: Vec<T>,
    waiters: usize,
    closed: bool,
}

impl<T: Weigh> Inbox<T> {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            items: Mutex::new(
                Rank::Leaf,
                Items {
                    queue: Vec::new(),
                    waiters: 0,
                    closed: false,
                },
            ),
            waker: AtomicWaker::new(),
            bytes: AtomicUsize::new(0),
            max_bytes,
            room: Condvar::new(),
        }
    }

    /// Queues an item; true. After `close` the item is dropped, and the result is false.
    pub fn push(&self, item: T) -> bool {
        let weight = item.weight();
        self.add(weight, |queue| queue.push(item))
    }

    /// Queues items under one lock. After `close` the items are dropped.
    pub fn push_all(&self, new: Vec<T>) {
        if new.is_empty() {
            return;
        }
        let weight = new.iter().map(Weigh::weight).sum();
        self.add(weight, |queue| queue.extend(new));
    }

    /// Calls `add`, which puts items of this weight into the queue, and wakes the shard if the queue was empty. Returns
    /// false after `close`, without the call.
    fn add(&self, weight: usize, add: impl FnOnce(&mut Vec<T>)) -> bool {
        let mut items = self.items.lock();
        if items.closed {
            return false;
        }
        let was_empty = items.queue.is_empty();
        add(&mut items.queue);
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        drop(items);
        if was_empty {
            self.waker.wake();
        }
        true
    }

    /// Moves all items into `taken`, which must be empty. The bytes of the items count until `settle`.
    pub fn take(&self, taken: &mut Vec<T>) {
        std::mem::swap(&mut self.items.lock().queue, taken);
    }

    /// Subtracts the bytes of deliveries that were carried out. Returns true if the inbox was full and no longer is.
    pub fn settle(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let has_room_again = before > self.max_bytes && before - bytes <= self.max_bytes;
        if has_room_again {
            let items = self.items.lock();
            if items.waiters > 0 {
                self.room.notify_all();
            }
        }
        has_room_again
    }

    /// Sets the waker that the next push into the empty queue wakes.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Removes the waker until the next `register`: the owner is awake and will take the queue.
    pub fn disarm(&self) {
        self.waker.take();
    }

    /// Wakes the owner without a push.
    pub fn wake(&self) {
        self.waker.wake();
    }

    pub fn is_empty(&self) -> bool {
        self.items.lock().queue.is_empty()
    }

    /// The number of items that wait.
    pub fn len(&self) -> usize {
        self.items.lock().queue.len()
    }

    /// The bytes of the items that wait, and of those that were taken and are not settled.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// True while the queue is over its limit, and publishers should wait.
    pub fn is_full(&self) -> bool {
        self.bytes() > self.max_bytes
    }

    /// Blocks while the queue is full, for at most `most`; false if the queue is still full then.
    pub fn wait_for_room(&self, most: Duration) -> bool {
        if !self.is_full() {
            return true;
        }
        let deadline = Instant::now() + most;
        let mut items = self.items.lock();
        while self.is_full() && !items.closed {
            items.waiters += 1;
            let timed_out;
            (items, timed_out) = self.room.wait_until(items, deadline);
            items.waiters -= 1;
            if timed_out {
                return !self.is_full();
            }
        }
        true
    }

    /// Refuses further items, drops those that wait, and wakes the threads that wait for room.
    pub fn close(&self) {
        let mut items = self.items.lock();
        items.closed = true;
        let waiting = std::mem::take(&mut items.queue);
        drop(items);
        self.room.notify_all();
        // without the lock, because dropping an item may complete a call
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    impl Weigh for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    #[test]
    fn a_full_inbox_holds_back_until_it_has_room() {
        let inbox = Arc::new(Inbox::new(10));
        assert!(inbox.push(11_usize));
        assert!(inbox.is_full());
        assert!(!inbox.wait_for_room(Duration::from_millis(5)));
        let waiting = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || inbox.wait_for_room(Duration::from_secs(30)))
        };
        let mut taken = Vec::new();
        inbox.take(&mut taken);
        assert!(inbox.is_full(), "what was taken still waits");
        assert!(inbox.settle(11));
        assert!(waiting.join().expect("no panic"));
        assert_eq!((taken, inbox.len(), inbox.bytes()), (vec![11], 0, 0));
    }

    #[test]
    fn a_closed_inbox_takes_nothing() {
        let inbox = Inbox::new(10);
        inbox.push(20_usize);
        inbox.close();
        assert!(!inbox.push(1));
        assert!(inbox.wait_for_room(Duration::from_secs(30)));
    }
}
