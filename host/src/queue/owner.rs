//! The task that owns the queue.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use taxiway_job::{
    Entry, Failure, Job, JobId, Jobs, LaunchId, Progress, Reason, Shift, State, StopTarget, Time, Verdict,
};
use taxiway_launcher::Launcher;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arm::Armed;
use super::count::{Count, Uncounted};
use super::gpus::{Gpus, Watch};
use super::handle::{
    Command, Mode, Operation, Queue, QueueError, Standing, Submission, Summary, Verb, WAITING_COMMANDS,
};
use super::pace::Pace;
use super::pause::Pauses;
use super::slots::{SlotGpu, Slots, Taken};
use crate::alarm::Alarm;
use crate::gpu::{Fault, Looked, Measured, Missing, Released};
use crate::store::{Change, JobTexts, NewDelivery, NewJob, NextAttempt, Store, StoreError};

/// What the queue needs of plugins.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Whether any plugin judges jobs of this profile just before their start.
    fn judges_launch(&self, profile: Option<&str>) -> bool;

    /// Another number whenever other plugins are in force than before.
    fn generation(&self) -> u64;

    /// Has the plugins judge a job that is about to start on these GPUs (none on a virtual slot). Tells what each of them said
    /// as well.
    async fn judge_launch(&self, job: &Job, gpu_uuids: &[String]) -> (LaunchVerdict, Vec<Verdict>);

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
    /// It cannot be told just now, because its GPUs cannot be looked at or a plugin not be asked: it is asked again later.
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
    /// Where they judge: what they take time for is nothing that the queue's own thread should do.
    pub beside: Handle,
    /// Free bytes in the filesystem of `jobs_dir` below which nothing is armed.
    pub min_free_disk: u64,
    /// The slots: GPUs, or virtual ones.
    pub slots: Vec<SlotGpu>,
    /// GPUs that are there and cannot be read: they are counted again.
    pub missing: Vec<Missing>,
    /// Who looks at GPUs.
    pub gpus: Arc<dyn Gpus>,
    /// What is found wrong with GPUs while launches hold them.
    pub faults: mpsc::Receiver<Vec<Fault>>,
    /// How many jobs without GPUs may run at once.
    pub cpu_slots: usize,
    /// The mode to start in; none for the one it had last.
    pub mode: Option<Mode>,
    /// Cancelled when a drained queue has nothing left to do.
    pub drained: CancellationToken,
}

/// Reads what the store knows, takes over what still runs, and starts the owner on the runtime that this is called on. Its task ends
/// when every handle is gone.
///
/// # Errors
/// When the store cannot be read, or there is no timer to be had.
pub async fn start(options: Options) -> Result<(Queue, JoinHandle<()>), StartError> {
    let alarm = Alarm::new().map_err(StartError::Alarm)?;
    let (commands, waiting) = mpsc::channel(WAITING_COMMANDS);
    let Options {
        store,
        launcher,
        events,
        jobs_dir,
        min_free_disk,
        boot_id,
        hooks,
        beside,
        slots,
        missing,
        gpus,
        faults,
        cpu_slots,
        mode,
        drained,
    } = options;
    let mut owner = Owner {
        boot_id,
        mode: Mode::Run,
        jobs: Jobs::default(),
        submitting: HashSet::new(),
        in_vain: Vec::new(),
        reranking: false,
        to_rerank: VecDeque::new(),
        slots: Slots::new(slots, cpu_slots),
        uncounted: Uncounted::of(missing),
        watch: Watch::default(),
        gpus,
        armed: Vec::new(),
        pauses: Pauses::default(),
        pace: Pace::default(),
        live: HashMap::new(),
        recovering: HashMap::new(),
        silent: HashMap::new(),
        strangers: HashMap::new(),
        jobs_dir,
        min_free_disk,
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
        beside,
    };
    owner.load(mode).await?;
    let task = tokio::spawn(owner.run(waiting, events, faults, alarm));
    Ok((Queue { commands, revisions: None }, task))
}

/// The queue cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is stored of it cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no timer for jobs that wait for a time.
    #[error("could not make a timer for jobs that wait for a time: {0}; check the limit of open files (`ulimit -n`)")]
    Alarm(std::io::Error),
}

