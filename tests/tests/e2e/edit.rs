//! Jobs that are changed while they wait, and the time limit of one that runs.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Answer, Gate, Place, Server, guest, sh};

async fn patch(server: &Server, id: &str, change: &Value, expected: Option<&str>) -> Answer {
    let request = server.request(Method::PATCH, &format!("/api/v1/jobs/{id}")).json(change);
    match expected {
        Some(tag) => request.header("if-match", tag).send().await,
        None => request.send().await,
    }
}

#[tokio::test]
async fn a_waiting_job_is_changed_and_stays_so_after_a_restart() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let first = server.submit(sh("exit 0")).await;
    let mut submission = sh("echo $WORD");
    submission["env"] = json!({"WORD": "one", "TOKEN": {"secret": "hunter2"}});
    let job = server.submit(submission).await;
    let change = json!({"priority": 10, "name": "urgent", "env": {"WORD": "two"}, "labels": {"team": "nlp"}, "gpus": 0,
        "config": {"lr": 0.1}});
    let edited = patch(&server, job.id(), &change, None).await.expect(200);
    assert!(!edited.text().contains("hunter2"), "{}", edited.text());
    let edited = edited.job();
    assert_eq!((edited.position(), &edited.json["name"], &edited.json["gpus"]), (Some(1), &json!("urgent"), &json!(0)));
    assert_eq!(edited.json["env"], json!({"WORD": "two", "TOKEN": {"secret": null}}));
    assert_eq!((&edited.json["labels"], &edited.json["config"]), (&json!({"team": "nlp"}), &json!({"lr": 0.1})));

    let merge = server.request(Method::PATCH, &format!("/api/v1/jobs/{}", job.id()));
    let merge = merge.body("application/merge-patch+json", br#"{"labels": null, "gpus": null}"#.to_vec()).send().await;
    let edited = merge.expect(200).job();
    assert_eq!((&edited.json["labels"], &edited.json["gpus"]), (&json!({}), &json!(1)));

    let server = server.kill().await.start().await;
    let mut events = server.events().await;
    let job = server.job(job.id()).await;
    assert_eq!((job.position(), &job.json["priority"]), (Some(1), &json!(10)));
    server.post_nothing("/queue/resume").await.expect(200);
    events.job(first.id(), "completed").await;
    events.job(job.id(), "completed").await;
    assert_eq!(server.log(job.id()).await, "two\n");
    let problem = patch(&server, job.id(), &json!({"name": "late"}), None).await.expect(409).problem();
    assert_eq!(problem["state"], "completed");
}

#[tokio::test]
async fn an_edit_of_something_that_was_changed_meanwhile_is_refused() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let (job, other) = (server.submit(sh("exit 0")).await, server.submit(sh("exit 0")).await);
    let read = server.get(&format!("/jobs/{}", job.id())).await.expect(200);
    let tag = read.header("etag").to_owned();
    patch(&server, job.id(), &json!({"name": "mine"}), Some(&tag)).await.expect(200);
    let problem = patch(&server, job.id(), &json!({"name": "theirs"}), Some(&tag)).await.expect(412).problem();
    assert_eq!(problem["code"], "changed");
    assert_eq!(server.job(job.id()).await.json["name"], "mine");
    patch(&server, job.id(), &json!({"name": "any"}), Some("*")).await.expect(200);
    // Many at once, none of which may be lost.
    let (server, other) = (&server, other.id());
    let changes = (0..20).map(async |n| {
        let label = json!({"labels": {format!("l{n}"): "x"}});
        // One that is refused so begins again, as the answer says.
        while patch(server, other, &label, None).await.status != 200 {}
    });
    futures_util::future::join_all(changes).await;
    assert_eq!(server.job(other).await.json["labels"].as_object().map(serde_json::Map::len), Some(20));
}

