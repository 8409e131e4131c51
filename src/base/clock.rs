//! The two clocks, with a type each, so that times of one are never compared with times of the other.
//!
//! Arithmetic saturates: a time that the type cannot hold becomes the first or the last one that it can.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A time of the wall clock, which may be set forwards and backwards: for the wire and the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallTime(u64);

impl WallTime {
    pub fn now() -> Self {
        let micros = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, micros_of);
        #[cfg(test)]
        let micros = micros.saturating_add_signed(CLOCK_SET_BY.get());
        Self(micros)
    }

    /// Takes microseconds since 1970.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Returns microseconds since 1970.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Returns seconds since 1970.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns the time from `earlier` to this; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for WallTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros_of(duration)))
    }
}

impl Sub<Duration> for WallTime {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros_of(duration)))
    }
}

#[cfg(test)]
thread_local! {
    /// Microseconds by which a test has set this thread's wall clock.
    pub static CLOCK_SET_BY: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// A `WallTime` that threads share without a lock.
#[derive(Debug)]
pub struct AtomicWallTime(AtomicU64);

impl AtomicWallTime {
    pub const fn new(time: WallTime) -> Self {
        Self(AtomicU64::new(time.0))
    }

    pub fn load(&self) -> WallTime {
        WallTime(self.0.load(Ordering::Relaxed))
    }

    pub fn store(&self, time: WallTime) {
        self.0.store(time.0, Ordering::Relaxed);
    }
}

/// A time of the steady clock of this process, for intervals. No one can set this clock. The time has no meaning in another
/// process.
///
/// Times before the process began exist as well: what was saved may be older than the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SteadyTime(
    /// Microseconds; `START` is in the middle of their range. Never 0, so that an `Option` takes no more room.
    NonZeroU64,
);

impl SteadyTime {
    /// The moment at which this process first read its steady clock.
    pub const START: Self = Self(NonZeroU64::MIN.saturating_add(1 << 63));

    pub fn now() -> Self {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self::START + BEGUN.elapsed()
    }

    /// Returns the time from `earlier` to this; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// Returns the time from this to now.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }
}

impl Add<Duration> for SteadyTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros_of(duration)))
    }
}

impl Sub<Duration> for SteadyTime {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        let micros = self.0.get().saturating_sub(micros_of(duration));
        Self(NonZeroU64::new(micros).unwrap_or(NonZeroU64::MIN))
    }
}

/// When something was last done, if ever; threads share it without a lock.
#[derive(Debug)]
pub struct LastTime(AtomicU64);

impl LastTime {
    pub const fn never() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns true if `interval` has passed since the last time, or if there was none.
    pub fn is_due(&self, now: SteadyTime, interval: Duration) -> bool {
        Self::has_passed(self.0.load(Ordering::Relaxed), now, interval)
    }

    /// Makes `now` the last time.
    pub fn set(&self, now: SteadyTime) {
        self.0.store(now.0.get(), Ordering::Relaxed);
    }

    /// Makes `now` the last time if it is due. Returns true for one of several threads that call this together.
    pub fn set_if_due(&self, now: SteadyTime, interval: Duration) -> bool {
        let last = self.0.load(Ordering::Relaxed);
        Self::has_passed(last, now, interval)
            && self
                .0
                .compare_exchange(last, now.0.get(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn has_passed(last: u64, now: SteadyTime, interval: Duration) -> bool {
        NonZeroU64::new(last).is_none_or(|last| now.since(SteadyTime(last)) >= interval)
    }
}

fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn arithmetic_saturates() {
        let (first, last) = (
            SteadyTime::START - Duration::MAX,
            SteadyTime::START + Duration::MAX,
        );
        assert!(first < SteadyTime::START && SteadyTime::START < last);
        assert_eq!((first - SECOND, last + SECOND), (first, last));
        assert_eq!(first.since(last), Duration::ZERO);
        let wall = WallTime::from_micros(5);
        assert_eq!((wall - SECOND).as_micros(), 0);
        assert_eq!((wall + Duration::MAX).as_micros(), u64::MAX);
        assert_eq!((wall + SECOND).since(wall), SECOND);
        assert_eq!(wall.since(wall + SECOND), Duration::ZERO);
    }

    #[test]
    fn a_steady_time_before_the_process_began_has_its_age() {
        let year = SECOND * 3600 * 24 * 365;
        let now = SteadyTime::now();
        assert_eq!(now.since(now - year), year);
        assert!((now - year).elapsed() >= year);
    }

    #[test]
    fn no_steady_time_takes_no_more_room_than_one() {
        assert_eq!(size_of::<Option<SteadyTime>>(), size_of::<u64>());
    }

    #[test]
    fn what_was_never_done_is_due_and_then_once_per_interval() {
        let (last, now) = (LastTime::never(), SteadyTime::START);
        assert!(last.set_if_due(now, SECOND));
        assert!(!last.is_due(now + SECOND / 2, SECOND));
        assert!(!last.set_if_due(now + SECOND / 2, SECOND));
        assert!(last.set_if_due(now + SECOND, SECOND));
        last.set(now + SECOND * 2);
        assert!(!last.is_due(now + SECOND * 2, SECOND));
    }
}
