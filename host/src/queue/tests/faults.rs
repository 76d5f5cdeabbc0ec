//! Random orders of everything that can happen, with kills of the service at any point, checked against the rules.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taxiway_job::{ArrayId, ArrayLimit, Job, JobId, State, Target};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{broadcast, watch};

use super::checks::all_jobs;
use super::machine::{Kill, Known, Machine, Step};
use super::{Service, gpus, job, virtual_slots};
use crate::queue::{QueueError, SlotGpu, Submission};
use crate::store::{BodyHash, Event};

/// Enough for each kind of fault to meet each phase, and few enough for some seconds. More: `TAXIWAY_TEST_SEEDS=100..5000`.
const SEEDS: std::ops::Range<u64> = 0..24;

/// The longest wait for the owner to do something that must follow: only a failure waits this long.
const STUCK: Duration = Duration::from_secs(60);

#[test]
fn whatever_happens_in_whatever_order_the_rules_hold_and_every_job_ends() {
    let seeds = match std::env::var("TAXIWAY_TEST_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("two numbers with .. between them");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => SEEDS,
    };
    let next = Mutex::new(seeds);
    // Most of a story is waiting for fsync, so several are told at once.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(seed) = next.lock().ok().and_then(|mut seeds| seeds.next()) {
                    tell(seed);
                }
            });
        }
    });
}

fn tell(seed: u64) {
    let trace = Arc::new(Mutex::new(Vec::new()));
    let story = AssertUnwindSafe(|| Story::new(seed, trace.clone()).tell());
    if let Err(panic) = std::panic::catch_unwind(story) {
        let trace = trace.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("seed {seed} breaks a rule; TAXIWAY_TEST_SEEDS={seed}..{} tells it again:", seed + 1);
        eprintln!("  {}", trace.join("\n  "));
        std::panic::resume_unwind(panic);
    }
}

/// Random numbers that a seed decides (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }
}

/// What was asked of one job, and what was answered.
#[derive(Default)]
pub(super) struct Asked {
    /// Operations sent so far: an answer counts as the last word only when nothing was sent after its question.
    sent: u32,
    /// Operations that were not answered. A kill leaves them so.
    pub(super) open: u32,
    pub(super) submitted: bool,
    /// It is a member of an array with a limit: others may be before it in line and not start.
    pub(super) limited: bool,
    /// Somebody asked for another attempt, or for another place in the line.
    pub(super) rearranged: bool,
    /// Somebody tried to cancel it, with or without an answer.
    pub(super) cancel_tried: bool,
    pub(super) cancelled: bool,
}

/// What the tester remembers; a kill of the service does not touch it.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) jobs: HashMap<JobId, Asked>,
    pub(super) order: Vec<JobId>,
    modes_sent: u32,
    /// Mode changes that were not answered.
    modes_open: u32,
    pub(super) broken: Vec<String>,
}

type Shared<T> = Arc<Mutex<T>>;

pub(super) struct Story {
    dice: Dice,
    directory: tempfile::TempDir,
    pub(super) machine: Arc<Machine>,
    slots: Vec<SlotGpu>,
    notes: Shared<Notes>,
    trace: Shared<Vec<String>>,
    /// Failures to arm make the queue rest by the clock, so they are rationed.
    refusals_left: u32,
    /// Jobs are moved, requeued and retried as well. What is certain of the order then is not the tester's to say.
    pub(super) rearranges: bool,
}

impl Story {
    fn new(seed: u64, trace: Shared<Vec<String>>) -> Self {
        let mut dice = Dice(seed);
        let count = 1 + dice.below(3);
        let slots = if dice.percent(50) { gpus(count) } else { virtual_slots(count) };
        Self {
            refusals_left: u32::from(dice.percent(25)),
            rearranges: dice.percent(50),
            dice,
            directory: tempfile::tempdir().expect("a directory"),
            machine: Arc::new(Machine::new(count)),
            slots,
            notes: Shared::default(),
            trace,
        }
    }

