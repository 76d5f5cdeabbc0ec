//! What a shim or a spawner owes the host, and what is done when it does not come.
//!
//! A shim may be stopped, starved, or hang in a filesystem. As long as it was not told to go it has started nothing, and once its
//! socket is closed it never will: then it is killed, and the line goes on. One that was told to go may have started its command:
//! it is waited for, and killed only when its job has to end ([`vigil`](super::vigil)).

use std::time::Duration;

use tokio::time::Instant;

use crate::processes::UNKILLABLE_NS;

/// How long a shim may take to answer before the host says that it does not. It goes on waiting: a machine that is busy or has
/// just woken up is no evidence.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a shim may take to be ready before the launch is given up, to be tried again. It takes a millisecond.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a shim that was continued may take to answer. It takes a millisecond; a disk that hangs may take a minute, and is no
/// reason to end a job that goes on.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a spawner that was continued may take to say what became of a shim. What survives SIGKILL it tells after a minute.
const FATE_MAX: Duration = Duration::from_nanos(UNKILLABLE_NS + 30_000_000_000);

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
    /// That it answers.
    Answer,
    /// The same, and it was continued.
    AnswerAtLast,
    /// What the spawner says of a shim that is gone.
    Fate,
    /// The same, and the spawner was continued.
    FateAtLast,
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
    /// Tell that the shim does not answer, and continue it.
    TellSilent,
    /// Kill the shim, if its job has to end.
    KillSilent,
    /// Tell that it is not known what the shim has left, and continue the spawner.
    TellNoFate,
    /// Kill the spawner.
    KillSpawner,
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

    /// It was told something that it answers.
    pub(super) fn until_answer() -> Self {
        Self::new(Owed::Answer, ANSWER_TIMEOUT)
    }

    /// It is gone, of which its spawner tells when nothing of it is left.
    pub(super) fn until_fate() -> Self {
        Self::new(Owed::Fate, ANSWER_TIMEOUT)
    }

    /// Whether nothing is owed.
    pub(super) fn is_endless(&self) -> bool {
        self.owed == Owed::Nothing
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
            Owed::Answer => (Late::TellSilent, Self::new(Owed::AnswerAtLast, SILENCE_MAX)),
            Owed::AnswerAtLast => (Late::KillSilent, Self::endless()),
            Owed::Fate => (Late::TellNoFate, Self::new(Owed::FateAtLast, FATE_MAX)),
            Owed::FateAtLast => (Late::KillSpawner, Self::endless()),
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
    fn who_does_not_answer_is_told_of_then_killed() {
        let mut patience = Patience::until_answer();
        assert_eq!([patience.run_out(), patience.run_out()], [Late::TellSilent, Late::KillSilent]);
        assert!(patience.is_endless());
        let mut patience = Patience::until_fate();
        assert_eq!([patience.run_out(), patience.run_out()], [Late::TellNoFate, Late::KillSpawner]);
        assert!(patience.is_endless());
    }

    #[test]
    fn a_shim_that_does_not_leave_is_killed() {
        let mut patience = Patience::until_gone();
        assert_eq!([patience.run_out(), patience.run_out()], [Late::Kill, Late::TellNotGone]);
        assert_eq!(patience.owed, Owed::Nothing, "nothing more can be done");
    }
}
