//! Counting the GPUs: at the start, and again and again where NVML is installed and does not work.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::look::Conditions;
use super::nvml::{Gpu, Library, ReadError, Source};
use super::process::Processes;
use super::reader::{self, Reader};
use super::select;
use super::telemetry::Telemetry;
use super::{Counted, Inner, Inventory, Settings, SlotGpu};

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
                    Vec::new()
                }
            },
            // The driver is not loaded, or was updated under a running kernel, most often.
            Err(error) if settings.slots.is_none() => {
                let why = Uncounted::Nvml(error);
                tracing::error!("{why}");
                return Ok(Self::assembled(settings, Err(why), Some(reader)));
            }
            Err(error) => {
                tracing::warn!(%error, "NVML is installed and does not work; gpu.slots says how many jobs may run all the same");
                Vec::new()
            }
        };
        if found.is_empty() {
            return Self::without_gpus(settings);
        }
        if settings.slots.is_some() {
            tracing::warn!(
                "gpu.slots is for machines without GPUs and is not used here; gpu.use says which GPUs to use"
            );
        }
        let gpus = select::selected(found, &settings.only)?;
        Ok(Self::assembled(settings, Ok(Counted::of(gpus)), Some(reader)))
    }

    /// A machine with virtual slots.
    pub(crate) fn without_gpus(settings: Settings) -> Result<Self, OpenError> {
        if !settings.only.is_empty() {
            return Err(OpenError::NoGpus { asked: settings.only.join(", ") });
        }
        let slots = (0..settings.slots.unwrap_or(1)).map(|index| SlotGpu::Virtual { index }).collect();
        Ok(Self::assembled(settings, Ok(Counted { slots, gpus: Vec::new() }), None))
    }

    fn assembled(settings: Settings, counted: Result<Counted, Uncounted>, reader: Option<Reader>) -> Self {
        let (telemetry, faults) = Telemetry::new();
        let (counted, uncounted) = match counted {
            Ok(counted) => (OnceLock::from(counted), None),
            Err(why) => (OnceLock::new(), Some(why)),
        };
        Self(Arc::new(Inner {
            counted,
            uncounted,
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

    /// The slots, counted now in a new session with NVML where they could not be before.
    ///
    /// # Errors
    /// When they still cannot be.
    pub async fn count(&self) -> Result<&[SlotGpu], Uncounted> {
        if let (None, Some(reader)) = (self.0.counted.get(), &self.0.reader) {
            reader.begin_anew();
            let found = reader.ask_for(OPENING_PATIENCE, |readings| readings.gpus()).await.map_err(Uncounted::Nvml)?;
            if found.is_empty() {
                // GPUs may have been there a moment ago: nothing runs without them by itself.
                return Err(Uncounted::Empty);
            }
            let gpus = select::selected(found, &self.0.only).map_err(|error| Uncounted::Use(error.to_string()))?;
            self.0.counted.get_or_init(|| Counted::of(gpus));
        }
        Ok(self.slots())
    }
}

impl Counted {
    fn of(gpus: Vec<Gpu>) -> Self {
        for gpu in &gpus {
            tracing::info!(%gpu, uuid = gpu.uuid, name = gpu.name, "found a GPU");
        }
        Self { slots: gpus.iter().map(|gpu| SlotGpu::Gpu(Box::new(gpu.clone()))).collect(), gpus }
    }
}

/// Why nobody knows which GPUs there are. Nothing that needs one starts meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Uncounted {
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
