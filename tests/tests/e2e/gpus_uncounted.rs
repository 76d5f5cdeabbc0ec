//! NVML is installed and does not work when the service starts, or not for all GPUs: nobody knows which there are until it does.

use serde_json::json;
use taxiway_fake_nvml::Machine;
use taxiway_tests::{Events, Job, Place, Server, patiently, sh};

/// `NVML_ERROR_DRIVER_NOT_LOADED`
const DRIVER_NOT_LOADED: u32 = 9;

fn without_driver(machine: &mut Machine) {
    machine.errors.insert("nvmlInit_v2".into(), DRIVER_NOT_LOADED);
}

/// `NVML_ERROR_UNKNOWN`
const UNKNOWN: u32 = 999;

/// The first of them.
fn with_a_gpu_that_cannot_be_read(machine: &mut Machine) {
    machine.gpus[0].errors.insert("*".into(), UNKNOWN);
}

async fn cpu_job(server: &Server, events: &mut Events) {
    let mut job = sh("exit 0");
    job["gpus"] = json!(0);
    let job = server.submit(job).await;
    assert_eq!(events.end_of(job.id()).await, "completed", "it needs no GPU");
}

/// A job that needs both GPUs and says which it got.
async fn asks_for_both(server: &Server) -> Job {
    let mut both = sh("echo $CUDA_VISIBLE_DEVICES");
    both["gpus"] = json!(2);
    server.submit(both).await
}

async fn waits_for(server: &Server, job: &Job, says: &str) {
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpus_unavailable")));
    let message = waiting.json["reason"]["message"].as_str().expect("a sentence");
    assert!(message.contains(says), "{says} is not in {message}");
}

#[tokio::test]
async fn without_a_loaded_driver_jobs_wait_for_gpus_instead_of_running_without_and_start_once_it_is_there() {
    let place = Place::new().with_gpus(2);
    place.change_gpus(without_driver);
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("test \"$CUDA_VISIBLE_DEVICES\" = GPU-fake-0")).await;
    cpu_job(&server, &mut events).await;
    waits_for(&server, &job, "driver is not loaded").await;
    assert_eq!(server.get("/gpus").await.expect(200).json()["items"], json!([]));
    // It can be changed as any other, whatever it asks for.
    server.patch(&format!("/jobs/{}", job.id()), &json!({"gpus": 2})).await.expect(200);
    server.patch(&format!("/jobs/{}", job.id()), &json!({"gpus": 1})).await.expect(200);

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    waits_for(&server, &job, "driver is not loaded").await;
    server.place().change_gpus(|machine| machine.errors.clear());
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(server.job(job.id()).await.json["gpu_uuids"], json!(["GPU-fake-0"]));
    assert_eq!(server.gpu(1).await["uuid"], "GPU-fake-1");
}

#[tokio::test]
async fn gpus_that_cannot_be_counted_are_left_alone_as_long_as_only_jobs_without_any_wait() {
    let place = Place::new().with_gpus(1);
    let calls = place.path().join("calls");
    place.change_gpus(|machine| {
        without_driver(machine);
        machine.calls = Some(calls.clone());
    });
    let server = place.config("[queue]\ncpu_slots = 1\n").start().await;
    let mut events = server.events().await;
    let (mut first, mut second) = (sh("sleep 0.5"), sh("exit 0"));
    (first["gpus"], second["gpus"]) = (json!(0), json!(0));
    server.submit(first).await;
    let second = server.submit(second).await;
    assert_eq!(events.end_of(second.id()).await, "completed", "it waited for the first");
    let counts = || {
        std::fs::read_to_string(&calls).expect("calls").lines().filter(|call| call.starts_with("nvmlInit_v2")).count()
    };
    assert_eq!(counts(), 1, "at the start");
    let job = server.submit(sh("exit 0")).await;
    waits_for(&server, &job, "driver is not loaded").await;
    server.place().change_gpus(|machine| machine.errors.clear());
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert!(counts() > 1);
}

