//! A host that takes over what an earlier one has started.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Bench, Host, Start, gated, gone, kill, lives, parent, processes_of};
use taxiway_launcher::{AdoptedPhase, Event, Launcher, Status, Stop, StoredPhase, Unsettled};

#[tokio::test]
async fn connections_that_say_nothing_keep_no_host_from_its_shim() {
    let mut bench = Bench::new();
    let start = Start::new();
    let (script, open) = gated(&bench, "exit 7");
    Host::start(&bench, start, "running", &script).kill();
    bench.listens(start).await;
    // By way of its directory, since a socket's path may have 107 bytes only.
    let directory = std::fs::File::open(bench.launch_dir(start)).expect("a directory");
    let path = format!("/proc/self/fd/{}/shim.sock", std::os::fd::AsRawFd::as_raw_fd(&directory));
    let connect = |_| std::os::unix::net::UnixStream::connect(&path).expect("the shim takes it");
    let silent: Vec<_> = (0..40).map(connect).collect();
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    drop(silent);
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
}

#[tokio::test]
async fn a_shim_whose_socket_took_no_more_connections_is_asked_again() {
    let mut bench = Bench::new();
    let start = Start::new();
    let (script, open) = gated(&bench, "exit 7");
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    host.kill();
    bench.listens(start).await;
    kill(shim, libc::SIGSTOP);
    // As above. It listens with room for 8, which Linux takes for 9.
    let directory = std::fs::File::open(bench.launch_dir(start)).expect("a directory");
    let path = format!("/proc/self/fd/{}/shim.sock", std::os::fd::AsRawFd::as_raw_fd(&directory));
    let connect = |_| std::os::unix::net::UnixStream::connect(&path).expect("there is room");
    let silent: Vec<_> = (0..9).map(connect).collect();
    bench.recover(start, StoredPhase::Running);
    assert_eq!(bench.silence().await.0, shim);
    kill(shim, libc::SIGCONT);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    drop(silent);
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
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
async fn a_shim_that_does_not_answer_keeps_its_place_until_it_does() {
    let mut bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    kill(shim, libc::SIGSTOP);
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert_eq!(bench.silence().await.0, shim);
    kill(shim, libc::SIGCONT);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    open();
    assert_eq!(bench.end(start).await.status, Status::Exited(7));
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
    bench.silence().await;
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
