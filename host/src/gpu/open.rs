//! Counting the GPUs: at the start, and again and again where NVML is installed and does not work, or cannot read some of them.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::look::Conditions;
use super::nvml::{Found, Library, ReadError, Source, Unread};
use super::process::Processes;
use super::reader::{self, Reader};
use super::select;
use super::telemetry::Telemetry;
use super::{Counted, Gpu, Inner, Inventory, Missing, Settings, SlotGpu};

/// How long NVML may take to begin: without persistence mode each GPU is initialised first, which takes seconds.
const OPENING_PATIENCE: Duration = Duration::from_secs(30);

impl Inventory {
    /// Looks for GPUs, for as long as NVML takes to begin: up to some seconds.
    ///
    /// # Errors
    /// When the configuration names GPUs or a library and they cannot be had.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        match settings.nvml_library.as_deref() {
            Some(none) if none.as_os_str().is_empty() => Self::without_gpus(settings),
            library => {
                let source = Library::new(library);
                Self::with_source(settings, source).await
            }
        }
    }

    pub(super) async fn with_source(settings: Settings, source: impl Source + 'static) -> Result<Self, OpenError> {
        let reader = Reader::spawn(source, reader::PATIENCE).map_err(OpenError::Thread)?;
        let found = match reader.ask_for(OPENING_PATIENCE, |readings| readings.gpus()).await {
            Ok(found) => found,
            Err(error @ ReadError::Absent(_)) => match settings.nvml_library.clone() {
                Some(library) => return Err(OpenError::Library { path: library, source: error }),
                None => {
                    tracing::debug!(%error, "no NVML on this machine");
                    Found::default()
                }
            },
            // The driver is not loaded, or was updated under a running kernel, most often.
            Err(error) if settings.slots.is_none() => {
                let why = Uncounted::Nvml(error);
                tracing::error!("{why}");
                return Ok(Self::assembled(settings, Counted::nothing(&why), Some(reader)));
            }
            Err(error) => {
                tracing::warn!(%error, "NVML is installed and does not work; gpu.slots says how many jobs may run all the same");
                Found::default()
            }
        };
        if found.gpus.is_empty() {
            return Self::without_gpus(settings);
        }
        if settings.slots.is_some() {
            tracing::warn!(
                "gpu.slots is for machines without GPUs and is not used here; gpu.use says which GPUs to use"
            );
        }
        let counted = Counted::of(found, &settings.only)?;
        counted.gpus.iter().for_each(|gpu| tracing::info!(%gpu, uuid = gpu.uuid, name = gpu.name, "found a GPU"));
        counted.missing.iter().for_each(|missing| tracing::warn!("{}", missing.why));
        Ok(Self::assembled(settings, counted, Some(reader)))
    }

    /// A machine with virtual slots.
    pub(crate) fn without_gpus(settings: Settings) -> Result<Self, OpenError> {
        if !settings.only.is_empty() {
            return Err(OpenError::NoGpus { asked: settings.only.join(", ") });
        }
        let slots = (0..settings.slots.unwrap_or(1)).map(|index| SlotGpu::Virtual { index }).collect();
        Ok(Self::assembled(settings, Counted { slots, ..Counted::default() }, None))
    }

    fn assembled(settings: Settings, counted: Counted, reader: Option<Reader>) -> Self {
        let (telemetry, faults) = Telemetry::new();
        Self(Arc::new(Inner {
            counted: RwLock::new(Arc::new(counted)),
            only: settings.only,
            reader,
            conditions: Conditions {
                min_free_memory: settings.min_free_memory,
                ignore: settings.ignore,
                processes: Processes::of_jobs_in(settings.jobs_dir.clone()),
            },
            begin_anew: AtomicBool::new(false),
            telemetry,
            faults: Mutex::new(Some(faults)),
            jobs_dir: settings.jobs_dir,
            last: Mutex::new(None),
        }))
    }

    /// Counts the GPUs once more, in a new session with NVML, if any are missing. Those that are known already stay what they are.
    pub async fn count(&self) {
        let before = self.0.counted();
        let Some(reader) = self.0.reader.as_ref().filter(|_| !before.missing.is_empty()) else { return };
        self.begin_anew(reader);
        let counted = match reader.ask_for(OPENING_PATIENCE, |readings| readings.gpus()).await {
            // GPUs may have been there a moment ago: nothing runs without them by itself.
            Ok(found) if found.gpus.is_empty() => Err(Uncounted::Empty),
            Ok(found) => {
                let present = found.gpus.clone();
                let counted = Counted::of(found, &self.0.only).map_err(|error| Uncounted::Use(error.to_string()));
                counted.map(|counted| (counted, present))
            }
            Err(error) => Err(Uncounted::Nvml(error)),
        };
        let now = match counted {
            Ok((counted, present)) => before.with(counted, &present),
            Err(why) if before.slots.is_empty() => Counted::nothing(&why),
            // What was missing is so still, and of the others a look will tell.
            Err(_) => return,
        };
        *self.0.counted.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }
}

