//! What keeps a queued job from starting besides its turn: other jobs, the clock, the pause before a retry.

use serde_json::{Value, json};
use taxiway_tests::{Events, Gate, Job, Place, Server, sh};

async fn blocker(server: &Server, events: &mut Events) -> (Job, Gate) {
    let gate = Gate::new(server.place().path(), "blocker");
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    (job, gate)
}

fn with(mut submission: Value, field: &str, value: Value) -> Value {
    submission[field] = value;
    submission
}

fn in_a_minute() -> String {
    taxiway_job::Time::now().plus(std::time::Duration::from_secs(60)).to_string()
}

#[tokio::test]
async fn a_job_starts_after_those_that_it_comes_after_and_lets_others_pass() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (first, mut gate) = blocker(&server, &mut events).await;
    let second = server.submit(with(sh("exit 3"), "after", json!([first.id()]))).await;
    let third = server.submit(with(sh("exit 0"), "after_any", json!([second.id()]))).await;
    let free = server.submit(sh("exit 0")).await;
    assert_eq!((second.position(), second.reason()), (Some(1), Some("after_unmet")));
    let message = second.json["reason"]["message"].as_str().unwrap_or_default();
    assert!(message.contains(first.id()), "{message}");
    assert_eq!((third.position(), third.reason()), (Some(2), Some("after_unmet")));
    assert_eq!((free.position(), free.reason()), (Some(3), Some("waiting_for_gpu")));

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(second.id()).await.reason(), Some("after_unmet"));
    gate.open();
    assert_eq!(events.end_of(third.id()).await, "completed");
    assert_eq!(events.end_of(second.id()).await, "failed");
    let at = |id: &str, state: &str| {
        events.seen().iter().position(|event| event.is(id, state)).unwrap_or_else(|| panic!("{state} of {id}"))
    };
    assert!(at(first.id(), "completed") < at(second.id(), "pending"));
    assert!(at(second.id(), "failed") < at(third.id(), "pending"));
}

#[tokio::test]
async fn a_job_that_comes_after_one_that_fails_is_cancelled_and_so_are_those_after_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let (running, _gate) = blocker(&server, &mut events).await;
    let second = server.submit(with(sh("exit 0"), "after", json!([running.id()]))).await;
    let held = server.submit(with(with(sh("exit 0"), "after", json!([second.id()])), "hold", json!(true))).await;
    let any = server.submit(with(sh("exit 0"), "after_any", json!([held.id()]))).await;
    server.operate(running.id(), "cancel").await.expect(200);
    assert_eq!(events.end_of(second.id()).await, "cancelled");
    assert_eq!(events.end_of(held.id()).await, "cancelled");
    assert_eq!(events.end_of(any.id()).await, "completed");
    let second = server.job(second.id()).await;
    assert_eq!(second.reason(), Some("after_failed"));
    assert!(second.json["reason"]["message"].as_str().is_some_and(|text| text.contains(running.id())));

    // It had ended already: the same, at once.
    let late = server.submit(with(sh("exit 0"), "after", json!([running.id()]))).await;
    assert_eq!((late.state(), late.reason()), ("cancelled", Some("after_failed")));
    let met = server.submit(with(sh("exit 0"), "after", json!([any.id()]))).await;
    assert_eq!(events.end_of(met.id()).await, "completed");
}

#[tokio::test]
async fn a_job_after_one_that_there_is_not_is_refused() {
    let server = Place::new().start().await;
    let unknown = "0193e8f4-0000-7000-8000-000000000000";
    let problem = server.post("/jobs", &with(sh("exit 0"), "after", json!([unknown]))).await.expect(422).problem();
    assert_eq!(problem["problems"][0]["code"], "unknown-job");
    let problem = server.post("/jobs", &with(sh("exit 0"), "after_any", json!(["x"]))).await.expect(422).problem();
    assert_eq!(problem["problems"][0]["path"], "/after_any/0");
    let retries = json!({"max": 5000, "backoff": "2h"});
    let problem = server.post("/jobs", &with(sh("exit 0"), "retries", retries)).await.expect(422).problem();
    assert_eq!(problem["problems"].as_array().map(Vec::len), Some(2));
    assert!(server.jobs().await.is_empty());
}

