//! How a job's process is set up beyond its command: mask, limits, control group, and the signals it asked for.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::{Bench, Start, TestGroup, gone, lock_holder, parent, processes_of, sh};
use taxiway_job::{Limit, ProcessSpec, Resource};
use taxiway_launcher::{Delegated, Event, Launcher, Settlement, Status, Stop, StoredPhase};

fn signal(name: &str) -> Option<taxiway_job::Signal> {
    Some(name.parse().expect("a signal"))
}

#[tokio::test]
async fn a_job_has_the_mask_and_the_limits_that_its_profile_says() {
    let mut bench = Bench::new();
    let rlimits = BTreeMap::from([
        (Resource::Nofile, Limit::AtMost(123)),
        (Resource::Core, Limit::AtMost(0)),
        (Resource::Fsize, Limit::AtMost(8 << 20)),
    ]);
    let mut plan = bench
        .plan(Start::new(), sh("umask; ulimit -Sn; ulimit -Hn; ulimit -c; grep '^Max file size' /proc/self/limits"));
    plan.process = ProcessSpec { umask: Some(0o027), rlimits, ..ProcessSpec::default() };
    let (start, _) = bench.run_plan(plan).await;
    assert_eq!(bench.end(start).await.status, Status::Exited(0));
    let log = bench.log(start);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..4], ["0027", "123", "123", "0"], "{log}");
    assert_eq!(
        lines[4].split_ascii_whitespace().collect::<Vec<_>>(),
        ["Max", "file", "size", "8388608", "8388608", "bytes"]
    );
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_is_a_launch_error_that_names_it() {
    let mut bench = Bench::new();
    // More than the kernel lets anybody have (fs.nr_open).
    let rlimits = BTreeMap::from([(Resource::Core, Limit::AtMost(0)), (Resource::Nofile, Limit::Unlimited)]);
    let mut plan = bench.plan(Start::new(), sh("true"));
    plan.process = ProcessSpec { rlimits, ..ProcessSpec::default() };
    let start = bench.ready(plan).await;
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    let record = bench.end(start).await;
    let Status::LaunchError(error) = record.status else { panic!("it ran: {record:?}") };
    assert_eq!(error.errno, libc::EPERM);
    assert!(error.message.starts_with("cannot set the resource limit `nofile`"), "{}", error.message);
}

#[tokio::test]
async fn a_job_is_asked_to_stop_by_the_signal_of_its_profile() {
    let mut bench = Bench::new();
    let mut plan = bench.plan(
        Start::new(),
        sh("trap 'echo checkpoint; exit 11' INT; trap 'exit 12' TERM; echo up; while :; do sleep 1000 & wait; done"),
    );
    plan.process.stop_signal = signal("SIGINT");
    let (start, _) = bench.run_plan(plan).await;
    bench.log_has(start, "up").await;
    bench.launcher.stop(start.launch, Stop { grace: None, signal: None });
    assert_eq!(bench.end(start).await.status, Status::Exited(11));
    assert_eq!(bench.log(start), "up\ncheckpoint\n");
}

#[tokio::test]
async fn a_job_is_warned_before_its_time_limit_and_again_when_the_limit_moved() {
    let mut bench = Bench::new();
    let mut plan = bench.plan(
        Start::new(),
        sh("trap 'echo warned' USR1; trap 'echo stopped; exit 9' TERM; echo up; while :; do sleep 1000 & wait; done"),
    );
    let hour = Duration::from_secs(3600);
    plan.process.warn_signal = signal("USR1");
    plan.process.warn_before = Some(hour);
    plan.time_limit = Some(hour * 100);
    let (start, _) = bench.run_plan(plan).await;
    bench.log_has(start, "up").await;
    // The warning is due a moment after the exec, the limit an hour later.
    bench.launcher.extend(start.launch, Some(hour + Duration::from_millis(1)));
    bench.log_has(start, "warned\n").await;
    bench.launcher.extend(start.launch, Some(hour + Duration::from_millis(2)));
    bench.log_has(start, "warned\nwarned\n").await;
    // Shorter than the warning: none comes, the limit strikes at once.
    bench.launcher.extend(start.launch, Some(Duration::from_millis(1)));
    let record = bench.end(start).await;
    assert!(record.timed_out());
    assert_eq!(record.status, Status::Exited(9));
    assert_eq!(bench.log(start), "up\nwarned\nwarned\nstopped\n");
}

