//! Sampling GPUs while launches hold them, and only then.
//!
//! A round reads every held GPU once. It is followed by a rest that is at least two hundred times as long as the round took, so
//! that sampling costs at most half a per cent of one core however slow a driver is. Where rounds are quick, the rest grows from
//! a quarter of a second after the latest start, for short jobs, to two seconds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taxiway_job::{JobId, LaunchId, Time};
use tokio::sync::{Notify, mpsc};

use super::account::{Account, Measured, Metered, sample};
use super::fault::{Fault, Trouble};
use super::look::{Look, Looked, Reading};
use super::not_free::NotFree;
use super::nvml::{ReadError, Readings};
use super::series::{Recent, Sample};
use super::{Inner, Inventory};

const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(2);
/// A rest in terms of the round before it.
const REST_TO_ROUND: u32 = 200;

/// How often an account is written to its file: what the next service would not know of is that much at most.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// How old a reading of an energy counter may be that a launch's account begins with.
const ENERGY_AGE: Duration = Duration::from_secs(1);

/// Messages about faults that may wait for the queue. Those that do not fit are told by the next look at any GPU.
const WAITING_FAULTS: usize = 16;

/// What is known of held GPUs.
pub(super) struct Telemetry {
    state: Mutex<State>,
    /// A launch began.
    begun: Notify,
    faults: mpsc::Sender<Vec<Fault>>,
}

#[derive(Default)]
struct State {
    held: HashMap<LaunchId, Held>,
    recent: HashMap<String, Recent>,
    /// The latest reading of each energy counter, in millijoules.
    energy: HashMap<String, (Instant, u64)>,
    /// Faults of GPUs that NVML told of and the queue does not know yet: NVML tells of an error once, and whoever asked it may
    /// have given up meanwhile.
    untold: Vec<Fault>,
    /// Whether the task that samples runs.
    sampling: bool,
}

impl State {
    /// Keeps faults until they are told.
    fn keep(&mut self, faults: Vec<Fault>) {
        for fault in faults {
            if !self.untold.contains(&fault) {
                self.untold.push(fault);
            }
        }
    }
}

struct Held {
    job: JobId,
    /// The launch's own directory.
    directory: PathBuf,
    account: Account,
    /// An earlier service may have left an account, which was not looked for yet.
    adopted: bool,
    /// When it was last added to.
    added: Instant,
    saved: Option<Instant>,
}

/// What became of a launch's GPUs.
#[derive(Debug, Clone, Default)]
pub struct Released {
    /// How they are now that its processes are gone.
    pub looked: Looked,
    /// What it used of them.
    pub measured: Measured,
}

impl Telemetry {
    pub(super) fn new() -> (Self, mpsc::Receiver<Vec<Fault>>) {
        let (faults, told) = mpsc::channel(WAITING_FAULTS);
        (Self { state: Mutex::default(), begun: Notify::new(), faults }, told)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an earlier service left of each launch for which that was not looked for yet.
    fn left_accounts(&self) -> HashMap<LaunchId, Option<Account>> {
        let adopted: Vec<(LaunchId, JobId, PathBuf)> = {
            let state = self.lock();
            let adopted = state.held.iter().filter(|(_, held)| held.adopted);
            adopted.map(|(launch, held)| (*launch, held.job, held.directory.clone())).collect()
        };
        // The queue's owner waits for the lock, and must not wait for a disk.
        adopted.into_iter().map(|(launch, job, directory)| (launch, left_account(job, &directory))).collect()
    }

    /// Notes a reading of an energy counter.
    pub(super) fn energy(&self, uuid: &str, millijoules: Option<u64>) {
        if let Some(millijoules) = millijoules {
            self.lock().energy.insert(uuid.to_owned(), (Instant::now(), millijoules));
        }
    }

    /// Adds faults to the accounts of the launches whose GPUs have them. Returns those that concern GPUs themselves, and those
    /// that nobody was told of before.
    pub(super) fn note(&self, inner: &Inner, faults: Vec<Fault>) -> Vec<Fault> {
        let counted = inner.counted();
        let mut state = self.lock();
        let of_gpus: Vec<Fault> = faults.into_iter().filter(Fault::is_of_the_gpu).collect();
        for fault in &of_gpus {
            let concerns = |uuid: &str| counted.gpu(uuid).is_some_and(|gpu| gpu.is_part_of(&fault.uuid));
            for held in state.held.values_mut().filter(|held| held.account.uuids().any(concerns)) {
                held.account.note(fault);
            }
        }
        state.keep(of_gpus);
        state.untold.clone()
    }

    /// The queue knows of these faults, or is about to.
    pub(super) fn told(&self, faults: &[Fault]) {
        if !faults.is_empty() {
            self.lock().untold.retain(|fault| !faults.contains(fault));
        }
    }
}

impl Inventory {
    /// A launch of this job holds these GPUs from now on, until [`Inventory::release`]. `adopted`: an earlier service gave them
    /// to it. Without effect for virtual slots.
    pub fn hold(&self, job: JobId, launch: LaunchId, uuids: &[String], adopted: bool) {
        if uuids.is_empty() || self.0.reader.is_none() {
            return;
        }
        let mut state = self.0.telemetry.lock();
        let fresh = |uuid: &str| {
            let (at, millijoules) = state.energy.get(uuid)?;
            (!adopted && at.elapsed() <= ENERGY_AGE).then_some(*millijoules)
        };
        let account = Account::begin(uuids, fresh);
        let directory = self.0.launch_dir(job, launch);
        let held = Held { job, directory, account, adopted, added: Instant::now(), saved: None };
        state.held.insert(launch, held);
        if std::mem::replace(&mut state.sampling, true) {
            self.0.telemetry.begun.notify_one();
        } else {
            tokio::spawn(sample_while_held(self.0.clone()));
        }
    }

