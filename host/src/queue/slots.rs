//! The slots: what a job holds while it runs.

use std::time::Duration;

use taxiway_job::{LaunchId, Terms};

use crate::gpu::{Fault, NotFree, Trouble};

/// One GPU that the queue may use, or the virtual slot of a machine without GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotGpu {
    /// The GPU's UUID; none for a virtual slot.
    pub uuid: Option<String>,
    /// For an instance of a GPU (MIG), the GPU's UUID.
    pub whole: Option<String>,
    /// What people call it: `GPU 0`, `slot 0`.
    pub label: String,
    /// Its memory in all, in bytes; 0 for a virtual slot.
    pub memory_total_bytes: u64,
}

impl SlotGpu {
    /// Whether this is the GPU, or an instance of the GPU, with this UUID.
    pub(super) fn is_part_of(&self, uuid: &str) -> bool {
        self.uuid.as_deref() == Some(uuid) || self.whole.as_deref() == Some(uuid)
    }

    /// Whether a job with these terms may run here.
    pub(super) fn suits(&self, terms: Option<&Terms>) -> bool {
        terms.is_none_or(|terms| match &self.uuid {
            Some(uuid) => terms.allow_gpu(uuid, self.memory_total_bytes),
            None => !terms.choose_gpus(),
        })
    }
}

/// Which launch holds which slot. A slot is held by one launch at a time.
#[derive(Debug)]
pub(super) struct Slots {
    gpu: Vec<Slot>,
    somewhere: Vec<Somewhere>,
    /// Launches whose processes survive SIGKILL: what they hold is not there until these are gone.
    unkillable: Vec<LaunchId>,
    /// Launches of jobs without GPUs.
    cpu: Vec<LaunchId>,
    cpu_slots: usize,
}

/// Slots that a launch of the previous service holds and that cannot be given to it yet.
#[derive(Debug)]
struct Somewhere {
    launch: LaunchId,
    count: usize,
    /// Which these are, when that is known: of each the end of its former holder is not known yet. Else it may be any.
    uuids: Vec<String>,
}

/// A slot, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SlotId(usize);

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) gpu: SlotGpu,
    pub(super) holder: Option<LaunchId>,
    /// When the process of its last holder ended (CLOCK_MONOTONIC, nanoseconds), as long as somebody has been next for it since:
    /// where the idle gap of the next one begins.
    idle_since: Option<u64>,
    /// How long the reading of the GPU took by which that launch was over.
    gpu_read: Option<Duration>,
    /// What was in the way of a start when the GPU was last looked at.
    pub(super) obstacle: Option<NotFree>,
    /// It was found free in this turn: no further look is needed.
    found_free: bool,
    /// Nothing starts there until this is mended.
    pub(super) quarantine: Option<Trouble>,
}

/// What a launch was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    /// The GPUs' UUIDs; empty on virtual slots.
    pub(super) uuids: Vec<String>,
    /// The latest end of a process on these slots, where a hand-over began.
    pub(super) idle_since: Option<u64>,
    /// How long reading its GPUs took within that hand-over.
    pub(super) gpu_read: Option<Duration>,
}

impl Slot {
    fn free(gpu: SlotGpu) -> Self {
        Self {
            gpu,
            holder: None,
            idle_since: None,
            gpu_read: None,
            obstacle: None,
            found_free: false,
            quarantine: None,
        }
    }
}

impl Slots {
    pub(super) fn new(gpus: Vec<SlotGpu>, cpu_slots: usize) -> Self {
        let gpu = gpus.into_iter().map(Slot::free).collect();
        Self { gpu, somewhere: Vec::new(), unkillable: Vec::new(), cpu: Vec::new(), cpu_slots: cpu_slots.max(1) }
    }

    /// How many GPUs, or virtual slots, there are, whatever their state.
    pub(super) fn count(&self) -> usize {
        self.gpu.len()
    }

