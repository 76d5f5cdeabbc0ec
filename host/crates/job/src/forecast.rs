//! When a job will start, as far as it can be told.

use std::time::Duration;

/// How long a job that needs `slots` of `all` will wait: those that run hold their slots for as long as is given beside them,
/// and those ahead of it start in their order, each as soon as it has its slots. None when that hangs on a time that is not
/// known, or when there are too few slots.
#[must_use]
pub fn expected_wait(
    all: usize,
    running: &[(usize, Option<Duration>)],
    ahead: &[(usize, Option<Duration>)],
    slots: usize,
) -> Option<Duration> {
    // When each slot is free; what is not known comes last.
    let unknown = Duration::MAX;
    let mut free = vec![Duration::ZERO; all];
    let mut next = 0;
    for (held, rest) in running {
        for slot in free.iter_mut().skip(next).take(*held) {
            *slot = rest.unwrap_or(unknown);
        }
        next += held;
    }
    let mut earliest = Duration::ZERO;
    for (slots, duration) in ahead {
        free.sort_unstable();
        let start = start_of(&free, *slots, earliest)?;
        let end = duration.and_then(|duration| start.checked_add(duration)).unwrap_or(unknown);
        free[..*slots].fill(end);
        earliest = start;
    }
    free.sort_unstable();
    start_of(&free, slots, earliest)
}

/// When the first so many slots are free, and the one ahead has started.
fn start_of(free: &[Duration], slots: usize, earliest: Duration) -> Option<Duration> {
    let last = *free.get(slots.checked_sub(1)?)?;
    (last != Duration::MAX).then(|| last.max(earliest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Option<Duration> {
        Some(Duration::from_secs(60 * minutes))
    }

    #[test]
    fn a_line_on_one_slot_takes_the_sum_of_what_is_before() {
        assert_eq!(expected_wait(1, &[], &[], 1), minutes(0));
        assert_eq!(expected_wait(1, &[(1, minutes(3))], &[(1, minutes(10)), (1, minutes(5))], 1), minutes(18));
    }

    #[test]
    fn several_slots_are_filled_in_order_and_nobody_overtakes_a_large_job() {
        let running = [(1, minutes(10)), (1, minutes(2))];
        assert_eq!(expected_wait(2, &running, &[], 1), minutes(2));
        assert_eq!(expected_wait(2, &running, &[(2, minutes(1))], 1), minutes(11));
    }

    #[test]
    fn what_hangs_on_an_unknown_time_is_unknown_and_what_does_not_is_not() {
        assert_eq!(expected_wait(1, &[(1, None)], &[], 1), None);
        assert_eq!(expected_wait(2, &[(1, None)], &[], 1), minutes(0));
        assert_eq!(expected_wait(2, &[(1, None)], &[(1, minutes(4))], 1), minutes(4));
        assert_eq!(expected_wait(2, &[], &[(1, None)], 2), None);
        assert_eq!(expected_wait(1, &[], &[], 2), None);
    }
}
