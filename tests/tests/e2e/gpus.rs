//! GPUs: who gets which, what keeps a job from starting, what happens when one fails, and what a job used of them.

use std::process::{Child, Command};

use serde_json::{Value, json};
use taxiway_fake_nvml::{Gpu, Mig, Process};
use taxiway_tests::{Bell, Events, Gate, Place, sh};

const GIB: u64 = 1 << 30;

/// A process that is no job's: `sleep`, which ends with the test.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().expect("sleep starts"))
    }

    fn on_gpu(&self) -> Process {
        Process { pid: self.0.id(), memory: Some(2 * GIB) }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().expect("it is a child");
        self.0.wait().expect("it is a child");
    }
}

/// A process id that nobody has: that of a child that has ended.
fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().expect("it starts");
    child.wait().expect("it is a child");
    child.id()
}

fn with(mut submission: Value, more: Value) -> Value {
    submission.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    submission
}

async fn event(events: &mut Events, kind: &str) -> Value {
    events.wait_for(|event| event.kind == kind).await.json
}

#[tokio::test]
async fn each_job_gets_gpus_of_its_own_and_only_sees_those() {
    let server = Place::new().with_gpus(3).start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!("{}; {}", bell.ring("$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"), gate.wait());
    let one = server.submit(sh(&script)).await;
    assert_eq!(bell.heard().await, "GPU-fake-0 PCI_BUS_ID");
    let two = server.submit(with(sh(&script), json!({"gpus": 2}))).await;
    assert_eq!(bell.heard().await, "GPU-fake-1,GPU-fake-2 PCI_BUS_ID");
    let waits = server.submit(sh("exit 0")).await;
    let none = server
        .submit(with(sh("test -z \"$CUDA_VISIBLE_DEVICES\" -a -n \"${CUDA_VISIBLE_DEVICES+set}\""), json!({"gpus": 0})))
        .await;
    assert_eq!(events.end_of(none.id()).await, "completed", "it neither waits for GPUs nor sees any");

    assert_eq!(server.job(two.id()).await.json["gpu_uuids"], json!(["GPU-fake-1", "GPU-fake-2"]));
    let waiting = server.job(waits.id()).await;
    assert_eq!(waiting.reason(), Some("waiting_for_gpu"));
    let gpu = server.gpu(2).await;
    assert_eq!((&gpu["state"], &gpu["job_id"], &gpu["uuid"]), (&json!("held"), &json!(two.id()), &json!("GPU-fake-2")));
    let listed = server.cli(&["gpus"]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&format!("job {}", one.id())), "{listed:?}");

    let refused = server.post("/jobs", &with(sh("exit 0"), json!({"gpus": 4}))).await.expect(422).problem();
    assert_eq!(refused["problems"][0]["code"], "too-many-gpus");
    gate.open();
    gate.open();
    assert_eq!(events.end_of(waits.id()).await, "completed");
}

#[tokio::test]
async fn a_job_runs_only_where_its_terms_allow_and_holds_nobody_up_elsewhere() {
    let place = Place::new().with_gpus(2);
    place.change_gpus(|machine| machine.gpus[1].memory_total = 160 * GIB);
    let server = place.start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let large = json!({"gpu_memory": "100GiB"});
    let holder = server.submit(with(sh(&gate.wait()), large.clone())).await;
    events.job(holder.id(), "running").await;
    assert_eq!(server.job(holder.id()).await.json["gpu_uuids"], json!(["GPU-fake-1"]));

    let head = server.submit(with(sh("exit 0"), json!({"gpu_uuids": ["GPU-fake-1"]}))).await;
    let behind = server.submit(with(sh("exit 0"), large)).await;
    // It cannot use the GPU that the head waits for, and passes.
    let passing = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(passing.id()).await, "completed");
    assert_eq!(server.job(passing.id()).await.json["gpu_uuids"], json!(["GPU-fake-0"]));
    let (head, behind) = (server.job(head.id()).await, server.job(behind.id()).await);
    assert_eq!((head.state(), head.reason()), ("queued", Some("waiting_for_gpu")));
    assert_eq!((behind.state(), behind.reason()), ("queued", Some("behind")));
    gate.open();
    assert_eq!(events.end_of(behind.id()).await, "completed");
    let at = |id: &str| events.seen().iter().position(|event| event.is(id, "pending"));
    assert!(at(head.id()) < at(behind.id()));
    let asked = |job: taxiway_tests::Job| job.json["requested_gpu_uuids"].clone();
    assert_eq!(asked(server.job(head.id()).await), json!(["GPU-fake-1"]), "what it asked for stays to be seen");
    assert_eq!(asked(server.job(behind.id()).await), json!([]));

    let unknown = with(sh("exit 0"), json!({"gpu_uuids": ["GPU-fake-7"]}));
    assert_eq!(server.post("/jobs", &unknown).await.expect(422).problem()["problems"][0]["code"], "unknown-gpu");
}

