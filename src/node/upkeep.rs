//! The age of the node, when history was last expired, and how much memory the node held at most.

use crate::base::clock::{LastTime, SteadyTime};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The state of the regular work of the node.
pub struct Upkeep {
    made: SteadyTime,
    expired: LastTime,
    peak: AtomicUsize,
}

impl Upkeep {
    pub fn new() -> Self {
        Self {
            made: SteadyTime::now(),
            expired: LastTime::never(),
            peak: AtomicUsize::new(0),
        }
    }

    /// The time since the node was made.
    pub fn uptime(&self) -> Duration {
        self.made.elapsed()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_counted_from_the_peak_since_the_last_tick() {
        let upkeep = Upkeep::new();
        upkeep.record_held(50);
        upkeep.record_held(30);
        assert_eq!(upkeep.take_freed(20), 30);
        assert_eq!(upkeep.take_freed(20), 0);
        assert_eq!(upkeep.take_freed(60), 0);
        assert_eq!(upkeep.take_freed(10), 50);
    }

    #[test]
    fn an_expiry_is_due_after_the_interval_or_when_urgent() {
        let (upkeep, interval) = (Upkeep::new(), Duration::from_secs(10));
        let start = SteadyTime::now();
        assert!(upkeep.begin_expiry(start, interval, false));
        assert!(!upkeep.begin_expiry(start + interval / 2, interval, false));
        assert!(upkeep.begin_expiry(start + interval / 2, interval, true));
        assert!(!upkeep.begin_expiry(start + interval, interval, false));
        assert!(upkeep.begin_expiry(start + interval * 2, interval, false));
    }
}
