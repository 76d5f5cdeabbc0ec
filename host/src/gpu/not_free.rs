//! What is in the way of a start, in words.

use taxiway_job::Reason;

use super::nvml::{Gpu, ReadError};

/// Why nothing can be started on a GPU just now. The GPU is named as people call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFree {
    /// A process that is no running job's computes there.
    InUse {
        /// The GPU.
        gpu: String,
        /// The process.
        pid: i32,
        /// The file name of its program, where it can be seen.
        program: Option<String>,
        /// GPU memory it holds, in bytes, where NVML says.
        bytes: Option<u64>,
    },
    /// NVML lists a process that has ended: the driver has not given its memory back yet.
    NotReleased {
        /// The GPU.
        gpu: String,
        /// The process that was.
        pid: i32,
        /// GPU memory that it held, in bytes, where NVML says.
        bytes: Option<u64>,
    },
    /// Less memory is free than `gpu.min_free_memory`.
    LowMemory {
        /// The GPU.
        gpu: String,
        /// Bytes free.
        free: u64,
        /// Bytes that must be.
        wanted: u64,
    },
    /// NVML does not know the GPU any more: it fell off the bus.
    Gone {
        /// The GPU.
        gpu: String,
    },
    /// NVML did not say.
    Unreadable {
        /// The GPU, when the question got as far as one.
        gpu: Option<String>,
        /// What it said instead.
        error: ReadError,
    },
}

impl NotFree {
    pub(super) fn unread(gpu: &Gpu, error: ReadError) -> Self {
        match error {
            ReadError::Gone => Self::Gone { gpu: gpu.to_string() },
            error => Self::Unreadable { gpu: Some(gpu.to_string()), error },
        }
    }

    /// Whether this is the same thing in the way, however much memory it holds by now.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::InUse { pid, .. }, Self::InUse { pid: others, .. })
            | (Self::NotReleased { pid, .. }, Self::NotReleased { pid: others, .. }) => pid == others,
            (Self::LowMemory { .. }, Self::LowMemory { .. }) => true,
            (one, other) => one == other,
        }
    }

    /// Why a job waits for this, as the queue shows it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let code = match self {
            Self::InUse { .. } => "gpu_in_use_by_others",
            Self::NotReleased { .. } => "gpu_not_released",
            Self::LowMemory { .. } => "gpu_memory_low",
            Self::Gone { .. } => "gpus_unavailable",
            Self::Unreadable { .. } => "gpu_unreadable",
        };
        Reason::new(code, self.to_string())
    }
}

impl From<ReadError> for NotFree {
    fn from(error: ReadError) -> Self {
        Self::Unreadable { gpu: None, error }
    }
}

impl std::error::Error for NotFree {}

impl std::fmt::Display for NotFree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse { gpu, pid, program, bytes } => {
                let program = program.as_deref().unwrap_or("a program that cannot be seen from here");
                write!(
                    f,
                    "{gpu} is in use by {program} (pid {pid}{}), which is no job of Taxiway; gpu.ignore lists programs that may stay",
                    Holding(*bytes)
                )
            }
            Self::NotReleased { gpu, pid, bytes } => {
                write!(
                    f,
                    "{gpu} is not given back yet: NVML still lists process {pid}, which has ended{}",
                    Holding(*bytes)
                )
            }
            Self::LowMemory { gpu, free, wanted } => {
                write!(f, "{gpu} has {} free and gpu.min_free_memory asks for {}", Gibibytes(*free), Gibibytes(*wanted))
            }
            Self::Gone { gpu } => write!(f, "{gpu} has gone: NVML does not know it any more"),
            Self::Unreadable { gpu, error } => {
                let gpu = gpu.as_deref().unwrap_or("the GPU");
                write!(f, "NVML does not say whether {gpu} is free: {error}")
            }
        }
    }
}

/// For sentences: `, 2.1 GiB`, or nothing.
struct Holding(Option<u64>);

impl std::fmt::Display for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |bytes| write!(f, ", {bytes} bytes ({})", Gibibytes(bytes)))
    }
}

/// For sentences: `2.1 GiB`.
struct Gibibytes(u64);

impl std::fmt::Display for Gibibytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}
