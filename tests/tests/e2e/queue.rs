//! The line: who runs, who waits and why.

use serde_json::{Value, json};
use taxiway_tests::{Events, Gate, Job, Place, Server, sh};

const WHOLE_STORY: [&str; 4] = ["queued", "pending", "running", "completed"];

/// A job that runs until its gate opens.
async fn blocker(server: &Server, events: &mut Events) -> (Job, Gate) {
    let gate = Gate::new(server.place().path(), "blocker");
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    (job, gate)
}

/// Submits a job that does nothing but leave its name in the order of what ran.
async fn runner(server: &Server, name: &str, more: Value) -> Job {
    let mut submission = sh(&format!("echo {name} >> '{}'", ran(server).display()));
    submission.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    server.submit(submission).await
}

fn ran(server: &Server) -> std::path::PathBuf {
    server.place().path().join("ran")
}

fn order(server: &Server) -> Vec<String> {
    std::fs::read_to_string(ran(server)).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn three_jobs_submitted_rapidly_run_one_after_another_in_their_order() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let a = server.submit(sh(&gate.wait())).await;
    let b = server.submit(sh("exit 0")).await;
    let c = server.submit(sh("exit 0")).await;
    assert_eq!((a.state(), b.state(), c.state()), ("queued", "queued", "queued"));
    events.job(a.id(), "running").await;

    let (a, b, c) = (server.job(a.id()).await, server.job(b.id()).await, server.job(c.id()).await);
    assert_eq!((a.state(), a.position()), ("running", None));
    assert_eq!((b.state(), b.position(), b.reason()), ("queued", Some(1), Some("waiting_for_gpu")));
    assert_eq!((c.state(), c.position(), c.reason()), ("queued", Some(2), Some("behind")));
    assert!(
        b.json["reason"]["message"].as_str().is_some_and(|text| text.contains(a.id())),
        "it names who holds the slot"
    );
    let queue = server.get("/queue").await.expect(200).json();
    assert_eq!((&queue["mode"], &queue["queued"], &queue["held"]), (&json!("run"), &json!(2), &json!(0)));
    assert_eq!(queue["running"].as_array().map(Vec::len), Some(1));
    assert_eq!(queue["running"][0]["id"], a.id());

    gate.open();
    assert_eq!(events.end_of(c.id()).await, "completed");
    for job in [&a, &b, &c] {
        assert_eq!(events.story(job.id()), WHOLE_STORY);
        let job = server.job(job.id()).await;
        assert_eq!((job.state(), job.exit_code(), job.json["attempt"].as_u64()), ("completed", Some(0), Some(1)));
        assert!(job.json["started_at"].is_string() && job.json["finished_at"].is_string());
    }
    let at = |job: &Job, state: &str| {
        let position = events.seen().iter().position(|event| event.is(job.id(), state));
        position.unwrap_or_else(|| panic!("{state} of {}", job.id()))
    };
    assert!(at(&a, "completed") < at(&b, "running"), "never two at once");
    assert!(at(&b, "completed") < at(&c, "running"), "never two at once");
    let (a, b) = (server.job(a.id()).await, server.job(b.id()).await);
    assert!(a.json["finished_at"].as_str() <= b.json["started_at"].as_str());
}

#[tokio::test]
async fn jobs_that_fail_do_not_stop_the_queue() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let exits = server.submit(sh("echo out of luck; exit 3")).await;
    let missing = server.submit(json!({"command": ["/no/such/program"]})).await;
    let nowhere = server.submit(json!({"command": ["true"], "cwd": "/no/such/directory"})).await;
    let killed = server.submit(sh("kill -SEGV $$")).await;
    let last = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(last.id()).await, "completed");

    let exits = server.job(exits.id()).await;
    assert_eq!((exits.state(), exits.exit_code(), exits.failure_class()), ("failed", Some(3), Some("exit")));
    assert_eq!(exits.json["failure"]["evidence"], "out of luck");
    for job in [&missing, &nowhere] {
        let job = server.job(job.id()).await;
        assert_eq!((job.state(), job.exit_code(), job.failure_class()), ("failed", None, Some("launch_error")));
        assert!(job.json["failure"]["message"].as_str().is_some_and(|text| text.contains("/no/such/")), "{}", job.json);
    }
    let killed = server.job(killed.id()).await;
    assert_eq!((killed.state(), killed.exit_signal(), killed.failure_class()), ("failed", Some(11), Some("signal")));
    assert_eq!(events.story(exits.id()), ["queued", "pending", "running", "failed"]);
}

