//! What is read of GPUs, and NVML as the source of it.
//!
//! NVML's own documentation: <https://docs.nvidia.com/deploy/nvml-api/>.

use std::path::{Path, PathBuf};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};

use super::fault::{Fault, Trouble};

/// Critical errors that are taken from NVML's set in one go: more than a broken GPU has between two looks, and a bound if
/// there were a driver that never says that it has no more.
const FAULTS_AT_ONCE: usize = 64;

/// A GPU, or an instance of one (MIG), as found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// NVML's index of the GPU: the order of the PCI bus.
    pub index: u32,
    /// For an instance: NVML's index of it on its GPU, and the GPU's UUID.
    pub instance: Option<(u32, String)>,
    /// `GPU-` or `MIG-` and a UUID: stable over restarts and order, so what jobs are given.
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

impl Gpu {
    /// The GPU's own UUID, also of an instance.
    pub(super) fn uuid_of_the_whole(&self) -> &str {
        self.instance.as_ref().map_or(&self.uuid, |(_, whole)| whole)
    }

    /// Whether this is the GPU, or an instance of the GPU, with this UUID.
    pub(super) fn is_part_of(&self, uuid: &str) -> bool {
        self.uuid == uuid || self.uuid_of_the_whole() == uuid
    }
}

/// For sentences: `GPU 0`, `GPU 0 instance 1`.
impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.instance {
            None => write!(f, "GPU {}", self.index),
            Some((instance, _)) => write!(f, "GPU {} instance {instance}", self.index),
        }
    }
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

/// What a GPU's counters say. None where it has no such one: an instance (MIG) has none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counters {
    /// Share of the last moment (up to a second) in which it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// Millijoules since the driver was loaded.
    pub energy_millijoules: Option<u64>,
}

/// What a GPU's sensors say. None where it has no such one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sensors {
    pub power_watts: Option<f64>,
    pub temperature_celsius: Option<u32>,
}

/// A reading failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// NVML does not know the GPU (any more).
    #[error("the GPU is not there any more")]
    Gone,
    /// There is no library of NVML. One whose driver is not loaded is another matter: there may be GPUs.
    #[error("NVML is not there: {0}")]
    Absent(String),
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
            NvmlError::LibloadingError(_) => Self::Absent(error.to_string()),
            NvmlError::DriverNotLoaded => Self::Nvml("the NVIDIA driver is not loaded".into()),
            other => Self::Nvml(other.to_string()),
        }
    }
}

/// The GPUs that NVML lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// In the order of their indexes; of one that is cut (MIG), its instances in its place.
    pub gpus: Vec<Gpu>,
    /// Those that cannot be read.
    pub unread: Vec<Unread>,
}

/// A GPU that NVML lists and that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unread {
    /// NVML's index of it.
    pub index: u32,
    /// Its UUID, if that at least can be read.
    pub uuid: Option<String>,
    pub error: ReadError,
}

/// What can be read of the machine's GPUs. A call may block.
pub(super) trait Readings {
    /// All GPUs.
    fn gpus(&self) -> Result<Found, ReadError>;
    /// How much memory a GPU has free.
    fn memory(&self, uuid: &str) -> Result<Memory, ReadError>;
    /// Who computes on it.
    fn compute_processes(&self, uuid: &str) -> Result<Vec<ComputeProcess>, ReadError>;
    /// What its counters say.
    fn counters(&self, uuid: &str) -> Result<Counters, ReadError>;
    /// What its sensors say, some of which are slow to ask: not for the way of a start.
    fn sensors(&self, uuid: &str) -> Result<Sensors, ReadError>;
    /// Critical errors of all GPUs since the last call.
    fn faults(&self) -> Vec<Fault>;
}

/// Where readings come from. A session is one time that NVML is initialised: it learns of GPUs that came back only in the
/// next one.
pub(super) trait Source: Send {
    /// Begins a session and has it served; ends it when `serve` returns. An error takes the place of one that does not begin.
    fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>));
}

/// NVML itself.
pub(super) struct Library {
    /// Its file; none for the system's.
    path: Option<PathBuf>,
}

impl Library {
    pub(super) fn new(path: Option<&Path>) -> Self {
        Self { path: path.map(Path::to_owned) }
    }
}

impl Source for Library {
    fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
        let begun = match &self.path {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        };
        match begun {
            Ok(nvml) => serve(Ok(&Session { events: events(&nvml), nvml: &nvml })),
            Err(error) => serve(Err(error.into())),
        }
    }
}

struct Session<'nvml> {
    nvml: &'nvml Nvml,
    /// Critical errors of every GPU that can tell of them.
    events: Option<EventSet<'nvml>>,
}

