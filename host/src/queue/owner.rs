//! The task that owns the queue.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use taxiway_job::{Failure, Job, JobId, LaunchId, Line, Place, Progress, Reason, State, StopTarget, Terms, Time};
use taxiway_launcher::Launcher;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arm::Armed;
use super::handle::{Command, Mode, Operation, Queue, QueueError, Standing, Summary, WAITING_COMMANDS};
use super::slots::{SlotGpu, Slots, Taken};
use crate::store::{BodyHash, Change, NewDelivery, NewJob, Store, StoreError};

/// What the queue needs of plugins.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Whether any plugin judges jobs of this profile just before their start.
    fn judges_launch(&self, profile: Option<&str>) -> bool;

    /// Has the plugins judge a job that is about to start on these GPUs (none on a virtual slot).
    async fn judge_launch(&self, job: &Job, gpu_uuids: &[String]) -> LaunchVerdict;

    /// One delivery for each completion hook that hears of such an end.
    fn deliveries(&self, profile: Option<&str>, end: State) -> Vec<NewDelivery>;
}

/// What plugins say of a job that is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchVerdict {
    /// It may start.
    Accept,
    /// It ends as `failed`, class `preflight`.
    Reject(Failure),
    /// It waits to be released.
    Hold(Reason),
    /// Its GPUs cannot be looked at just now: it is asked again later.
    Wait(Reason),
}

/// What a queue is made of.
pub struct Options {
    /// Where everything is kept.
    pub store: Store,
    /// This boot of the machine.
    pub boot_id: String,
    /// Who starts and stops processes.
    pub launcher: Arc<dyn Launcher>,
    /// What the launcher has to say.
    pub events: mpsc::Receiver<taxiway_launcher::Event>,
    /// Where the launcher keeps jobs' directories and logs.
    pub jobs_dir: PathBuf,
    /// The plugins.
    pub hooks: Arc<dyn Hooks>,
    /// The GPUs, or virtual slots.
    pub gpus: Vec<SlotGpu>,
    /// How many jobs without GPUs may run at once.
    pub cpu_slots: usize,
    /// The mode to start in; none for the one it had last.
    pub mode: Option<Mode>,
    /// Cancelled when a drained queue has nothing left to do.
    pub drained: CancellationToken,
}

/// Reads what the store knows, takes over what still runs, and starts the owner.
///
/// # Errors
/// When the store cannot be read.
pub async fn start(options: Options) -> Result<Queue, StoreError> {
    let (commands, waiting) = mpsc::channel(WAITING_COMMANDS);
    let Options { store, launcher, events, jobs_dir, boot_id, hooks, gpus, cpu_slots, mode, drained } = options;
    let mut owner = Owner {
        boot_id,
        mode: Mode::Run,
        jobs: HashMap::new(),
        submitting: HashSet::new(),
        line: Line::new(),
        held: 0,
        next_rank: 0,
        slots: Slots::new(gpus, cpu_slots),
        armed: Vec::new(),
        arm_pause: None,
        live: HashMap::new(),
        recovering: HashMap::new(),
        jobs_dir,
        starts: 0,
        work: FuturesUnordered::new(),
        owed: Vec::new(),
        then: Then::default(),
        waiting: HashMap::new(),
        mode_replies: Vec::new(),
        drained,
        store,
        launcher,
        hooks,
    };
    owner.load(mode).await?;
    tokio::spawn(owner.run(waiting, events));
    Ok(Queue { commands })
}

pub(super) struct Owner {
    pub(super) store: Store,
    pub(super) launcher: Arc<dyn Launcher>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) boot_id: String,
    pub(super) mode: Mode,
    /// Every job that has not ended.
    pub(super) jobs: HashMap<JobId, Entry>,
    /// Jobs that are being stored: others may see them there before the answer comes.
    pub(super) submitting: HashSet<JobId>,
    /// Those that are queued.
    pub(super) line: Line,
    /// How many are held.
    pub(super) held: usize,
    pub(super) next_rank: i64,
    pub(super) slots: Slots,
    /// The next in line of each lane, on its way to a shim that is ready.
    pub(super) armed: Vec<Armed>,
    /// Arming failed for a reason that is not the job's: when to try again, and why it failed.
    pub(super) arm_pause: Option<ArmPause>,
    /// Launches that were told to start.
    pub(super) live: HashMap<LaunchId, Live>,
    /// Armed launches of the previous service that are not settled, and whose they are.
    pub(super) recovering: HashMap<LaunchId, JobId>,
    /// Where logs are.
    pub(super) jobs_dir: PathBuf,
    /// Starts so far: the order of what runs.
    pub(super) starts: u64,
    /// What is being waited for: commits, reads, verdicts.
    pub(super) work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Facts of this turn: one unit for the store.
    pub(super) owed: Vec<Change>,
    /// What follows once they are durable.
    pub(super) then: Then,
    /// Operations on jobs that are busy.
    pub(super) waiting: HashMap<JobId, VecDeque<Operation>>,
    /// Askers of a pause that wait until nothing is armed any more.
    pub(super) mode_replies: Vec<oneshot::Sender<Result<(), QueueError>>>,
    pub(super) drained: CancellationToken,
}

