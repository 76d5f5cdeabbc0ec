use std::sync::{Arc, Mutex};

use super::*;

const GIB: u64 = 1 << 30;

#[derive(Clone, Default)]
struct FakeReadings {
    gpus: Vec<Gpu>,
    processes: Arc<Mutex<Vec<(String, ComputeProcess)>>>,
    lost: Arc<Mutex<bool>>,
}

impl Readings for FakeReadings {
    fn gpus(&self) -> Result<Vec<Gpu>, ReadError> {
        Ok(self.gpus.clone())
    }

    fn memory(&self, uuid: &str) -> Result<Memory, ReadError> {
        if *self.lost.lock().unwrap() {
            return Err(ReadError::Gone);
        }
        let used: u64 = self.compute_processes(uuid)?.iter().filter_map(|process| process.bytes).sum();
        Ok(Memory { total: 80 * GIB, free: 80 * GIB - used })
    }

    fn compute_processes(&self, uuid: &str) -> Result<Vec<ComputeProcess>, ReadError> {
        if *self.lost.lock().unwrap() {
            return Err(ReadError::Gone);
        }
        let processes = self.processes.lock().unwrap();
        Ok(processes.iter().filter(|(on, _)| on == uuid).map(|(_, process)| *process).collect())
    }
}

fn gpu(index: u32, uuid: &str) -> Gpu {
    Gpu {
        index,
        uuid: uuid.into(),
        name: "Test GPU".into(),
        memory_total_bytes: 80 * GIB,
        memory_free_bytes: 80 * GIB,
        compute_capability: (9, 0),
        driver_version: "570.1".into(),
        pci_bus_id: None,
        mig_enabled: None,
    }
}

fn two_gpus() -> FakeReadings {
    FakeReadings { gpus: vec![gpu(0, "GPU-aaaa-1"), gpu(1, "GPU-aabb-2")], ..FakeReadings::default() }
}

fn inventory(settings: Settings, readings: &FakeReadings) -> Inventory {
    Inventory::with_readings(settings, Box::new(readings.clone())).unwrap()
}

fn uuids(inventory: &Inventory) -> Vec<String> {
    inventory.slots().iter().filter_map(|slot| slot.uuid().map(str::to_owned)).collect()
}

fn settings(only: &[&str]) -> Settings {
    Settings { only: only.iter().map(|name| (*name).to_owned()).collect(), ..Settings::default() }
}

#[tokio::test]
async fn a_machine_without_gpus_has_one_virtual_slot_unless_told_otherwise() {
    let none = Settings { nvml_library: Some(PathBuf::new()), ..Settings::default() };
    let one = Inventory::open(none.clone()).unwrap();
    assert_eq!(one.slots(), [SlotGpu::Virtual { index: 0 }]);
    assert_eq!(one.check_free(&[], &[]).await, Ok(()));
    assert!(one.views_at_submit().await.is_empty());
    let three = Inventory::open(Settings { slots: Some(3), ..none }).unwrap();
    assert_eq!(three.slot_count(), 3);
}

#[test]
fn a_library_that_is_named_must_load() {
    let named = Settings { nvml_library: Some("/nonexistent/libnvidia-ml.so".into()), ..Settings::default() };
    assert!(matches!(Inventory::open(named), Err(OpenError::Library { .. })));
}

#[test]
fn gpus_are_chosen_by_index_uuid_or_the_beginning_of_one() {
    let readings = two_gpus();
    for (only, chosen) in [
        (&[][..], &["GPU-aaaa-1", "GPU-aabb-2"][..]),
        (&["1"], &["GPU-aabb-2"]),
        (&["GPU-aaaa-1"], &["GPU-aaaa-1"]),
        (&["gpu-AAB", "7"], &["GPU-aabb-2"]),
        (&["1", "0", "1"], &["GPU-aaaa-1", "GPU-aabb-2"]),
    ] {
        assert_eq!(uuids(&inventory(settings(only), &readings)), chosen, "{only:?}");
    }
    let refused = |only: &[&str]| {
        Inventory::with_readings(settings(only), Box::new(two_gpus())).err().expect("refused").to_string()
    };
    assert!(refused(&["7"]).contains("0 (GPU-aaaa-1), 1 (GPU-aabb-2)"));
    assert!(refused(&["GPU-aa"]).contains("more than one"));
    let no_gpus = Inventory::with_readings(settings(&["0"]), Box::new(FakeReadings::default()));
    assert!(matches!(no_gpus, Err(OpenError::NoGpus { .. })));
}

