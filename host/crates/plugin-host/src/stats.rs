//! How often a plugin was called, how often it failed, and how long it took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Steps in each doubling of the time: a percentile is off by at most one part in eight.
const STEPS: usize = 8;
/// From 1 µs over 40 doublings, to twelve days.
const BUCKETS: usize = 40 * STEPS;

/// The numbers of one plugin, over all its versions since the service's start.
pub struct Stats {
    calls: AtomicU64,
    failures: AtomicU64,
    microseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            microseconds: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Stats {
    /// Counts a call.
    pub fn record(&self, duration: Duration, failed: bool) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Relaxed);
        self.failures.fetch_add(u64::from(failed), Relaxed);
        self.microseconds.fetch_add(microseconds, Relaxed);
        self.buckets[bucket(microseconds)].fetch_add(1, Relaxed);
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The time of all calls together.
    pub fn seconds(&self) -> f64 {
        self.microseconds.load(Relaxed) as f64 / 1e6
    }

    /// The time in seconds that this part of the calls took at most; none before the first.
    pub fn percentile(&self, part: f64) -> Option<f64> {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let wanted = ((all as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        counts
            .iter()
            .position(|count| {
                seen += count;
                seen >= wanted
            })
            .map(|index| upper_bound(index) as f64 / 1e6)
    }
}

fn bucket(microseconds: u64) -> usize {
    if microseconds < STEPS as u64 {
        return microseconds as usize;
    }
    let doubling = microseconds.ilog2() as usize;
    let step = (microseconds >> (doubling - 3)) as usize - STEPS;
    ((doubling - 2) * STEPS + step).min(BUCKETS - 1)
}

/// The largest number of microseconds that falls into this bucket.
fn upper_bound(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let doubling = index / STEPS + 2;
    let step = (index % STEPS) as u64;
    ((STEPS as u64 + step + 1) << (doubling - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_an_eighth() {
        let stats = Stats::default();
        assert_eq!(stats.percentile(0.5), None);
        for microseconds in 1..=1000 {
            stats.record(Duration::from_micros(microseconds), microseconds % 10 == 0);
        }
        let p50 = stats.percentile(0.5).unwrap() * 1e6;
        let p99 = stats.percentile(0.99).unwrap() * 1e6;
        assert!((500.0..=563.0).contains(&p50), "{p50}");
        assert!((990.0..=1114.0).contains(&p99), "{p99}");
        assert_eq!((stats.calls(), stats.failures()), (1000, 100));
    }

    #[test]
    fn every_time_falls_into_a_bucket_that_holds_it() {
        for microseconds in (0..100_000).chain([u64::MAX, 1 << 41]) {
            let index = bucket(microseconds);
            assert!(index < BUCKETS);
            assert!(upper_bound(index) >= microseconds || index == BUCKETS - 1, "{microseconds}");
            assert!(index == 0 || upper_bound(index - 1) < microseconds, "{microseconds}");
        }
    }
}