    /// The processes of a launch are gone: reads its GPUs once more, says how they are without it and what it used of them.
    /// `ours` are the launches that go on.
    pub async fn release(&self, launch: LaunchId, uuids: &[String], ours: &[LaunchId]) -> Released {
        let Some(reader) = &self.0.reader else { return Released::default() };
        let (inner, mine, ours) = (self.0.clone(), uuids.to_vec(), ours.to_vec());
        let answer =
            reader.ask(move |readings| Ok::<_, ReadError>(inner.release(readings, launch, &mine, &ours))).await;
        let released = answer.unwrap_or_else(|error| {
            let looked = self.0.unread(uuids, &error);
            let measured = self.0.telemetry.lock().held.remove(&launch).map(|held| held.account.measured());
            Released { looked, measured: measured.unwrap_or_default() }
        });
        self.0.telemetry.told(&released.looked.faults);
        released
    }

    /// The latest samples of a GPU, taken while jobs held it. None when there is no such GPU.
    #[must_use]
    pub fn recent(&self, uuid: &str) -> Option<Vec<Sample>> {
        self.0.counted().gpu(uuid)?;
        Some(self.0.telemetry.lock().recent.get(uuid).map(Recent::points).unwrap_or_default())
    }

    /// The samples of each GPU that a launch holds or held: from memory, or from the launch's directory.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn series(&self, job: JobId, launch: LaunchId) -> std::io::Result<Vec<(String, Vec<Sample>)>> {
        if let Some(held) = self.0.telemetry.lock().held.get(&launch) {
            return Ok(held.account.series());
        }
        let account = Account::load(&self.0.launch_dir(job, launch))?;
        Ok(account.map(|account| account.series()).unwrap_or_default())
    }
}

/// Samples until nothing is held any more.
async fn sample_while_held(inner: Arc<Inner>) {
    let mut rest = FIRST_REST;
    let Some(reader) = &inner.reader else { return };
    loop {
        let asked = inner.clone();
        let round = reader.ask(move |readings| {
            let begun = Instant::now();
            let faults = asked.sample(readings);
            Ok::<_, ReadError>((faults, begun.elapsed()))
        });
        let mut took = Duration::ZERO;
        match round.await {
            Ok((faults, time)) => {
                took = time;
                if !faults.is_empty() {
                    match inner.telemetry.faults.try_send(faults.clone()) {
                        Ok(()) => inner.telemetry.told(&faults),
                        Err(_) => tracing::warn!("the queue is behind and hears of a GPU's fault at the next look"),
                    }
                }
            }
            // A driver that hangs takes no time of a core.
            Err(error) => tracing::warn!(%error, "held GPUs could not be sampled"),
        }
        {
            let mut state = inner.telemetry.lock();
            if state.held.is_empty() {
                state.sampling = false;
                return;
            }
        }
        // Sampling is a wait on time: nothing tells that a GPU's load has changed.
        tokio::select! {
            () = tokio::time::sleep(rest.max(took * REST_TO_ROUND)) => rest = (rest * 2).min(LONGEST_REST),
            () = inner.telemetry.begun.notified() => rest = FIRST_REST,
        }
    }
}

impl Inner {
    /// Reads every held GPU once. Returns what is wrong with any GPU and was not told before.
    pub(super) fn sample(&self, readings: &dyn Readings) -> Vec<Fault> {
        let held: Vec<(String, LaunchId)> = {
            let state = self.telemetry.lock();
            let each = |(launch, held): (&LaunchId, &Held)| {
                held.account.uuids().map(|uuid| (uuid.to_owned(), *launch)).collect::<Vec<_>>()
            };
            state.held.iter().flat_map(each).collect()
        };
        let mut metered: HashMap<(LaunchId, String), Metered> = HashMap::new();
        let mut faults = readings.faults();
        let counted = self.counted();
        for (uuid, launch) in held {
            let Some(gpu) = counted.gpu(&uuid) else { continue };
            let read = Reading::of(readings, gpu)
                .and_then(|reading| self.conditions.metered(readings, gpu, &reading, Some(launch), true));
            match read {
                Ok(read) => {
                    metered.insert((launch, uuid), read);
                }
                Err(ReadError::Gone) => {
                    faults.push(Fault { uuid, trouble: Trouble::Gone });
                }
                Err(error) => tracing::warn!(%gpu, %error, "a held GPU could not be sampled"),
            }
        }
        self.add(&metered);
        self.newly(faults)
    }

