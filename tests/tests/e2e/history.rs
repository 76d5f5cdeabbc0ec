//! What is kept of jobs that have ended, and how it goes.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use taxiway_tests::{Client, Place, Random, sh};

/// How many times a service is killed while it removes jobs.
const KILLS: u64 = 12;

async fn remove(client: &Client, id: &str) -> u16 {
    client.request(Method::DELETE, &format!("/api/v1/jobs/{id}")).send().await.status.as_u16()
}

fn has_line(text: &str, line: &str) -> bool {
    text.lines().any(|it| it == line)
}

#[tokio::test]
async fn an_ended_job_shows_its_attempts_until_it_is_removed_with_all_that_was_kept_of_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("echo hello; echo '{\"progress\": 0.5}' > $TAXIWAY_PROGRESS_FILE; exit 3")).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    let database = rusqlite::Connection::open(server.place().data_dir().join("taxiway.db")).expect("a database");
    let samples =
        || database.query_row("SELECT count(*) FROM samples", [], |row| row.get::<_, i64>(0)).expect("a count");
    assert_eq!(samples(), 1);
    let attempts = server.get(&format!("/jobs/{}/attempts", job.id())).await.expect(200).json();
    assert_eq!(attempts["items"].as_array().map(Vec::len), Some(1));
    let attempt = &attempts["items"][0];
    assert_eq!((&attempt["attempt"], &attempt["end_state"]), (&Value::from(1), &Value::from("failed")));
    assert_eq!((&attempt["exit"]["code"], &attempt["failure"]["class"]), (&Value::from(3), &Value::from("exit")));
    let log = |number: u32| format!("/jobs/{}/log?attempt={number}", job.id());
    assert_eq!(server.get(&log(1)).await.expect(200).text(), "hello\n");
    server.get(&log(2)).await.expect(404);

    let directory = server.place().jobs_dir().join(job.id());
    assert!(directory.exists());
    assert_eq!(remove(&server, job.id()).await, 204);
    assert!(!directory.exists(), "nothing of it is left");
    assert_eq!(samples(), 0);
    server.get(&format!("/jobs/{}", job.id())).await.expect(404);
    assert_eq!(remove(&server, job.id()).await, 404);
    let audit = server.get("/audit?limit=1").await.expect(200).json();
    assert_eq!((&audit["items"][0]["action"], &audit["items"][0]["actor"]), (&"remove".into(), &"admin".into()));
    assert!(audit["next_cursor"].is_string());
}

#[tokio::test]
async fn a_job_that_a_killed_service_was_removing_is_there_with_its_files_or_gone_with_them() {
    let mut random = Random::of_seed(20_260_131);
    let mut server = Place::new().start().await;
    let mut events = server.events().await;
    for _ in 0..KILLS {
        let mut jobs = Vec::new();
        for _ in 0..4 {
            jobs.push(server.submit(sh("true")).await.id().to_owned());
        }
        for job in &jobs {
            assert_eq!(events.end_of(job).await, "completed");
        }
        let removing = jobs.into_iter().map(|job| {
            let client = server.client().clone();
            tokio::spawn(async move {
                let answer = client.request(Method::DELETE, &format!("/api/v1/jobs/{job}")).try_send().await;
                (job, answer.is_ok_and(|answer| answer.expect(204).status == 204))
            })
        });
        let removing: Vec<_> = removing.collect();
        // What is waited for here is nothing: the moment is the test.
        tokio::time::sleep(Duration::from_micros(random.below(10_000))).await;
        server = server.kill().await.start().await;
        events.resume(&server).await;
        // Answered when the service has gone on with what the one before had begun.
        server.post_nothing("/gc").await.expect(200);
        for job in removing {
            let (job, acknowledged) = job.await.expect("it only asks");
            let is_there = server.get(&format!("/jobs/{job}")).await.status == 200;
            assert!(!(acknowledged && is_there), "{job} has come back");
            assert_eq!(server.place().jobs_dir().join(&job).exists(), is_there, "{job}: its files");
        }
    }
}

#[tokio::test]
async fn a_job_that_has_not_ended_cannot_be_removed() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("true")).await;
    assert_eq!(remove(&server, job.id()).await, 409);
    assert_eq!(server.job(job.id()).await.state(), "queued");
}

#[tokio::test]
async fn metrics_count_what_was_submitted_and_handed_over() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    server.submit(sh("true")).await;
    let last = server.submit(sh("true")).await;
    assert_eq!(events.end_of(last.id()).await, "completed");
    let answer = server.request(Method::GET, "/metrics").send().await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    for line in ["taxiway_submissions_total 2", "taxiway_jobs{state=\"completed\"} 2", "taxiway_queue_length 0"] {
        assert!(has_line(&text, line), "{line}\n{text}");
    }
    assert!(text.contains("taxiway_handover_seconds_bucket{le=\"+Inf\"}"), "{text}");
    server.with_token(None).request(Method::GET, "/metrics").send().await.expect(401);
}

#[tokio::test]
async fn logs_go_when_their_time_is_over_and_a_backup_is_taken_while_the_service_runs() {
    let place = Place::new().config("[queue]\nretention = { logs = 0 }\n");
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("echo hello")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let output = server.cli(&["gc", "--json"]).await;
    let removed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&removed["logs"], &removed["log_bytes"], &removed["jobs"]), (&1.into(), &6.into(), &0.into()));
    assert_eq!(server.log(job.id()).await, "");

    let file = server.place().path().join("copy.db");
    let output = server.cli(&["backup", file.to_str().expect("a path")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = rusqlite::Connection::open(&file).expect("opens");
    let count: i64 = copy.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).expect("an answer");
    assert_eq!(count, 1);
    assert!(!server.cli(&["backup", file.to_str().expect("a path")]).await.status.success(), "it is not written over");
}
