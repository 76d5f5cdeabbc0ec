//! A machine in memory: what is left of every launch there, whoever asks, and a [`Launcher`] over it.
//!
//! It follows DESIGN §5 as the real launcher does, in small steps that its user chooses: what the host asks for is done in a
//! step, what a shim does is a step, and what either reports is delivered in a step. [`Machine::host_died`] forgets what a
//! service knew and keeps what the machine knows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taxiway_job::{ArrayLimit, JobId, LaunchId};
use taxiway_launcher::{Event, GoError, LaunchError, LaunchPlan, Launcher, Status, Stop, Unsettled};
use tokio::sync::{Notify, mpsc};

use super::launch::{Asked, Launch, Shim};

/// What the tester knows of a job.
pub(super) struct Known {
    pub(super) gpus: u32,
    /// The array that it is a member of, and how many of its members may run at a time.
    pub(super) array: Option<ArrayLimit>,
    /// Smaller starts first.
    pub(super) place: (i32, usize),
}

/// How an attempt ended in truth.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Truth {
    Status(Status),
    Lost,
}

/// What the rules are checked against when a launch is told to start, and what was found.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) jobs: HashMap<JobId, Known>,
    /// Certainly in line: whoever starts must not overtake them.
    pub(super) in_line: HashSet<JobId>,
    /// Certainly held or cancelled.
    pub(super) barred: HashSet<JobId>,
    /// A pause was acknowledged.
    pub(super) paused: bool,
    /// Jobs that end from now on have run for an hour, else for a millisecond.
    pub(super) jobs_are_long: bool,
    /// GPUs or virtual slots.
    pub(super) slots: usize,
    pub(super) ends: HashMap<JobId, Truth>,
    /// Attempts whose command was started.
    pub(super) ran: HashSet<(JobId, u32)>,
    pub(super) broken: Vec<String>,
}

struct Inner {
    launches: Vec<Launch>,
    boot: u32,
    kill: Option<Kill>,
    killed: bool,
    rules: Rules,
}

/// One thing that can happen on the machine. The number is the launch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// The launcher does what it was asked for.
    Serve(usize),
    /// The host hears of something.
    Deliver(usize),
    /// A shim that was told to go starts its command.
    Exec(usize),
    /// A shim that was told to go cannot execute its command.
    ExecFails(usize),
    /// A command ends with this status.
    End(usize, i32),
    /// The same, and the shim dies once it has written the record.
    EndUnheard(usize),
    /// A shim dies, and its processes with it.
    Lose(usize),
    /// The launcher fails at what it was asked for.
    Refuse(usize),
}

/// When the service is killed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    /// In a call of this name of the launcher, or in any.
    pub(super) call: Option<&'static str>,
    /// In this one of them, from 1.
    pub(super) calls: u32,
    /// Before it has any effect, or just after.
    pub(super) before: bool,
}

/// The payload of the unwinding that kills a service.
struct Killed;

pub(super) struct Machine {
    inner: Mutex<Inner>,
    called: Notify,
}