impl Counted {
    pub(super) fn of(found: Found, only: &[String]) -> Result<Self, OpenError> {
        let Found { gpus: found, unread } = found;
        let missing: Vec<Missing> =
            unread.iter().filter(|unread| select::may_mean(only, unread.index, &found)).map(Missing::unread).collect();
        let gpus = match select::selected(found, only) {
            // The one that is meant is among those that cannot be read.
            Err(OpenError::UnknownGpus { .. }) if !missing.is_empty() => Vec::new(),
            selected => selected?,
        };
        Ok(Self { slots: gpus.iter().map(|gpu| SlotGpu::Gpu(Box::new(gpu.clone()))).collect(), gpus, missing })
    }

    /// Nobody knows what there is.
    fn nothing(why: &Uncounted) -> Self {
        Self {
            missing: vec![Missing { label: None, index: None, uuid: None, why: why.to_string() }],
            ..Self::default()
        }
    }

    /// These, and after them those that are found now and were not known. `present` are all that can be read, also those that the queue
    /// may not use.
    pub(super) fn with(&self, found: Self, present: &[Gpu]) -> Self {
        let (mut slots, mut gpus) = (self.slots.clone(), self.gpus.clone());
        // One that was cut or put together since makes no other slots before the next start: a job may hold the whole of it.
        let is_new = |gpu: &Gpu| !self.gpus.iter().any(|known| known.uuid_of_the_whole() == gpu.uuid_of_the_whole());
        for gpu in found.gpus.into_iter().filter(is_new) {
            tracing::info!(%gpu, uuid = gpu.uuid, name = gpu.name, "found a GPU that could not be read before");
            slots.push(SlotGpu::Gpu(Box::new(gpu.clone())));
            gpus.push(gpu);
        }
        // One that is known and cannot be read just now is not missing: a look tells what is the matter with it.
        // Where it does not even tell its UUID, the index has to do: of one that can be read that of now, else the last one.
        let index = |gpu: &Gpu| present.iter().find(|present| present.uuid == gpu.uuid).unwrap_or(gpu).index;
        let is_known = |missing: &Missing| match &missing.uuid {
            Some(uuid) => gpus.iter().any(|gpu| gpu.uuid_of_the_whole() == uuid),
            None => gpus.iter().any(|gpu| Some(index(gpu)) == missing.index),
        };
        let missing = found.missing.into_iter().filter(|missing| !is_known(missing)).collect();
        Self { slots, gpus, missing }
    }
}

impl Missing {
    pub(super) fn unread(Unread { index, uuid, error }: &Unread) -> Self {
        let label = format!("GPU {index}");
        let why = format!(
            "NVML lists {label} and cannot read it ({error}), so that nothing runs there; it is asked again while a job waits (check `nvidia-smi`)"
        );
        Self { label: Some(label), index: Some(*index), uuid: uuid.clone(), why }
    }
}

/// Why nobody knows which GPUs there are. Nothing that needs one starts meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Uncounted {
    /// NVML is installed and does not work.
    #[error(
        "NVML is installed here and does not work ({0}); it is asked again until it does (check `nvidia-smi`), and gpu.slots = 1 has jobs run without GPUs"
    )]
    Nvml(ReadError),
    /// It works by now and shows no GPU.
    #[error("NVML did not work at the start and shows no GPU now (check `nvidia-smi -L`); it is asked again")]
    Empty,
    /// It works by now, and `gpu.use` does not fit what it shows.
    #[error("{0}")]
    Use(String),
}

/// The GPUs that the configuration asks for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The named library does not load.
    #[error("could not use the NVML library {}: {source}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        source: ReadError,
    },
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
