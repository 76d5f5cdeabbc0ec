//! Errors of GPUs after which they are not to be trusted.

use serde::{Deserialize, Serialize};

/// Something that makes a GPU unfit for jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The GPU's UUID; of a critical error the whole GPU's, also when an instance of it was in use.
    pub uuid: String,
    /// What it is.
    pub trouble: Trouble,
}

/// What is wrong with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The driver does not know it any more: it fell off the bus.
    Gone,
    /// A critical error of this number (<https://docs.nvidia.com/deploy/xid-errors/>).
    Xid(u64),
}

/// Errors that a program's own mistakes cause, and after which the GPU works on: graphics or compute engine exception, memory
/// page fault, reset of a channel, pre-emptive removal of one, video decoder exception, recovered row, contained memory error,
/// context switch timeout. NVIDIA's device plugin for Kubernetes takes the same ones for harmless (`skippedXids`), but for the
/// two about memory (63, 94), of which NVIDIA's catalogue says that the GPU may be used on.
const OF_PROGRAMS: [u64; 9] = [8, 13, 31, 43, 45, 63, 68, 94, 109];

impl Fault {
    /// Whether the GPU is at fault and not the program that ran on it.
    pub(super) fn is_of_the_gpu(&self) -> bool {
        match self.trouble {
            Trouble::Gone => true,
            Trouble::Xid(xid) => !OF_PROGRAMS.contains(&xid),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("NVML does not know it any more"),
            Self::Xid(xid) => match meaning(*xid) {
                Some(meaning) => write!(f, "XID {xid}: {meaning}"),
                None => write!(f, "XID {xid}"),
            },
        }
    }
}

/// NVIDIA's words for the errors that people meet.
fn meaning(xid: u64) -> Option<&'static str> {
    Some(match xid {
        32 => "invalid or corrupted push buffer stream",
        38 => "driver firmware error",
        46 => "GPU stopped processing",
        48 => "double bit ECC error",
        61 | 62 => "internal micro-controller halt",
        64 => "ECC page retirement or row remapper failure",
        69 => "graphics engine class error",
        74 => "NVLink error",
        79 => "GPU has fallen off the bus",
        92 => "high single-bit ECC error rate",
        95 => "uncontained ECC error",
        119 => "GSP RPC timeout",
        120 => "GSP error",
        140 => "unrecovered ECC error",
        143 => "GPU initialization failure",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_own_mistake_is_no_fault_of_the_gpu() {
        let fault = |xid| Fault { uuid: "GPU-0".into(), trouble: Trouble::Xid(xid) };
        assert!(!fault(13).is_of_the_gpu() && !fault(31).is_of_the_gpu());
        assert!(fault(79).is_of_the_gpu() && fault(48).is_of_the_gpu() && fault(999).is_of_the_gpu());
        assert_eq!(fault(79).trouble.to_string(), "XID 79: GPU has fallen off the bus");
    }
}
