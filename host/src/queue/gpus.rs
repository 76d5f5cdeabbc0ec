//! What the queue makes of GPUs: they are looked at before a job starts there, and kept from jobs while something is wrong.
//!
//! A slot is looked at once, when its launch is over or, where that was earlier, when the next one is about to start. What was
//! found in the way stays the slot's *obstacle*: nothing starts there. As long as somebody waits for such a slot it is looked at
//! again, after a rest that grows from [`FIRST_REST`] to [`LONGEST_REST`]. A GPU with a fault is in *quarantine*: for the
//! queue it is not there, until NVML knows it again or, after a critical error, a person or a reboot says that it is mended.

use std::time::Duration;

use async_trait::async_trait;
use taxiway_job::{Condition, Failure, FailureClass, Job, JobId, LaunchId, Reason, Spot, Terms, Time, Usage};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::count::{Count, Quarantined, Uncounted};
use super::handle::{Mode, QueueError};
use super::owner::{Done, Owner};
use super::slots::{Slot, SlotId};
use crate::gpu::{Fault, Look, Looked, Measured, NotFree, Released, Trouble};
use crate::store::{Change, StoreError};

/// The rests between two looks at a GPU that somebody waits for (DESIGN §4).
const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(2);
/// The same when every such GPU has gone: finding out means to begin a new session with NVML.
const LONGEST_REST_IF_GONE: Duration = Duration::from_secs(30);

/// How long a driver may go on listing a process that has ended before that is reported. It needs a second at most, for the
/// largest of processes.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// What the queue needs of GPUs.
#[async_trait]
pub trait Gpus: Send + Sync {
    /// Counts the GPUs once more, some of which could not be read.
    async fn count(&self) -> Count;

    /// Looks whether a job may start on these GPUs, beside the launches in `ours`, which go on. `again`: the last look found
    /// something in the way.
    async fn look(&self, uuids: &[String], ours: &[LaunchId], again: bool) -> Looked;

    /// A launch holds these GPUs from now on; `adopted`: an earlier service gave them to it.
    fn hold(&self, job: JobId, launch: LaunchId, uuids: &[String], adopted: bool);

    /// The processes of a launch are gone: how its GPUs are without it, and what it used of them.
    async fn release(&self, launch: LaunchId, uuids: &[String], ours: &[LaunchId]) -> Released;
}

/// A slot as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStanding {
    /// The GPU's UUID; none for a virtual slot.
    pub uuid: Option<String>,
    /// What people call it.
    pub label: String,
    /// Whether a job can have it.
    pub state: SlotState,
    /// The job that holds it.
    pub job: Option<JobId>,
    /// Why nothing starts there, beside that it is held.
    pub reason: Option<Reason>,
}

/// Whether a job can have a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Nobody holds it, and nothing was in the way when it was last looked at.
    Free,
    /// A job holds it.
    Held,
    /// Something was in the way when it was last looked at.
    Blocked,
    /// Nothing starts there until it is mended.
    Quarantined,
}

/// Looks at slots that somebody waits for.
pub(super) struct Watch {
    /// When to look next; none while nobody waits or a look is under way.
    pub(super) next: Option<Instant>,
    rest: Duration,
    under_way: bool,
    /// Slots whose last launch is over and that the driver has not given back, since when.
    unreleased: Vec<(SlotId, Instant)>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { next: None, rest: FIRST_REST, under_way: false, unreleased: Vec::new() }
    }
}

impl Owner {
    /// The launches that go on, but for one.
    pub(super) fn others(&self, than: Option<LaunchId>) -> Vec<LaunchId> {
        let all = self.live.keys().chain(self.recovering.keys());
        all.copied().filter(|launch| Some(*launch) != than).collect()
    }

    /// Whether fewer slots are left than a job needs.
    pub(super) fn lacks_gpus(&self, gpus: u32, terms: Option<&Terms>) -> bool {
        gpus > 0 && self.slots.allowed(terms).len() < gpus as usize
    }

