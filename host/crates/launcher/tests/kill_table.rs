//! Whatever a job does against its end, and however it comes to it: no process of it is left, and the record says the truth.

mod support;

use std::time::Duration;

use support::{Bench, Start, TestGroup, processes_of, sh};
use taxiway_launcher::{Clean, Delegated, ExitRecord, Launcher, Status, Stop, StoppedBy};

/// What a job's processes do. Each script prints `up` once everything is in place.
#[derive(Debug, Clone, Copy)]
enum Resistance {
    Plain,
    OwnSession,
    DoubleFork,
    IgnoresSigterm,
    Stopped,
    ForksInALoop,
}

const RESISTANCES: [Resistance; 6] = [
    Resistance::Plain,
    Resistance::OwnSession,
    Resistance::DoubleFork,
    Resistance::IgnoresSigterm,
    Resistance::Stopped,
    Resistance::ForksInALoop,
];

/// How a job comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cancel,
    TimeLimit,
    /// The launcher knows no requeue: it stops, with a signal of the caller's.
    Requeue,
    /// The command ends with status 3 and leaves the others behind.
    Leftovers,
}

const WAYS: [Way; 4] = [Way::Cancel, Way::TimeLimit, Way::Requeue, Way::Leftovers];

/// The processes beside the command, all in place when this part of the script is over.
fn others(resistance: Resistance) -> &'static str {
    match resistance {
        Resistance::Plain => "sleep 1000 &",
        Resistance::OwnSession => "setsid sleep 1000 & setsid sh -c 'setsid sleep 1000 & wait' &",
        Resistance::DoubleFork => "(setsid sh -c '(sleep 1000 &) ; (setsid sleep 1000 &)' &); (sleep 1000 &);",
        Resistance::IgnoresSigterm => {
            "trap '' TERM HUP INT USR1; sleep 1000 & setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' &"
        }
        Resistance::Stopped => {
            "sh -c 'kill -STOP $$; sleep 1000' & a=$!; setsid sh -c 'kill -STOP $$; sleep 1000' & b=$!; \
             for pid in $a $b; do until grep -q '^State:.T' /proc/$pid/status; do sleep 0.01; done; done;"
        }
        // Each link of the chain starts the next in a session of its own and ends; beside it, one that only multiplies.
        Resistance::ForksInALoop => {
            "export HOP='setsid sh -c \"$HOP\" & exit'; setsid sh -c \"$HOP\" & \
             (while :; do sleep 1000 & sleep 0.002; done) &"
        }
    }
}

fn script(resistance: Resistance, way: Way) -> String {
    let others = others(resistance);
    match (way, resistance) {
        (Way::Leftovers, _) => format!("{others} echo up; exit 3"),
        (_, Resistance::Stopped) => format!("{others} echo up; kill -STOP $$; while :; do sleep 1000; done"),
        _ => format!("{others} echo up; while :; do sleep 1000; done"),
    }
}

async fn end(bench: &mut Bench, resistance: Resistance, way: Way) -> (Start, ExitRecord) {
    let mut plan = bench.plan(Start::new(), sh(&script(resistance, way)));
    plan.grace = Duration::from_millis(100);
    let (start, _) = bench.run_plan(plan).await;
    bench.log_has(start, "up").await;
    match way {
        Way::Cancel => bench.launcher.stop(start.launch, Stop { grace: None, signal: None }),
        Way::TimeLimit => assert!(bench.launcher.extend(start.launch, Some(Duration::from_millis(1)))),
        Way::Requeue => {
            let stop = Stop { grace: Some(Duration::from_millis(50)), signal: Some(libc::SIGUSR1) };
            bench.launcher.stop(start.launch, stop);
        }
        Way::Leftovers => {}
    }
    let record = bench.end(start).await;
    bench.launcher.confirm(start.launch);
    (start, record)
}

async fn check(bench: &mut Bench, resistance: Resistance, way: Way) {
    let case = format!("{resistance:?}, {way:?}");
    println!("{case}");
    let (start, record) = end(bench, resistance, way).await;
    let left = processes_of(start.launch);
    assert!(left.is_empty(), "{case}: left behind {left:?}");
    let stopped_by = match way {
        Way::Cancel | Way::Requeue => Some(StoppedBy::Host),
        Way::TimeLimit => Some(StoppedBy::TimeLimit),
        Way::Leftovers => None,
    };
    assert_eq!(record.stopped_by, stopped_by, "{case}");
    let ignores = matches!(resistance, Resistance::IgnoresSigterm);
    let status = match way {
        Way::Leftovers => Status::Exited(3),
        _ if ignores => Status::Signaled(libc::SIGKILL),
        Way::Requeue => Status::Signaled(libc::SIGUSR1),
        _ => Status::Signaled(libc::SIGTERM),
    };
    assert_eq!(record.status, status, "{case}");
    let Some(Clean { leftovers, .. }) = record.clean else { panic!("{case}: no clean record") };
    if way == Way::Leftovers {
        assert!(leftovers > 0, "{case}: nothing was left to be ended");
    }
}

#[tokio::test]
async fn no_process_is_left_of_any_job_in_any_way() {
    let mut bench = Bench::new();
    for resistance in RESISTANCES {
        for way in WAYS {
            check(&mut bench, resistance, way).await;
        }
    }
}

#[tokio::test]
async fn no_process_is_left_of_any_job_that_has_a_control_group_and_the_group_goes_too() {
    let Some(group) = TestGroup::new() else { return };
    let base = group.path.clone();
    let mut bench = Bench::with(|options| options.groups = Some(Delegated::at(base).expect("a group")));
    for resistance in RESISTANCES {
        for way in WAYS {
            check(&mut bench, resistance, way).await;
        }
    }
}
