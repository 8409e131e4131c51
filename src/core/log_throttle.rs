//! Keeps a line that is repeated without pause from flooding the log: one place in the code logs so many lines a second,
//! and the others are counted.

use crate::base::sync::Mutex;
use std::collections::HashMap;
use std::panic::Location;

/// Lines of one place in the code that are logged in one period.
const LINES: u32 = 20;

/// Microseconds of a period.
const PERIOD: u64 = 1_000_000;

/// The lines of each place that logged lately.
#[derive(Debug, Default)]
pub struct LogThrottle {
    places: Mutex<HashMap<&'static Location<'static>, Lines>>,
}

#[derive(Debug)]
struct Lines {
    /// When the period began, by `monotonic_micros`.
    begun: u64,
    count: u32,
}

impl LogThrottle {
    /// Counts a line of a place in the code. Returns false when the line is one too many and must not be logged.
    pub fn admits(&self, place: &'static Location<'static>, now: u64) -> bool {
        let mut places = self.places.lock();
        let lines = places.entry(place).or_insert(Lines {
            begun: now,
            count: 0,
        });
        lines.count = lines.count.saturating_add(1);
        lines.count <= LINES
    }

    /// Ends the periods that are over. Returns how many lines of each place were not logged, where there are any.
    pub fn end_periods(&self, now: u64) -> Vec<(&'static Location<'static>, u32)> {
        let mut places = self.places.lock();
        let mut withheld = Vec::new();
        places.retain(|place, lines| {
            let is_over = now.saturating_sub(lines.begun) >= PERIOD;
            if is_over && lines.count > LINES {
                withheld.push((*place, lines.count - LINES));
            }
            !is_over
        });
        withheld
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted_and_other_places_are_not() {
        let throttle = LogThrottle::default();
        let (flood, other) = (Location::caller(), this_place());
        let admitted = (0..1000).filter(|_| throttle.admits(flood, 5)).count();
        assert_eq!(admitted, LINES as usize);
        assert!(throttle.admits(other, 5));
        assert_eq!(throttle.end_periods(5 + PERIOD - 1), []);
        assert_eq!(throttle.end_periods(5 + PERIOD), [(flood, 1000 - LINES)]);
        assert!(throttle.admits(flood, 6 + PERIOD));
        assert_eq!(throttle.end_periods(6 + 2 * PERIOD), []);
    }

    fn this_place() -> &'static Location<'static> {
        Location::caller()
    }
}