/// Submissions that are taken in or answered in one turn: what ends a job waits no longer than these take, a few microseconds each.
const SUBMISSIONS_A_TURN: usize = 64;

pub(super) struct Owner {
    pub(super) store: Store,
    pub(super) launcher: Arc<dyn Launcher>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) beside: Handle,
    pub(super) boot_id: String,
    pub(super) mode: Mode,
    /// Every job that has not ended, and their order.
    pub(super) jobs: Jobs,
    /// Jobs that are being stored: others may see them there before the answer comes.
    pub(super) submitting: HashSet<JobId>,
    /// Jobs that wait in vain for this job, which ended like this.
    pub(super) in_vain: Vec<(JobId, Verb)>,
    /// A place in the line is being written that was chosen by its neighbours.
    pub(super) reranking: bool,
    /// Operations that wait to choose theirs.
    pub(super) to_rerank: VecDeque<Reranking>,
    pub(super) slots: Slots,
    /// What is missing among them, while some GPUs cannot be counted.
    pub(super) uncounted: Option<Uncounted>,
    /// When slots are looked at again that somebody waits for.
    pub(super) watch: Watch,
    pub(super) gpus: Arc<dyn Gpus>,
    /// The next in line of each lane, on its way to a shim that is ready.
    pub(super) armed: Vec<Armed>,
    /// Arming failed for reasons that are not the jobs': when to try again, and why it failed.
    pub(super) pauses: Pauses,
    /// How far ahead of the line launches are armed.
    pub(super) pace: Pace,
    /// Launches that were told to start.
    pub(super) live: HashMap<LaunchId, Live>,
    /// Armed launches of the previous service that are not settled, and whose they are.
    pub(super) recovering: HashMap<LaunchId, JobId>,
    /// Jobs whose shims do not answer, before their start is known of, and what these do not do.
    pub(super) silent: HashMap<JobId, String>,
    /// Launches that go on and that the store knows nothing of.
    pub(super) strangers: HashMap<LaunchId, super::recover::Stranger>,
    /// Where logs are.
    pub(super) jobs_dir: PathBuf,
    /// Free bytes there below which nothing is armed.
    pub(super) min_free_disk: u64,
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

/// A launch that was told to start, until all its processes are gone.
pub(super) struct Live {
    pub(super) job: JobId,
    pub(super) order: u64,
    pub(super) taken: Taken,
    /// When its process began, once that is known.
    pub(super) started_at: Option<Time>,
    /// The same on the clock of its time limit.
    pub(super) begun: Option<taxiway_launcher::Instant>,
    /// The last it said of how far it is.
    pub(super) said: Option<Progress>,
    pub(super) said_at: Option<Time>,
    /// The same with an estimate of its end.
    pub(super) progress: Option<Progress>,
    pub(super) sampler: super::samples::Sampler,
    /// Why its shim counts as silent, if it does.
    pub(super) unresponsive: Option<String>,
    /// A change of its time limit of which its shim has yet to say that it holds.
    pub(super) extending: Option<super::change::Extending>,
    /// Its processes that survive SIGKILL; its slot stays taken until they are gone.
    pub(super) unkillable: Vec<i32>,
    /// Its end, known before the answer to a stop that is being written.
    pub(super) end: Option<super::run::Ending>,
    /// It is over, and its GPUs were read or are being read.
    pub(super) released: bool,
    /// What it used of its GPUs, once they were read.
    pub(super) measured: Option<Measured>,
}

/// Answers somebody, with whether the facts of the turn became durable.
pub(super) type Answering = Box<dyn FnOnce(Result<(), QueueError>) + Send>;

/// What waits for the facts of a turn to be durable.
#[derive(Default)]
pub(super) struct Then {
    /// Launches of which nothing more is to be known then: their shims may leave.
    pub(super) confirm: Vec<LaunchId>,
    /// Answers, with whether it worked.
    pub(super) answers: Vec<Answering>,
    /// Askers of a mode that is in force.
    pub(super) mode_replies: Vec<oneshot::Sender<Result<(), QueueError>>>,
    /// Nothing is left to be done by a drained queue.
    pub(super) drained: bool,
}

impl Then {
    fn is_empty(&self) -> bool {
        self.confirm.is_empty() && self.answers.is_empty() && self.mode_replies.is_empty() && !self.drained
    }
}

