//! GPUs, and samples of them.

use serde::{Deserialize, Serialize};
use taxiway_job::{JobId, Reason};

use crate::gpu::{self, Sample};
use crate::queue::{SlotStanding, SlotState};

/// One slot of `GET /gpus`: a GPU, or the virtual slot of a machine without any. What does not apply or cannot be read is null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gpu {
    /// What people call it: `GPU 0`.
    pub label: String,
    /// NVML's index of the GPU.
    pub index: Option<u32>,
    /// For an instance (MIG), NVML's index of it on its GPU.
    pub instance: Option<u32>,
    /// The UUID that jobs are given.
    pub uuid: Option<String>,
    /// Product name.
    pub name: Option<String>,
    /// Whether a job can have it.
    pub state: SlotState,
    /// Why not, beside that a job holds it.
    pub reason: Option<Reason>,
    /// The job that holds it.
    pub job_id: Option<JobId>,
    /// Bytes.
    pub memory_total_bytes: Option<u64>,
    /// Bytes.
    pub memory_free_bytes: Option<u64>,
    /// Share of the last moment in which it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// Watts.
    pub power_watts: Option<f64>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// CUDA compute capability, like `9.0`.
    pub compute_capability: Option<String>,
    /// The driver's version.
    pub driver_version: Option<String>,
    /// `00000000:3B:00.0`
    pub pci_bus_id: Option<String>,
    /// Who computes there.
    pub processes: Vec<GpuProcess>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its id.
    pub pid: i32,
    /// The file name of its program.
    pub program: Option<String>,
    /// GPU memory that it holds, in bytes.
    pub memory_bytes: Option<u64>,
    /// Whether it belongs to a job of this service that runs.
    pub ours: bool,
}

impl Gpu {
    /// A slot as the queue has it and as NVML shows it.
    #[must_use]
    pub fn new(slot: SlotStanding, read: Option<(gpu::Gpu, Result<gpu::Status, gpu::ReadError>)>) -> Self {
        let mut shown = Self {
            label: slot.label,
            index: None,
            instance: None,
            uuid: slot.uuid,
            name: None,
            state: slot.state,
            reason: slot.reason,
            job_id: slot.job,
            memory_total_bytes: None,
            memory_free_bytes: None,
            utilization: None,
            power_watts: None,
            temperature_celsius: None,
            compute_capability: None,
            driver_version: None,
            pci_bus_id: None,
            processes: Vec::new(),
            error: None,
        };
        let Some((gpu, read)) = read else { return shown };
        let (major, minor) = gpu.compute_capability;
        shown.index = Some(gpu.index);
        shown.instance = gpu.instance.map(|(index, _)| index);
        shown.name = Some(gpu.name);
        shown.memory_total_bytes = Some(gpu.memory_total_bytes);
        shown.compute_capability = Some(format!("{major}.{minor}"));
        shown.driver_version = Some(gpu.driver_version);
        shown.pci_bus_id = gpu.pci_bus_id;
        match read {
            Ok(status) => {
                shown.memory_free_bytes = Some(status.memory_free_bytes);
                shown.utilization = status.utilization;
                shown.power_watts = status.power_watts;
                shown.temperature_celsius = status.temperature_celsius;
                let process = |process: gpu::Process| GpuProcess {
                    pid: process.pid,
                    program: process.program,
                    memory_bytes: process.bytes,
                    ours: process.launch.is_some(),
                };
                shown.processes = status.processes.into_iter().map(process).collect();
            }
            Err(error) => shown.error = Some(error.to_string()),
        }
        shown
    }
}

/// `GET /gpus/{uuid}/metrics`, and the GPUs of `GET /jobs/{id}/metrics`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GpuSeries {
    /// The GPU.
    pub uuid: String,
    /// Samples, the first one first.
    pub samples: Vec<Sample>,
}