#[tokio::test]
async fn a_job_that_outstays_its_time_limit_is_ended() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let gate = Gate::new(server.place().path(), "gate");
    let mut submission = sh(&gate.wait());
    submission["time_limit"] = json!("200ms");
    let job = server.submit(submission).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    assert_eq!(server.job(job.id()).await.failure_class(), Some("timeout"));
}

#[tokio::test]
async fn higher_priority_goes_first_and_first_come_first_served_within_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (_, mut gate) = blocker(&server, &mut events).await;
    let mut last = None;
    for (name, priority) in [("a", 0), ("b", -5), ("c", 10), ("d", 0), ("e", 10)] {
        let job = runner(&server, name, json!({"priority": priority})).await;
        if name == "b" {
            last = Some(job);
        }
    }
    let last = server.job(last.expect("it was submitted").id()).await;
    assert_eq!(last.position(), Some(5));
    gate.open();
    events.job(last.id(), "completed").await;
    assert_eq!(order(&server), ["c", "e", "a", "d", "b"]);
}

#[tokio::test]
async fn a_job_of_higher_priority_takes_the_place_of_one_that_is_armed_already() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (_, mut gate) = blocker(&server, &mut events).await;
    let first = runner(&server, "first", json!({})).await;
    // It is next in line and gets a shim, which a user cannot see; a second one is only then submitted.
    assert_eq!(server.job(first.id()).await.position(), Some(1));
    let urgent = runner(&server, "urgent", json!({"priority": 50})).await;
    assert_eq!(urgent.position(), Some(1));
    gate.open();
    events.job(first.id(), "completed").await;
    assert_eq!(order(&server), ["urgent", "first"]);
    assert_eq!(events.story(first.id()), WHOLE_STORY, "it was queued all the while");
    assert_eq!(server.job(first.id()).await.json["attempt"], 1);
}

#[tokio::test]
async fn a_held_job_lets_others_pass_and_keeps_its_place() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (_, mut gate) = blocker(&server, &mut events).await;
    let a = runner(&server, "a", json!({})).await;
    let b = runner(&server, "b", json!({})).await;
    let c = runner(&server, "c", json!({"hold": true})).await;
    assert_eq!((c.state(), c.position()), ("held", None));

    // The first is armed already; the third was never queued.
    assert_eq!(server.operate(a.id(), "hold").await.expect(200).job().state(), "held");
    assert_eq!(server.operate(a.id(), "hold").await.expect(200).job().state(), "held", "nothing is left to change");
    assert_eq!(server.job(b.id()).await.position(), Some(1));
    assert_eq!(server.get("/queue").await.expect(200).json()["held"], 2);
    let released = server.operate(a.id(), "release").await.expect(200).job();
    assert_eq!((released.state(), released.position()), ("queued", Some(1)), "release keeps its place");
    assert_eq!(server.operate(a.id(), "hold").await.expect(200).job().state(), "held");

    gate.open();
    events.job(b.id(), "completed").await;
    assert_eq!(server.operate(a.id(), "release").await.expect(200).job().state(), "queued");
    events.job(a.id(), "completed").await;
    assert_eq!(server.operate(c.id(), "release").await.expect(200).job().state(), "queued");
    events.job(c.id(), "completed").await;
    assert_eq!(order(&server), ["b", "a", "c"]);
    assert_eq!(events.story(c.id()), ["held", "queued", "pending", "running", "completed"]);
}

#[tokio::test]
async fn a_running_job_cannot_be_held() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (job, _gate) = blocker(&server, &mut events).await;
    let refused = server.operate(job.id(), "hold").await.expect(409).problem();
    assert_eq!(refused["state"], "running");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("requeue")), "{refused}");
    assert_eq!(server.job(job.id()).await.state(), "running");
}

