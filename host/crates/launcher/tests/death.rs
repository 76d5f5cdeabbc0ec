//! What comes of a launch when the host, its shim, the spawner or several of them are killed.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::{Bench, PROGRAM, Start, gone, kill, lives, lock_holder, parent, processes_of, sh};
use taxiway_launcher::{AdoptedPhase, Event, Launcher, Settlement, Status, Stop, StoredPhase, Unsettled};

/// A host in a process of its own that has taken a launch to a phase, and what it printed then.
struct Host {
    child: Child,
    line: String,
}

impl Host {
    fn start(bench: &Bench, start: Start, phase: &str, script: &str) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg("host")
            .arg(bench.jobs_dir())
            .args([start.job.to_string(), start.launch.to_string(), phase.to_owned()])
            .args(sh(script))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the host starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it reaches the phase");
        Self { child, line: line.trim().to_owned() }
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was a child");
    }

    fn job_pid(&self) -> i32 {
        self.line.parse().expect("the pid of the job")
    }
}

/// A script that waits until it is let go, and a function that lets it.
fn gated(bench: &Bench, then: &str) -> (String, impl Fn() + use<>) {
    let gate = bench.directory.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    (format!("read line < {}; {then}", gate.display()), move || {
        std::fs::write(&gate, "go\n").expect("the job reads");
    })
}

#[tokio::test]
async fn a_host_killed_before_go_leaves_a_launch_that_never_started() {
    for phase in ["prepared", "armed"] {
        let mut bench = Bench::new();
        let touched = bench.directory.path().join("touched");
        let start = Start::new();
        Host::start(&bench, start, phase, &format!("touch {}", touched.display())).kill();
        bench.recover(start, StoredPhase::Armed);
        assert!(matches!(bench.settlement(start).await, Settlement::NotStarted { .. }), "{phase}");
        assert!(!touched.exists());
    }
}

#[tokio::test]
async fn a_host_killed_just_after_go_finds_the_job_whatever_its_store_says() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 6");
    let start = Start::new();
    Host::start(&bench, start, "going", &script).kill();
    bench.recover(start, StoredPhase::Armed);
    match bench.event().await {
        Event::Adopted { phase: AdoptedPhase::Running(process), .. } => assert!(lives(process.pid)),
        // The shim had not read `go` when its host's end closed.
        other => panic!("not adopted: {other:?}"),
    }
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(6));
}

#[tokio::test]
async fn a_running_job_is_untouched_by_the_death_of_its_host_and_its_status_is_exact() {
    for (then, status) in [("exit 7", Status::Exited(7)), ("kill -SEGV $$", Status::Signaled(libc::SIGSEGV))] {
        let mut bench = Bench::new();
        let (script, open) = gated(&bench, then);
        let start = Start::new();
        let host = Host::start(&bench, start, "running", &script);
        let pid = host.job_pid();
        host.kill();
        bench.recover(start, StoredPhase::Running);
        match bench.event().await {
            Event::Adopted { phase: AdoptedPhase::Running(process), .. } => assert_eq!(process.pid, pid),
            other => panic!("not adopted: {other:?}"),
        }
        open();
        assert_eq!(bench.end(start).await.status, status);
        bench.launcher.confirm(start.launch);
    }
}

#[tokio::test]
async fn a_shim_has_a_socket_once_its_host_has_gone_and_not_before() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let socket = bench.launch_dir(start).join("shim.sock");
    assert!(!socket.exists());
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    assert!(socket.exists());
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
}

#[tokio::test]
async fn a_shim_that_has_no_room_for_its_socket_is_waited_for() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    // No socket can be made under a name that is taken, as none can on a full disk.
    let in_the_way = bench.launch_dir(start).join("shim.sock.new");
    std::fs::create_dir(&in_the_way).expect("a directory");
    host.kill();
    bench.recover(start, StoredPhase::Running);
    match bench.event().await {
        Event::Unresponsive { shim_pid, .. } => assert_eq!(shim_pid, shim),
        other => panic!("{other:?}"),
    }
    std::fs::remove_dir(&in_the_way).expect("it is empty");
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
}

#[tokio::test]
async fn a_job_that_ends_while_no_host_lives_is_found_with_its_status() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    host.kill();
    open();
    gone(shim).await;
    bench.recover(start, StoredPhase::Running);
    match bench.settlement(start).await {
        Settlement::Record(record) => {
            assert_eq!(record.status, Status::Exited(7));
            assert!(record.clean.is_some());
        }
        other => panic!("no record: {other:?}"),
    }
}

#[tokio::test]
async fn an_end_that_was_told_and_never_committed_is_told_again() {
    let mut bench = Bench::new();
    let start = Start::new();
    Host::start(&bench, start, "ended", "exit 7").kill();
    bench.recover(start, StoredPhase::Pending);
    let record = loop {
        match bench.event().await {
            Event::Adopted { .. } => {}
            Event::Ended { record, .. } | Event::Settled { settlement: Settlement::Record(record), .. } => {
                break record;
            }
            other => panic!("no record: {other:?}"),
        }
    };
    assert_eq!(record.status, Status::Exited(7));
}

