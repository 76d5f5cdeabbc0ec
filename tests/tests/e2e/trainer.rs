//! Real training: a classifier of Fisher's Iris data, as a user would submit it.

use std::path::Path;

use serde_json::{Value, json};
use taxiway_tests::Place;

fn trainer() -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("trainer/train.py");
    json!(["python3", script, "--config", "{config_file}"])
}

#[tokio::test]
async fn a_training_job_shows_its_progress_and_leaves_a_model_that_is_right() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let config = json!({"model": {"hidden": 8}, "train": {"epochs": 40, "learning_rate": 0.1, "seed": 7, "device": "cpu", "epoch_seconds": 0.02}});
    let job = server.submit(json!({"name": "iris", "command": trainer(), "config": config})).await;
    events.wait_for(|event| event.kind == "job.progress" && event.job_id.as_deref() == Some(job.id())).await;
    let progress = server.job(job.id()).await.json["progress"].clone();
    let fraction = progress["fraction"].as_f64().expect("a fraction");
    assert!(fraction > 0.0 && fraction <= 1.0, "{progress}");
    assert!(progress["metrics"]["loss"].is_f64(), "{progress}");
    let end = events.end_of(job.id()).await;
    let log = server.log(job.id()).await;
    assert_eq!(end, "completed", "{log}");

    let done = server.job(job.id()).await;
    assert_eq!(done.exit_code(), Some(0));
    assert_eq!(done.json["progress"]["fraction"].as_f64(), Some(1.0), "{}", done.json["progress"]);
    let steps = &done.json["progress"];
    assert!(steps["step"].is_u64() && steps["step"] == steps["total_steps"], "{steps}");
    let usage = &done.json["usage"];
    assert!(usage["wall_seconds"].as_f64().is_some_and(|seconds| seconds >= 40.0 * 0.02), "{usage}");
    assert!(usage["cpu_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{usage}");
    assert!(usage["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{usage}");

    let model = server.place().jobs_dir().join(job.id()).join("model.json");
    let model: Value = serde_json::from_slice(&std::fs::read(model).expect("a model")).expect("JSON");
    let accuracy = model["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy > 0.9, "{accuracy}");
    assert_eq!(log.lines().filter(|line| line.starts_with("epoch ")).count(), 40, "{log}");
    assert!(log.contains(&format!("accuracy {accuracy:.3}")), "{log}");
}

#[tokio::test]
async fn a_training_job_that_diverges_fails_with_the_line_that_shows_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let config = json!({"model": {"hidden": 8}, "train": {"epochs": 100, "learning_rate": 5000.0, "device": "cpu"}});
    let job = server.submit(json!({"command": trainer(), "config": config})).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    let failed = server.job(job.id()).await;
    assert_eq!((failed.exit_code(), failed.failure_class()), (Some(1), Some("nan_loss")));
    let evidence = failed.json["failure"]["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("loss") && evidence.contains("nan"), "{evidence}");
    assert!(server.log(job.id()).await.contains(evidence));
}