    /// How many jobs without GPUs may run at a time.
    pub(super) fn cpu_count(&self) -> usize {
        self.cpu_slots
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        self.gpu.iter().enumerate().map(|(at, slot)| (SlotId(at), slot))
    }

    pub(super) fn get(&self, id: SlotId) -> &Slot {
        &self.gpu[id.0]
    }

    /// The GPU with this UUID.
    pub(super) fn find_mut(&mut self, uuid: &str) -> Option<&mut Slot> {
        self.gpu.iter_mut().find(|slot| slot.gpu.uuid.as_deref() == Some(uuid))
    }

    /// What people call the GPU with this UUID, or of which this is an instance.
    pub(super) fn label_of(&self, uuid: &str) -> String {
        let slot = self.gpu.iter().find(|slot| slot.gpu.uuid.as_deref() == Some(uuid));
        slot.map_or_else(|| format!("GPU {uuid}"), |slot| slot.gpu.label.clone())
    }

    /// Those on which a job with these terms may run, free or not. One in quarantine is not there.
    pub(super) fn allowed(&self, terms: Option<&Terms>) -> Vec<SlotId> {
        let allowed = |slot: &Slot| slot.quarantine.is_none() && !self.is_unkillable(slot) && slot.gpu.suits(terms);
        self.iter().filter(|(_, slot)| allowed(slot)).map(|(id, _)| id).collect()
    }

    /// Whether a job without GPUs could start now.
    pub(super) fn cpu_is_free(&self) -> bool {
        self.cpu.len() < self.cpu_slots
    }

    /// Whether nobody but this service knows who holds them.
    pub(super) fn are_virtual(&self) -> bool {
        self.gpu.iter().all(|slot| slot.gpu.uuid.is_none())
    }

    /// Those of these slots that a launch holds, as far as is known.
    pub(super) fn held_by(&self, launch: LaunchId, among: &[SlotId]) -> usize {
        let placed = among.iter().filter(|id| self.get(**id).holder == Some(launch)).count();
        let somewhere = self.somewhere.iter().filter(|elsewhere| elsewhere.launch == launch);
        placed + somewhere.map(|elsewhere| elsewhere.count).sum::<usize>()
    }

    /// How many of these slots nobody holds.
    pub(super) fn unheld(&self, among: &[SlotId]) -> usize {
        let free = among.iter().filter(|id| self.get(**id).holder.is_none()).count();
        let anywhere = self.somewhere.iter().filter(|elsewhere| elsewhere.uuids.is_empty());
        let somewhere: usize = anywhere.map(|elsewhere| elsewhere.count).sum();
        // One virtual slot is as good as another; of GPUs, each may be one of theirs.
        let unknown = if somewhere > 0 && !self.are_virtual() { free } else { somewhere };
        free.saturating_sub(unknown)
    }

    /// As many of these slots as a job needs, none of which is held or known not to be free; those that were found free in this
    /// turn first, then the lowest. None when there are too few.
    pub(super) fn choose(&self, gpus: u32, among: &[SlotId]) -> Option<Vec<SlotId>> {
        let gpus = gpus as usize;
        if self.unheld(among) < gpus {
            return None;
        }
        let open = |id: &&SlotId| self.get(**id).holder.is_none() && self.get(**id).obstacle.is_none();
        let mut open: Vec<SlotId> = among.iter().filter(open).copied().collect();
        // Stable: the lowest of each kind first.
        open.sort_by_key(|id| !self.get(*id).found_free);
        open.truncate(gpus);
        open.sort_unstable();
        (open.len() == gpus).then_some(open)
    }

    /// Whether a job can be told to start there without another look. Virtual slots are what they are.
    pub(super) fn are_found_free(&self, chosen: &[SlotId]) -> bool {
        chosen.iter().map(|id| self.get(*id)).all(|slot| slot.found_free || slot.gpu.uuid.is_none())
    }

