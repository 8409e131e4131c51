//! Durations, counted in buckets fine enough to read quantiles off.

use std::time::Duration;

/// Durations in buckets whose width is at most 1/64 of their value.
pub struct Histogram {
    buckets: Vec<u64>,
    pub count: u64,
    pub longest: Duration,
}

const STEPS: u64 = 64;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; 64 * STEPS as usize],
            count: 0,
            longest: Duration::ZERO,
        }
    }
}

impl Histogram {
    pub fn record(&mut self, duration: Duration) {
        self.buckets[bucket(duration.as_nanos() as u64)] += 1;
        self.count += 1;
        self.longest = self.longest.max(duration);
    }

    /// The upper end of the bucket in which that many percent of the durations has been seen.
    pub fn quantile(&self, percent: u64) -> Duration {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && count > 0 {
                return Duration::from_nanos(upper_end(index)).min(self.longest);
            }
        }
        self.longest
    }
}

/// Below `STEPS` one bucket a nanosecond, then `STEPS` buckets for each doubling.
fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < STEPS {
        return nanoseconds as usize;
    }
    let doublings = u64::from(nanoseconds.ilog2() - STEPS.ilog2());
    ((doublings + 1) * STEPS + (nanoseconds >> doublings) - STEPS) as usize
}

fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_says() {
        for nanoseconds in (0..2_000).chain([1_000_000, 1_234_567, 987_654_321, 60_000_000_000]) {
            let end = upper_end(bucket(nanoseconds));
            assert!(
                end >= nanoseconds,
                "{nanoseconds} is above its bucket's end {end}"
            );
            assert!(
                end - nanoseconds <= nanoseconds / STEPS + 1,
                "{nanoseconds} is far below {end}"
            );
        }
    }

    #[test]
    fn quantiles_are_read_off_the_sorted_durations() {
        let mut histogram = Histogram::default();
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        let near = |percent: u64, microseconds: f64| {
            let found = histogram.quantile(percent).as_secs_f64() * 1e6;
            assert!(
                (found - microseconds).abs() <= microseconds / 50.0,
                "{percent}%: {found}"
            );
        };
        near(50, 500.0);
        near(99, 990.0);
        assert_eq!(histogram.longest, Duration::from_millis(1));
    }
}
