//! From `go` to the end of an attempt.

use std::time::{Duration, Instant};

use taxiway_job::{
    Busy, Exit, Failure, FailureClass, Handover, JobId, LaunchId, Progress, Reason, State, StopTarget, Time, Usage,
};
use taxiway_launcher::{AdoptedPhase, Event, ExitRecord, Settlement, Started};

use super::gpus;
use super::owner::{Done, Live, Owner};
use super::samples::{self, Sampler};
use super::slots::Taken;
use crate::gpu::Released;
use crate::store::{Change, End, NextAttempt};

/// What is known of an attempt whose processes are all gone.
pub(super) enum Ending {
    /// The shim recorded its status.
    Record(Box<ExitRecord>),
    /// No status was recorded; what was found instead.
    Lost(String),
    /// It had been told to start, and the evidence says that it did not, for this reason if there is one.
    NotStarted(Option<String>),
}

impl Owner {
    pub(super) fn launcher_event(&mut self, event: Event) {
        match event {
            Event::Prepared { launch } => self.prepared(launch),
            Event::PrepareFailed { launch, error } => self.prepare_failed(launch, error),
            Event::Ready { launch } => self.ready(launch),
            Event::Started { launch, process } => self.process_started(launch, &process),
            Event::Ended { launch, record } => self.over(launch, Ending::Record(record)),
            Event::Settled { launch, settlement } => match settlement {
                Settlement::NotStarted { .. } if self.recovered_as_not_started(launch) => {}
                Settlement::NotStarted { reason } if self.live.contains_key(&launch) => {
                    self.over(launch, Ending::NotStarted(reason));
                }
                Settlement::NotStarted { reason } => self.disarmed(launch, reason),
                Settlement::Record(record) => self.over(launch, Ending::Record(record)),
                Settlement::Lost { evidence } => self.over(launch, Ending::Lost(evidence)),
            },
            Event::Adopted { launch, phase } => {
                if let AdoptedPhase::Running(process) = phase {
                    self.adopted(launch, &process);
                }
                // Else its end follows, with all that is known of it.
            }
            Event::Unresponsive { launch, shim_pid, why } => self.unresponsive(launch, shim_pid, why),
            Event::Responsive { launch } => self.responsive(launch),
            Event::Extended { launch, in_time } => self.extended(launch, in_time),
            Event::Unkillable { launch, pids } => {
                let job = self.live.get(&launch).map(|live| live.job.to_string());
                tracing::error!(job, %launch, ?pids, "processes survive SIGKILL; their slot stays taken until they are gone");
                if let Some(live) = self.live.get_mut(&launch) {
                    live.unkillable = pids;
                }
                // What another launch holds nobody waits for.
                let holds = self.live.contains_key(&launch) || self.recovering.contains_key(&launch);
                if holds && self.slots.quarantine_held_by(launch) {
                    self.check_gpus_of_all();
                }
                // Its shim may be gone, and then has no answer to another time limit.
                self.extended(launch, true);
            }
            Event::StrangerGone { job, launch } => self.stranger_gone(job, launch),
            Event::Progress { launch, progress } => self.progressed(launch, progress),
        }
    }

    /// `go` was sent: the job is pending.
    pub(super) fn went(&mut self, job: JobId, launch: LaunchId, taken: Taken) {
        self.owed.push(Change::Go { job, launch, gpu_uuids: taken.uuids.clone(), at: Time::now() });
        self.set_state(job, State::Pending);
        self.gpus.hold(job, launch, &taken.uuids, false);
        self.track(job, launch, taken);
    }

    /// Follows a launch from now on.
    pub(super) fn track(&mut self, job: JobId, launch: LaunchId, taken: Taken) {
        self.starts += 1;
        let live = Live {
            job,
            order: self.starts,
            taken,
            started_at: None,
            begun: None,
            said: None,
            said_at: None,
            progress: None,
            sampler: Sampler::default(),
            unresponsive: None,
            extending: None,
            unkillable: Vec::new(),
            end: None,
            released: false,
            measured: None,
        };
        self.live.insert(launch, live);
    }

    pub(super) fn process_started(&mut self, launch: LaunchId, process: &Started) {
        let Some(live) = self.live.get_mut(&launch) else { return };
        live.unresponsive = None;
        live.started_at = Some(process.at.time());
        live.begun = Some(process.at);
        let job = live.job;
        let gpu_read = live.taken.gpu_read;
        let handover = live.taken.idle_since.take().map(|idle_since| handover(idle_since, gpu_read, process));
        let (pid, start_time, at) = (process.pid, process.start_time, process.at.time());
        self.owed.push(Change::Running { job, launch, pid, start_time, at, handover });
        if self.jobs.get(job).is_some_and(|entry| entry.state() == State::Pending) {
            self.set_state(job, State::Running);
        }
    }

