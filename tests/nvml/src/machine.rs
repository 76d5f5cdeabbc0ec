//! The file that describes the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// Names the file that holds the [`Machine`].
pub const FILE_VARIABLE: &str = "TAXIWAY_FAKE_NVML";

/// A machine with GPUs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// The driver's version.
    pub driver_version: String,
    /// The GPUs in the order of the PCI bus.
    pub gpus: Vec<Gpu>,
    /// Functions that fail, by name (`*`: all of them), with the `nvmlReturn_t` that they answer.
    pub errors: BTreeMap<String, u32>,
    /// Functions that do not return while they are named here (`*`: all of them).
    pub hangs: BTreeSet<String>,
    /// Where each call leaves a line: the function's name and the GPU's UUID, if it is about one.
    pub calls: Option<PathBuf>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// `GPU-` and a UUID.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes in use beside what the processes hold.
    pub memory_reserved: u64,
    /// CUDA compute capability.
    pub compute_capability: (u32, u32),
    /// `00000000:3B:00.0`
    pub pci_bus_id: String,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Milliwatts.
    pub power: u32,
    /// Per cent.
    pub utilization: u32,
    /// Millijoules since the driver was loaded; none where the GPU does not count them.
    pub energy: Option<u64>,
    /// Processes with a compute context.
    pub processes: Vec<Process>,
    /// Critical errors so far, as NVIDIA numbers them; whoever listens hears of those that are appended.
    pub xids: Vec<u64>,
    /// Fell off the bus: every call about it answers `NVML_ERROR_GPU_IS_LOST`.
    pub lost: bool,
    /// Functions that fail for this GPU, as in [`Machine::errors`].
    pub errors: BTreeMap<String, u32>,
    /// Its instances. None: it knows no MIG; empty: MIG is enabled, and nothing was cut.
    pub mig: Option<Vec<Mig>>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            uuid: "GPU-00000000-0000-0000-0000-000000000000".into(),
            name: "Fake GPU".into(),
            memory_total: 80 << 30,
            memory_reserved: 0,
            compute_capability: (9, 0),
            pci_bus_id: "00000000:01:00.0".into(),
            temperature: 30,
            power: 70_000,
            utilization: 0,
            energy: Some(0),
            processes: Vec::new(),
            xids: Vec::new(),
            lost: false,
            errors: BTreeMap::new(),
            mig: None,
        }
    }
}

/// An instance of a GPU (MIG).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mig {
    /// `MIG-` and a UUID.
    pub uuid: String,
    /// Bytes.
    pub memory_total: u64,
    /// Processes with a compute context.
    pub processes: Vec<Process>,
}

/// A process with a compute context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// GPU memory it holds, in bytes; none where the driver does not say.
    pub memory: Option<u64>,
}

impl Machine {
    /// A machine with this many GPUs, `GPU-fake-0` and so on, of 80 GiB each.
    #[must_use]
    pub fn with_gpus(count: u32) -> Self {
        let gpu = |index: u32| Gpu {
            uuid: format!("GPU-fake-{index}"),
            pci_bus_id: format!("00000000:{:02X}:00.0", index + 1),
            ..Gpu::default()
        };
        Self { driver_version: "570.86.10".into(), gpus: (0..count).map(gpu).collect(), ..Self::default() }
    }

    /// Puts it in the place of what the file holds, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        let partial = file.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        fs::rename(partial, file)
    }

    /// The machine as the file describes it now. None when there is no file, or none that can be understood: a library without
    /// a driver.
    pub(crate) fn present() -> Option<Arc<Self>> {
        /// The last file that was read, by what tells it from the next one, and what was in it.
        static LAST: Mutex<Option<(Stamp, Arc<Machine>)>> = Mutex::new(None);
        let path = file()?;
        let stamp = Stamp::of(&path)?;
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, machine)) = last.as_ref()
            && *known == stamp
        {
            return Some(machine.clone());
        }
        let machine: Arc<Self> = match serde_json::from_slice(&fs::read(&path).ok()?) {
            Ok(machine) => Arc::new(machine),
            Err(error) => {
                eprintln!("fake NVML: {}: {error}", path.display());
                return None;
            }
        };
        *last = Some((stamp, machine.clone()));
        Some(machine)
    }

    /// Leaves the line of a call.
    pub(crate) fn note(&self, function: &str, uuid: Option<&str>) {
        let Some(calls) = &self.calls else { return };
        let line = format!("{function} {}\n", uuid.unwrap_or_default());
        let file = fs::OpenOptions::new().create(true).append(true).open(calls);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("fake NVML: {}: {error}", calls.display());
        }
    }

    pub(crate) fn hangs(&self, function: &str) -> bool {
        self.hangs.contains(function) || self.hangs.contains("*")
    }
}

/// What a function answers instead of doing its work.
pub(crate) fn error_of(errors: &BTreeMap<String, u32>, function: &str) -> Result<(), u32> {
    match errors.get(function).or_else(|| errors.get("*")) {
        Some(code) => Err(*code),
        None => Ok(()),
    }
}

fn file() -> Option<PathBuf> {
    std::env::var_os(FILE_VARIABLE).map(PathBuf::from)
}

/// Tells one file from the next that is put in its place.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

/// Waits until `done` says so of the machine; it is asked again whenever the file is replaced. False when `until` comes first.
pub(crate) fn wait_until(until: Option<Instant>, mut done: impl FnMut(&Machine) -> bool) -> bool {
    let is_done = |done: &mut dyn FnMut(&Machine) -> bool| Machine::present().is_some_and(|machine| done(&machine));
    let watch = file().and_then(|path| {
        // Before the first look, so that no change falls between the look and the wait.
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        inotify.add_watch(path.parent()?, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE).ok()?;
        Some(inotify)
    });
    loop {
        if is_done(&mut done) {
            return true;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            // A millisecond more than what is left of it: poll(2) rounds down.
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let Some(watch) = &watch else { return false };
        let polled = poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout);
        if polled.is_ok_and(|ready| ready > 0) {
            // What changed does not matter: the file is looked at again. An error means that nothing is left to read.
            let _ = watch.read_events();
        }
    }
}