    /// Adds what was read to recent samples and to the accounts of launches.
    fn add(&self, metered: &HashMap<(LaunchId, String), Metered>) {
        let mut left = self.telemetry.left_accounts();
        let (at, now) = (Time::now(), Instant::now());
        let mut guard = self.telemetry.lock();
        let State { held, recent, energy, .. } = &mut *guard;
        let mut to_save = Vec::new();
        for ((_, uuid), read) in metered {
            recent.entry(uuid.clone()).or_default().push(sample(at, read));
            if let Some(millijoules) = read.counters.energy_millijoules {
                energy.insert(uuid.clone(), (now, millijoules));
            }
        }
        for (launch, held) in held {
            if let Some(account) = left.remove(launch) {
                held.take_over(account);
            }
            let seconds = now.duration_since(held.added).as_secs_f64();
            let peak = held.account.measured().peak_gpu_memory_bytes;
            held.account.add(at, seconds, |uuid| metered.get(&(*launch, uuid.to_owned())).cloned());
            held.added = now;
            // A peak that no later sample would show is written at once.
            let higher = held.account.measured().peak_gpu_memory_bytes > peak;
            if higher || held.saved.is_none_or(|saved| now.duration_since(saved) >= SAVE_EVERY) {
                held.saved = Some(now);
                to_save.push((held.directory.clone(), held.account.clone()));
            }
        }
        // The queue's owner waits for the lock, and must not wait for a disk.
        drop(guard);
        for (directory, account) in to_save {
            save(&account, &directory);
        }
    }

    /// Those faults that no account knows of yet, noted, and those that nobody was told of before.
    fn newly(&self, faults: Vec<Fault>) -> Vec<Fault> {
        let counted = self.counted();
        let mut state = self.telemetry.lock();
        let mut new = Vec::new();
        for fault in faults.into_iter().filter(Fault::is_of_the_gpu) {
            let concerns = |uuid: &str| counted.gpu(uuid).is_some_and(|gpu| gpu.is_part_of(&fault.uuid));
            let mut known = false;
            for held in state.held.values_mut().filter(|held| held.account.uuids().any(concerns)) {
                known |= !held.account.note(&fault);
            }
            if !known && !new.contains(&fault) {
                new.push(fault);
            }
        }
        state.keep(new);
        state.untold.clone()
    }

    fn release(&self, readings: &dyn Readings, launch: LaunchId, uuids: &[String], ours: &[LaunchId]) -> Released {
        let faults = self.telemetry.note(self, readings.faults());
        let mut looked = Looked { gpus: Vec::new(), faults };
        let mut metered: HashMap<&str, Metered> = HashMap::new();
        let counted = self.counted();
        for uuid in uuids {
            let Some(gpu) = counted.gpu(uuid) else { continue };
            let read = Reading::of(readings, gpu).and_then(|reading| {
                metered.insert(uuid, self.conditions.metered(readings, gpu, &reading, None, false)?);
                Ok(reading)
            });
            let state = match read {
                Ok(reading) => self.conditions.check(gpu, &reading, ours),
                Err(error) => Err(NotFree::unread(gpu, error)),
            };
            if let Err(NotFree::Gone { .. }) = state {
                let gone = vec![Fault { uuid: uuid.clone(), trouble: Trouble::Gone }];
                looked.faults = self.telemetry.note(self, gone);
            }
            looked.gpus.push(Look { uuid: uuid.clone(), state });
        }
        self.remember_trouble(&looked);
        for (uuid, read) in &metered {
            self.telemetry.energy(uuid, read.counters.energy_millijoules);
        }
        let Some(mut held) = self.telemetry.lock().held.remove(&launch) else {
            return Released { looked, measured: Measured::default() };
        };
        if held.adopted {
            held.take_over(left_account(held.job, &held.directory));
        }
        let seconds = held.added.elapsed().as_secs_f64();
        held.account.add(Time::now(), seconds, |uuid| metered.get(uuid).cloned());
        let measured = held.account.measured();
        save(&held.account, &held.directory);
        Released { looked, measured }
    }
}

impl Held {
    /// Goes on with the account that an earlier service left, if it is of the same GPUs.
    fn take_over(&mut self, left: Option<Account>) {
        self.adopted = false;
        if let Some(left) = left.filter(|left| left.uuids().eq(self.account.uuids())) {
            self.account.continue_from(left);
        }
    }
}

/// The account that an earlier service left of a launch.
fn left_account(job: JobId, directory: &Path) -> Option<Account> {
    Account::load(directory).unwrap_or_else(|error| {
        let file = directory.display();
        tracing::warn!(%job, %error, %file, "what a job used of its GPUs before cannot be read");
        None
    })
}

fn save(account: &Account, directory: &Path) {
    if let Err(error) = account.save(directory) {
        let file = directory.display();
        tracing::warn!(%error, %file, "what a job used of its GPUs cannot be written");
    }
}
