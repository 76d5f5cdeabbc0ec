//! What people do to jobs in line: move, requeue, retry, drain.

use serde_json::{Value, json};
use taxiway_tests::{Answer, Events, Gate, Job, Place, Server, sh};

/// A job that runs until its gate opens.
async fn blocker(server: &Server, events: &mut Events) -> (Job, Gate) {
    let gate = Gate::new(server.place().path(), "blocker");
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    (job, gate)
}

/// Jobs of these priorities, in line behind the blocker.
async fn queued(server: &Server, priorities: &[i16]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for priority in priorities {
        let mut submission = sh("exit 0");
        submission["priority"] = json!(priority);
        jobs.push(server.submit(submission).await);
    }
    jobs
}

async fn moved(server: &Server, job: &Job, to: Value) -> Answer {
    server.post(&format!("/jobs/{}/move", job.id()), &json!({"to": to})).await
}

/// Priority and position of each.
async fn standing(server: &Server, jobs: &[Job]) -> Vec<(i64, Option<u64>)> {
    let mut standing = Vec::new();
    for job in jobs {
        let job = server.job(job.id()).await;
        standing.push((job.json["priority"].as_i64().expect("a number"), job.position()));
    }
    standing
}

#[tokio::test]
async fn a_moved_job_stands_where_it_was_told_to_with_its_neighbours_priority_also_after_a_restart() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (_, _gate) = blocker(&server, &mut events).await;
    let jobs = queued(&server, &[5, 0, 0, -5]).await;
    assert_eq!(standing(&server, &jobs).await, [(5, Some(1)), (0, Some(2)), (0, Some(3)), (-5, Some(4))]);

    let front = moved(&server, &jobs[3], json!("front")).await.expect(200).job();
    assert_eq!((front.position(), front.json["priority"].as_i64()), (Some(1), Some(5)));
    assert_eq!(moved(&server, &jobs[0], json!("back")).await.expect(200).job().position(), Some(4));
    assert_eq!(moved(&server, &jobs[0], json!({"before": jobs[1].id()})).await.expect(200).job().position(), Some(2));
    assert_eq!(moved(&server, &jobs[2], json!({"position": 1})).await.expect(200).job().position(), Some(1));
    let expected = [(0, Some(3)), (0, Some(4)), (5, Some(1)), (5, Some(2))];
    assert_eq!(standing(&server, &jobs).await, expected);
    events.wait_for(|event| event.kind == "job.moved" && event.job_id.as_deref() == Some(jobs[2].id())).await;

    let server = server.kill().await.start().await;
    assert_eq!(standing(&server, &jobs).await, expected);
    let last = queued(&server, &[0]).await;
    assert_eq!(standing(&server, &last).await, [(0, Some(5))]);
}

#[tokio::test]
async fn a_move_to_nowhere_is_refused_and_says_why() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, _gate) = blocker(&server, &mut events).await;
    let jobs = queued(&server, &[0]).await;
    let problem = moved(&server, &running, json!("front")).await.expect(409).problem();
    assert_eq!((&problem["code"], &problem["state"]), (&json!("illegal-state"), &json!("running")));
    let problem = moved(&server, &jobs[0], json!({"before": running.id()})).await.expect(422).problem();
    assert_eq!(problem["code"], "not-in-line");
    for wrong in [json!("top"), json!({"position": 0}), json!({"before": 3}), json!(null)] {
        assert_eq!(moved(&server, &jobs[0], wrong).await.expect(400).problem()["status"], 400);
    }
    let problem = server.operate(jobs[0].id(), "move").await.expect(400).problem();
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("front")), "{problem}");
    server.post("/jobs/0193e8f4-0000-7000-8000-000000000000/move", &json!({"to": "front"})).await.expect(404);
}

#[tokio::test]
async fn a_requeued_job_is_stopped_gracefully_and_runs_again_behind_the_others() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let server = place.start().await;
    let mut events = server.events().await;
    let script = format!("trap 'echo checkpoint; exit 7' TERM; echo attempt $TAXIWAY_ATTEMPT; {}", gate.wait());
    let job = server.submit(sh(&script)).await;
    events.job(job.id(), "running").await;
    let other = server.submit(sh("exit 0")).await;

    let stopping = server.operate(job.id(), "requeue").await.expect(200).job();
    assert!(matches!(stopping.state(), "cancelling" | "queued"), "{}", stopping.state());
    events.job(other.id(), "completed").await;
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    let story = events.story(job.id());
    assert_eq!(story, ["queued", "pending", "running", "cancelling", "queued", "pending", "running", "completed"]);
    let job = server.job(job.id()).await;
    assert_eq!((job.json["attempt"].as_u64(), job.exit_code()), (Some(2), Some(0)));
    assert_eq!(server.log(job.id()).await, "attempt 2\n");
    let ended = |id: &str| events.seen().iter().position(|event| event.is(id, "completed"));
    assert!(ended(other.id()) < ended(job.id()), "the other one was before it");
    let problem = server.operate(job.id(), "requeue").await.expect(409).problem();
    assert_eq!(problem["state"], "completed");
}

