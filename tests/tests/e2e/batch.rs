//! Many jobs in one request.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Gate, Place, Server, sh};

async fn paused() -> Server {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    server
}

fn statuses(answer: &Value) -> Vec<u64> {
    answer["items"].as_array().expect("items").iter().map(|item| item["status"].as_u64().expect("a status")).collect()
}

#[tokio::test]
async fn each_job_of_a_batch_has_a_result_of_its_own_and_the_good_ones_stand_in_line_in_their_order() {
    let server = paused().await;
    let mut taken = sh("true");
    taken["external_id"] = "run-1".into();
    let batch = json!({"jobs": [
        sh("true"), {"comand": ["true"]}, {"command": ["true"], "gpus": 99}, taken, taken, sh("true"),
    ]});
    let answer = server.post("/jobs/batch", &batch).await.expect(200).json();
    assert_eq!(statuses(&answer), [201, 422, 422, 201, 409, 201]);
    let items = &answer["items"];
    for (index, position) in [(0, 1), (3, 2), (5, 3)] {
        assert_eq!(items[index]["job"]["position"], position, "{answer}");
    }
    assert_eq!(items[1]["problem"]["problems"][0]["help"], "did you mean `command`?");
    assert_eq!(items[2]["problem"]["code"], "rejected");
    assert_eq!(items[4]["problem"]["code"], "duplicate-external-id");
    assert_eq!(server.jobs().await.len(), 3);
    // What is stored already counts as taken too.
    let again = server.post("/jobs/batch", &json!([taken, sh("true")])).await.expect(200).json();
    assert_eq!(statuses(&again), [409, 201]);
}

#[tokio::test]
async fn an_atomic_batch_is_stored_whole_or_not_at_all() {
    let server = paused().await;
    let bad = json!([sh("true"), {"command": ["true"], "gpus": 99}]);
    let refused = server.post("/jobs/batch?atomic=true", &bad).await.expect(422).problem();
    assert_eq!(refused["code"], "batch-refused");
    assert_eq!(statuses(&refused), [424, 422]);
    assert!(server.jobs().await.is_empty());
    let stored = server.post("/jobs/batch?atomic=true", &json!([sh("true"), sh("true")])).await.expect(200).json();
    assert_eq!(statuses(&stored), [201, 201]);
}

#[tokio::test]
async fn a_sender_that_prefers_it_is_told_of_each_job_where_it_stands_and_no_more() {
    let server = paused().await;
    let minimal = |body: &Value, path: &str| {
        let request =
            server.request(Method::POST, &format!("/api/v1{path}")).header("prefer", "return=minimal").json(body);
        request.header("idempotency-key", path)
    };
    let keys = |job: &Value| job.as_object().expect("a job").keys().cloned().collect::<Vec<String>>();
    let held = json!({"command": ["true"], "hold": true});
    let batch = json!([sh("true"), {"comand": ["true"]}, held]);
    // The second time it is a replay, which is answered alike.
    for _ in 0..2 {
        let answer = minimal(&batch, "/jobs/batch").send().await.expect(200);
        assert_eq!(answer.header("preference-applied"), "return=minimal");
        let answer = answer.json();
        assert_eq!(statuses(&answer), [201, 422, 201]);
        let items = &answer["items"];
        assert_eq!(keys(&items[0]["job"]), ["id", "state", "position"]);
        assert_eq!((&items[0]["job"]["state"], &items[0]["job"]["position"]), (&json!("queued"), &json!(1)));
        assert_eq!((&items[2]["job"]["state"], &items[2]["job"]["position"]), (&json!("held"), &Value::Null));
        // What is wrong is told all the same.
        assert_eq!(items[1]["problem"]["problems"][0]["help"], "did you mean `command`?");

        let answer = minimal(&sh("true"), "/jobs").send().await.expect(201);
        assert_eq!(answer.header("preference-applied"), "return=minimal");
        let job = answer.json();
        assert_eq!((keys(&job), &job["position"]), (vec!["id".into(), "state".into(), "position".into()], &json!(2)));
        assert_eq!(answer.header("location"), format!("/api/v1/jobs/{}", job["id"].as_str().expect("an id")));
        assert_eq!(answer.header("etag"), "\"1\"");

        let array = json!({"command": ["true"], "array": {"params": {"seed": [1, 2]}}});
        let answer = minimal(&array, "/jobs?").send().await.expect(201).json();
        let positions: Vec<&Value> =
            answer["items"].as_array().expect("items").iter().map(|job| &job["position"]).collect();
        assert_eq!(positions, [3, 4]);
        assert_eq!(keys(&answer["items"][0]), ["id", "state", "position"]);
    }
    assert_eq!(server.jobs().await.len(), 5);
    let whole =
        server.request(Method::POST, "/api/v1/jobs/batch").header("prefer", "return=representation").json(&batch);
    assert!(whole.send().await.expect(200).json()["items"][0]["job"]["command"].is_array());
}

