//! A launcher in a temporary directory, and the questions that tests ask it.
#![allow(dead_code, unused_imports, reason = "every test program uses a part of it")]

mod host;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use taxiway_job::{JobId, LaunchId, ProcessSpec};
use taxiway_launcher::{
    Event, ExitRecord, LaunchPlan, Launcher, LocalLauncher, Options, Settlement, Started, StoredPhase, Unsettled, log,
};
use tokio::sync::mpsc;

pub use self::host::{Host, gated};

/// The program that becomes the spawner.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_taxiway-launcher-test-host");

/// No event takes this long on a machine that works, however busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A launcher, its jobs directory and its events.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub launcher: LocalLauncher,
    events: mpsc::Receiver<Event>,
}

/// One start of a job.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    pub job: JobId,
    pub launch: LaunchId,
}

impl Start {
    pub fn new() -> Self {
        Self { job: JobId::new(), launch: LaunchId::random() }
    }
}

/// A shell command.
pub fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

impl Bench {
    pub fn new() -> Self {
        Self::with_log_max_size(1 << 20)
    }

    pub fn with_log_max_size(log_max_size: u64) -> Self {
        Self::over(tempfile::tempdir().expect("a temporary directory"), log_max_size)
    }

    /// A launcher over a directory that another host may have used.
    pub fn over(directory: tempfile::TempDir, log_max_size: u64) -> Self {
        let options = Options::new(directory.path().join("jobs"), PROGRAM.into(), log_max_size);
        Self::start(directory, options)
    }

