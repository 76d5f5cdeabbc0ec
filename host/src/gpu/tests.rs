use std::sync::{Arc, Mutex};

use super::nvml::{ComputeProcess, Counters, Found, Memory, Sensors, Source, Unread};
use super::*;

const GIB: u64 = 1 << 30;

#[derive(Clone, Default)]
struct FakeReadings {
    gpus: Vec<Gpu>,
    /// Indexes of GPUs that cannot be read.
    unreadable: Arc<Mutex<Vec<u32>>>,
    processes: Arc<Mutex<Vec<(String, ComputeProcess)>>>,
    lost: Arc<Mutex<bool>>,
    counters: Arc<Mutex<Counters>>,
    faults: Arc<Mutex<Vec<Fault>>>,
}

impl FakeReadings {
    fn there<T>(&self, value: T) -> Result<T, ReadError> {
        if *self.lost.lock().unwrap() { Err(ReadError::Gone) } else { Ok(value) }
    }
}

impl Readings for FakeReadings {
    fn gpus(&self) -> Result<Found, ReadError> {
        let unreadable = self.unreadable.lock().unwrap();
        let mut found = Found::default();
        for gpu in self.gpus.iter().cloned() {
            match unreadable.contains(&gpu.index) {
                true => found.unread.push(unread(gpu.index, None)),
                false => found.gpus.push(gpu),
            }
        }
        Ok(found)
    }

    fn memory(&self, uuid: &str) -> Result<Memory, ReadError> {
        let used: u64 = self.compute_processes(uuid)?.iter().filter_map(|process| process.bytes).sum();
        self.there(Memory { total: 80 * GIB, free: 80 * GIB - used })
    }

    fn compute_processes(&self, uuid: &str) -> Result<Vec<ComputeProcess>, ReadError> {
        let processes = self.processes.lock().unwrap();
        self.there(processes.iter().filter(|(on, _)| on == uuid).map(|(_, process)| *process).collect())
    }

    fn counters(&self, _: &str) -> Result<Counters, ReadError> {
        self.there(*self.counters.lock().unwrap())
    }

    fn sensors(&self, _: &str) -> Result<Sensors, ReadError> {
        self.there(Sensors { power_watts: Some(250.0), temperature_celsius: Some(50) })
    }

    fn faults(&self) -> Vec<Fault> {
        std::mem::take(&mut self.faults.lock().unwrap())
    }
}

impl Source for FakeReadings {
    fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
        serve(Ok(self));
    }
}

fn unread(index: u32, uuid: Option<&str>) -> Unread {
    Unread { index, uuid: uuid.map(str::to_owned), error: ReadError::Nvml("uninitialized".into()) }
}

