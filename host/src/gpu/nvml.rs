//! What is read of GPUs, and NVML as the source of it.
//!
//! NVML's own documentation: <https://docs.nvidia.com/deploy/nvml-api/>.

use std::path::Path;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::OpenError;

/// A GPU as found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// NVML's index: the order of the PCI bus.
    pub index: u32,
    /// `GPU-` and a UUID: stable over restarts and order, so what jobs are given.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes.
    pub memory_total_bytes: u64,
    /// Bytes free when it was found.
    pub memory_free_bytes: u64,
    /// CUDA compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// The driver's version.
    pub driver_version: String,
    /// `00000000:3B:00.0`
    pub pci_bus_id: Option<String>,
    /// Whether it is cut into instances (MIG); none where the GPU knows no such thing.
    pub mig_enabled: Option<bool>,
}

/// Memory of a GPU in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub total: u64,
    pub free: u64,
}

/// A process with a compute context on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ComputeProcess {
    pub pid: i32,
    /// GPU memory it holds; none where NVML does not say (in some containers).
    pub bytes: Option<u64>,
}

/// A reading failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// NVML does not know the GPU (any more).
    #[error("the GPU is not there any more")]
    Gone,
    /// NVML's own words.
    #[error("{0}")]
    Nvml(String),
    /// No answer in time: the driver hangs.
    #[error("the driver has not answered for {} s", super::reader::PATIENCE.as_secs())]
    NoAnswer,
    /// The thread that reads has ended.
    #[error("the thread that reads the GPUs has ended")]
    Stopped,
}

impl From<NvmlError> for ReadError {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::GpuLost | NvmlError::NotFound => Self::Gone,
            other => Self::Nvml(other.to_string()),
        }
    }
}

/// What can be read of the machine's GPUs. A call may block.
pub(super) trait Readings: Send {
    /// All GPUs, in the order of their indexes.
    fn gpus(&self) -> Result<Vec<Gpu>, ReadError>;
    /// How much memory a GPU has free.
    fn memory(&self, uuid: &str) -> Result<Memory, ReadError>;
    /// Who computes on it.
    fn compute_processes(&self, uuid: &str) -> Result<Vec<ComputeProcess>, ReadError>;
}

/// Loads NVML: from `library`, where that is given, else the system's. None where there is none: no library, no driver, or a
/// library and a driver that do not fit each other. An empty path means none.
pub(super) fn open(library: Option<&Path>) -> Result<Option<Box<dyn Readings>>, OpenError> {
    let nvml = match library {
        Some(path) if path.as_os_str().is_empty() => return Ok(None),
        Some(path) => Nvml::builder()
            .lib_path(path.as_os_str())
            .init()
            .map_err(|error| OpenError::Library { path: path.to_owned(), source: error.into() })?,
        None => match Nvml::init() {
            Ok(nvml) => nvml,
            Err(error @ (NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded)) => {
                tracing::debug!(%error, "no NVML on this machine");
                return Ok(None);
            }
            Err(error) => {
                // A driver that was updated under a running kernel, most often: jobs that need no GPU can still run.
                tracing::warn!(%error, "NVML is installed and does not work, so this machine counts as one without GPUs");
                return Ok(None);
            }
        },
    };
    Ok(Some(Box::new(Library { nvml })))
}

struct Library {
    nvml: Nvml,
}

impl Library {
    fn gpu(&self, index: u32, driver_version: &str) -> Result<Gpu, NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let memory = device.memory_info()?;
        let capability = device.cuda_compute_capability()?;
        Ok(Gpu {
            index,
            uuid: device.uuid()?,
            name: device.name()?,
            memory_total_bytes: memory.total,
            memory_free_bytes: memory.free,
            compute_capability: (capability.major.unsigned_abs(), capability.minor.unsigned_abs()),
            driver_version: driver_version.to_owned(),
            pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
            mig_enabled: mig_enabled(&device)?,
        })
    }
}

fn mig_enabled(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    match device.mig_mode() {
        Ok(mode) => Ok(Some(mode.current == 1)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Readings for Library {
    fn gpus(&self) -> Result<Vec<Gpu>, ReadError> {
        let driver_version = self.nvml.sys_driver_version()?;
        let mut gpus = Vec::new();
        for index in 0..self.nvml.device_count()? {
            match self.gpu(index, &driver_version) {
                Ok(gpu) => gpus.push(gpu),
                // One broken GPU must not take the others with it.
                Err(error) => tracing::warn!(index, %error, "a GPU cannot be read and is not used"),
            }
        }
        Ok(gpus)
    }

    fn memory(&self, uuid: &str) -> Result<Memory, ReadError> {
        let memory = self.nvml.device_by_uuid(uuid)?.memory_info()?;
        Ok(Memory { total: memory.total, free: memory.free })
    }

    fn compute_processes(&self, uuid: &str) -> Result<Vec<ComputeProcess>, ReadError> {
        let processes = self.nvml.device_by_uuid(uuid)?.running_compute_processes()?;
        Ok(processes
            .into_iter()
            .map(|process| ComputeProcess {
                // A pid that does not fit is nobody's here, and so counts as a stranger's.
                pid: i32::try_from(process.pid).unwrap_or(i32::MAX),
                bytes: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            })
            .collect())
    }
}
