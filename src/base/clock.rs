//! The two clocks: wall time, which may be set, and steady time, for intervals.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Returns microseconds since 1970 by the wall clock.
pub fn now_micros() -> u64 {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64);
    #[cfg(test)]
    let micros = micros.saturating_add_signed(CLOCK_SET_BY.get());
    micros
}

#[cfg(test)]
thread_local! {
    /// Microseconds by which a test has set this thread's wall clock.
    pub static CLOCK_SET_BY: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// Microseconds since some moment of this process, for intervals: it goes on when the clock is set.
pub fn monotonic_micros() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // past any interval that is measured, so that "never" is 0
    START.elapsed().as_micros() as u64 + MONOTONIC_START
}

const MONOTONIC_START: u64 = 1 << 50;
