//! What a running job gets (DESIGN §3).

use std::collections::BTreeMap;

use serde_json::json;
use taxiway_tests::{Job, Place, Server};

/// Submits a job and answers it and its log once it has completed.
async fn run(server: &Server, submission: serde_json::Value) -> (Job, String) {
    let mut events = server.events().await;
    let job = server.submit(submission).await;
    let end = events.end_of(job.id()).await;
    let log = server.log(job.id()).await;
    assert_eq!(end, "completed", "{log}");
    (server.job(job.id()).await, log)
}

#[tokio::test]
async fn a_job_gets_the_minimal_environment_its_own_variables_and_nothing_of_the_service() {
    let server = Place::new().start().await;
    let env = json!({"MODE": "fast", "EMPTY": "", "PATH": "/usr/bin:/bin", "KEY": {"secret": "hunter2"}});
    let (job, log) = run(&server, json!({"command": ["env", "-0"], "env": env, "gpus": 0})).await;
    let got: BTreeMap<&str, &str> = log.split_terminator('\0').filter_map(|one| one.split_once('=')).collect();

    let names: Vec<&str> = got.keys().copied().collect();
    let expected = [
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "EMPTY",
        "HOME",
        "KEY",
        "LANG",
        "MODE",
        "PATH",
        "PYTHONUNBUFFERED",
        "TAXIWAY_ATTEMPT",
        "TAXIWAY_CONFIG_FILE",
        "TAXIWAY_JOB_DIR",
        "TAXIWAY_JOB_ID",
        "TAXIWAY_LAUNCH_ID",
        "TAXIWAY_PROGRESS_FILE",
        "TMPDIR",
        "USER",
    ];
    assert_eq!(names, expected);
    assert_eq!((got["MODE"], got["EMPTY"], got["KEY"]), ("fast", "", "hunter2"));
    assert_eq!(got["PATH"], "/usr/bin:/bin", "the job's own wins");
    assert_eq!((got["PYTHONUNBUFFERED"], got["CUDA_DEVICE_ORDER"]), ("1", "PCI_BUS_ID"));
    assert_eq!(got["CUDA_VISIBLE_DEVICES"], "", "it asked for no GPU");
    assert_ne!(got["HOME"], server.place().path().to_str().expect("a path"), "HOME is the user's, not the service's");

    let job_dir = server.place().jobs_dir().join(job.id());
    assert_eq!(got["TAXIWAY_JOB_ID"], job.id());
    assert_eq!(got["TAXIWAY_ATTEMPT"], "1");
    assert_eq!(got["TAXIWAY_JOB_DIR"], job_dir.to_str().expect("a path"));
    let launch_dir = job_dir.join(got["TAXIWAY_LAUNCH_ID"]);
    assert!(launch_dir.is_dir());
    assert_eq!(got["TAXIWAY_CONFIG_FILE"], launch_dir.join("config.json").to_str().expect("a path"));
    assert_eq!(job.json["env"]["KEY"], json!({"secret": null}), "a secret is never answered");
}

#[tokio::test]
async fn arguments_have_their_placeholders_filled_in_and_no_shell_sees_them() {
    let server = Place::new().start().await;
    let command = json!([
        "printf",
        "%s\n",
        "{job_id}",
        "--id={external_id}",
        "{attempt}",
        "{job_dir}/out",
        "{config_file}",
        "{epoch}",
        "$HOME; echo *",
        ""
    ]);
    let (job, log) = run(&server, json!({"command": command, "external_id": "run-7", "config": {"lr": 0.1}})).await;
    let job_dir = server.place().jobs_dir().join(job.id());
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..4], [job.id(), "--id=run-7", "1", &format!("{}/out", job_dir.display())]);
    assert!(
        lines[4].starts_with(&format!("{}/", job_dir.display())) && lines[4].ends_with("/config.json"),
        "{}",
        lines[4]
    );
    assert_eq!(lines[5..], ["{epoch}", "$HOME; echo *", ""]);
    assert_eq!(job.json["warnings"][0]["code"], "unknown-placeholder");

    let (job, log) = run(&server, json!({"command": ["echo", "{external_id}"]})).await;
    assert_eq!(log.trim_end(), job.id(), "without an external id it is the job's");
}