#[tokio::test]
async fn a_job_runs_in_a_control_group_of_its_own_and_its_shim_does_not() {
    let Some(group) = TestGroup::new() else { return };
    let base = group.path.clone();
    let mut bench = Bench::with(|options| options.groups = Some(Delegated::at(base).expect("a group")));
    let (start, process) = bench.run(sh("setsid sleep 1000 & echo up; while :; do sleep 1000; done")).await;
    bench.log_has(start, "up").await;
    let own = group.path.join(format!("job-{}", start.launch));
    let pids = |path: &std::path::Path| -> Vec<i32> {
        let text = std::fs::read_to_string(path.join("cgroup.procs")).expect("a group");
        text.lines().map(|pid| pid.parse().expect("a pid")).collect()
    };
    let inside = pids(&own);
    assert!(inside.contains(&process.pid) && inside.len() >= 2, "{inside:?}");
    assert!(!inside.contains(&parent(process.pid)), "its shim must outlive it");
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
    bench.end(start).await;
    let shim = lock_holder(&bench, start);
    bench.launcher.confirm(start.launch);
    gone(shim).await;
    assert!(!own.exists(), "the group goes with its shim");
}

#[tokio::test]
async fn what_left_its_parents_and_its_environment_is_still_found_in_the_control_group() {
    let Some(group) = TestGroup::new() else { return };
    let base = group.path.clone();
    let mut bench = Bench::with(|options| options.groups = Some(Delegated::at(base).expect("a group")));
    let (start, process) = bench.run(sh("(setsid env -i sleep 1000 &); echo up; while :; do sleep 1000; done")).await;
    bench.log_has(start, "up").await;
    let own = group.path.join(format!("job-{}", start.launch));
    let text = std::fs::read_to_string(own.join("cgroup.procs")).expect("a group");
    let inside: Vec<i32> = text.lines().map(|pid| pid.parse().expect("a pid")).collect();
    let shim = parent(process.pid);
    let spawner = parent(shim);
    // Both parents at once: nobody is left to whom its orphans would come but this process.
    for pid in [spawner, shim] {
        support::kill(pid, libc::SIGKILL);
    }
    assert!(matches!(bench.settlement(start).await, Settlement::Lost { .. }));
    assert!(processes_of(start.launch).is_empty());
    for pid in inside {
        assert!(!support::lives(pid), "{pid} lives on");
    }
    assert!(!own.exists());
}

#[tokio::test]
async fn the_control_group_is_found_without_its_note_and_no_other_one_is_taken_for_it() {
    let (Some(group), Some(other)) = (TestGroup::new(), TestGroup::new()) else { return };
    let base = group.path.clone();
    let mut bench = Bench::with(|options| options.groups = Some(Delegated::at(base).expect("a group")));
    // Somebody else's process, in a group that a job names as its own.
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep starts");
    std::fs::write(other.path.join("cgroup.procs"), bystander.id().to_string()).expect("it can be moved");
    for note in [None, Some(other.path.to_str().expect("UTF-8"))] {
        let (start, process) =
            bench.run(sh("(setsid env -i sleep 1000 &); echo up; while :; do sleep 1000; done")).await;
        bench.log_has(start, "up").await;
        let own = group.path.join(format!("job-{}", start.launch));
        let text = std::fs::read_to_string(own.join("cgroup.procs")).expect("a group");
        let inside: Vec<i32> = text.lines().map(|pid| pid.parse().expect("a pid")).collect();
        let path = bench.launch_dir(start).join("cgroup");
        match note {
            None => std::fs::remove_file(&path).expect("it was there"),
            Some(note) => std::fs::write(&path, note).expect("it can be written"),
        }
        let shim = parent(process.pid);
        let spawner = parent(shim);
        for pid in [spawner, shim] {
            support::kill(pid, libc::SIGKILL);
        }
        let settlement = bench.settlement(start).await;
        assert!(matches!(settlement, Settlement::Lost { .. }), "{settlement:?}");
        for pid in inside {
            assert!(!support::lives(pid), "{pid} lives on, with the note {note:?}");
        }
        assert!(!own.exists());
    }
    let pid = i32::try_from(bystander.id()).expect("a pid");
    assert!(support::lives(pid), "a group that is none of the job's was ended");
    bystander.kill().expect("it was running");
    bystander.wait().expect("it was a child");
}

