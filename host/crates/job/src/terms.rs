//! What a job asks of the queue beside a number of slots.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ArrayLimit, FailureClass, JobId, Time};

/// The conditions under which a job may start, and on which GPUs. Most jobs have none: what the queue keeps in memory of a
/// job is small.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Only GPUs with that much memory in all, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Only these GPUs; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_uuids: Vec<String>,
    /// It starts when all of these have completed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// It starts when all of these have ended, however.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_any: Vec<JobId>,
    /// It starts then or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// How many members of its array may be under way at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<ArrayLimit>,
    /// What happens when it fails.
    #[serde(skip_serializing_if = "Retries::are_none")]
    pub retries: Retries,
}

impl Terms {
    /// Whether they ask for nothing.
    #[must_use]
    pub fn are_none(&self) -> bool {
        // Compared with no default, which would have to be made for each job that is stored.
        let Self { gpu_memory, gpu_uuids, after, after_any, not_before, array, retries } = self;
        gpu_memory.is_none()
            && gpu_uuids.is_empty()
            && after.is_empty()
            && after_any.is_empty()
            && not_before.is_none()
            && array.is_none()
            && retries.are_none()
    }

    /// Whether the job may run on this GPU: its UUID, and its memory in all, in bytes.
    #[must_use]
    pub fn allow_gpu(&self, uuid: &str, memory_total_bytes: u64) -> bool {
        self.gpu_memory.is_none_or(|wanted| memory_total_bytes >= wanted)
            && (self.gpu_uuids.is_empty() || self.gpu_uuids.iter().any(|allowed| allowed == uuid))
    }

    /// The jobs that it comes after, and whether each may have ended in any way.
    pub fn predecessors(&self) -> impl Iterator<Item = (JobId, bool)> + '_ {
        let completed = self.after.iter().map(|job| (*job, false));
        completed.chain(self.after_any.iter().map(|job| (*job, true)))
    }

    /// Whether it matters on which GPUs the job runs.
    #[must_use]
    pub fn choose_gpus(&self) -> bool {
        self.gpu_memory.is_some() || !self.gpu_uuids.is_empty()
    }
}

/// How often a job that fails is tried again, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// How often at most.
    pub max: u32,
    /// The pause before the first retry; each further one is twice as long, up to [`Retries::LONGEST_BACKOFF`].
    #[serde(with = "crate::units::duration")]
    pub backoff: Duration,
    /// After which failures.
    pub on: Vec<FailureClass>,
}

impl Default for Retries {
    fn default() -> Self {
        Self { max: 0, backoff: Self::FIRST_BACKOFF, on: Self::worth_a_retry().collect() }
    }
}

impl Retries {
    /// The longest pause before a retry.
    pub const LONGEST_BACKOFF: Duration = Duration::from_secs(3600);

    /// The pause before the first retry unless another is asked for (DESIGN §3).
    const FIRST_BACKOFF: Duration = Duration::from_secs(30);

    /// The failures after which a job is tried again unless others are asked for. What fails for good is not: a plugin's word and a
    /// command that cannot be started.
    fn worth_a_retry() -> impl Iterator<Item = FailureClass> {
        let is_for_good = |class: &FailureClass| matches!(class, FailureClass::Preflight | FailureClass::LaunchError);
        FailureClass::ALL.into_iter().filter(move |class| !is_for_good(class))
    }

    /// Whether none is asked for.
    #[must_use]
    pub fn are_none(&self) -> bool {
        let Self { max, backoff, on } = self;
        *max == 0 && *backoff == Self::FIRST_BACKOFF && on.iter().copied().eq(Self::worth_a_retry())
    }

    /// The pause before the next attempt of a job that failed in this way after `done` retries; none when it has failed for
    /// good.
    #[must_use]
    pub fn pause_after(&self, class: FailureClass, done: u32) -> Option<Duration> {
        if done >= self.max || !self.on.contains(&class) {
            return None;
        }
        let doubled = 2u32.checked_pow(done).and_then(|factor| self.backoff.checked_mul(factor));
        Some(doubled.unwrap_or(Self::LONGEST_BACKOFF).min(Self::LONGEST_BACKOFF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_an_hour_and_ends_with_the_last_retry() {
        let retries = Retries { max: 200, ..Retries::default() };
        let pause = |done| retries.pause_after(FailureClass::Exit, done).map(|pause| pause.as_secs());
        assert_eq!([pause(0), pause(1), pause(6), pause(7)], [Some(30), Some(60), Some(1920), Some(3600)]);
        assert_eq!([pause(31), pause(32), pause(199), pause(200)], [Some(3600), Some(3600), Some(3600), None]);
    }

    #[test]
    fn what_fails_for_good_is_not_tried_again_unless_asked_for() {
        let retries = Retries { max: 1, ..Retries::default() };
        assert_eq!(retries.pause_after(FailureClass::Preflight, 0), None);
        assert_eq!(retries.pause_after(FailureClass::LaunchError, 0), None);
        let retries = Retries { on: vec![FailureClass::Preflight], ..retries };
        assert!(retries.pause_after(FailureClass::Preflight, 0).is_some());
        assert_eq!(retries.pause_after(FailureClass::Exit, 0), None);
    }

    #[test]
    fn terms_that_ask_for_nothing_are_written_as_nothing() {
        assert_eq!(serde_json::to_string(&Terms::default()).expect("JSON"), "{}");
        assert_eq!(serde_json::from_str::<Terms>("{}").expect("terms"), Terms::default());
        assert!(Terms::default().are_none());
        for retries in [
            Retries { max: 1, ..Retries::default() },
            Retries { backoff: Duration::ZERO, ..Retries::default() },
            Retries { on: vec![FailureClass::Exit], ..Retries::default() },
        ] {
            assert!(!Terms { retries, ..Terms::default() }.are_none());
        }
    }
}
