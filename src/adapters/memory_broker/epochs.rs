//! The epochs that streams get when they are opened. They are known before: a client may ask for the history of a
//! channel that does not exist, and recover from the answer once the channel exists.

use crate::base::random::random_u64;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Channels share a generation by the hash of their name.
const GENERATIONS: usize = 4096;

pub(super) struct Epochs {
    hasher: RandomState,
    /// A forked child draws another number, because its hasher may be that of its parent.
    seed: u64,
    generations: Box<[AtomicU64]>,
}

impl Epochs {
    pub fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            seed: random_u64(),
            generations: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Returns the epoch that the stream of this channel gets when it is opened next.
    pub fn next(&self, channel: &str) -> u64 {
        let generation = self.generation(channel).load(Ordering::Acquire);
        self.hasher.hash_one((self.seed, generation, channel))
    }

    /// Ends the stream of a channel. Its successor gets another epoch.
    pub fn end(&self, channel: &str) {
        self.generation(channel).fetch_add(1, Ordering::AcqRel);
    }

    fn generation(&self, channel: &str) -> &AtomicU64 {
        &self.generations[self.hasher.hash_one(channel) as usize % GENERATIONS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_one_epoch_until_its_stream_ends() {
        let epochs = Epochs::new();
        let first = epochs.next("a");
        assert_eq!(epochs.next("a"), first);
        assert_ne!(epochs.next("b"), first);
        epochs.end("a");
        assert_ne!(epochs.next("a"), first);
        assert_ne!(Epochs::new().next("a"), first);
    }
}
