//! Taking over what a previous service left (DESIGN §5, step 4).

use taxiway_job::{Busy, Condition, Entry, JobId, Jobs, LaunchId, State, Time};
use taxiway_launcher::{Started, StoredPhase, Unsettled};

use super::handle::{Mode, Verb};
use super::operate::AS_PLANNED;
use super::owner::Owner;
use super::slots::Taken;
use crate::store::{Change, Phase, StoreError};

/// A launch that the store knows nothing of.
pub(super) struct Stranger {
    pub(super) job: JobId,
    /// Its shim; 0 when the kernel did not name it.
    pub(super) shim_pid: i32,
}

impl Owner {
    /// Reads every job that has not ended, and asks the launcher what became of those that were under way.
    pub(super) async fn load(&mut self, mode: Option<Mode>) -> Result<(), StoreError> {
        let stored = self.store.setting("mode").await?;
        let last = match stored.as_deref() {
            Some("paused" | "draining") => Mode::Paused,
            _ => Mode::Run,
        };
        self.mode = mode.unwrap_or(last);
        if self.mode.as_str() != stored.as_deref().unwrap_or(Mode::Run.as_str()) {
            // The next service goes on from here, and subscribers hear of it. A disk that does not take it now will later.
            let change = Change::Mode { mode: self.mode, at: Time::now(), by: "startup".into() };
            if let Err(error) = self.store.commit(vec![change.clone()]).await {
                tracing::warn!(%error, "the mode of the start cannot be stored yet");
                self.owed.push(change);
            }
        }
        self.jobs = Jobs::new(self.store.highest_rank().await?);
        let now = Time::now();
        for job in self.store.unended_jobs().await? {
            let mut entry = Entry::new(job.state, job.gpus, job.priority, job.rank, job.terms.map(Box::new));
            entry.attempt = job.attempt;
            entry.revision = job.revision;
            entry.retries_done = job.retries_done;
            entry.stop_target = job.stop_target;
            entry.profile = job.profile.map(|profile| profile.as_str().into());
            self.jobs.enter(job.id, entry, now);
            if job.retry_at.is_some() {
                self.jobs.set_retry_at(job.id, job.retry_at, now);
            }
        }
        self.load_quarantine().await?;
        // GPUs may have been lost since a job was accepted.
        self.check_gpus_of_all();
        self.find_in_vain().await?;
        let mut unsettled = Vec::new();
        for attempt in self.store.unsettled_attempts().await? {
            let Some(entry) = self.jobs.get_mut(attempt.job) else { continue };
            let gpus = entry.gpus();
            // Until it is settled its slot stays taken, and a job that may have been told to start takes no requests and is
            // not armed again.
            self.slots.reserve(attempt.launch, gpus, &attempt.gpu_uuids);
            let taken = Taken { uuids: attempt.gpu_uuids, idle_since: None, gpu_read: None };
            if attempt.phase == Phase::Armed {
                entry.busy = Busy::Leaving;
                self.jobs.set_unsettled(attempt.job, true);
                self.recovering.insert(attempt.launch, attempt.job);
            } else {
                self.gpus.hold(attempt.job, attempt.launch, &taken.uuids, true);
                self.track(attempt.job, attempt.launch, taken);
            }
            let phase = match attempt.phase {
                Phase::Armed => StoredPhase::Armed,
                Phase::Pending => StoredPhase::Pending,
                Phase::Running => StoredPhase::Running,
            };
            unsettled.push(Unsettled {
                job: attempt.job,
                launch: attempt.launch,
                phase,
                boot_id: attempt.boot_id,
                time_limit: attempt.time_limit,
            });
        }
        self.launcher.recover(unsettled);
        Ok(())
    }

