//! The audit trail: who did what, in the words of what was asked for.

use http::Method;
use serde_json::json;
use taxiway_tests::{Gate, Place, Server, sh};

/// What was done to a job, the first first, all of it by the administrator.
async fn done_to(server: &Server, id: &str) -> Vec<String> {
    let trail = server.get("/audit?limit=1000").await.expect(200).json();
    let rows = trail["items"].as_array().expect("items");
    let of_job = rows.iter().rev().filter(|row| row["job_id"] == id);
    of_job
        .map(|row| {
            assert_eq!(row["actor"], "admin", "{row}");
            row["action"].as_str().expect("an action").to_owned()
        })
        .collect()
}

#[tokio::test]
async fn every_operation_on_a_job_leaves_one_row_with_its_name_and_who_asked_for_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("exit 0")).await;
    server.submit(sh("exit 0")).await;
    let path = format!("/jobs/{}", job.id());
    server.operate(job.id(), "hold").await.expect(200);
    server.operate(job.id(), "release").await.expect(200);
    server.post(&format!("{path}/move"), &json!({"to": "back"})).await.expect(200);
    server.patch(&path, &json!({"name": "other"})).await.expect(200);
    server.post(&format!("{path}/requeue"), &json!({"hold": true})).await.expect(200);
    let force = format!("/api/training/{}/force-start", job.id());
    server.request(Method::POST, &force).send().await.expect(200);
    server.operate(job.id(), "cancel").await.expect(200);
    server.operate(job.id(), "retry").await.expect(200);
    server.operate(job.id(), "cancel").await.expect(200);
    let expected = ["submit", "hold", "release", "move", "edit", "requeue", "force-start", "cancel", "retry", "cancel"];
    assert_eq!(done_to(&server, job.id()).await, expected);
    // What changes nothing leaves nothing.
    server.operate(job.id(), "cancel").await.expect(200);
    server.operate(job.id(), "hold").await.expect(409);
    assert_eq!(done_to(&server, job.id()).await.len(), expected.len());

    server.post_nothing("/queue/resume").await.expect(200);
    let gate = Gate::new(server.place().path(), "gate");
    let running = server.submit(sh(&gate.wait())).await;
    events.job(running.id(), "running").await;
    server.operate(running.id(), "requeue").await.expect(200);
    server.operate(running.id(), "cancel").await.expect(200);
    events.job(running.id(), "cancelled").await;
    assert_eq!(done_to(&server, running.id()).await, ["submit", "requeue", "cancel"]);

    let trail = server.get("/audit?limit=1000").await.expect(200).json();
    let of_queue = trail["items"].as_array().expect("items").iter().rev().filter(|row| row["job_id"].is_null());
    let of_queue: Vec<_> =
        of_queue.filter_map(|row| row["action"].as_str()).filter(|row| row.contains("queue")).collect();
    assert_eq!(of_queue, ["queue pause", "queue resume"]);
    server.post_nothing("/gc").await.expect(200);
    let trail = server.get("/audit?limit=1").await.expect(200).json();
    assert_eq!((&trail["items"][0]["action"], &trail["items"][0]["actor"]), (&json!("gc"), &json!("admin")));
}
