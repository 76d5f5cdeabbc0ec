//! What the rest of the service may ask of the queue.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use taxiway_job::{Job, JobId, Progress, Reason, State, Target, Time};
use tokio::sync::{mpsc, oneshot};

use super::gpus::SlotStanding;
use crate::store::{BodyHash, JobTexts, NewKey, StoreError};

/// Commands that may wait for the owner: enough for every connection to have one, and a bound all the same.
pub(super) const WAITING_COMMANDS: usize = 1024;

/// A handle to the queue. Clones share it.
#[derive(Clone)]
pub struct Queue {
    pub(super) commands: mpsc::Sender<Command>,
    /// What operations are meant for.
    pub(super) revisions: Option<Arc<[u32]>>,
}

/// Whether the queue starts jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Jobs start as slots become free.
    Run,
    /// What runs goes on; nothing starts.
    Paused,
    /// What runs goes on, nothing starts, and the service ends when nothing runs any more.
    Draining,
}

impl Mode {
    /// Its name in lower case, as the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Paused => "paused",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a job stands at this moment, as far as only the queue knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// From 1; none for what is not queued.
    pub position: Option<usize>,
    /// Why it waits.
    pub reason: Option<Reason>,
    /// The last it said of how far it is.
    pub progress: Option<Progress>,
}

impl Standing {
    /// Why a job is where it is that is stored like this: what the queue says, else what the store does. The two are read one after
    /// the other, so that of a job that is stored as queued the queue may know nothing yet, or know more already.
    #[must_use]
    pub fn reason_of<'a>(&'a self, job: &'a Job) -> Option<Cow<'a, Reason>> {
        let known = self.reason.as_ref().or(job.reason.as_ref()).map(Cow::Borrowed);
        let in_between = || {
            let message = "it is just entering the line, or leaving it: the next look says more";
            Cow::Owned(Reason::new("in_between", message))
        };
        known.or_else(|| (job.state == State::Queued).then(in_between))
    }
}

/// The queue in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Whether it starts jobs.
    pub mode: Mode,
    /// Jobs that are pending, running or cancelling, in the order of their start.
    pub running: Vec<JobId>,
    /// How many are queued.
    pub queued: usize,
    /// How many are held.
    pub held: usize,
}

/// A job that holds slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The job.
    pub job: JobId,
    /// When it last said how far it is: what it said it had left then has become less.
    pub said_at: Option<Time>,
}

/// What stands between a queued job and its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Slots that it may get, now or later.
    pub slots: usize,
    /// How many of them it needs.
    pub needs: usize,
    /// Jobs that hold some, and how many; no job where nobody can tell when these are free.
    pub running: Vec<(Option<Holder>, usize)>,
    /// Jobs that start before it, in their order, and how many they need.
    pub ahead: Vec<(JobId, usize)>,
    /// It starts no earlier than this.
    pub not_before: Option<Time>,
}

/// What is to be done to a job.
#[derive(Debug, Clone)]
pub(super) enum Verb {
    Cancel,
    Hold,
    Release,
    Requeue {
        hold: bool,
    },
    Retry,
    /// To the front, from wherever it is without running.
    ForceStart,
    Move(Target),
    /// What it is from now on, if it is still at the revision that it has there; and why it is held from now on, if it is.
    Edit {
        job: Arc<Job>,
        hold: Option<Reason>,
    },
    /// The time limit of a job that runs: the one it has, and another.
    Limit {
        from: Option<Duration>,
        to: Option<Duration>,
    },
    /// The queue's own: this job, which it comes after, has ended otherwise than it should have.
    InVain(JobId, State),
}

impl Verb {
    /// Whether its job gets a place in the line that is chosen by its neighbours.
    pub(super) fn chooses_a_place(&self) -> bool {
        matches!(self, Self::Move(_) | Self::ForceStart)
    }

    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Requeue { .. } => "requeue",
            Self::Retry => "retry",
            Self::ForceStart => "force-start",
            Self::Move(_) => "move",
            Self::Edit { .. } => "edit",
            Self::Limit { .. } => "edit",
            Self::InVain(..) => "give up",
        }
    }
}