    /// A launch of this job goes on that the store knows nothing of: the store was put back to a moment before it, from a backup
    /// say. The job is not started beside it. Where NVML does not see such a launch, it keeps the slot that it was given.
    pub(super) fn still_runs(&mut self, job: JobId, stranger: LaunchId, shim_pid: i32) {
        tracing::warn!(%job, launch = %stranger, shim_pid, "a launch goes on that is not in the database; its job waits for its end");
        let Some(entry) = self.jobs.get(job) else { return };
        let gpus = entry.gpus();
        if self.strangers.insert(stranger, Stranger { job, shim_pid }).is_none()
            && (gpus == 0 || self.slots.are_virtual())
        {
            self.slots.reserve(stranger, gpus, &[]);
        }
        self.jobs.set_unmet(job, Condition::StillRunning, true);
    }

    pub(super) fn stranger_gone(&mut self, job: JobId, stranger: LaunchId) {
        self.strangers.remove(&stranger);
        self.free_slots(stranger, None);
        self.jobs.set_unmet(job, Condition::StillRunning, false);
    }

    /// Finds the jobs whose predecessors ended otherwise than they should have while the previous service could not act on it.
    async fn find_in_vain(&mut self) -> Result<(), StoreError> {
        let waits: Vec<(JobId, JobId)> = self
            .jobs
            .iter()
            .flat_map(|(id, entry)| {
                let after = entry.terms().map(|terms| terms.after.as_slice()).unwrap_or_default();
                after.iter().map(move |predecessor| (id, *predecessor))
            })
            .filter(|(_, predecessor)| !self.jobs.contains(*predecessor))
            .collect();
        if waits.is_empty() {
            return Ok(());
        }
        let ends = self.store.states(waits.iter().map(|(_, predecessor)| *predecessor).collect()).await?;
        self.in_vain.extend(waits.into_iter().filter_map(|(id, predecessor)| {
            let end = *ends.get(&predecessor)?;
            matches!(end, State::Failed | State::Cancelled).then_some((id, Verb::InVain(predecessor, end)))
        }));
        Ok(())
    }

    /// A shim that outlived the previous service is connected again.
    pub(super) fn adopted(&mut self, launch: LaunchId, process: &Started) {
        self.recovered_as_told(launch, &process.gpu_uuids);
        self.process_started(launch, process);
        // A stop that was stored is repeated: the previous service may have died before it was signalled.
        if let Some(live) = self.live.get(&launch)
            && self.jobs.get(live.job).is_some_and(|entry| entry.state() == State::Cancelling)
        {
            self.launcher.stop(launch, AS_PLANNED);
        }
    }

    /// A launch that the store knows as armed turns out to have been told to start, in the last instant of the previous
    /// service, and on these GPUs: what that service would have stored is stored now.
    pub(super) fn recovered_as_told(&mut self, launch: LaunchId, uuids: &[String]) {
        let Some(job) = self.recovering.remove(&launch) else { return };
        if let Some(entry) = self.jobs.get(job)
            && !uuids.is_empty()
        {
            let gpus = entry.gpus();
            if self.slots.place(launch, gpus, uuids) {
                self.check_gpus_of_all();
            }
            self.gpus.hold(job, launch, uuids, true);
        }
        self.owed.push(Change::Go { job, launch, gpu_uuids: uuids.to_vec(), at: Time::now() });
        self.set_state(job, State::Pending);
        self.jobs.set_unsettled(job, false);
        self.track(job, launch, Taken { uuids: uuids.to_vec(), idle_since: None, gpu_read: None });
        self.resume_operations(job);
    }

    /// A launch that the store knows as armed was never told to start: its job waits as before.
    pub(super) fn recovered_as_not_started(&mut self, launch: LaunchId) -> bool {
        let Some(job) = self.recovering.remove(&launch) else { return false };
        self.jobs.set_unsettled(job, false);
        self.free_slots(launch, None);
        self.owed.push(Change::Disarm { job, launch });
        self.then.confirm.push(launch);
        self.resume_operations(job);
        true
    }
}
