//! The GPUs of this machine: which there are, whether they are free, and what stands in for them where there are none.
//!
//! NVML is loaded at run time. Where its library is missing, or knows no GPU, the machine has *virtual* slots: jobs run one
//! after another all the same, and nothing of CUDA is set for them. Where the library is there and does not work, nobody knows
//! what there is: there are no slots until it does ([`open`]).
//!
//! A call of NVML may take milliseconds, and for good when the driver hangs. One thread makes all of them ([`reader`]), so that
//! neither the runtime nor a second caller is ever stuck with it. A question that finds no answer is answered as if the GPU
//! were taken: nothing starts on a GPU of which nothing is known.

mod account;
mod fault;
mod look;
mod not_free;
mod nvml;
mod open;
mod process;
mod reader;
mod select;
mod series;
mod status;
mod telemetry;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::json;
use taxiway_job::{JobId, LaunchId};
use taxiway_plugin_host::GpuView;
use tokio::sync::mpsc;

pub use account::Measured;
pub use fault::{Fault, Trouble};
use look::{Conditions, Reading};
pub use look::{Look, Looked};
pub use not_free::NotFree;
use nvml::Readings;
pub use nvml::{Gpu, ReadError};
pub use open::OpenError;
use reader::Reader;
pub use series::Sample;
pub use status::{Process, Status};
pub use telemetry::Released;
use telemetry::Telemetry;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotGpu {
    /// A GPU, or an instance of one.
    Gpu(Box<Gpu>),
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
            Self::Gpu(gpu) => Some(&gpu.uuid),
            Self::Virtual { .. } => None,
        }
    }

    /// The GPU; none for a virtual slot.
    #[must_use]
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Gpu(gpu) => Some(gpu),
            Self::Virtual { .. } => None,
        }
    }
}

/// For sentences: `GPU 0`, `GPU 0 instance 1`, `slot 0`.
impl std::fmt::Display for SlotGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpu(gpu) => write!(f, "{gpu}"),
            Self::Virtual { index } => write!(f, "slot {index}"),
        }
    }
}

/// The machine's GPUs. Clones share one.
#[derive(Clone)]
pub struct Inventory(Arc<Inner>);

struct Inner {
    /// What there is. Once counted, a GPU stays.
    counted: RwLock<Arc<Counted>>,
    /// `gpu.use`
    only: Vec<String>,
    reader: Option<Reader>,
    conditions: Conditions,
    /// The last look met with trouble that only a new session with NVML may end.
    begin_anew: AtomicBool,
    telemetry: Telemetry,
    /// What telemetry has to say, until the queue takes it.
    faults: Mutex<Option<mpsc::Receiver<Vec<Fault>>>>,
    jobs_dir: PathBuf,
    /// The last views of all GPUs, for submissions.
    last: Mutex<Option<(Instant, Arc<[GpuView]>)>>,
}

/// What there is.
#[derive(Default)]
struct Counted {
    slots: Vec<SlotGpu>,
    /// The usable GPUs as they were when they were counted.
    gpus: Vec<Gpu>,
    missing: Vec<Missing>,
}

impl Counted {
    fn gpu(&self, uuid: &str) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.uuid == uuid)
    }
}

/// A GPU that is there and cannot be read, so that nobody knows what slots it makes; or all of them, while NVML does not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What people call it; none for all of them.
    pub label: Option<String>,
    /// NVML's index of it.
    index: Option<u32>,
    /// Its UUID, if that at least can be read.
    uuid: Option<String>,
    /// Why it cannot be read: a sentence.
    pub why: String,
}

/// More instances (MIG) no GPU can be cut into (NVIDIA's MIG user guide, "Supported MIG profiles").
const MOST_INSTANCES: u32 = 7;

impl Missing {
    /// How many slots this makes at most; none where nobody knows how many GPUs it stands for.
    #[must_use]
    pub fn most_slots(&self) -> Option<u32> {
        self.index.map(|_| MOST_INSTANCES)
    }
}

