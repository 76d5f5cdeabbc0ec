//! What a shim owes that was told to go: an answer to whatever it is told, and the end of its job when that has to end.
//!
//! It does not answer while it is stopped (SIGSTOP), starved or hangs in a filesystem, and no event tells of that. To `go` it
//! answers that the command has started, or how it has ended. From then on it is asked whether it is there: with every stop and
//! every other time limit, when its job's time limit runs out, from then on again and again until the job has ended, and once in
//! a while before. One that does not answer is told of and continued (SIGCONT). If that does not help, and its
//! job has to end, it is killed: the job dies with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Inner;
use super::directory::milliseconds;
use super::follow::Heard;
use super::launch::{Launch, State, blocking};
use super::patience::{Late, SILENCE_MAX};
use super::settle;
use crate::clock::boottime_ns;
use crate::launch::{Event, Started};
use crate::wire::Request;

/// How often the shim of a job that has to end is asked whether it is there. It may be stopped at any moment, without an event;
/// a job that is stopped ends within its grace, so that few are asked at all.
const ASK_AT_THE_END_EVERY: Duration = Duration::from_secs(10);

/// What the shim of a launch was told, and owes.
pub(super) struct Vigil {
    duty: Mutex<Duty>,
    changed: Notify,
    /// How often it is asked while nothing else asks it.
    ask_every: Duration,
}

struct Duty {
    /// The job's time limit, as it is now.
    time_limit: Option<Duration>,
    /// It was told to stop the job, or does because the time limit has struck.
    stopping: bool,
    /// Whether it is of a version that answers.
    answers: bool,
    /// Answers that have not come.
    owed: u32,
    /// The host was told that they do not come.
    told: bool,
}

impl Vigil {
    pub(super) fn new(time_limit: Option<Duration>, ask_every: Duration) -> Self {
        let duty = Duty { time_limit, stopping: false, answers: true, owed: 0, told: false };
        Self { duty: Mutex::new(duty), changed: Notify::new(), ask_every }
    }

    fn duty(&self) -> MutexGuard<'_, Duty> {
        self.duty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time limit of the job. A shim that is just being looked for hears of it when it is found.
    pub(super) fn time_limit(&self) -> Option<Duration> {
        self.duty().time_limit
    }

    pub(super) fn set_time_limit(&self, time_limit: Option<Duration>) {
        self.duty().time_limit = time_limit;
        self.changed.notify_one();
    }

    /// It is about to be told to go, which it answers once it has.
    pub(super) fn begin_to_go(&self) {
        self.duty().owed += 1;
        self.changed.notify_one();
    }

    /// The time limit has struck: another one came too late.
    pub(super) fn time_is_up(&self) {
        self.duty().stopping = true;
        self.changed.notify_one();
    }

    /// Whether this is the present time limit, as a shim has it.
    pub(super) fn is_limit(&self, time_limit_ms: Option<u64>) -> bool {
        self.duty().time_limit.map(milliseconds) == time_limit_ms
    }

    /// Another shim is followed, of a version that answers or does not.
    pub(super) fn begin(&self, answers: bool) {
        let mut duty = self.duty();
        (duty.answers, duty.owed, duty.told) = (answers, 0, false);
    }

    /// Resolves when something was said, or the time limit is another. May be dropped and called again.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Resolves once the job is to be stopped. May be dropped and called again.
    async fn stopped(&self) {
        while !self.duty().stopping {
            self.changed().await;
        }
    }

    /// Whether an answer has yet to come.
    pub(super) fn is_owed(&self) -> bool {
        self.duty().owed > 0
    }

    /// When the shim is to be asked whether it is there. The time counts as the machine's does that sleeps: then it is asked
    /// later, and the shim itself is in time all the same.
    pub(super) fn ask_at(&self, process: Option<&Started>) -> Option<Instant> {
        let duty = self.duty();
        if !duty.answers {
            return None;
        }
        let rest = match (duty.stopping, process, duty.time_limit) {
            (true, _, _) => ASK_AT_THE_END_EVERY,
            (false, None, _) => return None,
            (false, Some(_), None) => self.ask_every,
            (false, Some(process), Some(limit)) => match left(process, limit) {
                Duration::ZERO => ASK_AT_THE_END_EVERY,
                left => left.min(self.ask_every),
            },
        };
        Some(Instant::now() + rest)
    }