#[tokio::test]
async fn a_job_with_an_earliest_start_lets_others_pass_until_then_also_over_a_restart() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let later = server.submit(with(sh("exit 0"), "not_before", json!(in_a_minute()))).await;
    assert_eq!((later.position(), later.reason()), (Some(1), Some("not_before")));
    let other = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(other.id()).await, "completed");
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(later.id()).await.reason(), Some("not_before"));
    let at = taxiway_job::Time::now().plus(std::time::Duration::from_millis(300)).to_string();
    let soon = server.submit(with(sh("exit 0"), "not_before", json!(at))).await;
    assert_eq!(events.end_of(soon.id()).await, "completed");
    let started = server.job(soon.id()).await.json["started_at"].as_str().map(str::to_owned);
    assert!(started.as_deref() >= Some(at.as_str()), "{started:?}");
    let past = server.submit(with(sh("exit 0"), "not_before", json!("2020-01-01T00:00:00Z"))).await;
    assert_eq!(events.end_of(past.id()).await, "completed");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_as_often_as_it_wants_and_then_fails_for_good() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let retries = json!({"max": 2, "backoff": "100ms"});
    let job = server.submit(with(sh("echo attempt $TAXIWAY_ATTEMPT; exit 9"), "retries", retries)).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    let once = ["queued", "pending", "running"];
    let story = [once, once, once].concat();
    assert_eq!(events.story(job.id()), [story.as_slice(), &["failed"]].concat());
    let job = server.job(job.id()).await;
    assert_eq!((job.json["attempt"].as_u64(), job.exit_code(), job.failure_class()), (Some(3), Some(9), Some("exit")));
    assert_eq!(server.log(job.id()).await, "attempt 3\n");
    assert_eq!(job.json["retries"]["max"], 2);

    // A retry by hand begins the count anew.
    server.operate(job.id(), "retry").await.expect(200);
    while server.job(job.id()).await.state() != "failed" {
        events.next().await.expect("the service lives");
    }
    assert_eq!(server.job(job.id()).await.json["attempt"], 6);
}

#[tokio::test]
async fn a_failed_job_keeps_its_place_while_its_pause_lasts_and_others_pass_also_over_a_restart() {
    let place = Place::new();
    let flag = place.path().join("mended");
    let server = place.start().await;
    let mut events = server.events().await;
    let retries = json!({"max": 1, "backoff": "1h", "on": ["exit"]});
    let job = server.submit(with(sh(&format!("test -e '{}'", flag.display())), "retries", retries)).await;
    events.wait_for(|event| event.is(job.id(), "running")).await;
    let other = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(other.id()).await, "completed");
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.position(), waiting.reason()), ("queued", Some(1), Some("retry_backoff")));
    assert!(waiting.json["retry_at"].is_string());
    assert_eq!(waiting.json["attempt"], 2);
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("retry_backoff")));
    let after = server.submit(with(sh("exit 0"), "after", json!([job.id()]))).await;
    assert_eq!(after.reason(), Some("after_unmet"), "the job has not failed for good");
    server.operate(job.id(), "cancel").await.expect(200);
    assert_eq!(events.end_of(after.id()).await, "cancelled");
}

#[tokio::test]
async fn a_failure_that_is_not_to_be_retried_is_not() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let signal = json!({"max": 5, "backoff": 0, "on": ["signal"]});
    let job = server.submit(with(sh("exit 1"), "retries", signal)).await;
    let missing = with(json!({"command": ["/no/such/program"]}), "retries", json!({"max": 5, "backoff": 0}));
    let missing = server.submit(missing).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    assert_eq!(events.end_of(missing.id()).await, "failed");
    for job in [&job, &missing] {
        assert_eq!(server.job(job.id()).await.json["attempt"], 1);
    }
}

#[tokio::test]
async fn nothing_starts_while_less_of_the_disk_is_free_than_is_asked_for() {
    let server = Place::new().config("[launcher]\nmin_free_disk = \"1000TiB\"\n").start().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(server.job(job.id()).await.reason(), Some("disk_low"));
    let server = server.kill().await.config("[launcher]\nmin_free_disk = 0\n").start().await;
    let mut events = server.events().await;
    assert_eq!(events.end_of(job.id()).await, "completed");
}
