//! A client as the node knows it: connected, or subscribed by the application before it connects.

use super::channel::Channel;
use super::delivery::Place;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Client {
    pub id: Arc<str>,
    /// Microseconds since 1970.
    pub joined: u64,
    last_ping: AtomicU64,
    pub state: Mutex<ClientState>,
}

#[derive(Default)]
pub struct ClientState {
    /// `None` while it is not connected.
    pub place: Option<Place>,
    pub channels: SmallVec<[Arc<Channel>; 1]>,
    /// It is out of the node's map; whoever still holds it must look it up again.
    pub removed: bool,
}

impl Client {
    pub fn new(id: Arc<str>, now: u64, place: Option<Place>) -> Self {
        let state = ClientState {
            place,
            ..ClientState::default()
        };
        Self {
            id,
            joined: now,
            last_ping: AtomicU64::new(now),
            state: Mutex::new(state),
        }
    }

    pub fn ping(&self, now: u64) {
        self.last_ping.store(now, Ordering::Relaxed);
    }

    /// Microseconds since 1970.
    pub fn last_ping(&self) -> u64 {
        self.last_ping.load(Ordering::Relaxed)
    }
}

impl ClientState {
    /// A client that is not connected and on no channel is nobody; true when that has just become so.
    pub fn end_if_idle(&mut self) -> bool {
        let ends = self.place.is_none() && self.channels.is_empty() && !self.removed;
        self.removed |= ends;
        ends
    }
}