/// Jobs that are submitted together: all of them are stored, or none.
#[derive(Debug)]
pub struct Submission {
    /// The jobs, each `queued` or `held`, in the order in which they stand in line.
    pub jobs: Vec<Arc<Job>>,
    /// Tells whether a repeated request was the same one.
    pub body: BodyHash,
    /// Stored with them, so that neither is there without the other.
    pub key: Option<NewKey>,
}

/// One message to the owner.
pub(super) enum Command {
    Submit { submission: Submission, texts: Vec<JobTexts>, reply: oneshot::Sender<Result<Vec<Standing>, QueueError>> },
    Operate(Operation),
    SetMode { mode: Mode, by: String, reply: oneshot::Sender<Result<(), QueueError>> },
    Standing { ids: Vec<JobId>, reply: oneshot::Sender<Vec<Standing>> },
    Summary { reply: oneshot::Sender<Summary> },
    Outlook { id: JobId, reply: oneshot::Sender<Option<Outlook>> },
    Slots { reply: oneshot::Sender<Vec<SlotStanding>> },
    Mend { uuid: String, by: String, reply: oneshot::Sender<Result<(), QueueError>> },
}

/// A verb on its way.
pub(super) struct Operation {
    pub(super) id: JobId,
    pub(super) verb: Verb,
    pub(super) by: String,
    /// The revisions of the job for one of which it is meant; none: for any.
    pub(super) revisions: Option<Arc<[u32]>>,
    pub(super) reply: oneshot::Sender<Result<State, QueueError>>,
}

impl Operation {
    /// Whether it is meant for the job as it is.
    pub(super) fn is_meant_for(&self, revision: u32) -> bool {
        self.revisions.as_ref().is_none_or(|revisions| revisions.contains(&revision))
    }

    pub(super) fn answer(self, result: Result<State, QueueError>) {
        // An error means that the asker has gone away; what was done stays done.
        let _ = self.reply.send(result);
    }
}

/// The queue cannot do it; nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// No job has this id.
    #[error("there is no job {0}")]
    NotFound(JobId),
    /// The job's state forbids it.
    #[error("cannot {verb} job {id}: it is {state}{}", hint(verb, *state))]
    Illegal {
        /// Which job.
        id: JobId,
        /// Its state.
        state: State,
        /// What was asked.
        verb: &'static str,
    },
    /// Somebody has edited it since it was read.
    #[error("job {0} was changed since it was read; read it again and repeat the change")]
    Changed(JobId),
    /// Its time limit has run out: another one comes too late.
    #[error("the time limit of job {0} has run out and it is being stopped: it cannot be changed any more")]
    TimeIsUp(JobId),
    /// It is to be moved before a job that is not in line.
    #[error("there is no job {0} in line; only a queued job has others before it")]
    NotInLine(JobId),
    /// It comes after itself.
    #[error("job {0} would come after itself: of the jobs in its `after` and `after_any`, one comes after it")]
    Circle(JobId),
    /// It wants more GPUs than there are.
    #[error("the job asks for {asked} GPUs and this machine has {slots} that the queue may use")]
    TooManyGpus {
        /// GPUs asked for.
        asked: u32,
        /// GPUs there are.
        slots: usize,
    },
    /// What became of its launch is not known yet.
    #[error("job {id} cannot be changed just now: {why}; the same request will work once that is over")]
    Unresponsive {
        /// Which job.
        id: JobId,
        /// What its shim does not do.
        why: String,
    },
    /// No GPU has this UUID.
    #[error("the queue has no GPU {0}; `taxiway gpus` lists those it has")]
    UnknownGpu(String),
    /// Its GPU is in quarantine for what nobody can say is mended.
    #[error("{0}; it is used again when the last of them is gone")]
    Unkillable(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service is stopping.
    #[error("the service is stopping; the same request will work when it is back")]
    Stopping,
}