    /// Why a job can never have as many GPUs as it asks for. Of those that are not counted only the most that there may be is known, if
    /// that.
    pub(super) fn asks_too_much(&self, job: &Job) -> Option<QueueError> {
        let (asked, slots) = (job.spec.gpus, self.slots.count());
        let uncounted = self.uncounted.as_ref().map_or(Some(0), Uncounted::most_slots)?;
        (asked as usize > slots + uncounted).then_some(QueueError::TooManyGpus { asked, slots })
    }

    /// Whether a job is in line that needs GPUs, or one that waits for something else first: the line does not tell those apart by what
    /// they need. A queue that is paused or drained waits for nothing.
    pub(super) fn anybody_wants_gpus(&self) -> bool {
        let is_there = |spot: Spot| self.jobs.line().spot(spot).next().is_some();
        self.mode == Mode::Run && (is_there(Spot::Gpu) || is_there(Spot::Waiting))
    }

    /// Finds out whether the GPUs of a job are there.
    pub(super) fn check_gpus(&mut self, id: JobId) {
        if let Some(entry) = self.jobs.get(id) {
            let lacks = self.lacks_gpus(entry.gpus(), entry.terms());
            self.jobs.set_unmet(id, Condition::GpusUnavailable, lacks);
        }
    }

    /// The same of every job, as there are more or fewer GPUs now.
    pub(super) fn check_gpus_of_all(&mut self) {
        let needing = self.jobs.iter().filter(|(_, entry)| entry.gpus() > 0);
        let lacking: Vec<(JobId, bool)> =
            needing.map(|(id, entry)| (id, self.lacks_gpus(entry.gpus(), entry.terms()))).collect();
        for (id, lacks) in lacking {
            self.jobs.set_unmet(id, Condition::GpusUnavailable, lacks);
        }
    }

    /// Takes back what a launch holds that is over.
    pub(super) fn free_slots(&mut self, launch: LaunchId, ended_at: Option<u64>) {
        if self.slots.free(launch, ended_at) {
            self.check_gpus_of_all();
        }
    }

    /// A look is done.
    pub(super) fn take_look(&mut self, looked: Looked) {
        for Look { uuid, state } in looked.gpus {
            let gone = matches!(state, Err(NotFree::Gone { .. }));
            let reason = state.as_ref().err().map(NotFree::reason);
            let known = state.is_ok() || reason.as_ref().is_some_and(|reason| reason.code != "gpu_unreadable");
            if self.slots.found(&uuid, state) {
                let kind = if reason.is_some() { "gpu.blocked" } else { "gpu.unblocked" };
                self.owed.push(Change::GpuNews { uuid: uuid.clone(), kind, reason, at: Time::now() });
                self.watch.rest = FIRST_REST;
            }
            let Some(slot) = self.slots.find_mut(&uuid) else { continue };
            if gone {
                // Of an instance that has gone, the others may still be there.
                self.fault(&Fault { uuid, trouble: Trouble::Gone });
            } else if known && slot.quarantine == Some(Trouble::Gone) {
                slot.quarantine = None;
                tracing::info!(gpu = slot.gpu.label, uuid, "a GPU that had gone is back");
                self.owed.push(Change::Mended { uuid, at: Time::now(), by: None });
                self.check_gpus_of_all();
            }
        }
        for fault in &looked.faults {
            self.fault(fault);
        }
    }

    /// Something is wrong with a GPU.
    pub(super) fn fault(&mut self, fault: &Fault) {
        if !self.slots.iter().any(|(_, slot)| slot.gpu.is_part_of(&fault.uuid))
            && let Some(uncounted) = &mut self.uncounted
        {
            return uncounted.keep(fault);
        }
        let new = self.slots.quarantine(fault);
        for id in &new {
            let gpu = &self.slots.get(*id).gpu;
            tracing::error!(gpu = gpu.label, uuid = gpu.uuid, trouble = %fault.trouble, "nothing starts on this GPU any more");
            let Some(uuid) = gpu.uuid.clone() else { continue };
            let reason = quarantined(&gpu.label, fault.trouble);
            let (trouble, boot_id, at) = (fault.trouble, self.boot_id.clone(), Time::now());
            self.owed.push(Change::Quarantine { uuid, trouble, boot_id, reason, at });
        }
        if !new.is_empty() {
            self.check_gpus_of_all();
        }
    }

