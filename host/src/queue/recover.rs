//! Taking over what a previous service left (DESIGN §5, step 4).

use taxiway_job::{Entry, JobId, Jobs, LaunchId, State, Time};
use taxiway_launcher::{Started, StoredPhase, Unsettled};

use super::handle::{Mode, Verb};
use super::operate::AS_PLANNED;
use super::owner::Owner;
use super::slots::Taken;
use crate::store::{Change, Phase, StoreError};

impl Owner {
    /// Reads every job that has not ended, and asks the launcher what became of those that were under way.
    pub(super) async fn load(&mut self, mode: Option<Mode>) -> Result<(), StoreError> {
        let stored = match self.store.setting("mode").await?.as_deref() {
            Some("paused" | "draining") => Mode::Paused,
            _ => Mode::Run,
        };
        self.mode = mode.unwrap_or(stored);
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
                entry.busy = true;
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
    pub(super) fn adopted(&mut self, launch: LaunchId, process: Option<Started>) {
        self.recovered_as_told(launch);
        if let Some(process) = process {
            self.process_started(launch, &process);
        }
        // A stop that was stored is repeated: the previous service may have died before it was signalled.
        if let Some(live) = self.live.get(&launch)
            && self.jobs.get(live.job).is_some_and(|entry| entry.state() == State::Cancelling)
        {
            self.launcher.stop(launch, AS_PLANNED);
        }
    }

    /// A launch that the store knows as armed turns out to have been told to start, in the last instant of the previous
    /// service: what that service would have stored is stored now.
    pub(super) fn recovered_as_told(&mut self, launch: LaunchId) {
        let Some(job) = self.recovering.remove(&launch) else { return };
        self.owed.push(Change::Go { job, launch, gpu_uuids: Vec::new(), at: Time::now() });
        self.set_state(job, State::Pending);
        self.jobs.set_unsettled(job, false);
        self.track(job, launch, Taken { uuids: Vec::new(), idle_since: None, gpu_read: None });
        self.resume_operations(job);
    }

    /// A launch that the store knows as armed was never told to start: its job waits as before.
    pub(super) fn recovered_as_not_started(&mut self, launch: LaunchId) -> bool {
        let Some(job) = self.recovering.remove(&launch) else { return false };
        self.jobs.set_unsettled(job, false);
        self.slots.free(launch, None);
        self.owed.push(Change::Disarm { job, launch });
        self.then.confirm.push(launch);
        self.resume_operations(job);
        true
    }
}