    /// Whether the job has to end by now.
    fn must_end(&self, process: Option<&Started>) -> bool {
        let duty = self.duty();
        duty.stopping || process.zip(duty.time_limit).is_some_and(|(process, limit)| left(process, limit).is_zero())
    }
}

/// What is left of a time limit.
fn left(process: &Started, time_limit: Duration) -> Duration {
    let ran = Duration::from_nanos(boottime_ns().saturating_sub(process.at.boottime_ns));
    time_limit.saturating_sub(ran)
}

impl Launch {
    /// Says something to a shim that was told to go; whether it will answer. One that is gone needs nothing said: an event is on
    /// its way.
    pub(super) fn say(&self, request: &Request) -> bool {
        if matches!(request, Request::Stop { .. }) {
            self.vigil.duty().stopping = true;
            self.vigil.changed.notify_one();
        }
        let control = match &*self.state() {
            State::Going(control) => Arc::clone(control),
            _ => return false,
        };
        let answers = {
            let mut duty = self.vigil.duty();
            let answers = duty.answers && request.is_answered();
            // Before it is sent: the answer comes on another thread.
            duty.owed += u32::from(answers);
            answers
        };
        if let Err(error) = control.send(request) {
            tracing::debug!(launch = %self.id, %error, "the shim is gone");
            return false;
        }
        if answers {
            self.vigil.changed.notify_one();
        }
        answers
    }

    /// An answer has come. Whether it was the last that was owed.
    pub(super) async fn answered(&self, inner: &Inner) -> bool {
        let (last, told) = {
            let mut duty = self.vigil.duty();
            duty.owed = duty.owed.saturating_sub(1);
            let last = duty.owed == 0;
            (last, last && std::mem::take(&mut duty.told))
        };
        if told {
            inner.report(Event::Responsive { launch: self.id }).await;
        }
        last
    }

    /// Waits for a change at a shim of an earlier host that holds its lock and does not answer. Once its job is to be stopped it is
    /// continued, and killed if that does not help.
    pub(super) async fn outwait(&self, holder: i32, change: impl Future<Output = ()>) {
        tokio::pin!(change);
        tokio::select! {
            () = &mut change => return,
            () = self.vigil.stopped() => {}
        }
        self.signal_holder(holder, libc::SIGCONT).await;
        if tokio::time::timeout(SILENCE_MAX, &mut change).await.is_err() {
            self.signal_holder(holder, libc::SIGKILL).await;
            change.await;
        }
    }

    /// Signals who holds the lock. Not while this process settles the launch.
    pub(super) async fn signal_holder(&self, holder: i32, signal: i32) {
        tracing::warn!(launch = %self.id, shim_pid = holder, signal, "a shim that does not answer is signalled");
        let directory = self.directory.clone();
        if let Ok(Err(error)) = blocking(move || settle::signal_holder(&directory, holder, signal)).await {
            tracing::warn!(launch = %self.id, shim_pid = holder, %error, "a shim cannot be signalled");
        }
    }

    /// It does not answer. `late` is what is to be done about it.
    pub(super) async fn is_silent(&self, inner: &Inner, late: Late, heard: &Heard) {
        let signal = match late {
            Late::KillSilent if self.vigil.must_end(heard.process.as_ref()) => libc::SIGKILL,
            Late::KillSilent => return,
            _ => libc::SIGCONT,
        };
        if signal == libc::SIGCONT {
            self.vigil.duty().told = true;
            let what =
                if heard.started { "does not answer" } else { "was told to start its command and does not answer" };
            let why = format!("its shim, process {}, {what}", heard.shim_pid());
            inner.report(Event::Unresponsive { launch: self.id, shim_pid: heard.shim_pid(), why }).await;
        }
        // Its socket is open, so it lives; and if it has gone in this instant, nobody else is signalled.
        let signalled = heard.shim.map_or(Ok(false), |shim| shim.signal(signal));
        tracing::warn!(launch = %self.id, shim_pid = heard.shim_pid(), signal, ?signalled, "a shim does not answer");
    }
}
