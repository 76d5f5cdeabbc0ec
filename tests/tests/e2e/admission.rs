//! What is refused, and how a user learns all of it at once; what rewriters change, and how they can see it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use taxiway_tests::{Answer, Place, Server, sh};

const SCHEMA: &str = r#"
    bundled = "config-schema"
    [settings.profiles.train]
    required = ["model", "train", "output_dir"]
    additionalProperties = false
    [settings.profiles.train.properties]
    model = { type = "string", description = "path of the base model" }
    output_dir = { type = "string" }
    [settings.profiles.train.properties.train]
    type = "object"
    additionalProperties = false
    required = ["learning_rate"]
    properties.learning_rate = { type = "number", exclusiveMinimum = 0, maximum = 1 }
    properties.epochs = { type = "integer", minimum = 1 }
    properties.batch_size = { type = "integer", multipleOf = 8 }
    properties.seed = { type = "integer" }
"#;

const DEFAULTS: &str = r#"
    bundled = "defaults"
    [settings]
    seed_key = "/train/seed"
    output_dir = "/data/out/{job_id}"
    defaults.train = { batch_size = 8, epochs = 3 }
"#;

const PROFILES: &str = r#"
    [profiles.train]
    command = ["cat", "{config_file}"]
"#;

/// (path, code, plugin, message) of each problem.
fn problems(document: &Value) -> Vec<(String, String, String, String)> {
    let problems = document["problems"].as_array().expect("problems");
    let text =
        |problem: &Value, key: &str| problem[key].as_str().unwrap_or_else(|| panic!("{key} in {problem}")).to_owned();
    problems
        .iter()
        .map(|problem| {
            (text(problem, "path"), text(problem, "code"), text(problem, "plugin"), text(problem, "message"))
        })
        .collect()
}

async fn dry_run(server: &Server, submission: &Value) -> Answer {
    server.post("/jobs?dry_run=true", submission).await
}

/// Applies a patch (RFC 6902) of the operations that a rewriter's diff is made of.
fn apply(document: &mut Value, patch: &Value) {
    for operation in patch.as_array().expect("a patch is a list") {
        let path = operation["path"].as_str().expect("a path");
        let (parent, key) = path.rsplit_once('/').expect("a path below the root");
        let parent = document.pointer_mut(parent).expect("its parent is there");
        match operation["op"].as_str() {
            Some("add" | "replace") => parent[key] = operation["value"].clone(),
            Some("remove") => drop(parent.as_object_mut().expect("an object").remove(key)),
            other => panic!("{other:?}"),
        }
    }
}