/// Listens for critical errors of every GPU that can tell of them. None when none can.
fn events(nvml: &Nvml) -> Option<EventSet<'_>> {
    let count = nvml.device_count().unwrap_or(0);
    let mut listened: Vec<Device<'_>> = (0..count)
        .filter_map(|index| nvml.device_by_index(index).ok())
        .filter(|device| {
            device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR))
        })
        .collect();
    // A set is lost with the registration that fails: what remains is registered with a new one.
    'set: while !listened.is_empty() {
        let mut set = nvml.create_event_set().ok()?;
        for at in 0..listened.len() {
            match listened[at].register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                Ok(same) => set = same,
                Err(error) => {
                    tracing::warn!(error = %error.error, "a GPU does not tell of its errors");
                    listened.remove(at);
                    continue 'set;
                }
            }
        }
        return Some(set);
    }
    None
}

impl Session<'_> {
    /// A GPU; its instances when it is cut.
    fn gpu(&self, index: u32, driver_version: &str) -> Result<Vec<Gpu>, NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let capability = device.cuda_compute_capability()?;
        let mig_enabled = mig_enabled(&device)?;
        let gpu = |device: &Device<'_>, instance| -> Result<Gpu, NvmlError> {
            let memory = device.memory_info()?;
            Ok(Gpu {
                index,
                instance,
                uuid: device.uuid()?,
                name: device.name()?,
                memory_total_bytes: memory.total,
                memory_free_bytes: memory.free,
                compute_capability: (capability.major.unsigned_abs(), capability.minor.unsigned_abs()),
                driver_version: driver_version.to_owned(),
                pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
                mig_enabled,
            })
        };
        if mig_enabled != Some(true) {
            return Ok(vec![gpu(&device, None)?]);
        }
        let whole = device.uuid()?;
        let mut instances = Vec::new();
        for at in 0..device.mig_device_count()? {
            match device.mig_device_by_index(at) {
                Ok(instance) => instances.push(gpu(&instance, Some((at, whole.clone())))?),
                // As many indexes as there could be instances; this one was not cut.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
                Err(error) => return Err(error),
            }
        }
        if instances.is_empty() {
            tracing::warn!(
                index,
                "a GPU is in MIG mode and has no instances, so that nothing can run on it; `nvidia-smi mig -cgi` makes some"
            );
        }
        Ok(instances)
    }
}

fn mig_enabled(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    match device.mig_mode() {
        Ok(mode) => Ok(Some(mode.current == 1)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a device has no meter for reads none; a device that cannot be read is an error.
fn metered<T>(read: Result<T, NvmlError>) -> Result<Option<T>, ReadError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) => match ReadError::from(error) {
            error @ ReadError::Gone => Err(error),
            _ => Ok(None),
        },
    }
}

impl Readings for Session<'_> {
    fn gpus(&self) -> Result<Found, ReadError> {
        let driver_version = self.nvml.sys_driver_version()?;
        let count = self.nvml.device_count()?;
        let mut found = Found::default();
        for index in 0..count {
            match self.gpu(index, &driver_version) {
                Ok(mut gpus) => found.gpus.append(&mut gpus),
                // One broken GPU must not take the others with it.
                Err(error) => {
                    let uuid = self.nvml.device_by_index(index).and_then(|device| device.uuid()).ok();
                    found.unread.push(Unread { index, uuid, error: error.into() });
                }
            }
        }
        if count > 0 && found.gpus.is_empty() {
            // Not the same as none: nothing may run here as if there were no GPU.
            return Err(ReadError::Nvml(format!("it lists {count} GPUs, and none of them can be used")));
        }
        Ok(found)
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

    fn counters(&self, uuid: &str) -> Result<Counters, ReadError> {
        let device = self.nvml.device_by_uuid(uuid)?;
        Ok(Counters {
            utilization: metered(device.utilization_rates())?.map(|rates| f64::from(rates.gpu) / 100.0),
            energy_millijoules: metered(device.total_energy_consumption())?,
        })
    }

    fn sensors(&self, uuid: &str) -> Result<Sensors, ReadError> {
        let device = self.nvml.device_by_uuid(uuid)?;
        Ok(Sensors {
            power_watts: metered(device.power_usage())?.map(|milliwatts| f64::from(milliwatts) / 1000.0),
            temperature_celsius: metered(device.temperature(TemperatureSensor::Gpu))?,
        })
    }

    fn faults(&self) -> Vec<Fault> {
        let Some(events) = &self.events else { return Vec::new() };
        let mut faults = Vec::new();
        for _ in 0..FAULTS_AT_ONCE {
            // Without a wait. An error says that there is no more, or that a GPU is lost, which every reading of it says too.
            let Ok(event) = events.wait(0) else { break };
            let xid = match event.event_data {
                Some(XidError::Value(xid)) => xid,
                Some(XidError::Unknown) => 999,
                None => continue,
            };
            match event.device.uuid() {
                Ok(uuid) => faults.push(Fault { uuid, trouble: Trouble::Xid(xid) }),
                Err(error) => tracing::warn!(%error, xid, "a GPU tells of an error and does not say which GPU it is"),
            }
        }
        faults
    }
}
