//! What comes of a launch when the host, its shim, the spawner or several of them are killed.

mod support;

use std::time::Duration;

use support::{Bench, Host, Start, gated, gone, kill, lives, lock_holder, parent, patiently, processes_of, sh};
use taxiway_launcher::{AdoptedPhase, Event, Launcher, Settlement, Status, Stop, StoredPhase, Unsettled};

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
    assert_eq!(bench.silence().await.0, shim);
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
async fn a_shim_whose_directory_was_moved_keeps_its_record_and_leaves_when_no_host_lives() {
    let bench = Bench::new();
    let (script, open) = gated(&bench, "exit 7");
    let start = Start::new();
    let host = Host::start(&bench, start, "running", &script);
    let shim = parent(host.job_pid());
    host.kill();
    let moved = bench.directory.path().join("moved");
    std::fs::rename(bench.launch_dir(start), &moved).expect("it can be moved");
    open();
    gone(shim).await;
    let record = std::fs::read(moved.join("exit.json")).expect("a record");
    let record = taxiway_launcher::ExitRecord::parse(&record).expect("a record that holds");
    assert_eq!(record.status, Status::Exited(7));
    assert!(record.clean.is_some());
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
    let again = match bench.try_run(sh("exit 8")).await {
        Some((start, _)) => start,
        None => bench.run(sh("exit 8")).await.0,
    };
    assert_eq!(bench.end(again).await.status, Status::Exited(8));
}

#[tokio::test]
async fn spawner_and_shim_killed_together_under_a_living_host_leave_nothing() {
    // Tests that share this process may have children that are no job's.
    let mut bench = Bench::with(|options| options.started_alone = true);
    let (other, _) = bench.run(sh("sleep 1000")).await;
    let hidden = "(setsid env -i sh -c 'setsid sleep 1000 & echo up; sleep 1000; exit 0' &)";
    let (start, process) = bench.run(sh(&format!("setsid sleep 1000 & {hidden}; sleep 1000; exit 0"))).await;
    bench.log_has(start, "up").await;
    let shim = parent(process.pid);
    let spawner = parent(shim);
    let orphans = descendants(shim);
    assert!(orphans.len() >= 4, "{orphans:?}");
    kill(spawner, libc::SIGKILL);
    kill(shim, libc::SIGKILL);
    assert!(matches!(bench.settlement(start).await, Settlement::Lost { .. }));
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{left:?}");
    for pid in orphans {
        assert!(!lives(pid), "{pid} lives on");
        assert!(!is_zombie(pid), "{pid} was not waited for");
    }
    bench.launcher.stop(other.launch, Stop { grace: None, signal: None });
    assert_eq!(bench.end(other).await.status, Status::Signaled(libc::SIGTERM), "the other job was left alone");
}

#[tokio::test]
async fn a_shim_that_ends_while_its_spawner_dies_is_waited_for_however_the_two_meet() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        // The first launch after the death of a spawner may still meet the dead one.
        let (start, process) = loop {
            if let Some(started) = bench.try_run(sh("sleep 1000")).await {
                break started;
            }
        };
        let shim = parent(process.pid);
        bench.launcher.stop(start.launch, Stop { grace: None, signal: None });
        kill(parent(shim), libc::SIGKILL);
        bench.end(start).await;
        bench.launcher.confirm(start.launch);
        gone(shim).await;
        patiently(async {
            while is_zombie(shim) {
                // No event tells of it.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z'))
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

/// All descendants of a process.
fn descendants(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children
        .split_ascii_whitespace()
        .map(|child| child.parse().expect("a pid"))
        .flat_map(|child: i32| [vec![child], descendants(child)].concat())
        .collect()
}
