//! Arming: getting the next job in line ready while its slot is still taken.
//!
//! One launch is on its way for the next job with GPUs and one for the next without, more when jobs name GPUs that differ, and
//! one more behind each of these, or [several](super::pace) where jobs are shorter than arming takes: they are ready when their
//! turn comes. A launch is
//! read and judged (`Planning`), its directory made (`Preparing`), its intent made durable (`Intending`), its shim started
//! (`Spawning`), `Ready`. Disarming takes it back from any of these; it is over when the shim is gone and the store has forgotten
//! the launch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taxiway_job::{
    Busy, ConfigFormat, Exit, Failure, FailureClass, Job, JobId, LaunchId, Reason, State, Time, Verdict,
};
use taxiway_launcher::{ConfigFile, LaunchPlan, PrepareError};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::handle::Mode;
use super::next::{Candidate, Following};
use super::owner::{Done, Hooks, LaunchVerdict, Owner};
use super::slots::SlotId;
use crate::gpu::Looked;
use crate::store::{Change, End, NextAttempt, StoreError};

/// How old a verdict at launch may be when its job starts (DESIGN §4).
const VERDICT_AGE: Duration = Duration::from_secs(10);

/// A launch that was not told to start.
pub(super) struct Armed {
    pub(super) job: JobId,
    pub(super) launch: LaunchId,
    pub(super) gpus: u32,
    stage: Stage,
    /// It is to be taken back as soon as it can be.
    unwanted: bool,
    /// Others start before it: its intent is written with what is written of them.
    behind: bool,
    /// How plugins judged it, if any did.
    judged: Option<Judged>,
    /// What they said, until it is stored with the intent.
    verdicts: Vec<Verdict>,
    /// The slots that it could get when it was next.
    slots: Vec<SlotId>,
    /// Its slots are free and are being looked at.
    being_looked_at: bool,
}

/// What a verdict at launch was about.
struct Judged {
    when: Instant,
    /// For these GPUs.
    uuids: Vec<String>,
    /// By the plugins that were in force then.
    generation: u64,
}

impl Armed {
    /// Whether its shim was told to leave.
    pub(super) fn is_leaving(&self) -> bool {
        self.stage == Stage::Leaving
    }