fn gpu(index: u32, uuid: &str) -> Gpu {
    Gpu {
        index,
        instance: None,
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

async fn inventory(settings: Settings, readings: &FakeReadings) -> Inventory {
    Inventory::with_source(settings, readings.clone()).await.unwrap()
}

/// What is in the way on each of these GPUs.
async fn in_the_way(inventory: &Inventory, uuids: &[String], ours: &[LaunchId]) -> Vec<Option<NotFree>> {
    inventory.look(uuids, ours, false).await.gpus.into_iter().map(|look| look.state.err()).collect()
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
    let one = Inventory::open(none.clone()).await.unwrap();
    assert_eq!(one.slots(), [SlotGpu::Virtual { index: 0 }]);
    assert_eq!(one.look(&["GPU-0".into()], &[], false).await, Looked::default());
    assert!(one.views_at_submit().await.is_empty());
    let three = Inventory::open(Settings { slots: Some(3), ..none }).await.unwrap();
    assert_eq!(three.slot_count(), 3);
}

#[tokio::test]
async fn a_library_that_is_named_must_load() {
    let named = Settings { nvml_library: Some("/nonexistent/libnvidia-ml.so".into()), ..Settings::default() };
    assert!(matches!(Inventory::open(named).await, Err(OpenError::Library { .. })));
}

/// NVML is installed, and its driver is another version's until that is mended.
#[derive(Clone)]
struct Mismatched {
    mended: Arc<Mutex<bool>>,
    then: FakeReadings,
}

impl Source for Mismatched {
    fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
        let mended = *self.mended.lock().unwrap();
        serve(if mended { Ok(&self.then) } else { Err(ReadError::Nvml("version mismatch".into())) });
    }
}

fn mismatched(then: FakeReadings) -> Mismatched {
    Mismatched { mended: Arc::default(), then }
}

#[tokio::test]
async fn gpus_that_cannot_be_counted_are_not_taken_for_none_and_are_counted_once_they_can_be() {
    let nvml = mismatched(two_gpus());
    let inventory = Inventory::with_source(settings(&["1"]), nvml.clone()).await.unwrap();
    assert_eq!((inventory.slot_count(), inventory.are_counted()), (0, false));
    assert!(inventory.missing()[0].why.contains("version mismatch"));
    inventory.count().await;
    assert!(!inventory.are_counted());
    *nvml.mended.lock().unwrap() = true;
    inventory.count().await;
    assert_eq!((uuids(&inventory), inventory.are_counted()), (vec!["GPU-aabb-2".to_owned()], true));
    assert_eq!(in_the_way(&inventory, &uuids(&inventory), &[]).await, [None]);
}

#[tokio::test]
async fn who_says_that_jobs_run_without_gpus_is_believed_where_they_cannot_be_counted() {
    let told = Settings { slots: Some(2), ..Settings::default() };
    let inventory = Inventory::with_source(told, mismatched(FakeReadings::default())).await.unwrap();
    assert_eq!((inventory.slot_count(), inventory.are_counted()), (2, true));
}

#[tokio::test]
async fn an_nvml_that_works_late_and_shows_no_gpu_or_another_one_is_not_taken_for_a_machine_without() {
    for (only, then) in [(settings(&[]), FakeReadings::default()), (settings(&["7"]), two_gpus())] {
        let nvml = mismatched(then);
        let inventory = Inventory::with_source(only, nvml.clone()).await.unwrap();
        *nvml.mended.lock().unwrap() = true;
        inventory.count().await;
        assert_eq!((inventory.slots(), inventory.are_counted()), (Vec::new(), false));
    }
}

/// What people call the GPUs that are missing.
fn missing(inventory: &Inventory) -> Vec<String> {
    inventory.missing().into_iter().filter_map(|missing| missing.label).collect()
}

#[tokio::test]
async fn a_gpu_that_cannot_be_read_at_the_start_is_missed_and_comes_after_the_others_once_it_can_be() {
    let readings = two_gpus();
    readings.unreadable.lock().unwrap().push(0);
    let inventory = inventory(settings(&[]), &readings).await;
    assert_eq!((uuids(&inventory), missing(&inventory)), (vec!["GPU-aabb-2".into()], vec!["GPU 0".to_owned()]));
    assert!(!inventory.are_counted() && inventory.missing()[0].why.contains("uninitialized"));
    // One that is known and cannot be read just now is not missing.
    readings.unreadable.lock().unwrap().push(1);
    inventory.count().await;
    assert_eq!((uuids(&inventory), missing(&inventory)), (vec!["GPU-aabb-2".into()], vec!["GPU 0".to_owned()]));
    readings.unreadable.lock().unwrap().clear();
    inventory.count().await;
    assert_eq!((uuids(&inventory), inventory.are_counted()), (vec!["GPU-aabb-2".into(), "GPU-aaaa-1".into()], true));
    assert_eq!(in_the_way(&inventory, &uuids(&inventory), &[]).await, [None, None]);
}

/// Two GPUs of which the second alone can be read.
pub(crate) async fn one_of_two_unread() -> Inventory {
    let readings = two_gpus();
    readings.unreadable.lock().unwrap().push(0);
    inventory(settings(&[]), &readings).await
}

#[tokio::test]
async fn a_gpu_that_cannot_be_read_may_be_cut_into_seven_and_of_all_of_them_nobody_knows() {
    assert_eq!(one_of_two_unread().await.most_slots(), Some(1 + 7));
    let none = Inventory::with_source(settings(&[]), mismatched(two_gpus())).await.unwrap();
    assert_eq!(none.most_slots(), None);
    assert_eq!(inventory(settings(&[]), &two_gpus()).await.most_slots(), Some(2));
}

#[test]
fn a_gpu_stays_missing_when_another_one_gets_its_place_in_the_order() {
    let before = counted(&[gpu(1, "GPU-aabb-2")], &[unread(0, None)]);
    let present = [gpu(0, "GPU-aabb-2")];
    let now = before.with(counted(&present, &[unread(1, None)]), &present);
    assert_eq!(now.missing, [Missing::unread(&unread(1, None))]);
    // The other one is gone by now, and this one has got its index.
    let now = before.with(counted(&[], &[unread(1, Some("GPU-aaaa-1"))]), &[]);
    assert_eq!(now.missing, [Missing::unread(&unread(1, Some("GPU-aaaa-1")))]);
    let now = before.with(counted(&[], &[unread(0, Some("GPU-aabb-2"))]), &[]);
    assert_eq!(now.missing, [], "that one is known");
}

fn counted(gpus: &[Gpu], unread: &[Unread]) -> Counted {
    Counted::of(Found { gpus: gpus.to_vec(), unread: unread.to_vec() }, &[]).unwrap()
}

#[test]
fn a_gpu_that_is_cut_or_put_together_while_another_is_missing_makes_no_slots_beside_its_own() {
    let instance = |at| Gpu {
        uuid: format!("MIG-{at}"),
        instance: Some((at, "GPU-aaaa-1".into())),
        mig_enabled: Some(true),
        ..gpu(0, "")
    };
    let (whole, cut, late) = (vec![gpu(0, "GPU-aaaa-1")], vec![instance(0), instance(1)], gpu(1, "GPU-aabb-2"));
    for (before, now) in [(&whole, &cut), (&cut, &whole), (&cut[..1].to_vec(), &cut)] {
        let present: Vec<Gpu> = now.iter().chain([&late]).cloned().collect();
        let counted = counted(before, &[unread(1, None)]).with(counted(&present, &[]), &present);
        let uuids: Vec<&str> = counted.slots.iter().filter_map(SlotGpu::uuid).collect();
        let known: Vec<&str> = before.iter().chain([&late]).map(|gpu| gpu.uuid.as_str()).collect();
        assert_eq!(uuids, known);
    }
}

/// NVML, of which a new session knows nothing of the errors before it.
struct Forgetful(FakeReadings);

impl Source for Forgetful {
    fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
        self.0.faults.lock().unwrap().clear();
        serve(Ok(&self.0));
    }
}