#[tokio::test]
async fn an_adopted_job_can_be_stopped() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "trap '' TERM; setsid sleep 1000 & while :; do sleep 1000; done");
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::from_millis(100)), signal: None });
    bench.end(start).await;
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn a_job_dies_with_its_shim_and_its_orphans_with_it() {
    let mut bench = Bench::new();
    let (start, process) =
        bench.run(sh("(setsid env -i sleep 1000 &); sleep 1000 & echo up; sleep 1000; exit 0")).await;
    bench.log_has(start, "up").await;
    let shim = parent(process.pid);
    let orphans: Vec<i32> = descendants(shim);
    assert!(orphans.len() >= 3, "{orphans:?}");
    kill(shim, libc::SIGKILL);
    match bench.settlement(start).await {
        Settlement::Lost { evidence } => assert!(evidence.contains("shim is gone"), "{evidence}"),
        other => panic!("not lost: {other:?}"),
    }
    for pid in orphans {
        assert!(!lives(pid), "{pid} lives on");
    }
}

#[tokio::test]
async fn an_armed_shim_that_is_killed_has_started_nothing() {
    let mut bench = Bench::new();
    let plan = bench.plan(Start::new(), sh("true"));
    let start = bench.ready(plan).await;
    let shim = lock_holder(&bench, start);
    kill(shim, libc::SIGKILL);
    assert!(matches!(bench.settlement(start).await, Settlement::NotStarted { .. }));
}

#[tokio::test]
async fn host_and_shim_killed_together_are_settled_as_lost_and_nothing_lives_on() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000; exit 0");
    let shim = parent(host.job_pid());
    kill(shim, libc::SIGSTOP);
    host.kill();
    kill(shim, libc::SIGKILL);
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.settlement(start).await, Settlement::Lost { .. }));
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn host_spawner_and_shim_killed_together_are_settled_too() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000; exit 0");
    let shim = parent(host.job_pid());
    let spawner = parent(shim);
    kill(shim, libc::SIGSTOP);
    host.kill();
    kill(spawner, libc::SIGKILL);
    kill(shim, libc::SIGKILL);
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.settlement(start).await, Settlement::Lost { .. }));
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_spawner_that_dies_takes_no_job_with_it_and_another_is_started() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let (start, process) = bench.run(sh(&script)).await;
    let spawner = parent(parent(process.pid));
    kill(spawner, libc::SIGKILL);
    gone(spawner).await;
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
    bench.launcher.confirm(start.launch);
    // The first launch after it may still meet the dead one: then it says that nothing was started.
    for attempt in 0.. {
        let start = Start::new();
        let plan = bench.plan(start, sh("exit 8"));
        bench.launcher.prepare(plan);
        assert!(matches!(bench.event().await, Event::Prepared { .. }));
        bench.launcher.arm(start.launch);
        match bench.event().await {
            Event::Ready { .. } => {
                bench.launcher.go(start.launch, &[]).expect("it is ready");
                assert!(matches!(bench.event().await, Event::Started { .. }));
                assert_eq!(bench.end(start).await.status, Status::Exited(8));
                break;
            }
            Event::Settled { settlement: Settlement::NotStarted { .. }, .. } => assert!(attempt < 2),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn spawner_and_shim_killed_together_under_a_living_host_leave_nothing() {
    let mut bench = Bench::new();
    let (start, process) =
        bench.run(sh("setsid sleep 1000 & (setsid sleep 1000 &); echo up; sleep 1000; exit 0")).await;
    bench.log_has(start, "up").await;
    let shim = parent(process.pid);
    let spawner = parent(shim);
    kill(spawner, libc::SIGKILL);
    kill(shim, libc::SIGKILL);
    assert!(matches!(bench.settlement(start).await, Settlement::Lost { .. }));
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_shim_that_does_not_answer_keeps_its_place_until_it_does() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    kill(shim, libc::SIGSTOP);
    host.kill();
    bench.recover(start, StoredPhase::Running);
    match bench.event().await {
        Event::Unresponsive { shim_pid, .. } => assert_eq!(shim_pid, shim),
        other => panic!("{other:?}"),
    }
    kill(shim, libc::SIGCONT);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
}

#[tokio::test]
async fn after_a_reboot_only_what_was_never_told_to_start_keeps_its_place() {
    let mut bench = Bench::new();
    for (phase, keeps_its_place) in
        [(StoredPhase::Armed, true), (StoredPhase::Pending, false), (StoredPhase::Running, false)]
    {
        let start = Start::new();
        std::fs::create_dir_all(bench.launch_dir(start)).expect("a directory");
        let boot_id = "00000000-0000-4000-8000-000000000000".to_owned();
        bench.launcher.recover(vec![Unsettled {
            job: start.job,
            launch: start.launch,
            phase,
            boot_id,
            time_limit: None,
        }]);
        let settlement = bench.settlement(start).await;
        assert_eq!(matches!(settlement, Settlement::NotStarted { .. }), keeps_its_place, "{phase:?}: {settlement:?}");
    }
}

#[tokio::test]
async fn the_time_limit_holds_while_no_host_lives() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "trap '' TERM; while :; do sleep 1000; done");
    let pid = host.job_pid();
    let shim = parent(pid);
    host.kill();
    // A host that lived for a moment has set a limit and died.
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::from_millis(300)), signal: None });
    drop(bench);
    gone(shim).await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_time_limit_that_was_stored_and_not_told_is_told_at_the_adoption() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done");
    let pid = host.job_pid();
    host.kill();
    let boot_id = taxiway_launcher::boot_id().expect("/proc");
    let time_limit = Some(Duration::from_millis(1));
    let (job, launch, phase) = (start.job, start.launch, StoredPhase::Running);
    bench.launcher.recover(vec![Unsettled { job, launch, phase, boot_id, time_limit }]);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    let record = bench.end(start).await;
    assert!(record.timed_out(), "{record:?}");
    assert!(!lives(pid));
}