    /// Takes over the quarantine that the previous service left. A reboot mends: whatever is broken still will show again.
    pub(super) async fn load_quarantine(&mut self) -> Result<(), StoreError> {
        let quarantined = self.store.quarantined_gpus().await?;
        self.take_over_quarantine(quarantined);
        Ok(())
    }

    pub(super) fn take_over_quarantine(&mut self, quarantined: Vec<Quarantined>) {
        for (uuid, trouble, boot_id) in quarantined {
            let same_boot = boot_id == self.boot_id;
            match (self.slots.find_mut(&uuid), &mut self.uncounted) {
                (Some(slot), _) if same_boot && trouble != Trouble::Gone => slot.quarantine = Some(trouble),
                // It may be one of those that are missing.
                (None, Some(uncounted)) => uncounted.quarantined.push((uuid, trouble, boot_id)),
                // NVML knows it again, or it was taken out of the machine.
                _ => self.owed.push(Change::Mended { uuid, at: Time::now(), by: None }),
            }
        }
    }

    /// A person says that a GPU is mended.
    pub(super) fn mend(&mut self, uuid: String, by: String, reply: oneshot::Sender<Result<(), QueueError>>) {
        let slot = self.slots.iter().map(|(_, slot)| slot).find(|slot| slot.gpu.uuid.as_ref() == Some(&uuid));
        match slot {
            None => drop(reply.send(Err(QueueError::UnknownGpu(uuid)))),
            Some(slot) if slot.quarantine.is_none() => {
                let refused = self.unkillable_on(slot).map(|job| unkillable(&slot.gpu.label, job).message);
                let refused = refused.map(QueueError::Unkillable);
                // Else nothing is left to change. An error means that the asker has gone away, here and above.
                drop(reply.send(refused.map_or(Ok(()), Err)));
            }
            Some(_) => {
                let change = Change::Mended { uuid: uuid.clone(), at: Time::now(), by: Some(by) };
                let store = self.store.clone();
                self.work.push(Box::pin(async move {
                    let result = store.commit(vec![change]).await;
                    Done::Mended { uuid, result, reply }
                }));
            }
        }
    }

    pub(super) fn mended(
        &mut self,
        uuid: &str,
        result: Result<(), StoreError>,
        reply: oneshot::Sender<Result<(), QueueError>>,
    ) {
        if result.is_ok()
            && let Some(slot) = self.slots.find_mut(uuid)
        {
            slot.quarantine = None;
            self.check_gpus_of_all();
        }
        // An error means that the asker has gone away.
        let _ = reply.send(result.map_err(QueueError::from));
    }

    /// Plans the next look at slots that somebody waits for, if there are any.
    pub(super) fn plan_watch(&mut self) {
        if self.watch.under_way {
            return;
        }
        if self.to_look_at_again().is_empty() {
            self.watch.next = None;
            self.watch.rest = FIRST_REST;
        } else if self.watch.next.is_none() {
            self.watch.next = Some(Instant::now() + self.watch.rest);
        }
    }

    fn to_look_at_again(&self) -> Vec<SlotId> {
        if !self.slots.have_trouble() {
            return Vec::new();
        }
        let anybody_waits = self.anybody_wants_gpus();
        let candidates = if anybody_waits { self.candidates() } else { Vec::new() };
        let wanted = |id: &SlotId| candidates.iter().any(|candidate| candidate.slots.contains(id));
        let again = self.slots.iter().filter(|(id, slot)| match (&slot.obstacle, slot.quarantine) {
            // It may be anybody's, once it is back.
            (_, Some(Trouble::Gone)) => anybody_waits,
            (_, Some(Trouble::Xid(_))) | (None, None) => false,
            (Some(NotFree::NotReleased { .. }), None) if self.watch.unreleased.iter().any(|(slot, _)| slot == id) => {
                true
            }
            (Some(_), None) => slot.holder.is_none() && wanted(id),
        });
        again.map(|(id, _)| id).collect()
    }