    /// Whether it is next for what a candidate is next for.
    fn shares(&self, candidate: &Candidate) -> bool {
        match (self.gpus, candidate.gpus) {
            (0, 0) => true,
            _ => self.slots.iter().any(|id| candidate.slots.contains(id)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Planning,
    Preparing,
    Intending,
    Spawning,
    Ready,
    Leaving,
}

/// What reading and judging the next in line came to.
pub(super) enum Planned {
    /// It may start, like this.
    Plan { plan: Box<LaunchPlan>, judged: Option<(Vec<String>, u64)>, verdicts: Vec<Verdict> },
    /// Plugins refuse it.
    Refused(LaunchVerdict, Vec<Verdict>),
    /// It cannot be started as it is.
    Impossible(String),
    /// The store could not be read.
    Unread(StoreError),
}

impl Owner {
    /// Starts what is ready and has a slot, and gets the next in line ready.
    pub(super) fn schedule(&mut self) {
        let runs = self.mode == Mode::Run && self.store.is_committing();
        loop {
            let candidates = if runs { self.candidates() } else { Vec::new() };
            let following = self.following(&candidates);
            self.drop_what_lost_its_place(&candidates, &following);
            let pace = self.pace;
            let wanted = following.iter().filter(|following| following.place < pace.ahead(following.job.gpus));
            self.pauses.keep(|job| candidates.iter().any(|candidate| candidate.job == job));
            // Each start makes room for the next in line, which may be ready already.
            if !candidates.iter().any(|candidate| self.start_ready(candidate)) {
                candidates
                    .iter()
                    .chain(wanted.map(|following| &following.job))
                    .for_each(|candidate| self.arm_next(candidate));
                for armed in &mut self.armed {
                    armed.behind = !candidates.iter().any(|candidate| candidate.job == armed.job);
                }
                // A slot that nobody may have now is not being handed over. While nothing can be stored the line only pauses.
                if runs || self.mode != Mode::Run {
                    self.slots.hand_over_to(candidates.iter().flat_map(|candidate| &candidate.slots));
                }
                break;
            }
        }
        self.plan_watch();
        self.plan_count();
        // A shim that does not leave has nothing to start and is told nothing any more.
        if self.armed.iter().all(|armed| self.is_stuck(armed.job)) || self.mode == Mode::Run {
            self.then.mode_replies.append(&mut self.mode_replies);
        }
        let idle = self.armed.is_empty() && self.live.is_empty() && self.recovering.is_empty();
        if self.mode == Mode::Draining && idle {
            self.mode = Mode::Paused;
            self.owed.push(Change::Mode { mode: Mode::Paused, at: Time::now(), by: "drain".into() });
            self.then.drained = true;
        }
    }

    /// Takes back what is armed and not among the next any more.
    fn drop_what_lost_its_place(&mut self, candidates: &[Candidate], following: &[Following]) {
        let next = candidates.iter().chain(following.iter().map(|following| &following.job));
        let lost = |armed: &&Armed| !armed.unwanted && !next.clone().any(|candidate| candidate.job == armed.job);
        let lost: Vec<JobId> = self.armed.iter().filter(lost).map(|armed| armed.job).collect();
        for job in lost {
            self.disarm(job);
        }
    }

    fn arm_next(&mut self, candidate: &Candidate) {
        let job = candidate.job;
        if self.pauses.holds_back(job)
            // What is being taken back keeps its slots' place until it is gone.
            || self.armed.iter().any(|armed| {
                armed.job == job || armed.unwanted && armed.shares(candidate) && !self.is_stuck(armed.job)
            })
        {
            return;
        }
        if let Some(message) = self.disk_low() {
            return self.pause_arming("disk_low", message);
        }
        let Some(entry) = self.jobs.get(job) else { return };
        if entry.busy != Busy::No {
            // Those behind it wait until it is known what it is and where.
            return;
        }
        let launch = LaunchId::random();
        let (gpus, attempt) = (entry.gpus(), entry.attempt);
        self.armed.push(Armed {
            job,
            launch,
            gpus,
            stage: Stage::Planning,
            unwanted: false,
            behind: false,
            judged: None,
            verdicts: Vec::new(),
            slots: candidate.slots.clone(),
            being_looked_at: false,
        });
        let judges = self.hooks.judges_launch(entry.profile.as_deref());
        let generation = self.hooks.generation();
        let (store, hooks, beside) = (self.store.clone(), self.hooks.clone(), self.beside.clone());
        let uuids = self.slots.likely(gpus, &candidate.slots);
        self.work.push(Box::pin(async move {
            let planned = match store.job_to_start(job).await {
                Ok(Some(job)) => {
                    let planned = plan(&job, launch, attempt);
                    let judged_for = judges.then(|| (uuids.clone(), generation));
                    let (verdict, verdicts) = match judges {
                        true => judge(&beside, hooks, job, uuids).await,
                        false => (LaunchVerdict::Accept, Vec::new()),
                    };
                    match (verdict, planned) {
                        (LaunchVerdict::Accept, Ok(plan)) => {
                            Planned::Plan { plan: Box::new(plan), judged: judged_for, verdicts }
                        }
                        (LaunchVerdict::Accept, Err(why)) => Planned::Impossible(why),
                        (verdict, _) => Planned::Refused(verdict, verdicts),
                    }
                }
                Ok(None) => Planned::Unread(StoreError::Conflict(format!("job {job} is in line and not stored"))),
                Err(error @ StoreError::Unreadable(_)) => Planned::Impossible(error.to_string()),
                Err(error) => Planned::Unread(error),
            };
            Done::Planned { launch, planned }
        }));
    }

    /// What is wrong when too little of the disk is free for a job to write its log and its results. One call that the kernel
    /// answers from memory (statvfs(3)).
    fn disk_low(&self) -> Option<String> {
        if self.min_free_disk == 0 {
            return None;
        }
        let disk = match nix::sys::statvfs::statvfs(&self.jobs_dir) {
            Ok(disk) => disk,
            Err(error) => {
                // Preparing a launch fails next if that is a sign of anything.
                tracing::debug!(%error, path = %self.jobs_dir.display(), "the free space cannot be told");
                return None;
            }
        };
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        (free < self.min_free_disk).then(|| {
            let mebibytes = |bytes: u64| bytes >> 20;
            format!(
                "{} MiB are free on the disk of {} and launcher.min_free_disk asks for {} MiB; nothing starts until there is more",
                mebibytes(free),
                self.jobs_dir.display(),
                mebibytes(self.min_free_disk)
            )
        })
    }

    pub(super) fn planned(&mut self, launch: LaunchId, planned: Planned) {
        // Disarmed meanwhile: nothing of it is left to take back.
        let Some(armed) = self.armed_mut(launch) else { return };
        let job = armed.job;
        match planned {
            Planned::Plan { plan, judged, verdicts } => {
                armed.verdicts = verdicts;
                armed.stage = Stage::Preparing;
                armed.judged = judged.map(|(uuids, generation)| Judged { when: Instant::now(), uuids, generation });
                self.pauses.end_of(job);
                self.launcher.prepare(*plan);
            }
            Planned::Refused(LaunchVerdict::Wait(reason), _) => {
                self.armed.retain(|armed| armed.launch != launch);
                self.pauses.pause(job, reason);
            }
            Planned::Refused(verdict, verdicts) => self.refuse(job, launch, verdict, verdicts),
            Planned::Impossible(why) => {
                let failure = cannot_be_launched(why);
                self.refuse(job, launch, LaunchVerdict::Reject(failure), Vec::new());
            }
            Planned::Unread(error) => {
                self.armed.retain(|armed| armed.launch != launch);
                self.pause_arming("store_unavailable", error.to_string());
            }
        }
    }

    pub(super) fn prepared(&mut self, launch: LaunchId) {
        let (boot_id, store) = (self.boot_id.clone(), self.store.clone());
        let Some(armed) = self.armed_mut(launch) else { return };
        if armed.unwanted {
            armed.stage = Stage::Leaving;
            return self.launcher.disarm(launch);
        }
        armed.stage = Stage::Intending;
        let (job, behind, verdicts) = (armed.job, armed.behind, std::mem::take(&mut armed.verdicts));
        let Some(attempt) = self.jobs.get(job).map(|entry| entry.attempt) else { return };
        self.work.push(Box::pin(async move {
            let mut changes = vec![Change::Arm { job, attempt, launch, boot_id }];
            if !verdicts.is_empty() {
                changes.push(Change::LaunchVerdicts { job, verdicts });
            }
            let result = match behind {
                true => store.commit_soon(changes).await,
                false => store.commit(changes).await,
            };
            Done::Intended { launch, result }
        }));
    }

    pub(super) fn prepare_failed(&mut self, launch: LaunchId, error: PrepareError) {
        let Some(armed) = self.armed_mut(launch) else { return };
        let job = armed.job;
        match error {
            PrepareError::Plan(why) => {
                let failure = cannot_be_launched(why);
                self.refuse(job, launch, LaunchVerdict::Reject(failure), Vec::new());
            }
            PrepareError::StillRunning { launch: stranger, shim_pid } => {
                self.armed.retain(|armed| armed.launch != launch);
                self.still_runs(job, stranger, shim_pid);
                self.resume_operations(job);
            }
            PrepareError::Directory { full, .. } => {
                self.armed.retain(|armed| armed.launch != launch);
                self.pause_arming(if full { "disk_low" } else { "launcher_failed" }, error.to_string());
                self.resume_operations(job);
            }
        }
    }

    pub(super) fn intended(&mut self, launch: LaunchId, result: Result<(), StoreError>) {
        let Some(armed) = self.armed_mut(launch) else { return };
        match result {
            Ok(()) if !armed.unwanted => {
                armed.stage = Stage::Spawning;
                self.launcher.arm(launch);
            }
            Ok(()) => {
                armed.stage = Stage::Leaving;
                self.launcher.disarm(launch);
            }
            Err(error) => {
                armed.stage = Stage::Leaving;
                self.launcher.disarm(launch);
                self.pause_arming("store_unavailable", error.to_string());
            }
        }
    }

    pub(super) fn ready(&mut self, launch: LaunchId) {
        if let Some(armed) = self.armed_mut(launch)
            && armed.stage == Stage::Spawning
        {
            armed.stage = Stage::Ready;
            let job = armed.job;
            if let Some(entry) = self.jobs.get_mut(job) {
                entry.was_ready();
            }
            self.silent.remove(&job);
            self.pauses.end_all();
        }
    }

    /// A launch that was armed is gone, and nothing was started.
    pub(super) fn disarmed(&mut self, launch: LaunchId, reason: Option<String>) {
        let Some(at) = self.armed.iter().position(|armed| armed.launch == launch) else { return };
        let armed = self.armed.remove(at);
        self.owed.push(Change::Disarm { job: armed.job, launch });
        self.then.confirm.push(launch);
        if armed.stage != Stage::Leaving {
            let why = reason.unwrap_or_else(|| "its shim went away".into());
            tracing::warn!(job = %armed.job, %launch, why, "a launch could not be armed");
            self.pause_arming("launcher_failed", why);
        }
        self.resume_operations(armed.job);
    }

    /// Tells the ready launch of a candidate to start, if its slots are free: GPUs once they were looked at.
    fn start_ready(&mut self, candidate: &Candidate) -> bool {
        let Some(at) = self.armed.iter().position(|armed| {
            armed.job == candidate.job && armed.stage == Stage::Ready && !armed.unwanted && !armed.being_looked_at
        }) else {
            return false;
        };
        let (job, launch) = (candidate.job, self.armed[at].launch);
        let taken = if candidate.gpus == 0 {
            if !self.slots.cpu_is_free() {
                return false;
            }
            self.slots.take_cpu(launch)
        } else {
            let Some(chosen) = self.slots.choose(candidate.gpus, &candidate.slots) else { return false };
            if !self.slots.are_found_free(&chosen) {
                self.look_before_start(at, &chosen);
                return false;
            }
            self.slots.take(launch, &chosen)
        };
        let outdated = match &self.armed[at].judged {
            Some(Judged { when, uuids, generation }) => {
                when.elapsed() > VERDICT_AGE || *uuids != taken.uuids || *generation != self.hooks.generation()
            }
            // Nobody judged such jobs when it was armed.
            None => {
                let profile = self.jobs.get(job).and_then(|entry| entry.profile.as_deref());
                self.hooks.judges_launch(profile)
            }
        };
        if outdated {
            // Too old to rely on, or about other GPUs, or by other plugins, or never given: judged again, from the beginning.
            self.slots.free(launch, taken.idle_since);
            self.disarm(job);
            return false;
        }
        match self.launcher.go(launch, &taken.uuids) {
            Ok(()) => {
                self.armed.remove(at);
                self.went(job, launch, taken);
                true
            }
            // Its shim is gone, and its event follows.
            Err(_) => {
                self.slots.free(launch, taken.idle_since);
                false
            }
        }
    }

    fn look_before_start(&mut self, at: usize, chosen: &[SlotId]) {
        let armed = &mut self.armed[at];
        armed.being_looked_at = true;
        let launch = armed.launch;
        let (gpus, uuids, ours) = (self.gpus.clone(), self.slots.uuids(chosen), self.others(None));
        self.work.push(Box::pin(async move {
            let looked = gpus.look(&uuids, &ours, false).await;
            Done::LookedBeforeStart { launch, looked }
        }));
    }

    pub(super) fn looked_before_start(&mut self, launch: LaunchId, looked: Looked) {
        if let Some(armed) = self.armed_mut(launch) {
            armed.being_looked_at = false;
        }
        self.take_look(looked);
    }

    pub(super) fn is_armed(&self, job: JobId) -> bool {
        self.armed.iter().any(|armed| armed.job == job)
    }

    /// Takes back the launch of a job, now or as soon as it can be.
    pub(super) fn disarm(&mut self, job: JobId) {
        let Some(at) = self.armed.iter().position(|armed| armed.job == job) else { return };
        let armed = &mut self.armed[at];
        armed.unwanted = true;
        let launch = armed.launch;
        match armed.stage {
            Stage::Planning => {
                self.armed.remove(at);
                self.resume_operations(job);
            }
            // The next event of it finds it unwanted.
            Stage::Preparing | Stage::Intending | Stage::Leaving => {}
            Stage::Spawning | Stage::Ready => {
                armed.stage = Stage::Leaving;
                self.launcher.disarm(launch);
            }
        }
    }

    /// A job that never starts, or not now, because plugins or its own plan say so.
    fn refuse(&mut self, job: JobId, launch: LaunchId, verdict: LaunchVerdict, verdicts: Vec<Verdict>) {
        self.armed.retain(|armed| armed.launch != launch);
        let Some(entry) = self.jobs.get_mut(job) else { return };
        entry.busy = Busy::Leaving;
        let profile = entry.profile.clone();
        let now = Time::now();
        let mut next = None;
        let (to, change) = match verdict {
            LaunchVerdict::Accept | LaunchVerdict::Wait(_) => return self.resume_operations(job),
            LaunchVerdict::Reject(failure) => {
                next = self.next_attempt(job, failure.class);
                let to = if next.is_some() { State::Queued } else { State::Failed };
                let end = End {
                    job,
                    launch: Some(launch),
                    from: State::Queued,
                    to,
                    exit: Exit::default(),
                    failure: Some(failure),
                    reason: None,
                    usage: None,
                    started_at: None,
                    finished_at: now,
                    deliveries: self.hooks.deliveries(profile.as_deref(), State::Failed),
                    next,
                };
                (to, Change::End(Box::new(end)))
            }
            LaunchVerdict::Hold(reason) => {
                let (by, action, deliveries) = ("plugin".to_owned(), "hold", Vec::new());
                let (from, to, at) = (State::Queued, State::Held, now);
                (State::Held, Change::Move { job, from, to, reason: Some(reason), at, by, action, deliveries })
            }
        };
        let mut changes = vec![change];
        if !verdicts.is_empty() {
            changes.push(Change::LaunchVerdicts { job, verdicts });
        }
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(changes).await;
            Done::Refused { job, to, next, result }
        }));
    }

