//! What a shim owes the host before it is told to start anything, and what is done when it does not come.
//!
//! A shim may be stopped, starved, or hang in a filesystem. As long as it was not told to go it has started nothing, and once its
//! socket is closed it never will: then it is killed, and the line goes on. One that was told to go is waited for, since it may
//! have started its command.

use std::time::Duration;

use tokio::time::Instant;

/// How long a shim may take to answer before the host says that it does not. It goes on waiting: a machine that is busy or has
/// just woken up is no evidence.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a shim may take to be ready before the launch is given up, to be tried again. It takes a millisecond.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// What is being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// Nothing that must come: whatever a job does it does in its own time.
    Nothing,
    /// That it is ready.
    Ready,
    /// The same, and the host was told that it is late.
    ReadyAtLast,
    /// That it leaves.
    Leave,
    /// The same, and it was killed.
    LeaveAtLast,
}

/// What is to be done because it did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// Tell that the shim is not ready.
    TellNotReady,
    /// Give the launch up, and kill the shim.
    GiveUp,
    /// Kill the shim.
    Kill,
    /// Tell that it survives even that.
    TellNotGone,
}

/// What a shim owes, and until when.
#[derive(Debug)]
pub(super) struct Patience {
    owed: Owed,
    until: Instant,
}

impl Patience {
    fn new(owed: Owed, time: Duration) -> Self {
        Self { owed, until: Instant::now() + time }
    }

    /// It owes nothing.
    pub(super) fn endless() -> Self {
        Self::new(Owed::Nothing, Duration::ZERO)
    }

    /// It was just started.
    pub(super) fn until_ready() -> Self {
        Self::new(Owed::Ready, ANSWER_TIMEOUT)
    }

    /// Its socket was closed.
    pub(super) fn until_gone() -> Self {
        Self::new(Owed::Leave, ANSWER_TIMEOUT)
    }

    /// Resolves when something is late, with what is to be done about it. May be dropped and called again.
    pub(super) async fn late(&mut self) -> Late {
        if self.owed == Owed::Nothing {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.until).await;
        self.run_out()
    }

    fn run_out(&mut self) -> Late {
        let (late, next) = match self.owed {
            Owed::Ready => (Late::TellNotReady, Self::new(Owed::ReadyAtLast, READY_TIMEOUT)),
            Owed::ReadyAtLast => (Late::GiveUp, Self::new(Owed::LeaveAtLast, ANSWER_TIMEOUT)),
            Owed::Leave => (Late::Kill, Self::new(Owed::LeaveAtLast, ANSWER_TIMEOUT)),
            Owed::LeaveAtLast | Owed::Nothing => (Late::TellNotGone, Self::endless()),
        };
        *self = next;
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_is_not_ready_is_told_of_then_given_up_then_told_of_again() {
        let mut patience = Patience::until_ready();
        let seen = [patience.run_out(), patience.run_out(), patience.run_out()];
        assert_eq!(seen, [Late::TellNotReady, Late::GiveUp, Late::TellNotGone]);
        assert_eq!(patience.owed, Owed::Nothing, "nothing more can be done");
    }

    #[test]
    fn a_shim_that_does_not_leave_is_killed() {
        let mut patience = Patience::until_gone();
        assert_eq!([patience.run_out(), patience.run_out()], [Late::Kill, Late::TellNotGone]);
        assert_eq!(patience.owed, Owed::Nothing, "nothing more can be done");
    }
}