fn after(which: &str) -> Value {
    let mut submission = sh("true");
    submission["after"] = json!([which]);
    submission
}

#[tokio::test]
async fn jobs_of_a_batch_come_after_others_of_it_also_over_a_restart() {
    let server = paused().await;
    let batch = json!([sh("exit 3"), after("#0"), sh("true"), after("#2"), after("#5"), sh("true")]);
    let answer = server.post("/jobs/batch?atomic=true", &batch).await.expect(200).json();
    let id = |at: usize| answer["items"][at]["job"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer["items"][3]["job"]["after"], json!([id(2)]));
    for at in [3, 4] {
        assert_eq!(answer["items"][at]["job"]["reason"]["code"], "after_unmet", "{answer}");
    }
    let server = server.kill().await.start().await;
    let mut events = server.events().await;
    server.post_nothing("/queue/resume").await.expect(200);
    assert_eq!(events.end_of(&id(1)).await, "cancelled");
    assert_eq!(events.end_of(&id(3)).await, "completed");
    assert_eq!(events.end_of(&id(4)).await, "completed");
    let started = |job: &str| events.seen().iter().position(|event| event.is(job, "running")).expect("it ran");
    assert!(started(&id(5)) < started(&id(4)), "the one that it comes after stands behind it");
}

#[tokio::test]
async fn jobs_that_wait_for_the_store_while_they_are_judged_keep_their_place_among_those_that_do_not() {
    let server = paused().await;
    let stored = server.post("/jobs", &sh("true")).await.expect(201).job();
    // More than a task may do in one go, and the first that waits is neither the first nor one of the last.
    let batch: Vec<Value> = (0..400)
        .map(|number| match number % 7 {
            3 if number > 150 => after(stored.id()),
            5 => json!({"comand": [number]}),
            _ => json!({"command": ["true"], "name": format!("job-{number}")}),
        })
        .collect();
    let answer = server.post("/jobs/batch", &json!(batch)).await.expect(200).json();
    let mut position = 1;
    for (number, item) in answer["items"].as_array().expect("items").iter().enumerate() {
        if number % 7 == 5 {
            assert_eq!(item["status"], 422, "{number}: {item}");
            continue;
        }
        position += 1;
        let job = &item["job"];
        assert_eq!((&item["status"], &job["position"]), (&json!(201), &json!(position)), "{number}: {item}");
        match number % 7 {
            3 if number > 150 => assert_eq!(job["after"], json!([stored.id()]), "{number}: {item}"),
            _ => assert_eq!(job["name"], format!("job-{number}")),
        }
    }
    assert_eq!(answer["items"].as_array().map(Vec::len), Some(400));
}

