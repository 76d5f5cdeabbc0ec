//! A shim that is there and does not answer: its job says so, whoever asks is answered, and the line goes on where it can.

use std::time::Duration;

use http::Method;
use serde_json::json;
use taxiway_tests::processes::{Process, armed_shim_of, shim_of};
use taxiway_tests::{Bell, Gate, Place, Server, patiently, sh};

/// A job that runs until its gate opens, and one that is armed behind it, whose shim is stopped.
struct Stage {
    server: Server,
    gate: Gate,
    runs: String,
    armed: String,
    shim: Process,
}

impl Stage {
    async fn set() -> Self {
        let server = Place::new().start().await;
        let directory = server.place().path().to_owned();
        let gate = Gate::new(&directory, "gate");
        let mut bell = Bell::new(&directory, "bell");
        let runs = server.submit(sh(&format!("{}; {}", bell.ring("up"), gate.wait()))).await.id().to_owned();
        bell.heard().await;
        let armed = server.submit(sh("exit 7")).await.id().to_owned();
        let shim = armed_shim_of(&server.place().jobs_dir(), &armed).await;
        shim.signal(libc::SIGSTOP);
        Self { server, gate, runs, armed, shim }
    }
}

/// Waits until a job says why it does not go on.
async fn is_silent(server: &Server, id: &str) {
    patiently("a reason", async {
        while server.job(id).await.reason() != Some("shim_unresponsive") {
            // No event tells of a reason.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_armed_job_whose_shim_is_stopped_can_be_cancelled_and_the_line_goes_on() {
    let Stage { server, mut gate, runs, armed, shim } = Stage::set().await;
    let mut events = server.events().await;
    assert_eq!(server.operate(&armed, "cancel").await.expect(200).job().state(), "cancelled");
    shim.wait();
    gate.open();
    assert_eq!(events.end_of(&runs).await, "completed");
    let next = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(next.id()).await, "completed");
}

#[tokio::test]
async fn a_job_that_was_told_to_start_starts_although_its_shim_had_been_stopped() {
    let Stage { server, mut gate, armed, .. } = Stage::set().await;
    let mut events = server.events().await;
    gate.open();
    events.job(&armed, "pending").await;
    // Its service continues it.
    assert_eq!(events.end_of(&armed).await, "failed");
    let job = server.job(&armed).await;
    assert_eq!((job.exit_code(), job.reason()), (Some(7), None));
}

#[tokio::test]
async fn what_an_earlier_service_has_armed_and_does_not_answer_is_explained_and_settled_when_it_can_be() {
    let Stage { server, mut gate, runs, armed, shim } = Stage::set().await;
    let server = server.kill().await.start().await;
    let mut events = server.events().await;
    is_silent(&server, &armed).await;
    let cancel = server.request(Method::POST, &format!("/api/v1/jobs/{armed}/cancel")).json(&json!({}));
    let problem = cancel.send().await.expect(503).problem();
    assert_eq!(problem["code"], "shim-unresponsive", "{problem}");
    // Others do not wait for it: their lane is another one.
    let other = server.submit(json!({"command": ["true"], "gpus": 0})).await;
    assert_eq!(events.end_of(other.id()).await, "completed");
    shim.signal(libc::SIGCONT);
    gate.open();
    assert_eq!(events.end_of(&runs).await, "completed");
    assert_eq!(events.end_of(&armed).await, "failed");
    let job = server.job(&armed).await;
    assert_eq!((job.exit_code(), job.json["attempt"].as_u64()), (Some(7), Some(1)));
}

#[tokio::test]
async fn a_running_job_whose_shim_is_stopped_can_be_cancelled_and_extended() {
    let server = Place::new().start().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let job = server.submit(sh(&format!("{}; sleep 1000", bell.ring("up")))).await;
    let mut events = server.events().await;
    // Its shim has said so, and is not stopped before.
    events.job(job.id(), "running").await;
    bell.heard().await;
    let shim = shim_of(&server.place().jobs_dir(), job.id()).await;
    shim.signal(libc::SIGSTOP);
    let edit = server.request(Method::PATCH, &format!("/api/v1/jobs/{}", job.id()));
    edit.json(&json!({"time_limit": "1h"})).send().await.expect(200);
    shim.signal(libc::SIGSTOP);
    assert_eq!(server.operate(job.id(), "cancel").await.expect(200).job().state(), "cancelling");
    assert_eq!(events.end_of(job.id()).await, "cancelled");
    shim.wait();
}

#[tokio::test]
async fn the_time_limit_of_a_job_whose_shim_an_earlier_service_left_and_that_does_not_answer_cannot_be_changed() {
    let server = Place::new().start().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let job = server.submit(sh(&format!("{}; sleep 1000", bell.ring("up")))).await;
    server.events().await.job(job.id(), "running").await;
    bell.heard().await;
    let shim = shim_of(&server.place().jobs_dir(), job.id()).await;
    shim.signal(libc::SIGSTOP);
    let server = server.kill().await.start().await;
    is_silent(&server, job.id()).await;
    let edit = || {
        let edit = server.request(Method::PATCH, &format!("/api/v1/jobs/{}", job.id()));
        edit.json(&json!({"time_limit": "1h"})).send()
    };
    assert_eq!(edit().await.expect(503).problem()["code"], "shim-unresponsive");
    assert_eq!(server.job(job.id()).await.json["time_limit"], job.json["time_limit"]);
    shim.signal(libc::SIGCONT);
    patiently("an answer", async {
        while server.job(job.id()).await.reason().is_some() {
            // No event tells of a reason.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    edit().await.expect(200);
    let mut events = server.events().await;
    server.operate(job.id(), "cancel").await.expect(200);
    assert_eq!(events.end_of(job.id()).await, "cancelled");
}