    fn progressed(&mut self, launch: LaunchId, progress: Progress) {
        let Some(live) = self.live.get_mut(&launch) else { return };
        if live.said.as_ref() == Some(&progress) {
            return;
        }
        live.said = Some(progress.clone());
        let at = Time::now();
        live.said_at = Some(at);
        let progress = samples::estimated(progress, live.started_at, at);
        let attempt = self.jobs.get(live.job).map_or(1, |entry| entry.attempt);
        let sample = live.sampler.take(&progress, live.started_at, at).map(|sample| (attempt, sample));
        live.progress = Some(progress.clone());
        self.owed.push(Change::Progress { job: live.job, progress, at, sample });
    }

    /// Every process of a launch is gone.
    fn over(&mut self, launch: LaunchId, ending: Ending) {
        let process = match &ending {
            Ending::Record(record) => record.process.as_ref(),
            Ending::Lost(_) | Ending::NotStarted(_) => None,
        };
        self.recovered_as_told(launch, process.map_or(&[], |process| &process.gpu_uuids));
        let Some(live) = self.live.get_mut(&launch) else { return };
        if !live.taken.uuids.is_empty() && !std::mem::replace(&mut live.released, true) {
            // Its GPUs are read once: for what it used of them, and for the next one's start.
            let (gpus, uuids, ours) = (self.gpus.clone(), live.taken.uuids.clone(), self.others(Some(launch)));
            return self.work.push(Box::pin(async move {
                let begun = Instant::now();
                let released = gpus.release(launch, &uuids, &ours).await;
                Done::Released { launch, ending, released, took: begun.elapsed() }
            }));
        }
        if live.extending.is_some() {
            let timed_out = matches!(&ending, Ending::Record(record) if record.timed_out());
            self.extended(launch, !timed_out);
            return self.over(launch, ending);
        }
        if self.jobs.get(live.job).is_some_and(|entry| entry.busy != Busy::No) {
            // A stop of it is being written. Its answer says how the job ends.
            live.end = Some(ending);
            return;
        }
        self.finish(launch, ending);
    }

    /// The GPUs of a launch that is over were read.
    pub(super) fn released(&mut self, launch: LaunchId, ending: Ending, released: Released, took: Duration) {
        self.slots.were_read(launch, took);
        if let Some(live) = self.live.get_mut(&launch) {
            live.measured = Some(released.measured);
        }
        self.take_look(released.looked);
        self.expect_release(launch);
        self.over(launch, ending);
    }

    /// Goes on with an end that came while a request about the job was being written.
    pub(super) fn end_that_waited(&mut self, launch: LaunchId) {
        if let Some(ending) = self.live.get_mut(&launch).and_then(|live| live.end.take()) {
            self.finish(launch, ending);
        }
    }

    fn finish(&mut self, launch: LaunchId, ending: Ending) {
        let Some(live) = self.live.remove(&launch) else { return };
        let job = live.job;
        let Some(entry) = self.jobs.get(job) else { return self.free_slots(launch, None) };
        let (state, gpus) = (entry.state(), entry.gpus());
        let stop = (state == State::Cancelling).then_some(entry.stop_target).flatten();
        let mut ended = match &ending {
            Ending::NotStarted(reason) => {
                tracing::warn!(%job, %launch, reason, "a launch was lost before its command was started");
                if let Some(reason) = reason {
                    self.pause_arming("launcher_failed", reason.clone());
                }
                self.free_slots(launch, live.taken.idle_since);
                self.then.confirm.push(launch);
                return self.not_started(job, launch, stop);
            }
            Ending::Record(record) => {
                // The end of the log is read here only for a job that failed; it was written a moment ago. One whose time ran out has
                // failed also where it saved its state and ended well.
                let tail = match record.exit().code {
                    Some(0) if !record.timed_out() => Vec::new(),
                    _ => self.log_tail(job, launch),
                };
                Ended {
                    exit: record.exit(),
                    failure: taxiway_launcher::failure::classify(record, &tail),
                    usage: Some(record.usage()),
                    started_at: record.started_at(),
                    finished_at: Some(record.finished_at()),
                    ended_at: Some(record.ended.monotonic_ns),
                }
            }
            Ending::Lost(evidence) => Ended {
                failure: Some(Failure {
                    class: FailureClass::HostLost,
                    message: "the machine or the job's shim went away and no exit status was recorded".into(),
                    evidence: Some(evidence.clone()),
                }),
                ..Ended::default()
            },
        };
        let measured = live.measured.as_ref();
        ended.usage = gpus::usage(ended.usage, live.taken.uuids.len(), measured);
        ended.failure = gpus::failure(ended.failure, measured, |uuid| self.slots.label_of(uuid));
        self.free_slots(launch, ended.ended_at);
        if let Ending::Record(record) = &ending {
            self.then.confirm.push(launch);
            if let Some(process) = &record.process {
                let ran = record.ended.monotonic_ns.saturating_sub(process.at.monotonic_ns);
                self.pace.ran(gpus, Duration::from_nanos(ran));
            }
            // A start that was never reported, as after an adoption: no job ends without having run.
            if state == State::Pending
                && let Some(process) = &record.process
            {
                let (pid, start_time, at) = (process.pid, process.start_time, process.at.time());
                self.owed.push(Change::Running { job, launch, pid, start_time, at, handover: None });
                self.set_state(job, State::Running);
            }
        }
        let to = match stop {
            Some(target) => {
                ended.failure = None;
                target.into()
            }
            None if ended.failure.is_none() => State::Completed,
            None => State::Failed,
        };
        self.end(job, Some(launch), to, ended);
    }

