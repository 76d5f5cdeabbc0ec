//! Shims that do not answer: the reason that is shown, and what goes on all the same.
//!
//! A launch whose shim is silent stays what it is, since nothing is known of it; its slot stays taken if its command may have been
//! started. But nobody waits for an answer about such a job: whoever asks for a change of it is told why there is none.

use taxiway_job::{Busy, JobId, LaunchId, State};

use super::handle::{QueueError, Verb};
use super::operate::AS_PLANNED;
use super::owner::Owner;

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

    /// Why a job's time limit cannot be changed, if that is because it is not known whether its command has started and when.
    pub(super) fn start_is_unknown(&self, id: JobId) -> Option<QueueError> {
        let live = self.live.values().find(|live| live.job == id && live.begun.is_none())?;
        Some(QueueError::Unresponsive { id, why: live.unresponsive.clone()? })
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
}
