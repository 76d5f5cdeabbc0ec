//! Arming rests when it failed for a reason that is not the job's, and is tried again after a growing pause: for every job where
//! the disk, the store or the launcher is to blame, for the one job that cannot be judged just now.

use std::collections::HashMap;
use std::time::Duration;

use taxiway_job::{JobId, Reason};
use tokio::time::Instant;

/// Arming is tried again after this long, and twice as long each time …
const FIRST: Duration = Duration::from_millis(100);
/// … up to this: nobody wants to wait longer once the disk has space again, which no event tells.
const LONGEST: Duration = Duration::from_secs(5);

/// What rests.
#[derive(Default)]
pub(super) struct Pauses {
    all: Option<Pause>,
    /// Jobs that are next and cannot be judged.
    jobs: HashMap<JobId, Pause>,
}

/// A rest, until something is armed.
struct Pause {
    /// None once it may be tried again.
    until: Option<Instant>,
    delay: Duration,
    reason: Reason,
}

impl Pause {
    fn after(before: Option<&Pause>, reason: Reason) -> Pause {
        let delay = before.map_or(FIRST, |pause| (pause.delay * 2).min(LONGEST));
        Pause { until: Some(Instant::now() + delay), delay, reason }
    }
}

impl Pauses {
    /// Nothing is armed for a while. What fails while that lasts had begun before, and makes it no longer.
    pub(super) fn pause_all(&mut self, reason: Reason) {
        match &mut self.all {
            Some(pause) if pause.until.is_some() => pause.reason = reason,
            ended => self.all = Some(Pause::after(ended.as_ref(), reason)),
        }
    }

    /// This job is not armed for a while. Who waits for the same slots waits with it.
    pub(super) fn pause(&mut self, job: JobId, reason: Reason) {
        let pause = Pause::after(self.jobs.get(&job), reason);
        self.jobs.insert(job, pause);
    }

    /// Whether this job is not to be armed now.
    pub(super) fn holds_back(&self, job: JobId) -> bool {
        self.all.iter().chain(self.jobs.get(&job)).any(|pause| pause.until.is_some())
    }

    /// Why this job was not armed, until it or any other is.
    pub(super) fn reason(&self, job: JobId) -> Option<&Reason> {
        self.jobs.get(&job).or(self.all.as_ref()).map(|pause| &pause.reason)
    }

    /// Whether nothing rests.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_none() && self.jobs.is_empty()
    }

    /// When the next rest ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.all.iter().chain(self.jobs.values()).filter_map(|pause| pause.until).min()
    }

    /// What has rested long enough may be tried again.
    pub(super) fn end(&mut self) {
        let now = Instant::now();
        for pause in self.all.iter_mut().chain(self.jobs.values_mut()) {
            pause.until = pause.until.filter(|until| *until > now);
        }
    }

    /// Something was armed.
    pub(super) fn end_all(&mut self) {
        self.all = None;
    }

    /// Plugins have judged the job.
    pub(super) fn end_of(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }

    /// Forgets the jobs that are not next any more.
    pub(super) fn keep(&mut self, is_next: impl Fn(JobId) -> bool) {
        self.jobs.retain(|job, _| is_next(*job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: &str) -> Reason {
        Reason::new(code, "it does not work")
    }

    #[test]
    fn several_launches_that_fail_at_once_are_one_failure() {
        let mut pauses = Pauses::default();
        let mut rests = Vec::new();
        for _ in 0..3 {
            for code in ["launcher_failed", "launcher_failed", "disk_low"] {
                pauses.pause_all(reason(code));
            }
            let rest = pauses.all.as_mut().expect("it rests");
            rests.push(rest.delay);
            // Its time is over.
            rest.until = None;
        }
        assert_eq!(rests, [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(pauses.reason(JobId::new()), Some(&reason("disk_low")));
        pauses.end_all();
        pauses.pause_all(reason("disk_low"));
        assert_eq!(pauses.all.map(|rest| rest.delay), Some(FIRST));
    }
}
