//! The launcher for jobs on this machine.
//!
//! Each launch has an entry with its state, and from `arm` on a task that reads what its shim reports and finds out what became
//! of it. Calls change the state under the entry's lock and write to the shim's socket on the caller's thread: `go` wakes nobody
//! but the shim.

mod control;
mod directory;
mod follow;
mod gone;
mod launch;
mod leftover;
mod orphans;
mod patience;
mod recover;
mod settle;
mod spawner;
mod stranger;
mod vigil;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taxiway_job::LaunchId;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub(crate) use self::directory::launch_directory;
use self::directory::{Limits, User, milliseconds};
use self::launch::{Fate, Launch, State};
pub use self::leftover::remove_leftovers;
pub use self::orphans::started_alone;
use self::spawner::Spawner;
use crate::cgroup::Delegated;
use crate::launch::{Event, GoError, LaunchPlan, Launcher, Settlement, Stop, Unsettled};
use crate::processes::UNKILLABLE_NS;
use crate::wire::{Request, SpawnerReport};

/// Once a minute costs nothing and is soon enough for what happens about never.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// How a [`LocalLauncher`] is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that gets a directory for each job. It is created when it is missing.
    pub jobs_dir: PathBuf,
    /// The program that calls [`crate::dispatch_spawner`]. `/proc/self/exe` stays the running program also when its file is
    /// replaced.
    pub program: PathBuf,
    /// The most a job's log may have, in bytes.
    pub log_max_size: u64,
    /// The control group below which each job gets its own, if there is one.
    pub groups: Option<Delegated>,
    /// How long a process may survive SIGKILL before [`Event::Unkillable`] says so.
    pub unkillable_after: Duration,
    /// How often the shim of a running job is asked whether it is there. No event tells that a process was stopped, and the end of
    /// its job would not be seen.
    pub ask_every: Duration,
    /// Whether this process [started alone](started_alone). Then what comes to it as a child, in a session of its own, is of a job
    /// whose shim and spawner have died, and is ended.
    pub started_alone: bool,
}

impl Options {
    /// Options with the defaults: no control groups, DESIGN's minute for what does not die. To be made before this process starts
    /// any other.
    #[must_use]
    pub fn new(jobs_dir: PathBuf, program: PathBuf, log_max_size: u64) -> Self {
        let unkillable_after = Duration::from_nanos(UNKILLABLE_NS);
        let (ask_every, started_alone) = (ASK_EVERY, started_alone());
        Self { jobs_dir, program, log_max_size, groups: None, unkillable_after, ask_every, started_alone }
    }
}

/// Why a launcher could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The jobs directory cannot be used.
    #[error("cannot use the jobs directory {path}: {error}; check its owner and mode, or name another one")]
    JobsDirectory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The spawner cannot be started.
    #[error("cannot start the spawner from {program}: {error}")]
    Spawner {
        /// The program.
        program: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// `/proc` cannot be read, without which no process can be identified.
    #[error("cannot read /proc: {0}; mount it")]
    Proc(std::io::Error),
}

/// Starts jobs as processes of this machine, each below a shim of its own.
#[derive(Clone)]
pub struct LocalLauncher {
    inner: Arc<Inner>,
}

struct Inner {
    jobs_dir: PathBuf,
    program: PathBuf,
    limits: Limits,
    user: User,
    boot_id: String,
    ask_every: Duration,
    started_alone: bool,
    runtime: Handle,
    events: mpsc::Sender<Event>,
    launches: Arc<Mutex<HashMap<LaunchId, Arc<Launch>>>>,
    /// Async, because whoever finds it dead starts another while the rest waits.
    spawner: tokio::sync::Mutex<Spawner>,
}