fn hint(verb: &str, state: State) -> &'static str {
    match (verb, state) {
        ("hold", state) if state.is_live() => "; `requeue` with `hold` stops a running job gracefully and holds it",
        ("edit", State::Pending | State::Running) => "; only `time_limit` of a running job can be changed",
        ("release", state) if !state.has_ended() => "; only held jobs can be released",
        ("requeue", State::Held) => "; `release` puts it back into the line",
        ("retry", state) if !state.has_ended() => "; only a job that has ended can be retried",
        ("remove", state) if !state.has_ended() => "; only a job that has ended can be removed, and `cancel` ends it",
        ("move", state) if !state.has_ended() => "; only queued jobs have a place in the line",
        ("retry", _) => "",
        (_, state) if state.has_ended() => "; it has ended, and `retry` begins another attempt",
        _ => "",
    }
}

impl Queue {
    /// The same queue, whose operations on a job are refused ([`QueueError::Changed`]) unless it is at one of these revisions
    /// when its turn comes; none: at any.
    #[must_use]
    pub fn at(&self, revisions: Option<&[u32]>) -> Self {
        Self { commands: self.commands.clone(), revisions: revisions.map(Arc::from) }
    }

    /// Takes a job whose state is `queued` or `held`. It is durable when this returns.
    ///
    /// # Errors
    /// When it asks for more GPUs than there are, or the store refuses it.
    pub async fn submit(&self, job: Arc<Job>, body: BodyHash) -> Result<Standing, QueueError> {
        let standings = self.submit_all(Submission { jobs: vec![job], body, key: None }).await?;
        Ok(standings.into_iter().next().unwrap_or_default())
    }

    /// The same for jobs that are submitted together. All are durable when this returns; it answers how each stands.
    ///
    /// # Errors
    /// When one of them asks for more GPUs than there are, or the store refuses one; then none is stored.
    pub async fn submit_all(&self, submission: Submission) -> Result<Vec<Standing>, QueueError> {
        // Here, in the task of whoever submits: owner and writer are one for all.
        let texts = submission.jobs.iter().map(|job| JobTexts::of(job)).collect::<Result<_, _>>()?;
        self.ask(|reply| Command::Submit { submission, texts, reply }).await?
    }