#[tokio::test]
async fn requeue_with_hold_takes_a_running_job_out_of_the_line_until_it_is_released() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    let problem = server.operate(job.id(), "hold").await.expect(409).problem();
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("requeue")), "{problem}");
    server.post(&format!("/jobs/{}/requeue", job.id()), &json!({"hold": true})).await.expect(200);
    events.job(job.id(), "held").await;
    let held = server.job(job.id()).await;
    assert_eq!((held.state(), held.reason(), held.json["attempt"].as_u64()), ("held", Some("held"), Some(2)));
    assert_eq!((held.exit_signal(), &held.json["started_at"]), (None, &Value::Null));

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(job.id()).await.state(), "held");
    server.operate(job.id(), "release").await.expect(200);
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn a_cancel_of_a_job_that_is_being_requeued_wins() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh(&format!("trap '{}; exit 1' TERM; read -r _ < '{}'", gate.wait(), gate.path()))).await;
    events.job(job.id(), "running").await;
    server.operate(job.id(), "requeue").await.expect(200);
    assert_eq!(server.operate(job.id(), "cancel").await.expect(200).job().state(), "cancelling");
    server.operate(job.id(), "requeue").await.expect(409);
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "cancelled");
}

#[tokio::test]
async fn an_ended_job_can_be_retried_by_hand_and_goes_behind_the_others() {
    let place = Place::new();
    let flag = place.path().join("mended");
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh(&format!("test -e '{}'", flag.display()))).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    std::fs::write(&flag, "").expect("a file");
    server.post_nothing("/queue/pause").await.expect(200);
    let other = server.submit(sh("exit 0")).await;
    let again = server.operate(job.id(), "retry").await.expect(200).job();
    assert_eq!((again.state(), again.position(), again.json["attempt"].as_u64()), ("queued", Some(2), Some(2)));
    assert_eq!((again.failure_class(), again.exit_code(), &again.json["finished_at"]), (None, None, &Value::Null));
    let problem = server.operate(job.id(), "retry").await.expect(409).problem();
    assert_eq!(problem["state"], "queued");

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(job.id()).await.position(), Some(2));
    server.post_nothing("/queue/resume").await.expect(200);
    events.job(job.id(), "completed").await;
    events.job(other.id(), "completed").await;
    let cancelled = server.submit(json!({"command": ["true"], "hold": true})).await;
    server.operate(cancelled.id(), "cancel").await.expect(200);
    server.operate(cancelled.id(), "retry").await.expect(200);
    assert_eq!(events.job(cancelled.id(), "completed").await.job_id.as_deref(), Some(cancelled.id()));
}

#[tokio::test]
async fn a_drained_service_ends_by_itself_and_starts_paused() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, mut gate) = blocker(&server, &mut events).await;
    let jobs = queued(&server, &[0]).await;
    assert_eq!(server.post_nothing("/queue/drain").await.expect(200).json()["mode"], "draining");
    assert_eq!(server.job(jobs[0].id()).await.reason(), Some("draining"));
    gate.open();
    let (place, status) = server.ended().await;
    assert!(status.success(), "{status}");
    let server = place.start().await;
    assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "paused");
    assert_eq!(server.job(running.id()).await.state(), "completed");
    assert_eq!(server.job(jobs[0].id()).await.reason(), Some("paused"));
}

#[tokio::test]
async fn a_service_that_is_told_to_starts_paused_or_running_whatever_it_was() {
    let server = Place::new().config("[queue]\nstartup = \"paused\"\n").start().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(server.job(job.id()).await.reason(), Some("paused"));
    let place = server.kill().await.config("[queue]\nstartup = \"run\"\n");
    let server = place.start().await;
    let mut events = server.events().await;
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn the_command_line_moves_requeues_and_retries() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, mut gate) = blocker(&server, &mut events).await;
    let jobs = queued(&server, &[0, 0]).await;
    let done = async |arguments: &[&str]| {
        let output = server.cli(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    done(&["move", jobs[1].id(), "--front"]).await;
    assert_eq!(server.job(jobs[1].id()).await.position(), Some(1));
    done(&["move", jobs[1].id(), "--position", "2"]).await;
    assert_eq!(server.job(jobs[1].id()).await.position(), Some(2));
    done(&["requeue", "--hold", running.id()]).await;
    events.job(running.id(), "held").await;
    events.job(jobs[1].id(), "completed").await;
    done(&["retry", jobs[1].id()]).await;
    done(&["release", running.id()]).await;
    gate.open();
    events.job(running.id(), "completed").await;
    assert_eq!(server.job(jobs[1].id()).await.json["attempt"], 2);
    assert!(!server.cli(&["move", jobs[0].id()]).await.status.success(), "it says where to");
}
