//! How often a plugin was called, how often it failed, how long it took and what it used.

use crate::view::Hook;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Steps in each doubling of the time: a percentile is off by at most one part in eight.
const STEPS: usize = 8;
/// From 1 µs over 40 doublings, to twelve days.
const BUCKETS: usize = 40 * STEPS;

/// The doublings that a histogram shows, in microseconds: from 64 µs, about the quickest call, to 34 s, past the longest.
const SHOWN_DOUBLINGS: std::ops::RangeInclusive<usize> = 6..=25;

/// The numbers of one plugin, over all its versions since the service's start.
#[derive(Default)]
pub struct Stats {
    hooks: [HookStats; Hook::ALL.len()],
    requests: AtomicU64,
    refused_requests: AtomicU64,
    loads: AtomicU64,
    failed_loads: AtomicU64,
    last_failure: Mutex<Option<LastFailure>>,
}

/// One call, for the account.
pub struct Spent {
    pub duration: Duration,
    pub peak_memory_bytes: u64,
    /// HTTP requests that the guest asked for, and those of them that were refused.
    pub requests: u64,
    pub refused_requests: u64,
}

/// The last call that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastFailure {
    /// When it ended, RFC 3339 in UTC.
    pub at: String,
    /// What was asked.
    pub hook: Hook,
    /// How it failed, as [`FailureKind::as_str`](crate::FailureKind::as_str) names it.
    pub kind: &'static str,
    /// The limit that was hit, for people.
    pub limit: Option<String>,
    /// A sentence for a person, safe to show.
    pub message: String,
}

/// The numbers of one hook of one plugin, for a metrics page: counters only grow, and begin at the service's start.
#[derive(Debug, Clone, PartialEq)]
pub struct HookMetrics {
    /// The plugin's name.
    pub plugin: String,
    /// The hook.
    pub hook: Hook,
    /// Calls.
    pub calls: u64,
    /// Calls that failed, by the kind of failure; only kinds that there were.
    pub failures: Vec<(&'static str, u64)>,
    /// The time of all calls together, in seconds.
    pub seconds: f64,
    /// A cumulative histogram: so many calls took less than so many seconds. What is not in the last one took longer.
    pub buckets: Vec<(f64, u64)>,
    /// Bytes of linear memory of the largest call.
    pub peak_memory_bytes: u64,
}

/// The numbers of one plugin beside those of its calls, for a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginMetrics {
    /// The plugin's name.
    pub plugin: String,
    /// Where it stands.
    pub state: crate::PluginState,
    /// HTTP requests that it asked for.
    pub requests: u64,
    /// Those of them that were refused.
    pub refused_requests: u64,
    /// Versions that came into force.
    pub loads: u64,
    /// Versions that did not, or manifests.
    pub failed_loads: u64,
    /// One entry for each hook that was called.
    pub hooks: Vec<HookMetrics>,
}

struct HookStats {
    calls: AtomicU64,
    microseconds: AtomicU64,
    peak_memory_bytes: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    /// By kind. Locked when a call failed, and to read.
    failures: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for HookStats {
    fn default() -> Self {
        HookStats {
            calls: AtomicU64::new(0),
            microseconds: AtomicU64::new(0),
            peak_memory_bytes: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            failures: Mutex::default(),
        }
    }
}

impl Stats {
    /// Counts a call that came to an answer.
    pub fn record(&self, hook: Hook, spent: &Spent) {
        let microseconds = u64::try_from(spent.duration.as_micros()).unwrap_or(u64::MAX);
        let stats = self.hook(hook);
        stats.calls.fetch_add(1, Relaxed);
        stats.microseconds.fetch_add(microseconds, Relaxed);
        stats.peak_memory_bytes.fetch_max(spent.peak_memory_bytes, Relaxed);
        stats.buckets[bucket(microseconds)].fetch_add(1, Relaxed);
        self.requests.fetch_add(spent.requests, Relaxed);
        self.refused_requests.fetch_add(spent.refused_requests, Relaxed);
    }

