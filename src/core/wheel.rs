//! A timer wheel: one for each shard instead of a timer for each connection. The owner counts time in ticks.

/// Entries by the tick at which each is due.
///
/// An entry that is due later than the wheel reaches comes early. Its owner checks the time and adds the entry again.
#[derive(Debug)]
pub struct Wheel<T> {
    buckets: Vec<Vec<T>>,
    now: u64,
    len: usize,
}

impl<T> Wheel<T> {
    /// Creates a wheel at tick 0 that reaches `reach` ticks ahead.
    pub fn new(reach: usize) -> Self {
        Self {
            buckets: (0..reach.max(2)).map(|_| Vec::new()).collect(),
            now: 0,
            len: 0,
        }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an entry at `tick`: not before the next tick, and not later than the wheel reaches.
    pub fn insert(&mut self, tick: u64, entry: T) {
        let ahead = tick
            .saturating_sub(self.now)
            .clamp(1, self.buckets.len() as u64 - 1);
        let bucket = (self.now + ahead) % self.buckets.len() as u64;
        self.buckets[bucket as usize].push(entry);
        self.len += 1;
    }

    /// Advances to `tick`. Hands over the entries that are due by then.
    pub fn advance(&mut self, tick: u64, due: &mut Vec<T>) {
        // a whole turn has visited every bucket
        let turn = self.now + self.buckets.len() as u64;
        let last = tick.min(turn);
        while self.now < last {
            self.now += 1;
            let bucket = (self.now % self.buckets.len() as u64) as usize;
            self.len -= self.buckets[bucket].len();
            due.append(&mut self.buckets[bucket]);
            if self.buckets[bucket].capacity() > KEPT_CAPACITY {
                self.buckets[bucket] = Vec::new();
            }
        }
        self.now = self.now.max(tick);
    }
}

/// The capacity that an empty bucket keeps.
const KEPT_CAPACITY: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel<u32>, tick: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.advance(tick, &mut due);
        due
    }

    #[test]
    fn entries_come_when_due_and_far_ones_early() {
        let mut wheel = Wheel::new(8);
        wheel.insert(3, 30);
        wheel.insert(0, 10);
        wheel.insert(100, 70);
        assert_eq!(due(&mut wheel, 2), [10]);
        assert_eq!(due(&mut wheel, 3), [30]);
        assert_eq!(due(&mut wheel, 50), [70]);
        assert!(wheel.is_empty());
        assert_eq!(wheel.now(), 50);
        wheel.insert(51, 1);
        assert_eq!(due(&mut wheel, 51), [1]);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = Wheel::new(4);
        for tick in 1..4 {
            wheel.insert(tick, tick as u32);
        }
        let mut seen = due(&mut wheel, 1_000_000);
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3]);
    }
}
