//! What the host asks of a launcher, and what it hears back.

use std::path::PathBuf;
use std::time::Duration;

use taxiway_job::{JobId, LaunchId, ProcessSpec, Progress};

use crate::record::ExitRecord;

/// Everything a launcher must know to start one attempt of a job.
#[derive(Clone)]
pub struct LaunchPlan {
    /// The job.
    pub job: JobId,
    /// This start of it; new for every start.
    pub launch: LaunchId,
    /// The attempt's number, 1 for the first.
    pub attempt: u32,
    /// The argv, with its placeholders: `{config_file}`, `{job_id}`, `{external_id}`, `{job_dir}`, `{attempt}`. The first word
    /// is looked up in the job's `PATH` when it has no slash.
    pub command: Vec<String>,
    /// The submitter's own id; `{external_id}` is the job's id without one.
    pub external_id: Option<String>,
    /// Working directory; the job's directory without one.
    pub cwd: Option<PathBuf>,
    /// The profile's and the job's variables, in this order: a later one wins, and wins over the fixed minimal environment.
    /// The `TAXIWAY_*` and `CUDA_*` variables that the launcher sets win over these.
    pub env: Vec<(String, String)>,
    /// Whether the job was promised no GPU (`gpus: 0`): then `CUDA_VISIBLE_DEVICES` is empty. Otherwise it names the GPUs given
    /// to [`Launcher::go`] and is left unset when there are none (a virtual slot on a box without NVML).
    pub hide_gpus: bool,
    /// The configuration, written into the launch's directory.
    pub config: Option<ConfigFile>,
    /// How long it may run, counted on `CLOCK_BOOTTIME` from the exec; no limit without one.
    pub time_limit: Option<Duration>,
    /// How long the time limit waits between the stop signal and SIGKILL.
    pub grace: Duration,
    /// How its process is set up, asked to stop and warned of its time limit.
    pub process: ProcessSpec,
}

/// The file that `{config_file}` names.
#[derive(Clone)]
pub struct ConfigFile {
    /// `config.json`, `config.yaml` or `config.toml`: a plain name without a slash.
    pub file_name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// How a running job is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// How long to wait between the signal and SIGKILL; the plan's grace without one.
    pub grace: Option<Duration>,
    /// The first signal; the plan's without one.
    pub signal: Option<i32>,
}

/// What the store says of an attempt that was not settled when the host ended.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// The job.
    pub job: JobId,
    /// The launch.
    pub launch: LaunchId,
    /// The last phase that was committed.
    pub phase: StoredPhase,
    /// The [`crate::boot_id`] under which it was committed.
    pub boot_id: String,
    /// The job's time limit. A shim that is adopted is told: the host may have ended between storing another one and saying so.
    pub time_limit: Option<Duration>,
}

/// The phase of an attempt in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredPhase {
    /// The intent is committed, nothing was told to start.
    Armed,
    /// It was told to start.
    Pending,
    /// Its process was seen.
    Running,
}

/// What a launcher reports, in the order in which it happened for one launch.
#[derive(Debug, Clone)]
pub enum Event {
    /// The directory is there: the intent may be committed and the launch armed.
    Prepared {
        /// The launch.
        launch: LaunchId,
    },
    /// The directory could not be made; nothing is left of it.
    PrepareFailed {
        /// The launch.
        launch: LaunchId,
        /// What failed.
        error: PrepareError,
    },
    /// Its shim holds the lock and waits for `go`.
    Ready {
        /// The launch.
        launch: LaunchId,
    },
    /// The command runs.
    Started {
        /// The launch.
        launch: LaunchId,
        /// The process and its instants.
        process: Started,
    },
    /// The command ended, or could not be executed, and no process of it is left. The record is on its way to disk whether or
    /// not the host lives. After committing it call [`Launcher::confirm`].
    Ended {
        /// The launch.
        launch: LaunchId,
        /// How it ended.
        record: Box<ExitRecord>,
    },
    /// What became of a launch whose shim is gone. No process of it is left, and nothing further comes.
    Settled {
        /// The launch.
        launch: LaunchId,
        /// What the evidence says.
        settlement: Settlement,
    },
    /// A restarted host found the shim alive and is connected to it. [`Event::Ended`] follows at once when it has ended.
    Adopted {
        /// The launch.
        launch: LaunchId,
        /// Where it is: commit this before any other operation on the job.
        phase: AdoptedPhase,
    },
    /// The launch's shim does not answer. Nothing may start in its place; another event follows when that changes.
    Unresponsive {
        /// The launch.
        launch: LaunchId,
        /// The shim, as far as it is known; else 0.
        shim_pid: i32,
        /// What it does not do, in a sentence.
        why: String,
    },
    /// The shim answers again, after [`Event::Unresponsive`] about a launch that goes on.
    Responsive {
        /// The launch.
        launch: LaunchId,
    },
    /// The shim has heard of another time limit ([`Launcher::extend`]).
    Extended {
        /// The launch.
        launch: LaunchId,
        /// Whether it holds. False: the one before had run out, and the job is being stopped or was.
        in_time: bool,
    },
    /// Processes of the job are still there this long after SIGKILL (in uninterruptible sleep, usually in a driver). The launch
    /// ends when they do.
    Unkillable {
        /// The launch.
        launch: LaunchId,
        /// The processes.
        pids: Vec<i32>,
    },
    /// The launch that kept a job from being prepared ([`PrepareError::StillRunning`]) is over.
    StrangerGone {
        /// The job.
        job: JobId,
        /// The launch.
        launch: LaunchId,
    },
    /// How far the job says it is; at most a few a second.
    Progress {
        /// The launch.
        launch: LaunchId,
        /// What it says.
        progress: Progress,
    },
}

