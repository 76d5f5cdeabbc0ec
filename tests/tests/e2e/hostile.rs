//! Plugins that mean harm. Each is the plugin's failure: never the service's, never the user's.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{PATIENCE, Place, Server, guest, sh};

/// What becomes of a submission while this plugin is in force: the problem, and how long it took.
async fn refused_by(server: &Server) -> (Value, Duration) {
    let begun = Instant::now();
    let answer = server.post("/jobs", &sh("exit 0")).await.expect(503);
    (answer.problem(), begun.elapsed())
}

#[tokio::test]
async fn a_plugin_that_loops_grows_or_traps_is_named_with_its_limit_and_the_service_goes_on() {
    for (name, component, limit) in [
        ("endless-loop", guest::endless_loop(), Some("2 s")),
        ("endless-growth", guest::endless_growth(), Some("128 MiB")),
        ("trap", guest::trap(), None),
    ] {
        let server = Place::new().component(name, &component).start().await;
        let mut events = server.events().await;
        server.plugin(name, |plugin| plugin["state"] == "in_force").await;

        // Meanwhile others are served.
        let asking = server.client().clone();
        let others = tokio::spawn(async move {
            for _ in 0..20 {
                asking.request(Method::GET, "/healthz").send().await.expect(200);
                asking.get("/queue").await.expect(200);
            }
        });
        let (problem, took) = refused_by(&server).await;
        others.await.expect("the service answered");
        assert_eq!((&problem["code"], &problem["plugin"]), (&json!("plugin-failed"), &json!(name)), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{problem}");
        if let Some(limit) = limit {
            assert!(problem["limit"].as_str().is_some_and(|text| text.contains(limit)), "{problem}");
        }
        // Its timeout is 2 s; the rest is a busy machine.
        assert!(took < PATIENCE, "{name}: {took:?}");
        assert_eq!(server.jobs().await, [], "nothing was stored");

        server.place().remove_plugin(name);
        let job = loop {
            let answer = server.post("/jobs", &sh("exit 0")).await;
            if answer.status == 201 {
                break answer.job();
            }
            assert_eq!(answer.problem()["plugin"], name, "until its removal is noticed it stays in force");
        };
        assert_eq!(events.end_of(job.id()).await, "completed");
    }
}

#[tokio::test]
async fn many_submissions_to_an_endless_plugin_are_each_answered_in_time() {
    let manifest = "timeout = \"500ms\"\n";
    let server = Place::new().manifest("loop", manifest).component("loop", &guest::endless_loop()).start().await;
    server.plugin("loop", |plugin| plugin["state"] == "in_force").await;
    let begun = Instant::now();
    let asked: Vec<_> = (0..16)
        .map(|_| {
            let client = server.client().clone();
            tokio::spawn(async move { client.post("/jobs", &sh("exit 0")).await })
        })
        .collect();
    for answer in asked {
        let problem = answer.await.expect("it is answered").expect(503).problem();
        assert_eq!(problem["plugin"], "loop");
    }
    println!("sixteen answers after {:?}", begun.elapsed());
}

#[tokio::test]
async fn what_becomes_of_a_job_whose_plugin_fails_is_what_its_manifest_says() {
    let place = Place::new().manifest("trap", "on_error = \"ignore\"\n").component("trap", &guest::trap());
    let server = place.start().await;
    let mut events = server.events().await;
    server.plugin("trap", |plugin| plugin["state"] == "in_force").await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");

    let place = Place::new().manifest("trap", "on_error = \"hold\"\n").component("trap", &guest::trap());
    let server = place.start().await;
    server.plugin("trap", |plugin| plugin["state"] == "in_force").await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(job.state(), "held");
    assert!(job.json["reason"]["message"].as_str().is_some_and(|text| text.contains("trap")), "{}", job.json);
}

#[tokio::test]
async fn files_that_are_no_plugins_are_told_so_and_keep_nobody_from_submitting() {
    let place = Place::new().component("noise", b"\0\x01\x02").component("text", b"hello").component("empty", b"");
    let server = place.component("good", &guest::content()).start().await;
    let mut events = server.events().await;
    for name in ["noise", "text", "empty"] {
        let plugin = server.plugin(name, |plugin| plugin["state"] == "failed").await;
        for part in ["message", "advice"] {
            assert!(plugin["error"][part].as_str().is_some_and(|text| !text.is_empty()), "{plugin}");
        }
    }
    server.plugin("good", |plugin| plugin["state"] == "in_force").await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn a_plugin_is_dropped_in_replaced_and_broken_while_the_service_runs() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    server.submit(sh("exit 0")).await;

    server.place().write_component("guard", &guest::trap());
    server.plugin("guard", |plugin| plugin["state"] == "in_force").await;
    assert_eq!(refused_by(&server).await.0["plugin"], "guard");

    server.place().write_component("guard", &guest::content());
    let job = loop {
        let answer = server.post("/jobs", &sh("exit 0")).await;
        if answer.status == 201 {
            break answer.job();
        }
        assert_eq!(answer.problem()["plugin"], "guard", "the old one is in force until the new one is compiled");
    };
    assert_eq!(events.end_of(job.id()).await, "completed");

    server.place().write_component("guard", b"no component any more");
    let plugin = server.plugin("guard", |plugin| !plugin["error"].is_null()).await;
    assert_eq!(plugin["state"], "in_force", "the old version stays in force: {plugin}");
    server.submit(sh("exit 0")).await;
}
