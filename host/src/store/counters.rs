//! What the store has written since the service started, for `/metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use taxiway_job::Handover;

use super::Change;

/// Upper bounds of the buckets, in seconds: a hand-over takes about a millisecond, a commit a few tenths of one.
pub const BOUNDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// How often a duration fell into each bucket.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// How many were at most as long as the bound with the same index; the last are those that were longer than all.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Seconds in all.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket] += 1;
        self.sum += seconds;
    }
}

/// The counters. The writer counts after each commit; whoever asks reads.
#[derive(Debug, Default)]
pub struct Counters {
    submissions: AtomicU64,
    units: AtomicU64,
    failed_commits: AtomicU64,
    commits: Mutex<Histogram>,
    handovers: Mutex<BTreeMap<String, Histogram>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// Jobs that were stored.
    pub submissions: u64,
    /// Units that were written: what one commit makes durable together is several.
    pub units: u64,
    /// Commits that the disk refused.
    pub failed_commits: u64,
    /// How long commits took.
    pub commits: Histogram,
    /// How long GPUs were idle from one job to the next: by the name of the part, and as `all`.
    pub handovers: BTreeMap<String, Histogram>,
}

impl Counters {
    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Counted {
        Counted {
            submissions: self.submissions.load(Ordering::Relaxed),
            units: self.units.load(Ordering::Relaxed),
            failed_commits: self.failed_commits.load(Ordering::Relaxed),
            commits: self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            handovers: self.handovers.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(super) fn committed(&self, units: usize, took: Duration) {
        self.units.fetch_add(units as u64, Ordering::Relaxed);
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).observe(took.as_secs_f64());
    }

    pub(super) fn commit_failed(&self) {
        self.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    /// What a change that is durable counts for.
    pub(super) fn changed(&self, change: &Change) {
        match change {
            Change::Submit(_) => drop(self.submissions.fetch_add(1, Ordering::Relaxed)),
            Change::Running { handover: Some(handover), .. } => self.handed_over(handover),
            _ => {}
        }
    }

    fn handed_over(&self, handover: &Handover) {
        let mut handovers = self.handovers.lock().unwrap_or_else(PoisonError::into_inner);
        handovers.entry("all".to_owned()).or_default().observe(handover.gap_seconds);
        for (name, seconds) in &handover.parts {
            if let Some(seconds) = seconds.as_f64() {
                handovers.entry(name.clone()).or_default().observe(seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_counts_in_all_and_by_its_parts() {
        let counters = Counters::default();
        let parts = serde_json::Map::from_iter([("end_to_go".to_owned(), 0.0004.into())]);
        counters.handed_over(&Handover { gap_seconds: 0.001, parts });
        let counted = counters.read();
        assert_eq!(counted.handovers["all"].buckets[3], 1, "a bound belongs to its bucket");
        assert_eq!(counted.handovers["end_to_go"].buckets[1], 1);
        let mut late = Histogram::default();
        late.observe(60.0);
        assert_eq!(late.buckets[BOUNDS.len()], 1);
    }
}