#[tokio::test]
async fn what_nvml_has_to_tell_of_a_gpu_is_not_lost_when_a_new_session_begins() {
    let readings = two_gpus();
    readings.unreadable.lock().unwrap().push(0);
    let inventory = Inventory::with_source(settings(&[]), Forgetful(readings.clone())).await.unwrap();
    let fault = Fault { uuid: "GPU-aabb-2".into(), trouble: Trouble::Xid(79) };
    readings.faults.lock().unwrap().push(fault.clone());
    inventory.count().await;
    assert_eq!(inventory.look(&uuids(&inventory), &[], false).await.faults, std::slice::from_ref(&fault));
    readings.faults.lock().unwrap().push(fault.clone());
    inventory.0.begin_anew.store(true, Ordering::Relaxed);
    assert_eq!(inventory.look(&uuids(&inventory), &[], true).await.faults, [fault]);
}

#[tokio::test]
async fn a_gpu_that_cannot_be_read_is_missed_only_where_the_queue_may_use_it() {
    let readings = two_gpus();
    readings.unreadable.lock().unwrap().push(0);
    for (only, missed) in [
        (&["1"][..], &[][..]),
        (&["GPU-aabb"], &[]),
        (&["0", "1"], &["GPU 0"]),
        (&["0:1", "1"], &["GPU 0"]),
        (&["GPU-aabb", "GPU-aaaa"], &["GPU 0"]),
        (&["0"], &["GPU 0"]),
    ] {
        let inventory = inventory(settings(only), &readings).await;
        assert_eq!(missing(&inventory), missed, "{only:?}");
        assert_eq!(inventory.slot_count(), u32::from(only != ["0"]), "{only:?}");
    }
    let nobody_s = Inventory::with_source(settings(&["7"]), readings).await;
    assert!(matches!(nobody_s, Err(OpenError::UnknownGpus { .. })));
}

#[tokio::test]
async fn gpus_are_chosen_by_index_uuid_or_the_beginning_of_one() {
    let readings = two_gpus();
    for (only, chosen) in [
        (&[][..], &["GPU-aaaa-1", "GPU-aabb-2"][..]),
        (&["1"], &["GPU-aabb-2"]),
        (&["GPU-aaaa-1"], &["GPU-aaaa-1"]),
        (&["gpu-AAB", "7"], &["GPU-aabb-2"]),
        (&["1", "0", "1"], &["GPU-aaaa-1", "GPU-aabb-2"]),
    ] {
        assert_eq!(uuids(&inventory(settings(only), &readings).await), chosen, "{only:?}");
    }
    let refused = async |only: &[&str]| {
        Inventory::with_source(settings(only), two_gpus()).await.err().expect("refused").to_string()
    };
    assert!(refused(&["7"]).await.contains("0 (GPU-aaaa-1), 1 (GPU-aabb-2)"));
    assert!(refused(&["GPU-aa"]).await.contains("more than one"));
    let no_gpus = Inventory::with_source(settings(&["0"]), FakeReadings::default()).await;
    assert!(matches!(no_gpus, Err(OpenError::NoGpus { .. })));
}