/// Something that was waited for.
pub(super) enum Done {
    /// A submission was answered.
    Submitted {
        entries: Vec<(JobId, Entry)>,
        result: Result<(), StoreError>,
        reply: oneshot::Sender<Result<Vec<Standing>, QueueError>>,
    },
    /// A job that had ended waits again, and these have made room for it.
    Returned { operation: Operation, entry: Box<Entry>, neighbours: Vec<Shift>, result: Result<(), StoreError> },
    /// A job was changed, and perhaps held.
    Edited { operation: Operation, job: Arc<Job>, held: bool, result: Result<(), StoreError> },
    /// A time limit was changed.
    Limited { operation: Operation, from: Option<Duration>, to: Option<Duration>, result: Result<(), StoreError> },
    /// A job was moved in the line, and perhaps released.
    Reranked { operation: Operation, shifts: Vec<Shift>, result: Result<(), StoreError> },
    /// How the jobs have ended that these jobs come after.
    Predecessors {
        jobs: Vec<JobId>,
        waiting: Vec<JobId>,
        asker: Asker,
        ends: Result<HashMap<JobId, State>, StoreError>,
    },
    /// A job without processes was moved to another state.
    Moved { operation: Operation, to: State, result: Result<(), StoreError> },
    /// A stop was stored.
    Stopped { operation: Operation, target: StopTarget, result: Result<(), StoreError> },
    /// The state of a job that the queue does not know.
    Looked { operation: Operation, found: Result<Option<Box<Job>>, StoreError> },
    /// The mode was stored.
    ModeSet { mode: Mode, result: Result<(), StoreError>, reply: oneshot::Sender<Result<(), QueueError>> },
    /// The next in line was read and judged.
    Planned { launch: LaunchId, planned: super::arm::Planned },
    /// The intent to start it is durable, or not.
    Intended { launch: LaunchId, result: Result<(), StoreError> },
    /// A verdict at launch was stored.
    Refused { job: JobId, to: State, next: Option<NextAttempt>, result: Result<(), StoreError> },
    /// The slots of a launch that is ready were looked at.
    LookedBeforeStart { launch: LaunchId, looked: Looked },
    /// Slots that somebody waits for were looked at.
    LookedAgain { looked: Looked },
    /// The GPUs were counted once more.
    Counted { count: Count },
    /// The GPUs of a launch that is over were read.
    Released { launch: LaunchId, ending: super::run::Ending, released: Released, took: Duration },
    /// The end of a quarantine was stored.
    Mended { uuid: String, result: Result<(), StoreError>, reply: oneshot::Sender<Result<(), QueueError>> },
    /// Facts are durable, or were refused.
    Recorded { then: Then, result: Result<(), StoreError> },
}

/// What chooses a place in the line by its neighbours.
pub(super) enum Reranking {
    /// A job that is queued, or held.
    Waiting(Operation),
    /// A job that has ended and begins another attempt at the front.
    Ended(Operation, Box<Job>),
}

/// Who waits for a job to be in line.
pub(super) enum Asker {
    Submission(oneshot::Sender<Result<Vec<Standing>, QueueError>>),
    Operation(Operation),
}

