//! The id and the time of each message that the server sends.

use crate::base::clock::WallTime;
use crate::base::random::random_u64;
use crate::wire::messages::Stamp;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes stamps. No two stamps of a process have the same id.
pub struct Stamps {
    next: AtomicU64,
    seed: u64,
}

impl Stamps {
    pub fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            seed: random_u64(),
        }
    }

    pub fn next(&self) -> Stamp {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Stamp {
            id: mix(self.seed.wrapping_add(number)),
            at: WallTime::now(),
        }
    }
}

/// A permutation of the 64-bit numbers (the finalizer of `SplitMix64`), so that consecutive ids look unlike.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