    /// What a look found of a GPU. True when something else is in the way than at the last one, or nothing any more.
    pub(super) fn found(&mut self, uuid: &str, state: Result<(), NotFree>) -> bool {
        let Some(slot) = self.find_mut(uuid) else { return false };
        slot.found_free = state.is_ok();
        let before = std::mem::replace(&mut slot.obstacle, state.err());
        match (&before, &slot.obstacle) {
            (Some(before), Some(now)) => !before.is_like(now),
            (None, None) => false,
            _ => true,
        }
    }

    /// Whether anything is wrong with any slot, or in the way of a start there.
    pub(super) fn have_trouble(&self) -> bool {
        self.gpu.iter().any(|slot| slot.obstacle.is_some() || slot.quarantine.is_some())
    }

    /// Another turn begins: what was found free may have been taken since.
    pub(super) fn forget_found(&mut self) {
        for slot in &mut self.gpu {
            slot.found_free = false;
        }
    }

    /// The UUIDs of these slots.
    pub(super) fn uuids(&self, ids: &[SlotId]) -> Vec<String> {
        ids.iter().filter_map(|id| self.get(*id).gpu.uuid.clone()).collect()
    }

    /// Gives a launch these slots.
    pub(super) fn take(&mut self, launch: LaunchId, chosen: &[SlotId]) -> Taken {
        let mut taken = Taken { uuids: self.uuids(chosen), idle_since: None, gpu_read: None };
        for id in chosen {
            let slot = &mut self.gpu[id.0];
            debug_assert!(slot.holder.is_none(), "{} is held", slot.gpu.label);
            slot.holder = Some(launch);
            taken.idle_since = taken.idle_since.max(slot.idle_since.take());
            taken.gpu_read = taken.gpu_read.max(slot.gpu_read.take());
        }
        taken
    }

    /// Gives a launch a slot for jobs without GPUs.
    pub(super) fn take_cpu(&mut self, launch: LaunchId) -> Taken {
        self.cpu.push(launch);
        Taken { uuids: Vec::new(), idle_since: None, gpu_read: None }
    }

    /// The GPUs that the next launch will get, as far as it can be told: of these, those that are free, then those that are not,
    /// the lowest first.
    pub(super) fn likely(&self, gpus: u32, among: &[SlotId]) -> Vec<String> {
        let mut likely = among.to_vec();
        likely.sort_by_key(|id| self.get(*id).holder.is_some() || self.get(*id).obstacle.is_some());
        likely.truncate(gpus as usize);
        likely.sort_unstable();
        self.uuids(&likely)
    }

    /// Gives a launch of the previous service the slots it holds: those with its UUIDs, or virtual ones. A launch may have been
    /// told to start without the store knowing on which slots, perhaps on those of one whose end the store does not know
    /// either: it keeps as many from whoever comes next. A GPU that is no longer there is left out.
    pub(super) fn reserve(&mut self, launch: LaunchId, gpus: u32, uuids: &[String]) {
        if gpus == 0 {
            return self.cpu.push(launch);
        }
        let mut missing = gpus as usize;
        let its_own = |slot: &&mut Slot| slot.gpu.uuid.as_ref().is_none_or(|uuid| uuids.contains(uuid));
        for slot in self.gpu.iter_mut().filter(|slot| slot.holder.is_none()).filter(its_own).take(missing) {
            slot.holder = Some(launch);
            missing -= 1;
        }
        if missing == 0 {
            return;
        }
        if uuids.is_empty() || self.are_virtual() {
            return self.somewhere.push(Somewhere { launch, count: missing, uuids: Vec::new() });
        }
        let others = self.gpu.iter().filter(|slot| slot.holder.is_some_and(|holder| holder != launch));
        let awaited: Vec<String> =
            others.filter_map(|slot| slot.gpu.uuid.clone()).filter(|uuid| uuids.contains(uuid)).collect();
        if !awaited.is_empty() {
            self.somewhere.push(Somewhere { launch, count: awaited.len(), uuids: awaited });
        }
    }