impl Owner {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<taxiway_launcher::Event>,
        mut faults: mpsc::Receiver<Vec<Fault>>,
        mut alarm: Alarm,
    ) {
        let mut committing = self.store.committing();
        self.turn().await;
        loop {
            let rest = self.pauses.next_end();
            let count = self.next_count();
            alarm.set(self.jobs.next_alarm());
            tokio::select! {
                biased;
                Some(event) = events.recv() => {
                    self.launcher_event(event);
                    // What was said at once is dealt with and written at once: the start of a short job with its end.
                    for _ in 0..events.len() {
                        let Ok(event) = events.try_recv() else { break };
                        self.launcher_event(event);
                    }
                }
                Some(done) = self.work.next() => self.all_done(done),
                Some(found) = faults.recv() => found.iter().for_each(|fault| self.fault(fault)),
                () = until(self.watch.next) => self.look_again(),
                () = until(count) => self.count_again(),
                command = commands.recv() => match command {
                    Some(command) => self.commands(command, &mut commands),
                    // Every handle is gone: the service ends. What runs goes on under its shims.
                    None => return,
                },
                // An error means that the writer has stopped: the service ends.
                Ok(()) = committing.changed() => {}
                () = until(rest) => self.pauses.end(),
                () = alarm.rung() => self.jobs.ring(Time::now()),
            }
            self.turn().await;
        }
    }

    /// What follows from any input: starts, arming, and the writing of facts.
    async fn turn(&mut self) {
        self.give_up_in_vain();
        self.schedule();
        self.slots.forget_found();
        let (changes, then) = (std::mem::take(&mut self.owed), std::mem::take(&mut self.then));
        if changes.is_empty() {
            return self.recorded(then, Ok(()));
        }
        // Whether a job runs nobody has to know before the next thing happens: the launch protocol finds out by itself.
        let can_wait = |change: &Change| matches!(change, Change::Running { .. } | Change::Progress { .. });
        let sent = match then.is_empty() && changes.iter().all(can_wait) {
            true => self.store.record_soon(changes).await,
            false => self.store.record(changes).await,
        };
        match sent {
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

    /// Ends the jobs that wait in vain, and those that so do in turn.
    pub(super) fn give_up_in_vain(&mut self) {
        while let Some((id, verb)) = self.in_vain.pop() {
            let (reply, _) = oneshot::channel();
            self.operate(Operation { id, verb, by: "taxiway".into(), revisions: None, reply });
        }
    }

    fn recorded(&self, then: Then, result: Result<(), StoreError>) {
        if result.is_ok() {
            // Other shims fsync their records, and are found again at the next start.
            for launch in then.confirm {
                self.launcher.confirm(launch);
            }
        }
        for answer in then.answers {
            answer(result.clone().map_err(QueueError::from));
        }
        for reply in then.mode_replies {
            // An error means that the asker has gone away.
            let _ = reply.send(result.clone().map_err(QueueError::from));
        }
        if then.drained {
            self.drained.cancel();
        }
    }

    /// A command and those that wait behind it, up to the first that is no submission: nothing of what a turn does has to come
    /// between submissions, and under load a turn for each would cost as much as all the rest.
    fn commands(&mut self, first: Command, waiting: &mut mpsc::Receiver<Command>) {
        let mut next = Some(first);
        for _ in 0..SUBMISSIONS_A_TURN {
            let Some(command) = next.take() else { return };
            let is_submission = matches!(command, Command::Submit { .. });
            self.command(command);
            if !is_submission {
                return;
            }
            // An error means that none waits, or that the last handle is gone, which the next turn finds.
            next = waiting.try_recv().ok();
        }
        if let Some(command) = next {
            self.command(command);
        }
    }

    /// The same with what was waited for: submissions are stored together, and answered together.
    fn all_done(&mut self, first: Done) {
        let mut next = Some(first);
        for _ in 0..SUBMISSIONS_A_TURN {
            let Some(done) = next.take() else { return };
            let is_submission = matches!(done, Done::Submitted { .. });
            self.done(done);
            if !is_submission {
                return;
            }
            next = self.work.next().now_or_never().flatten();
        }
        if let Some(done) = next {
            self.done(done);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit { submission, texts, reply } => self.submit(submission, texts, reply),
            Command::Operate(operation) => self.operate(operation),
            Command::SetMode { mode, by, reply } => self.set_mode(mode, by, reply),
            // An error in an answer means that the asker has gone away.
            Command::Standing { ids, reply } => {
                let candidates = self.candidates();
                drop(reply.send(ids.into_iter().map(|id| self.standing(id, &candidates)).collect()));
            }
            Command::Summary { reply } => drop(reply.send(self.summary())),
            Command::Outlook { id, reply } => drop(reply.send(self.outlook(id))),
            Command::Slots { reply } => drop(reply.send(self.slot_standings())),
            Command::Mend { uuid, by, reply } => self.mend(uuid, by, reply),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Submitted { entries, result, reply } => self.submitted(entries, result, reply),
            Done::Returned { operation, entry, neighbours, result } => {
                self.returned(operation, *entry, &neighbours, result);
            }
            Done::Edited { operation, job, held, result } => self.edited(operation, &job, held, result),
            Done::Limited { operation, from, to, result } => self.limited(operation, from, to, result),
            Done::Reranked { operation, shifts, result } => self.reranked(operation, &shifts, result),
            Done::Predecessors { jobs, waiting, asker, ends } => {
                self.predecessors_looked_at(&jobs, &waiting, asker, ends);
            }
            Done::Moved { operation, to, result } => self.moved(operation, to, result),
            Done::Stopped { operation, target, result } => self.stopped(operation, target, result),
            Done::Looked { operation, found } => self.looked(operation, found),
            Done::ModeSet { mode, result, reply } => self.mode_set(mode, result, reply),
            Done::Planned { launch, planned } => self.planned(launch, planned),
            Done::Intended { launch, result } => self.intended(launch, result),
            Done::Refused { job, to, next, result } => self.refused(job, to, next, result),
            Done::LookedBeforeStart { launch, looked } => self.looked_before_start(launch, looked),
            Done::LookedAgain { looked } => self.looked_again(looked),
            Done::Counted { count } => self.counted(count),
            Done::Released { launch, ending, released, took } => self.released(launch, ending, released, took),
            Done::Mended { uuid, result, reply } => self.mended(&uuid, result, reply),
            Done::Recorded { then, result } => self.recorded(then, result),
        }
    }

    fn submit(
        &mut self,
        submission: Submission,
        texts: Vec<JobTexts>,
        reply: oneshot::Sender<Result<Vec<Standing>, QueueError>>,
    ) {
        let Submission { jobs, body, key } = submission;
        if let Some(error) = jobs.iter().find_map(|job| self.asks_too_much(job)) {
            // An error means that the asker has gone away, here and below.
            let _ = reply.send(Err(error));
            return;
        }
        let mut entries = Vec::with_capacity(jobs.len());
        let mut changes = Vec::with_capacity(jobs.len() + 1);
        for (job, texts) in jobs.into_iter().zip(texts) {
            let rank = self.jobs.take_rank();
            self.submitting.insert(job.id);
            entries.push((job.id, entry_of(&job, rank)));
            changes.push(Change::Submit(Box::new(NewJob { job, texts, rank, body })));
        }
        changes.extend(key.map(|key| Change::Remember(Box::new(key))));
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(changes).await;
            Done::Submitted { entries, result, reply }
        }));
    }

    fn submitted(
        &mut self,
        entries: Vec<(JobId, Entry)>,
        result: Result<(), StoreError>,
        reply: oneshot::Sender<Result<Vec<Standing>, QueueError>>,
    ) {
        let ids: Vec<JobId> = entries.iter().map(|(id, _)| *id).collect();
        for id in &ids {
            self.submitting.remove(id);
        }
        match result {
            Ok(()) => {
                let now = Time::now();
                for (id, entry) in entries {
                    self.jobs.enter(id, entry, now);
                    self.check_gpus(id);
                }
                // Once all are in line: each stands where the others have left it.
                self.look_at_predecessors(ids, Asker::Submission(reply));
            }
            Err(error) => {
                let _ = reply.send(Err(error.into()));
                for id in ids {
                    self.resume_operations(id);
                }
            }
        }
    }

    /// Changes the state of a job in memory, and the line with it.
    pub(super) fn set_state(&mut self, id: JobId, to: State) {
        let in_vain = self.jobs.set_state(id, to);
        self.in_vain.extend(in_vain.into_iter().map(|job| (job, Verb::InVain(id, to))));
        // What failed while it ran counts when it waits again.
        if matches!(to, State::Queued | State::Held)
            && let Some((because, end)) = self.jobs.in_vain(id)
        {
            self.in_vain.push((id, Verb::InVain(because, end)));
        }
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
            queued: self.jobs.line().len(),
            held: self.jobs.held(),
        }
    }
}

/// A job as the queue keeps it.
pub(super) fn entry_of(job: &Job, rank: i64) -> Entry {
    let terms = (!job.spec.terms.are_none()).then(|| Box::new(job.spec.terms.clone()));
    let mut entry = Entry::new(job.state, job.spec.gpus, job.spec.priority, rank, terms);
    entry.attempt = job.attempt;
    entry.revision = job.revision;
    entry.profile = job.spec.profile.as_deref().map(Arc::from);
    entry
}

/// Waits until then, or for ever.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
