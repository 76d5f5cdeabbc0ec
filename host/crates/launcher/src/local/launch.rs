//! One launch as the host sees it: its state, and the task that follows its shim.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taxiway_job::{JobId, LaunchId, Progress};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;

use super::Inner;
use super::control::Control;
use super::directory::{self, launch_directory};
use super::patience::{ANSWER_TIMEOUT, Late, Patience};
use super::settle::{self, Settled};
use super::spawner::Spawner;
use super::stranger::Stranger;
use crate::launch::{Event, LaunchPlan, PrepareError, Settlement, StoredPhase};
use crate::progress;
use crate::rules::Known;
use crate::wire::{Lines, Report, Request, ShimPlan};

/// Why a launch did not start whose shim nobody saw end.
const LOST_BEFORE_GO: &str = "its shim was lost before it was told to start";

/// Where a launch is.
pub(super) enum State {
    /// Its directory is being made. When it is disarmed meanwhile, it is removed again.
    Preparing { disarmed: bool },
    /// Its directory is there.
    Prepared(Box<ShimPlan>),
    /// Its shim is being started or looked for.
    Arming { disarmed: bool },
    /// Its shim waits.
    Ready(Arc<Control>),
    /// Its shim was told to go away before it was told to start.
    Disarming,
    /// Its shim was told to start.
    Going(Arc<Control>),
    /// It started nothing, which the store is about to learn; then its directory goes.
    StartedNothing,
    /// Nothing more is done to it.
    Over,
}

/// A launch's entry.
pub(super) struct Launch {
    pub(super) id: LaunchId,
    pub(super) directory: PathBuf,
    state: Mutex<State>,
    fate: watch::Sender<Fate>,
    /// It was disarmed: its task closes the socket, if that was not done, and waits for the shim to leave.
    disarmed: Notify,
    /// The time limit that was set since the plan was made, or that the store of a restarted host has: the shim may not have
    /// heard of it. None while the plan's holds.
    stored_limit: Mutex<Option<Option<Duration>>>,
}

/// Whose child a shim is, which decides how one learns that it is gone.
pub(super) enum Parent {
    /// A spawner of this host.
    Spawner(Spawner),
    /// One of an earlier host.
    Earlier,
}

/// Makes a launch's directory, off the runtime.
async fn make_directory(
    inner: &Arc<Inner>,
    plan: &Arc<LaunchPlan>,
) -> Result<Result<ShimPlan, PrepareError>, JoinError> {
    let (inner, plan) = (Arc::clone(inner), Arc::clone(plan));
    blocking(move || {
        let knows = |launch| inner.find(launch).is_some();
        directory::make(&inner.jobs_dir, &plan, &inner.user, &inner.limits, &knows)
    })
    .await
}

/// What the spawner has said of a launch's shim.
pub(super) enum Fate {
    /// Nothing.
    Unknown,
    /// It is gone, these orphans are not.
    Unkillable(Vec<i32>),
    /// It is gone for this reason, and none of its orphans is left.
    Gone(String),
}

/// What the host has heard from a shim.
struct Heard {
    shim_pid: i32,
    started: bool,
    ended: bool,
    failed: Option<String>,
}

impl Launch {
    pub(super) fn new(jobs_dir: &Path, job: JobId, id: LaunchId, state: State) -> Self {
        Self {
            id,
            directory: launch_directory(jobs_dir, job, id),
            state: Mutex::new(state),
            fate: watch::Sender::new(Fate::Unknown),
            disarmed: Notify::new(),
            stored_limit: Mutex::new(None),
        }
    }

    pub(super) fn set_stored_limit(&self, time_limit: Option<Duration>) {
        *self.stored_limit.lock().unwrap_or_else(PoisonError::into_inner) = Some(time_limit);
    }

