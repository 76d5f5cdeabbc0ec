//! The service goes and comes back: killed, stopped, or while a job ends.

use serde_json::json;
use taxiway_tests::processes::Process;
use taxiway_tests::{ANY_PORT, Bell, Events, Gate, Job, Place, Server, sh, start_refused};

/// One running job that ends with status 7 once its gate opens, and jobs behind it that write down their number.
struct Scene {
    running: Job,
    process: Process,
    gate: Gate,
    waiting: Vec<Job>,
    ran: std::path::PathBuf,
}

impl Scene {
    async fn set(server: &Server, events: &mut Events, behind: usize) -> Self {
        let place = server.place().path();
        let gate = Gate::new(place, "gate");
        let mut bell = Bell::new(place, "bell");
        let ran = place.join("ran");
        let script = format!("{}; {}; echo running >> '{}'; exit 7", bell.ring("$$"), gate.wait(), ran.display());
        let running = server.submit(sh(&script)).await;
        let mut waiting = Vec::new();
        for number in 1..=behind {
            waiting.push(server.submit(sh(&format!("echo {number} >> '{}'", ran.display()))).await);
        }
        let process = Process::find(bell.pid().await).expect("it waits at its gate");
        // What a client was told of it is not lost with the service, so that the test may rely on it.
        events.job(running.id(), "running").await;
        Self { running, process, gate, waiting, ran }
    }

    /// Checks that every job ran to its end, once and in order.
    async fn check(&self, server: &Server, events: &mut Events) {
        assert_eq!(events.end_of(self.running.id()).await, "failed");
        for job in &self.waiting {
            assert_eq!(events.end_of(job.id()).await, "completed");
            assert_eq!(events.story(job.id()), ["queued", "pending", "running", "completed"]);
        }
        let running = server.job(self.running.id()).await;
        assert_eq!((running.exit_code(), running.failure_class()), (Some(7), Some("exit")));
        assert_eq!(running.json["attempt"], 1);
        assert_eq!(events.story(running.id()), ["queued", "pending", "running", "failed"], "it was started once");
        let ran = std::fs::read_to_string(&self.ran).expect("they ran");
        let expected: Vec<String> = std::iter::once("running".to_owned())
            .chain((1..=self.waiting.len()).map(|number| number.to_string()))
            .collect();
        assert_eq!(ran.lines().collect::<Vec<_>>(), expected);
        assert_eq!(server.jobs().await.len(), 1 + self.waiting.len());
    }
}

#[tokio::test]
async fn a_killed_service_leaves_its_job_alone_and_then_runs_the_twenty_behind_it_once_and_in_order() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut scene = Scene::set(&server, &mut events, 20).await;

    let place = server.kill().await;
    assert!(scene.process.is_alive(), "the job outlives the service");
    let server = place.start().await;
    events.resume(&server).await;
    assert!(scene.process.is_alive(), "the job was never touched");
    let running = server.job(scene.running.id()).await;
    assert_eq!(running.state(), "running");
    assert_eq!(server.job(scene.waiting[0].id()).await.position(), Some(1));
    assert_eq!(server.job(scene.waiting[19].id()).await.position(), Some(20));
    assert_eq!(server.get("/queue").await.expect(200).json()["running"][0]["id"], running.id());

    scene.gate.open();
    scene.check(&server, &mut events).await;
}

#[tokio::test]
async fn a_job_that_ends_while_the_service_is_down_ends_with_its_true_exit_code() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut scene = Scene::set(&server, &mut events, 3).await;
    let place = server.kill().await;
    scene.gate.open();
    scene.process.wait();
    let server = place.start().await;
    events.resume(&server).await;
    scene.check(&server, &mut events).await;
}

#[tokio::test]
async fn a_service_that_is_killed_again_and_again_still_tells_the_truth_about_its_job() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut scene = Scene::set(&server, &mut events, 3).await;
    let mut place = server.kill().await;
    for _ in 0..3 {
        place = place.start().await.kill().await;
        assert!(scene.process.is_alive());
    }
    let server = place.start().await;
    events.resume(&server).await;
    scene.gate.open();
    scene.check(&server, &mut events).await;
}

#[tokio::test]
async fn a_service_that_is_stopped_leaves_its_job_running_and_exits_with_0() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut scene = Scene::set(&server, &mut events, 2).await;
    let (place, status) = server.stop().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(scene.process.is_alive());
    let server = place.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(scene.running.id()).await.state(), "running");
    scene.gate.open();
    scene.check(&server, &mut events).await;
}

