//! What can be written: every change of a job, a delivery or the queue, as one value.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use taxiway_job::{
    Exit, Failure, Handover, Job, JobId, LaunchId, Progress, Reason, Shift, State, StopTarget, Time, Usage, Verdict,
};

use super::{JobTexts, NewKey};

/// One change. A unit of several becomes durable together or not at all; each transition leaves its event.
#[derive(Debug, Clone)]
pub enum Change {
    /// A job was accepted.
    Submit(Box<NewJob>),
    /// A person or a plugin moved a job that has no processes: held, released, or cancelled while it waited.
    Move {
        /// Which.
        job: JobId,
        /// The state it had.
        from: State,
        /// `held`, `queued` or `cancelled`.
        to: State,
        /// Why, where a person should know.
        reason: Option<Reason>,
        /// When.
        at: Time,
        /// Who, for the audit trail.
        by: String,
        /// What they asked for, as the audit trail names it: `cancel`, `requeue` …
        action: &'static str,
        /// One for each completion hook that hears of it; only when it ended.
        deliveries: Vec<NewDelivery>,
    },
    /// A job that had ended waits for another attempt, because somebody asked for it.
    Retry {
        /// Which.
        job: JobId,
        /// The state it had.
        from: State,
        /// Its priority from now on.
        priority: i16,
        /// Its rank from now on.
        rank: i64,
        /// When.
        at: Time,
        /// Who, for the audit trail.
        by: String,
        /// What they asked for, as the audit trail names it: `cancel`, `requeue` …
        action: &'static str,
    },
    /// A job was moved in the line, and neighbours made room for it.
    Rerank {
        /// Which.
        job: JobId,
        /// From where to where; the job's own is the first. One that finds its job elsewhere has no effect.
        shifts: Vec<Shift>,
        /// When.
        at: Time,
        /// Who, for the audit trail.
        by: String,
        /// What they asked for, as the audit trail names it; none when another change of the unit says so.
        action: Option<&'static str>,
    },
    /// A job that is queued or held was changed.
    Edit {
        /// The job as it is from now on. What it has lived through is left as it is stored.
        job: Arc<Job>,
        /// When.
        at: Time,
        /// Who, for the audit trail.
        by: String,
    },
    /// The time limit of a job that runs was changed.
    TimeLimit {
        /// Which.
        job: JobId,
        /// From now on; none: no limit.
        limit: Option<Duration>,
        /// When.
        at: Time,
        /// Who, for the audit trail.
        by: String,
    },
    /// What plugins said of a job that is about to start.
    LaunchVerdicts {
        /// Which.
        job: JobId,
        /// One for each call.
        verdicts: Vec<Verdict>,
    },
    /// The next job in line is about to get a shim: the durable intent.
    Arm {
        /// Which.
        job: JobId,
        /// Its attempt.
        attempt: u32,
        /// The launch's name.
        launch: LaunchId,
        /// This boot of the machine.
        boot_id: String,
    },
    /// A launch was taken back or lost before anything was started; it leaves no history.
    Disarm {
        /// Whose.
        job: JobId,
        /// Which.
        launch: LaunchId,
    },
    /// The shim was told to start the command: the job is `pending`.
    Go {
        /// Which.
        job: JobId,
        /// The launch.
        launch: LaunchId,
        /// The GPUs it gets.
        gpu_uuids: Vec<String>,
        /// When.
        at: Time,
    },
    /// The command runs: the job is `running`, unless it is being stopped already.
    Running {
        /// Which.
        job: JobId,
        /// The launch.
        launch: LaunchId,
        /// The process.
        pid: i32,
        /// Its start time, in clock ticks since boot (proc(5), field 22).
        start_time: u64,
        /// When.
        at: Time,
        /// The hand-over to it, when its slot was given over directly.
        handover: Option<Handover>,
    },
    /// A stop was ordered: the job is `cancelling` until its processes are gone.
    Stop {
        /// Which.
        job: JobId,
        /// Where it goes then.
        target: StopTarget,
        /// When.
        at: Time,
        /// Who.
        by: String,
        /// What they asked for, as the audit trail names it: `cancel`, `requeue` …
        action: &'static str,
    },
    /// The attempt is over: every process is gone.
    End(Box<End>),
    /// Nothing was started although it had been told to: the job waits again with the same attempt, and the launch leaves no
    /// history.
    NotStarted {
        /// Which.
        job: JobId,
        /// The launch.
        launch: LaunchId,
        /// The state it had.
        from: State,
        /// `queued`, or `held` when a requeue says so.
        to: State,
        /// Its rank from now on, when a requeue gives it another.
        rank: Option<i64>,
        /// Why it is where it is.
        reason: Option<Reason>,
        /// When.
        at: Time,
    },
    /// How far a running job is. Best effort: the last one before a crash may be lost.
    Progress {
        /// Which.
        job: JobId,
        /// How far.
        progress: Progress,
        /// When.
        at: Time,
        /// What of it goes into the series of which attempt, when a sample is due.
        sample: Option<(u32, Map<String, Value>)>,
    },
    /// The queue's mode was set.
    Mode {
        /// `run`, `paused` or `draining`.
        mode: crate::queue::Mode,
        /// When.
        at: Time,
        /// Who.
        by: String,
    },
    /// A GPU is kept from jobs until it is mended.
    Quarantine {
        /// Which.
        uuid: String,
        /// What is wrong with it.
        trouble: crate::gpu::Trouble,
        /// This boot of the machine.
        boot_id: String,
        /// The same for people.
        reason: Reason,
        /// When.
        at: Time,
    },
    /// A GPU in quarantine may be used again.
    Mended {
        /// Which.
        uuid: String,
        /// When.
        at: Time,
        /// Who says so; none: NVML does.
        by: Option<String>,
    },
    /// Something about a GPU that subscribers want to hear of.
    GpuNews {
        /// Which.
        uuid: String,
        /// `gpu.blocked`, `gpu.unblocked`, `gpu.not_released`
        kind: &'static str,
        /// Why.
        reason: Option<Reason>,
        /// When.
        at: Time,
    },
    /// A completion hook took its delivery.
    Delivered {
        /// Which.
        delivery: DeliveryId,
        /// When.
        at: Time,
    },
    /// A try failed; another follows.
    DeliveryRetry {
        /// Which.
        delivery: DeliveryId,
        /// When to try again.
        next_at: Time,
        /// Why it failed.
        error: String,
        /// When.
        at: Time,
    },
    /// The last try failed: dead letter.
    DeliveryDead {
        /// Which.
        delivery: DeliveryId,
        /// Why it failed.
        error: String,
        /// When.
        at: Time,
    },
    /// A plugin came into force, failed to, was switched off, or went.
    Plugin {
        /// The event's type: `plugin.in_force` …
        kind: &'static str,
        /// Its members.
        data: Map<String, Value>,
        /// When.
        at: Time,
    },
    /// A person removes a job that has ended. Its files go afterwards.
    Remove {
        /// Which.
        job: JobId,
        /// The revisions of the job for one of which that is meant; none: for any.
        revisions: Option<Vec<u32>>,
        /// When.
        at: Time,
        /// Who.
        by: String,
    },
    /// These ended long ago: nothing is kept of them any more. Their files go afterwards.
    Forget {
        /// Which. Those that have not ended, are not there, or whose end is yet to be told are left as they are.
        jobs: Vec<JobId>,
    },
    /// The files of these jobs, which were removed, are gone.
    FilesGone {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Somebody had removed what was kept long enough.
    Collected {
        /// When.
        at: Time,
        /// Who.
        by: String,
    },
    /// The first events, rows of the audit trail and keys of requests go, a few of each.
    ForgetEvents {
        /// When they were long ago.
        before: Time,
        /// The same for keys.
        keys_before: Time,
    },
    /// Something that the service keeps over restarts.
    Setting {
        /// Its name.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A delivery is to be made once more.
    Redeliver {
        /// Which.
        delivery: DeliveryId,
        /// When.
        at: Time,
        /// Who.
        by: String,
    },
    /// The request that these submissions came with has an Idempotency-Key.
    Remember(Box<NewKey>),
    /// A new access token.
    Token(NewToken),
}

/// A job to be stored, with the request that asked for it.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The job; its state is `queued` or `held`.
    pub job: Arc<Job>,
    /// What its row has as JSON.
    pub texts: JobTexts,
    /// Its rank in the line.
    pub rank: i64,
    /// Tells whether a repeated request was the same one.
    pub body: BodyHash,
}

/// SHA-256 of what a client sent, to tell a repeated request from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash(pub [u8; 32]);

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct End {
    /// Whose.
    pub job: JobId,
    /// The launch; none when it leaves no history. One that failed before it was armed leaves its end there.
    pub launch: Option<LaunchId>,
    /// The state the job had.
    pub from: State,
    /// The state it has now: an ended one, or `queued` or `held` after a requeue.
    pub to: State,
    /// The exit status.
    pub exit: Exit,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Why it is where it is.
    pub reason: Option<Reason>,
    /// What it used.
    pub usage: Option<Usage>,
    /// When its process was started, if one was.
    pub started_at: Option<Time>,
    /// When its process ended.
    pub finished_at: Time,
    /// One for each completion hook that hears of it.
    pub deliveries: Vec<NewDelivery>,
    /// What follows it; none when the job has ended.
    pub next: Option<NextAttempt>,
}

/// The attempt that follows another one without anybody having asked for it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextAttempt {
    /// The job's rank from now on.
    pub rank: i64,
    /// Set when the attempt before it failed: the earliest start of this one.
    pub retry_at: Option<Time>,
    /// Automatic retries, with this one.
    pub retries_done: u32,
}