/// A job that has not ended, as small as it can be: there may be a million of them.
pub(super) struct Entry {
    pub(super) state: State,
    /// A request about it is being written: it neither starts nor takes another request meanwhile.
    pub(super) busy: bool,
    pub(super) gpus: u32,
    pub(super) priority: i16,
    pub(super) attempt: u32,
    pub(super) rank: i64,
    pub(super) stop_target: Option<StopTarget>,
    pub(super) profile: Option<Arc<str>>,
    /// What it asks beside its slots; none for nothing.
    pub(super) terms: Option<Box<Terms>>,
}

impl Entry {
    pub(super) fn place(&self, id: JobId) -> Place {
        Place::new(self.priority, self.rank, id)
    }
}

/// A launch that was told to start, until all its processes are gone.
pub(super) struct Live {
    pub(super) job: JobId,
    pub(super) order: u64,
    pub(super) taken: Taken,
    pub(super) progress: Option<Progress>,
    /// Its shim does not answer.
    pub(super) unresponsive: Option<i32>,
    /// Its end, known before the answer to a stop that is being written.
    pub(super) end: Option<super::run::Ending>,
}

/// What waits for the facts of a turn to be durable.
#[derive(Default)]
pub(super) struct Then {
    /// Launches whose end is among them: their shims may leave.
    pub(super) confirm: Vec<LaunchId>,
    /// Askers of a mode that is in force.
    pub(super) mode_replies: Vec<oneshot::Sender<Result<(), QueueError>>>,
    /// Nothing is left to be done by a drained queue.
    pub(super) drained: bool,
}

/// Arming failed and rests a while.
pub(super) struct ArmPause {
    /// None once it may be tried again.
    pub(super) until: Option<Instant>,
    /// How long it rests; remembered until something is armed.
    pub(super) delay: Duration,
    pub(super) reason: Reason,
}

/// Something that was waited for.
pub(super) enum Done {
    /// A submission was answered.
    Submitted {
        entry: Entry,
        id: JobId,
        result: Result<(), StoreError>,
        reply: oneshot::Sender<Result<Standing, QueueError>>,
    },
    /// A job without processes was moved to another state.
    Moved { operation: Operation, to: State, result: Result<(), StoreError> },
    /// A stop was stored.
    Stopped { operation: Operation, target: StopTarget, result: Result<(), StoreError> },
    /// The state of a job that the queue does not know.
    Looked { operation: Operation, found: Result<Option<State>, StoreError> },
    /// The mode was stored.
    ModeSet { mode: Mode, result: Result<(), StoreError>, reply: oneshot::Sender<Result<(), QueueError>> },
    /// The next in line was read and judged.
    Planned { launch: LaunchId, planned: super::arm::Planned },
    /// The intent to start it is durable, or not.
    Intended { launch: LaunchId, result: Result<(), StoreError> },
    /// A verdict at launch was stored.
    Refused { job: JobId, to: State, result: Result<(), StoreError> },
    /// Facts are durable, or were refused.
    Recorded { then: Then, result: Result<(), StoreError> },
}

