//! Shims and spawners that are there and do nothing.

mod support;

use std::time::Duration;

use support::{Bench, Host, Start, gated, gone, kill, lives, lock_holder, parent, processes_of, sh};
use taxiway_launcher::{Event, Launcher, Settlement, Status, Stop, StoppedBy, StoredPhase};

const AS_PLANNED: Stop = Stop { grace: None, signal: None };

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

    // It was continued, so that it looks after the shims that it has, and ends with the last; what it was still asked for found its
    // socket closed.
    gone(spawner).await;
    assert!(!touched.exists());
}

#[tokio::test]
async fn a_shim_that_was_stopped_before_it_was_told_to_go_is_told_of_and_goes_on_and_its_time_limit_holds() {
    let mut bench = Bench::new();
    let mut plan = bench.plan(Start::new(), sh("sleep 1000"));
    plan.time_limit = Some(Duration::from_millis(100));
    let start = bench.ready(plan).await;
    let shim = lock_holder(&bench, start);
    kill(shim, libc::SIGSTOP);
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    let (silent, why) = bench.silence().await;
    assert_eq!(silent, shim);
    assert!(why.contains("was told to start its command"), "{why}");
    assert!(matches!(bench.any_event().await, Event::Responsive { .. }));
    assert!(matches!(bench.event().await, Event::Started { .. }));
    assert!(bench.end(start).await.timed_out());
}

#[tokio::test]
async fn a_command_that_cannot_be_executed_is_an_answer_to_go_too() {
    let mut bench = Bench::new();
    let plan = bench.plan(Start::new(), vec!["/no/such/program".to_owned()]);
    let start = bench.ready(plan).await;
    kill(lock_holder(&bench, start), libc::SIGSTOP);
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    bench.silence().await;
    assert!(matches!(bench.any_event().await, Event::Responsive { .. }));
    assert!(matches!(bench.end(start).await.status, Status::LaunchError(_)));
}

