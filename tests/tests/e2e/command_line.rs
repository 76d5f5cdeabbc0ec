//! `taxiway submit | ls | show | logs | cancel | wait | plugin list`, over the unix socket, as a user types them.

use std::process::Output;

use serde_json::Value;
use taxiway_tests::{Bell, Gate, Place, guest, sh};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

#[track_caller]
fn status(output: &Output, expected: i32) {
    assert_eq!(output.status.code(), Some(expected), "{}{}", stdout(output), stderr(output));
}

#[tokio::test]
async fn of_a_log_that_has_yet_to_begin_the_end_is_all_of_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let first = format!("printf '%1000s' first; {}; exec sleep 1000", bell.ring("$$"));
    let job = server.submit(sh(&format!("test $TAXIWAY_ATTEMPT = 1 || exec echo second; {first}"))).await;
    bell.pid().await;
    server.post(&format!("/jobs/{}/requeue", job.id()), &serde_json::json!({"hold": true})).await.expect(200);
    events.job(job.id(), "held").await;
    let arguments = ["logs", "--tail", "10", "-f", job.id()];
    let (followed, _) = tokio::join!(server.cli(&arguments), server.operate(job.id(), "release"));
    assert_eq!(stdout(&followed), "second\n");
}

#[tokio::test]
async fn a_follower_of_a_job_that_is_retried_reads_the_log_of_each_attempt_whole() {
    let server = Place::new().start().await;
    let script = "echo attempt $TAXIWAY_ATTEMPT; test $TAXIWAY_ATTEMPT = 2 && echo and more of it";
    let arguments = ["submit", "-f", "--retries", "1", "--retry-backoff", "0", "--", "/bin/sh", "-c", script];
    assert_eq!(stdout(&server.cli(&arguments).await), "attempt 1\nattempt 2\nand more of it\n");
}

#[tokio::test]
async fn a_job_goes_from_submit_to_its_log_in_the_words_of_the_command_line() {
    let server = Place::new().start().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!("pwd -P; echo $WHO; cat $1; {}; echo; echo done", gate.wait());
    let config = r#"{"lr": 0.1}"#;
    let submitted = server
        .cli(&[
            "submit",
            "--json",
            "--name",
            "mine",
            "--env",
            "WHO=world",
            "--config",
            config,
            "--label",
            "team=nlp",
            "--",
            "/bin/sh",
            "-c",
            &script,
            "sh",
            "{config_file}",
        ])
        .await;
    let job = json(&submitted);
    let id = job["id"].as_str().expect("an id").to_owned();
    assert_eq!((&job["name"], &job["labels"]["team"]), (&"mine".into(), &"nlp".into()));

    let waiting = server.cli(&["submit", "-q", "--", "true"]).await;
    status(&waiting, 0);
    let waiting = stdout(&waiting).trim().to_owned();
    let mut events = server.events().await;
    events.job(&id, "running").await;
    let list = server.cli(&["ls"]).await;
    status(&list, 0);
    let text = stdout(&list);
    assert!(text.lines().next().is_some_and(|line| line.contains("ID") && line.contains("STATE")), "{text}");
    assert!(text.contains("mine") && text.contains("running") && text.contains("queued"), "{text}");
    let list = json(&server.cli(&["ls", "--state", "queued", "--json"]).await);
    assert_eq!(list["items"][0]["id"], waiting);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));

    gate.open();
    let waited = server.cli(&["wait", &id]).await;
    status(&waited, 0);
    let logs = server.cli(&["logs", &id]).await;
    status(&logs, 0);
    let lines: Vec<String> = stdout(&logs).lines().map(str::to_owned).collect();
    let here = server.place().path().canonicalize().expect("it is there");
    assert_eq!(lines[..2], [here.to_str().expect("a path"), "world"], "it runs where its user stood");
    assert_eq!(lines.last().map(String::as_str), Some("done"));
    assert_eq!(stdout(&server.cli(&["logs", "-f", &id]).await), stdout(&logs));
    let shown = server.cli(&["show", &id]).await;
    status(&shown, 0);
    assert!(stdout(&shown).contains("completed") && stdout(&shown).contains(&id), "{}", stdout(&shown));
    assert_eq!(json(&server.cli(&["show", "--json", &id]).await)["state"], "completed");
}

