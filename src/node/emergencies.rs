//! The numbers and the ids of emergencies.

use crate::base::sync::{Mutex, Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::VecDeque;

/// Emergencies that are known, so that one which the broker delivers twice goes out once.
const MAX_KNOWN: usize = 1000;

pub struct Emergencies {
    /// How many emergencies went out.
    count: RwLock<u64>,
    /// The ids of the latest emergencies.
    known: Mutex<VecDeque<u64>>,
}

impl Emergencies {
    pub fn new() -> Self {
        Self {
            count: RwLock::new(Rank::Emergencies, 0),
            known: Mutex::default(),
        }
    }

    /// Begins to send emergencies. While the guard lives, no client connects, disconnects or acknowledges: each client
    /// gets an emergency exactly once, if the port for mail answers at once.
    pub fn begin(&self) -> RwLockWriteGuard<'_, u64> {
        self.count.write()
    }

    /// Holds emergencies back while the guard lives. Returns how many went out before.
    pub fn hold_back(&self) -> RwLockReadGuard<'_, u64> {
        self.count.read()
    }

    /// Notes the id of an emergency that goes out.
    pub fn add(&self, id: u64) {
        let mut known = self.known.lock();
        known.push_back(id);
        if known.len() > MAX_KNOWN {
            known.pop_front();
        }
    }

    /// True for one of the latest emergencies that went out.
    pub fn is_known(&self, id: u64) -> bool {
        self.known.lock().contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_emergency_has_a_number_and_the_latest_are_known() {
        let emergencies = Emergencies::new();
        for _ in 0..2 {
            *emergencies.begin() += 1;
        }
        assert_eq!(*emergencies.hold_back(), 2);
        assert!(!emergencies.is_known(7));
        for id in 7..=7 + MAX_KNOWN as u64 {
            emergencies.add(id);
        }
        assert!(emergencies.is_known(8));
        assert!(!emergencies.is_known(7), "too long ago");
    }
}
