//! What a shim reports, from its fork to the end of its socket; [`gone`](super::gone) has what follows that.

use std::sync::Arc;

use taxiway_job::Progress;
use tokio::time::Instant;

use super::Inner;
use super::control::Control;
use super::launch::{Launch, Parent, State};
use super::orphans;
use super::patience::{Late, Patience};
use super::settle::Settled;
use crate::launch::{Event, Started, StoredPhase};
use crate::processes::Identity;
use crate::progress;
use crate::rules::Known;
use crate::wire::{Lines, Report, Request};

/// What the host has heard from a shim.
#[derive(Default)]
pub(super) struct Heard {
    /// Its process, once it has said which that is.
    pub(super) shim: Option<Identity>,
    pub(super) started: bool,
    /// The command's process, as far as it was told of.
    pub(super) process: Option<Started>,
    pub(super) ended: bool,
    pub(super) failed: Option<String>,
}

impl Heard {
    /// 0 when it is not known.
    pub(super) fn shim_pid(&self) -> i32 {
        self.shim.map_or(0, |shim| shim.pid)
    }
}

impl Launch {
    /// Follows a shim that an earlier host has started.
    pub(super) async fn follow_adopted(
        self: Arc<Self>,
        inner: &Arc<Inner>,
        control: Arc<Control>,
        lines: Lines,
        shim_pid: i32,
        process: Option<Started>,
    ) -> Option<Known> {
        let heard = Heard { shim: Identity::of(shim_pid), started: true, process, ..Heard::default() };
        self.follow(inner, control, lines, heard, Parent::Earlier(orphans::spawner_of(shim_pid))).await
    }

    /// Passes on what the shim reports until it is gone, then finds out what became of the launch. What is known of it is
    /// returned when that is still unclear.
    pub(super) async fn follow(
        self: Arc<Self>,
        inner: &Arc<Inner>,
        control: Arc<Control>,
        mut lines: Lines,
        mut heard: Heard,
        parent: Parent,
    ) -> Option<Known> {
        let launch = self.id;
        let mut watcher = heard.started.then(|| self.progress());
        let mut patience = if heard.started { Patience::endless() } else { Patience::until_ready() };
        let mut ask_at = self.vigil.ask_at(heard.process.as_ref());
        loop {
            let report = tokio::select! {
                biased;
                report = control.next(&mut lines) => report,
                () = self.disarmed.notified() => {
                    control.close();
                    patience = Patience::until_gone();
                    continue;
                }
                late = patience.late() => {
                    if self.is_late(inner, late, &control, &mut heard, &parent).await {
                        break;
                    }
                    continue;
                }
                () = self.vigil.changed() => {
                    if self.vigil.is_owed() && patience.is_endless() {
                        patience = Patience::until_answer();
                    }
                    ask_at = self.vigil.ask_at(heard.process.as_ref());
                    continue;
                }
                () = due(ask_at) => {
                    self.say(&Request::Ask);
                    ask_at = self.vigil.ask_at(heard.process.as_ref());
                    continue;
                }
                progress = next_progress(&mut watcher) => {
                    inner.report(Event::Progress { launch, progress }).await;
                    continue;
                }
            };
            let Some(report) = report else { break };
            match report {
                Report::Ready { shim_pid, .. } => {
                    heard.shim = Identity::of(shim_pid);
                    if self.is_ready(&control) {
                        patience = Patience::endless();
                        inner.report(Event::Ready { launch }).await;
                    }
                }
                Report::Started(process) => {
                    if !heard.started && self.answered(inner).await {
                        patience = Patience::endless();
                    }
                    (heard.started, heard.process) = (true, Some(process.clone()));
                    ask_at = self.vigil.ask_at(Some(&process));
                    inner.report(Event::Started { launch, process }).await;
                    watcher = Some(self.progress());
                }
                Report::Ended(record) if !heard.ended => {
                    // A command that could not be executed has not started.
                    if !heard.started && self.answered(inner).await {
                        patience = Patience::endless();
                    }
                    heard.ended = true;
                    watcher = None;
                    if let Some(progress) = progress::read(&self.directory) {
                        inner.report(Event::Progress { launch, progress }).await;
                    }
                    inner.report(Event::Ended { launch, record }).await;
                }
                Report::Unkillable { pids } => inner.report(Event::Unkillable { launch, pids }).await,
                Report::Failed { message } => heard.failed = Some(message),
                Report::Here => {
                    if self.answered(inner).await {
                        patience = Patience::endless();
                    }
                }
                Report::Extended { time_limit_ms, in_time } => {
                    if !in_time {
                        self.vigil.time_is_up();
                    }
                    if self.vigil.is_limit(time_limit_ms) {
                        inner.report(Event::Extended { launch, in_time }).await;
                    }
                    if self.answered(inner).await {
                        patience = Patience::endless();
                    }
                }
                Report::Ended(_) | Report::Adopted { .. } => {}
            }
        }
        self.gone(inner, heard, parent).await
    }

