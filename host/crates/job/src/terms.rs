//! What a job asks of the queue beside a number of slots.

use serde::{Deserialize, Serialize};

/// The conditions under which a job may start, and on which GPUs. Most jobs have none: what the queue keeps in memory of a
/// job is small.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Only GPUs with that much memory in all, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Only these GPUs; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_uuids: Vec<String>,
}

impl Terms {
    /// Whether they ask for nothing.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the job may run on this GPU: its UUID, and its memory in all, in bytes.
    #[must_use]
    pub fn allow_gpu(&self, uuid: &str, memory_total_bytes: u64) -> bool {
        self.gpu_memory.is_none_or(|wanted| memory_total_bytes >= wanted)
            && (self.gpu_uuids.is_empty() || self.gpu_uuids.iter().any(|allowed| allowed == uuid))
    }

    /// Whether it matters on which GPUs the job runs.
    #[must_use]
    pub fn choose_gpus(&self) -> bool {
        self.gpu_memory.is_some() || !self.gpu_uuids.is_empty()
    }
}