    /// It is time to look again.
    pub(super) fn look_again(&mut self) {
        self.watch.next = None;
        let again = self.to_look_at_again();
        if again.is_empty() {
            return;
        }
        let gone = again.iter().all(|id| self.slots.get(*id).quarantine == Some(Trouble::Gone));
        let longest = if gone { LONGEST_REST_IF_GONE } else { LONGEST_REST };
        self.watch.rest = (self.watch.rest * 2).min(longest);
        self.watch.under_way = true;
        let (gpus, uuids, ours) = (self.gpus.clone(), self.slots.uuids(&again), self.others(None));
        self.work.push(Box::pin(async move { Done::LookedAgain { looked: gpus.look(&uuids, &ours, true).await } }));
    }

    pub(super) fn looked_again(&mut self, looked: Looked) {
        self.watch.under_way = false;
        // What changes is worth another look soon; `take_look` says so.
        self.take_look(looked);
        self.report_unreleased();
    }

    /// The launch on these slots is over: from now on the driver should have given them back.
    pub(super) fn expect_release(&mut self, launch: LaunchId) {
        let now = Instant::now();
        let not_released =
            |slot: &Slot| slot.holder == Some(launch) && matches!(slot.obstacle, Some(NotFree::NotReleased { .. }));
        let ids: Vec<SlotId> = self.slots.iter().filter(|(_, slot)| not_released(slot)).map(|(id, _)| id).collect();
        self.watch.unreleased.retain(|(id, _)| !ids.contains(id));
        self.watch.unreleased.extend(ids.into_iter().map(|id| (id, now)));
    }

    fn report_unreleased(&mut self) {
        let slots = &self.slots;
        let waiting = |id: SlotId| matches!(slots.get(id).obstacle, Some(NotFree::NotReleased { .. }));
        self.watch.unreleased.retain(|(id, _)| waiting(*id));
        let (late, rest): (Vec<_>, Vec<_>) =
            self.watch.unreleased.drain(..).partition(|(_, since)| since.elapsed() >= RELEASE_PATIENCE);
        self.watch.unreleased = rest;
        for (id, _) in late {
            let slot = slots.get(id);
            let (Some(uuid), Some(obstacle)) = (slot.gpu.uuid.clone(), &slot.obstacle) else { continue };
            tracing::error!(gpu = slot.gpu.label, uuid, "{obstacle}; nothing starts there until it is");
            let (kind, reason) = ("gpu.not_released", Some(obstacle.reason()));
            self.owed.push(Change::GpuNews { uuid, kind, reason, at: Time::now() });
        }
    }

    /// The job that holds a slot.
    fn job_on(&self, slot: &Slot) -> Option<JobId> {
        let launch = slot.holder?;
        let live = self.live.get(&launch).map(|live| live.job);
        live.or_else(|| self.recovering.get(&launch).copied())
    }

    /// The same where the job has processes that survive SIGKILL.
    fn unkillable_on(&self, slot: &Slot) -> Option<JobId> {
        self.job_on(slot).filter(|_| self.slots.is_unkillable(slot))
    }

    /// How every slot stands.
    pub(super) fn slot_standings(&self) -> Vec<SlotStanding> {
        let standing = |(_, slot): (SlotId, &Slot)| {
            let quarantine = slot.quarantine.map(|trouble| quarantined(&slot.gpu.label, trouble));
            let obstacle = slot.obstacle.as_ref().map(NotFree::reason);
            let job = self.job_on(slot);
            let quarantine =
                quarantine.or_else(|| self.unkillable_on(slot).map(|job| unkillable(&slot.gpu.label, job)));
            SlotStanding {
                uuid: slot.gpu.uuid.clone(),
                label: slot.gpu.label.clone(),
                state: match (slot.holder, &quarantine, &obstacle) {
                    (_, Some(_), _) => SlotState::Quarantined,
                    (Some(_), None, _) => SlotState::Held,
                    (None, None, Some(_)) => SlotState::Blocked,
                    (None, None, None) => SlotState::Free,
                },
                job,
                reason: quarantine.or(obstacle),
            }
        };
        let missing = self.uncounted.iter().flat_map(|uncounted| &uncounted.missing);
        let unread = missing.filter_map(|missing| {
            Some(SlotStanding {
                uuid: None,
                label: missing.label.clone()?,
                state: SlotState::Blocked,
                job: None,
                reason: Some(Reason::new("gpu_unreadable", missing.why.clone())),
            })
        });
        self.slots.iter().map(standing).chain(unread).collect()
    }
}