    pub(super) fn refused(&mut self, job: JobId, to: State, next: Option<NextAttempt>, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                if let Some(next) = next {
                    self.begin_next_attempt(job, next);
                }
                self.set_state(job, to);
            }
            Err(error) => self.pause_arming("store_unavailable", error.to_string()),
        }
        self.resume_operations(job);
    }

    pub(super) fn pause_arming(&mut self, code: &str, message: String) {
        self.pauses.pause_all(Reason::new(code, message));
    }

    fn armed_mut(&mut self, launch: LaunchId) -> Option<&mut Armed> {
        self.armed.iter_mut().find(|armed| armed.launch == launch)
    }
}

/// A job whose plan nobody can carry out, now or later.
fn cannot_be_launched(why: String) -> Failure {
    let message = "it cannot be launched as it stands; change it and retry it".to_owned();
    Failure { class: FailureClass::LaunchError, message, evidence: Some(why) }
}

/// Has plugins judge a job, beside the owner: a guest takes its time, and the queue goes on meanwhile.
async fn judge(beside: &Handle, hooks: Arc<dyn Hooks>, job: Job, uuids: Vec<String>) -> (LaunchVerdict, Vec<Verdict>) {
    let judging = beside.spawn(async move { hooks.judge_launch(&job, &uuids).await });
    judging.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a job could not be judged");
        let reason = Reason::new("plugin_failed", "judging the job failed inside Taxiway; it is tried again");
        (LaunchVerdict::Wait(reason), Vec::new())
    })
}

