//! Arrays: one submission, a job for each combination of values, and a limit of how many run at a time.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Answer, Events, Gate, Place, Server, sh};

/// A machine on which only the array's own limit keeps its jobs from running beside each other.
async fn roomy() -> Server {
    Place::new().config("[gpu]\nslots = 8\n").start().await
}

fn array(mut submission: Value, params: Value, max_parallel: Option<u32>) -> Value {
    submission["array"] = json!({"params": params});
    if let Some(max_parallel) = max_parallel {
        submission["array"]["max_parallel"] = max_parallel.into();
    }
    submission["time_limit"] = 600.into();
    submission
}

fn ids(answer: &Value) -> Vec<String> {
    let items = answer["items"].as_array().expect("items");
    items.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
}

/// The most of these jobs that were pending, running or cancelling at a time, by the events seen.
fn most_at_once(events: &Events, ids: &[String]) -> usize {
    let mut under_way = std::collections::HashSet::new();
    let mut most = 0;
    for event in events.seen() {
        let Some(id) = event.job_id.as_ref().filter(|id| ids.contains(id)) else { continue };
        match event.kind.as_str() {
            "job.pending" | "job.running" | "job.cancelling" => under_way.insert(id.clone()),
            "job.progress" => continue,
            _ => under_way.remove(id),
        };
        most = most.max(under_way.len());
    }
    most
}

#[tokio::test]
async fn an_array_is_a_job_for_each_combination_and_listed_and_cancelled_as_one() {
    let server = roomy().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let mut submission = sh("true");
    submission["config"] = json!({"train": {"lr": 9, "epochs": 3}});
    let request = array(submission, json!({"/train/lr": [0.1, 0.01], "seed": [1, 2, 3]}), Some(1));
    let answer = server.post("/jobs", &request).await.expect(201);
    let location = answer.header("location").to_owned();
    let answer = answer.json();
    let array_id = answer["array_id"].as_str().expect("an id").to_owned();
    let ids = ids(&answer);
    assert_eq!(ids.len(), 6);
    let fourth = &answer["items"][3];
    assert_eq!(fourth["config"], json!({"train": {"lr": 0.01, "epochs": 3}, "seed": 1}));
    assert_eq!((&fourth["array_id"], &fourth["array_index"]), (&json!(array_id), &json!(3)));
    assert_eq!(fourth["array_params"], json!({"/train/lr": 0.01, "seed": 1}));
    assert_eq!((&fourth["array_max_parallel"], &fourth["position"]), (&json!(1), &json!(4)));

    let other = server.submit(sh("true")).await;
    assert_eq!(other.json["array_id"], Value::Null);
    let server = server.kill().await.start().await;
    assert_eq!(location, format!("/api/v1/jobs?array_id={array_id}"));
    let path = location.trim_start_matches("/api/v1");
    let list = server.get(&format!("{path}&sort=submitted_at")).await.expect(200).json();
    assert_eq!(self::ids(&list), ids);
    assert_eq!(list["items"][3]["array_params"], fourth["array_params"]);
    server.operate(&ids[0], "cancel").await.expect(200);
    let queued = server.get(&format!("{path}&state=queued,held&limit=3")).await.expect(200).json();
    assert_eq!(queued["items"].as_array().map(Vec::len), Some(3));
    assert!(queued["next_cursor"].is_string());
    assert_eq!(server.get("/jobs?array_id=x").await.expect(400).problem()["code"], "invalid-request");

    let cancelled = server.post("/jobs/cancel", &json!({"filter": {"array_id": array_id}})).await.expect(200).json();
    assert_eq!(cancelled["items"].as_array().map(Vec::len), Some(5));
    for id in &ids {
        assert_eq!(server.job(id).await.state(), "cancelled");
    }
    assert_eq!(server.job(other.id()).await.state(), "queued");
    server.post("/jobs/cancel", &json!({"filter": {"array_id": "x"}})).await.expect(400);
}

