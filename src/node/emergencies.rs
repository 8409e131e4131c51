//! The numbers and the ids of emergencies.

use super::client::ClientState;
use crate::base::sync::{Mutex, Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::VecDeque;

/// Emergencies whose acknowledgements count also from clients for which the emergency is not kept.
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
    /// gets an emergency exactly once.
    pub fn begin(&self) -> RwLockWriteGuard<'_, u64> {
        self.count.write()
    }

    /// Holds emergencies back while the guard lives. Returns how many went out before.
    pub fn hold_back(&self) -> RwLockReadGuard<'_, u64> {
        self.count.read()
    }

    /// Lets clients acknowledge the emergency with this id.
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

    /// Acknowledges an emergency that is not kept for the client. True for the first acknowledgement of a known
    /// emergency.
    pub fn acknowledge(&self, state: &mut ClientState, id: u64) -> bool {
        let known = self.known.lock();
        if !known.contains(&id) || state.acknowledged.contains(&id) {
            return false;
        }
        if state.acknowledged.len() >= MAX_KNOWN {
            state.acknowledged.retain(|id| known.contains(id));
        }
        state.acknowledged.push(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_emergency_has_a_number_and_is_acknowledged_once() {
        let emergencies = Emergencies::new();
        for _ in 0..2 {
            *emergencies.begin() += 1;
        }
        assert_eq!(*emergencies.hold_back(), 2);
        let mut state = ClientState::default();
        assert!(!emergencies.acknowledge(&mut state, 7), "unknown");
        emergencies.add(7);
        assert!(emergencies.acknowledge(&mut state, 7));
        assert!(!emergencies.acknowledge(&mut state, 7), "a second time");
        for id in 0..MAX_KNOWN as u64 {
            emergencies.add(100 + id);
        }
        let mut other = ClientState::default();
        assert!(!emergencies.acknowledge(&mut other, 7), "too long ago");
    }
}
