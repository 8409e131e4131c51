//! Rounds through the clients with mail.

use crate::base::clock::SteadyTime;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Clients that are taken from the round at once.
const BATCH: usize = 64;

/// The clients with mail, and the progress of the round through their mailboxes. Some of the clients have no mail any
/// more.
#[derive(Default)]
pub(super) struct Rounds {
    pub clients: VecDeque<Arc<str>>,
    /// How many clients this round has not come to yet.
    left: usize,
    /// When this round began.
    begun: Option<SteadyTime>,
}

impl Rounds {
    /// Begins a round at `now` if none is under way and the next is due. False if none is under way then.
    pub fn begin(&mut self, now: SteadyTime, interval: Duration) -> bool {
        if self.left > 0 {
            return true;
        }
        if self.begun.is_some_and(|last| now.since(last) < interval) {
            return false;
        }
        self.begun = Some(now);
        self.left = self.clients.len();
        true
    }

    /// Takes the next clients of the round; none at its end. Those that still have mail are to be added again.
    pub fn take_next(&mut self) -> Vec<Arc<str>> {
        // `make_room` may have taken some
        let count = self.left.min(self.clients.len()).min(BATCH);
        self.left -= count;
        self.clients.drain(..count).collect()
    }
}