#[tokio::test]
async fn what_cannot_be_changed_or_is_wrong_is_refused_and_changes_nothing() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("exit 0")).await;
    let mut after = sh("exit 0");
    after["after"] = json!([job.id()]);
    let after = server.submit(after).await;
    for (change, code) in [
        (json!({"profile": "train"}), "not-editable"),
        (json!({"hold": true}), "not-editable"),
        (json!({"gpu": 1}), "unknown-field"),
        (json!({"priority": 1000}), "priority-out-of-range"),
        (json!({"gpus": 99}), "too-many-gpus"),
        (json!({"command": null}), "no-command"),
        (json!({"after": [after.id()]}), "circle"),
        (json!({"after_any": [job.id()]}), "circle"),
        (json!({"after": ["0193e8f4-0000-7000-8000-000000000000"]}), "unknown-job"),
    ] {
        let problem = patch(&server, job.id(), &change, None).await.expect(422).problem();
        assert_eq!(problem["problems"][0]["code"], code, "{change}");
    }
    assert_eq!(server.job(job.id()).await, job);
    let changed = patch(&server, after.id(), &json!({"after": null}), None).await.expect(200).job();
    assert_eq!(changed.json["after"], json!([]));
}

#[tokio::test]
async fn the_time_limit_of_a_running_job_can_be_changed_and_nothing_else() {
    let place = Place::new();
    let gate = Gate::new(place.path(), "gate");
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    let problem = patch(&server, job.id(), &json!({"time_limit": 5, "name": "x"}), None).await.expect(409).problem();
    assert_eq!(problem["state"], "running");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("time_limit")), "{problem}");
    let longer = patch(&server, job.id(), &json!({"time_limit": "2h"}), None).await.expect(200).job();
    assert_eq!(longer.json["time_limit"].as_f64(), Some(7200.0));

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.job(job.id()).await.json["time_limit"].as_f64(), Some(7200.0));
    patch(&server, job.id(), &json!({"time_limit": 0}), None).await.expect(422);
    patch(&server, job.id(), &json!({"time_limit": "100ms"}), None).await.expect(200);
    assert_eq!(events.end_of(job.id()).await, "failed");
    assert_eq!(server.job(job.id()).await.failure_class(), Some("timeout"));
}

#[tokio::test]
async fn explain_says_why_a_job_waits_when_it_starts_and_why_it_failed() {
    let place = Place::new();
    let mut gate = Gate::new(place.path(), "gate");
    let server = place.start().await;
    let mut events = server.events().await;
    let explain = async |id: &str| server.get(&format!("/jobs/{id}/explain")).await.expect(200).json();
    let named = |script: &str| {
        let mut submission = sh(script);
        submission["name"] = json!("train");
        submission
    };
    let running = server.submit(named(&gate.wait())).await;
    events.job(running.id(), "running").await;
    let next = server.submit(named("echo out of luck; exit 3")).await;
    let last = server.submit(named("exit 0")).await;
    let told = explain(next.id()).await;
    assert_eq!((&told["reason"]["code"], &told["position"]), (&json!("waiting_for_gpu"), &json!(1)));
    assert_eq!(told["expected_start_at"], Value::Null, "nothing is known yet");
    assert_eq!(explain(last.id()).await["reason"]["code"], "behind");
    server.operate(last.id(), "hold").await.expect(200);
    let told = explain(last.id()).await;
    assert_eq!((&told["reason"]["code"], &told["position"]), (&json!("held"), &Value::Null));
    gate.open();
    events.job(next.id(), "failed").await;
    let told = explain(next.id()).await;
    assert_eq!((&told["failure"]["class"], &told["failure"]["evidence"]), (&json!("exit"), &json!("out of luck")));

    // Jobs of the same name have ended: now it can be told.
    let running = server.submit(named(&gate.wait())).await;
    events.job(running.id(), "running").await;
    server.operate(last.id(), "release").await.expect(200);
    let told = explain(last.id()).await;
    assert!(told["expected_start_at"].is_string(), "{told}");
    server.post_nothing("/queue/pause").await.expect(200);
    let told = explain(last.id()).await;
    assert_eq!((&told["reason"]["code"], &told["expected_start_at"]), (&json!("paused"), &Value::Null));
    let output = server.cli(&["explain", last.id()]).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("paused"));
    assert_eq!(server.get("/jobs/0193e8f4-0000-7000-8000-000000000000/explain").await.status, 404);
    gate.open();
    events.job(running.id(), "completed").await;
}

