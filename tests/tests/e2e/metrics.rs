//! What a job reports over time: its progress, an estimate of its end, and series for charts.

use serde_json::{Value, json};
use taxiway_tests::{Events, Gate, Place, sh};

/// Waits for the report of this step.
async fn reported(events: &mut Events, id: &str, step: u64) -> Value {
    let is_it = |event: &taxiway_tests::Event| {
        event.kind == "job.progress" && event.job_id.as_deref() == Some(id) && event.json["progress"]["step"] == step
    };
    events.wait_for(is_it).await.json["progress"].clone()
}

#[tokio::test]
async fn what_a_job_reports_becomes_series_and_an_estimate_and_survives_a_restart() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!(
        "for step in 1 2 3 4; do \
         echo \"{{\\\"step\\\": $step, \\\"total_steps\\\": 4, \\\"metrics\\\": {{\\\"loss\\\": $((5 - step)).5, \\\"note\\\": \\\"text\\\"}}}}\" \
         > \"$TAXIWAY_PROGRESS_FILE.new\"; mv \"$TAXIWAY_PROGRESS_FILE.new\" \"$TAXIWAY_PROGRESS_FILE\"; {}; done",
        gate.wait()
    );
    let job = server.submit(sh(&script)).await;
    let first = reported(&mut events, job.id(), 1).await;
    assert_eq!((&first["fraction"], &first["metrics"]["loss"]), (&json!(0.25), &json!(4.5)));
    assert!(first["eta_seconds"].as_f64().is_some_and(|eta| eta > 0.0), "an end is estimated: {first}");
    gate.open();
    reported(&mut events, job.id(), 2).await;
    let shown = server.cli(&["show", job.id()]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("] 50%, about") || shown.contains("]  50%, about"), "{shown}");

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    gate.open();
    reported(&mut events, job.id(), 3).await;
    gate.open();
    reported(&mut events, job.id(), 4).await;
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");

    let metrics = server.get(&format!("/jobs/{}/metrics", job.id())).await.expect(200).json();
    assert_eq!(
        (&metrics["job_id"], &metrics["attempt"], &metrics["next_cursor"]),
        (&json!(job.id()), &json!(1), &Value::Null)
    );
    assert_eq!(metrics["started_at"], server.job(job.id()).await.json["started_at"]);
    let items = metrics["items"].as_array().expect("series");
    let series = |name: &str| -> Vec<(f64, f64)> {
        let found = items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name} in {metrics}"));
        let points = found["points"].as_array().expect("points").iter();
        points.map(|point| (point[0].as_f64().expect("seconds"), point[1].as_f64().expect("a value"))).collect()
    };
    let mut losses: Vec<f64> = series("loss").into_iter().map(|(_, value)| value).collect();
    // The service that was started in between may have been told step 2 again.
    losses.dedup();
    assert_eq!(losses, [4.5, 3.5, 2.5, 1.5]);
    let progress = series("progress");
    assert!(progress.windows(2).all(|two| two[0].0 < two[1].0), "in the order of time: {progress:?}");
    assert_eq!(progress.last().map(|point| point.1), Some(1.0));
    assert!(items.iter().all(|item| item["name"] != "note"), "a text cannot be drawn");

    let few = server.get(&format!("/jobs/{}/metrics?points=2&attempt=1", job.id())).await.expect(200).json();
    assert!(
        few["items"]
            .as_array()
            .expect("series")
            .iter()
            .all(|item| item["points"].as_array().expect("points").len() == 2)
    );
    server.get(&format!("/jobs/{}/metrics?points=1", job.id())).await.expect(400);
    server.get(&format!("/jobs/{}/metrics?dots=1", job.id())).await.expect(400);
    let other = server.get(&format!("/jobs/{}/metrics?attempt=2", job.id())).await.expect(200).json();
    assert_eq!(other["items"], json!([]));
}

#[tokio::test]
async fn tqdm_lines_become_progress_and_series_too() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!("printf ' 30%%|###       | 3/10 [00:03<00:07,  1.00it/s]\\r' >&2; {}; echo", gate.wait());
    let job = server.submit(sh(&script)).await;
    let progress = reported(&mut events, job.id(), 3).await;
    assert_eq!((&progress["fraction"], &progress["eta_seconds"]), (&json!(0.3), &json!(7.0)), "tqdm's own estimate");
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    let metrics = server.get(&format!("/jobs/{}/metrics", job.id())).await.expect(200).json();
    assert_eq!(metrics["items"][0]["name"], "progress");
    assert_eq!(metrics["items"][0]["points"][0][1], 0.3);
}
