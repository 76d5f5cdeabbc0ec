//! Cancelling: truthful while anything of the job lives, and nothing of it lives afterwards.

use std::time::{Duration, Instant};

use serde_json::json;
use taxiway_tests::processes::{Process, of_job};
use taxiway_tests::{Bell, Gate, Place, sh};

/// A job with a child in its own session and a grandchild whose parent is gone, all of which ignore SIGTERM.
fn stubborn(bell: &Bell, gate: &Gate) -> String {
    let wait = gate.wait();
    let deaf =
        |name: &str| format!("trap '' TERM HUP INT; {}; while :; do {wait}; done", bell.ring(&format!("{name} $$")));
    // exec, so that each is one process; the double fork leaves its middle process at once.
    format!(
        "trap '' TERM HUP INT\n\
         setsid sh -c \"$SESSION\" &\n\
         (setsid sh -c \"$ORPHAN\" & exit 0)\n\
         {}",
        deaf("main")
    )
    .replace("\"$SESSION\"", &quoted(&deaf("session")))
    .replace("\"$ORPHAN\"", &quoted(&deaf("orphan")))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[tokio::test]
async fn a_job_that_ignores_sigterm_is_cancelled_only_when_none_of_its_processes_is_left() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let (gate, mut bell) = (Gate::new(place, "gate"), Bell::new(place, "bell"));
    let mut submission = sh(&stubborn(&bell, &gate));
    submission["grace"] = json!("1s");
    let job = server.submit(submission).await;
    let next = server.submit(sh("exit 0")).await;
    let mut processes = Vec::new();
    for _ in 0..3 {
        let word = bell.heard().await;
        let (name, pid) = word.split_once(' ').expect("a name and a process id");
        let process = Process::find(pid.trim().parse().expect("a process id")).expect("it waits");
        processes.push((name.to_owned(), process));
    }
    events.job(job.id(), "running").await;
    let parents: Vec<i32> = processes.iter().map(|(_, process)| process.pid).collect();
    assert!(of_job(job.id()).len() >= 3, "{parents:?}");

    let asked = Instant::now();
    let stopping = server.operate(job.id(), "cancel").await.expect(200).job();
    assert_eq!((stopping.state(), stopping.reason()), ("cancelling", Some("stopping")));
    // The service is asked again and again, and believed only as far as /proc agrees.
    let mut looks = 0;
    loop {
        let alive = !of_job(job.id()).is_empty();
        let state = server.job(job.id()).await.state().to_owned();
        match state.as_str() {
            "cancelling" => looks += 1,
            "cancelled" => break,
            other => panic!("a job that is being cancelled reads {other} (alive: {alive})"),
        }
    }
    let left = of_job(job.id());
    assert!(left.is_empty(), "it reads cancelled, and these live: {left:?}");
    assert!(asked.elapsed() >= Duration::from_secs(1), "it had its grace");
    assert!(looks > 1);
    for (name, process) in &processes {
        assert!(!process.is_alive(), "{name} is left");
    }
    assert_eq!(events.end_of(job.id()).await, "cancelled");
    assert_eq!(events.story(job.id()), ["queued", "pending", "running", "cancelling", "cancelled"]);
    assert_eq!(server.job(job.id()).await.exit_signal(), Some(9));
    assert_eq!(events.end_of(next.id()).await, "completed", "the line goes on");
}

#[tokio::test]
async fn a_job_that_heeds_sigterm_is_cancelled_with_its_true_exit_status() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let (gate, mut bell) = (Gate::new(place, "gate"), Bell::new(place, "bell"));
    let script = format!("trap 'echo saving; exit 5' TERM; {}; while :; do {}; done", bell.ring("ready"), gate.wait());
    let job = server.submit(sh(&script)).await;
    assert_eq!(bell.heard().await, "ready");
    events.job(job.id(), "running").await;
    server.operate(job.id(), "cancel").await.expect(200);
    assert_eq!(events.end_of(job.id()).await, "cancelled");
    let cancelled = server.job(job.id()).await;
    assert_eq!((cancelled.exit_code(), cancelled.failure_class()), (Some(5), None));
    assert_eq!(server.log(job.id()).await, "saving\n");
}