#[tokio::test]
async fn a_shim_that_was_stopped_while_its_job_ran_is_told_of_and_stops_the_job_all_the_same() {
    let mut bench = Bench::new();
    let (start, process) = bench.run(sh("sleep 1000 & sleep 1000")).await;
    let shim = parent(process.pid);
    kill(shim, libc::SIGSTOP);
    bench.launcher.stop(start.launch, AS_PLANNED);
    let (silent, why) = bench.silence().await;
    assert_eq!(silent, shim);
    assert!(why.contains("does not answer"), "{why}");
    let record = bench.end(start).await;
    assert_eq!((record.status, record.stopped_by), (Status::Signaled(libc::SIGTERM), Some(StoppedBy::Host)));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn a_shim_that_answers_again_is_told_of() {
    let mut bench = Bench::new();
    let (start, process) = bench.run(sh("trap 'exit 3' TERM; while :; do sleep 1000 & wait; done")).await;
    kill(parent(process.pid), libc::SIGSTOP);
    bench.launcher.extend(start.launch, Some(Duration::from_secs(1000)));
    bench.silence().await;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match bench.any_event().await {
            Event::Extended { in_time, .. } => heard.push(("extended", in_time)),
            Event::Responsive { .. } => heard.push(("responsive", true)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [("extended", true), ("responsive", true)]);
    bench.launcher.stop(start.launch, AS_PLANNED);
    assert_eq!(bench.end(start).await.status, Status::Exited(3));
}

#[tokio::test]
async fn a_job_that_ends_while_its_shim_is_stopped_ends_once_the_shim_was_asked() {
    let mut bench = Bench::with(|options| options.ask_every = Duration::from_millis(100));
    let (script, open) = gated(&bench, "kill -STOP $PPID; exit 3");
    let (start, process) = bench.run(sh(&script)).await;
    let shim = parent(process.pid);
    open();
    assert_eq!(bench.silence().await.0, shim);
    assert_eq!(bench.end(start).await.status, Status::Exited(3));
}

#[tokio::test]
async fn the_time_limit_holds_also_when_the_shim_was_stopped_before_it() {
    let mut bench = Bench::new();
    let mut plan = bench.plan(Start::new(), sh("sleep 1000"));
    plan.time_limit = Some(Duration::from_secs(2));
    let (start, process) = bench.run_plan(plan).await;
    kill(parent(process.pid), libc::SIGSTOP);
    assert!(bench.end(start).await.timed_out());
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn a_stopped_shim_of_an_earlier_host_is_continued_when_its_job_is_to_be_stopped() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host = Host::start(&bench, start, "running", "sleep 1000");
    let shim = parent(host.job_pid());
    kill(shim, libc::SIGSTOP);
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert_eq!(bench.silence().await.0, shim);
    bench.launcher.stop(start.launch, AS_PLANNED);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    bench.launcher.stop(start.launch, AS_PLANNED);
    assert_eq!(bench.end(start).await.status, Status::Signaled(libc::SIGTERM));
}

#[tokio::test]
async fn a_shim_killed_while_its_spawner_is_stopped_is_settled_and_leaves_nothing() {
    let mut bench = Bench::new();
    let (start, process) = bench.run(sh("(setsid env -i sleep 1000 &); echo up; sleep 1000; exit 0")).await;
    bench.log_has(start, "up").await;
    let shim = parent(process.pid);
    let spawner = parent(shim);
    kill(spawner, libc::SIGSTOP);
    kill(shim, libc::SIGKILL);
    let (silent, why) = bench.silence().await;
    assert_eq!(silent, shim);
    assert!(why.contains("its shim is gone"), "{why}");
    match bench.settlement(start).await {
        Settlement::Lost { evidence } => assert!(evidence.contains("ended by signal 9"), "{evidence}"),
        other => panic!("not lost: {other:?}"),
    }
    assert!(!lives(process.pid));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn an_adopted_shim_killed_while_its_spawner_is_stopped_leaves_nothing() {
    let mut bench = Bench::new();
    let start = Start::new();
    let host =
        Host::start(&bench, start, "running", "(setsid env -i sh -c 'echo $$; sleep 1000; exit' &); sleep 1000; exit");
    let hidden = bench.log_has(start, "\n").await.trim().parse().expect("a pid");
    let shim = parent(host.job_pid());
    let spawner = parent(shim);
    host.kill();
    bench.recover(start, StoredPhase::Running);
    assert!(matches!(bench.event().await, Event::Adopted { .. }));
    kill(spawner, libc::SIGSTOP);
    kill(shim, libc::SIGKILL);
    let settlement = bench.settlement(start).await;
    assert!(matches!(settlement, Settlement::Lost { .. }), "{settlement:?}");
    assert!(!lives(hidden));
    kill(spawner, libc::SIGKILL);
}

/// A process that is held by ptrace(2), which SIGCONT does not undo, until it is killed.
struct Held(std::thread::JoinHandle<()>);

impl Held {
    /// None, said loudly, where nobody may trace a process.
    fn hold(pid: i32) -> Option<Self> {
        let (ready, is_held) = std::sync::mpsc::channel();
        // Only the thread that has seized it may wait for it.
        let tracer = std::thread::spawn(move || {
            let ask = |request: libc::c_uint| {
                // SAFETY: neither request reads or writes memory of this process.
                let done =
                    unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<u8>(), std::ptr::null_mut::<u8>()) };
                if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            };
            let wait = || {
                let mut status = 0;
                // SAFETY: `status` is valid for writes.
                let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
                (waited == pid).then_some(status)
            };
            let held = ask(libc::PTRACE_SEIZE).and_then(|()| ask(libc::PTRACE_INTERRUPT));
            let held = held.map(|()| wait().is_some_and(|status| libc::WIFSTOPPED(status)));
            let is_there = matches!(held, Ok(true));
            ready.send(held).expect("somebody waits");
            while is_there && wait().is_some_and(|status| libc::WIFSTOPPED(status)) {}
        });
        match is_held.recv().expect("it says so") {
            Ok(held) => {
                assert!(held, "it stops");
                Some(Self(tracer))
            }
            Err(error) => {
                eprintln!("SKIPPED: no process can be traced here: {error}");
                None
            }
        }
    }

    fn wait_gone(self) {
        self.0.join().expect("it waits");
    }
}

#[tokio::test]
async fn a_shim_that_cannot_be_continued_is_killed_and_its_job_with_it() {
    let mut bench = Bench::new();
    let (start, process) = bench.run(sh("setsid sleep 1000 & echo up; sleep 1000")).await;
    bench.log_has(start, "up").await;
    let held = Held::hold(parent(process.pid));
    bench.launcher.stop(start.launch, AS_PLANNED);
    let Some(held) = held else {
        bench.end(start).await;
        return;
    };
    bench.silence().await;
    let settlement = bench.settlement(start).await;
    assert!(matches!(settlement, Settlement::Lost { .. }), "{settlement:?}");
    held.wait_gone();
    assert!(!lives(process.pid));
    assert!(processes_of(start.launch).is_empty());
}
