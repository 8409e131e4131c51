//! When history was last expired, and how much memory the node held at most.

use crate::base::clock::{LastTime, SteadyTime};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The state of the regular work of the node.
pub struct Upkeep {
    expired: LastTime,
    peak: AtomicUsize,
}

impl Upkeep {
    pub fn new() -> Self {
        Self {
            expired: LastTime::never(),
            peak: AtomicUsize::new(0),
        }
    }

    /// True, and counted from `now` on, if the last expiry is `interval` ago or `is_urgent`.
    pub fn begin_expiry(&self, now: SteadyTime, interval: Duration, is_urgent: bool) -> bool {
        let is_due = is_urgent || self.expired.is_due(now, interval);
        if is_due {
            self.expired.set(now);
        }
        is_due
    }

    /// Records how many bytes the node holds before it frees some of them: much may be allocated and freed between two
    /// ticks.
    pub fn record_held(&self, bytes: usize) {
        self.peak.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes less than at the peak the node holds. The next peak is measured from `held` on.
    pub fn take_freed(&self, held: usize) -> usize {
        self.peak.swap(held, Ordering::Relaxed).saturating_sub(held)
    }
}