#[tokio::test]
async fn the_memory_of_a_job_is_bounded_where_the_controller_is_delegated() {
    let Some(group) = TestGroup::new() else { return };
    let delegated = Delegated::at(group.path.clone()).expect("a group");
    if !delegated.bounds_memory() {
        eprintln!("SKIPPED: cgroup2 has no memory controller here");
        return;
    }
    let mut bench = Bench::with(|options| options.groups = Some(delegated));
    let mut plan = bench.plan(Start::new(), sh("exec python3 -c 'x = bytearray(256 << 20)'"));
    plan.process.memory = Some(64 << 20);
    let (start, _) = bench.run_plan(plan).await;
    let record = bench.end(start).await;
    assert!(record.clean.as_ref().is_some_and(|clean| clean.oom_kills > 0), "{record:?}");
    let failure = taxiway_launcher::failure::classify(&record, b"").expect("it failed");
    assert_eq!(failure.class, taxiway_job::FailureClass::HostOom);
}

#[tokio::test]
async fn processes_that_survive_sigkill_are_reported_and_waited_for() {
    let Some(freezer) = Freezer::new() else { return };
    let mut bench = Bench::with(|options| options.unkillable_after = Duration::from_millis(300));
    let (start, process) = bench.run(sh("echo up; while :; do sleep 1000; done")).await;
    bench.log_has(start, "up").await;
    freezer.freeze(process.pid);
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
    match bench.event().await {
        Event::Unkillable { launch, pids } => {
            assert!(launch == start.launch && pids.contains(&process.pid), "{pids:?}")
        }
        other => panic!("{other:?}"),
    }
    freezer.thaw();
    assert_eq!(bench.end(start).await.status, Status::Signaled(libc::SIGKILL));
    assert!(processes_of(start.launch).is_empty());
}

#[test]
fn what_survives_sigkill_is_told_to_the_next_host_too() {
    let Some(freezer) = Freezer::new() else { return };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let first = runtime();
    let (directory, start, process) = first.block_on(async {
        let mut bench = Bench::with(|options| options.unkillable_after = Duration::from_millis(300));
        let (start, process) = bench.run(sh("echo up; while :; do sleep 1000; done")).await;
        bench.log_has(start, "up").await;
        freezer.freeze(process.pid);
        bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
        assert!(matches!(bench.event().await, Event::Unkillable { .. }));
        (bench.directory, start, process)
    });
    // What the first host has open goes with its tasks.
    first.shutdown_background();
    runtime().block_on(async {
        let mut bench = Bench::over(directory, 1 << 20);
        bench.recover(start, StoredPhase::Running);
        assert!(matches!(bench.event().await, Event::Adopted { .. }));
        match bench.event().await {
            Event::Unkillable { pids, .. } => assert!(pids.contains(&process.pid), "{pids:?}"),
            other => panic!("{other:?}"),
        }
        freezer.thaw();
        assert_eq!(bench.end(start).await.status, Status::Signaled(libc::SIGKILL));
        bench.launcher.confirm(start.launch);
    });
}

/// A freezer of version 1 (cgroups(7)): what is frozen in it sleeps uninterruptibly, as in a driver that hangs, and not even
/// SIGKILL ends it.
struct Freezer {
    path: std::path::PathBuf,
}

impl Freezer {
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("taxiway-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::path::Path::new("/sys/fs/cgroup/freezer").join(name);
        match std::fs::create_dir(&path) {
            Ok(()) => Some(Self { path }),
            Err(error) => {
                eprintln!("SKIPPED: no process can be made unkillable here: {}: {error}", path.display());
                None
            }
        }
    }

    fn freeze(&self, pid: i32) {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
        std::fs::write(self.path.join("freezer.state"), "FROZEN").expect("it can be frozen");
    }

    fn thaw(&self) {
        std::fs::write(self.path.join("freezer.state"), "THAWED").expect("it can be thawed");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path.join("freezer.state"), "THAWED");
        let _ = std::fs::remove_dir(&self.path);
    }
}
