//! What is known of a job's run and of its end.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How the process ended: one of the two is set once it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, 0 to 255.
    pub code: Option<i32>,
    /// The number of the signal that ended it (signal(7)).
    pub signal: Option<i32>,
}

/// Why a job failed, in one word that scripts and retries can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// It ended with a status other than 0.
    Exit,
    /// A signal that Taxiway did not send ended it.
    Signal,
    /// Its time limit ran out.
    Timeout,
    /// The GPU's memory ran out.
    CudaOom,
    /// The kernel ended it because the machine's memory ran out.
    HostOom,
    /// A disk was full.
    DiskFull,
    /// A plugin refused it just before its start.
    Preflight,
    /// Its command could not be started.
    LaunchError,
    /// Its GPU went away or failed.
    GpuLost,
    /// Its loss was no longer a number.
    NanLoss,
    /// The machine or the job's shim went away and no status was recorded.
    HostLost,
}

impl FailureClass {
    /// All classes.
    pub const ALL: [Self; 11] = [
        Self::Exit,
        Self::Signal,
        Self::Timeout,
        Self::CudaOom,
        Self::HostOom,
        Self::DiskFull,
        Self::Preflight,
        Self::LaunchError,
        Self::GpuLost,
        Self::NanLoss,
        Self::HostLost,
    ];

    /// The class's name in snake case, as the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Timeout => "timeout",
            Self::CudaOom => "cuda_oom",
            Self::HostOom => "host_oom",
            Self::DiskFull => "disk_full",
            Self::Preflight => "preflight",
            Self::LaunchError => "launch_error",
            Self::GpuLost => "gpu_lost",
            Self::NanLoss => "nan_loss",
            Self::HostLost => "host_lost",
        }
    }
}

impl std::str::FromStr for FailureClass {
    type Err = UnknownFailureClass;

    fn from_str(text: &str) -> Result<Self, UnknownFailureClass> {
        Self::ALL.into_iter().find(|class| class.as_str() == text).ok_or_else(|| UnknownFailureClass(text.to_owned()))
    }
}

/// A text that names no failure class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a failure class: use exit, signal, timeout, cuda_oom, host_oom, disk_full, preflight, launch_error, gpu_lost, nan_loss or host_lost"
)]
pub struct UnknownFailureClass(pub String);

/// How and why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class, for scripts.
    pub class: FailureClass,
    /// One sentence for a person.
    pub message: String,
    /// The line of the log or record that shows it.
    pub evidence: Option<String>,
}

/// How far a running job says it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// From 0 to 1.
    pub fraction: Option<f64>,
    /// Steps done.
    pub step: Option<u64>,
    /// Steps in all.
    pub total_steps: Option<u64>,
    /// Epochs begun or done, as the job counts them.
    pub epoch: Option<f64>,
    /// Epochs in all.
    pub total_epochs: Option<f64>,
    /// Seconds until it ends, as estimated.
    pub eta_seconds: Option<f64>,
    /// Whatever else it reports: loss, accuracy, learning rate …
    #[serde(default)]
    pub metrics: Map<String, Value>,
}

/// What a run used. What could not be measured is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds from the exec to the end of the process.
    pub wall_seconds: Option<f64>,
    /// Seconds of processor time, of the process and those it waited for.
    pub cpu_seconds: Option<f64>,
    /// The largest resident set of one of its processes, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Seconds times GPUs held.
    pub gpu_seconds: Option<f64>,
    /// The most GPU memory it held, in bytes.
    pub peak_gpu_memory_bytes: Option<u64>,
    /// From 0 to 1.
    pub mean_gpu_utilization: Option<f64>,
    /// Joules, from the GPU's own counter.
    pub energy_joules: Option<f64>,
}

/// The time a slot was idle before a job: from the end of the previous job's process to the exec of this one's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    /// Seconds in all.
    pub gap_seconds: f64,
    /// The same, split: name of the part to its seconds.
    pub parts: Map<String, Value>,
}