#[tokio::test]
async fn gpus_none_of_which_can_be_read_are_not_taken_for_a_machine_without_gpus() {
    let place = Place::new().with_gpus(1);
    place.change_gpus(|machine| machine.gpus[0].lost = true);
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    cpu_job(&server, &mut events).await;
    waits_for(&server, &job, "none of them can be used").await;
    server.place().change_gpus(|machine| machine.gpus[0].lost = false);
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn a_job_that_runs_on_while_the_gpus_cannot_be_counted_keeps_its_own() {
    let (server, mut events, mut gate, first) = Place::new().with_gpus(2).start_with_a_job("exit 0").await;
    let place = server.kill().await;
    place.change_gpus(without_driver);
    let server = place.start().await;
    events.resume(&server).await;
    let both = asks_for_both(&server).await;
    waits_for(&server, &both, "driver is not loaded").await;
    let second = server.submit(json!({"command": ["true"], "gpu_uuids": ["GPU-fake-1"], "priority": 1})).await;
    server.place().change_gpus(|machine| machine.errors.clear());
    assert_eq!(events.end_of(second.id()).await, "completed");
    let held = server.gpu(0).await;
    assert_eq!((&held["state"], &held["job_id"]), (&json!("held"), &json!(first.id())));
    assert_eq!(server.job(both.id()).await.reason(), Some("waiting_for_gpu"));
    gate.open();
    assert_eq!(events.end_of(both.id()).await, "completed");
}

#[tokio::test]
async fn a_gpu_that_cannot_be_read_at_the_start_is_shown_and_waited_for_and_the_others_are_used() {
    let place = Place::new().with_gpus(2);
    place.change_gpus(with_a_gpu_that_cannot_be_read);
    let server = place.start().await;
    let mut events = server.events().await;
    let shown = server.gpu(1).await;
    assert_eq!((&shown["label"], &shown["state"]), (&json!("GPU 0"), &json!("blocked")));
    assert_eq!((&shown["uuid"], &shown["reason"]["code"]), (&json!(null), &json!("gpu_unreadable")));
    let both = asks_for_both(&server).await;
    waits_for(&server, &both, "cannot read").await;
    let one = server.submit(sh("echo $CUDA_VISIBLE_DEVICES")).await;
    assert_eq!(events.end_of(one.id()).await, "completed", "it passes the one that cannot start");
    assert_eq!(server.log(one.id()).await, "GPU-fake-1\n");

    server.place().change_gpus(|machine| machine.gpus[0].errors.clear());
    assert_eq!(events.end_of(both.id()).await, "completed");
    assert_eq!(server.log(both.id()).await, "GPU-fake-1,GPU-fake-0\n");
    assert_eq!((&server.gpu(1).await["uuid"], &server.gpu(1).await["state"]), (&json!("GPU-fake-0"), &json!("free")));
    let gpus = server.get("/gpus").await.expect(200).json();
    assert_eq!(gpus["items"].as_array().map(Vec::len), Some(2), "nothing is missing: {gpus}");
}

#[tokio::test]
async fn a_job_that_runs_on_a_gpu_that_cannot_be_read_at_the_start_keeps_it() {
    let (server, mut events, mut gate, first) = Place::new().with_gpus(2).start_with_a_job("exit 0").await;
    let place = server.kill().await;
    place.change_gpus(with_a_gpu_that_cannot_be_read);
    let server = place.start().await;
    events.resume(&server).await;
    let second = server.submit(json!({"command": ["true"]})).await;
    assert_eq!(events.end_of(second.id()).await, "completed", "on the other");
    let both = asks_for_both(&server).await;
    waits_for(&server, &both, "cannot read").await;
    server.place().change_gpus(|machine| machine.gpus[0].errors.clear());
    // Once it can be read it is there again, and is the first one's.
    let held = patiently("the GPU to be counted", async {
        loop {
            let gpu = server.gpu(1).await;
            if gpu["uuid"] == "GPU-fake-0" {
                return gpu;
            }
            // No event tells of it.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!((&held["state"], &held["job_id"]), (&json!("held"), &json!(first.id())));
    assert_eq!(server.job(both.id()).await.reason(), Some("waiting_for_gpu"));
    gate.open();
    assert_eq!(events.end_of(both.id()).await, "completed");
}

#[tokio::test]
async fn a_gpu_that_has_a_critical_error_before_it_can_be_read_is_kept_from_jobs_once_it_can_be() {
    let place = Place::new().with_gpus(2);
    place.change_gpus(|machine| {
        machine.gpus[0].errors.insert("nvmlDeviceGetMemoryInfo_v2".into(), UNKNOWN);
    });
    let (server, mut events, mut gate, first) = place.start_with_a_job("exit 0").await;
    server.place().change_gpus(|machine| machine.gpus[0].xids.push(79));
    // At its end NVML is asked for errors, before it is told.
    gate.open();
    assert_eq!(events.end_of(first.id()).await, "completed");
    let both = asks_for_both(&server).await;
    waits_for(&server, &both, "cannot read").await;
    server.place().change_gpus(|machine| machine.gpus[0].errors.clear());
    let quarantined = events.wait_for(|event| event.kind == "gpu.quarantined").await;
    assert_eq!(quarantined.json["uuid"], "GPU-fake-0");
    assert_eq!((&server.gpu(1).await["state"], server.job(both.id()).await.state()), (&json!("quarantined"), "queued"));
    server.post_nothing("/gpus/GPU-fake-0/release").await.expect(200);
    assert_eq!(events.end_of(both.id()).await, "completed");
}