/// A command's process.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// Its start in clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5)): with pid and boot id its identity.
    pub start_time: u64,
    /// When the exec was done.
    pub at: crate::clock::Instant,
    /// When the shim read `go`, on the same clocks: the hand-over's parts are differences of these.
    pub go_at: crate::clock::Instant,
    /// The GPUs that it was given, as `go` named them: a host that was killed before it could store them learns them from here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_uuids: Vec<String>,
}

/// Where an adopted launch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdoptedPhase {
    /// Its process was started and has not been reaped, or has been and its leftovers are being ended.
    Running(Started),
    /// It has ended: [`Event::Ended`] follows.
    Ended,
}

/// What the evidence under the lock says of a launch without a shim (DESIGN §5, step 4).
#[derive(Debug, Clone)]
pub enum Settlement {
    /// Nothing was started: the job keeps its place and its attempt.
    NotStarted {
        /// Why it was not, when it should have been: the shim could not be started or set up. None for one that was disarmed
        /// or was lost with the host.
        reason: Option<String>,
    },
    /// The shim recorded the end before it went.
    Record(Box<ExitRecord>),
    /// It may have run and no status was recorded.
    Lost {
        /// What was and was not found, for a person.
        evidence: String,
    },
}

/// Why a launch could not be prepared.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrepareError {
    /// This job cannot be launched: its plan is impossible, or what it has left in its directory's place is. Others can.
    #[error("the job cannot be launched: {0}")]
    Plan(String),
    /// A directory or file could not be made.
    #[error("cannot create {path}: {error}; check the space, the owner and the mode of the jobs directory")]
    Directory {
        /// The path.
        path: PathBuf,
        /// The system's words.
        error: String,
        /// Whether the disk or a quota is full.
        full: bool,
    },
    /// Another launch of the job goes on, of which this host was never told: its store was put back to a moment before it.
    /// [`Event::StrangerGone`] follows.
    #[error("launch {launch} of the job, of which the database knows nothing, goes on under process {shim_pid}")]
    StillRunning {
        /// The launch.
        launch: LaunchId,
        /// Its shim; 0 when the kernel did not name it.
        shim_pid: i32,
    },
}

/// Why `go` was not sent. Nothing was started; an event says what became of the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GoError {
    /// The launch is not known, not armed or was already told to go.
    #[error("the launch is not ready: it must be armed, and told to go once")]
    NotReady,
    /// The shim is gone; [`Event::Settled`] follows.
    #[error("the launch's shim is gone: it will be settled")]
    Gone,
}

/// Starts jobs, stops them, and says what became of them.
///
/// Every call returns at once; what comes of it arrives as [`Event`]s on the channel given at the start. A launch goes
/// `prepare` → `arm` → `go` → `confirm`; `disarm` ends it before `go`.
pub trait Launcher: Send + Sync {
    /// Makes the launch's directory: [`Event::Prepared`] or [`Event::PrepareFailed`].
    fn prepare(&self, plan: LaunchPlan);
    /// Starts the shim, after the intent is durable: [`Event::Ready`], or [`Event::Settled`] when that fails.
    fn arm(&self, launch: LaunchId);
    /// Tells a ready shim to start its command on these GPUs: [`Event::Started`], then [`Event::Ended`].
    ///
    /// # Errors
    /// When the shim is not ready or gone. Nothing was started then.
    fn go(&self, launch: LaunchId, gpu_uuids: &[String]) -> Result<(), GoError>;
    /// Ends a launch that was not told to go: [`Event::Settled`] with [`Settlement::NotStarted`] when its shim is gone. One that
    /// does not leave is killed. Without effect after `go`.
    fn disarm(&self, launch: LaunchId);
    /// Stops a running job: the signal to its process group, the grace, then SIGKILL to every descendant; [`Event::Ended`] when
    /// none is left. May be repeated: the earlier deadline counts. A shim that does not do it is continued, and killed if that
    /// does not help: the job dies with it.
    fn stop(&self, launch: LaunchId, stop: Stop);
    /// Changes the time limit of a running job, counted from its exec; none removes it. Without effect once the limit has
    /// struck. True: [`Event::Extended`] says which it was, unless the launch ends first. False: its shim hears of it when it is
    /// found, or is of a version that does not say.
    fn extend(&self, launch: LaunchId, time_limit: Option<Duration>) -> bool;
    /// What became of the launch is committed: its shim may leave, and the directory of one that started nothing goes.
    fn confirm(&self, launch: LaunchId);
    /// Finds out what became of the attempts that the store holds unsettled, at the start of the host. For each:
    /// [`Event::Adopted`], or [`Event::Settled`], either perhaps after [`Event::Unresponsive`].
    fn recover(&self, attempts: Vec<Unsettled>);
}