    fn trace(&self, line: impl Into<String>) {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).push(line.into());
    }

    pub(super) fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(mut self) {
        let mut writer: Option<watch::Receiver<bool>> = None;
        for lives_left in (0..1 + self.dice.below(4)).rev() {
            let runtime = runtime();
            writer = runtime.block_on(self.live(lives_left == 0, writer));
            // Every task of the service is gone at once, wherever it was waiting.
            drop(runtime);
            self.check();
            if lives_left > 0 {
                let reboot = self.dice.percent(10);
                self.trace(if reboot { "--- reboot" } else { "--- kill" });
                self.machine.host_died(reboot);
            }
        }
    }

    /// One life of the service. The last one goes on until every job has ended.
    async fn live(&mut self, last: bool, previous: Option<watch::Receiver<bool>>) -> Option<watch::Receiver<bool>> {
        if let Some(mut previous) = previous {
            // What the previous service sent to its database is part of the past: its thread ends by itself.
            while previous.changed().await.is_ok() {}
        }
        if !last && self.dice.percent(70) {
            let names = ["prepare", "arm", "go", "stop", "confirm", "disarm"];
            let call = if self.dice.percent(70) { self.dice.pick(&names) } else { None };
            let calls = 1 + self.dice.below(if call.is_some() { 3 } else { 30 }) as u32;
            let kill = Kill { call, calls, before: self.dice.percent(50) };
            self.trace(format!("{kill:?}"));
            self.machine.kill(kill);
        }
        let (directory, machine, slots) = (self.directory.path().to_owned(), self.machine.clone(), self.slots.clone());
        let started = tokio::spawn(async move { Service::start(&directory, &machine, slots).await }).await;
        // An error of the task is the kill.
        let Ok(service) = started else { return None };
        let service = Arc::new(service.expect("the store can be read"));
        // Nobody waits any more for what the previous service did not answer.
        self.notes().jobs.values_mut().for_each(|asked| asked.open = 0);
        self.notes().modes_open = 0;
        let mut seen = service.store.events();
        let steps = 20 + self.dice.below(60);
        for _ in 0..steps {
            if self.machine.was_killed() {
                break;
            }
            self.something_happens(&service).await;
            self.watch(&mut seen);
        }
        if last {
            self.finish(&service, &mut seen).await;
        }
        Some(service.store.committing())
    }

    async fn something_happens(&mut self, service: &Arc<Service>) {
        match self.dice.below(100) {
            0..20 => self.submit(service),
            20..36 => self.operate(service),
            36..40 => self.set_mode(service),
            40..47 => {
                let faults = self.machine.faults();
                if let Some(fault) = self.dice.pick(&faults) {
                    if matches!(fault, Step::Refuse(_)) {
                        if self.refusals_left == 0 {
                            return;
                        }
                        self.refusals_left -= 1;
                    }
                    self.trace(format!("{fault:?}"));
                    self.machine.step(fault, &service.events).await;
                }
            }
            _ => {
                let steps = self.machine.steps();
                if let Some(step) = self.dice.pick(&steps) {
                    self.trace(format!("{step:?}"));
                    self.machine.step(step, &service.events).await;
                }
            }
        }
        // Most often the next thing happens while the answer to this one is on its way.
        match self.dice.below(10) {
            0..3 => {}
            3..8 => {
                for _ in 0..self.dice.below(6) {
                    tokio::task::yield_now().await;
                }
            }
            8 => service.rest().await,
            _ => self.look(service).await,
        }
    }

    /// Submits a job, or an array of some.
    fn submit(&mut self, service: &Arc<Service>) {
        let most = self.slots.len().min(2);
        let (gpus, priority) = (self.dice.below(most + 1) as u32, self.dice.below(3) as i16 - 1);
        let state = if self.dice.percent(15) { State::Held } else { State::Queued };
        let array = self.dice.percent(20).then(|| {
            let max_parallel = NonZeroU32::MIN.saturating_add(self.dice.below(2) as u32);
            ArrayLimit { array: ArrayId::new(), max_parallel }
        });
        let count = if array.is_some() { 2 + self.dice.below(3) } else { 1 };
        let mut jobs = Vec::new();
        for _ in 0..count {
            let mut job = job(gpus, priority);
            (job.state, job.spec.terms.array) = (state, array);
            let index = {
                let mut notes = self.notes();
                notes.order.push(job.id);
                let limited = array.is_some();
                notes.jobs.insert(job.id, Asked { open: 1, limited, ..Asked::default() });
                notes.order.len() - 1
            };
            let place = (-i32::from(priority), index);
            self.machine.rules(|rules| rules.jobs.insert(job.id, Known { gpus, array, place }));
            self.trace(format!("submit job {index}, {gpus} GPUs, priority {priority}, {state}, {array:?}"));
            jobs.push(Arc::new(job));
        }
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let (queue, notes, machine) = (service.queue.clone(), self.notes.clone(), self.machine.clone());
        tokio::spawn(async move {
            let answer = queue.submit_all(Submission { jobs, body: BodyHash([0; 32]), key: None }).await;
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(_) => {
                    for id in ids {
                        let Some(asked) = notes.jobs.get_mut(&id) else { continue };
                        asked.open -= 1;
                        asked.submitted = true;
                    }
                }
                Err(QueueError::Stopping) if machine.was_killed() => {}
                Err(error) => notes.broken.push(format!("a submission was refused: {error}")),
            }
        });
    }

    fn operate(&mut self, service: &Arc<Service>) {
        let order = self.notes().order.clone();
        if order.is_empty() {
            return;
        }
        // Jobs about which something is going on are the interesting ones.
        let lively: Vec<usize> = (0..order.len()).filter(|index| self.machine.is_unsettled(order[*index])).collect();
        let any = self.dice.below(order.len());
        let index = if self.dice.percent(60) { self.dice.pick(&lively).unwrap_or(any) } else { any };
        let id = order[index];
        if self.rearranges && self.dice.percent(50) {
            let other = order[self.dice.below(order.len())];
            return self.rearrange(service, index, id, other);
        }
        let verb = self.dice.below(5);
        self.send(service, index, id, verb);
    }

    /// Requeues, retries, moves or forces a job.
    fn rearrange(&mut self, service: &Arc<Service>, index: usize, id: JobId, other: JobId) {
        let what = self.dice.below(7);
        let name =
            ["requeue", "requeue to held", "retry", "force", "move to the front", "move to the back", "move"][what];
        self.trace(format!("{name} job {index}"));
        {
            let mut notes = self.notes();
            let Some(asked) = notes.jobs.get_mut(&id) else { return };
            asked.sent += 1;
            asked.open += 1;
            asked.rearranged = true;
        }
        self.machine.rules(|rules| rules.barred.remove(&id));
        let (queue, notes, machine) = (service.queue.clone(), self.notes.clone(), self.machine.clone());
        tokio::spawn(async move {
            let answer = match what {
                0 => queue.requeue(id, false, "tester").await,
                1 => queue.requeue(id, true, "tester").await,
                2 => queue.retry(id, "tester").await,
                3 => queue.force_start(id, "tester").await,
                4 => queue.move_to(id, Target::Front, "tester").await,
                5 => queue.move_to(id, Target::Back, "tester").await,
                _ => queue.move_to(id, Target::Before(other), "tester").await,
            };
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(_) | Err(QueueError::Illegal { .. } | QueueError::NotInLine(_)) => {}
                Err(QueueError::NotFound(_)) if !notes.jobs[&id].submitted => {}
                Err(QueueError::Stopping) if machine.was_killed() => return,
                other => notes.broken.push(format!("{name} job {index} was answered {other:?}")),
            }
            if let Some(asked) = notes.jobs.get_mut(&id) {
                asked.open -= 1;
            }
        });
    }

    /// Cancels (0), holds (1) or releases (2 and up) a job.
    fn send(&self, service: &Arc<Service>, index: usize, id: JobId, verb: usize) {
        let name = ["cancel", "hold", "release"][verb.min(2)];
        self.trace(format!("{name} job {index}"));
        let sent = {
            let mut notes = self.notes();
            let Some(asked) = notes.jobs.get_mut(&id) else { return };
            asked.sent += 1;
            asked.open += 1;
            asked.cancel_tried |= verb == 0;
            asked.sent
        };
        self.machine.rules(|rules| {
            rules.in_line.remove(&id);
            if verb >= 2 {
                rules.barred.remove(&id);
            }
        });
        let (queue, notes, machine) = (service.queue.clone(), self.notes.clone(), self.machine.clone());
        tokio::spawn(async move {
            let answer = match verb {
                0 => queue.cancel(id, "tester").await,
                1 => queue.hold(id, "tester").await,
                _ => queue.release(id, "tester").await,
            };
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(asked) = notes.jobs.get_mut(&id) else { return };
            let last_word = asked.sent == sent;
            match answer {
                Ok(State::Cancelled | State::Cancelling) if verb == 0 => {
                    asked.cancelled = true;
                    // One that may have been retried since may start.
                    if last_word || !asked.rearranged {
                        machine.rules(|rules| rules.barred.insert(id));
                    }
                }
                Ok(State::Held) if verb == 1 => {
                    if last_word {
                        machine.rules(|rules| rules.barred.insert(id));
                    }
                }
                Ok(State::Queued) if verb >= 2 => {}
                // Refused because of its state, in truth: a job that has ended or has not.
                Err(QueueError::Illegal { state, .. }) if verb > 0 || state.has_ended() => {}
                Err(QueueError::NotFound(_)) if !asked.submitted => {}
                Err(QueueError::Stopping) if machine.was_killed() => return,
                other => notes.broken.push(format!("{name} job {index} was answered {other:?}")),
            }
            if let Some(asked) = notes.jobs.get_mut(&id) {
                asked.open -= 1;
            }
        });
    }

    fn set_mode(&mut self, service: &Arc<Service>) {
        let pause = self.dice.percent(50);
        self.trace(if pause { "pause" } else { "resume" });
        self.ask_mode(service, pause);
    }

    fn ask_mode(&self, service: &Arc<Service>, pause: bool) {
        let sent = {
            let mut notes = self.notes();
            notes.modes_sent += 1;
            notes.modes_open += 1;
            notes.modes_sent
        };
        self.machine.rules(|rules| rules.paused = false);
        let (queue, notes, machine) = (service.queue.clone(), self.notes.clone(), self.machine.clone());
        tokio::spawn(async move {
            let answer = if pause { queue.pause("tester").await } else { queue.resume("tester").await };
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(()) if pause && notes.modes_sent == sent => {
                    machine.rules(|rules| rules.paused = true);
                    if machine.has_waiting_shims() {
                        notes.broken.push("a pause was acknowledged while a job was armed".into());
                    }
                }
                Ok(()) => {}
                Err(QueueError::Stopping) if machine.was_killed() => {}
                Err(error) => notes.broken.push(format!("a mode was refused: {error}")),
            }
            notes.modes_open -= 1;
        });
    }

    /// Nothing goes wrong any more: every job ends, as it should.
    async fn finish(&mut self, service: &Arc<Service>, seen: &mut broadcast::Receiver<Arc<Event>>) {
        self.trace("--- pause");
        self.ask_mode(service, true);
        loop {
            self.look(service).await;
            let steps = self.machine.steps().into_iter().filter(|step| !matches!(step, Step::End(..)));
            let Some(step) = self.dice.pick(&steps.collect::<Vec<_>>()) else { break };
            self.trace(format!("{step:?}"));
            self.machine.step(step, &service.events).await;
        }
        let waiting = std::time::Instant::now();
        loop {
            let unanswered = {
                let notes = self.notes();
                let open = (0..notes.order.len()).filter(|at| notes.jobs[&notes.order[*at]].open > 0);
                (notes.modes_open, open.collect::<Vec<usize>>())
            };
            if unanswered == (0, Vec::new()) {
                break;
            }
            assert!(waiting.elapsed() < STUCK, "modes and jobs whose operations are not answered: {unanswered:?}");
            // An answer may wait for a read of the store, whose end has no event here.
            tokio::time::sleep(Duration::from_millis(5)).await;
            service.rest().await;
        }
        self.trace("--- finish");
        self.ask_mode(service, false);
        let order = self.notes().order.clone();
        let index = |id: JobId| order.iter().position(|other| *other == id).expect("the tester submitted it");
        // Not more often than once for each hold that may still be on its way.
        let mut releases_left = order.len() * 3;
        loop {
            for _ in 0..self.dice.below(40) {
                tokio::task::yield_now().await;
            }
            self.watch(seen);
            let steps = self.machine.steps();
            if let Some(step) = self.dice.pick(&steps) {
                self.trace(format!("{step:?}"));
                self.machine.step(step, &service.events).await;
                continue;
            }
            self.look(service).await;
            let jobs = all_jobs(service).await;
            let left: Vec<&Job> = jobs.iter().filter(|job| !job.state.has_ended()).collect();
            if left.is_empty() {
                break;
            }
            let held: Vec<JobId> = left.iter().filter(|job| job.state == State::Held).map(|job| job.id).collect();
            for id in held.iter().copied().filter(|id| self.notes().jobs[id].open == 0) {
                assert!(releases_left > 0, "job {} cannot be released", index(id));
                releases_left -= 1;
                self.send(service, index(id), id, 2);
            }
            if held.is_empty() && self.machine.steps().is_empty() {
                tokio::select! {
                    () = self.machine.called() => {}
                    _ = seen.recv() => {}
                    () = tokio::time::sleep(STUCK) => {
                        let left: Vec<_> = left.iter().map(|job| (index(job.id), job.state)).collect();
                        panic!("nothing happens any more, and these are left: {left:?}");
                    }
                }
            }
        }
        service.rest().await;
        self.check();
        self.judge(service, &order).await;
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}
