//! The GPUs of this machine: which there are, whether they are free, and what stands in for them where there are none.
//!
//! NVML is loaded at run time. Where its library is missing, or knows no GPU, the machine has *virtual* slots: jobs run one
//! after another all the same, and nothing of CUDA is set for them.
//!
//! A call of NVML may take milliseconds, and for good when the driver hangs. One thread makes all of them ([`reader`]), so that
//! neither the runtime nor a second caller is ever stuck with it. A question that finds no answer is answered as if the GPU
//! were taken: nothing starts on a GPU of which nothing is known.

mod not_free;
mod nvml;
mod process;
mod reader;
mod select;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use taxiway_plugin_host::GpuView;

pub use not_free::NotFree;
use nvml::{ComputeProcess, Memory, Readings};
pub use nvml::{Gpu, ReadError};
use process::Processes;
use reader::Reader;

/// Names another NVML library than the system's, for tests; empty: none, so that the machine has virtual slots.
pub const NVML_LIBRARY_VARIABLE: &str = "TAXIWAY_NVML_LIBRARY";

/// How old a reading may be that submissions are judged by. They come in bursts, and a GPU that is read for each of a
/// thousand has nothing new to say.
const SUBMIT_READING_AGE: Duration = Duration::from_secs(1);

/// What the configuration says of GPUs.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `gpu.use`: the GPUs that the queue may use, each by index, UUID or the beginning of its UUID; empty: all.
    pub only: Vec<String>,
    /// `gpu.slots`: virtual slots where there is no GPU; 1 when not set.
    pub slots: Option<u32>,
    /// `gpu.min_free_memory`, in bytes: what must be free on a GPU before a job starts there.
    pub min_free_memory: u64,
    /// `gpu.ignore`: programs that may use a GPU beside a job, by the name of their file.
    pub ignore: Vec<String>,
    /// Another NVML library ([`NVML_LIBRARY_VARIABLE`]).
    pub nvml_library: Option<PathBuf>,
    /// Where the jobs' directories are: tells processes of this service's jobs from others'.
    pub jobs_dir: PathBuf,
}

/// What one job holds while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SlotGpu {
    /// A GPU.
    Gpu {
        /// NVML's index.
        index: u32,
        /// NVML's UUID.
        uuid: String,
    },
    /// A stand-in on a machine without GPUs.
    Virtual {
        /// From 0.
        index: u32,
    },
}

impl SlotGpu {
    /// The GPU's UUID; none for a virtual slot, whose jobs get no `CUDA_VISIBLE_DEVICES`.
    #[must_use]
    pub fn uuid(&self) -> Option<&str> {
        match self {
            Self::Gpu { uuid, .. } => Some(uuid),
            Self::Virtual { .. } => None,
        }
    }
}

/// For sentences: `GPU 0`, `slot 0`.
impl std::fmt::Display for SlotGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpu { index, .. } => write!(f, "GPU {index}"),
            Self::Virtual { index } => write!(f, "slot {index}"),
        }
    }
}

/// The machine's GPUs. Clones share one.
#[derive(Clone)]
pub struct Inventory(Arc<Inner>);

struct Inner {
    slots: Vec<SlotGpu>,
    /// The usable GPUs as found at the start.
    gpus: Vec<Gpu>,
    reader: Option<Reader>,
    min_free_memory: u64,
    ignore: Vec<String>,
    processes: Processes,
    /// The last views of all GPUs, for submissions.
    last: Mutex<Option<(Instant, Arc<[GpuView]>)>>,
}

impl Inventory {
    /// Looks for GPUs. Blocks for as long as NVML takes to begin, up to some seconds.
    ///
    /// # Errors
    /// When the configuration names GPUs or a library and they cannot be had.
    pub fn open(settings: Settings) -> Result<Self, OpenError> {
        let readings = nvml::open(settings.nvml_library.as_deref())?;
        match readings {
            Some(readings) => Self::with_readings(settings, readings),
            None => Self::without_gpus(settings),
        }
    }