#[tokio::test]
async fn a_stranger_on_the_gpu_is_named_and_a_job_or_an_ignored_program_is_not_in_the_way() {
    let me = std::process::id().cast_signed();
    let program = process::program(me).expect("this test's own file");
    let readings = two_gpus();
    readings.processes.lock().unwrap().push(("GPU-aaaa-1".into(), ComputeProcess { pid: me, bytes: Some(3 * GIB) }));
    let both = inventory(settings(&[]), &readings);

    let in_the_way = both.check_free(&uuids(&both), &[]).await.unwrap_err();
    assert_eq!(
        in_the_way,
        NotFree::InUse {
            uuid: "GPU-aaaa-1".into(),
            index: Some(0),
            pid: me,
            program: Some(program.clone()),
            bytes: Some(3 * GIB)
        }
    );
    let reason = in_the_way.reason();
    assert_eq!(reason.code, "gpu_in_use_by_others");
    assert!(
        reason.message.contains(&format!("GPU 0 is in use by {program} (pid {me}, 3.0 GiB)")),
        "{}",
        reason.message
    );

    assert_eq!(both.check_free(&["GPU-aabb-2".into()], &[]).await, Ok(()), "the other GPU is free");
    assert_eq!(both.check_free(&uuids(&both), &[me]).await, Ok(()), "it is a job of ours");
    let ignoring = inventory(Settings { ignore: vec![program], ..settings(&[]) }, &readings);
    assert_eq!(ignoring.check_free(&uuids(&ignoring), &[]).await, Ok(()));
}

#[tokio::test]
async fn too_little_free_memory_is_told_with_both_numbers() {
    let readings = two_gpus();
    let me = std::process::id().cast_signed();
    readings.processes.lock().unwrap().push(("GPU-aaaa-1".into(), ComputeProcess { pid: me, bytes: Some(79 * GIB) }));
    let inventory = inventory(Settings { min_free_memory: 4 * GIB, ..settings(&[]) }, &readings);
    let reason = inventory.check_free(&uuids(&inventory), &[me]).await.unwrap_err().reason();
    assert_eq!(reason.code, "gpu_memory_low");
    assert!(reason.message.contains("1.0 GiB free and gpu.min_free_memory asks for 4.0 GiB"), "{}", reason.message);
}

#[tokio::test]
async fn a_gpu_that_fell_off_the_bus_is_not_free() {
    let readings = two_gpus();
    let inventory = inventory(settings(&[]), &readings);
    *readings.lost.lock().unwrap() = true;
    assert_eq!(inventory.check_free(&uuids(&inventory), &[]).await.unwrap_err().reason().code, "gpus_unavailable");
    assert!(inventory.views(&uuids(&inventory)).await.is_err());
    assert_eq!(inventory.views_at_submit().await.len(), 2, "submissions go on");
}

#[tokio::test]
async fn memory_that_a_job_holds_counts_as_free_and_that_of_a_stranger_does_not() {
    let readings = two_gpus();
    let mut job = std::process::Command::new("/bin/cat")
        .env("TAXIWAY_JOB_DIR", "/srv/jobs/0193")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let me = std::process::id().cast_signed();
    readings.processes.lock().unwrap().extend([
        ("GPU-aaaa-1".into(), ComputeProcess { pid: job.id().cast_signed(), bytes: Some(10 * GIB) }),
        ("GPU-aabb-2".into(), ComputeProcess { pid: me, bytes: Some(20 * GIB) }),
    ]);
    let inventory = inventory(Settings { jobs_dir: "/srv/jobs".into(), ..settings(&[]) }, &readings);
    let free: Vec<u64> = inventory.views_at_submit().await.iter().map(|view| view.memory_free / GIB).collect();
    assert_eq!(free, [80, 60]);
    drop(job.stdin.take());
    job.wait().unwrap();
}