#[tokio::test]
async fn a_job_of_a_batch_that_comes_after_a_refused_one_is_refused_too() {
    let server = paused().await;
    let bad = json!({"command": ["true"], "gpus": 99});
    let batch = json!([
        bad,
        after("#0"),
        after("#1"),
        sh("true"),
        after("#3"),
        after("#5"),
        after("#7"),
        after("#6"),
        after("#10"),
        after("#99"),
        bad,
    ]);
    let answer = server.post("/jobs/batch", &batch).await.expect(200).json();
    assert_eq!(statuses(&answer), [422, 424, 424, 201, 201, 422, 422, 422, 424, 422, 422]);
    let items = &answer["items"];
    assert_eq!(items[1]["problem"]["code"], "predecessor-refused");
    assert!(items[2]["problem"]["detail"].as_str().is_some_and(|detail| detail.contains("`#1`")), "{answer}");
    for at in [5, 6, 7] {
        assert_eq!(items[at]["problem"]["problems"][0]["code"], "circle", "{answer}");
    }
    assert_eq!(items[9]["problem"]["problems"][0]["code"], "unknown-job");
    assert_eq!(server.jobs().await.len(), 2);
    let refused = server.post("/jobs/batch?atomic=true", &json!([bad, after("#0")])).await.expect(422).problem();
    assert_eq!(statuses(&refused), [422, 424]);
    let alone = server.post("/jobs", &after("#0")).await.expect(422).problem();
    assert_eq!(alone["problems"][0]["path"], "/after/0");
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_there_after_a_kill_and_one_of_more_is_refused() {
    let server = paused().await;
    let jobs = |count: usize| Value::from(vec![json!({"command": ["true"], "config": {"lr": 0.1}}); count]);
    let answer = server.post("/jobs/batch", &jobs(1000)).await.expect(200).json();
    assert!(statuses(&answer).iter().all(|status| *status == 201));
    for count in [0, 1001] {
        let refused = server.post("/jobs/batch", &jobs(count)).await.expect(422).problem();
        assert_eq!(refused["code"], "invalid-submission");
    }
    let server = server.kill().await.start().await;
    let stored: Vec<String> = server.jobs().await.iter().map(|job| job.id().to_owned()).collect();
    let answered: Vec<&str> =
        answer["items"].as_array().expect("items").iter().filter_map(|item| item["job"]["id"].as_str()).collect();
    assert_eq!(stored, answered);
}

#[tokio::test]
async fn many_jobs_are_cancelled_by_their_ids_each_with_a_result() {
    let server = paused().await;
    let (a, b) = (server.submit(sh("true")).await, server.submit(sh("true")).await);
    let unknown = "01937c3e-8f00-7abc-8def-0123456789ab";
    let request = json!({"ids": [a.id(), unknown, b.id(), a.id(), "nonsense"]});
    let answer = server.post("/jobs/cancel", &request).await.expect(200).json();
    assert_eq!(statuses(&answer), [200, 404, 200, 200, 404]);
    assert_eq!(answer["items"][0], json!({"id": a.id(), "status": 200, "state": "cancelled"}));
    assert_eq!(answer["more"], false);
    for job in [&a, &b] {
        assert_eq!(server.job(job.id()).await.state(), "cancelled");
    }
}

#[tokio::test]
async fn jobs_are_cancelled_by_what_they_have_in_common() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let gate = Gate::new(server.place().path(), "gate");
    let team = |script: &str, team: &str| {
        let mut submission = sh(script);
        submission["labels"] = json!({"team": team});
        submission
    };
    let running = server.submit(team(&gate.wait(), "nlp")).await;
    events.job(running.id(), "running").await;
    let (ours, theirs) = (server.submit(team("true", "nlp")).await, server.submit(team("true", "vision")).await);
    let request = json!({"filter": {"label": "team=nlp"}});
    let answer = server.post("/jobs/cancel", &request).await.expect(200).json();
    let states: Vec<&Value> = answer["items"].as_array().expect("items").iter().map(|item| &item["state"]).collect();
    assert_eq!(states, ["cancelled", "cancelling"]);
    assert_eq!(events.end_of(running.id()).await, "cancelled");
    assert_eq!(server.job(ours.id()).await.state(), "cancelled");
    assert_eq!(events.end_of(theirs.id()).await, "completed");
    // Nothing that has ended is touched, and what is not understood cancels nothing.
    for filter in [json!({}), json!({"state": "completed"}), json!({"state": ["queued", "held"]})] {
        let answer = server.post("/jobs/cancel", &json!({"filter": filter})).await.expect(200).json();
        assert_eq!(answer["items"], json!([]), "{filter}");
    }
    server.post("/jobs/cancel", &json!({})).await.expect(422);
    server.post("/jobs/cancel", &json!({"filter": {"stat": "queued"}})).await.expect(422);
    let mut submission = sh("true");
    submission["hold"] = true.into();
    let held = server.submit(submission).await;
    for filter in [json!({"state": []}), json!({"state": ","}), json!({"label": [""]}), json!({"label": []})] {
        let refused = server.post("/jobs/cancel", &json!({"filter": filter})).await.expect(422).problem();
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains("leave it out")), "{refused}");
    }
    assert_eq!(server.job(held.id()).await.state(), "held");
}