/// A delivery's id: stable over all its tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(pub uuid::Uuid);

impl std::fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// One completion hook to be told of one end.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// The plugin's name.
    pub plugin: String,
}

/// A delivery as the store keeps it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The plugin's name.
    pub plugin: String,
    /// Whose end it tells of.
    pub job: JobId,
    /// Which attempt's.
    pub attempt: u32,
    /// The end it tells of: `completed`, `failed` or `cancelled`.
    pub end: State,
    /// Whether another attempt follows.
    pub will_retry: bool,
    /// Tries made.
    pub tries: u32,
    /// When the next try is due.
    pub next_at: Time,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// When the end was stored.
    pub created_at: Time,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// To be tried.
    Waiting,
    /// Taken by the hook.
    Delivered,
    /// Given up after the last try.
    Dead,
}

impl DeliveryStatus {
    /// Its name in lower case, as the API and the database spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl std::str::FromStr for DeliveryStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Waiting, Self::Delivered, Self::Dead].into_iter().find(|status| status.as_str() == text).ok_or(())
    }
}

/// What a token may do; each scope includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See everything.
    Read,
    /// Submit jobs and change one's own.
    Submit,
    /// Change any job and the queue.
    Operate,
    /// Tokens, plugins, everything.
    Admin,
}

/// An access token to be stored.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its name, for the audit trail.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// SHA-256 of the token; the token itself is not stored.
    pub sha256: [u8; 32],
    /// When it was made.
    pub at: Time,
}

/// Something that happened, as subscribers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Grows with every event; gaps are possible.
    pub id: u64,
    /// When.
    pub at: Time,
    /// `job.queued`, `queue.paused` …
    pub kind: String,
    /// The job concerned.
    pub job: Option<JobId>,
    /// Further members, by type.
    pub data: Map<String, Value>,
}
