//! Requests that are sent again because their answer was lost.

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Answer, Client, Place, Server, sh};

async fn post(client: &Client, path: &str, key: &str, body: &Value) -> Answer {
    let request = client.request(Method::POST, &format!("/api/v1{path}")).json(body);
    request.header("idempotency-key", key).send().await
}

async fn paused(place: Place) -> Server {
    let server = place.start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    server
}

#[tokio::test]
async fn the_same_request_with_the_same_key_is_answered_with_its_job_as_it_is_now_also_after_a_kill() {
    let server = paused(Place::new()).await;
    let first = post(&server, "/jobs", "k-1", &sh("true")).await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), "");
    let id = first.job().id().to_owned();
    server.operate(&id, "hold").await.expect(200);

    let server = server.kill().await.start().await;
    let again = post(&server, "/jobs", "k-1", &sh("true")).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("location"), format!("/api/v1/jobs/{id}"));
    assert_eq!((again.job().id(), again.job().state()), (id.as_str(), "held"));

    let other = post(&server, "/jobs", "k-1", &sh("false")).await.expect(422).problem();
    assert_eq!(other["code"], "idempotency-key-reused");
    assert_eq!(server.jobs().await.len(), 1);
}

#[tokio::test]
async fn duplicates_at_the_same_time_wait_for_the_first_and_get_its_job() {
    let server = paused(Place::new()).await;
    let body = sh("true");
    let answers = join_all((0..16).map(|_| post(&server, "/jobs", "once", &body))).await;
    let first = answers[0].job().id().to_owned();
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), answer.job().id()), (201, first.as_str()));
    }
    let carried_out = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count();
    assert_eq!(carried_out, 1);
    assert_eq!(server.jobs().await.len(), 1);
}

#[tokio::test]
async fn a_key_is_its_sender_s_and_a_path_s() {
    let server = paused(Place::new()).await;
    let (own, socket) = (server.client(), server.unix_client());
    let first = post(own, "/jobs", "k", &sh("true")).await.expect(201).job();
    // The socket's user is somebody else than the administrator's token.
    let second = post(&socket, "/jobs", "k", &sh("true")).await.expect(201).job();
    assert_ne!(first.id(), second.id());
    post(own, "/jobs/batch", "k", &json!([sh("true")])).await.expect(422);
    for wrong in ["", "x".repeat(256).as_str()] {
        assert_eq!(
            post(own, "/jobs", wrong, &sh("true")).await.expect(400).problem()["code"],
            "invalid-idempotency-key"
        );
    }
}

#[tokio::test]
async fn dry_runs_and_refused_requests_use_no_key_up() {
    let server = paused(Place::new()).await;
    let dry = post(&server, "/jobs?dry_run=true", "k", &sh("true")).await.expect(200);
    assert_eq!(dry.header("idempotency-replayed"), "");
    let impossible = json!({"command": ["true"], "gpus": 99});
    post(&server, "/jobs", "k", &impossible).await.expect(422);
    post(&server, "/jobs", "k", &impossible).await.expect(422);
    let job = post(&server, "/jobs", "k", &sh("true")).await.expect(201);
    assert_eq!(job.header("idempotency-replayed"), "");
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_answered_with_what_each_of_its_jobs_came_to() {
    let server = paused(Place::new()).await;
    let body = json!([sh("true"), {"command": ["true"], "gpus": 99}, sh("false")]);
    let first = post(&server, "/jobs/batch", "b", &body).await.expect(200).json();
    let again = post(&server, "/jobs/batch", "b", &body).await.expect(200);
    assert_eq!(again.header("idempotency-replayed"), "true");
    let again = again.json();
    for index in 0..3 {
        let (first, again) = (&first["items"][index], &again["items"][index]);
        assert_eq!((&first["status"], &first["job"]["id"]), (&again["status"], &again["job"]["id"]));
        assert_eq!(first["problem"], again["problem"]);
    }
    assert_eq!(server.jobs().await.len(), 2);
}