#[tokio::test]
async fn an_extension_during_the_search_for_the_shim_is_not_lost() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done");
    let shim = parent(host.job_pid());
    kill(shim, libc::SIGSTOP);
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Unresponsive { .. }));
    bench.launcher.extend(start.launch, Some(Duration::from_millis(1)));
    kill(shim, libc::SIGCONT);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    assert!(bench.end(start).await.timed_out());
}

#[tokio::test]
async fn a_shim_of_an_older_version_is_adopted_and_its_end_is_taken() {
    let mut bench = Bench::new();
    let start = Start::new();
    std::fs::create_dir_all(bench.launch_dir(start)).expect("a directory");
    let mut shim = Command::new("python3")
        .args(["-c", OLD_SHIM])
        .arg(bench.launch_dir(start))
        .arg(start.launch.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut line = String::new();
    BufReader::new(shim.stdout.take().expect("a pipe")).read_line(&mut line).expect("it listens");
    bench.recover(start, StoredPhase::Running);
    match bench.event().await {
        Event::Adopted { phase: AdoptedPhase::Running(process), .. } => assert_eq!(process.pid, 4711),
        other => panic!("not adopted: {other:?}"),
    }
    let record = bench.end(start).await;
    assert_eq!(record.status, Status::Exited(5));
    let clean = record.clean.expect("it said so");
    assert_eq!((clean.leftovers, clean.oom_kills), (1, 0));
    bench.launcher.confirm(start.launch);
    assert!(shim.wait().expect("it was a child").success(), "it heard that its end is committed");
}

/// A shim that speaks an older version of the protocol, with messages and fields that nobody knows any more and without those
/// that came later. It ends with status 0 once its end is confirmed.
const OLD_SHIM: &str = r#"
import fcntl, json, os, socket, sys
os.chdir(sys.argv[1])
launch = sys.argv[2]
lock = open("lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX)
listener.bind("shim.sock")
listener.listen()
print("up", flush=True)
connection, _ = listener.accept()
lines = connection.makefile("r")
hello = json.loads(lines.readline())["hello"]
assert hello["launch"] == launch and hello["version"] >= 1, hello
at = {"monotonic_ns": 1, "boottime_ns": 1, "unix_ms": 1, "of_old": True}
process = {"pid": 4711, "start_time": 1, "at": at, "go_at": at}
clean = {"leftovers": 1, "at": at, "usage": {}, "log_dropped_bytes": 0}
usage = {"wall_seconds": None, "cpu_seconds": None, "peak_rss_bytes": None, "gpu_seconds": None,
         "peak_gpu_memory_bytes": None, "mean_gpu_utilization": None, "energy_joules": None}
clean["usage"] = usage
record = {"launch": launch, "status": {"exited": 5}, "process": process, "ended": at, "stopped_by": None, "clean": clean}
for message in [
    {"adopted": {"version": 0, "launch": launch, "shim_pid": os.getpid(), "phase": {"running": process}, "colour": "red"}},
    {"of_old": {"nobody": "knows"}},
    {"ended": record},
]:
    connection.sendall(json.dumps(message).encode() + b"\n")
for line in lines:
    if json.loads(line) == "confirm":
        sys.exit(0)
sys.exit(1)
"#;

/// All descendants of a process.
fn descendants(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children
        .split_ascii_whitespace()
        .map(|child| child.parse().expect("a pid"))
        .flat_map(|child: i32| [vec![child], descendants(child)].concat())
        .collect()
}