#[tokio::test]
async fn the_command_line_changes_a_waiting_job() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let mut submission = sh("exit 0");
    submission["config"] = json!({"train": {"epochs": 3, "lr": 0.1}});
    let job = server.submit(submission).await;
    let change = [
        "edit",
        job.id(),
        "--priority",
        "-7",
        "--label",
        "team=nlp",
        "--time-limit",
        "none",
        "--config",
        r#"{"train": {"epochs": 5}}"#,
    ];
    let output = server.cli(&change).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let job = server.job(job.id()).await;
    assert_eq!((&job.json["priority"], &job.json["time_limit"]), (&json!(-7), &Value::Null));
    assert_eq!(job.json["config"], json!({"train": {"epochs": 5, "lr": 0.1}}));
    assert_eq!(job.json["labels"], json!({"team": "nlp"}));
    let refused = server.cli(&["edit", job.id(), "--priority", "1000"]).await;
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(server.cli(&["edit", job.id()]).await.status.code(), Some(2), "it says what to change");
}

#[tokio::test]
async fn an_edit_is_rewritten_and_judged_again_from_what_was_submitted() {
    let profile = "[profiles.train]\ncommand = [\"cat\", \"{config_file}\"]\n";
    let schema =
        "bundled = \"config-schema\"\n[settings.profiles.train.properties]\nlr = { type = \"number\", maximum = 1 }\n";
    let fill = "bundled = \"defaults\"\n[settings]\ndefaults = { epochs = 3 }\n";
    let server = Place::new().config(profile).manifest("schema", schema).manifest("fill", fill).start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(json!({"profile": "train", "config": {"lr": 0.1}})).await;
    assert_eq!(job.json["config"], json!({"lr": 0.1, "epochs": 3}));
    let problem = patch(&server, job.id(), &json!({"config": {"lr": 7}}), None).await.expect(422).problem();
    assert_eq!((&problem["problems"][0]["plugin"], &problem["problems"][0]["path"]), (&json!("schema"), &json!("/lr")));
    assert_eq!(server.job(job.id()).await.json["config"], json!({"lr": 0.1, "epochs": 3}));

    let edited = patch(&server, job.id(), &json!({"config": {"epochs": 9}}), None).await.expect(200).job();
    assert_eq!(edited.json["config"], json!({"lr": 0.1, "epochs": 9}));
    let again = patch(&server, job.id(), &json!({"config": {"epochs": null}}), None).await.expect(200).job();
    assert_eq!(again.json["submitted_config"], json!({"lr": 0.1}));
    assert_eq!(again.json["config"], json!({"lr": 0.1, "epochs": 3}), "filled in anew");
    let told = server.get(&format!("/jobs/{}/explain", job.id())).await.expect(200).json();
    let verdicts: Vec<_> = told["verdicts"].as_array().into_iter().flatten().collect();
    assert_eq!(verdicts.len(), 2, "{told}");
    assert!(verdicts.iter().all(|verdict| verdict["stage"] == "submit"), "{told}");
}

#[tokio::test]
async fn an_operation_that_is_meant_for_another_revision_of_the_job_is_refused() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("exit 0")).await;
    let path = format!("/api/v1/jobs/{}", job.id());
    let old = server.get(&format!("/jobs/{}", job.id())).await.expect(200).header("etag").to_owned();
    patch(&server, job.id(), &json!({"name": "changed"}), None).await.expect(200);
    let now = server.get(&format!("/jobs/{}", job.id())).await.expect(200).header("etag").to_owned();
    assert_ne!(old, now);
    let ask = async |verb: &str, tag: &str| match verb {
        "delete" => server.request(Method::DELETE, &path).header("if-match", tag).send().await,
        "move" => {
            let request = server.request(Method::POST, &format!("{path}/move")).json(&json!({"to": "front"}));
            request.header("if-match", tag).send().await
        }
        verb => server.request(Method::POST, &format!("{path}/{verb}")).header("if-match", tag).send().await,
    };
    for verb in ["hold", "move", "requeue", "cancel", "release", "retry"] {
        assert_eq!(ask(verb, &old).await.expect(412).problem()["code"], "changed", "{verb}");
        assert_eq!(server.job(job.id()).await.state(), "queued", "{verb}");
    }
    for (verb, state) in [("move", "queued"), ("hold", "held"), ("release", "queued"), ("cancel", "cancelled")] {
        assert_eq!(ask(verb, &format!("\"999\", {now}")).await.expect(200).job().state(), state, "{verb}");
    }
    // Also of one that has ended.
    ask("retry", &old).await.expect(412);
    ask("delete", &old).await.expect(412);
    assert_eq!(ask("retry", "*").await.expect(200).job().state(), "queued");
    ask("cancel", "*").await.expect(200);
    let last = server.get(&format!("/jobs/{}", job.id())).await.expect(200).header("etag").to_owned();
    ask("delete", &last).await.expect(204);
}

