//! What a launch has used of its GPUs so far.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use taxiway_job::Time;

use super::fault::Fault;
use super::nvml::{Counters, Sensors};
use super::series::{Sample, Series};

/// The account's file in the launch's directory. The next service goes on with it; it is not synced, because a launch does not
/// outlive a loss of power.
pub(super) const FILE_NAME: &str = "gpu.json";

/// More than this is no account: a series has a bounded number of points, and a machine a few GPUs.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// One GPU as it was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Metered {
    pub(super) counters: Counters,
    pub(super) sensors: Sensors,
    /// In use by whomever, in bytes.
    pub(super) memory_used: Option<u64>,
    /// In use by processes of the launch whose account it is, in bytes. None when NVML lists none of them, or does not say.
    pub(super) memory_of_launch: Option<u64>,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Account {
    gpus: Vec<GpuAccount>,
    /// The most that its processes held at one time, on all its GPUs.
    peak_memory_bytes: Option<u64>,
    /// Seconds over which utilisation is known, counted for each GPU; and how many of them the GPU computed.
    seen_seconds: f64,
    busy_seconds: f64,
    /// What went wrong with its GPUs meanwhile.
    faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct GpuAccount {
    uuid: String,
    /// Millijoules by the GPU's counter, when the launch began and when it was last read.
    energy: Option<(u64, u64)>,
    /// The counter went backwards or could not be read: what it says since is of no use.
    energy_lost: bool,
    series: Series,
}

/// What a launch has used of its GPUs. What could not be measured is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The most that its processes held at one time, in bytes.
    pub peak_gpu_memory_bytes: Option<u64>,
    /// From 0 to 1, over all its GPUs.
    pub mean_gpu_utilization: Option<f64>,
    /// Joules, by the GPUs' own counters.
    pub energy_joules: Option<f64>,
    /// What went wrong with its GPUs while it had them.
    pub faults: Vec<Fault>,
}

impl Account {
    /// A launch begins; `energy` is each GPU's counter, where it was read a moment ago.
    pub(super) fn begin(uuids: &[String], energy: impl Fn(&str) -> Option<u64>) -> Self {
        let gpu = |uuid: &String| GpuAccount {
            uuid: uuid.clone(),
            energy: energy(uuid).map(|now| (now, now)),
            energy_lost: false,
            series: Series::default(),
        };
        Self {
            gpus: uuids.iter().map(gpu).collect(),
            peak_memory_bytes: None,
            seen_seconds: 0.0,
            busy_seconds: 0.0,
            faults: Vec::new(),
        }
    }

    pub(super) fn uuids(&self) -> impl Iterator<Item = &str> {
        self.gpus.iter().map(|gpu| gpu.uuid.as_str())
    }

    /// Adds readings of its GPUs, the last ones `seconds` ago.
    pub(super) fn add(&mut self, at: Time, seconds: f64, read: impl Fn(&str) -> Option<Metered>) {
        let mut memory: Option<u64> = None;
        for gpu in &mut self.gpus {
            let Some(metered) = read(&gpu.uuid) else { continue };
            if let Some(bytes) = metered.memory_of_launch {
                memory = Some(memory.unwrap_or(0) + bytes);
            }
            if let Some(utilization) = metered.counters.utilization {
                self.seen_seconds += seconds;
                self.busy_seconds += seconds * utilization;
            }
            gpu.energy = match (gpu.energy, metered.counters.energy_millijoules) {
                (None, Some(now)) if !gpu.energy_lost => Some((now, now)),
                (Some((begun, before)), Some(now)) if now >= before => Some((begun, now)),
                // The driver was loaded anew.
                (Some(_), Some(_)) => {
                    gpu.energy_lost = true;
                    None
                }
                (known, _) => known,
            };
            gpu.series.push(sample(at, &metered));
        }
        self.peak_memory_bytes = self.peak_memory_bytes.max(memory);
    }

    /// Notes that one of its GPUs is in trouble. False when that is known.
    pub(super) fn note(&mut self, fault: &Fault) -> bool {
        let new = !self.faults.contains(fault);
        if new {
            self.faults.push(fault.clone());
        }
        new
    }

    /// Goes on with what was counted before; what went wrong since counts too.
    pub(super) fn continue_from(&mut self, before: Self) {
        let since = std::mem::replace(self, before);
        for fault in &since.faults {
            self.note(fault);
        }
    }

    pub(super) fn measured(&self) -> Measured {
        let energy: Option<Vec<u64>> = self.gpus.iter().map(|gpu| gpu.energy.map(|(begun, now)| now - begun)).collect();
        Measured {
            peak_gpu_memory_bytes: self.peak_memory_bytes,
            mean_gpu_utilization: (self.seen_seconds > 0.0).then(|| self.busy_seconds / self.seen_seconds),
            energy_joules: energy.map(|each| each.into_iter().sum::<u64>() as f64 / 1000.0),
            faults: self.faults.clone(),
        }
    }