#[tokio::test]
async fn no_more_of_an_array_run_than_may_also_over_kills_and_others_pass_them() {
    let server = roomy().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let request = array(sh(&gate.wait()), json!({"seed": [1, 2, 3, 4, 5]}), Some(2));
    let ids = ids(&server.post("/jobs", &request).await.expect(201).json());
    events.job(&ids[0], "running").await;
    events.job(&ids[1], "running").await;
    let other = server.submit(sh("true")).await;
    assert_eq!(events.end_of(other.id()).await, "completed");
    let third = server.job(&ids[2]).await;
    assert_eq!((third.position(), third.reason()), (Some(1), Some("array_limit")));
    let message = third.json["reason"]["message"].as_str().expect("a sentence");
    assert!(message.contains(&ids[0]) && message.contains(&ids[1]), "{message}");
    let explained = server.get(&format!("/jobs/{}/explain", ids[2])).await.expect(200).json();
    assert_eq!(explained["reason"]["code"], "array_limit");

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(&ids[2]).await.reason(), Some("array_limit"));
    // Each that ends makes room for one, whoever serves then.
    gate.open();
    events.job(&ids[2], "running").await;
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    // One that is cancelled keeps its place until its processes are gone.
    server.operate(&ids[2], "cancel").await.expect(200);
    events.job(&ids[3], "running").await;
    for _ in 0..3 {
        gate.open();
    }
    for (id, end) in ids.iter().zip(["completed", "completed", "cancelled", "completed", "completed"]) {
        assert_eq!(events.end_of(id).await, end);
    }
    assert_eq!(most_at_once(&events, &ids), 2);
}

#[tokio::test]
async fn members_that_are_retried_requeued_and_edited_stay_within_the_limit() {
    let server = roomy().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let request = array(sh(&gate.wait()), json!({"seed": [1, 2, 3]}), Some(1));
    let ids = ids(&server.post("/jobs", &request).await.expect(201).json());
    events.job(&ids[0], "running").await;
    server.operate(&ids[0], "requeue").await.expect(200);
    events.job(&ids[1], "running").await;
    let edited = json!({"config": {"note": "x"}, "priority": 5});
    let path = format!("/api/v1/jobs/{}", ids[2]);
    let edited = server.client().request(Method::PATCH, &path).json(&edited).send().await.expect(200).job();
    assert_eq!((edited.reason(), &edited.json["array_params"]), (Some("array_limit"), &json!({"seed": 3})));
    let patch = json!({"array": {"params": {"a": [1]}}});
    let refused = server.client().request(Method::PATCH, &path).json(&patch).send().await.expect(422).problem();
    assert_eq!(refused["problems"][0]["code"], "not-editable");
    server.operate(&ids[1], "cancel").await.expect(200);
    events.job(&ids[2], "running").await;
    let retried = server.operate(&ids[1], "retry").await.expect(200).job();
    assert_eq!(retried.reason(), Some("array_limit"));
    for _ in 0..3 {
        gate.open();
    }
    for id in &ids {
        while server.job(id).await.state() != "completed" {
            events.next().await.expect("the service lives");
        }
    }
    assert_eq!(most_at_once(&events, &ids), 1);
}

async fn post(server: &Server, key: &str, body: &Value) -> Answer {
    server.client().request(Method::POST, "/api/v1/jobs").json(body).header("idempotency-key", key).send().await
}

#[tokio::test]
async fn an_array_that_is_sent_again_is_answered_with_the_same_jobs() {
    let server = roomy().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let request = array(sh("true"), json!({"seed": [1, 2]}), None);
    let first = post(&server, "k", &request).await.expect(201).json();
    let server = server.kill().await.start().await;
    let again = post(&server, "k", &request).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), "true");
    let again = again.json();
    assert_eq!((&again["array_id"], ids(&again)), (&first["array_id"], ids(&first)));
    assert_eq!(server.jobs().await.len(), 2);
}