impl Machine {
    pub(super) fn new(slots: usize) -> Self {
        let rules = Rules { slots, ..Rules::default() };
        let inner = Inner { launches: Vec::new(), boot: 0, kill: None, killed: false, rules };
        Self { inner: Mutex::new(inner), called: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn boot_id(&self) -> String {
        format!("boot {}", self.lock().boot)
    }

    /// Resolves when the host has called since the last time.
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }

    pub(super) fn rules<T>(&self, with: impl FnOnce(&mut Rules) -> T) -> T {
        with(&mut self.lock().rules)
    }

    /// Kills the service later on.
    pub(super) fn kill(&self, kill: Kill) {
        self.lock().kill = Some(kill);
    }

    pub(super) fn was_killed(&self) -> bool {
        self.lock().killed
    }

    /// The service is gone, and what it had not heard with it. A reboot takes the shims too.
    pub(super) fn host_died(&self, reboot: bool) {
        let mut inner = self.lock();
        inner.killed = false;
        inner.kill = None;
        inner.boot += u32::from(reboot);
        for launch in &mut inner.launches {
            launch.asked = None;
            launch.said.clear();
            launch.followed = false;
            if reboot || launch.shim == Shim::Waiting {
                // The end of its socket tells a waiting shim to leave.
                launch.shim = Shim::NotThere;
            }
        }
    }

    /// Whether a process of the job may be alive.
    pub(super) fn is_alive(&self, job: JobId) -> bool {
        self.lock().launches.iter().any(|launch| launch.job == job && launch.is_alive())
    }

    /// Whether the host does not know yet all there is to know of the job's launches.
    pub(super) fn is_unsettled(&self, job: JobId) -> bool {
        self.lock().launches.iter().any(|launch| {
            let recovering = matches!(launch.asked, Some(Asked::Recover { .. }));
            launch.job == job && (launch.is_alive() || recovering || !launch.said.is_empty())
        })
    }

    /// Whether any launch is armed.
    pub(super) fn has_waiting_shims(&self) -> bool {
        self.lock().launches.iter().any(|launch| launch.shim == Shim::Waiting)
    }

    /// Whether a command that runs under the present host was never asked to stop.
    pub(super) fn runs_on(&self, job: JobId) -> bool {
        self.lock().launches.iter().any(|launch| {
            let heard = launch.followed && launch.asked.is_none() && launch.said.is_empty();
            launch.job == job && launch.is_alive() && heard && !launch.stopped
        })
    }

    /// The latest launch of a job, as its steps name it.
    pub(super) fn launch_of(&self, job: JobId) -> Option<usize> {
        self.lock().launches.iter().rposition(|launch| launch.job == job)
    }

    pub(super) fn shim_of(&self, job: JobId) -> Option<Shim> {
        self.lock().launches.iter().rev().find(|launch| launch.job == job).map(|launch| launch.shim.clone())
    }

    /// What can happen next when nothing goes wrong.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, launch) in self.lock().launches.iter().enumerate() {
            // A shim that has not read `go` yet does not answer a restarted host.
            let answers = !(matches!(launch.asked, Some(Asked::Recover { .. })) && launch.shim == Shim::Told);
            if launch.asked.is_some() && answers {
                steps.push(Step::Serve(at));
            }
            if !launch.said.is_empty() {
                steps.push(Step::Deliver(at));
            }
            match launch.shim {
                Shim::Told => steps.push(Step::Exec(at)),
                Shim::Running(_) => steps.extend([Step::End(at, 0), Step::End(at, 1)]),
                Shim::NotThere | Shim::Waiting | Shim::Ended => {}
            }
        }
        steps
    }

    /// What can go wrong next.
    pub(super) fn faults(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, launch) in self.lock().launches.iter().enumerate() {
            if matches!(launch.asked, Some(Asked::Prepare | Asked::Arm)) {
                steps.push(Step::Refuse(at));
            }
            match launch.shim {
                Shim::Told => steps.extend([Step::ExecFails(at), Step::Lose(at)]),
                Shim::Running(_) => steps.extend([Step::EndUnheard(at), Step::Lose(at)]),
                Shim::Waiting => steps.push(Step::Lose(at)),
                Shim::NotThere | Shim::Ended => {}
            }
        }
        steps
    }

    pub(super) async fn step(&self, step: Step, events: &mpsc::Sender<Event>) {
        let said = {
            let mut inner = self.lock();
            let Inner { launches, rules, .. } = &mut *inner;
            match step {
                Step::Deliver(at) => launches[at].said.pop_front(),
                Step::Serve(at) => {
                    launches[at].serve(rules);
                    None
                }
                Step::Refuse(at) => {
                    launches[at].refuse();
                    None
                }
                Step::Exec(at) => {
                    launches[at].exec(rules);
                    None
                }
                Step::ExecFails(at) => {
                    let error = LaunchError { errno: 2, message: "no such file".into(), command: Vec::new() };
                    launches[at].end(Status::LaunchError(error), rules);
                    None
                }
                Step::End(at, code) => {
                    let status = if launches[at].stopped { Status::Signaled(15) } else { Status::Exited(code) };
                    launches[at].end(status, rules);
                    None
                }
                Step::EndUnheard(at) => {
                    launches[at].end_unheard(rules);
                    None
                }
                Step::Lose(at) => {
                    launches[at].lose(rules);
                    None
                }
            }
        };
        if let Some(event) = said {
            // An error means that the owner was killed.
            let _ = events.send(event).await;
        }
    }

    /// Begins a call.
    fn called_in(&self, name: &str) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        let Some(kill) = inner.kill.as_mut().filter(|kill| kill.call.is_none_or(|call| call == name)) else {
            return inner;
        };
        kill.calls = kill.calls.saturating_sub(1);
        if kill.calls == 0 && kill.before { die(inner) } else { inner }
    }

    /// Ends a call.
    fn called_out(&self, inner: MutexGuard<'_, Inner>) {
        self.called.notify_one();
        if inner.kill.as_ref().is_some_and(|kill| kill.calls == 0) {
            die(inner);
        }
    }

    fn ask(&self, name: &str, launch: LaunchId, asked: Asked, legal: impl FnOnce(&Launch) -> bool) {
        let mut inner = self.called_in(name);
        let Inner { launches, rules, .. } = &mut *inner;
        match launches.iter_mut().find(|entry| entry.id == launch) {
            Some(entry) if legal(entry) => entry.asked = Some(asked),
            _ => rules.broken.push(format!("{asked:?} makes no sense for {launch}")),
        }
        self.called_out(inner);
    }
}

impl Launcher for Machine {
    fn prepare(&self, plan: LaunchPlan) {
        let mut inner = self.called_in("prepare");
        inner.launches.push(Launch {
            id: plan.launch,
            job: plan.job,
            attempt: plan.attempt,
            uuids: Vec::new(),
            shim: Shim::NotThere,
            marked: false,
            record: None,
            stopped: false,
            followed: true,
            asked: Some(Asked::Prepare),
            said: VecDeque::new(),
        });
        self.called_out(inner);
    }

