//! `/api/training/*`: what clients of `training_server.py` send and expect (DESIGN §8).

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Answer, Bell, Gate, Place, Server};

async fn post(server: &Server, path: &str, body: &Value) -> Answer {
    server.request(Method::POST, &format!("/api/training/{path}")).json(body).send().await
}

async fn get(server: &Server, path: &str) -> Answer {
    server.request(Method::GET, &format!("/api/training/{path}")).send().await
}

/// Every refusal says the same in all three places.
fn refusal(answer: &Answer) -> String {
    let body = answer.json();
    assert!(body["detail"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    assert_eq!((&body["detail"], &body["detail"]), (&body["error"], &body["message"]), "{body}");
    body["detail"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_client_of_the_old_server_sees_its_jobs_run_one_after_another() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let mut bell = Bell::new(place.path(), "bell");
    let script = format!(
        "echo execution $1; cat $2; echo; echo '{{\"progress\": 42, \"current_epoch\": 2, \"total_epochs\": 5, \
         \"current_step\": 20, \"total_steps\": 50, \"loss\": 1.5, \"gpu_temp\": 61}}' > $TAXIWAY_PROGRESS_FILE.new; \
         mv $TAXIWAY_PROGRESS_FILE.new $TAXIWAY_PROGRESS_FILE; {}; {}",
        bell.ring("ready"),
        gate.wait()
    );
    let config = format!(
        "[profiles.training]\ncommand = {}\n",
        json!(["/bin/sh", "-c", script, "sh", "{external_id}", "{config_file}"])
    );
    let server = place.config(&config).start().await;
    let mut events = server.events().await;

    let body = json!({"config": {"lr": 0.1}, "execution_id": "exec-1", "user_id": 7, "name": "first", "unknown": true});
    let answer = post(&server, "execute", &body).await.expect(200).json();
    assert_eq!((&answer["job_id"], &answer["status"]), (&json!("exec-1"), &json!("queued")));
    assert!(answer["message"].as_str().is_some_and(|text| text.ends_with("(position: 1)")), "{answer}");
    assert_eq!(bell.heard().await, "ready");

    let again = post(&server, "execute", &body).await.expect(200).json();
    assert_eq!(again["job_id"], "exec-1", "the same request is the same job");
    let other = json!({"config": {"lr": 0.2}, "execution_id": "exec-1"});
    refusal(&post(&server, "execute", &other).await.expect(409));
    assert_eq!(server.jobs().await.len(), 1);

    for (name, position) in [("exec-2", 1), ("exec-3", 2)] {
        let answer = post(&server, "execute", &json!({"config": {}, "execution_id": name, "name": name}))
            .await
            .expect(200)
            .json();
        assert!(
            answer["message"].as_str().is_some_and(|text| text.ends_with(&format!("(position: {position})"))),
            "{answer}"
        );
    }
    events.wait_for(|event| event.kind == "job.progress").await;
    let queue = get(&server, "queue").await.expect(200).json();
    assert_eq!(
        (&queue["running_count"], &queue["queued_count"], &queue["queue_active"]),
        (&json!(1), &json!(2), &json!(true))
    );
    let running = &queue["running_jobs"][0];
    assert_eq!((&running["job_id"], &running["name"]), (&json!("exec-1"), &json!("first")));
    assert_eq!(running["progress"].as_f64(), Some(42.0), "{running}");
    assert_eq!((running["current_epoch"].as_f64(), running["total_epochs"].as_f64()), (Some(2.0), Some(5.0)));
    let waiting = json!([
        {"job_id": "exec-2", "name": "exec-2", "position": 1, "status": "queued"},
        {"job_id": "exec-3", "name": "exec-3", "position": 2, "status": "queued"},
    ]);
    assert_eq!(queue["queued_jobs"], waiting);

    let status = get(&server, "status/exec-1").await.expect(200).json();
    assert_eq!((&status["status"], &status["job_id"]), (&json!("running"), &json!("exec-1")));
    assert_eq!((status["progress"].as_f64(), status["current_step"].as_u64()), (Some(42.0), Some(20)));
    assert_eq!(
        (&status["loss"], &status["gpu_temp"]),
        (&json!(1.5), &json!(61)),
        "every further key is passed through: {status}"
    );
    assert!(status["process_pid"].is_i64(), "{status}");
    assert_eq!(get(&server, "status/exec-2").await.expect(200).json()["queue_position"], 1);
    let by_id = server.jobs().await[0].id().to_owned();
    assert_eq!(
        get(&server, &format!("status/{by_id}")).await.expect(200).json()["job_id"],
        "exec-1",
        "both ids are understood"
    );

    let logs = get(&server, "logs/exec-1?limit=1").await.expect(200).json();
    assert_eq!(logs["logs"], json!(["execution exec-1"]));
    let tail = get(&server, "logs/exec-1?offset=-2").await.expect(200).json();
    assert!(tail["total_lines"].as_u64().is_some_and(|lines| lines >= 4), "{tail}");
    assert_eq!(tail["logs"].as_array().map(Vec::len), Some(2));

    let cancelled = server.request(Method::POST, "/api/training/cancel/exec-3").send().await.expect(200).json();
    assert_eq!((&cancelled["success"], &cancelled["previous_status"]), (&json!(true), &json!("queued")));
    let again = server.request(Method::POST, "/api/training/cancel/exec-3").send().await.expect(400).json();
    assert_eq!((&again["success"], &again["previous_status"]), (&json!(false), &json!("cancelled")));
    let nobody = server.request(Method::POST, "/api/training/cancel/nobody").send().await.expect(400).json();
    assert_eq!(nobody["success"], false);
    refusal(&get(&server, "status/nobody").await.expect(404));

    gate.open();
    gate.open();
    let second = server.get("/jobs?external_id=exec-2").await.expect(200).json();
    events.job(second["items"][0]["id"].as_str().expect("an id"), "completed").await;
    let status = get(&server, "status/exec-1").await.expect(200).json();
    assert_eq!((&status["status"], status["progress"].as_f64()), (&json!("completed"), Some(100.0)));
}

#[tokio::test]
async fn a_dataset_in_the_request_becomes_a_file_whose_path_is_in_the_configuration() {
    let config = "[profiles.training]\ncommand = [\"cat\", \"{config_file}\"]\n";
    let server = Place::new().config(config).start().await;
    let mut events = server.events().await;
    let content = "{\"text\": \"grüße\"}\n{\"text\": \"b\"}\n";
    let body = json!({"config": {"lr": 0.1}, "dataset_content": content});
    let id = post(&server, "execute", &body).await.expect(200).json()["job_id"].as_str().expect("an id").to_owned();
    assert_eq!(events.end_of(&id).await, "completed");
    let read: Value = serde_json::from_str(&server.log(&id).await).expect("the configuration");
    let path = read["dataset_path"].as_str().expect("a path");
    assert_eq!(std::fs::read_to_string(path).expect("a file"), content);
    assert!(std::path::Path::new(path).starts_with(server.place().jobs_dir().join(&id)));
}

#[tokio::test]
async fn without_the_profile_the_old_routes_name_what_is_missing() {
    let server = Place::new().start().await;
    let answer = post(&server, "execute", &json!({"config": {}})).await.expect(503);
    assert!(refusal(&answer).contains("[profiles.training]"));
    let queue = get(&server, "queue").await.expect(200).json();
    assert_eq!((&queue["running_jobs"], &queue["queued_jobs"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn a_wrong_request_to_the_old_routes_is_refused_in_their_words() {
    let server = Place::new().config("[profiles.training]\ncommand = [\"true\"]\n").start().await;
    refusal(&post(&server, "execute", &json!({"execution_id": "x"})).await.expect(400));
    refusal(&post(&server, "execute", &json!({"config": 5})).await.expect(400));
    refusal(&post(&server, "execute", &json!({"config": {}, "execution_id": "x".repeat(200)})).await.expect(400));
    assert_eq!(server.jobs().await, []);
}

#[tokio::test]
async fn a_job_is_paused_resumed_from_a_checkpoint_and_forced_to_the_front() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let script = format!("cat $1; echo; {}", gate.wait());
    let config =
        format!("[profiles.training]\ncommand = {}\n", json!(["/bin/sh", "-c", script, "sh", "{config_file}"]));
    let server = place.config(&config).start().await;
    let mut events = server.events().await;
    for name in ["one", "two", "three"] {
        post(&server, "execute", &json!({"config": {"lr": 0.1}, "execution_id": name})).await.expect(200);
    }
    let nothing = async |path: &str| server.request(Method::POST, &format!("/api/training/{path}")).send().await;
    let id = async |name: &str| {
        let found = server.get(&format!("/jobs?external_id={name}")).await.expect(200).json();
        found["items"][0]["id"].as_str().expect("an id").to_owned()
    };
    let [one, two, three] = [id("one").await, id("two").await, id("three").await];
    events.job(&one, "running").await;

    let paused = nothing("pause/one").await.expect(200).json();
    assert_eq!((&paused["success"], &paused["job_id"]), (&json!(true), &json!("one")));
    assert!(paused["paused_at"].is_string(), "{paused}");
    events.job(&one, "held").await;
    assert_eq!(get(&server, "status/one").await.expect(200).json()["status"], "paused");
    events.job(&two, "running").await;

    let resumed = nothing("resume/one?checkpoint_path=/data/step-100").await.expect(200).json();
    assert_eq!((&resumed["success"], &resumed["paused_at"]), (&json!(true), &Value::Null));
    assert_eq!(get(&server, "status/one").await.expect(200).json()["queue_position"], 2);
    let forced = nothing("one/force-start").await.expect(200).json();
    assert_eq!((&forced["success"], &forced["queue_position"]), (&json!(true), &json!(1)));
    let again = nothing("two/force-start").await.expect(400).json();
    assert_eq!((&again["success"], &again["previous_status"]), (&json!(false), &json!("running")));
    assert_eq!(nothing("resume/two").await.expect(400).json()["success"], false);

    nothing("cancel/three").await.expect(200);
    assert_eq!(nothing("three/force-start").await.expect(200).json()["queue_position"], 1);
    nothing("pause/three").await.expect(200);
    assert_eq!(nothing("three/force-start").await.expect(200).json()["queue_position"], 1, "from where it was held");
    for _ in 0..3 {
        gate.open();
    }
    for job in [&two, &three, &one] {
        events.job(job, "completed").await;
    }
    let config: Value = serde_json::from_str(&server.log(&one).await).expect("the configuration");
    assert_eq!(config, json!({"lr": 0.1, "resume_from_checkpoint": "/data/step-100"}));
    assert_eq!(server.job(&three).await.json["attempt"], 2);
    for path in ["pause/nobody", "resume/nobody", "nobody/force-start"] {
        refusal(&nothing(path).await.expect(404));
    }
    assert_eq!(nothing("pause/one").await.expect(400).json()["previous_status"], "completed");
}
