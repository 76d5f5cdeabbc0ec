//! The states of a job and the one table of legal transitions (DESIGN §3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Out of the line until somebody releases it.
    Held,
    /// In the line.
    Queued,
    /// Told to start; its process has not been seen yet.
    Pending,
    /// Its process runs.
    Running,
    /// Being stopped: lasts until every process of it is gone.
    Cancelling,
    /// Ended with exit status 0.
    Completed,
    /// Ended otherwise; [`crate::Failure`] says how.
    Failed,
    /// Stopped by a person, or never started because of one.
    Cancelled,
}

impl State {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Held,
        Self::Queued,
        Self::Pending,
        Self::Running,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether a job may go from this state straight to `next`: the one table of legal transitions.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use State::{Cancelled, Cancelling, Completed, Failed, Held, Pending, Queued, Running};
        matches!(
            (self, next),
            (Held, Queued | Cancelled)
                | (Queued, Pending | Held | Failed | Cancelled)
                | (Pending, Running | Failed | Cancelling | Queued)
                | (Running, Completed | Failed | Cancelling | Queued)
                | (Cancelling, Cancelled | Queued | Held)
                | (Completed | Failed | Cancelled, Queued)
        )
    }

    /// Whether the job has ended: nothing happens to it any more unless somebody retries it.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether a process of the job may be alive.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Pending | Self::Running | Self::Cancelling)
    }

    /// The state's name in lower case, as the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// A text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a state: use held, queued, pending, running, cancelling, completed, failed or cancelled")]
pub struct UnknownState(pub String);

/// Where a job that is being stopped will be once all its processes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopTarget {
    /// It was cancelled.
    Cancelled,
    /// It goes back to the line.
    Queued,
    /// It waits to be released.
    Held,
}

impl From<StopTarget> for State {
    fn from(target: StopTarget) -> Self {
        match target {
            StopTarget::Cancelled => Self::Cancelled,
            StopTarget::Queued => Self::Queued,
            StopTarget::Held => Self::Held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_job_can_only_be_queued_again() {
        for from in State::ALL.into_iter().filter(|state| state.has_ended()) {
            for to in State::ALL {
                assert_eq!(from.may_become(to), to == State::Queued, "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_job_with_processes_never_reads_cancelled_before_it_was_cancelling() {
        assert!(!State::Running.may_become(State::Cancelled));
        assert!(!State::Pending.may_become(State::Cancelled));
        assert!(State::Cancelling.may_become(State::Cancelled));
    }

    #[test]
    fn every_state_can_be_reached_and_names_survive_a_round_trip() {
        for state in State::ALL {
            let entry = matches!(state, State::Queued | State::Held);
            assert!(entry || State::ALL.into_iter().any(|from| from.may_become(state)), "{state}");
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("done".parse::<State>(), Err(UnknownState("done".into())));
    }
}