    /// Counts a call that failed.
    pub fn record_failure(&self, spent: &Spent, failure: LastFailure) {
        self.record(failure.hook, spent);
        // Nothing is half done when a holder panics: each change is one step.
        let mut failures = self.hook(failure.hook).failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(failure.kind).or_default() += 1;
        drop(failures);
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// Counts a version that came into force, or did not.
    pub fn record_load(&self, succeeded: bool) {
        let count = if succeeded { &self.loads } else { &self.failed_loads };
        count.fetch_add(1, Relaxed);
    }

    /// All calls.
    pub fn calls(&self) -> u64 {
        self.hooks.iter().map(|hook| hook.calls.load(Relaxed)).sum()
    }

    /// Those that failed.
    pub fn failures(&self) -> u64 {
        self.hooks.iter().map(HookStats::failed).sum()
    }

    /// The time of all calls together.
    pub fn seconds(&self) -> f64 {
        self.hooks.iter().map(HookStats::seconds).sum()
    }

    /// The last call that failed.
    pub fn last_failure(&self) -> Option<LastFailure> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time in seconds that this part of the calls took at most; none before the first.
    pub fn percentile(&self, part: f64) -> Option<f64> {
        let mut counts = [0; BUCKETS];
        for hook in &self.hooks {
            for (count, bucket) in counts.iter_mut().zip(&hook.buckets) {
                *count += bucket.load(Relaxed);
            }
        }
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

    /// Everything, for a metrics page.
    pub fn metrics(&self, plugin: &str, state: crate::PluginState) -> PluginMetrics {
        let called = Hook::ALL.iter().filter(|hook| self.hook(**hook).calls.load(Relaxed) > 0);
        PluginMetrics {
            plugin: plugin.to_owned(),
            state,
            requests: self.requests.load(Relaxed),
            refused_requests: self.refused_requests.load(Relaxed),
            loads: self.loads.load(Relaxed),
            failed_loads: self.failed_loads.load(Relaxed),
            hooks: called.map(|hook| self.hook(*hook).metrics(plugin, *hook)).collect(),
        }
    }

    fn hook(&self, hook: Hook) -> &HookStats {
        &self.hooks[match hook {
            Hook::Validate => 0,
            Hook::Rewrite => 1,
            Hook::Complete => 2,
        }]
    }
}

impl HookStats {
    fn failed(&self) -> u64 {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    fn seconds(&self) -> f64 {
        self.microseconds.load(Relaxed) as f64 / 1e6
    }

    fn metrics(&self, plugin: &str, hook: Hook) -> HookMetrics {
        let mut seen = 0;
        let mut buckets = Vec::new();
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Relaxed);
            let below = upper_bound(index) + 1;
            if below.is_power_of_two() && SHOWN_DOUBLINGS.contains(&(below.ilog2() as usize)) {
                buckets.push((below as f64 / 1e6, seen));
            }
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        HookMetrics {
            plugin: plugin.to_owned(),
            hook,
            // As the histogram has it: a call that is being recorded must not be in one and not in the other.
            calls: seen,
            failures: failures.iter().map(|(kind, count)| (*kind, *count)).collect(),
            seconds: self.seconds(),
            buckets,
            peak_memory_bytes: self.peak_memory_bytes.load(Relaxed),
        }
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
    use crate::PluginState;

    fn spent(microseconds: u64) -> Spent {
        let duration = Duration::from_micros(microseconds);
        Spent { duration, peak_memory_bytes: microseconds, requests: 1, refused_requests: 0 }
    }

    fn failure(kind: &'static str) -> LastFailure {
        LastFailure { at: String::new(), hook: Hook::Validate, kind, limit: None, message: kind.to_owned() }
    }

    #[test]
    fn percentiles_are_within_an_eighth() {
        let stats = Stats::default();
        assert_eq!(stats.percentile(0.5), None);
        for microseconds in 1..=1000 {
            if microseconds % 10 == 0 {
                stats.record_failure(&spent(microseconds), failure("trap"));
            } else {
                stats.record(Hook::Rewrite, &spent(microseconds));
            }
        }
        let p50 = stats.percentile(0.5).unwrap() * 1e6;
        let p99 = stats.percentile(0.99).unwrap() * 1e6;
        assert!((500.0..=563.0).contains(&p50), "{p50}");
        assert!((990.0..=1114.0).contains(&p99), "{p99}");
        assert_eq!((stats.calls(), stats.failures()), (1000, 100));
    }

    #[test]
    fn a_histogram_counts_each_hook_apart_and_loses_no_call() {
        let stats = Stats::default();
        for microseconds in [10, 63, 64, 1_000, 40_000_000] {
            stats.record(Hook::Validate, &spent(microseconds));
        }
        stats.record_failure(&spent(100), failure("timeout"));
        stats.record(Hook::Complete, &spent(5));
        let metrics = stats.metrics("p", PluginState::InForce);
        assert_eq!((metrics.requests, metrics.hooks.len()), (7, 2));
        let validate = &metrics.hooks[0];
        assert_eq!((validate.hook, validate.calls, &validate.failures[..]), (Hook::Validate, 6, &[("timeout", 1)][..]));
        assert_eq!(validate.buckets.first(), Some(&(64e-6, 2)), "less than 64 µs");
        assert_eq!(validate.buckets.len(), SHOWN_DOUBLINGS.count());
        assert_eq!(validate.buckets.last().map(|(_, count)| *count), Some(5), "one took longer than the last bound");
        assert!(validate.buckets.is_sorted_by_key(|(_, count)| *count));
        assert_eq!(validate.peak_memory_bytes, 40_000_000);
        assert_eq!(stats.last_failure().unwrap().kind, "timeout");
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