#[tokio::test]
async fn a_stranger_on_the_gpu_holds_the_start_back_and_is_named_until_it_leaves() {
    let place = Place::new().with_gpus(1);
    let stranger = Stranger::new();
    place.change_gpus(|machine| machine.gpus[0].processes.push(stranger.on_gpu()));
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    event(&mut events, "gpu.blocked").await;
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpu_in_use_by_others")));
    let message = waiting.json["reason"]["message"].as_str().expect("a sentence");
    for part in ["GPU 0", "sleep", &stranger.0.id().to_string(), &(2 * GIB).to_string()] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    let told = server.get(&format!("/jobs/{}/explain", job.id())).await.expect(200).json();
    assert_eq!(told["expected_start_at"], Value::Null, "nobody knows when the stranger leaves");
    let gpu = server.gpu(0).await;
    assert_eq!((&gpu["state"], &gpu["processes"][0]["program"]), (&json!("blocked"), &json!("sleep")));
    assert_eq!(gpu["processes"][0]["ours"], false);

    // The next service finds the same, and the job where it was.
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    let blocked = events.seen().last().expect("there were events").id;
    events.wait_for(|event| event.kind == "gpu.blocked" && event.id > blocked).await;
    assert_eq!(server.job(job.id()).await.reason(), Some("gpu_in_use_by_others"));

    server.place().change_gpus(|machine| machine.gpus[0].processes.clear());
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(events.story(job.id()), ["queued", "pending", "running", "completed"]);
    event(&mut events, "gpu.unblocked").await;
}

#[tokio::test]
async fn the_first_reading_of_a_gpu_after_a_stranger_has_left_is_the_one_that_starts_the_job() {
    let place = Place::new().with_gpus(1);
    let stranger = Stranger::new();
    place.change_gpus(|machine| machine.gpus[0].processes.push(stranger.on_gpu()));
    let server = place.start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let job = server.submit(sh(&gate.wait())).await;
    event(&mut events, "gpu.blocked").await;
    // From the very moment of its leaving every call of NVML leaves a line.
    let calls = server.place().path().join("calls");
    server.place().change_gpus(|machine| {
        machine.gpus[0].processes.clear();
        machine.calls = Some(calls.clone());
    });
    events.job(job.id(), "running").await;
    server.sample("GPU-fake-0", |_| true).await;
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    // The sampling of a GPU that a job holds is the only reading that asks for its power; it begins with the start.
    let calls = std::fs::read_to_string(calls).expect("there were calls");
    let before = calls.lines().take_while(|call| !call.starts_with("nvmlDeviceGetPowerUsage"));
    let readings = before.filter(|call| call.starts_with("nvmlDeviceGetMemoryInfo")).count();
    // One look, which found the GPU free, and the first sample. A look that had begun before the stranger left shows in part.
    assert!((1..=2).contains(&readings), "{readings} readings before the start: {calls}");
}

#[tokio::test]
async fn a_free_gpu_is_taken_instead_of_one_that_is_in_use() {
    let place = Place::new().with_gpus(2);
    let stranger = Stranger::new();
    place.change_gpus(|machine| machine.gpus[0].processes.push(stranger.on_gpu()));
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(server.job(job.id()).await.json["gpu_uuids"], json!(["GPU-fake-1"]));
}