// One test, because compiling these two plugins takes seconds.
#[tokio::test]
async fn a_configuration_is_rewritten_then_judged_and_everything_wrong_is_said_at_once() {
    let place = Place::new().config(PROFILES).manifest("schema", SCHEMA).manifest("fill", DEFAULTS);
    let server = place.start().await;
    let broken = json!({"profile": "train", "config": {
        "model": 7, "modle": "x", "train": {"learning_rate": 5, "epochs": 0, "batch_size": 12, "extra/key": 1},
    }});
    let refusal = server.post("/jobs", &broken).await.expect(422).problem();
    let found = problems(&refusal);
    let expected =
        ["/model", "/modle", "/train/batch_size", "/train/epochs", "/train/extra~1key", "/train/learning_rate"];
    let paths: BTreeSet<&str> = found.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, BTreeSet::from(expected), "{refusal}");
    for (path, code, plugin, message) in &found {
        assert_eq!(plugin, "schema", "the name of its manifest");
        assert!(!code.is_empty() && !message.is_empty(), "{path}");
    }
    let code_at = |path: &str| found.iter().find(|(at, ..)| at == path).map(|(_, code, ..)| code.as_str());
    assert_eq!(code_at("/model"), Some("wrong-type"));
    assert_eq!(code_at("/train/learning_rate"), Some("too-large"));
    assert_eq!(code_at("/train/epochs"), Some("too-small"));
    assert_eq!(code_at("/train/extra~1key"), Some("unknown-key"));
    assert_eq!(server.jobs().await, [], "nothing is stored");
    let help = refusal["problems"].as_array().into_iter().flatten().find(|problem| problem["path"] == "/model");
    assert!(
        help.is_some_and(|problem| problem["help"].as_str().is_some_and(|help| help.contains("base model"))),
        "{refusal}"
    );

    // A dry run says the same of it, and what would have become of it.
    let verdict = dry_run(&server, &broken).await.expect(200).json();
    assert_eq!((&verdict["accepted"], &problems(&verdict)), (&json!(false), &found));

    // A good one: the dry run shows the diff and stores nothing.
    let good = json!({"profile": "train", "config": {"model": "llama", "train": {"learning_rate": 0.1, "epochs": 5}}});
    let verdict = dry_run(&server, &good).await.expect(200).json();
    assert_eq!((&verdict["accepted"], &verdict["problems"]), (&json!(true), &json!([])));
    assert_eq!(verdict["rewrites"].as_array().map(Vec::len), Some(1), "{verdict}");
    assert_eq!(verdict["rewrites"][0]["plugin"], "fill");
    assert!(verdict["rewrites"][0]["version"].is_string());
    let mut config = good["config"].clone();
    apply(&mut config, &verdict["rewrites"][0]["patch"]);
    assert_eq!(config, verdict["config"]);
    assert_eq!(config["train"]["epochs"], 5, "what the author wrote stays");
    assert_eq!(config["train"]["batch_size"], 8);
    assert_eq!(server.jobs().await, []);
    let mut events = server.events().await;

    // The same for real: the diff is recorded, and the job reads what was rewritten.
    let job = server.submit(good.clone()).await;
    assert_eq!(job.json["submitted_config"], good["config"]);
    let mut config = good["config"].clone();
    apply(&mut config, &job.json["rewrites"][0]["patch"]);
    assert_eq!(config, job.json["config"]);
    assert_eq!(job.json["rewrites"][0]["sha256"].as_str().map(str::len), Some(64));
    assert_eq!(config["output_dir"], format!("/data/out/{}", job.id()));
    assert!(config["train"]["seed"].is_u64());
    assert_eq!(events.end_of(job.id()).await, "completed");
    let read: Value = serde_json::from_str(&server.log(job.id()).await).expect("the configuration");
    assert_eq!(read, config);

    // Jobs of other profiles have no schema.
    let other = server.submit(json!({"command": ["true"], "config": {"anything": "goes"}})).await;
    assert_eq!(events.end_of(other.id()).await, "completed");
}

#[tokio::test]
async fn a_submission_with_unknown_or_wrong_fields_is_refused_with_all_of_them() {
    let server = Place::new().start().await;
    let wrong = json!({"comand": ["x"], "gpus": "two", "env": {"A": 1}, "labels": {"a": []}, "priority": 0.5, "time_limit": "soon"});
    let refusal = server.post("/jobs", &wrong).await.expect(422).problem();
    assert_eq!(refusal["code"], "invalid-submission");
    let found = problems(&refusal);
    let places: BTreeSet<(&str, &str)> = found.iter().map(|(path, code, ..)| (path.as_str(), code.as_str())).collect();
    let expected = [
        ("/comand", "unknown-field"),
        ("/gpus", "wrong-type"),
        ("/env/A", "wrong-type"),
        ("/labels/a", "wrong-type"),
        ("/priority", "wrong-type"),
        ("/time_limit", "wrong-type"),
    ];
    assert_eq!(places, BTreeSet::from(expected));
    assert!(refusal.to_string().contains("did you mean `command`?"), "{refusal}");
    assert!(found.iter().all(|(_, _, plugin, _)| plugin == "taxiway"));
    assert_eq!(server.jobs().await, []);
}