impl LocalLauncher {
    /// Starts the spawner and makes this process a subreaper, so that no orphan of a job gets past it.
    ///
    /// Must be called within a tokio runtime, whose tasks report on `events`. The channel's reader must keep reading while it
    /// calls the launcher; no call waits for room in it.
    ///
    /// # Errors
    /// When the jobs directory, the program or `/proc` cannot be used.
    pub fn start(options: Options, events: mpsc::Sender<Event>) -> Result<Self, StartError> {
        let unusable = |error| StartError::JobsDirectory { path: options.jobs_dir.clone(), error };
        // Logs and configurations are for the service's user alone.
        DirBuilder::new().recursive(true).mode(0o700).create(&options.jobs_dir).map_err(unusable)?;
        let jobs_dir = std::fs::canonicalize(&options.jobs_dir).map_err(unusable)?;
        let boot_id = crate::clock::boot_id().map_err(StartError::Proc)?;
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| StartError::Proc(error.into()))?;
        let launches = Arc::<Mutex<HashMap<LaunchId, Arc<Launch>>>>::default();
        let spawner = Spawner::start(&options.program, tell_fate(&launches))
            .map_err(|error| StartError::Spawner { program: options.program.clone(), error })?;
        let inner = Inner {
            jobs_dir,
            program: options.program,
            limits: Limits {
                log_max_size: options.log_max_size,
                groups: options.groups,
                unkillable_after: options.unkillable_after,
            },
            ask_every: options.ask_every,
            user: User::current(),
            boot_id,
            started_alone: options.started_alone,
            runtime: Handle::current(),
            events,
            launches,
            spawner: tokio::sync::Mutex::new(spawner),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    /// The spawner, or a new one when it has died.
    async fn spawner(&self) -> std::io::Result<Spawner> {
        let mut spawner = self.spawner.lock().await;
        if !spawner.is_alive() {
            *spawner = Spawner::start(&self.program, tell_fate(&self.launches))?;
        }
        Ok(spawner.clone())
    }

    /// Has another spawner started for the launches to come: this one does not do what it is asked. It goes on looking after the
    /// shims that it has, once it goes on at all, and ends with the last.
    async fn give_up_on(&self, spawner: &Spawner) -> std::io::Result<()> {
        let mut current = self.spawner.lock().await;
        if current.is(spawner) {
            *current = Spawner::start(&self.program, tell_fate(&self.launches))?;
            tracing::warn!(spawner = spawner.pid(), "the spawner does not do what it is asked; another one is started");
            spawner.retire();
            // If it was stopped (SIGSTOP), it can look after its shims again. What it is still asked for finds its socket closed.
            if let Err(error) = spawner.signal(libc::SIGCONT) {
                tracing::warn!(spawner = spawner.pid(), %error, "it cannot be continued");
            }
        }
        Ok(())
    }

    fn launches(&self) -> MutexGuard<'_, HashMap<LaunchId, Arc<Launch>>> {
        self.launches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, launch: LaunchId) -> Option<Arc<Launch>> {
        self.launches().get(&launch).map(Arc::clone)
    }

    /// Reports; a host that has dropped the channel is shutting down and hears the rest when it starts again.
    async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// Reports the end of a launch's story and forgets it.
    async fn settle(&self, launch: LaunchId, settlement: Settlement) {
        self.launches().remove(&launch);
        self.report(Event::Settled { launch, settlement }).await;
    }
}

impl Launcher for LocalLauncher {
    fn prepare(&self, plan: LaunchPlan) {
        let inner = Arc::clone(&self.inner);
        let state = State::Preparing { disarmed: false };
        let launch = Arc::new(Launch::new(&inner, plan.job, plan.launch, plan.time_limit, state));
        inner.launches().insert(plan.launch, Arc::clone(&launch));
        self.inner.runtime.spawn(async move { launch.prepare(&inner, plan).await });
    }

    fn arm(&self, launch: LaunchId) {
        let Some(entry) = self.inner.find(launch) else {
            tracing::error!(%launch, "a launch that was never prepared cannot be armed");
            return;
        };
        let mut state = entry.state();
        match std::mem::replace(&mut *state, State::Arming { disarmed: false }) {
            State::Prepared(plan) => {
                drop(state);
                let inner = Arc::clone(&self.inner);
                self.inner.runtime.spawn(async move { entry.arm(&inner, plan).await });
            }
            other => {
                *state = other;
                tracing::error!(%launch, "only a launch that is prepared can be armed");
            }
        }
    }