impl Inventory {
    /// The slots that jobs can hold, without those of GPUs that are missing.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotGpu> {
        self.0.counted().slots.clone()
    }

    /// How many GPUs a job can ask for.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        u32::try_from(self.0.counted().slots.len()).unwrap_or(u32::MAX)
    }

    /// How many GPUs a job can ask for at most once those that are missing can be read; none where nobody knows.
    #[must_use]
    pub fn most_slots(&self) -> Option<u32> {
        self.0.counted().missing.iter().try_fold(self.slot_count(), |sum, missing| Some(sum + missing.most_slots()?))
    }

    /// The usable GPUs as they were when they were counted; empty where slots are virtual.
    #[must_use]
    pub fn gpus(&self) -> Vec<Gpu> {
        self.0.counted().gpus.clone()
    }

    /// What is there and not counted yet ([`Inventory::count`]).
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        self.0.counted().missing.clone()
    }

    /// Whether it is known all that there is.
    #[must_use]
    pub fn are_counted(&self) -> bool {
        self.0.counted().missing.is_empty()
    }

    /// What sampling finds wrong with GPUs, as it finds it. Only once: whoever asks first gets it.
    #[must_use]
    pub fn faults(&self) -> Option<mpsc::Receiver<Vec<Fault>>> {
        self.0.faults.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// These GPUs as plugins see them, read now: what Taxiway's own jobs hold counts as free. Unknown UUIDs, such as those of
    /// virtual slots, are left out.
    ///
    /// # Errors
    /// When NVML cannot say. Then nothing may be started on them.
    pub async fn views(&self, uuids: &[String]) -> Result<Vec<GpuView>, NotFree> {
        let Some(reader) = &self.0.reader else { return Ok(Vec::new()) };
        let counted = self.0.counted();
        let gpus: Vec<Gpu> = counted.gpus.iter().filter(|gpu| uuids.contains(&gpu.uuid)).cloned().collect();
        let inner = self.0.clone();
        reader.ask(move |readings| gpus.into_iter().map(|gpu| inner.view(readings, gpu)).collect()).await
    }

    /// All usable GPUs as plugins see them at submission, at most a second old. Where NVML cannot say, free memory is that of
    /// the start: a submission is not refused for it.
    pub async fn views_at_submit(&self) -> Arc<[GpuView]> {
        let counted = self.0.counted();
        if counted.gpus.is_empty() {
            return Arc::new([]);
        }
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, views)) = last
            && at.elapsed() < SUBMIT_READING_AGE
        {
            return views;
        }
        let uuids: Vec<String> = counted.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        match self.views(&uuids).await {
            Ok(views) => {
                let views: Arc<[GpuView]> = views.into();
                *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), views.clone()));
                views
            }
            Err(error) => {
                tracing::warn!(%error, "submissions are judged by the GPUs as they were at the start");
                counted.gpus.iter().map(|gpu| view(gpu.clone(), gpu.memory_free_bytes)).collect()
            }
        }
    }

    /// Looks whether a job may start on these GPUs, beside the launches in `ours`, which go on. Reads NVML anew, in a new session
    /// with it when the last look met with trouble and `again` is set: that costs some time, and is what tells of a GPU that came
    /// back.
    pub async fn look(&self, uuids: &[String], ours: &[LaunchId], again: bool) -> Looked {
        let Some(reader) = &self.0.reader else { return Looked::default() };
        if again && self.0.begin_anew.swap(false, Ordering::Relaxed) {
            self.begin_anew(reader);
        }
        let (inner, asked, ours) = (self.0.clone(), uuids.to_vec(), ours.to_vec());
        let looked = reader.ask(move |readings| Ok::<_, ReadError>(inner.look(readings, &asked, &ours))).await;
        let looked = looked.unwrap_or_else(|error| self.0.unread(uuids, &error));
        self.0.telemetry.told(&looked.faults);
        looked
    }

    /// Has NVML begin a new session. Faults that the old one has not told of are kept, for the next look at any GPU or sample of one.
    fn begin_anew(&self, reader: &Reader) {
        let inner = self.0.clone();
        reader.begin_anew(move |readings| drop(inner.telemetry.note(&inner, readings.faults())));
    }
}

impl Inner {
    /// What there is at this moment.
    fn counted(&self) -> Arc<Counted> {
        self.counted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The launch's own directory, in which its log is.
    fn launch_dir(&self, job: JobId, launch: LaunchId) -> PathBuf {
        let log = taxiway_launcher::log::path(&self.jobs_dir, job, launch);
        log.parent().unwrap_or(&self.jobs_dir).to_owned()
    }

    fn view(&self, readings: &dyn Readings, gpu: Gpu) -> Result<GpuView, NotFree> {
        let Reading { memory, processes } =
            Reading::of(readings, &gpu).map_err(|error| NotFree::unread(&gpu, error))?;
        let of_jobs = processes.iter().filter(|process| self.conditions.processes.launch_of(process.pid).is_some());
        let ours: u64 = of_jobs.filter_map(|process| process.bytes).sum();
        Ok(view(gpu, memory.free.saturating_add(ours).min(memory.total)))
    }

    fn look(&self, readings: &dyn Readings, uuids: &[String], ours: &[LaunchId]) -> Looked {
        let mut looked = Looked { gpus: Vec::new(), faults: self.telemetry.note(self, readings.faults()) };
        let counted = self.counted();
        for gpu in uuids.iter().filter_map(|uuid| counted.gpu(uuid)) {
            let read = Reading::of(readings, gpu).and_then(|reading| {
                // Where the account of the job that is about to start begins.
                self.telemetry.energy(&gpu.uuid, readings.counters(&gpu.uuid)?.energy_millijoules);
                Ok(reading)
            });
            let state = match read {
                Ok(reading) => self.conditions.check(gpu, &reading, ours),
                Err(error) => Err(NotFree::unread(gpu, error)),
            };
            looked.gpus.push(Look { uuid: gpu.uuid.clone(), state });
        }
        self.remember_trouble(&looked);
        looked
    }

    /// A look that found nothing out.
    fn unread(&self, uuids: &[String], error: &ReadError) -> Looked {
        let counted = self.counted();
        let unread = |gpu: &Gpu| Look { uuid: gpu.uuid.clone(), state: Err(NotFree::unread(gpu, error.clone())) };
        let gpus = uuids.iter().filter_map(|uuid| counted.gpu(uuid)).map(unread).collect();
        let looked = Looked { gpus, faults: Vec::new() };
        self.remember_trouble(&looked);
        looked
    }

    fn remember_trouble(&self, looked: &Looked) {
        let trouble = looked.gpus.iter().any(|look| match &look.state {
            Err(NotFree::Gone { .. }) => true,
            // One that does not answer would not answer to this either.
            Err(NotFree::Unreadable { error, .. }) => *error != ReadError::NoAnswer,
            _ => false,
        });
        if trouble {
            self.begin_anew.store(true, Ordering::Relaxed);
        }
    }
}

fn view(gpu: Gpu, memory_free: u64) -> GpuView {
    let details = json!({
        "driver_version": gpu.driver_version,
        "pci_bus_id": gpu.pci_bus_id,
        "mig_enabled": gpu.mig_enabled,
        "instance": gpu.instance.as_ref().map(|(instance, _)| instance),
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

#[cfg(test)]
pub(crate) mod tests;