#[tokio::test]
async fn what_no_job_may_ask_for_is_refused_with_all_of_it() {
    let server = Place::new().start().await;
    let wrong = json!({
        "command": ["train", "{confg_file}"], "gpus": 9, "priority": 101, "cwd": "relative", "time_limit": 0,
        "external_id": "", "env": {"TAXIWAY_JOB_ID": "1", "A=B": "c"}, "labels": {"": "x"},
    });
    let refusal = server.post("/jobs", &wrong).await.expect(422).problem();
    let codes: BTreeSet<String> = problems(&refusal).into_iter().map(|(_, code, ..)| code).collect();
    let expected = [
        "bad-external-id",
        "bad-label",
        "bad-variable",
        "no-time",
        "priority-out-of-range",
        "relative-cwd",
        "reserved-variable",
        "too-many-gpus",
        "unknown-placeholder",
    ];
    assert_eq!(codes, BTreeSet::from(expected.map(str::to_owned)), "{refusal}");
    assert_eq!(server.jobs().await, []);

    for (submission, code) in [(json!({}), "no-command"), (json!({"profile": "nope"}), "unknown-profile")] {
        let refusal = server.post("/jobs", &submission).await.expect(422).problem();
        assert_eq!(problems(&refusal)[0].1, code, "{refusal}");
    }
}

#[tokio::test]
async fn what_is_not_json_or_too_large_is_refused_as_such() {
    let server = Place::new().start().await;
    let post = |kind: &str, body: String| server.request(http::Method::POST, "/api/v1/jobs").body(kind, body);
    let json = "application/json";
    assert_eq!(post(json, "{".to_owned()).send().await.expect(400).problem()["code"], "malformed-json");
    let deep = format!("{{\"config\": {{\"a\": {}", "[".repeat(100_000));
    assert_eq!(post(json, deep).send().await.expect(400).problem()["code"], "malformed-json");
    assert_eq!(
        post("text/plain", sh("exit 0").to_string()).send().await.expect(415).problem()["code"],
        "unsupported-media-type"
    );
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(17 << 20));
    assert_eq!(post(json, large).send().await.expect(413).problem()["code"], "body-too-large");
    assert_eq!(server.jobs().await, []);
    server.submit(sh("exit 0")).await;
}

#[tokio::test]
async fn what_is_too_deep_to_be_shown_again_is_refused_wherever_it_comes_in() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let steps =
        |count: usize| format!(r#"{{"command": ["a"], "array": {{"params": {{"{}": [1]}}}}}}"#, "/a".repeat(count));
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let config = |levels: usize| format!(r#"{{"command": ["a"], "config": {{"a": {}}}}}"#, nested(levels - 1));
    for (body, problem_path) in [
        (steps(100_000), "/array/params"),
        (steps(65), "/array/params"),
        (config(65), "/config"),
        (config(126), "/config"),
    ] {
        for path in ["/api/v1/jobs", "/api/v1/jobs?dry_run=true"] {
            let request = server.request(http::Method::POST, path).body("application/json", body.clone());
            let refused = request.send().await.expect(422).problem();
            let found: Vec<_> = problems(&refused).into_iter().map(|(path, code, ..)| (path, code)).collect();
            assert_eq!(found, [(problem_path.to_owned(), "too-deep".to_owned())]);
        }
    }
    let batch = format!("[{}, {}]", config(65), config(64));
    let batch = server.request(http::Method::POST, "/api/v1/jobs/batch").body("application/json", batch);
    let items = batch.send().await.expect(200).json();
    assert_eq!((&items["items"][0]["status"], &items["items"][1]["status"]), (&json!(422), &json!(201)), "{items}");
    let id = items["items"][1]["job"]["id"].as_str().expect("a job").to_owned();
    let patch = format!(r#"{{"config": {{"b": {}}}}}"#, nested(64));
    let patch = server.request(http::Method::PATCH, &format!("/api/v1/jobs/{id}")).body("application/json", patch);
    assert_eq!(patch.send().await.expect(422).problem()["problems"][0]["code"], "too-deep");
    let listed = server.cli(&["ls"]).await;
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(server.jobs().await.len(), 1);
}

#[tokio::test]
async fn an_external_id_is_unique_among_all_jobs() {
    let server = Place::new().start().await;
    let mut submission = sh("exit 0");
    submission["external_id"] = json!("run-1");
    let job = server.submit(submission.clone()).await;
    assert_eq!(server.post("/jobs", &submission).await.expect(409).problem()["code"], "duplicate-external-id");
    let page = server.get("/jobs?external_id=run-1").await.expect(200).json();
    assert_eq!(page["items"][0]["id"], job.id());
    assert_eq!(server.jobs().await.len(), 1);
}