    pub(super) fn series(&self) -> Vec<(String, Vec<Sample>)> {
        self.gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.series.points())).collect()
    }

    /// Reads the account that an earlier service left in this launch's directory. None when it left none. A job can put anything
    /// in its place: what is no regular file is an error.
    pub(super) fn load(directory: &Path) -> io::Result<Option<Self>> {
        match taxiway_launcher::log::open(&directory.join(FILE_NAME)) {
            Ok(file) => Ok(Some(serde_json::from_reader(BufReader::new(file.take(FILE_MAX_BYTES)))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let partial: PathBuf = directory.join("gpu.json.partial");
        // Whatever is there, a service that was killed or the job has left it, and nothing is written through it.
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::create_new(&partial)?.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(partial, directory.join(FILE_NAME))
    }
}

pub(super) fn sample(at: Time, metered: &Metered) -> Sample {
    Sample {
        at,
        utilization: metered.counters.utilization,
        memory_used_bytes: metered.memory_used,
        power_watts: metered.sensors.power_watts,
        temperature_celsius: metered.sensors.temperature_celsius.map(f64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::Trouble;
    use super::*;

    fn metered(utilization: f64, energy: u64, memory: Option<u64>) -> Metered {
        Metered {
            counters: Counters { utilization: Some(utilization), energy_millijoules: Some(energy) },
            memory_of_launch: memory,
            ..Metered::default()
        }
    }

    fn two() -> Vec<String> {
        vec!["GPU-0".into(), "GPU-1".into()]
    }

    #[test]
    fn usage_is_summed_over_gpus_weighed_by_time_and_goes_on_where_a_service_left_it() {
        let place = tempfile::tempdir().expect("a directory");
        let mut account = Account::begin(&two(), |uuid| Some(if uuid == "GPU-0" { 1000 } else { 5000 }));
        account.add(Time::now(), 1.0, |_| Some(metered(1.0, 6000, Some(3))));
        account.save(place.path()).expect("saved");

        let mut account = Account::load(place.path()).expect("read").expect("it is there");
        account.add(Time::now(), 3.0, |uuid| Some(metered(0.0, if uuid == "GPU-0" { 7000 } else { 9000 }, Some(2))));
        let measured = account.measured();
        assert_eq!(measured.energy_joules, Some(10.0));
        assert_eq!(measured.mean_gpu_utilization, Some(0.25));
        assert_eq!(measured.peak_gpu_memory_bytes, Some(6));
        assert_eq!(account.series()[1].1.len(), 2);
    }

    #[test]
    fn a_pipe_or_a_link_in_its_place_keeps_nobody_waiting_and_is_not_written_through() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        let account = Account::begin(&two(), |_| None);
        for name in [FILE_NAME, "gpu.json.partial"] {
            nix::unistd::mkfifo(&at(name), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        }
        assert!(Account::load(place.path()).is_err());
        account.save(place.path()).expect("saved");
        assert_eq!(Account::load(place.path()).expect("read"), Some(account.clone()));
        std::fs::write(at("mine"), "mine").expect("a file");
        for name in [FILE_NAME, "gpu.json.partial"] {
            let _ = std::fs::remove_file(at(name));
            std::os::unix::fs::symlink(at("mine"), at(name)).expect("a link");
        }
        assert!(Account::load(place.path()).is_err());
        account.save(place.path()).expect("saved");
        assert_eq!(std::fs::read(at("mine")).expect("a file"), b"mine");
        assert_eq!(Account::load(place.path()).expect("read"), Some(account));
    }

    #[test]
    fn what_was_not_measured_is_not_made_up() {
        let mut account = Account::begin(&two(), |_| None);
        assert_eq!(account.measured(), Measured::default());
        account.add(Time::now(), 1.0, |_| Some(metered(0.5, 100, None)));
        account.add(Time::now(), 1.0, |_| Some(metered(0.5, 50, None)));
        account.add(Time::now(), 1.0, |_| Some(metered(0.5, 70, None)));
        assert_eq!(account.measured().energy_joules, None, "the counter was reset");
        assert_eq!(account.measured().peak_gpu_memory_bytes, None);
    }

    #[test]
    fn a_fault_is_noted_once() {
        let mut account = Account::begin(&two(), |_| None);
        let fault = Fault { uuid: "GPU-1".into(), trouble: Trouble::Xid(79) };
        assert!(account.note(&fault) && !account.note(&fault));
        assert_eq!(account.measured().faults, [fault]);
    }
}
