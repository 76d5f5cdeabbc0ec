//! How far ahead launches are armed.
//!
//! Getting a launch ready takes some milliseconds, a commit among them. A job that is armed while the one before it runs is ready in
//! time when that one runs for longer. In a line of jobs that are over at once it is not, and the line would go as fast as one
//! launch after the other is got ready: there several are, at the same time. Each costs a waiting shim, and work for nothing when the
//! line changes.

use std::time::Duration;

/// A job that ran for less is over before the one behind the next is ready.
const SHORT: Duration = Duration::from_millis(10);

/// So many short jobs in a row make a line of them.
const IN_A_ROW: u8 = 3;

/// The pace of the line, of the jobs with GPUs and of those without apart.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    short_in_a_row: [u8; 2],
}

impl Pace {
    /// Jobs that are armed behind one that is next, at most.
    pub(super) const MOST: usize = 4;

    /// A job with so many GPUs ran for so long.
    pub(super) fn ran(&mut self, gpus: u32, time: Duration) {
        let in_a_row = &mut self.short_in_a_row[usize::from(gpus > 0)];
        *in_a_row = if time < SHORT { in_a_row.saturating_add(1) } else { 0 };
    }

    /// Jobs to be armed behind one that is next and has so many GPUs. More that are armed stay so.
    pub(super) fn ahead(self, gpus: u32) -> usize {
        if self.short_in_a_row[usize::from(gpus > 0)] >= IN_A_ROW { Self::MOST } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_short_jobs_is_armed_far_ahead_and_a_long_one_ends_that() {
        let mut pace = Pace::default();
        let mut ahead_after = |milliseconds: u64| {
            pace.ran(1, Duration::from_millis(milliseconds));
            assert_eq!(pace.ahead(0), 1, "no job without GPUs has run");
            pace.ahead(2)
        };
        assert_eq!([1, 9, 0, 2, 10, 1].map(&mut ahead_after), [1, 1, 4, 4, 1, 1]);
        for _ in 0..1000 {
            ahead_after(1);
        }
        assert_eq!(ahead_after(1), 4);
    }
}
