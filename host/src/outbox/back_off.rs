//! When to try again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::store::DeliveryId;

/// Tries of one delivery, by default. The first twelve pauses double to an hour and come to that together, the others last
/// an hour each: a receiver that is down for a day misses nothing.
pub const MAX_ATTEMPTS: u32 = 36;

/// The pause after the first try: most failures are a receiver that is being restarted.
const FIRST: Duration = Duration::from_secs(1);

/// The longest pause that is not asked for.
const LONGEST: Duration = Duration::from_secs(3600);

/// The longest pause that a plugin can ask for: a mistyped `Retry-After` must not put a delivery off for years.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(24 * 3600);

/// The pause after this many tries: one second, doubling to an hour, each a quarter shorter or longer, so that the deliveries
/// that one outage failed do not come back all at once. Not shorter than what the plugin asks for.
pub(super) fn pause(delivery: DeliveryId, tries: u32, asked_for: Option<Duration>) -> Duration {
    let doubled = FIRST.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX)).min(LONGEST);
    let jittered = doubled.mul_f64(0.75 + 0.5 * fraction(delivery, tries));
    jittered.max(asked_for.unwrap_or_default().min(LONGEST_ASKED_FOR))
}

/// From 0 to 1, spread evenly over deliveries and their tries: ids are random, so that no further randomness is needed.
fn fraction(delivery: DeliveryId, tries: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (delivery, tries).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery() -> DeliveryId {
        DeliveryId(uuid::Uuid::new_v4())
    }

    #[test]
    fn pauses_double_to_an_hour_and_are_spread() {
        let deliveries: Vec<DeliveryId> = (0..500).map(|_| delivery()).collect();
        for (tries, middle) in
            [(1, 1.0), (2, 2.0), (6, 32.0), (12, 2048.0), (13, 3600.0), (40, 3600.0), (u32::MAX, 3600.0)]
        {
            let pauses: Vec<f64> = deliveries.iter().map(|id| pause(*id, tries, None).as_secs_f64() / middle).collect();
            assert!(pauses.iter().all(|pause| (0.75..=1.25).contains(pause)), "{tries}");
            let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
            assert!((0.95..1.05).contains(&mean), "{tries}: {mean}");
        }
    }

    #[test]
    fn a_plugin_can_ask_for_a_longer_pause_but_not_for_a_shorter_one() {
        let asked = |seconds| pause(delivery(), 1, Some(Duration::from_secs(seconds))).as_secs_f64();
        assert!(asked(0) >= 0.75);
        assert_eq!(asked(120), 120.0);
        assert_eq!(asked(u64::MAX / 2), 86_400.0);
    }

    #[test]
    fn a_receiver_may_be_down_for_a_day() {
        let total: f64 = (1..MAX_ATTEMPTS)
            .map(|tries| FIRST.as_secs_f64() * 2_f64.powi(tries as i32 - 1))
            .map(|s| s.min(3600.0))
            .sum();
        assert!((24.0..25.0).contains(&(total / 3600.0)), "{total}");
    }
}