#[tokio::test]
async fn a_paused_queue_finishes_what_runs_and_starts_nothing_until_it_is_resumed() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, mut gate) = blocker(&server, &mut events).await;
    let waiting = runner(&server, "waiting", json!({})).await;
    let queue = server.post_nothing("/queue/pause").await.expect(200).json();
    assert_eq!(queue["mode"], "paused");
    gate.open();
    events.job(running.id(), "completed").await;
    let waiting = server.job(waiting.id()).await;
    assert_eq!((waiting.state(), waiting.position(), waiting.reason()), ("queued", Some(1), Some("paused")));
    let queue = server.get("/queue").await.expect(200).json();
    assert_eq!((&queue["running"], &queue["queued"]), (&json!([]), &json!(1)));
    assert!(order(&server).is_empty());

    assert_eq!(server.post_nothing("/queue/resume").await.expect(200).json()["mode"], "run");
    events.job(waiting.id(), "completed").await;
    let modes: Vec<_> = events.seen().iter().filter(|event| event.kind.starts_with("queue.")).collect();
    assert_eq!(modes.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["queue.paused", "queue.run"]);
    let ended = events.seen().iter().position(|event| event.is(running.id(), "completed"));
    let started = events.seen().iter().position(|event| event.is(waiting.id(), "pending"));
    let resumed = events.seen().iter().position(|event| event.kind == "queue.run");
    assert!(ended < resumed && resumed < started);
}

#[tokio::test]
async fn jobs_without_gpus_do_not_wait_for_those_with() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, mut gate) = blocker(&server, &mut events).await;
    let waiting = runner(&server, "gpu", json!({})).await;
    let passing = runner(&server, "cpu", json!({"gpus": 0})).await;
    events.job(passing.id(), "completed").await;
    assert_eq!(server.job(running.id()).await.state(), "running");
    assert_eq!(server.job(waiting.id()).await.state(), "queued");
    gate.open();
    events.job(waiting.id(), "completed").await;
    assert_eq!(order(&server), ["cpu", "gpu"]);
}

#[tokio::test]
async fn as_many_jobs_run_at_once_as_there_are_slots() {
    let server = Place::new().config("[gpu]\nslots = 2\n").start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let a = server.submit(sh(&gate.wait())).await;
    let b = server.submit(sh(&gate.wait())).await;
    let c = server.submit(sh("exit 0")).await;
    events.job(a.id(), "running").await;
    events.job(b.id(), "running").await;
    assert_eq!(server.job(c.id()).await.position(), Some(1));
    // Either of them makes room.
    gate.open();
    events.job(c.id(), "completed").await;
    gate.open();
    events.job(a.id(), "completed").await;
    events.job(b.id(), "completed").await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (blocker, _gate) = blocker(&server, &mut events).await;
    let mut ids = vec![blocker.id().to_owned()];
    for number in 0..5 {
        let team = if number % 2 == 0 { "nlp" } else { "vision" };
        ids.push(
            runner(&server, "x", json!({"name": format!("job-{number}"), "labels": {"team": team}}))
                .await
                .id()
                .to_owned(),
        );
    }
    let list = async |query: &str| -> Vec<String> {
        let page = server.get(&format!("/jobs?{query}")).await.expect(200).json();
        page["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|job| job["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    assert_eq!(list("sort=submitted_at").await, ids);
    assert_eq!(list("state=running,completed").await, ids[..1]);
    assert_eq!(list("label=team=nlp&sort=submitted_at").await, [&ids[1], &ids[3], &ids[5]].map(Clone::clone));
    assert_eq!(list("name=job-3").await, ids[4..5]);
    let first = server.get("/jobs?sort=submitted_at&limit=4").await.expect(200).json();
    assert_eq!(first["items"].as_array().map(Vec::len), Some(4));
    let cursor = first["next_cursor"].as_str().expect("there is more");
    assert_eq!(list(&format!("sort=submitted_at&limit=4&cursor={cursor}")).await, ids[4..]);
    assert_eq!(server.get("/jobs?stat=queued").await.expect(400).problem()["code"], "invalid-request");
}
