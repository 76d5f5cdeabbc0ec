//! What keeps a queued job from starting, whatever is free.

use std::fmt;

/// One thing that a queued job waits for besides its turn and its slots. While any is unmet the job has a position, and is
/// never the next in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Jobs that it comes after have not ended.
    After,
    /// Its earliest start has not come.
    NotBefore,
    /// It failed, and the pause before its next attempt is not over.
    RetryBackoff,
    /// As many jobs of its array run as may at a time.
    ArrayLimit,
    /// Fewer GPUs are left than it needs.
    GpusUnavailable,
    /// A launch of it goes on of which the store knows nothing.
    StillRunning,
}

impl Condition {
    /// All of them, the one first that says the most.
    pub const ALL: [Self; 6] =
        [Self::StillRunning, Self::GpusUnavailable, Self::After, Self::NotBefore, Self::RetryBackoff, Self::ArrayLimit];

    /// The code of the reason for which such a job waits.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::After => "after_unmet",
            Self::NotBefore => "not_before",
            Self::RetryBackoff => "retry_backoff",
            Self::ArrayLimit => "array_limit",
            Self::GpusUnavailable => "gpus_unavailable",
            Self::StillRunning => "still_running",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The conditions of a job that are not met: a set, in a byte.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmet(u8);

impl Unmet {
    /// Whether every condition is met.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is unmet.
    #[must_use]
    pub fn has(self, condition: Condition) -> bool {
        self.0 & condition.bit() != 0
    }

    /// The unmet condition that says the most.
    #[must_use]
    pub fn first(self) -> Option<Condition> {
        Condition::ALL.into_iter().find(|condition| self.has(*condition))
    }

    /// The same with this condition unmet, or met.
    #[must_use]
    pub fn with(self, condition: Condition, unmet: bool) -> Self {
        Self(if unmet { self.0 | condition.bit() } else { self.0 & !condition.bit() })
    }
}

impl fmt::Debug for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Condition::ALL.into_iter().filter(|condition| self.has(*condition))).finish()
    }
}