    /// A launcher with options of its own.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut options = Options::new(directory.path().join("jobs"), PROGRAM.into(), 1 << 20);
        change(&mut options);
        Self::start(directory, options)
    }

    fn start(directory: tempfile::TempDir, options: Options) -> Self {
        let (sender, events) = mpsc::channel(64);
        let launcher = LocalLauncher::start(options, sender).expect("a launcher");
        Self { directory, launcher, events }
    }

    pub fn jobs_dir(&self) -> PathBuf {
        self.directory.path().join("jobs")
    }

    pub fn launch_dir(&self, start: Start) -> PathBuf {
        self.jobs_dir().join(start.job.to_string()).join(start.launch.to_string())
    }

    /// Waits until the directory of a launch that started nothing is gone.
    pub async fn removed(&self, start: Start) {
        patiently(async {
            while self.launch_dir(start).exists() {
                // No event tells of it.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Waits until the shim of a launch can be asked.
    pub async fn listens(&self, start: Start) {
        patiently(async {
            while !self.launch_dir(start).join("shim.sock").exists() {
                // No event tells of it.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub fn log_path(&self, start: Start) -> PathBuf {
        log::path(&self.jobs_dir(), start.job, start.launch)
    }

    pub fn log(&self, start: Start) -> String {
        String::from_utf8(fs::read(self.log_path(start)).expect("a log")).expect("UTF-8")
    }

    pub fn plan(&self, start: Start, command: Vec<String>) -> LaunchPlan {
        LaunchPlan {
            job: start.job,
            launch: start.launch,
            attempt: 1,
            command,
            external_id: None,
            cwd: None,
            env: Vec::new(),
            hide_gpus: false,
            config: None,
            time_limit: None,
            grace: Duration::from_secs(30),
            process: ProcessSpec::default(),
        }
    }

    /// The next event, but for those that a busy machine alone may cause, and answers.
    pub async fn event(&mut self) -> Event {
        loop {
            match self.any_event().await {
                Event::Unresponsive { .. } | Event::Responsive { .. } | Event::Extended { .. } => {}
                other => return other,
            }
        }
    }

    /// The next event of any kind.
    pub async fn any_event(&mut self) -> Event {
        patiently(self.events.recv()).await.expect("the launcher lives")
    }

    /// Waits until the launcher says that a shim does not answer. Returns which one and why.
    pub async fn silence(&mut self) -> (i32, String) {
        match self.any_event().await {
            Event::Unresponsive { shim_pid, why, .. } => (shim_pid, why),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the shim has answered to another time limit. Returns whether it holds.
    pub async fn extended(&mut self) -> bool {
        loop {
            match self.any_event().await {
                Event::Extended { in_time, .. } => return in_time,
                Event::Unresponsive { .. } | Event::Responsive { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Prepares and arms a launch.
    pub async fn ready(&mut self, plan: LaunchPlan) -> Start {
        let start = Start { job: plan.job, launch: plan.launch };
        self.launcher.prepare(plan);
        match self.event().await {
            Event::Prepared { launch } => assert_eq!(launch, start.launch),
            other => panic!("not prepared: {other:?}"),
        }
        self.launcher.arm(start.launch);
        match self.event().await {
            Event::Ready { launch } => assert_eq!(launch, start.launch),
            other => panic!("not ready: {other:?}"),
        }
        start
    }

    /// Takes a plan as far as a running process.
    pub async fn run_plan(&mut self, plan: LaunchPlan) -> (Start, Started) {
        let start = self.ready(plan).await;
        self.launcher.go(start.launch, &[]).expect("it is ready");
        match self.event().await {
            Event::Started { launch, process } => {
                assert_eq!(launch, start.launch);
                (start, process)
            }
            other => panic!("not started: {other:?}"),
        }
    }

    /// Runs a command as far as its process.
    pub async fn run(&mut self, command: Vec<String>) -> (Start, Started) {
        let plan = self.plan(Start::new(), command);
        self.run_plan(plan).await
    }

    /// The same; none when nothing was started, because the spawner had just died.
    pub async fn try_run(&mut self, command: Vec<String>) -> Option<(Start, Started)> {
        let start = Start::new();
        self.launcher.prepare(self.plan(start, command));
        assert!(matches!(self.event().await, Event::Prepared { .. }));
        self.launcher.arm(start.launch);
        match self.event().await {
            Event::Ready { .. } => {}
            Event::Settled { settlement: Settlement::NotStarted { .. }, .. } => return None,
            other => panic!("{other:?}"),
        }
        self.launcher.go(start.launch, &[]).expect("it is ready");
        match self.event().await {
            Event::Started { process, .. } => Some((start, process)),
            other => panic!("not started: {other:?}"),
        }
    }

    /// Waits for the end, passing over progress.
    pub async fn end(&mut self, start: Start) -> ExitRecord {
        loop {
            match self.event().await {
                Event::Ended { launch, record } if launch == start.launch => return *record,
                Event::Progress { .. } => {}
                other => panic!("not ended: {other:?}"),
            }
        }
    }

    /// Runs a command to its end and confirms it.
    pub async fn run_to_end(&mut self, command: Vec<String>) -> (Start, ExitRecord) {
        let (start, _) = self.run(command).await;
        let record = self.end(start).await;
        self.launcher.confirm(start.launch);
        (start, record)
    }

    pub async fn settlement(&mut self, start: Start) -> Settlement {
        loop {
            match self.event().await {
                Event::Settled { launch, settlement } if launch == start.launch => return settlement,
                Event::Progress { .. } => {}
                other => panic!("not settled: {other:?}"),
            }
        }
    }

    pub fn recover(&self, start: Start, phase: StoredPhase) {
        let boot_id = taxiway_launcher::boot_id().expect("/proc");
        self.launcher.recover(vec![Unsettled {
            job: start.job,
            launch: start.launch,
            phase,
            boot_id,
            time_limit: None,
        }]);
    }

    /// Waits until the log holds a text, and returns all of it up to then.
    pub async fn log_has(&self, start: Start, text: &str) -> String {
        let mut seen = Vec::new();
        let mut chunks = pin!(log::follow(self.log_path(start), 0, std::future::pending()));
        while !String::from_utf8_lossy(&seen).contains(text) {
            let chunk = patiently(chunks.next()).await.expect("it goes on").expect("a log");
            seen.extend_from_slice(&chunk);
        }
        String::from_utf8(seen).expect("UTF-8")
    }
}

/// Fails a test that would hang.
pub async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes before the patience ends")
}

/// The processes with this launch in their environment, by pid, with their state.
pub fn processes_of(launch: LaunchId) -> HashMap<i32, char> {
    let variable = format!("TAXIWAY_LAUNCH_ID={launch}");
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()) {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()).unwrap_or('?');
            found.insert(pid, state);
        }
    }
    found
}

/// Whether a process is there, zombies not counted.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// The pid of a launch's shim: the parent of its job.
pub fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let rest = stat.rsplit(')').next().expect("a stat");
    rest.split_ascii_whitespace().nth(1).and_then(|parent| parent.parse().ok()).expect("a parent")
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved. The pid is that of a process that the test has started.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill {pid} with {signal}: {}", std::io::Error::last_os_error());
}

/// Waits until a process is gone, by its pidfd.
pub async fn gone(pid: i32) {
    // SAFETY: the call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
    if fd < 0 {
        return;
    }
    let wait = tokio::task::spawn_blocking(move || {
        let mut poll = libc::pollfd { fd: i32::try_from(fd).expect("a descriptor"), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd is given and valid; the descriptor is closed once.
        unsafe {
            libc::poll(&raw mut poll, 1, -1);
            libc::close(poll.fd);
        }
    });
    patiently(wait).await.expect("it waits");
}

/// The holder of a launch's lock.
pub fn lock_holder(bench: &Bench, start: Start) -> i32 {
    let lock = std::fs::OpenOptions::new().write(true).open(bench.launch_dir(start).join("lock")).expect("a lock");
    let mut holder = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_GETLK(&mut holder)).expect("it can be asked");
    assert_ne!(i32::from(holder.l_type), libc::F_UNLCK, "nobody holds it");
    holder.l_pid
}

/// A control group (version 2) for one test, removed after it.
pub struct TestGroup {
    pub path: PathBuf,
}

impl TestGroup {
    /// A new group; none, said loudly, where this machine lets nobody make one.
    pub fn new() -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
        });
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let made = mount.map(|mount| {
            let path = PathBuf::from(mount).join(format!("taxiway-test-{}-{count}", std::process::id()));
            fs::create_dir(&path).map(|()| Self { path })
        });
        match made {
            Some(Ok(group)) => Some(group),
            Some(Err(error)) => {
                eprintln!("SKIPPED: no control group can be made here: {error}");
                None
            }
            None => {
                eprintln!("SKIPPED: cgroup2 is not mounted here");
                None
            }
        }
    }
}

impl Drop for TestGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