#[tokio::test]
async fn a_cancel_that_was_acknowledged_is_carried_out_by_the_next_service() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let place = server.place().path();
    let gate = Gate::new(place, "gate");
    let mut bell = Bell::new(place, "bell");
    let script = format!("trap '' TERM; {}; while :; do {}; done", bell.ring("$$"), gate.wait());
    let mut submission = sh(&script);
    submission["grace"] = json!("1s");
    let job = server.submit(submission).await;
    let process = Process::find(bell.pid().await).expect("it waits at its gate");
    events.job(job.id(), "running").await;
    assert_eq!(server.operate(job.id(), "cancel").await.expect(200).job().state(), "cancelling");
    let place = server.kill().await;
    let server = place.start().await;
    events.resume(&server).await;
    assert_eq!(events.end_of(job.id()).await, "cancelled");
    assert!(!process.is_alive());
    assert_eq!(server.job(job.id()).await.exit_signal(), Some(9), "its true exit status is recorded");
}

#[tokio::test]
async fn a_job_whose_shim_is_killed_dies_with_it_and_the_line_goes_on() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let scene = Scene::set(&server, &mut events, 1).await;
    scene.process.parent().expect("its shim").kill();
    assert_eq!(events.end_of(scene.running.id()).await, "failed");
    assert!(!scene.process.is_alive());
    let lost = server.job(scene.running.id()).await;
    assert_eq!((lost.failure_class(), lost.exit_code()), (Some("host_lost"), None), "nobody knows its status");
    assert_eq!(events.end_of(scene.waiting[0].id()).await, "completed");
}

#[tokio::test]
async fn a_job_whose_shim_and_service_are_both_killed_is_lost_and_not_run_again() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let scene = Scene::set(&server, &mut events, 2).await;
    let shim = scene.process.parent().expect("its shim");
    let spawner = shim.parent().expect("its parent");
    let place = server.kill().await;
    spawner.kill();
    shim.kill();
    scene.process.wait();
    let server = place.start().await;
    events.resume(&server).await;
    assert_eq!(events.end_of(scene.running.id()).await, "failed");
    let lost = server.job(scene.running.id()).await;
    assert_eq!((lost.failure_class(), &lost.json["attempt"]), (Some("host_lost"), &json!(1)));
    assert_eq!(events.end_of(scene.waiting[1].id()).await, "completed");
    assert_eq!(std::fs::read_to_string(&scene.ran).expect("they ran"), "1\n2\n");
}

#[tokio::test]
async fn a_restart_remembers_that_the_queue_was_paused() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("exit 0")).await;
    let server = server.kill().await.start().await;
    assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "paused");
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("paused")));
    let mut events = server.events().await;
    server.post_nothing("/queue/resume").await.expect(200);
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn held_jobs_priorities_and_order_survive_a_kill() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let ran = server.place().path().join("ran");
    let mut jobs = Vec::new();
    for (name, priority, hold) in [("a", 0, false), ("b", 5, false), ("c", 0, true), ("d", 0, false)] {
        let mut submission = sh(&format!("echo {name} >> '{}'", ran.display()));
        submission["priority"] = json!(priority);
        submission["hold"] = json!(hold);
        jobs.push(server.submit(submission).await);
    }
    let server = server.kill().await.start().await;
    let mut events = server.events().await;
    let positions = [Some(2), Some(1), None, Some(3)];
    for (job, position) in jobs.iter().zip(positions) {
        assert_eq!(server.job(job.id()).await.position(), position);
    }
    assert_eq!(server.job(jobs[2].id()).await.state(), "held");
    server.post_nothing("/queue/resume").await.expect(200);
    events.job(jobs[3].id(), "completed").await;
    assert_eq!(std::fs::read_to_string(ran).expect("they ran"), "b\na\nd\n");
}

#[tokio::test]
async fn a_second_service_on_the_same_data_directory_or_port_refuses_to_start() {
    let server = Place::new().start().await;
    let refusal = start_refused(server.place(), ANY_PORT, &[]).await;
    let data_dir = server.place().data_dir().to_str().expect("a path");
    assert!(refusal.contains("another taxiway server") && refusal.contains(data_dir), "{refusal}");

    let other = Place::new();
    let refusal = start_refused(&other, server.address(), &[]).await;
    assert!(refusal.contains(server.address()), "{refusal}");
    server.get("/queue").await.expect(200);
}

#[tokio::test]
async fn a_second_start_keeps_the_token_and_makes_it_readable_by_its_user_alone() {
    use std::os::unix::fs::MetadataExt;
    let server = Place::new().start().await;
    let token = server.place().token();
    let server = server.kill().await.start().await;
    assert_eq!(server.place().token(), token);
    for file in ["token", "taxiway.sock", "taxiway.db"] {
        let mode = std::fs::metadata(server.place().data_dir().join(file)).expect("it is there").mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
}
