//! Plugins that judge a job just before its start.

use serde_json::json;
use taxiway_tests::{Gate, Place, guest, processes, sh};

#[tokio::test]
async fn a_job_that_a_plugin_refuses_at_its_launch_fails_in_preflight_and_nothing_of_it_runs() {
    let schema = "bundled = \"config-schema\"\nstages = [\"launch\"]\n[settings.schema]\nrequired = [\"lr\"]\n";
    let place = Place::new().manifest("late", schema);
    let place = place.manifest("broken", "stages = [\"launch\"]\nprofiles = [\"fragile\"]\n");
    let place = place.component("broken", &guest::trap()).config("[profiles.fragile]\ncommand = [\"true\"]\n");
    let server = place.start().await;
    let mut events = server.events().await;
    for name in ["late", "broken"] {
        server.plugin(name, |plugin| plugin["state"] == "in_force").await;
    }
    let ran = server.place().path().join("ran");
    let job = server.submit(sh(&format!("echo ran > '{}'", ran.display()))).await;
    let fragile = server.submit(json!({"profile": "fragile", "config": {"lr": 0.1}})).await;
    for (id, plugin, evidence) in [(job.id(), "late", "lr"), (fragile.id(), "broken", "plugin-failed")] {
        assert_eq!(events.end_of(id).await, "failed");
        assert_eq!(events.story(id), ["queued", "failed"]);
        let failed = server.job(id).await;
        assert_eq!(failed.failure_class(), Some("preflight"), "{}", failed.json);
        let told = failed.json["failure"].to_string();
        assert!(told.contains(plugin) && told.contains(evidence), "{told}");
        let explained = server.get(&format!("/jobs/{id}/explain")).await.expect(200).json();
        let verdicts = explained["verdicts"].as_array().expect("verdicts");
        let said = verdicts.iter().find(|verdict| verdict["plugin"] == plugin && verdict["stage"] == "launch");
        assert!(said.is_some(), "{explained}");
    }
    assert!(!ran.exists());
    let fine = sh("exit 0");
    let fine = json!({"command": fine["command"], "config": {"lr": 0.1}});
    assert_eq!(events.end_of(server.submit(fine).await.id()).await, "completed");
}

/// Of a plugin that judges starts and no submissions.
const AT_LAUNCH: &str = "stages = [\"launch\"]\n";

#[tokio::test]
async fn a_job_that_was_armed_before_a_plugin_judged_starts_is_judged_by_it() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let ran = server.place().path().join("ran");
    let first = server.submit(sh(&gate.wait())).await;
    events.job(first.id(), "running").await;
    let second = server.submit(sh(&format!("echo ran > '{}'", ran.display()))).await;
    processes::shim_of(&server.place().jobs_dir(), second.id()).await;

    server.place().write_manifest("late", AT_LAUNCH);
    server.place().write_component("late", &guest::trap());
    server.plugin("late", |plugin| plugin["state"] == "in_force").await;
    gate.open();
    assert_eq!(events.end_of(first.id()).await, "completed");
    assert_eq!(events.end_of(second.id()).await, "failed");
    let failed = server.job(second.id()).await;
    assert_eq!(failed.failure_class(), Some("preflight"), "{}", failed.json);
    assert!(failed.json["failure"]["message"].as_str().is_some_and(|text| text.contains("`late`")), "{}", failed.json);
    assert_eq!(events.story(second.id()), ["queued", "failed"]);
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_verdict_does_not_last_when_other_plugins_are_in_force_than_gave_it() {
    let schema = "bundled = \"config-schema\"\nstages = [\"launch\"]\n[settings.schema]\ntype = \"object\"\n";
    let server = Place::new().manifest("early", schema).start().await;
    server.plugin("early", |plugin| plugin["state"] == "in_force").await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let first = server.submit(sh(&gate.wait())).await;
    events.job(first.id(), "running").await;
    let second = server.submit(sh("exit 0")).await;
    // `early` has accepted it.
    processes::shim_of(&server.place().jobs_dir(), second.id()).await;

    server.place().write_manifest("late", AT_LAUNCH);
    server.place().write_component("late", &guest::trap());
    server.plugin("late", |plugin| plugin["state"] == "in_force").await;
    gate.open();
    assert_eq!(events.end_of(second.id()).await, "failed");
    let failed = server.job(second.id()).await;
    assert_eq!(failed.failure_class(), Some("preflight"), "{}", failed.json);
    assert!(failed.json["failure"]["message"].as_str().is_some_and(|text| text.contains("`late`")), "{}", failed.json);
}

#[tokio::test]
async fn a_plugin_that_judged_starts_and_is_broken_after_a_restart_still_refuses_them() {
    let place = Place::new().manifest("guard", AT_LAUNCH).component("guard", &guest::content());
    let mut gate = Gate::new(place.path(), "gate");
    let ran = place.path().join("ran");
    let server = place.start().await;
    let mut events = server.events().await;
    server.plugin("guard", |plugin| plugin["state"] == "in_force").await;
    let first = server.submit(sh(&gate.wait())).await;
    events.job(first.id(), "running").await;
    let second = server.submit(sh(&format!("echo ran > '{}'", ran.display()))).await;
    let place = server.kill().await;
    place.write_component("guard", b"damaged");

    let server = place.start().await;
    events.resume(&server).await;
    gate.open();
    assert_eq!(events.end_of(first.id()).await, "completed");
    assert_eq!(events.end_of(second.id()).await, "failed");
    let failed = server.job(second.id()).await;
    assert_eq!(failed.failure_class(), Some("preflight"), "{}", failed.json);
    let told = failed.json["failure"].to_string();
    assert!(told.contains("`guard`") && told.contains("plugin-failed"), "{told}");
    assert!(!ran.exists());
}