    /// Cancels a job. A job without processes is `cancelled` when this returns, one with processes `cancelling`; the order is
    /// durable in both cases. Cancelling twice is fine.
    ///
    /// # Errors
    /// When there is no such job, or it has ended otherwise.
    pub async fn cancel(&self, id: JobId, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Cancel, by).await
    }

    /// Takes a queued job out of the line until it is released.
    ///
    /// # Errors
    /// When there is no such job, or it is not queued.
    pub async fn hold(&self, id: JobId, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Hold, by).await
    }

    /// Puts a held job back into the line, at the place it had.
    ///
    /// # Errors
    /// When there is no such job, or it is not held.
    pub async fn release(&self, id: JobId, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Release, by).await
    }

    /// Puts a job back into the line, at the back of its priority, or with `hold` out of it. What runs is stopped gracefully
    /// first: it is `cancelling` when this returns.
    ///
    /// # Errors
    /// When there is no such job, or it has ended or is being cancelled.
    pub async fn requeue(&self, id: JobId, hold: bool, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Requeue { hold }, by).await
    }

    /// Has a job that has ended make another attempt, at the back of its priority.
    ///
    /// # Errors
    /// When there is no such job, or it has not ended.
    pub async fn retry(&self, id: JobId, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Retry, by).await
    }

    /// Puts a job that does not run at the front of the line, whether it is queued, held, or has failed or been cancelled.
    ///
    /// # Errors
    /// When there is no such job, or it runs or has completed.
    pub async fn force_start(&self, id: JobId, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::ForceStart, by).await
    }

    /// Moves a queued job in the line. It takes the priority of the job that it comes to stand beside.
    ///
    /// # Errors
    /// When there is no such job or target in line.
    pub async fn move_to(&self, id: JobId, target: Target, by: &str) -> Result<State, QueueError> {
        self.operate(id, Verb::Move(target), by).await
    }

    /// Makes a queued or held job what `job` says, if its revision is still that of `job`. With `hold`, one that is queued is
    /// held for that reason from then on.
    ///
    /// # Errors
    /// When there is no such job, its state forbids it, or somebody else was faster.
    pub async fn edit(&self, job: Arc<Job>, hold: Option<Reason>, by: &str) -> Result<State, QueueError> {
        self.operate(job.id, Verb::Edit { job, hold }, by).await
    }

    /// Changes the time limit of a job that runs from the one that it has.
    ///
    /// # Errors
    /// When there is no such job, it does not run, or the limit that it has has run out.
    pub async fn set_time_limit(
        &self,
        id: JobId,
        from: Option<Duration>,
        to: Option<Duration>,
        by: &str,
    ) -> Result<State, QueueError> {
        self.operate(id, Verb::Limit { from, to }, by).await
    }

    /// Starts nothing more; what runs goes on.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn pause(&self, by: &str) -> Result<(), QueueError> {
        self.set_mode(Mode::Paused, by).await
    }

    /// Starts jobs again.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn resume(&self, by: &str) -> Result<(), QueueError> {
        self.set_mode(Mode::Run, by).await
    }

    /// Starts nothing more, and ends the service when nothing runs any more; it starts paused the next time.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn drain(&self, by: &str) -> Result<(), QueueError> {
        self.set_mode(Mode::Draining, by).await
    }

    /// How these jobs stand, in the order of the ids. What is not known here has an empty standing.
    pub async fn standing(&self, ids: Vec<JobId>) -> Vec<Standing> {
        let asked = ids.len();
        let answer = self.ask(|reply| Command::Standing { ids, reply }).await;
        answer.unwrap_or_else(|_| vec![Standing::default(); asked])
    }

    /// How every slot stands.
    ///
    /// # Errors
    /// When the service is stopping.
    pub async fn slots(&self) -> Result<Vec<SlotStanding>, QueueError> {
        self.ask(|reply| Command::Slots { reply }).await
    }

    /// A GPU in quarantine is mended: jobs may start there again.
    ///
    /// # Errors
    /// When there is no such GPU, when its job has processes that survive SIGKILL, or the store refuses.
    pub async fn mend(&self, uuid: &str, by: &str) -> Result<(), QueueError> {
        let (uuid, by) = (uuid.to_owned(), by.to_owned());
        self.ask(|reply| Command::Mend { uuid, by, reply }).await?
    }

    /// The queue in a few numbers.
    ///
    /// # Errors
    /// When the service is stopping.
    pub async fn summary(&self) -> Result<Summary, QueueError> {
        self.ask(|reply| Command::Summary { reply }).await
    }

    /// What stands between a queued job and its start; none when that is not a matter of other jobs and time alone.
    ///
    /// # Errors
    /// When the service is stopping.
    pub async fn outlook(&self, id: JobId) -> Result<Option<Outlook>, QueueError> {
        self.ask(|reply| Command::Outlook { id, reply }).await
    }

    async fn operate(&self, id: JobId, verb: Verb, by: &str) -> Result<State, QueueError> {
        let (by, revisions) = (by.to_owned(), self.revisions.clone());
        self.ask(|reply| Command::Operate(Operation { id, verb, by, revisions, reply })).await?
    }

    async fn set_mode(&self, mode: Mode, by: &str) -> Result<(), QueueError> {
        let by = by.to_owned();
        self.ask(|reply| Command::SetMode { mode, by, reply }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, QueueError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| QueueError::Stopping)?;
        answer.await.map_err(|_| QueueError::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_stored_as_queued_has_a_reason_whatever_the_queue_knows_of_it() {
        let mut job = crate::store::test_job("a", Time::now());
        let code = |job: &Job, standing: &Standing| standing.reason_of(job).map(|reason| reason.code.clone());
        let unknown = Standing::default();
        assert_eq!(code(&job, &unknown).as_deref(), Some("in_between"));
        let behind = Standing { reason: Some(Reason::new("behind", "it is number 2")), ..Standing::default() };
        assert_eq!(code(&job, &behind).as_deref(), Some("behind"));
        job.state = State::Running;
        assert_eq!(code(&job, &unknown), None);
    }
}