#[tokio::test]
async fn programs_to_be_ignored_may_stay_and_memory_has_to_be_free_all_the_same() {
    let place = Place::new().with_gpus(1).config("[gpu]\nignore = [\"sleep\"]\nmin_free_memory = \"79GiB\"\n");
    let stranger = Stranger::new();
    place.change_gpus(|machine| machine.gpus[0].processes.push(stranger.on_gpu()));
    let server = place.start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    event(&mut events, "gpu.blocked").await;
    assert_eq!(server.job(job.id()).await.reason(), Some("gpu_memory_low"));
    server.place().change_gpus(|machine| machine.gpus[0].processes[0].memory = Some(GIB));
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn a_gpu_with_a_critical_error_is_kept_from_jobs_and_its_job_is_told_why_it_failed() {
    let (server, mut events, mut gate, victim) = Place::new().with_gpus(2).start_with_a_job("exit 1").await;
    // A program's own mistake is not the GPU's.
    server.place().change_gpus(|machine| machine.gpus[0].xids.extend([31, 79]));
    let quarantined = event(&mut events, "gpu.quarantined").await;
    assert_eq!(quarantined["uuid"], "GPU-fake-0");
    gate.open();
    assert_eq!(events.end_of(victim.id()).await, "failed");
    let failed = server.job(victim.id()).await;
    assert_eq!((failed.failure_class(), failed.exit_code()), (Some("gpu_lost"), Some(1)));
    let evidence = failed.json["failure"]["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("XID 79") && evidence.contains("GPU-fake-0"), "{evidence}");

    // One that needs both waits for its return, and is not in the way of one that needs the other.
    let both = server.submit(with(sh("exit 0"), json!({"gpus": 2}))).await;
    let one = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(one.id()).await, "completed");
    assert_eq!(server.job(one.id()).await.json["gpu_uuids"], json!(["GPU-fake-1"]));
    let waiting = server.job(both.id()).await;
    assert_eq!(waiting.reason(), Some("gpus_unavailable"));
    let why = waiting.json["reason"]["message"].as_str().expect("a sentence");
    assert!(why.starts_with("it needs 2 GPUs and may use 1 of those that are left; GPU 0 "), "{why}");
    assert_eq!(server.gpu(0).await["state"], "quarantined");

    // A restart mends nothing; a person does.
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    assert_eq!(server.gpu(0).await["state"], "quarantined");
    assert_eq!(server.job(both.id()).await.reason(), Some("gpus_unavailable"));
    server.post_nothing("/gpus/GPU-fake-9/release").await.expect(404);
    let mended = server.post_nothing("/gpus/GPU-fake-0/release").await.expect(200).json();
    assert_ne!(mended["state"], "quarantined");
    assert_eq!(events.end_of(both.id()).await, "completed");
}

#[tokio::test]
async fn a_gpu_that_fell_off_the_bus_is_used_again_when_it_is_back() {
    let server = Place::new().with_gpus(2).start().await;
    let mut events = server.events().await;
    server.place().change_gpus(|machine| {
        machine.gpus[0].lost = true;
        machine.gpus[1].xids.push(79);
    });
    let job = server.submit(with(sh("exit 0"), json!({"gpu_uuids": ["GPU-fake-0"]}))).await;
    for _ in 0..2 {
        event(&mut events, "gpu.quarantined").await;
    }
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpus_unavailable")));
    let why = waiting.json["reason"]["message"].as_str().expect("a sentence");
    assert!(why.contains("; GPU 0 ") && !why.contains("GPU 1"), "only what it may use: {why}");
    let cpu = server.submit(with(sh("exit 0"), json!({"gpus": 0}))).await;
    assert_eq!(events.end_of(cpu.id()).await, "completed");
    server.place().change_gpus(|machine| machine.gpus[0].lost = false);
    assert_eq!(events.end_of(job.id()).await, "completed");
    event(&mut events, "gpu.returned").await;
}

#[tokio::test]
async fn while_nvml_fails_or_hangs_nothing_starts_on_its_gpus() {
    let server = Place::new().with_gpus(1).start().await;
    let mut events = server.events().await;
    server.place().change_gpus(|machine| {
        machine.errors.insert("*".into(), 999);
    });
    let job = server.submit(sh("exit 0")).await;
    event(&mut events, "gpu.blocked").await;
    let waiting = server.job(job.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpu_unreadable")));
    server.place().change_gpus(|machine| {
        machine.errors.clear();
        machine.hangs.insert("nvmlDeviceGetComputeRunningProcesses_v3".into());
    });
    // Either look says that nothing is known; only the words differ.
    let hangs = |event: &taxiway_tests::Event| {
        event.kind == "gpu.blocked"
            && event.json["reason"]["message"].as_str().is_some_and(|text| text.contains("not answered"))
    };
    events.wait_for(hangs).await;
    assert_eq!(server.job(job.id()).await.reason(), Some("gpu_unreadable"));
    server.place().change_gpus(|machine| machine.hangs.clear());
    assert_eq!(events.end_of(job.id()).await, "completed");
}

#[tokio::test]
async fn a_job_that_ends_while_nvml_hangs_has_ended_and_its_gpu_goes_to_nobody() {
    let (server, mut events, mut gate, first) = Place::new().with_gpus(1).start_with_a_job("exit 3").await;
    let next = server.submit(sh("exit 0")).await;
    server.place().change_gpus(|machine| {
        machine.hangs.insert("*".into());
    });
    gate.open();
    assert_eq!(events.end_of(first.id()).await, "failed");
    assert_eq!(server.job(first.id()).await.exit_code(), Some(3));
    event(&mut events, "gpu.blocked").await;
    let waiting = server.job(next.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpu_unreadable")));
    server.place().change_gpus(|machine| machine.hangs.clear());
    assert_eq!(events.end_of(next.id()).await, "completed");
}

#[tokio::test]
async fn a_hand_over_on_a_gpu_says_how_long_the_reading_of_the_gpu_took() {
    let (server, mut events, mut gate, _) = Place::new().with_gpus(1).start_with_a_job("exit 0").await;
    let next = server.submit(sh("exit 0")).await;
    gate.open();
    assert_eq!(events.end_of(next.id()).await, "completed");
    let handover = server.job(next.id()).await.json["handover"].clone();
    let part = |name: &str| handover["parts"][name].as_f64().unwrap_or_else(|| panic!("{name} of {handover}"));
    let sum = part("end_to_go") + part("gpu_read") + part("go_to_exec");
    let gap = handover["gap_seconds"].as_f64().expect("a gap");
    assert!((gap - sum).abs() < 1e-6, "{handover}");
}

#[tokio::test]
async fn a_gpu_that_the_driver_has_not_given_back_goes_to_nobody_until_it_is() {
    let (server, mut events, mut gate, first) = Place::new().with_gpus(1).start_with_a_job("exit 0").await;
    let next = server.submit(sh("exit 0")).await;
    let dead = dead_pid();
    server.place().change_gpus(|machine| machine.gpus[0].processes.push(Process { pid: dead, memory: Some(GIB) }));
    gate.open();
    assert_eq!(events.end_of(first.id()).await, "completed");
    event(&mut events, "gpu.blocked").await;
    let waiting = server.job(next.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("gpu_not_released")));
    let late = event(&mut events, "gpu.not_released").await;
    assert!(late["reason"]["message"].as_str().is_some_and(|text| text.contains(&dead.to_string())), "{late}");
    server.place().change_gpus(|machine| machine.gpus[0].processes.clear());
    assert_eq!(events.end_of(next.id()).await, "completed");
}

#[tokio::test]
async fn what_a_job_used_of_its_gpus_is_counted_through_a_restart() {
    let place = Place::new().with_gpus(2);
    place.change_gpus(|machine| machine.gpus.iter_mut().for_each(|gpu| gpu.energy = Some(1_000_000)));
    let server = place.start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let mut gate = Gate::new(server.place().path(), "gate");
    let job = server.submit(with(sh(&format!("{}; {}", bell.ring("$$"), gate.wait())), json!({"gpus": 2}))).await;
    let pid = u32::try_from(bell.pid().await).expect("a process id");
    let busy = |gpu: &mut Gpu, memory: u64| {
        gpu.processes = vec![Process { pid, memory: Some(memory) }];
        (gpu.utilization, gpu.power, gpu.temperature) = (50, 300_000, 70);
        gpu.energy = Some(1_500_000);
    };
    server.place().change_gpus(|machine| {
        busy(&mut machine.gpus[0], 10 * GIB);
        busy(&mut machine.gpus[1], 20 * GIB);
    });
    let of = |gib: u64| move |sample: &Value| sample["memory_used_bytes"].as_u64() == Some(gib * GIB);
    server.sample("GPU-fake-0", of(10)).await;
    let sample = server.sample("GPU-fake-1", of(20)).await;
    assert_eq!((&sample["power_watts"], &sample["temperature_celsius"]), (&json!(300.0), &json!(70.0)));
    assert_eq!(server.gpu(0).await["processes"][0]["ours"], true);

    let server = server.kill().await.start().await;
    events.resume(&server).await;
    server.place().change_gpus(|machine| {
        for gpu in &mut machine.gpus {
            busy(gpu, GIB);
            gpu.energy = Some(3_000_000);
        }
    });
    server.sample("GPU-fake-0", of(1)).await;
    server.place().change_gpus(|machine| machine.gpus.iter_mut().for_each(|gpu| gpu.processes.clear()));
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    let usage = server.job(job.id()).await.json["usage"].clone();
    assert_eq!(usage["energy_joules"], 4000.0, "{usage}");
    assert_eq!(usage["peak_gpu_memory_bytes"], 30 * GIB, "{usage}");
    let wall = usage["wall_seconds"].as_f64().expect("a wall time");
    assert_eq!(usage["gpu_seconds"].as_f64(), Some(2.0 * wall), "{usage}");
    let share = usage["mean_gpu_utilization"].as_f64().expect("a share");
    assert!(share > 0.0 && share <= 0.5, "{usage}");
    let metrics = server.get(&format!("/jobs/{}/metrics", job.id())).await.expect(200).json();
    let gpus = metrics["gpus"].as_array().expect("GPUs");
    let uuids: Vec<&str> = gpus.iter().filter_map(|gpu| gpu["uuid"].as_str()).collect();
    assert_eq!(uuids, ["GPU-fake-0", "GPU-fake-1"], "{metrics}");
    let before_and_after = |gib: u64| gpus[0]["samples"].as_array().is_some_and(|samples| samples.iter().any(of(gib)));
    assert!(before_and_after(10) && before_and_after(1), "{metrics}");
}

#[tokio::test]
async fn a_job_on_a_virtual_slot_has_used_no_gpu() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let usage = server.job(job.id()).await.json["usage"].clone();
    assert!(usage["gpu_seconds"].is_null() && usage["energy_joules"].is_null(), "{usage}");
    let slot = server.gpu(0).await;
    assert_eq!((&slot["label"], &slot["uuid"], &slot["state"]), (&json!("slot 0"), &Value::Null, &json!("free")));
}

#[tokio::test]
async fn the_instances_of_a_gpu_that_is_cut_are_slots_of_their_own() {
    let place = Place::new().with_gpus(1);
    let instance = |uuid: &str| Mig { uuid: uuid.into(), memory_total: 40 * GIB, processes: Vec::new() };
    place.change_gpus(|machine| machine.gpus[0].mig = Some(vec![instance("MIG-a"), instance("MIG-b")]));
    let server = place.start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!("{}; {}", bell.ring("$CUDA_VISIBLE_DEVICES"), gate.wait());
    let a = server.submit(sh(&script)).await;
    assert_eq!(bell.heard().await, "MIG-a");
    server.submit(sh(&script)).await;
    assert_eq!(bell.heard().await, "MIG-b");
    let gpu = server.gpu(1).await;
    assert_eq!((&gpu["label"], &gpu["instance"]), (&json!("GPU 0 instance 1"), &json!(1)));
    assert_eq!(gpu["memory_total_bytes"], 40 * GIB);

    // An error is the whole GPU's.
    server.place().change_gpus(|machine| machine.gpus[0].xids.push(95));
    let other = |event: &taxiway_tests::Event| event.kind == "gpu.quarantined" && event.json["uuid"] == "MIG-b";
    events.wait_for(other).await;
    gate.open();
    gate.open();
    assert_eq!(events.end_of(a.id()).await, "completed", "it ended well all the same");
}
