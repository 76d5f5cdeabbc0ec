//! Disks that are full or broken: clear answers, nothing that was acknowledged is lost, and work goes on when they recover.

use std::io::Write;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::processes::{Process, shim_of};
use taxiway_tests::{Answer, Bell, Client, Disk, Gate, Place, Refusal, Server, SmallDisk, patiently, sh};

const BOTH: [(Refusal, u16, &str); 2] =
    [(Refusal::Full, 507, "disk-full"), (Refusal::Broken, 503, "store-unavailable")];

async fn readyz(client: &Client) -> Answer {
    client.request(Method::GET, "/readyz").send().await
}

/// Waits until the service says that it takes jobs.
async fn is_ready(client: &Client) {
    patiently("the service to be ready", async {
        // No event tells, and a probe asks again and again as well.
        while readyz(client).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

fn is_whole(place: &Place) {
    let database = rusqlite::Connection::open(place.data_dir().join("taxiway.db")).expect("opens");
    let answer: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(answer, "ok");
}

fn named(external_id: &str, script: &str) -> Value {
    json!({"command": ["/bin/sh", "-c", script], "external_id": external_id, "time_limit": 600})
}

/// A service on a disk, with a job that runs until its gate opens and one that waits.
struct Scene {
    disk: Disk,
    server: Server,
    gate: Gate,
    process: Process,
}

impl Scene {
    async fn set() -> Self {
        let (disk, place) = Disk::under(Place::new().config("[launcher]\nmin_free_disk = 0\n"));
        let (gate, mut bell) = (Gate::new(place.path(), "gate"), Bell::new(place.path(), "bell"));
        let server = place.start().await;
        let mut events = server.events().await;
        let script = format!("{}; {}; exit 7", bell.ring("$$"), gate.wait());
        let running = server.post("/jobs", &named("running", &script)).await.expect(201).job();
        let process = Process::find(bell.pid().await).expect("it waits at its gate");
        events.job(running.id(), "running").await;
        server.post("/jobs", &named("waiting", "exit 0")).await.expect(201);
        Self { disk, server, gate, process }
    }

    /// Nothing can be stored, and whoever asks for it is told so.
    async fn refuses(&self, how: Refusal, status: u16, code: &str) {
        let server = &self.server;
        self.disk.refuse(how);
        let waiting = by_name(server, "waiting").await.expect("it was acknowledged");
        let id = waiting["id"].as_str().expect("an id");
        assert_eq!(server.operate(id, "cancel").await.expect(status).problem()["code"], code);
        assert_eq!(server.post_nothing("/queue/pause").await.expect(status).problem()["code"], code);
        let submission = named("refused", "exit 0");
        assert_eq!(server.post("/jobs/batch", &json!([submission])).await.expect(status).problem()["code"], code);
        // The last: of a disk that breaks off, nobody knows whether it has taken what it was given last.
        assert_eq!(server.post("/jobs", &submission).await.expect(status).problem()["code"], code);
        readyz(server).await.expect(503);
        // What is there can still be read, and is as it was.
        assert_eq!(by_name(server, "waiting").await.expect("it is there")["state"], "queued");
        assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "run");
    }

    /// What was acknowledged is there, and both jobs come to the end that they should.
    async fn goes_on(server: &Server) {
        is_ready(server).await;
        let mut events = server.events().await;
        for (name, end, code) in [("running", "failed", 7), ("waiting", "completed", 0)] {
            let job = by_name(server, name).await.expect("it was acknowledged");
            let id = job["id"].as_str().expect("an id");
            assert_eq!(events.end_of(id).await, end, "{name}");
            let ended = server.job(id).await;
            assert_eq!((ended.exit_code(), ended.json["attempt"].as_u64()), (Some(code), Some(1)), "{name}");
            assert_eq!(events.story(id), ["queued", "pending", "running", end], "{name}");
        }
        let again = server.post("/jobs", &named("later", "exit 0")).await.expect(201).job();
        assert_eq!(events.end_of(again.id()).await, "completed");
    }
}

async fn by_name(server: &Server, external_id: &str) -> Option<Value> {
    let found = server.get(&format!("/jobs?external_id={external_id}")).await.expect(200).json();
    found["items"].as_array().expect("items").first().cloned()
}

#[tokio::test]
async fn a_disk_that_refuses_is_told_to_whoever_asks_and_work_goes_on_when_it_recovers() {
    for (how, status, code) in BOTH {
        let mut scene = Scene::set().await;
        scene.refuses(how, status, code).await;
        // The job ends meanwhile: its end is kept until it can be stored, and nothing starts before.
        scene.gate.open();
        scene.process.wait();
        readyz(&scene.server).await.expect(503);
        assert_eq!(by_name(&scene.server, "waiting").await.expect("it is there")["state"], "queued");
        scene.disk.recover();
        Scene::goes_on(&scene.server).await;
        assert_eq!(by_name(&scene.server, "refused").await, None);
        let (place, _) = scene.server.stop().await;
        is_whole(&place);
    }
}

#[tokio::test]
async fn a_service_that_is_killed_while_its_disk_refuses_has_lost_nothing_that_it_acknowledged() {
    for (how, status, code) in BOTH {
        let mut scene = Scene::set().await;
        scene.refuses(how, status, code).await;
        scene.gate.open();
        scene.process.wait();
        let place = scene.server.kill().await;
        scene.disk.recover();
        let server = place.start().await;
        // The job that was refused last may be there.
        Scene::goes_on(&server).await;
        let (place, _) = server.stop().await;
        is_whole(&place);
    }
}

#[tokio::test]
async fn a_small_disk_that_is_really_full_takes_no_more_and_goes_on_with_all_it_took_once_there_is_room() {
    let Some(small) = SmallDisk::mount(16) else { return };
    let data_dir = small.path().join("data");
    let place = Place::with_data_dir(data_dir.to_str().expect("a path of ours"));
    // What it logs goes there, too, and does not fit any more.
    std::os::unix::fs::symlink(small.path().join("service.log"), place.log_file()).expect("a link");
    let server = place.config("[launcher]\nmin_free_disk = 0\n").start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let filler = small.fill();
    let log = std::fs::OpenOptions::new().append(true).open(server.place().log_file());
    let mut log = log.expect("it is written");
    while log.write_all(b".").is_ok() {}
    // The log of the database has some room of its own; then there is none.
    let mut submission = sh("exit 0");
    submission["config"] = json!({"ballast": "x".repeat(64 << 10)});
    let mut acknowledged = Vec::new();
    let refused = loop {
        let answer = server.post("/jobs", &submission).await;
        match answer.status.as_u16() {
            201 => acknowledged.push(answer.job().id().to_owned()),
            _ => break answer,
        }
    };
    assert_eq!(refused.expect(507).problem()["code"], "disk-full");
    readyz(&server).await.expect(503);
    let all =
        async |server: &Server| -> Vec<String> { server.jobs().await.iter().map(|job| job.id().to_owned()).collect() };
    assert_eq!(all(&server).await, acknowledged);

    std::fs::remove_file(filler).expect("it is there");
    is_ready(&server).await;
    acknowledged.push(server.post("/jobs", &submission).await.expect(201).job().id().to_owned());
    let server = server.kill().await.start().await;
    assert_eq!(all(&server).await, acknowledged);
    let (place, _) = server.stop().await;
    is_whole(&place);
}

#[tokio::test]
async fn a_job_that_was_told_to_start_when_the_service_was_killed_keeps_its_gpu_alone() {
    let (disk, place) = Disk::under(Place::new().config("[launcher]\nmin_free_disk = 0\n").with_gpus(2));
    let (mut gate, mut later) = (Gate::new(place.path(), "gate"), Gate::new(place.path(), "later"));
    let mut bell = Bell::new(place.path(), "bell");
    let server = place.start().await;
    let mut events = server.events().await;
    let on_the_first = |script: &str| {
        let mut job = sh(script);
        job["gpu_uuids"] = json!(["GPU-fake-0"]);
        job
    };
    let first = server.submit(on_the_first(&gate.wait())).await;
    events.job(first.id(), "running").await;
    let second =
        server.submit(on_the_first(&format!("{}; {}", bell.ring("$CUDA_VISIBLE_DEVICES"), later.wait()))).await;
    // Nothing tells that a shim is ready; a job that is armed, started and over in the meantime has taken longer.
    shim_of(&server.place().jobs_dir(), second.id()).await;
    let without = server.submit(json!({"command": ["true"], "gpus": 0})).await;
    assert_eq!(events.end_of(without.id()).await, "completed");
    // The end of the first and the start of the second are done and cannot be stored.
    disk.refuse(Refusal::Broken);
    gate.open();
    assert_eq!(bell.heard().await, "GPU-fake-0");
    let place = server.kill().await;
    disk.recover();
    let server = place.start().await;
    events.resume(&server).await;
    events.job(second.id(), "running").await;
    assert_eq!(server.job(second.id()).await.json["gpu_uuids"], json!(["GPU-fake-0"]));
    assert_eq!(server.gpu(0).await["job_id"], second.id());
    // The other GPU is nobody's.
    let third = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(third.id()).await, "completed");
    assert_eq!(server.job(third.id()).await.json["gpu_uuids"], json!(["GPU-fake-1"]));
    later.open();
    assert_eq!(events.end_of(second.id()).await, "completed");
    assert_eq!(events.story(first.id()).last(), Some(&"completed"));
    let (place, _) = server.stop().await;
    is_whole(&place);
}

#[tokio::test]
async fn a_disk_without_room_for_the_log_in_advance_holds_jobs_all_the_same() {
    let Some(small) = SmallDisk::mount(6) else { return };
    let data_dir = small.path().join("data");
    let place = Place::with_data_dir(data_dir.to_str().expect("a path of ours"));
    let server = place.config("[launcher]\nmin_free_disk = 0\n").start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let server = server.kill().await.start().await;
    assert_eq!(server.job(job.id()).await.json["state"], "completed");
    let (place, _) = server.stop().await;
    is_whole(&place);
}