    fn with_readings(settings: Settings, readings: Box<dyn Readings>) -> Result<Self, OpenError> {
        let found = readings.gpus().map_err(OpenError::Read)?;
        if found.is_empty() {
            return Self::without_gpus(settings);
        }
        if settings.slots.is_some() {
            tracing::warn!(
                "gpu.slots is for machines without GPUs and is not used here; gpu.use says which GPUs to use"
            );
        }
        let gpus = select::selected(found, &settings.only)?;
        for gpu in &gpus {
            tracing::info!(index = gpu.index, uuid = gpu.uuid, name = gpu.name, mig = gpu.mig_enabled, "found a GPU");
        }
        let slots = gpus.iter().map(|gpu| SlotGpu::Gpu { index: gpu.index, uuid: gpu.uuid.clone() }).collect();
        let reader = Reader::spawn(readings, reader::PATIENCE).map_err(OpenError::Thread)?;
        Ok(Self::assembled(settings, slots, gpus, Some(reader)))
    }

    fn without_gpus(settings: Settings) -> Result<Self, OpenError> {
        if !settings.only.is_empty() {
            return Err(OpenError::NoGpus { asked: settings.only.join(", ") });
        }
        let slots = (0..settings.slots.unwrap_or(1)).map(|index| SlotGpu::Virtual { index }).collect();
        Ok(Self::assembled(settings, slots, Vec::new(), None))
    }

    fn assembled(settings: Settings, slots: Vec<SlotGpu>, gpus: Vec<Gpu>, reader: Option<Reader>) -> Self {
        Self(Arc::new(Inner {
            slots,
            gpus,
            reader,
            min_free_memory: settings.min_free_memory,
            ignore: settings.ignore,
            processes: Processes::of_jobs_in(settings.jobs_dir),
            last: Mutex::new(None),
        }))
    }

    /// The slots that jobs can hold, as found at the start.
    #[must_use]
    pub fn slots(&self) -> &[SlotGpu] {
        &self.0.slots
    }

    /// How many GPUs a job can ask for.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        u32::try_from(self.0.slots.len()).unwrap_or(u32::MAX)
    }

    /// The usable GPUs as found at the start; empty where slots are virtual.
    #[must_use]
    pub fn gpus(&self) -> &[Gpu] {
        &self.0.gpus
    }

    /// These GPUs as plugins see them, read now: what Taxiway's own jobs hold counts as free. Unknown UUIDs, such as those of
    /// virtual slots, are left out.
    ///
    /// # Errors
    /// When NVML cannot say. Then nothing may be started on them.
    pub async fn views(&self, uuids: &[String]) -> Result<Vec<GpuView>, NotFree> {
        let Some(reader) = &self.0.reader else { return Ok(Vec::new()) };
        let gpus: Vec<Gpu> = self.0.gpus.iter().filter(|gpu| uuids.contains(&gpu.uuid)).cloned().collect();
        let inner = self.0.clone();
        reader.ask(move |readings| gpus.into_iter().map(|gpu| inner.view(readings, gpu)).collect()).await
    }

    /// All usable GPUs as plugins see them at submission, at most a second old. Where NVML cannot say, free memory is that of
    /// the start: a submission is not refused for it.
    pub async fn views_at_submit(&self) -> Arc<[GpuView]> {
        if self.0.gpus.is_empty() {
            return Arc::new([]);
        }
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, views)) = last
            && at.elapsed() < SUBMIT_READING_AGE
        {
            return views;
        }
        let uuids: Vec<String> = self.0.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        match self.views(&uuids).await {
            Ok(views) => {
                let views: Arc<[GpuView]> = views.into();
                *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), views.clone()));
                views
            }
            Err(error) => {
                tracing::warn!(%error, "submissions are judged by the GPUs as they were at the start");
                self.0.gpus.iter().map(|gpu| view(gpu.clone(), gpu.memory_free_bytes)).collect()
            }
        }
    }

    /// Whether a job may start on these GPUs: no compute process is there but those in `ours` and their descendants (the
    /// shims of running jobs), and enough memory is free. Reads NVML anew. Virtual slots are always free.
    ///
    /// # Errors
    /// What is in the way, also when NVML does not say.
    pub async fn check_free(&self, uuids: &[String], ours: &[i32]) -> Result<(), NotFree> {
        let Some(reader) = &self.0.reader else { return Ok(()) };
        if uuids.is_empty() {
            return Ok(());
        }
        let (uuids, ours, inner) = (uuids.to_vec(), ours.to_vec(), self.0.clone());
        reader.ask(move |readings| uuids.iter().try_for_each(|uuid| inner.free(readings, uuid, &ours))).await
    }
}