    /// These are the slots, of which some could not be counted before. `uuids_of` tells the GPUs of a launch of the previous
    /// service, as far as they are known, and `holder_of` the launch that has a GPU: each keeps its own. Gives how many are new.
    pub(super) fn add<'a>(
        &mut self,
        gpus: Vec<SlotGpu>,
        uuids_of: impl Fn(LaunchId) -> &'a [String],
        holder_of: impl Fn(&String) -> Option<LaunchId>,
    ) -> usize {
        let known = self.gpu.len();
        for gpu in gpus {
            if self.gpu.iter().all(|slot| slot.gpu.uuid != gpu.uuid) {
                self.gpu.push(Slot::free(gpu));
            }
        }
        let added = self.gpu.len() - known;
        if added == 0 {
            return 0;
        }
        let (anywhere, awaiting): (Vec<Somewhere>, Vec<Somewhere>) =
            std::mem::take(&mut self.somewhere).into_iter().partition(|elsewhere| elsewhere.uuids.is_empty());
        self.somewhere = awaiting;
        for Somewhere { launch, count, .. } in anywhere {
            // As many as a job asked for: a number of 32 bits.
            self.reserve(launch, u32::try_from(count).unwrap_or(u32::MAX), uuids_of(launch));
        }
        for slot in self.gpu[known..].iter_mut().filter(|slot| slot.holder.is_none()) {
            slot.holder = slot.gpu.uuid.as_ref().and_then(&holder_of);
        }
        added
    }

    /// Notes how long it took to read the GPUs of a launch that is over.
    pub(super) fn were_read(&mut self, launch: LaunchId, took: Duration) {
        for slot in self.gpu.iter_mut().filter(|slot| slot.holder == Some(launch)) {
            slot.gpu_read = Some(took);
        }
    }

    /// These slots have somebody who is next for them. The others stand idle because nobody is, which is no hand-over.
    pub(super) fn hand_over_to<'a>(&mut self, wanted: impl Iterator<Item = &'a SlotId>) {
        if self.gpu.iter().all(|slot| slot.idle_since.is_none()) {
            return;
        }
        let mut is_wanted = vec![false; self.gpu.len()];
        wanted.for_each(|id| is_wanted[id.0] = true);
        for (slot, _) in self.gpu.iter_mut().zip(is_wanted).filter(|(_, wanted)| !wanted) {
            slot.idle_since = None;
        }
    }

    /// What a launch holds, now or from later on, is not there until it is over: processes of it survive SIGKILL. True when some slot
    /// was there and is not any more.
    pub(super) fn quarantine_held_by(&mut self, launch: LaunchId) -> bool {
        if self.unkillable.contains(&launch) {
            return false;
        }
        self.unkillable.push(launch);
        self.gpu.iter().any(|slot| slot.holder == Some(launch))
    }

    /// Whether the holder of a slot has processes that survive SIGKILL.
    pub(super) fn is_unkillable(&self, slot: &Slot) -> bool {
        slot.holder.is_some_and(|holder| self.unkillable.contains(&holder))
    }

    fn unkillable_count(&self) -> usize {
        self.gpu.iter().filter(|slot| self.is_unkillable(slot)).count()
    }

    /// Gives a launch of the previous service the slots with these UUIDs, of which it was only known how many it holds. True when more
    /// or fewer slots are there than before.
    pub(super) fn place(&mut self, launch: LaunchId, gpus: u32, uuids: &[String]) -> bool {
        let before = self.unkillable_count();
        self.take_back(launch, None);
        self.reserve(launch, gpus, uuids);
        self.unkillable_count() != before
    }

    /// Takes back what a launch holds that is over. `ended_at` is when its process ended. True when more or fewer slots are there than
    /// before.
    pub(super) fn free(&mut self, launch: LaunchId, ended_at: Option<u64>) -> bool {
        let before = self.unkillable_count();
        self.unkillable.retain(|other| *other != launch);
        self.take_back(launch, ended_at);
        self.unkillable_count() != before
    }

    fn take_back(&mut self, launch: LaunchId, ended_at: Option<u64>) {
        self.cpu.retain(|holder| *holder != launch);
        self.somewhere.retain(|elsewhere| elsewhere.launch != launch);
        for slot in self.gpu.iter_mut().filter(|slot| slot.holder == Some(launch)) {
            slot.holder = None;
            slot.idle_since = ended_at;
            // Another launch of the previous service may have been told to start there already.
            let Some(uuid) = &slot.gpu.uuid else { continue };
            if let Some(next) = self.somewhere.iter_mut().find(|elsewhere| elsewhere.uuids.contains(uuid)) {
                (slot.holder, slot.idle_since) = (Some(next.launch), None);
                next.uuids.retain(|awaited| awaited != uuid);
                next.count -= 1;
            }
        }
        self.somewhere.retain(|elsewhere| elsewhere.count > 0);
    }

    /// Who holds these slots: a slot's label and its holder.
    pub(super) fn held<'a>(&'a self, among: &'a [SlotId]) -> impl Iterator<Item = (&'a str, LaunchId)> {
        let placed =
            among.iter().map(|id| self.get(*id)).filter_map(|slot| Some((slot.gpu.label.as_str(), slot.holder?)));
        let anywhere = self.somewhere.iter().filter(|elsewhere| elsewhere.uuids.is_empty());
        placed.chain(anywhere.map(|elsewhere| ("a slot", elsewhere.launch)))
    }

    /// Puts every slot that a fault concerns into quarantine. Returns those that were not.
    pub(super) fn quarantine(&mut self, fault: &Fault) -> Vec<SlotId> {
        let mut new = Vec::new();
        for (at, slot) in self.gpu.iter_mut().enumerate() {
            if slot.gpu.is_part_of(&fault.uuid) && slot.quarantine.is_none() {
                slot.quarantine = Some(fault.trouble);
                new.push(SlotId(at));
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(n: usize) -> SlotGpu {
        SlotGpu {
            uuid: Some(format!("GPU-{n}")),
            whole: None,
            label: format!("GPU {n}"),
            memory_total_bytes: (n as u64 + 1) << 30,
        }
    }

    fn slots(count: usize) -> Slots {
        Slots::new((0..count).map(gpu).collect(), 2)
    }

    fn take(slots: &mut Slots, launch: LaunchId, gpus: u32) -> Option<Taken> {
        let all = slots.allowed(None);
        let chosen = slots.choose(gpus, &all)?;
        Some(slots.take(launch, &chosen))
    }

    fn are_free(slots: &Slots, gpus: u32) -> bool {
        slots.choose(gpus, &slots.allowed(None)).is_some()
    }

    fn in_use(gpu: &str) -> NotFree {
        NotFree::InUse { gpu: gpu.into(), pid: 1, program: None, bytes: None }
    }

    #[test]
    fn a_slot_is_held_by_one_launch_at_a_time() {
        let mut slots = slots(3);
        let (a, b, c) = (LaunchId::random(), LaunchId::random(), LaunchId::random());
        assert_eq!(take(&mut slots, a, 2).expect("two are free").uuids, ["GPU-0", "GPU-1"]);
        assert_eq!(take(&mut slots, b, 2), None);
        assert_eq!(take(&mut slots, c, 1).expect("one is free").uuids, ["GPU-2"]);
        slots.free(a, Some(7));
        let taken = take(&mut slots, b, 2).expect("two are free again");
        assert_eq!((taken.uuids.len(), taken.idle_since), (2, Some(7)));
        assert_eq!(slots.held(&slots.allowed(None)).count(), 3);
    }

    #[test]
    fn jobs_without_gpus_never_wait_for_them() {
        let mut slots = slots(1);
        assert!(take(&mut slots, LaunchId::random(), 1).is_some());
        let cpu = LaunchId::random();
        slots.take_cpu(cpu);
        assert!(slots.cpu_is_free());
        slots.take_cpu(LaunchId::random());
        assert!(!slots.cpu_is_free());
        slots.free(cpu, None);
        assert!(slots.cpu_is_free());
    }

    #[test]
    fn a_job_gets_only_gpus_that_its_terms_allow_and_that_are_not_in_use() {
        let mut slots = slots(4);
        let large = Terms { gpu_memory: Some(3 << 30), ..Terms::default() };
        let allowed = slots.allowed(Some(&large));
        assert_eq!(slots.uuids(&allowed), ["GPU-2", "GPU-3"]);
        let named = Terms { gpu_uuids: vec!["GPU-1".into(), "GPU-3".into()], ..Terms::default() };
        assert_eq!(slots.uuids(&slots.allowed(Some(&named))), ["GPU-1", "GPU-3"]);

        assert!(slots.found("GPU-2", Err(in_use("GPU 2"))));
        assert!(!slots.found("GPU-2", Err(in_use("GPU 2"))), "that is known");
        assert_eq!(slots.choose(2, &allowed), None);
        let chosen = slots.choose(1, &allowed).expect("one is free");
        assert_eq!(slots.uuids(&chosen), ["GPU-3"]);
        assert!(!slots.are_found_free(&chosen), "it was not looked at");
        slots.found("GPU-3", Ok(()));
        assert!(slots.are_found_free(&chosen));
        slots.forget_found();
        assert!(!slots.are_found_free(&chosen));
    }

    #[test]
    fn a_fault_of_a_gpu_concerns_all_its_instances() {
        let instance = |n: usize| SlotGpu {
            uuid: Some(format!("MIG-{n}")),
            whole: Some("GPU-0".into()),
            label: format!("GPU 0 instance {n}"),
            memory_total_bytes: 0,
        };
        let mut slots = Slots::new((0..2).map(instance).collect(), 1);
        let fault = Fault { uuid: "GPU-0".into(), trouble: Trouble::Xid(79) };
        assert_eq!(slots.quarantine(&fault).len(), 2);
        assert_eq!(slots.quarantine(&fault).len(), 0, "that is known");
        assert!(slots.allowed(None).is_empty());
    }

    #[test]
    fn an_adopted_launch_keeps_its_gpus() {
        let mut slots = slots(2);
        let adopted = LaunchId::random();
        slots.reserve(adopted, 2, &["GPU-1".into(), "GPU-gone".into()]);
        assert_eq!(take(&mut slots, LaunchId::random(), 1).expect("GPU 0 is free").uuids, ["GPU-0"]);
        assert!(!are_free(&slots, 1));
    }

    #[test]
    fn gpus_that_may_be_those_of_an_unsettled_launch_are_not_given_away() {
        let mut slots = slots(3);
        let (adopted, perhaps) = (LaunchId::random(), LaunchId::random());
        slots.reserve(adopted, 1, &["GPU-0".into()]);
        slots.reserve(perhaps, 1, &[]);
        assert!(!are_free(&slots, 1));
        slots.free(adopted, None);
        assert!(!are_free(&slots, 1));
        slots.free(perhaps, None);
        assert!(are_free(&slots, 3));
    }

    #[test]
    fn a_launch_that_was_told_to_start_on_the_gpu_of_one_whose_end_is_not_known_gets_it_with_that_end() {
        let mut slots = slots(2);
        let (ended, told) = (LaunchId::random(), LaunchId::random());
        slots.reserve(ended, 1, &["GPU-0".into()]);
        slots.reserve(told, 1, &[]);
        assert!(!are_free(&slots, 1));
        slots.free(told, None);
        slots.reserve(told, 1, &["GPU-0".into()]);
        let other = LaunchId::random();
        assert_eq!(take(&mut slots, other, 1).expect("the other is free").uuids, ["GPU-1"]);
        slots.free(ended, Some(7));
        assert!(!are_free(&slots, 1), "it has passed from one to the other");
        slots.free(told, None);
        assert_eq!(take(&mut slots, LaunchId::random(), 1).expect("it is over").uuids, ["GPU-0"]);
    }

    #[test]
    fn launches_of_the_previous_service_keep_their_gpus_when_these_are_counted_late() {
        let mut slots = Slots::new(Vec::new(), 1);
        let (adopted, perhaps) = (LaunchId::random(), LaunchId::random());
        slots.reserve(adopted, 2, &["GPU-0".into(), "GPU-2".into()]);
        slots.reserve(perhaps, 1, &[]);
        let own = ["GPU-0".to_owned(), "GPU-2".to_owned()];
        let uuids_of = |launch| if launch == adopted { &own[..] } else { &[] };
        assert_eq!(slots.add((0..4).map(gpu).collect(), uuids_of, |_| None), 4);
        assert!(!are_free(&slots, 1), "any of the two may be that of the launch of which nothing is known");
        slots.free(perhaps, None);
        assert_eq!(take(&mut slots, LaunchId::random(), 2).expect("two are free").uuids, ["GPU-1", "GPU-3"]);
    }

    #[test]
    fn a_gpu_that_is_counted_later_than_the_others_goes_to_the_launch_that_has_it() {
        let mut slots = Slots::new(vec![gpu(0), gpu(2)], 1);
        let adopted = LaunchId::random();
        let own = ["GPU-0".to_owned(), "GPU-1".to_owned()];
        slots.reserve(adopted, 2, &own);
        assert!(are_free(&slots, 1) && !are_free(&slots, 2));
        let holder_of = |uuid: &String| own.contains(uuid).then_some(adopted);
        assert_eq!(slots.add((0..4).map(gpu).collect(), |_| &[], holder_of), 2);
        assert_eq!(slots.held_by(adopted, &slots.allowed(None)), 2);
        assert_eq!(take(&mut slots, LaunchId::random(), 2).expect("two are free").uuids, ["GPU-2", "GPU-3"]);
        assert_eq!(slots.add((0..4).map(gpu).collect(), |_| &[], |_| None), 0, "they are known");
        slots.free(adopted, None);
        assert!(are_free(&slots, 2));
    }

    #[test]
    fn what_a_launch_holds_whose_processes_survive_sigkill_is_not_there_however_late_it_is_known() {
        let mut slots = Slots::new(vec![gpu(0)], 1);
        let [ended, told, late, cpu] = [(); 4].map(|()| LaunchId::random());
        slots.take_cpu(cpu);
        assert!(!slots.quarantine_held_by(cpu), "no GPU is less");
        assert!(!slots.free(cpu, None), "nor more");
        slots.reserve(ended, 1, &["GPU-0".into()]);
        slots.reserve(told, 1, &[]);
        assert!(!slots.quarantine_held_by(told) && !slots.quarantine_held_by(late), "what they hold is not known");
        assert!(!slots.place(told, 1, &["GPU-0".into()]), "another one holds it");
        assert_eq!(slots.allowed(None).len(), 1);
        assert!(slots.free(ended, Some(7)), "it has passed to the other");
        assert!(slots.allowed(None).is_empty());
        let holder_of = |uuid: &String| (uuid == "GPU-1").then_some(late);
        assert_eq!(slots.add((0..3).map(gpu).collect(), |_| &[], holder_of), 2);
        assert_eq!(slots.uuids(&slots.allowed(None)), ["GPU-2"]);
        assert!(slots.free(told, None) && slots.free(late, None));
        assert_eq!(slots.allowed(None).len(), 3);
    }

    #[test]
    fn a_virtual_slot_is_shared_only_by_launches_of_the_previous_service() {
        let slot = |n: usize| SlotGpu { uuid: None, whole: None, label: format!("slot {n}"), memory_total_bytes: 0 };
        let mut slots = Slots::new((0..2).map(slot).collect(), 1);
        let [first, second, perhaps] = [(); 3].map(|()| LaunchId::random());
        for launch in [first, second, perhaps] {
            slots.reserve(launch, 1, &[]);
        }
        slots.free(first, None);
        assert!(!are_free(&slots, 1));
        slots.free(second, None);
        assert!(are_free(&slots, 1) && !are_free(&slots, 2));
        slots.free(perhaps, None);
        assert!(are_free(&slots, 2));
    }
}