#[tokio::test]
async fn instances_are_chosen_alone_or_with_their_whole_gpu() {
    let instance = |at: u32, uuid: &str| Gpu { instance: Some((at, "GPU-cut-0".into())), ..gpu(0, uuid) };
    let readings = FakeReadings {
        gpus: vec![instance(0, "MIG-a"), instance(1, "MIG-b"), gpu(1, "GPU-aabb-2")],
        ..FakeReadings::default()
    };
    for (only, chosen) in [
        (&["0"][..], &["MIG-a", "MIG-b"][..]),
        (&["0:1"], &["MIG-b"]),
        (&["GPU-cut"], &["MIG-a", "MIG-b"]),
        (&["MIG-b"], &["MIG-b"]),
    ] {
        assert_eq!(uuids(&inventory(settings(only), &readings).await), chosen, "{only:?}");
    }
}

#[tokio::test]
async fn a_stranger_on_the_gpu_is_named_and_an_ignored_program_is_not_in_the_way() {
    let me = std::process::id().cast_signed();
    let program = process::program(me).expect("this test's own file");
    let readings = two_gpus();
    readings.processes.lock().unwrap().push(("GPU-aaaa-1".into(), ComputeProcess { pid: me, bytes: Some(3 * GIB) }));
    let both = inventory(settings(&[]), &readings).await;

    let found = in_the_way(&both, &uuids(&both), &[]).await;
    let stranger =
        NotFree::InUse { gpu: "GPU 0".into(), pid: me, program: Some(program.clone()), bytes: Some(3 * GIB) };
    assert_eq!(found, [Some(stranger.clone()), None]);
    let reason = stranger.reason();
    assert_eq!(reason.code, "gpu_in_use_by_others");
    let told = format!("GPU 0 is in use by {program} (pid {me}, 3221225472 bytes (3.0 GiB))");
    assert!(reason.message.contains(&told), "{}", reason.message);

    let ignoring = inventory(Settings { ignore: vec![program], ..settings(&[]) }, &readings).await;
    assert_eq!(in_the_way(&ignoring, &uuids(&ignoring), &[]).await, [None, None]);
}

#[tokio::test]
async fn a_process_that_has_ended_and_is_still_listed_was_not_released() {
    let readings = two_gpus();
    readings.processes.lock().unwrap().push(("GPU-aaaa-1".into(), ComputeProcess { pid: i32::MAX, bytes: None }));
    let both = inventory(settings(&[]), &readings).await;
    let found = in_the_way(&both, &uuids(&both), &[]).await;
    assert_eq!(found[0], Some(NotFree::NotReleased { gpu: "GPU 0".into(), pid: i32::MAX, bytes: None }));
}

#[tokio::test]
async fn too_little_free_memory_is_told_with_both_numbers() {
    let readings = two_gpus();
    let mut job = a_job(LaunchId::random());
    let hog = ComputeProcess { pid: job.id().cast_signed(), bytes: Some(79 * GIB) };
    readings.processes.lock().unwrap().push(("GPU-aaaa-1".into(), hog));
    let settings = Settings { min_free_memory: 4 * GIB, ignore: vec!["cat".into()], ..settings(&[]) };
    let inventory = inventory(settings, &readings).await;
    let found = in_the_way(&inventory, &uuids(&inventory), &[]).await;
    let reason = found[0].as_ref().expect("too little is free").reason();
    assert_eq!(reason.code, "gpu_memory_low");
    assert!(reason.message.contains("1.0 GiB free and gpu.min_free_memory asks for 4.0 GiB"), "{}", reason.message);
    end(&mut job);
}

#[tokio::test]
async fn a_gpu_that_fell_off_the_bus_is_not_free() {
    let readings = two_gpus();
    let inventory = inventory(settings(&[]), &readings).await;
    *readings.lost.lock().unwrap() = true;
    let found = in_the_way(&inventory, &uuids(&inventory), &[]).await;
    assert_eq!(found[0].as_ref().expect("it is gone").reason().code, "gpus_unavailable");
    assert!(inventory.views(&uuids(&inventory)).await.is_err());
    assert_eq!(inventory.views_at_submit().await.len(), 2, "submissions go on");
}