    fn arm(&self, launch: LaunchId) {
        self.ask("arm", launch, Asked::Arm, |entry| entry.shim == Shim::NotThere && entry.asked.is_none());
    }

    fn go(&self, launch: LaunchId, gpu_uuids: &[String]) -> Result<(), GoError> {
        let mut inner = self.called_in("go");
        let Inner { launches, rules, .. } = &mut *inner;
        let at = launches.iter().position(|entry| entry.id == launch).ok_or(GoError::NotReady)?;
        if launches[at].shim != Shim::Waiting {
            return Err(GoError::Gone);
        }
        check_go(launches, at, gpu_uuids, rules);
        launches[at].shim = Shim::Told;
        launches[at].uuids = gpu_uuids.to_vec();
        self.called_out(inner);
        Ok(())
    }

    fn disarm(&self, launch: LaunchId) {
        // One that was settled meanwhile stays so: the host has yet to hear of it.
        let settled = self.lock().launches.iter().any(|entry| entry.id == launch && !entry.followed);
        if !settled {
            self.ask("disarm", launch, Asked::Disarm, |entry| !entry.is_alive());
        }
    }

    fn stop(&self, launch: LaunchId, _: Stop) {
        let mut inner = self.called_in("stop");
        if let Some(entry) = inner.launches.iter_mut().find(|entry| entry.id == launch && entry.followed) {
            entry.stopped = true;
        }
        self.called_out(inner);
    }

    fn extend(&self, _: LaunchId, _: Option<Duration>) -> bool {
        false
    }

    fn confirm(&self, launch: LaunchId) {
        let mut inner = self.called_in("confirm");
        if let Some(entry) = inner.launches.iter_mut().find(|entry| entry.id == launch) {
            entry.shim = Shim::NotThere;
        }
        self.called_out(inner);
    }

    fn recover(&self, attempts: Vec<Unsettled>) {
        let mut inner = self.called_in("recover");
        let boot_id = format!("boot {}", inner.boot);
        for attempt in attempts {
            let same_boot = attempt.boot_id == boot_id;
            if let Some(entry) = inner.launches.iter_mut().find(|entry| entry.id == attempt.launch) {
                entry.asked = Some(Asked::Recover { phase: attempt.phase, same_boot });
            }
        }
        self.called_out(inner);
    }
}

/// Unwinds the owner's task. No panic: nothing is printed, and the task is gone between this call and whatever follows it.
fn die(mut inner: MutexGuard<'_, Inner>) -> ! {
    inner.killed = true;
    drop(inner);
    std::panic::resume_unwind(Box::new(Killed));
}

/// The rules that hold whenever a launch is told to start.
fn check_go(launches: &[Launch], at: usize, gpu_uuids: &[String], rules: &mut Rules) {
    let launch = &launches[at];
    let mut broken = Vec::new();
    let mut ensure = |holds: bool, what: &str| {
        if !holds {
            broken.push(format!("{what}: job {} was started", launch.job));
        }
    };
    let Some(known) = rules.jobs.get(&launch.job) else {
        return rules.broken.push(format!("job {} was started and never submitted", launch.job));
    };
    ensure(!rules.paused, "the queue is paused");
    ensure(!rules.barred.contains(&launch.job), "it is held or cancelled");
    let same_lane = |job: &JobId| rules.jobs.get(job).filter(|other| (other.gpus == 0) == (known.gpus == 0));
    let overtaken = rules.in_line.iter().filter_map(same_lane).any(|other| other.place < known.place);
    ensure(!overtaken, "another is before it in line");
    let alive: Vec<&Launch> =
        launches.iter().filter(|other| other.is_alive() && same_lane(&other.job).is_some()).collect();
    ensure(alive.iter().all(|other| other.job != launch.job), "it already runs");
    ensure(gpu_uuids.iter().all(|uuid| alive.iter().all(|other| !other.uuids.contains(uuid))), "its GPU is taken");
    let taken: u32 = alive.iter().filter_map(|other| rules.jobs.get(&other.job)).map(|other| other.gpus.max(1)).sum();
    let slots = if known.gpus == 0 { 1 } else { rules.slots };
    ensure((taken + known.gpus.max(1)) as usize <= slots, "all slots are taken");
    if let Some(limit) = known.array {
        let is_member = |job: &JobId| {
            rules.jobs.get(job).and_then(|other| other.array).is_some_and(|other| other.array == limit.array)
        };
        let members = launches.iter().filter(|other| other.is_alive() && is_member(&other.job)).count();
        ensure(members < limit.max_parallel.get() as usize, "as many of its array run as may");
    }
    rules.in_line.remove(&launch.job);
    rules.broken.append(&mut broken);
}