/// What the launcher must know to start this attempt of a job, or why it cannot be started at all.
fn plan(job: &Job, launch: LaunchId, attempt: u32) -> Result<LaunchPlan, String> {
    let format = job.spec.config_format;
    Ok(LaunchPlan {
        job: job.id,
        launch,
        attempt,
        command: job.spec.command.clone(),
        external_id: job.spec.external_id.clone(),
        cwd: job.spec.cwd.as_ref().map(PathBuf::from),
        env: job.spec.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect(),
        hide_gpus: job.spec.gpus == 0,
        config: Some(ConfigFile { file_name: format.file_name().to_owned(), bytes: written(format, &job.config)? }),
        time_limit: job.spec.time_limit,
        grace: job.spec.grace,
        process: job.spec.process.clone(),
    })
}

fn written(format: ConfigFormat, config: &serde_json::Map<String, serde_json::Value>) -> Result<Vec<u8>, String> {
    match format {
        ConfigFormat::Json => serde_json::to_vec_pretty(config).map_err(|error| error.to_string()),
        ConfigFormat::Yaml => super::yaml::to_vec(config).map_err(|error| error.to_string()),
        ConfigFormat::Toml => toml::to_string(config)
            .map(String::into_bytes)
            .map_err(|error| format!("the configuration cannot be written as TOML: {error} (TOML has no null)")),
    }
}