impl Inner {
    fn index_of(&self, uuid: &str) -> Option<u32> {
        self.gpus.iter().find(|gpu| gpu.uuid == uuid).map(|gpu| gpu.index)
    }

    fn view(&self, readings: &dyn Readings, gpu: Gpu) -> Result<GpuView, NotFree> {
        let unreadable = |error| NotFree::unreadable(&gpu.uuid, Some(gpu.index), error);
        let Memory { total, free } = readings.memory(&gpu.uuid).map_err(unreadable)?;
        let processes = readings.compute_processes(&gpu.uuid).map_err(unreadable)?;
        let ours: u64 = processes
            .iter()
            .filter(|process| self.processes.belongs_to_a_job(process.pid))
            .filter_map(|p| p.bytes)
            .sum();
        Ok(view(gpu, free.saturating_add(ours).min(total)))
    }

    fn free(&self, readings: &dyn Readings, uuid: &str, ours: &[i32]) -> Result<(), NotFree> {
        let index = self.index_of(uuid);
        let unreadable = |error| NotFree::unreadable(uuid, index, error);
        for ComputeProcess { pid, bytes } in readings.compute_processes(uuid).map_err(unreadable)? {
            if self.processes.descends_from(pid, ours) {
                continue;
            }
            let program = process::program(pid);
            if program.as_ref().is_some_and(|program| self.ignore.contains(program)) {
                continue;
            }
            return Err(NotFree::InUse { uuid: uuid.to_owned(), index, pid, program, bytes });
        }
        let free = readings.memory(uuid).map_err(unreadable)?.free;
        if free < self.min_free_memory {
            return Err(NotFree::LowMemory { uuid: uuid.to_owned(), index, free, wanted: self.min_free_memory });
        }
        Ok(())
    }
}

fn view(gpu: Gpu, memory_free: u64) -> GpuView {
    let details = json!({
        "driver_version": gpu.driver_version,
        "pci_bus_id": gpu.pci_bus_id,
        "mig_enabled": gpu.mig_enabled,
    });
    GpuView {
        index: gpu.index,
        uuid: gpu.uuid,
        name: gpu.name,
        memory_total: gpu.memory_total_bytes,
        memory_free,
        compute_capability: gpu.compute_capability,
        details,
    }
}

/// The GPUs that the configuration asks for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The named library does not load or begin.
    #[error("could not use the NVML library {}: {source}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader or NVML says.
        source: ReadError,
    },
    /// The GPUs could not be listed.
    #[error("could not list the GPUs: {0}; `nvidia-smi` may say more")]
    Read(ReadError),
    /// GPUs are named and the machine has none, or none that NVML can tell of.
    #[error(
        "gpu.use names {asked}, but NVML finds no GPU here; check `nvidia-smi -L`, or remove gpu.use to run without GPUs"
    )]
    NoGpus {
        /// What gpu.use says.
        asked: String,
    },
    /// None of the named GPUs is there.
    #[error("gpu.use names {asked}, but the GPUs of this machine are {found}")]
    UnknownGpus {
        /// What gpu.use says.
        asked: String,
        /// Index and UUID of each GPU.
        found: String,
    },
    /// One name fits several GPUs.
    #[error("`{asked}` in gpu.use fits more than one GPU: {found}; write more of the UUID")]
    AmbiguousGpu {
        /// What gpu.use says.
        asked: String,
        /// Index and UUID of each that fits.
        found: String,
    },
    /// The thread that reads NVML could not be started.
    #[error("could not start the thread that reads the GPUs: {0}")]
    Thread(std::io::Error),
}

#[cfg(test)]
mod tests;
