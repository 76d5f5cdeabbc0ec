//! The library as the service loads it: by its file, through nvml-wrapper.

use std::path::PathBuf;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use taxiway_fake_nvml::{FILE_VARIABLE, Machine, Mig, Process};

fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its file");
    test.parent().expect("it is in a directory").join("libtaxiway_fake_nvml.so")
}

// One test: the file's name is the whole process's.
#[test]
fn the_wrapper_reads_what_the_file_says_and_what_it_says_next() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("machine.json");
    // SAFETY: no other thread of this test reads or changes the environment.
    unsafe { std::env::set_var(FILE_VARIABLE, &file) };
    let mut machine = Machine::with_gpus(2);
    machine.gpus[0].processes = vec![Process { pid: 7, memory: Some(1 << 30) }, Process { pid: 8, memory: None }];
    machine.gpus[1].mig = Some(vec![Mig { uuid: "MIG-a".into(), memory_total: 10 << 30, processes: Vec::new() }]);
    machine.write(&file).expect("written");

    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().expect("it loads");
    assert_eq!(nvml.device_count().expect("counted"), 2);
    assert_eq!(nvml.sys_driver_version().expect("known"), machine.driver_version);
    let gpu = nvml.device_by_uuid("GPU-fake-0").expect("it is there");
    assert_eq!(gpu.index().expect("known"), 0);
    let memory = gpu.memory_info().expect("known");
    assert_eq!((memory.total, memory.free), (80 << 30, 79 << 30));
    let processes = gpu.running_compute_processes().expect("known");
    assert_eq!(processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [7, 8]);
    assert!(matches!(processes[0].used_gpu_memory, UsedGpuMemory::Used(bytes) if bytes == 1 << 30));
    assert!(matches!(processes[1].used_gpu_memory, UsedGpuMemory::Unavailable));
    assert_eq!(gpu.temperature(TemperatureSensor::Gpu).expect("known"), 30);
    assert_eq!(gpu.pci_info().expect("known").bus_id, "00000000:01:00.0");
    assert!(matches!(gpu.mig_mode(), Err(NvmlError::NotSupported)));

    let cut = nvml.device_by_index(1).expect("it is there");
    assert_eq!(cut.mig_mode().expect("known").current, 1);
    let instance = cut.mig_device_by_index(0).expect("it is there");
    assert_eq!(instance.uuid().expect("known"), "MIG-a");
    assert_eq!(instance.memory_info().expect("known").total, 10 << 30);
    assert!(matches!(instance.utilization_rates(), Err(NvmlError::NotSupported)));
    assert_eq!(instance.mig_parent_device().expect("known").uuid().expect("known"), "GPU-fake-1");
    assert!(matches!(cut.mig_device_by_index(1), Err(NvmlError::NotFound)));

    let set = nvml.create_event_set().expect("a set");
    let set = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, set).expect("registered");
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    machine.gpus[0].xids.push(79);
    machine.gpus[0].errors.insert("nvmlDeviceGetPowerUsage".into(), 999);
    machine.hangs.insert("nvmlDeviceGetCount_v2".into());
    machine.write(&file).expect("written");
    let event = set.wait(60_000).expect("an event");
    assert!(matches!(event.event_data, Some(XidError::Value(79))));
    assert!(matches!(gpu.power_usage(), Err(NvmlError::Unknown)));

    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| nvml.device_count());
        machine.hangs.clear();
        machine.gpus[0].lost = true;
        machine.write(&file).expect("written");
        assert_eq!(hanging.join().expect("it returns").expect("counted"), 2);
    });
    assert!(matches!(gpu.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_uuid("GPU-fake-9"), Err(NvmlError::NotFound)));
}