    /// Its shim waits. False when nobody wants it any more.
    fn is_ready(&self, control: &Arc<Control>) -> bool {
        let mut state = self.state();
        match *state {
            State::Arming { disarmed: false } => {
                *state = State::Ready(Arc::clone(control));
                true
            }
            State::Arming { disarmed: true } => {
                *state = State::Disarming;
                false
            }
            _ => false,
        }
    }

    /// Its shim does not do what it should in time. True when there is none, and nothing more to be heard.
    async fn is_late(
        &self,
        inner: &Arc<Inner>,
        late: Late,
        control: &Control,
        heard: &mut Heard,
        parent: &Parent,
    ) -> bool {
        let shim_pid = heard.shim_pid();
        let tell = |why: &str| Event::Unresponsive { launch: self.id, shim_pid, why: why.to_owned() };
        match late {
            Late::TellNotReady => {
                inner.report(tell("its shim does not get ready")).await;
                return false;
            }
            Late::TellNotGone => {
                inner.report(tell("its shim was killed and does not go away")).await;
                return false;
            }
            Late::TellSilent | Late::KillSilent => {
                self.is_silent(inner, late, heard).await;
                return false;
            }
            Late::GiveUp => {
                heard.failed = Some("its shim did not get ready".to_owned());
                *self.state() = State::Arming { disarmed: true };
                control.close();
            }
            Late::Kill => {}
            // Of a spawner: only once the socket has closed.
            Late::TellNoFate | Late::KillSpawner => return false,
        }
        // It was not told to start anything, and nobody can tell it any more.
        let known = Known { phase: StoredPhase::Armed, same_boot: true };
        match self.settle(inner, known, None).await {
            Ok(Ok(Settled::LockHeldBy(shim_pid))) => {
                // It has nothing to do, and does not leave. It may take a moment to go.
                self.signal_holder(shim_pid, libc::SIGKILL).await;
                false
            }
            // Nobody has come so far as to the lock. Whoever comes later finds its socket closed.
            Ok(Ok(Settled::Yes(_))) => {
                if let Parent::Spawner(spawner) = parent
                    && let Err(error) = inner.give_up_on(spawner).await
                {
                    tracing::error!(%error, "another spawner cannot be started");
                }
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(launch = %self.id, %error, "it cannot be told who holds a launch's lock");
                false
            }
            // The runtime is shutting down.
            Err(_) => false,
        }
    }

    fn progress(&self) -> progress::Watcher {
        progress::Watcher::new(self.directory.clone())
    }
}

/// What a running job says of its progress; never resolves for one that does not run.
async fn next_progress(watcher: &mut Option<progress::Watcher>) -> Progress {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => std::future::pending().await,
    }
}

/// Resolves at this time, at which the shim is to be asked whether it is there: no event tells that it was stopped. Never without a
/// time.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
