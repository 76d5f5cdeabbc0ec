//! Shims and spawners that are there and do nothing.

mod support;

use support::{Bench, Start, gone, kill, lock_holder, parent, sh};
use taxiway_launcher::{Event, Launcher, Settlement, Status};

#[tokio::test]
async fn an_armed_shim_that_does_not_leave_is_killed_and_has_started_nothing() {
    let mut bench = Bench::new();
    let touched = bench.directory.path().join("touched");
    let plan = bench.plan(Start::new(), sh(&format!("touch {}", touched.display())));
    let start = bench.ready(plan).await;
    let shim = lock_holder(&bench, start);
    kill(shim, libc::SIGSTOP);
    bench.launcher.disarm(start.launch);
    let settlement = bench.settlement(start).await;
    assert!(matches!(settlement, Settlement::NotStarted { reason: None }), "{settlement:?}");
    gone(shim).await;
    assert!(!touched.exists());
    let (_, record) = bench.run_to_end(sh("exit 7")).await;
    assert_eq!(record.status, Status::Exited(7), "the line goes on");
}

#[tokio::test]
async fn a_spawner_that_does_nothing_is_told_of_and_another_one_is_started() {
    let mut bench = Bench::new();
    let (first, process) = bench.run(sh("exit 0")).await;
    let spawner = parent(lock_holder(&bench, first));
    assert_ne!(process.pid, 0);
    bench.end(first).await;
    bench.launcher.confirm(first.launch);
    kill(spawner, libc::SIGSTOP);

    let start = Start::new();
    let touched = bench.directory.path().join("touched");
    let plan = bench.plan(start, sh(&format!("touch {}", touched.display())));
    bench.launcher.prepare(plan);
    assert!(matches!(bench.event().await, Event::Prepared { .. }));
    bench.launcher.arm(start.launch);
    let (_, why) = bench.silence().await;
    assert!(why.contains("does not get ready"), "{why}");
    bench.launcher.disarm(start.launch);
    let settlement = bench.settlement(start).await;
    assert!(matches!(settlement, Settlement::NotStarted { reason: None }), "{settlement:?}");
    bench.launcher.confirm(start.launch);
    let (_, record) = bench.run_to_end(sh("exit 7")).await;
    assert_eq!(record.status, Status::Exited(7), "the line goes on");

    assert!(!touched.exists());
    // What it is still asked for finds its socket closed.
    kill(spawner, libc::SIGCONT);
}
