//! What is in the way of a start, in words.

use taxiway_job::Reason;

use super::nvml::ReadError;

/// Why nothing can be started on a GPU just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFree {
    /// A process that is no job's computes there.
    InUse {
        /// The GPU.
        uuid: String,
        /// NVML's index, where known.
        index: Option<u32>,
        /// The process.
        pid: i32,
        /// The file name of its program, where it can be seen.
        program: Option<String>,
        /// GPU memory it holds, in bytes, where NVML says.
        bytes: Option<u64>,
    },
    /// Less memory is free than `gpu.min_free_memory`.
    LowMemory {
        /// The GPU.
        uuid: String,
        /// NVML's index, where known.
        index: Option<u32>,
        /// Bytes free.
        free: u64,
        /// Bytes that must be.
        wanted: u64,
    },
    /// NVML does not know the GPU any more: it fell off the bus.
    Gone {
        /// The GPU.
        uuid: String,
        /// NVML's index at the start, where known.
        index: Option<u32>,
    },
    /// NVML did not say.
    Unreadable {
        /// The GPU, when the question got as far as one.
        uuid: Option<String>,
        /// NVML's index, where known.
        index: Option<u32>,
        /// What it said instead.
        error: ReadError,
    },
}

impl NotFree {
    pub(super) fn unreadable(uuid: &str, index: Option<u32>, error: ReadError) -> Self {
        match error {
            ReadError::Gone => Self::Gone { uuid: uuid.to_owned(), index },
            error => Self::Unreadable { uuid: Some(uuid.to_owned()), index, error },
        }
    }

    /// Why a job waits for this, as the queue shows it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let code = match self {
            Self::InUse { .. } => "gpu_in_use_by_others",
            Self::LowMemory { .. } => "gpu_memory_low",
            Self::Gone { .. } => "gpus_unavailable",
            Self::Unreadable { .. } => "gpu_unreadable",
        };
        Reason::new(code, self.to_string())
    }
}

impl From<ReadError> for NotFree {
    fn from(error: ReadError) -> Self {
        Self::Unreadable { uuid: None, index: None, error }
    }
}

impl std::error::Error for NotFree {}

impl std::fmt::Display for NotFree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse { uuid, index, pid, program, bytes } => {
                let program = program.as_deref().unwrap_or("a program that cannot be seen from here");
                write!(f, "{} is in use by {program} (pid {pid}", name(Some(uuid), *index))?;
                if let Some(bytes) = bytes {
                    write!(f, ", {}", Gibibytes(*bytes))?;
                }
                f.write_str("), which is no job of Taxiway; gpu.ignore lists programs that may stay")
            }
            Self::LowMemory { uuid, index, free, wanted } => {
                let (free, wanted) = (Gibibytes(*free), Gibibytes(*wanted));
                write!(f, "{} has {free} free and gpu.min_free_memory asks for {wanted}", name(Some(uuid), *index))
            }
            Self::Gone { uuid, index } => {
                write!(f, "{} has gone: NVML does not know it any more", name(Some(uuid), *index))
            }
            Self::Unreadable { uuid, index, error } => {
                write!(f, "NVML does not say whether {} is free: {error}", name(uuid.as_deref(), *index))
            }
        }
    }
}

fn name(uuid: Option<&str>, index: Option<u32>) -> String {
    match (uuid, index) {
        (_, Some(index)) => format!("GPU {index}"),
        (Some(uuid), None) => format!("GPU {uuid}"),
        (None, None) => "the GPU".to_owned(),
    }
}

/// For sentences: `2.1 GiB`.
struct Gibibytes(u64);

impl std::fmt::Display for Gibibytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}