#[tokio::test]
async fn waiting_for_a_job_ends_with_its_exit_status() {
    let server = Place::new().start().await;
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let output = server.cli(&["submit", "--wait", "--", "/bin/sh", "-c", script]).await;
        status(&output, expected);
        let follows = server.cli(&["submit", "-f", "--", "/bin/sh", "-c", &format!("echo hello; {script}")]).await;
        status(&follows, expected);
        assert_eq!(stdout(&follows), "hello\n", "standard output is the log and nothing else");
    }
    let missing = server.cli(&["submit", "--wait", "--", "/no/such/program"]).await;
    status(&missing, 125);
    let late = server.cli(&["submit", "--wait", "--time-limit", "0.2", "--", "sleep", "1000"]).await;
    status(&late, 124);
}

#[tokio::test]
async fn a_cancelled_job_is_told_from_one_that_failed() {
    let server = Place::new().start().await;
    let gate = Gate::new(server.place().path(), "gate");
    let job = server.cli(&["submit", "-q", "--external-id", "run-1", "--", "/bin/sh", "-c", &gate.wait()]).await;
    let id = stdout(&job).trim().to_owned();
    let mut events = server.events().await;
    events.job(&id, "running").await;
    status(&server.cli(&["cancel", "run-1"]).await, 0);
    status(&server.cli(&["wait", &id]).await, 130);
    assert_eq!(events.end_of(&id).await, "cancelled");
    let job = server.cli(&["submit", "-q", "--wait", "--", "true"]).await;
    let id = stdout(&job).trim().to_owned();
    let refused = server.cli(&["cancel", &id]).await;
    status(&refused, 1);
    assert!(stderr(&refused).contains("completed"), "{}", stderr(&refused));
}

#[tokio::test]
async fn the_queue_is_paused_held_and_released_from_the_command_line() {
    let server = Place::new().start().await;
    status(&server.cli(&["queue", "pause"]).await, 0);
    assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "paused");
    let id = stdout(&server.cli(&["submit", "-q", "--", "true"]).await).trim().to_owned();
    status(&server.cli(&["hold", &id]).await, 0);
    assert_eq!(server.job(&id).await.state(), "held");
    status(&server.cli(&["release", &id]).await, 0);
    status(&server.cli(&["queue", "resume"]).await, 0);
    status(&server.cli(&["wait", &id]).await, 0);
}

#[tokio::test]
async fn a_refused_submission_names_every_problem_and_a_dry_run_says_what_would_happen() {
    let server = Place::new().start().await;
    let refused = server.cli(&["submit", "--gpus", "9", "--priority", "101", "--", "train", "{confg_file}"]).await;
    status(&refused, 3);
    for code in ["too-many-gpus", "priority-out-of-range", "unknown-placeholder"] {
        assert!(stderr(&refused).contains(code), "{code}: {}", stderr(&refused));
    }
    let dry = server.cli(&["submit", "--dry-run", "--", "true"]).await;
    status(&dry, 0);
    assert!(stdout(&dry).contains("accepted"), "{}", stdout(&dry));
    status(&server.cli(&["submit", "--dry-run", "--gpus", "9", "--", "true"]).await, 3);
    assert_eq!(server.jobs().await, []);
    status(&server.cli(&["submit"]).await, 1);
    status(&server.cli(&["submitt"]).await, 2);
}

#[tokio::test]
async fn plugins_are_listed_with_what_is_wrong_with_them() {
    let place = Place::new().component("good", &guest::content()).component("bad", b"no component");
    let server = place.start().await;
    server.plugin("bad", |plugin| plugin["state"] == "failed").await;
    server.plugin("good", |plugin| plugin["state"] == "in_force").await;
    let list = json(&server.cli(&["plugin", "list", "--json"]).await);
    let names: Vec<&str> =
        list["items"].as_array().expect("items").iter().filter_map(|plugin| plugin["name"].as_str()).collect();
    assert_eq!(names, ["bad", "good"]);
    let list = server.cli(&["plugin", "list"]).await;
    status(&list, 0);
    let text = stdout(&list);
    let why = server.plugin("bad", |_| true).await["error"]["message"].as_str().expect("a message").to_owned();
    assert!(text.contains("good") && text.contains("validate") && text.contains(&why[..20]), "{text}");
}

#[tokio::test]
async fn a_url_and_a_token_file_reach_the_service_too_and_nobody_home_has_its_own_status() {
    let server = Place::new().start().await;
    let url = format!("http://{}", server.address());
    let token_file = server.place().data_dir().join("token");
    let token_file = token_file.to_str().expect("a path");
    let listed = server.cli(&["--server", &url, "--token-file", token_file, "ls", "--json"]).await;
    assert_eq!(json(&listed)["items"], serde_json::json!([]));
    let nowhere = server.cli(&["--data-dir", "/no/such/directory", "ls"]).await;
    status(&nowhere, 4);
    assert!(stderr(&nowhere).contains("taxiway serve"), "{}", stderr(&nowhere));
}