    /// A launch that had been told to start started nothing, and leaves no history: its job waits again with the same attempt, or
    /// goes where a stop leads.
    fn not_started(&mut self, job: JobId, launch: LaunchId, stop: Option<StopTarget>) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let (from, to) = (entry.state(), stop.map_or(State::Queued, State::from));
        if to.has_ended() {
            self.owed.push(Change::Disarm { job, launch });
            return self.end(job, None, to, Ended::default());
        }
        entry.stop_target = None;
        // Requeued: to the back of its priority.
        let rank = stop.map(|_| self.jobs.take_rank());
        if let Some(rank) = rank {
            self.jobs.set_rank(job, rank);
        }
        self.owed.push(Change::NotStarted { job, launch, from, to, rank, reason: stopped_as(to), at: Time::now() });
        self.set_state(job, to);
        self.resume_operations(job);
    }

    /// The attempt is over; the job ends, or waits for another one.
    fn end(&mut self, job: JobId, launch: Option<LaunchId>, to: State, ended: Ended) {
        let Ended { exit, failure, usage, started_at, finished_at, .. } = ended;
        let finished_at = finished_at.unwrap_or_else(Time::now);
        let retry = failure.as_ref().filter(|_| to == State::Failed);
        let next = match retry.and_then(|failure| self.next_attempt(job, failure.class)) {
            Some(next) => Some(next),
            // Requeued: to the back of its priority.
            None if !to.has_ended() => self
                .jobs
                .get(job)
                .map(|entry| entry.retries_done)
                .map(|retries_done| NextAttempt { rank: self.jobs.take_rank(), retry_at: None, retries_done }),
            None => None,
        };
        let Some(entry) = self.jobs.get(job) else { return };
        let (from, profile) = (entry.state(), entry.profile.as_deref());
        let to = if retry.is_some() && next.is_some() { State::Queued } else { to };
        let deliveries = match next {
            None => self.hooks.deliveries(profile, to),
            Some(NextAttempt { retry_at: Some(_), .. }) => self.hooks.deliveries(profile, State::Failed),
            Some(_) => Vec::new(),
        };
        let reason = stopped_as(to);
        self.owed.push(Change::End(Box::new(End {
            job,
            launch,
            from,
            to,
            exit,
            failure,
            reason,
            usage,
            started_at,
            finished_at,
            deliveries,
            next,
        })));
        if let Some(next) = next {
            self.begin_next_attempt(job, next);
        }
        self.set_state(job, to);
        self.resume_operations(job);
    }

    /// The attempt that follows one that failed in this way, if the job's retries want another.
    pub(super) fn next_attempt(&self, job: JobId, class: FailureClass) -> Option<NextAttempt> {
        let entry = self.jobs.get(job)?;
        let pause = entry.terms()?.retries.pause_after(class, entry.retries_done)?;
        let retry_at = Some(Time::now().plus(pause));
        Some(NextAttempt { rank: entry.place(job).rank(), retry_at, retries_done: entry.retries_done + 1 })
    }

    pub(super) fn begin_next_attempt(&mut self, job: JobId, next: NextAttempt) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        entry.attempt += 1;
        entry.stop_target = None;
        entry.retries_done = next.retries_done;
        self.jobs.set_rank(job, next.rank);
        self.jobs.set_retry_at(job, next.retry_at, Time::now());
    }
}

/// Why a job is where a stop has led it.
fn stopped_as(to: State) -> Option<Reason> {
    match to {
        State::Cancelled => Some(Reason::new("cancelled", "cancelled while it ran")),
        State::Held => {
            let message = "stopped and taken out of the line; `taxiway release` puts it back";
            Some(Reason::new("held", message))
        }
        _ => None,
    }
}

/// The facts of an end.
#[derive(Default)]
struct Ended {
    exit: Exit,
    failure: Option<Failure>,
    usage: Option<Usage>,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    /// CLOCK_MONOTONIC, nanoseconds.
    ended_at: Option<u64>,
}

/// The idle gap of a slot, split at the moment when the shim read `go`. What reading the GPUs took before that stands apart.
fn handover(idle_since: u64, gpu_read: Option<Duration>, process: &Started) -> Handover {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let (go, exec) = (process.go_at.monotonic_ns, process.at.monotonic_ns);
    let read = gpu_read.map(|took| took.as_secs_f64());
    let mut parts = serde_json::Map::new();
    parts.insert("end_to_go".into(), (seconds(idle_since, go) - read.unwrap_or(0.0)).max(0.0).into());
    if let Some(read) = read {
        parts.insert("gpu_read".into(), read.into());
    }
    parts.insert("go_to_exec".into(), seconds(go, exec).into());
    Handover { gap_seconds: seconds(idle_since, exec), parts }
}
