//! The order in which a thread takes locks. Builds with debug assertions panic when a thread takes a lock out of order;
//! release builds carry no cost.

/// The rank of a lock. A thread that holds a lock takes only locks of higher ranks, so no two threads can wait for each
/// other. A thread never holds two locks of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Whether the server runs.
    Running,
    /// Whether the saved state was read.
    Restore,
    /// Whether the database's file is open.
    Database,
    /// The number of the last emergency.
    Emergencies,
    /// The state of one client.
    Client,
    /// The sessions of all clients.
    Sessions,
    /// The mailboxes of some clients.
    Mail,
    /// The results of idempotency keys.
    Idempotency,
    /// The map of channels.
    Channels,
    /// One notice of a channel at a time.
    Notices,
    /// One eviction at a time.
    Eviction,
    /// The map of streams.
    Streams,
    /// The history of one channel.
    Stream,
    /// The connections that are entering one channel.
    Gate,
    /// The subscribers of one channel.
    Members,
    /// The queue of clients that are away.
    Away,
    /// One thread at a time sends on a link.
    Link,
    /// A lock under which no other lock is taken.
    #[default]
    Leaf,
}

/// The order of one lock. Without debug assertions it takes no memory, and no time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    #[cfg(debug_assertions)]
    rank: Rank,
}

/// Says that this thread holds a lock, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

#[cfg(not(debug_assertions))]
impl Order {
    pub(crate) const fn new(_rank: Rank) -> Self {
        Self {}
    }

    pub(crate) fn before_lock(self) -> Held {
        Held {}
    }

    pub(crate) fn after_try_lock(self) -> Held {
        Held {}
    }
}

#[cfg(debug_assertions)]
mod checked {
    use super::{Held, Order, Rank};
    use std::cell::RefCell;

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    impl Order {
        pub(crate) const fn new(rank: Rank) -> Self {
            Self { rank }
        }

        /// To be called before this thread waits for the lock.
        ///
        /// Panics when the thread holds a lock of this rank or of a higher one.
        #[track_caller]
        pub(crate) fn before_lock(self) -> Held {
            let rank = self.rank;
            let highest = HELD.with_borrow(|held| held.iter().max().copied());
            if let Some(highest) = highest.filter(|highest| *highest >= rank) {
                panic!("lock order: a {rank:?} lock is taken while a {highest:?} lock is held");
            }
            self.after_try_lock()
        }

        /// To be called when a lock was free. A thread that does not wait cannot be part of a deadlock by this lock.
        pub(crate) fn after_try_lock(self) -> Held {
            HELD.with_borrow_mut(|held| held.push(self.rank));
            Held { rank: self.rank }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // a thread that ends may have lost its list already
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|rank| *rank == self.rank) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rank;
    use crate::base::sync::{Mutex, RwLock};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn is_refused(act: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(act)).is_err()
    }

    #[test]
    fn locks_in_order_are_taken() {
        let (client, stream) = (Mutex::new(Rank::Client, 1), Mutex::new(Rank::Stream, 2));
        let held = client.lock();
        assert_eq!(*held + *stream.lock(), 3);
        drop(held);
        assert_eq!(*stream.lock(), 2);
        assert_eq!(*client.lock(), 1);
    }

    #[test]
    fn an_inversion_and_a_second_lock_of_one_rank_panic() {
        let (client, stream) = (Mutex::new(Rank::Client, 1), Mutex::new(Rank::Stream, 2));
        let (other, map) = (Mutex::new(Rank::Stream, 3), RwLock::new(Rank::Channels, 4));
        let held = stream.lock();
        assert!(is_refused(|| drop(client.lock())), "an inversion");
        assert!(is_refused(|| drop(map.read())), "an inversion by a reader");
        assert!(
            is_refused(|| drop(other.lock())),
            "a second one of this rank"
        );
        assert!(other.try_lock().is_some(), "which does not wait");
        drop(held);
        drop(client.lock());
        let reading = map.read();
        assert!(
            is_refused(|| drop(map.read())),
            "a writer may wait between two reads"
        );
        drop(reading);
        assert_eq!(*map.write(), 4);
    }
}
