//! Looking at GPUs: are they free, and what is wrong with them?

use taxiway_job::LaunchId;

use super::account::Metered;
use super::fault::Fault;
use super::not_free::NotFree;
use super::nvml::{ComputeProcess, Gpu, Memory, ReadError, Readings, Sensors};
use super::process::{self, Processes};

/// One GPU as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The GPU.
    pub uuid: String,
    /// Whether a job could start there.
    pub state: Result<(), NotFree>,
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Each GPU that was looked at.
    pub gpus: Vec<Look>,
    /// What is wrong with any GPU, if it was not told before.
    pub faults: Vec<Fault>,
}

/// What makes a GPU free.
pub(super) struct Conditions {
    /// `gpu.min_free_memory`, in bytes.
    pub(super) min_free_memory: u64,
    /// `gpu.ignore`.
    pub(super) ignore: Vec<String>,
    pub(super) processes: Processes,
}

/// A GPU as NVML shows it.
pub(super) struct Reading {
    pub(super) memory: Memory,
    pub(super) processes: Vec<ComputeProcess>,
}

impl Reading {
    pub(super) fn of(readings: &dyn Readings, gpu: &Gpu) -> Result<Self, ReadError> {
        Ok(Self { memory: readings.memory(&gpu.uuid)?, processes: readings.compute_processes(&gpu.uuid)? })
    }
}

impl Conditions {
    /// Whether a job could start on a GPU: no process is there but those of the launches in `ours`, and enough memory is free.
    pub(super) fn check(&self, gpu: &Gpu, reading: &Reading, ours: &[LaunchId]) -> Result<(), NotFree> {
        for ComputeProcess { pid, bytes } in &reading.processes {
            let (pid, bytes) = (*pid, *bytes);
            if !process::exists(pid) {
                return Err(NotFree::NotReleased { gpu: gpu.to_string(), pid, bytes });
            }
            if self.processes.launch_of(pid).is_some_and(|launch| ours.contains(&launch)) {
                continue;
            }
            let program = process::program(pid);
            if program.as_ref().is_some_and(|program| self.ignore.contains(program)) {
                continue;
            }
            return Err(NotFree::InUse { gpu: gpu.to_string(), pid, program, bytes });
        }
        let (free, wanted) = (reading.memory.free, self.min_free_memory);
        if free < wanted {
            return Err(NotFree::LowMemory { gpu: gpu.to_string(), free, wanted });
        }
        Ok(())
    }

    /// What this launch uses of a GPU, and how that is. `sensors` are asked for charts only.
    pub(super) fn metered(
        &self,
        readings: &dyn Readings,
        gpu: &Gpu,
        reading: &Reading,
        launch: Option<LaunchId>,
        sensors: bool,
    ) -> Result<Metered, ReadError> {
        let of_launch = reading
            .processes
            .iter()
            .filter(|process| launch.is_some() && self.processes.launch_of(process.pid) == launch);
        let bytes: Vec<u64> = of_launch.filter_map(|process| process.bytes).collect();
        Ok(Metered {
            counters: readings.counters(&gpu.uuid)?,
            sensors: if sensors { readings.sensors(&gpu.uuid)? } else { Sensors::default() },
            memory_used: Some(reading.memory.total.saturating_sub(reading.memory.free)),
            memory_of_launch: (!bytes.is_empty()).then(|| bytes.iter().sum()),
        })
    }
}
