//! One launch on the machine in memory: what its shim does, and what is left when that is gone.

use std::collections::VecDeque;

use taxiway_job::{JobId, LaunchId, Usage};
use taxiway_launcher::{
    AdoptedPhase, Clean, Event, ExitRecord, Instant, PrepareError, Settlement, Started, Status, StoppedBy, StoredPhase,
};

use super::machine::{Rules, Truth};

/// What a launch's shim is doing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shim {
    NotThere,
    /// Armed: it waits for `go`.
    Waiting,
    /// `go` was written into its socket.
    Told,
    Running(Started),
    /// Its record is written, and it waits for the host's confirmation.
    Ended,
}

/// What the host asked of a launch and what was not done yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    Prepare,
    Arm,
    Disarm,
    Recover { phase: StoredPhase, same_boot: bool },
}

/// One launch: the directory, the shim and its connection to the present host.
pub(super) struct Launch {
    pub(super) id: LaunchId,
    pub(super) job: JobId,
    pub(super) attempt: u32,
    pub(super) uuids: Vec<String>,
    pub(super) shim: Shim,
    /// The mark `started` is in its directory.
    pub(super) marked: bool,
    pub(super) record: Option<ExitRecord>,
    pub(super) stopped: bool,
    /// Whether the present host follows it, so that it hears of it.
    pub(super) followed: bool,
    pub(super) asked: Option<Asked>,
    /// Reported to the host, in this order, and not delivered yet.
    pub(super) said: VecDeque<Event>,
}

impl Launch {
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.shim, Shim::Told | Shim::Running(_))
    }

    fn say(&mut self, event: Event) {
        if self.followed {
            self.said.push_back(event);
        }
    }

    fn settle(&mut self, settlement: Settlement) {
        self.say(Event::Settled { launch: self.id, settlement });
        self.followed = false;
    }

    pub(super) fn serve(&mut self, rules: &mut Rules) {
        let Some(asked) = self.asked.take() else { return };
        let launch = self.id;
        match asked {
            Asked::Prepare => self.say(Event::Prepared { launch }),
            Asked::Arm => {
                self.shim = Shim::Waiting;
                self.say(Event::Ready { launch });
            }
            Asked::Disarm => {
                self.shim = Shim::NotThere;
                self.settle(Settlement::NotStarted { reason: None });
            }
            Asked::Recover { phase, same_boot } => {
                self.followed = true;
                match self.shim.clone() {
                    Shim::Running(process) => {
                        self.say(Event::Adopted { launch, phase: AdoptedPhase::Running(process) });
                    }
                    Shim::Ended => {
                        self.say(Event::Adopted { launch, phase: AdoptedPhase::Ended });
                        self.say_end(rules);
                    }
                    _ => self.judge(phase, same_boot, None, rules),
                }
            }
        }
    }

    pub(super) fn refuse(&mut self) {
        let launch = self.id;
        match self.asked.take() {
            Some(Asked::Prepare) => {
                let error = PrepareError::Directory { path: "jobs".into(), error: "no space".into(), full: true };
                self.say(Event::PrepareFailed { launch, error });
                self.followed = false;
            }
            _ => self.settle(Settlement::NotStarted { reason: Some("cannot fork".into()) }),
        }
    }

    pub(super) fn exec(&mut self, rules: &mut Rules) {
        if !rules.ran.insert((self.job, self.attempt)) {
            rules.broken.push(format!("attempt {} of job {} was started twice", self.attempt, self.job));
        }
        let now = Instant::now();
        let process = Started { pid: 4711, start_time: 1, at: now, go_at: now, gpu_uuids: self.uuids.clone() };
        self.marked = true;
        self.shim = Shim::Running(process.clone());
        self.say(Event::Started { launch: self.id, process });
    }

    fn write_record(&mut self, status: Status, rules: &Rules) {
        let process = match &self.shim {
            Shim::Running(process) => Some(process.clone()),
            _ => None,
        };
        self.marked = true;
        // Whatever time the tests take.
        let ran_ns = if rules.jobs_are_long { 3_600_000_000_000 } else { 1_000_000 };
        let mut ended = Instant::now();
        ended.monotonic_ns = process.as_ref().map_or(ended.monotonic_ns, |process| process.at.monotonic_ns + ran_ns);
        let clean =
            Clean { leftovers: 0, at: Instant::now(), usage: Usage::default(), log_dropped_bytes: 0, oom_kills: 0 };
        self.record = Some(ExitRecord {
            launch: self.id,
            status,
            process,
            ended,
            stopped_by: self.stopped.then_some(StoppedBy::Host),
            time_limit_ms: None,
            clean: Some(clean),
        });
    }

    pub(super) fn end(&mut self, status: Status, rules: &mut Rules) {
        self.write_record(status, rules);
        self.shim = Shim::Ended;
        self.say_end(rules);
    }

    fn say_end(&mut self, rules: &mut Rules) {
        if let Some(record) = self.record.clone() {
            rules.ends.insert(self.job, Truth::Status(record.status.clone()));
            self.say(Event::Ended { launch: self.id, record: Box::new(record) });
        }
    }

    pub(super) fn end_unheard(&mut self, rules: &mut Rules) {
        self.write_record(Status::Exited(0), rules);
        self.lose(rules);
    }

    pub(super) fn lose(&mut self, rules: &mut Rules) {
        let before = std::mem::replace(&mut self.shim, Shim::NotThere);
        // Else the host finds out when it asks, or is about to be told of the disarming.
        if self.followed && self.asked.is_none() {
            let phase = match before {
                Shim::Running(_) => StoredPhase::Running,
                Shim::Told => StoredPhase::Pending,
                _ => StoredPhase::Armed,
            };
            self.judge(phase, true, Some("its shim was killed".into()), rules);
        }
    }

    /// DESIGN §5, step 4, under the lock.
    fn judge(&mut self, phase: StoredPhase, same_boot: bool, reason: Option<String>, rules: &mut Rules) {
        let may_wait = phase == StoredPhase::Armed || phase == StoredPhase::Pending && same_boot;
        let settlement = match self.record.clone() {
            Some(record) => {
                rules.ends.insert(self.job, Truth::Status(record.status.clone()));
                Settlement::Record(Box::new(record))
            }
            None if !self.marked && may_wait => Settlement::NotStarted { reason },
            None => {
                rules.ends.insert(self.job, Truth::Lost);
                Settlement::Lost { evidence: "nothing was left".into() }
            }
        };
        self.settle(settlement);
    }
}