/// A process of a job of this service, until [`end`].
fn a_job(launch: LaunchId) -> std::process::Child {
    std::process::Command::new("/bin/cat")
        .env("TAXIWAY_JOB_DIR", "/srv/jobs/0193")
        .env("TAXIWAY_LAUNCH_ID", launch.to_string())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(job: &mut std::process::Child) {
    drop(job.stdin.take());
    job.wait().unwrap();
}

#[tokio::test]
async fn memory_that_a_job_holds_counts_as_free_and_that_of_a_stranger_does_not() {
    let readings = two_gpus();
    let launch = LaunchId::random();
    let mut job = a_job(launch);
    let me = std::process::id().cast_signed();
    readings.processes.lock().unwrap().extend([
        ("GPU-aaaa-1".into(), ComputeProcess { pid: job.id().cast_signed(), bytes: Some(10 * GIB) }),
        ("GPU-aabb-2".into(), ComputeProcess { pid: me, bytes: Some(20 * GIB) }),
    ]);
    let inventory = inventory(Settings { jobs_dir: "/srv/jobs".into(), ..settings(&[]) }, &readings).await;
    let free: Vec<u64> = inventory.views_at_submit().await.iter().map(|view| view.memory_free / GIB).collect();
    assert_eq!(free, [80, 60]);

    let first = &uuids(&inventory)[..1];
    assert_eq!(in_the_way(&inventory, first, &[launch]).await, [None], "its launch goes on");
    let found = in_the_way(&inventory, first, &[LaunchId::random()]).await;
    assert!(matches!(found[0], Some(NotFree::InUse { .. })), "its launch is over");
    end(&mut job);
}

#[tokio::test]
async fn what_a_launch_used_is_known_when_it_is_over_and_so_is_what_went_wrong() {
    let place = tempfile::tempdir().unwrap();
    let (job, launch) = (JobId::new(), LaunchId::random());
    let readings = two_gpus();
    *readings.counters.lock().unwrap() = Counters { utilization: Some(0.5), energy_millijoules: Some(1000) };
    let inventory = inventory(Settings { jobs_dir: place.path().into(), ..settings(&[]) }, &readings).await;
    std::fs::create_dir_all(inventory.0.launch_dir(job, launch)).unwrap();
    let both = uuids(&inventory);
    inventory.look(&both, &[], false).await;
    inventory.hold(job, launch, &both, false);
    *readings.counters.lock().unwrap() = Counters { utilization: Some(0.5), energy_millijoules: Some(4000) };
    readings.faults.lock().unwrap().extend([
        Fault { uuid: "GPU-aabb-2".into(), trouble: Trouble::Xid(31) },
        Fault { uuid: "GPU-aabb-2".into(), trouble: Trouble::Xid(79) },
    ]);
    let Released { measured, .. } = inventory.release(launch, &both, &[]).await;
    assert_eq!(measured.energy_joules, Some(6.0));
    assert_eq!(measured.mean_gpu_utilization, Some(0.5));
    assert_eq!(measured.peak_gpu_memory_bytes, None, "no process of it was ever listed");
    assert_eq!(measured.faults, [Fault { uuid: "GPU-aabb-2".into(), trouble: Trouble::Xid(79) }]);
    let series = inventory.series(job, launch).unwrap();
    assert_eq!(series.iter().map(|(uuid, _)| uuid.as_str()).collect::<Vec<_>>(), ["GPU-aaaa-1", "GPU-aabb-2"]);
}

#[tokio::test]
async fn a_fault_that_nvml_told_to_somebody_who_had_given_up_is_told_to_the_next_and_only_to_that_one() {
    let place = tempfile::tempdir().unwrap();
    let (job, launch) = (JobId::new(), LaunchId::random());
    let readings = two_gpus();
    let inventory = inventory(Settings { jobs_dir: place.path().into(), ..settings(&[]) }, &readings).await;
    std::fs::create_dir_all(inventory.0.launch_dir(job, launch)).unwrap();
    let both = uuids(&inventory);
    let fault = |xid| Fault { uuid: "GPU-aabb-2".into(), trouble: Trouble::Xid(xid) };
    // What the thread found out and could not hand to anybody.
    readings.faults.lock().unwrap().push(fault(48));
    drop(inventory.0.look(&readings, &both, &[]));
    assert_eq!(inventory.look(&both, &[], false).await.faults, [fault(48)]);
    assert_eq!(inventory.look(&both, &[], false).await.faults, []);

    inventory.hold(job, launch, &both, false);
    readings.faults.lock().unwrap().push(fault(79));
    drop(inventory.0.sample(&readings));
    let Released { looked, measured } = inventory.release(launch, &both, &[]).await;
    assert_eq!((looked.faults, measured.faults), (vec![fault(79)], vec![fault(79)]));
    assert_eq!(inventory.look(&both, &[], false).await.faults, []);
}