#[tokio::test]
async fn the_configuration_is_written_in_the_language_that_was_asked_for() {
    let server = Place::new().start().await;
    let config = json!({"lr": 0.001, "name": "it's: \"quoted\"\n#", "layers": [1, 2], "train": {"shuffle": true}});
    for (format, check) in [
        ("json", "import json, sys; c = json.load(open(sys.argv[1]))"),
        ("toml", "import tomllib, sys; c = tomllib.load(open(sys.argv[1], 'rb'))"),
    ] {
        let script = format!("{check}; import json; print(json.dumps(c, sort_keys=True))");
        let submission =
            json!({"command": ["python3", "-c", script, "{config_file}"], "config": config, "config_format": format});
        let (_, log) = run(&server, submission).await;
        let read: serde_json::Value = serde_json::from_str(&log).expect("the job printed JSON");
        assert_eq!(read, config, "{format}");
    }
    // JSON is YAML, but for one thing: what follows YAML 1.1 takes `1e-05` for a text.
    let submission = json!({"command": ["tail", "-v", "{config_file}"], "config": {"lr": 1e-5, "no": "no"}, "config_format": "yaml"});
    let (_, log) = run(&server, submission).await;
    let (header, text) = log.split_once('\n').expect("lines");
    assert!(header.ends_with("/config.yaml <=="), "{header}");
    let read: serde_json::Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(read, json!({"lr": 1e-5, "no": "no"}));
    assert!(text.contains("1.0e-5"), "{text}");
}

#[tokio::test]
async fn a_job_runs_where_it_was_told_to_with_an_empty_standard_input() {
    let server = Place::new().start().await;
    let submission = json!({"command": ["/bin/sh", "-c", "pwd -P; readlink /proc/$$/fd/0"], "cwd": "/usr/lib"});
    let (_, log) = run(&server, submission).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines, ["/usr/lib", "/dev/null"]);

    let (job, log) = run(&server, json!({"command": ["/bin/sh", "-c", "pwd -P"]})).await;
    assert_eq!(log.trim_end(), server.place().jobs_dir().join(job.id()).to_str().expect("a path"));
}

#[tokio::test]
async fn a_profile_gives_what_a_submission_leaves_out() {
    let config = r#"
        [profiles.greeter]
        command = ["/bin/sh", "-c", "echo $GREETING $WHO; pwd -P; cat {config_file}"]
        cwd = "/usr/lib"
        config_format = "yaml"
        env = { GREETING = "hello", WHO = "nobody" }
        [profiles.greeter.defaults]
        priority = 7
        time_limit = "1h"
        labels = { team = "greeters" }
    "#;
    let server = Place::new().config(config).start().await;
    let mut events = server.events().await;
    let submission =
        json!({"profile": "greeter", "env": {"WHO": "world"}, "config": {"a": 1}, "labels": {"mine": "yes"}});
    let job = server.post("/jobs", &submission).await.expect(201);
    assert_eq!(job.header("location"), format!("/api/v1/jobs/{}", job.job().id()));
    assert_eq!(job.header("etag"), "\"1\"");
    let job = job.job();
    assert_eq!((&job.json["priority"], &job.json["time_limit"]), (&json!(7), &json!(3600)));
    assert_eq!(job.json["labels"], json!({"team": "greeters", "mine": "yes"}));
    assert_eq!((&job.json["name"], &job.json["profile"]), (&json!("greeter"), &json!("greeter")));
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(server.log(job.id()).await, "hello world\n/usr/lib\n{\n  \"a\": 1\n}\n");
}