#[tokio::test]
async fn a_job_can_be_changed_after_the_one_before_it_was_removed() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let first = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(first.id()).await, "completed");
    server.post_nothing("/queue/pause").await.expect(200);
    let mut second = sh("exit 0");
    second["after"] = json!([first.id()]);
    let second = server.submit(second).await;
    server.request(Method::DELETE, &format!("/api/v1/jobs/{}", first.id())).send().await.expect(204);
    let edited = patch(&server, second.id(), &json!({"priority": 5}), None).await.expect(200).job();
    assert_eq!((&edited.json["priority"], &edited.json["after"]), (&json!(5), &json!([first.id()])));
    let unknown = json!({"after": [first.id(), "01937c3e-8f00-7abc-8def-0123456789ab"]});
    let problem = patch(&server, second.id(), &unknown, None).await.expect(422).problem();
    assert_eq!(problem["problems"].as_array().map(Vec::len), Some(1), "{problem}");
    server.post_nothing("/queue/resume").await.expect(200);
    assert_eq!(events.end_of(second.id()).await, "completed");
}

#[tokio::test]
async fn an_edit_whose_plugin_fails_holds_the_job_with_the_change_or_changes_nothing() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    let tag = server.get(&format!("/jobs/{}", job.id())).await.expect(200).header("etag").to_owned();
    patch(&server, job.id(), &json!({"name": "before"}), None).await.expect(200);
    server.place().write_manifest("guard", "on_error = \"hold\"\n");
    server.place().write_component("guard", &guest::trap());
    server.plugin("guard", |plugin| plugin["state"] == "in_force").await;

    patch(&server, job.id(), &json!({"name": "stale"}), Some(&tag)).await.expect(412);
    patch(&server, job.id(), &json!({"after": [job.id()]}), None).await.expect(422);
    assert_eq!(server.job(job.id()).await.state(), "queued", "nothing was changed");
    let held = patch(&server, job.id(), &json!({"name": "after"}), None).await.expect(200).job();
    assert_eq!((held.state(), &held.json["name"]), ("held", &json!("after")));
    assert!(held.json["reason"]["message"].as_str().is_some_and(|text| text.contains("guard")), "{}", held.json);
    events.job(job.id(), "held").await;
    let story: Vec<&str> =
        events.seen().iter().map(|event| event.kind.as_str()).filter(|kind| kind.starts_with("job.")).collect();
    assert_eq!(story, ["job.queued", "job.edited", "job.edited", "job.held"]);
}

#[tokio::test]
async fn a_job_that_is_changed_without_end_keeps_nobody_else_from_starting() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let running = server.submit(sh(&gate.wait())).await;
    events.job(running.id(), "running").await;
    let (restless, behind) = (server.submit(sh("exit 0")).await, server.submit(sh("exit 0")).await);
    let over = std::cell::Cell::new(false);
    let change = async |client: usize| {
        for turn in 0.. {
            let label = json!({"labels": {format!("l{client}"): turn.to_string()}});
            // Somebody else was faster, or else it has started in spite of all.
            let goes_on = matches!(patch(&server, restless.id(), &label, None).await.status.as_u16(), 200 | 412);
            if over.get() || !goes_on {
                return;
            }
        }
    };
    let outcome = async {
        gate.open();
        assert_eq!(events.end_of(behind.id()).await, "completed");
        over.set(true);
    };
    tokio::join!(change(0), change(1), change(2), change(3), outcome);
    assert_eq!(events.end_of(restless.id()).await, "completed");
}