impl Owner {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut events: mpsc::Receiver<taxiway_launcher::Event>) {
        let mut committing = self.store.committing();
        self.turn().await;
        loop {
            let rest = self.arm_pause.as_ref().and_then(|pause| pause.until);
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.launcher_event(event),
                Some(done) = self.work.next() => self.done(done),
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    // Every handle is gone: the service ends. What runs goes on under its shims.
                    None => return,
                },
                // An error means that the writer has stopped: the service ends.
                Ok(()) = committing.changed() => {}
                () = until(rest) => self.arm_pause_ends(),
            }
            self.turn().await;
        }
    }

    /// What follows from any input: starts, arming, and the writing of facts.
    async fn turn(&mut self) {
        self.schedule();
        let (changes, then) = (std::mem::take(&mut self.owed), std::mem::take(&mut self.then));
        if changes.is_empty() {
            return self.recorded(then, Ok(()));
        }
        match self.store.record(changes).await {
            Ok(answer) => self.work.push(Box::pin(async move {
                let result = answer.durable().await;
                Done::Recorded { then, result }
            })),
            Err(error) => {
                tracing::error!(%error, "facts could not be handed to the store");
                self.recorded(then, Err(error));
            }
        }
    }

    fn recorded(&self, then: Then, result: Result<(), StoreError>) {
        if result.is_ok() {
            // Other shims fsync their records, and are found again at the next start.
            for launch in then.confirm {
                self.launcher.confirm(launch);
            }
        }
        for reply in then.mode_replies {
            // An error means that the asker has gone away.
            let _ = reply.send(result.clone().map_err(QueueError::from));
        }
        if then.drained {
            self.drained.cancel();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit { job, body, reply } => self.submit(job, body, reply),
            Command::Operate(operation) => self.operate(operation),
            Command::SetMode { mode, by, reply } => self.set_mode(mode, by, reply),
            // An error in an answer means that the asker has gone away.
            Command::Standing { ids, reply } => drop(reply.send(ids.into_iter().map(|id| self.standing(id)).collect())),
            Command::Summary { reply } => drop(reply.send(self.summary())),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Submitted { entry, id, result, reply } => self.submitted(entry, id, result, reply),
            Done::Moved { operation, to, result } => self.moved(operation, to, result),
            Done::Stopped { operation, target, result } => self.stopped(operation, target, result),
            Done::Looked { operation, found } => Self::looked(operation, found),
            Done::ModeSet { mode, result, reply } => self.mode_set(mode, result, reply),
            Done::Planned { launch, planned } => self.planned(launch, planned),
            Done::Intended { launch, result } => self.intended(launch, result),
            Done::Refused { job, to, result } => self.refused(job, to, result),
            Done::Recorded { then, result } => self.recorded(then, result),
        }
    }

    fn submit(&mut self, job: Arc<Job>, body: BodyHash, reply: oneshot::Sender<Result<Standing, QueueError>>) {
        if job.spec.gpus as usize > self.slots.count() {
            // An error means that the asker has gone away, here and below.
            let _ = reply.send(Err(QueueError::TooManyGpus { asked: job.spec.gpus, slots: self.slots.count() }));
            return;
        }
        let entry = Entry {
            state: job.state,
            busy: false,
            gpus: job.spec.gpus,
            priority: job.spec.priority,
            attempt: job.attempt,
            rank: self.take_rank(),
            stop_target: None,
            profile: job.spec.profile.as_deref().map(Arc::from),
            terms: (!job.spec.terms.are_none()).then(|| Box::new(job.spec.terms.clone())),
        };
        let (id, rank, store) = (job.id, entry.rank, self.store.clone());
        self.submitting.insert(id);
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![Change::Submit(Box::new(NewJob { job, rank, body }))]).await;
            Done::Submitted { entry, id, result, reply }
        }));
    }

    fn submitted(
        &mut self,
        entry: Entry,
        id: JobId,
        result: Result<(), StoreError>,
        reply: oneshot::Sender<Result<Standing, QueueError>>,
    ) {
        self.submitting.remove(&id);
        let answer = result.map_err(QueueError::from).map(|()| {
            self.enter(id, entry);
            self.standing(id)
        });
        let _ = reply.send(answer);
        self.resume_operations(id);
    }

    /// Puts a job that is queued or held where it belongs.
    pub(super) fn enter(&mut self, id: JobId, entry: Entry) {
        match entry.state {
            State::Queued => drop(self.line.insert(entry.place(id), entry.gpus)),
            State::Held => self.held += 1,
            _ => {}
        }
        self.jobs.insert(id, entry);
    }

    /// Changes the state of a job in memory, and the line and the count of held jobs with it.
    pub(super) fn set_state(&mut self, id: JobId, to: State) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let from = std::mem::replace(&mut entry.state, to);
        debug_assert!(from == to || from.may_become(to), "{from} to {to}");
        let (place, gpus) = (entry.place(id), entry.gpus);
        match from {
            State::Queued => drop(self.line.remove(place, gpus)),
            State::Held => self.held -= 1,
            _ => {}
        }
        match to {
            State::Queued => drop(self.line.insert(place, gpus)),
            State::Held => self.held += 1,
            _ => {}
        }
        if to.has_ended() {
            self.jobs.remove(&id);
        }
    }

    /// A rank behind all others.
    pub(super) fn take_rank(&mut self) -> i64 {
        // Room between neighbours, for jobs that are moved there.
        self.next_rank += 1 << 20;
        self.next_rank
    }

    fn set_mode(&mut self, mode: Mode, by: String, reply: oneshot::Sender<Result<(), QueueError>>) {
        let store = self.store.clone();
        let change = Change::Mode { mode, at: Time::now(), by };
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![change]).await;
            Done::ModeSet { mode, result, reply }
        }));
    }

    fn mode_set(&mut self, mode: Mode, result: Result<(), StoreError>, reply: oneshot::Sender<Result<(), QueueError>>) {
        match result {
            Ok(()) => {
                self.mode = mode;
                // Answered by `schedule`, once nothing is armed that the mode forbids.
                self.mode_replies.push(reply);
            }
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    /// The end of a launch's log: enough for the last lines of a traceback.
    pub(super) fn log_tail(&self, job: JobId, launch: LaunchId) -> Vec<u8> {
        let path = taxiway_launcher::log::path(&self.jobs_dir, job, launch);
        taxiway_launcher::log::tail(&path, 64 << 10).unwrap_or_else(|error| {
            tracing::warn!(%job, %error, log = %path.display(), "could not read the end of a log");
            Vec::new()
        })
    }

    fn summary(&self) -> Summary {
        let mut running: Vec<(u64, JobId)> = self.live.values().map(|live| (live.order, live.job)).collect();
        running.sort_unstable();
        Summary {
            mode: self.mode,
            running: running.into_iter().map(|(_, job)| job).collect(),
            queued: self.line.len(),
            held: self.held,
        }
    }
}

/// Waits until then, or for ever.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