/// Why nothing starts on a GPU in quarantine.
fn quarantined(label: &str, trouble: Trouble) -> Reason {
    match trouble {
        Trouble::Gone => {
            Reason::new("gpu_lost", format!("{label} is lost: {trouble}; it is used again when NVML knows it again"))
        }
        Trouble::Xid(_) => Reason::new(
            "gpu_lost",
            format!("{label} has failed ({trouble}); `taxiway gpus release UUID` or a reboot has it used again"),
        ),
    }
}

/// Why nothing starts on a slot that one job does not come off.
fn unkillable(label: &str, job: JobId) -> Reason {
    Reason::new("unkillable", format!("{label} is in quarantine: job {job} has processes that survive SIGKILL"))
}

/// What an attempt used, its GPUs included.
pub(super) fn usage(of_process: Option<Usage>, gpus: usize, measured: Option<&Measured>) -> Option<Usage> {
    let Some(measured) = measured else { return of_process };
    let usage = of_process.unwrap_or_default();
    Some(Usage {
        gpu_seconds: usage.wall_seconds.map(|seconds| seconds * gpus as f64),
        peak_gpu_memory_bytes: measured.peak_gpu_memory_bytes,
        mean_gpu_utilization: measured.mean_gpu_utilization,
        energy_joules: measured.energy_joules,
        ..usage
    })
}

/// Why an attempt failed, when one of its GPUs did: whatever its program made of that, the GPU is the cause. A limit that ran
/// out and a command that never started have causes of their own.
pub(super) fn failure(
    found: Option<Failure>,
    measured: Option<&Measured>,
    label: impl Fn(&str) -> String,
) -> Option<Failure> {
    let failure = found?;
    let fault = measured.and_then(|measured| measured.faults.first());
    match (failure.class, fault) {
        (FailureClass::Timeout | FailureClass::LaunchError | FailureClass::HostLost, _) | (_, None) => Some(failure),
        (_, Some(Fault { uuid, trouble })) => Some(Failure {
            class: FailureClass::GpuLost,
            message: format!("{} failed while the job had it; {}", label(uuid), failure.message),
            evidence: Some(format!("NVML on {uuid}: {trouble}")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_gpu_is_the_cause_of_a_failure_and_not_of_a_time_limit() {
        let found = |class| Some(Failure { class, message: "it ended with exit status 1".into(), evidence: None });
        let fault = Fault { uuid: "GPU-0".into(), trouble: Trouble::Xid(79) };
        let measured = Measured { faults: vec![fault], ..Measured::default() };
        let class = |class| failure(found(class), Some(&measured), |_| "GPU 0".into()).map(|failure| failure.class);
        assert_eq!(class(FailureClass::Exit), Some(FailureClass::GpuLost));
        assert_eq!(class(FailureClass::CudaOom), Some(FailureClass::GpuLost));
        assert_eq!(class(FailureClass::Timeout), Some(FailureClass::Timeout));
        assert_eq!(failure(None, Some(&measured), |_| "GPU 0".into()), None, "it succeeded all the same");
    }

    #[test]
    fn gpus_are_counted_for_the_time_that_the_process_ran() {
        let of_process = Usage { wall_seconds: Some(2.0), ..Usage::default() };
        assert_eq!(
            usage(Some(of_process.clone()), 3, Some(&Measured::default())).expect("some").gpu_seconds,
            Some(6.0)
        );
        assert_eq!(usage(Some(of_process), 1, None).expect("some").gpu_seconds, None, "a virtual slot is no GPU");
    }
}
