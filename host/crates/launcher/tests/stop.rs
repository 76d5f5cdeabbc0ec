//! Stopping a job means that no process of it is left, whatever it does against it.

mod support;

use std::time::Duration;

use support::{Bench, PROGRAM, Start, kill, processes_of, sh};
use taxiway_launcher::{Launcher, Status, Stop, StoppedBy};

const SOON: Stop = Stop { grace: Some(Duration::from_millis(200)), signal: None };
const PATIENT: Stop = Stop { grace: Some(Duration::from_secs(3600)), signal: None };

/// Stops a job that has printed `up` and returns how it ended.
async fn stop(bench: &mut Bench, script: &str, stop: Stop) -> (Start, taxiway_launcher::ExitRecord) {
    let (start, _) = bench.run(sh(script)).await;
    bench.log_has(start, "up").await;
    bench.launcher.stop(start.launch, stop);
    let record = bench.end(start).await;
    assert_eq!(record.stopped_by, Some(StoppedBy::Host));
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{script}: left behind {left:?}");
    bench.launcher.confirm(start.launch);
    (start, record)
}

#[tokio::test]
async fn a_job_that_heeds_sigterm_has_its_grace() {
    let mut bench = Bench::new();
    let script = "trap 'echo saving; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done";
    let (start, record) = stop(&mut bench, script, PATIENT).await;
    assert_eq!(record.status, Status::Exited(0));
    assert!(bench.log(start).ends_with("saving\n"));
}

#[tokio::test]
async fn a_job_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut bench = Bench::new();
    let (_, record) = stop(&mut bench, "trap '' TERM; echo up; while :; do sleep 1000; done", SOON).await;
    assert_eq!(record.status, Status::Signaled(libc::SIGKILL));
}

#[tokio::test]
async fn a_process_whose_first_thread_has_ended_is_killed_too() {
    let mut bench = Bench::new();
    let script = format!("setsid '{PROGRAM}' leaderless & while :; do sleep 1000; done");
    let (_, record) = stop(&mut bench, &script, SOON).await;
    assert_eq!(record.clean.map(|clean| clean.leftovers), Some(1));
}

#[tokio::test]
async fn grandchildren_in_sessions_of_their_own_are_ended_too() {
    let mut bench = Bench::new();
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' & \
                  (setsid sh -c '(setsid sleep 1000 &)' &); sleep 1000 & echo up; while :; do sleep 1000; done";
    stop(&mut bench, script, SOON).await;
}

#[tokio::test]
async fn a_detached_grandchild_without_the_jobs_environment_is_ended_too() {
    let mut bench = Bench::new();
    let pids = bench.directory.path().join("pid");
    let script = format!(
        "trap '' TERM; (setsid env -i sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' &); \
         while [ ! -e {0} ]; do sleep 0.01; done; echo up; while :; do sleep 1000; done",
        pids.display()
    );
    stop(&mut bench, &script, SOON).await;
    let pid = std::fs::read_to_string(&pids).expect("its pid").trim().parse().expect("a pid");
    assert!(!support::lives(pid));
}

#[tokio::test]
async fn a_stopped_job_is_continued_to_get_its_signal() {
    let mut bench = Bench::new();
    let (start, process) = bench.run(sh("trap 'exit 4' TERM; echo up; while :; do sleep 1000 & wait; done")).await;
    bench.log_has(start, "up").await;
    kill(process.pid, libc::SIGSTOP);
    bench.launcher.stop(start.launch, PATIENT);
    assert_eq!(bench.end(start).await.status, Status::Exited(4));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn a_job_that_forks_in_a_loop_is_caught() {
    let mut bench = Bench::new();
    // A chain: each process starts the next in a session of its own and ends. Beside it, processes that only multiply.
    let chain = "export HOP='setsid sh -c \"$HOP\" & exit'; setsid sh -c \"$HOP\" & ";
    let script = format!(
        "trap '' TERM; {chain} (while :; do sleep 1000 & sleep 0.002; done) & echo up; while :; do sleep 1000; done"
    );
    stop(&mut bench, &script, SOON).await;
}

#[tokio::test]
async fn a_job_that_forks_in_a_loop_and_ends_leaves_nothing() {
    let mut bench = Bench::new();
    let chain = "export HOP='setsid sh -c \"$HOP\" & exit'; setsid sh -c \"$HOP\" & ";
    let (start, record) = bench.run_to_end(sh(&format!("{chain} exit 2"))).await;
    assert_eq!(record.status, Status::Exited(2));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn a_second_stop_shortens_the_grace_and_never_lengthens_it() {
    let mut bench = Bench::new();
    let (start, _) = bench.run(sh("trap '' TERM; echo up; while :; do sleep 1000; done")).await;
    bench.log_has(start, "up").await;
    bench.launcher.stop(start.launch, PATIENT);
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
    bench.launcher.stop(start.launch, PATIENT);
    assert_eq!(bench.end(start).await.status, Status::Signaled(libc::SIGKILL));
}

#[tokio::test]
async fn a_stop_may_have_a_signal_of_its_own() {
    let mut bench = Bench::new();
    let script = "trap 'exit 11' USR1; trap '' TERM; echo up; while :; do sleep 1000 & wait; done";
    let (_, record) = stop(&mut bench, script, Stop { signal: Some(libc::SIGUSR1), ..PATIENT }).await;
    assert_eq!(record.status, Status::Exited(11));
}