#[tokio::test]
async fn a_job_that_ends_leaves_no_process_behind() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let (gate, mut bell) = (Gate::new(place, "gate"), Bell::new(place, "bell"));
    let left = quoted(&format!("trap '' TERM HUP; {}; while :; do {}; done", bell.ring("$$"), gate.wait()));
    let mut let_go = Gate::new(place, "let-go");
    let script = format!("(setsid sh -c {left} & exit 0); {}", let_go.wait());
    let job = server.submit(sh(&script)).await;
    let process = Process::find(bell.pid().await).expect("it waits");
    let_go.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert!(!process.is_alive(), "what it left behind was ended first");
    assert!(of_job(job.id()).is_empty());
}

#[tokio::test]
async fn a_queued_or_held_job_is_cancelled_at_once_and_never_runs() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let mut gate = Gate::new(place, "gate");
    let ran = place.join("ran");
    let running = server.submit(sh(&gate.wait())).await;
    // The first of these is armed while it waits.
    let mut cancelled = Vec::new();
    for hold in [false, false, true] {
        let mut submission = sh(&format!("echo ran >> '{}'", ran.display()));
        submission["hold"] = json!(hold);
        cancelled.push(server.submit(submission).await);
    }
    let last = server.submit(sh("exit 0")).await;
    events.job(running.id(), "running").await;
    for job in &cancelled {
        let answer = server.operate(job.id(), "cancel").await.expect(200).job();
        assert_eq!((answer.state(), answer.position()), ("cancelled", None));
        assert!(answer.json["finished_at"].is_string());
        assert!(answer.json["started_at"].is_null());
    }
    assert_eq!(server.job(last.id()).await.position(), Some(1));
    gate.open();
    events.job(last.id(), "completed").await;
    assert!(!ran.exists());
    assert_eq!(events.story(cancelled[0].id()), ["queued", "cancelled"]);
    assert_eq!(events.story(cancelled[2].id()), ["held", "cancelled"]);
}

#[tokio::test]
async fn a_second_cancel_changes_nothing_and_an_ended_job_cannot_be_cancelled() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let (gate, mut bell) = (Gate::new(place, "gate"), Bell::new(place, "bell"));
    let script = format!("trap '' TERM; {}; while :; do {}; done", bell.ring("ready"), gate.wait());
    let mut submission = sh(&script);
    submission["grace"] = json!("1s");
    let job = server.submit(submission).await;
    bell.heard().await;
    events.job(job.id(), "running").await;
    for _ in 0..2 {
        assert_eq!(server.operate(job.id(), "cancel").await.expect(200).job().state(), "cancelling");
    }
    assert_eq!(events.end_of(job.id()).await, "cancelled");
    assert_eq!(events.story(job.id()).iter().filter(|state| **state == "cancelling").count(), 1);

    for (script, state) in [("exit 0", "completed"), ("exit 1", "failed")] {
        let job = server.submit(sh(script)).await;
        assert_eq!(events.end_of(job.id()).await, state);
        let refused = server.operate(job.id(), "cancel").await.expect(409).problem();
        assert_eq!((&refused["state"], &refused["code"]), (&json!(state), &json!("illegal-state")));
        assert_eq!(server.job(job.id()).await.state(), state);
    }
    let nobody = "01937c3e-8f00-7abc-8def-0123456789ab";
    assert_eq!(server.operate(nobody, "cancel").await.expect(404).problem()["code"], "not-found");
}

#[tokio::test]
async fn jobs_cancelled_at_any_moment_of_their_start_end_cancelled_or_had_ended_before() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut jobs = Vec::new();
    for _ in 0..40 {
        jobs.push(server.submit(sh("exit 0")).await);
    }
    // They start one after another meanwhile, so that the cancels meet them queued, armed, starting, running and ended.
    for job in &jobs {
        let answer = server.operate(job.id(), "cancel").await;
        assert!(matches!(answer.status.as_u16(), 200 | 409), "{}", answer.text());
        if answer.status == 409 {
            assert_eq!(answer.problem()["state"], "completed");
        }
    }
    for job in &jobs {
        let end = events.end_of(job.id()).await;
        let now = server.job(job.id()).await;
        assert_eq!(now.state(), end);
        assert!(matches!(end.as_str(), "cancelled" | "completed"), "{end}");
        let story = events.story(job.id());
        assert_eq!(story.iter().filter(|state| matches!(**state, "cancelled" | "completed")).count(), 1, "{story:?}");
    }
}