#[tokio::test]
async fn an_array_is_judged_member_by_member_and_stored_whole_or_not_at_all() {
    let schema = "[settings.schema.properties.lr]\ntype = \"number\"\nmaximum = 1\n";
    let place = Place::new().manifest("config-schema", &format!("bundled = \"config-schema\"\n{schema}"));
    let server = place.start().await;
    let request = array(sh("true"), json!({"lr": [0.1, 5, 7]}), None);
    let refused = server.post("/jobs", &request).await.expect(422).problem();
    assert_eq!(refused["code"], "array-refused");
    assert_eq!(refused["problems"][0]["path"], "/lr");
    let indices: Vec<&Value> =
        refused["items"].as_array().expect("items").iter().map(|item| &item["array_index"]).collect();
    assert_eq!(indices, [1, 2], "{refused}");
    assert_eq!(refused["items"][0]["array_params"], json!({"lr": 5}));
    let verdict = server.post("/jobs?dry_run=true", &request).await.expect(200).json();
    assert_eq!(verdict["accepted"], false);
    let accepted: Vec<&Value> = verdict["items"].as_array().expect("items").iter().map(|it| &it["accepted"]).collect();
    assert_eq!(accepted, [true, false, false], "{verdict}");
    assert_eq!(verdict["items"][2]["config"], json!({"lr": 7}));
    for (request, path, code) in [
        (array(sh("true"), json!({}), None), "/array/params", "no-values"),
        (array(sh("true"), json!({"lr": [1]}), Some(0)), "/array/max_parallel", "out-of-range"),
        (array(sh("true"), json!({"a": vec![0; 1001]}), None), "/array/params", "too-many"),
        (
            array(json!({"command": ["a"], "external_id": "x"}), json!({"a": [1]}), None),
            "/external_id",
            "external-id-of-array",
        ),
        (
            array(json!({"command": ["a"], "config": {"x": "y".repeat(1 << 20)}}), json!({"a": vec![0; 200]}), None),
            "/array",
            "too-large",
        ),
    ] {
        let refused = server.post("/jobs", &request).await.expect(422).problem();
        assert_eq!((&refused["problems"][0]["path"], &refused["problems"][0]["code"]), (&json!(path), &json!(code)));
    }
    let batch = server.post("/jobs/batch", &json!([array(sh("true"), json!({"a": [1]}), None)])).await.expect(200);
    assert_eq!(batch.json()["items"][0]["problem"]["problems"][0]["code"], "array-in-batch");
    assert!(server.jobs().await.is_empty());
}

#[tokio::test]
async fn an_array_of_a_thousand_is_stored_in_one_go() {
    let server = roomy().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..25).collect(), (0..40).collect());
    let answer = server.post("/jobs", &array(sh("true"), json!({"a": a, "b": b}), Some(3))).await.expect(201).json();
    let ids = ids(&answer);
    assert_eq!(ids.len(), 1000);
    assert_eq!(answer["items"][999]["config"], json!({"a": 24, "b": 39}));
    let server = server.kill().await.start().await;
    let stored: Vec<String> = server.jobs().await.iter().map(|job| job.id().to_owned()).collect();
    assert_eq!(stored, ids);
}

#[tokio::test]
async fn the_command_line_submits_lists_and_cancels_an_array() {
    let server = roomy().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let lines = ["--array", "lr=0.1,0.01", "--array", "opt=adam", "--max-parallel", "1"];
    let with = |more: &[&'static str]| {
        let command = ["--", "true"];
        ["submit"].iter().chain(&lines).chain(more).chain(&command).copied().collect::<Vec<&str>>()
    };
    let text = |output: &std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout.clone()).expect("UTF-8")
    };
    let dry = text(&server.cli(&with(&["--dry-run"])).await);
    assert_eq!(dry, "Its 2 jobs would be accepted.\n");
    let submitted = text(&server.cli(&with(&[])).await);
    assert!(submitted.contains(" 2 jobs\n") && submitted.contains("lr=0.01 opt=adam (queued)"), "{submitted}");
    let id = text(&server.cli(&with(&["--quiet"])).await).trim().to_owned();
    assert_eq!(server.jobs().await.len(), 4);
    let listed: Value =
        serde_json::from_str(&text(&server.cli(&["ls", "--json", "--array", &id]).await)).expect("JSON");
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(listed["items"][0]["config"], json!({"lr": 0.01, "opt": "adam"}));
    let job = listed["items"][0]["id"].as_str().expect("an id");
    let shown = text(&server.cli(&["show", job]).await);
    assert!(shown.contains(&format!("{id}, number 1: lr=0.01 opt=adam")), "{shown}");
    let cancelled = text(&server.cli(&["cancel", "--array", &id]).await);
    assert_eq!(cancelled.matches(" cancelled\n").count(), 2, "{cancelled}");
    let nothing = server.cli(&["cancel", "--array", &id]).await;
    assert_eq!(nothing.status.code(), Some(1));
    server.post_nothing("/queue/resume").await.expect(200);
    text(&server.cli(&with(&["--wait"])).await);
    let states: Vec<String> = server.jobs().await.iter().map(|job| job.state().to_owned()).collect();
    assert_eq!(states.iter().filter(|state| *state == "cancelled").count(), 2);
    assert_eq!(states[4..], ["completed", "completed"]);
}