    fn go(&self, launch: LaunchId, gpu_uuids: &[String]) -> Result<(), GoError> {
        let entry = self.inner.find(launch).ok_or(GoError::NotReady)?;
        let mut state = entry.state();
        let State::Ready(control) = &*state else { return Err(GoError::NotReady) };
        let control = Arc::clone(control);
        // Before it is sent: the answer comes on another thread.
        entry.vigil.begin_to_go();
        control.send(&Request::Go { gpu_uuids: gpu_uuids.to_vec() }).map_err(|_| GoError::Gone)?;
        *state = State::Going(control);
        Ok(())
    }

    fn disarm(&self, launch: LaunchId) {
        let Some(entry) = self.inner.find(launch) else { return };
        let mut state = entry.state();
        match &mut *state {
            State::Preparing { disarmed } => *disarmed = true,
            State::Arming { disarmed } => {
                *disarmed = true;
                entry.wake();
            }
            State::Prepared(_) => {
                *state = State::Over;
                drop(state);
                let inner = Arc::clone(&self.inner);
                self.inner.runtime.spawn(async move { entry.started_nothing(&inner, None).await });
            }
            State::Ready(control) => {
                control.close();
                *state = State::Disarming;
                entry.wake();
            }
            State::Disarming | State::Going(_) | State::StartedNothing | State::Over => {}
        }
    }

    fn stop(&self, launch: LaunchId, stop: Stop) {
        if let Some(entry) = self.inner.find(launch) {
            entry.say(&Request::Stop { grace_ms: stop.grace.map(milliseconds), signal: stop.signal });
        }
    }

    fn extend(&self, launch: LaunchId, time_limit: Option<Duration>) -> bool {
        let Some(entry) = self.inner.find(launch) else { return false };
        entry.vigil.set_time_limit(time_limit);
        entry.say(&Request::Extend { time_limit_ms: time_limit.map(milliseconds) })
    }

    fn confirm(&self, launch: LaunchId) {
        let Some(entry) = self.inner.find(launch) else { return };
        if matches!(*entry.state(), State::StartedNothing) {
            self.inner.launches().remove(&launch);
            let inner = Arc::clone(&self.inner);
            self.inner.runtime.spawn_blocking(move || {
                settle::remove_group(&entry.directory, launch, inner.limits.groups.as_ref());
                directory::remove(&entry.directory);
            });
            return;
        }
        entry.say(&Request::Confirm);
    }

    fn recover(&self, attempts: Vec<Unsettled>) {
        for attempt in attempts {
            let state = State::Arming { disarmed: false };
            let (job, limit) = (attempt.job, attempt.time_limit);
            let launch = Arc::new(Launch::new(&self.inner, job, attempt.launch, limit, state));
            self.inner.launches().insert(attempt.launch, Arc::clone(&launch));
            let inner = Arc::clone(&self.inner);
            self.inner.runtime.spawn(async move { launch.recover(&inner, attempt).await });
        }
    }
}

/// Passes on what the spawner says of a shim to the launch that waits for it.
fn tell_fate(launches: &Arc<Mutex<HashMap<LaunchId, Arc<Launch>>>>) -> impl Fn(SpawnerReport) + Send + 'static {
    let launches = Arc::clone(launches);
    move |report| {
        let (launch, fate) = match report {
            SpawnerReport::Gone { launch, reason } => (launch, Fate::Gone(reason)),
            SpawnerReport::Unkillable { launch, pids } => (launch, Fate::Unkillable(pids)),
        };
        let entry = launches.lock().unwrap_or_else(PoisonError::into_inner).get(&launch).map(Arc::clone);
        if let Some(entry) = entry {
            entry.set_fate(fate);
        }
    }
}