    pub(super) fn stored_limit(&self) -> Option<Option<Duration>> {
        *self.stored_limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells its task that it was disarmed.
    pub(super) fn wake(&self) {
        self.disarmed.notify_one();
    }

    pub(super) fn set_fate(&self, fate: Fate) {
        self.fate.send_replace(fate);
    }

    /// Makes the directory.
    pub(super) async fn prepare(self: Arc<Self>, inner: &Arc<Inner>, plan: LaunchPlan) {
        let (launch, job) = (self.id, plan.job);
        let plan = Arc::new(plan);
        let mut made = make_directory(inner, &plan).await;
        if let Ok(Err(PrepareError::StillRunning { launch, shim_pid })) = &made {
            // The shim of the last attempt may be about to go.
            Stranger { job, launch: *launch, shim_pid: *shim_pid }.may_leave(inner).await;
            made = make_directory(inner, &plan).await;
        }
        let plan = match made {
            Ok(Ok(plan)) => plan,
            Ok(Err(error)) => {
                inner.launches().remove(&launch);
                let stranger = match &error {
                    PrepareError::StillRunning { launch, shim_pid } => {
                        Some(Stranger { job, launch: *launch, shim_pid: *shim_pid })
                    }
                    _ => None,
                };
                inner.report(Event::PrepareFailed { launch, error }).await;
                if let Some(stranger) = stranger {
                    stranger.outlast(inner).await;
                }
                return;
            }
            // The runtime is shutting down.
            Err(_) => return,
        };
        let disarmed = {
            let mut state = self.state();
            let disarmed = matches!(*state, State::Preparing { disarmed: true });
            *state = if disarmed { State::Over } else { State::Prepared(Box::new(plan)) };
            disarmed
        };
        if disarmed {
            self.started_nothing(inner, None).await;
        } else {
            inner.report(Event::Prepared { launch }).await;
        }
    }

    /// Says that this launch started nothing. Its directory, the evidence of that, stays until the store has it too: a host that
    /// is killed in between has to find the same again.
    pub(super) async fn started_nothing(&self, inner: &Inner, reason: Option<String>) {
        *self.state() = State::StartedNothing;
        inner.report(Event::Settled { launch: self.id, settlement: Settlement::NotStarted { reason } }).await;
    }

    /// Starts the shim and follows it to its end.
    pub(super) async fn arm(self: Arc<Self>, inner: &Arc<Inner>, plan: Box<ShimPlan>) {
        let (control, spawner) = match self.start_shim(inner).await {
            Ok(started) => started,
            Err(error) => {
                *self.state() = State::Over;
                return self.started_nothing(inner, Some(format!("cannot start a shim: {error}"))).await;
            }
        };
        // An error shows as the end of the stream below.
        let _ = control.send(&Request::Plan(plan));
        let heard = Heard { shim_pid: 0, started: false, ended: false, failed: None };
        let parent = Parent::Spawner(spawner);
        let unclear = Arc::clone(&self).follow(inner, control, Lines::default(), heard, parent).await;
        if let Some(known) = unclear {
            self.search(inner, known).await;
        }
    }

    async fn start_shim(&self, inner: &Inner) -> io::Result<(Arc<Control>, Spawner)> {
        let spawner = inner.spawner().await?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let directory = open_directory(&self.directory)?;
        let control = Arc::new(Control::new(ours)?);
        let forked = spawner.fork(self.id, OwnedFd::from(theirs), directory);
        match tokio::time::timeout(ANSWER_TIMEOUT, forked).await {
            Ok(forked) => forked?,
            Err(_) => {
                inner.give_up_on(&spawner).await?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the spawner does not take requests"));
            }
        }
        Ok((control, spawner))
    }

    /// Follows a shim that an earlier host has started.
    pub(super) async fn follow_adopted(
        self: Arc<Self>,
        inner: &Arc<Inner>,
        control: Arc<Control>,
        lines: Lines,
        shim_pid: i32,
    ) -> Option<Known> {
        let heard = Heard { shim_pid, started: true, ended: false, failed: None };
        self.follow(inner, control, lines, heard, Parent::Earlier).await
    }

    /// Passes on what the shim reports until it is gone, then finds out what became of the launch. What is known of it is
    /// returned when that is still unclear.
    async fn follow(
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
                progress = next_progress(&mut watcher) => {
                    inner.report(Event::Progress { launch, progress }).await;
                    continue;
                }
            };
            let Some(report) = report else { break };
            match report {
                Report::Ready { shim_pid, .. } => {
                    heard.shim_pid = shim_pid;
                    if self.is_ready(&control) {
                        patience = Patience::endless();
                        inner.report(Event::Ready { launch }).await;
                    }
                }
                Report::Started(process) => {
                    heard.started = true;
                    inner.report(Event::Started { launch, process }).await;
                    watcher = Some(self.progress());
                }
                Report::Ended(record) if !heard.ended => {
                    heard.ended = true;
                    watcher = None;
                    if let Some(progress) = progress::read(&self.directory) {
                        inner.report(Event::Progress { launch, progress }).await;
                    }
                    inner.report(Event::Ended { launch, record }).await;
                }
                Report::Unkillable { pids } => inner.report(Event::Unkillable { launch, pids }).await,
                Report::Failed { message } => heard.failed = Some(message),
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
        let tell = |why: &str| Event::Unresponsive { launch: self.id, shim_pid: heard.shim_pid, why: why.to_owned() };
        match late {
            Late::TellNotReady => {
                inner.report(tell("its shim does not get ready")).await;
                return false;
            }
            Late::TellNotGone => {
                inner.report(tell("its shim was killed and does not go away")).await;
                return false;
            }
            Late::GiveUp => {
                heard.failed = Some("its shim did not get ready".to_owned());
                *self.state() = State::Arming { disarmed: true };
                control.close();
            }
            Late::Kill => {}
        }
        // It was not told to start anything, and nobody can tell it any more.
        let known = Known { phase: StoredPhase::Armed, same_boot: true };
        match self.settle(inner, known).await {
            Ok(Ok(Settled::LockHeldBy(shim_pid))) => {
                tracing::warn!(launch = %self.id, shim_pid, "a shim that has nothing to do does not leave and is killed");
                let directory = self.directory.clone();
                if let Ok(Err(error)) = blocking(move || settle::kill_holder(&directory, shim_pid)).await {
                    tracing::warn!(launch = %self.id, shim_pid, %error, "a shim cannot be killed");
                }
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

    /// The shim's socket has closed.
    async fn gone(self: Arc<Self>, inner: &Arc<Inner>, heard: Heard, parent: Parent) -> Option<Known> {
        let before = std::mem::replace(&mut *self.state(), State::Over);
        if heard.ended {
            inner.launches().remove(&self.id);
            if let Parent::Spawner(spawner) = &parent
                && !spawner.is_alive()
            {
                let _ = blocking(move || settle::wait_for_shim(heard.shim_pid)).await;
            }
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
                        .wait_until_gone(inner, &parent, heard.shim_pid)
                        .await
                        .unwrap_or_else(|| LOST_BEFORE_GO.to_owned()),
                };
                self.started_nothing(inner, Some(reason)).await;
                return None;
            }
        }
        // The socket closes before the shim's children are ended or handed on: only when its process is gone can they be found.
        let reason = self.wait_until_gone(inner, &parent, heard.shim_pid).await;
        tracing::warn!(launch = %self.id, reason = reason.as_deref().unwrap_or("unknown"), "a shim was lost");
        let phase = if heard.started { StoredPhase::Running } else { StoredPhase::Pending };
        let known = Known { phase, same_boot: true };
        let launch = self.id;
        match self.settle(inner, known).await {
            Ok(Ok(Settled::Yes(Settlement::NotStarted { .. }))) => {
                self.started_nothing(inner, heard.failed.or(reason)).await
            }
            Ok(Ok(Settled::Yes(settlement))) => inner.settle(launch, settlement).await,
            // A process of another making holds the lock: the same as after a restart.
            Ok(Ok(Settled::LockHeldBy(_)) | Err(_)) => return Some(known),
            // The runtime is shutting down.
            Err(_) => {}
        }
        None
    }

    /// Settles it under its lock.
    pub(super) async fn settle(&self, inner: &Inner, known: Known) -> Result<io::Result<Settled>, JoinError> {
        let directory = self.directory.clone();
        let launch = self.id;
        let groups = inner.limits.groups.clone();
        let events = inner.events.clone();
        let unkillable = move |pids| drop(events.blocking_send(Event::Unkillable { launch, pids }));
        blocking(move || settle::settle(&directory, launch, known, groups.as_ref(), &unkillable)).await
    }

    /// Waits until the shim's process is gone, and its orphans with it where the spawner sees to them. Returns why it went when
    /// the spawner knows.
    async fn wait_until_gone(&self, inner: &Inner, parent: &Parent, shim_pid: i32) -> Option<String> {
        if let Parent::Spawner(spawner) = parent {
            let mut fate = self.fate.subscribe();
            let mut lost = spawner.watch_lost();
            loop {
                let unkillable = match &*fate.borrow_and_update() {
                    Fate::Unknown => None,
                    Fate::Unkillable(pids) => Some(pids.clone()),
                    Fate::Gone(reason) => return Some(reason.clone()),
                };
                if let Some(pids) = unkillable {
                    inner.report(Event::Unkillable { launch: self.id, pids }).await;
                }
                tokio::select! {
                    biased;
                    _ = fate.changed() => {}
                    _ = lost.wait_for(|lost| *lost) => break,
                }
            }
        }
        let _ = blocking(move || settle::wait_for_shim(shim_pid)).await;
        None
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

/// Runs something that waits for the disk or for processes. The error means that the runtime is shutting down.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// A descriptor to reach the directory's files by, whatever the length of its path.
pub(super) fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory)?;
    Ok(file.into())
}
