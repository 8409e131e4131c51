//! Limits the lines that one place in the code logs in a period, so that a line that is repeated without pause does not
//! flood the log. Lines beyond the limit are counted.

use crate::base::clock::SteadyTime;
use crate::base::sync::Mutex;
use std::collections::HashMap;
use std::panic::Location;
use std::time::Duration;

/// The most lines of one place in the code that are logged in one period.
const LINES: u32 = 20;

const PERIOD: Duration = Duration::from_secs(1);

/// The lines of each place in the code that has logged in the present period.
#[derive(Debug, Default)]
pub struct LogThrottle {
    places: Mutex<HashMap<&'static Location<'static>, Lines>>,
}

#[derive(Debug)]
struct Lines {
    /// When the period began.
    begun: SteadyTime,
    count: u32,
}

impl LogThrottle {
    /// Counts a line of a place in the code. Returns false when the line is one too many and must not be logged.
    pub fn admits(&self, location: &'static Location<'static>, now: SteadyTime) -> bool {
        let mut places = self.places.lock();
        let lines = places.entry(location).or_insert(Lines {
            begun: now,
            count: 0,
        });
        lines.count = lines.count.saturating_add(1);
        lines.count <= LINES
    }

    /// Ends the periods that are over. Returns each place with lines that were not logged, and their number.
    pub fn end_periods(&self, now: SteadyTime) -> Vec<(&'static Location<'static>, u32)> {
        let mut places = self.places.lock();
        let mut withheld = Vec::new();
        places.retain(|location, lines| {
            let is_over = now.since(lines.begun) >= PERIOD;
            if is_over && lines.count > LINES {
                withheld.push((*location, lines.count - LINES));
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
        let begun = SteadyTime::START;
        let soon = Duration::from_micros(1);
        let admitted = (0..1000).filter(|_| throttle.admits(flood, begun)).count();
        assert_eq!(admitted, LINES as usize);
        assert!(throttle.admits(other, begun));
        assert_eq!(throttle.end_periods(begun + PERIOD - soon), []);
        assert_eq!(
            throttle.end_periods(begun + PERIOD),
            [(flood, 1000 - LINES)]
        );
        assert!(throttle.admits(flood, begun + PERIOD + soon));
        assert_eq!(throttle.end_periods(begun + PERIOD * 2 + soon), []);
    }

    fn this_place() -> &'static Location<'static> {
        Location::caller()
    }
}
