//! What becomes of a launch whose shim's socket has closed.

use std::io;
use std::sync::Arc;

use tokio::task::JoinError;

use super::Inner;
use super::follow::Heard;
use super::launch::{Fate, Launch, Parent, State, blocking};
use super::orphans::{self, Orphans};
use super::patience::{Late, Patience};
use super::settle::{self, Settled};
use super::spawner::Spawner;
use crate::launch::{Event, Settlement, StoredPhase};
use crate::processes::Identity;
use crate::rules::Known;

/// Why a launch did not start whose shim nobody saw end.
const LOST_BEFORE_GO: &str = "its shim was lost before it was told to start";

impl Launch {
    /// The shim's socket has closed.
    pub(super) async fn gone(self: Arc<Self>, inner: &Arc<Inner>, heard: Heard, parent: Parent) -> Option<Known> {
        let before = std::mem::replace(&mut *self.state(), State::Over);
        if let Parent::Spawner(spawner) = &parent
            && !spawner.is_alive()
        {
            // It is a child of this process by now, or about to be.
            // One whose launch is over may serve another by now, whose end waits for it then.
            let at_most = heard.ended.then_some(orphans::ENDING);
            drop(tokio::task::spawn_blocking(move || orphans::wait_for(heard.shim, at_most)));
        }
        if heard.ended {
            inner.launches().remove(&self.id);
            return None;
        }
        match before {
            State::Going(_) => {}
            // It was told to leave, perhaps because it failed.
            State::Disarming | State::Arming { disarmed: true } => {
                self.started_nothing(inner, heard.failed).await;
                return None;
            }
            // It was never told to start anything, and now nobody can tell it any more.
            _ => {
                let reason = match heard.failed {
                    Some(failed) => failed,
                    None => self
                        .wait_until_gone(inner, &parent, heard.shim)
                        .await
                        .unwrap_or_else(|| LOST_BEFORE_GO.to_owned()),
                };
                self.started_nothing(inner, Some(reason)).await;
                return None;
            }
        }
        // The socket closes before the shim's children are ended or handed on: only when its process is gone can they be found.
        let reason = self.wait_until_gone(inner, &parent, heard.shim).await;
        tracing::warn!(launch = %self.id, reason = reason.as_deref().unwrap_or("unknown"), "a shim was lost");
        let phase = if heard.started { StoredPhase::Running } else { StoredPhase::Pending };
        let known = Known { phase, same_boot: true };
        let launch = self.id;
        let spawner = match parent {
            Parent::Spawner(_) => None,
            Parent::Earlier(spawner) => spawner,
        };
        match self.settle(inner, known, spawner).await {
            Ok(Ok(Settled::Yes(Settlement::NotStarted { .. }))) => {
                self.started_nothing(inner, heard.failed.or(reason)).await
            }
            Ok(Ok(Settled::Yes(Settlement::Lost { evidence }))) => {
                let evidence = reason.map_or(evidence.clone(), |reason| format!("{evidence}; {reason}"));
                inner.settle(launch, Settlement::Lost { evidence }).await;
            }
            Ok(Ok(Settled::Yes(settlement))) => inner.settle(launch, settlement).await,
            // A process of another making holds the lock: the same as after a restart.
            Ok(Ok(Settled::LockHeldBy(_)) | Err(_)) => return Some(known),
            // The runtime is shutting down.
            Err(_) => {}
        }
        None
    }

    /// Settles it under its lock. `spawner` is the one of an earlier host that may have what it has left.
    pub(super) async fn settle(
        &self,
        inner: &Inner,
        known: Known,
        spawner: Option<Identity>,
    ) -> Result<io::Result<Settled>, JoinError> {
        let directory = self.directory.clone();
        let launch = self.id;
        let groups = inner.limits.groups.clone();
        let orphans = Orphans { are_of_jobs: inner.started_alone, spawner };
        let events = inner.events.clone();
        let unkillable = move |pids| drop(events.blocking_send(Event::Unkillable { launch, pids }));
        blocking(move || settle::settle(&directory, launch, known, groups.as_ref(), orphans, &unkillable)).await
    }

    /// Waits until the shim's process is gone, and its orphans with it where the spawner sees to them. Returns why it went when
    /// the spawner knows.
    async fn wait_until_gone(&self, inner: &Inner, parent: &Parent, shim: Option<Identity>) -> Option<String> {
        if let Parent::Spawner(spawner) = parent {
            let mut fate = self.fate.subscribe();
            let mut lost = spawner.watch_lost();
            let mut patience = Patience::until_fate();
            loop {
                let unkillable = match &*fate.borrow_and_update() {
                    Fate::Unknown => None,
                    Fate::Unkillable(pids) => Some(pids.clone()),
                    Fate::Gone(reason) => return Some(reason.clone()),
                };
                if let Some(pids) = unkillable {
                    // It does what it can.
                    patience = Patience::endless();
                    inner.report(Event::Unkillable { launch: self.id, pids }).await;
                }
                let late = tokio::select! {
                    biased;
                    _ = fate.changed() => None,
                    _ = lost.wait_for(|lost| *lost) => break,
                    late = patience.late() => Some(late),
                };
                if let Some(late) = late {
                    self.has_no_fate(inner, late, spawner, shim.map_or(0, |shim| shim.pid)).await;
                }
            }
        }
        let _ = blocking(move || orphans::wait_for(shim, None)).await;
        None
    }

    /// The spawner does not say what has become of a shim that is gone. It may have been stopped (SIGSTOP): then it goes on. If
    /// that does not help it is killed, and what the shim has left comes to this process.
    async fn has_no_fate(&self, inner: &Inner, late: Late, spawner: &Spawner, shim_pid: i32) {
        let why = "its shim is gone, and it is not known yet whether anything of it is left";
        let signal = match late {
            Late::KillSpawner => libc::SIGKILL,
            _ => {
                let event = Event::Unresponsive { launch: self.id, shim_pid, why: why.to_owned() };
                inner.report(event).await;
                libc::SIGCONT
            }
        };
        tracing::warn!(launch = %self.id, spawner = spawner.pid(), signal, "the spawner does not say what became of a shim");
        if let Err(error) = spawner.signal(signal) {
            tracing::warn!(spawner = spawner.pid(), %error, "the spawner cannot be signalled");
        }
    }
}
