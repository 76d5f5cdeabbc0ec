//! Shims that do not answer: the reason that is shown, and what goes on all the same.
//!
//! A launch whose shim is silent stays what it is, since nothing is known of it; its slot stays taken if its command may have been
//! started. But nobody waits for an answer about such a job: whoever asks for a change of it is told why there is none.

use std::time::Duration;

use taxiway_job::{Busy, JobId, LaunchId, State};
use tokio::time::Instant;

use super::handle::{QueueError, Verb};
use super::operate::AS_PLANNED;
use super::owner::Owner;

/// How long a shim may take to say that it has started its command, before its job says that it does not answer. It takes a
/// millisecond, on a machine that is busy a hundred.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(2);

impl Owner {
    /// The launcher says that a shim does not answer.
    pub(super) fn unresponsive(&mut self, launch: LaunchId, shim_pid: i32, why: String) {
        if let Some(live) = self.live.get_mut(&launch) {
            tracing::warn!(job = %live.job, %launch, shim_pid, why, "a shim does not answer");
            live.unresponsive = Some(why);
            let job = live.job;
            // What it was told of another time limit it reads first, once it goes on.
            self.extended(launch, true);
            // One that an earlier service was to stop has not been told by this one.
            if self.jobs.get(job).is_some_and(|entry| entry.state() == State::Cancelling) {
                self.launcher.stop(launch, AS_PLANNED);
            }
            return;
        }
        let Some(job) = self.job_of_launch(launch) else { return };
        tracing::warn!(%job, %launch, shim_pid, why, "a shim does not answer");
        self.silent.insert(job, why);
        if self.is_stuck(job) {
            // It keeps nobody from starting: what comes after it passes by.
            if let Some(entry) = self.jobs.get_mut(job) {
                entry.busy = Busy::Leaving;
            }
            self.answer_those_who_wait(job);
        }
    }

    /// A shim answers again.
    pub(super) fn responsive(&mut self, launch: LaunchId) {
        if let Some(live) = self.live.get_mut(&launch) {
            tracing::info!(job = %live.job, %launch, "a shim answers again");
            live.unresponsive = None;
        }
    }

    /// Whose launch this is that was not told to start, as far as is known.
    fn job_of_launch(&self, launch: LaunchId) -> Option<JobId> {
        let armed = self.armed.iter().find(|armed| armed.launch == launch).map(|armed| armed.job);
        armed.or_else(|| self.recovering.get(&launch).copied())
    }

    /// Whether all that is left to do about a job's launch is to wait for a shim that does not answer.
    pub(super) fn is_stuck(&self, job: JobId) -> bool {
        self.silent.contains_key(&job)
            && (self.armed.iter().any(|armed| armed.job == job && armed.is_leaving())
                || self.recovering.values().any(|other| *other == job))
    }

    /// Why a job cannot be changed, if that is because its shim does not answer.
    pub(super) fn stuck(&self, id: JobId) -> Option<QueueError> {
        let why = self.silent.get(&id).filter(|_| self.is_stuck(id))?;
        Some(QueueError::Unresponsive { id, why: why.clone() })
    }

    /// Tells everybody who waits for a job that is stuck. The queue's own operations wait on.
    fn answer_those_who_wait(&mut self, job: JobId) {
        let (Some(error), Some(waiting)) = (self.stuck(job), self.waiting.remove(&job)) else { return };
        let (own, of_others): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|operation| matches!(operation.verb, Verb::InVain(..)));
        for operation in of_others {
            operation.answer(Err(error.clone()));
        }
        if !own.is_empty() {
            self.waiting.insert(job, own.into());
        }
    }

    /// When the first shim is late that was told to start a command.
    pub(super) fn next_late_start(&self) -> Option<Instant> {
        self.live.values().filter_map(|live| live.start_by).min()
    }

    /// Says of every shim that is late that it does not answer.
    pub(super) fn starts_are_late(&mut self) {
        let now = Instant::now();
        for (launch, live) in &mut self.live {
            if live.start_by.is_some_and(|by| by <= now) {
                live.start_by = None;
                tracing::warn!(job = %live.job, %launch, "a shim that was told to start its command does not answer");
                live.unresponsive = Some("its shim was told to start its command and does not answer".to_owned());
            }
        }
    }
}
