//! Receipts: how far each sent message has come. Every part that handles a message updates its receipt.

use crate::base::sync::Mutex;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The receipt of one message. Each field but the id is a number of connections or clients.
#[derive(Debug, Default)]
pub struct Receipt {
    /// The id of the message.
    pub message: u64,
    pub handed_over: AtomicU32,
    /// Connections whose socket has taken the last byte of the message.
    pub written: AtomicU32,
    pub acknowledged: AtomicU32,
    /// The number of clients for which the message is kept.
    pub waiting: AtomicU32,
}

impl Receipt {
    pub fn count_written(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// The receipts of the latest messages, by id.
pub struct Receipts {
    known: Mutex<Known>,
    bound: usize,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<u64, Arc<Receipt>>,
    by_age: VecDeque<u64>,
}

impl Receipts {
    /// Holds at most `bound` receipts. The oldest receipts are forgotten first.
    pub fn new(bound: usize) -> Self {
        Self {
            known: Mutex::default(),
            bound,
        }
    }

    /// The receipt of a message; a new one if there is none. Counts connections that the message is handed over to, and
    /// clients that it is kept for.
    pub fn open(&self, id: u64, handed_over: usize, waiting: usize) -> Arc<Receipt> {
        let mut known = self.known.lock();
        let known = &mut *known;
        let receipt = match known.by_id.entry(id) {
            Entry::Occupied(receipt) => {
                let receipt = Arc::clone(receipt.get());
                receipt
                    .handed_over
                    .fetch_add(handed_over as u32, Ordering::Relaxed);
                receipt.waiting.fetch_add(waiting as u32, Ordering::Relaxed);
                return receipt;
            }
            Entry::Vacant(vacant) => Arc::clone(vacant.insert(Arc::new(Receipt {
                message: id,
                handed_over: AtomicU32::new(handed_over as u32),
                waiting: AtomicU32::new(waiting as u32),
                ..Receipt::default()
            }))),
        };
        known.by_age.push_back(id);
        while known.by_age.len() > self.bound {
            if let Some(oldest) = known.by_age.pop_front() {
                known.by_id.remove(&oldest);
            }
        }
        receipt
    }

    pub fn find(&self, id: u64) -> Option<Arc<Receipt>> {
        self.known.lock().by_id.get(&id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let receipts = Receipts::new(2);
        for id in 1..=3 {
            receipts.open(id, 5, 0).count_written();
        }
        assert!(receipts.find(1).is_none());
        let newest = receipts.find(3).expect("known");
        let counts =
            [&newest.handed_over, &newest.written].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [5, 1]);
    }
}
