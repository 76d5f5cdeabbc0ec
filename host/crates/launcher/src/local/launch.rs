//! One launch as the host sees it: its state, and how it comes to a shim. [`follow`](super::follow) has what the shim says then.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taxiway_job::{JobId, LaunchId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;

use super::Inner;
use super::control::Control;
use super::directory::{self, launch_directory};
use super::follow::Heard;
use super::patience::ANSWER_TIMEOUT;
use super::spawner::Spawner;
use super::stranger::Stranger;
use super::vigil::Vigil;
use crate::assignment::Assignment;
use crate::launch::{Event, LaunchPlan, PrepareError, Settlement};
use crate::processes::Identity;
use crate::wire::{Lines, Request, ShimPlan};

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
    pub(super) fate: watch::Sender<Fate>,
    /// It was disarmed: its task closes the socket, if that was not done, and waits for the shim to leave.
    pub(super) disarmed: Notify,
    /// What its shim owes once it was told to go.
    pub(super) vigil: Vigil,
}

/// Whose child a shim is, which decides how one learns that it is gone.
pub(super) enum Parent {
    /// A spawner of this host.
    Spawner(Spawner),
    /// One of an earlier host, if that still lives.
    Earlier(Option<Identity>),
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

impl Launch {
    pub(super) fn new(inner: &Inner, job: JobId, id: LaunchId, time_limit: Option<Duration>, state: State) -> Self {
        Self {
            id,
            directory: launch_directory(&inner.jobs_dir, job, id),
            state: Mutex::new(state),
            fate: watch::Sender::new(Fate::Unknown),
            disarmed: Notify::new(),
            vigil: Vigil::new(time_limit, inner.ask_every),
        }
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
        let parent = Parent::Spawner(spawner);
        let unclear = Arc::clone(&self).follow(inner, control, Lines::default(), Heard::default(), parent).await;
        if let Some(known) = unclear {
            self.search(inner, known).await;
        }
    }

    async fn start_shim(&self, inner: &Inner) -> io::Result<(Arc<Control>, Spawner)> {
        let spawner = inner.spawner().await?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let directory = open_directory(&self.directory)?;
        let control = Arc::new(Control::new(ours)?);
        let asked = spawner.ask(Assignment { launch: self.id, control: OwnedFd::from(theirs), directory });
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(asked) => asked?,
            Err(_) => {
                inner.give_up_on(&spawner).await?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the spawner does not take requests"));
            }
        }
        Ok((control, spawner))
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
