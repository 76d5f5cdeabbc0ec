//! Every GPU as it is now, for people.

use taxiway_job::LaunchId;

use super::look::Reading;
use super::nvml::{Counters, Gpu, Readings, Sensors};
use super::{Inner, Inventory, ReadError, process};

/// A GPU as it is now.
#[derive(Debug, Clone)]
pub struct Status {
    /// The GPU.
    pub gpu: Gpu,
    /// Bytes that are free.
    pub memory_free_bytes: u64,
    /// Share of the last moment in which it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// Watts.
    pub power_watts: Option<f64>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Who computes on it.
    pub processes: Vec<Process>,
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// The file name of its program, where it can be seen.
    pub program: Option<String>,
    /// GPU memory that it holds, in bytes, where NVML says.
    pub bytes: Option<u64>,
    /// The launch of this service that it belongs to.
    pub launch: Option<LaunchId>,
}

impl Inventory {
    /// Every usable GPU as it is now, or why it cannot be read. Empty where slots are virtual.
    pub async fn status(&self) -> Vec<(Gpu, Result<Status, ReadError>)> {
        let Some(reader) = &self.0.reader else { return Vec::new() };
        let inner = self.0.clone();
        let asked = reader.ask(move |readings| {
            let each = |gpu: &Gpu| (gpu.clone(), inner.status(readings, gpu));
            Ok::<_, ReadError>(inner.counted().gpus.iter().map(each).collect())
        });
        asked
            .await
            .unwrap_or_else(|error| self.0.counted().gpus.iter().map(|gpu| (gpu.clone(), Err(error.clone()))).collect())
    }
}

impl Inner {
    fn status(&self, readings: &dyn Readings, gpu: &Gpu) -> Result<Status, ReadError> {
        let Reading { memory, processes } = Reading::of(readings, gpu)?;
        let Counters { utilization, .. } = readings.counters(&gpu.uuid)?;
        let Sensors { power_watts, temperature_celsius } = readings.sensors(&gpu.uuid)?;
        let processes = processes.into_iter().map(|found| Process {
            pid: found.pid,
            program: process::program(found.pid),
            bytes: found.bytes,
            launch: self.conditions.processes.launch_of(found.pid),
        });
        Ok(Status {
            gpu: gpu.clone(),
            memory_free_bytes: memory.free,
            utilization,
            power_watts,
            temperature_celsius,
            processes: processes.collect(),
        })
    }
}
