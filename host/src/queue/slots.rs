//! The slots: what a job holds while it runs.

use taxiway_job::LaunchId;

/// One GPU that the queue may use, or the virtual slot of a machine without GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotGpu {
    /// The GPU's UUID; none for a virtual slot.
    pub uuid: Option<String>,
    /// What people call it: `GPU 0`, `slot 0`.
    pub label: String,
}

/// Which launch holds which slot. A slot is held by one launch at a time.
#[derive(Debug)]
pub(super) struct Slots {
    gpu: Vec<Slot>,
    /// Launches of the previous service that hold this many slots, nobody knows which.
    somewhere: Vec<(LaunchId, usize)>,
    /// Launches of jobs without GPUs.
    cpu: Vec<LaunchId>,
    cpu_slots: usize,
}

#[derive(Debug)]
struct Slot {
    gpu: SlotGpu,
    holder: Option<LaunchId>,
    /// When the process of its last holder ended while others waited (CLOCK_MONOTONIC, nanoseconds): where the idle gap of
    /// the next one begins.
    idle_since: Option<u64>,
}

/// What a launch was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    /// The GPUs' UUIDs; empty on virtual slots.
    pub(super) uuids: Vec<String>,
    /// The latest end of a process on these slots, where a hand-over began.
    pub(super) idle_since: Option<u64>,
}

impl Slots {
    pub(super) fn new(gpus: Vec<SlotGpu>, cpu_slots: usize) -> Self {
        let gpu = gpus.into_iter().map(|gpu| Slot { gpu, holder: None, idle_since: None }).collect();
        Self { gpu, somewhere: Vec::new(), cpu: Vec::new(), cpu_slots: cpu_slots.max(1) }
    }

    /// How many GPUs, or virtual slots, there are.
    pub(super) fn count(&self) -> usize {
        self.gpu.len()
    }

    /// How many jobs without GPUs may run at a time.
    pub(super) fn cpu_count(&self) -> usize {
        self.cpu_slots
    }

    /// Whether a job that needs this many could start now.
    pub(super) fn are_free(&self, gpus: u32) -> bool {
        if gpus == 0 {
            return self.cpu.len() < self.cpu_slots;
        }
        let free = self.gpu.iter().filter(|slot| slot.holder.is_none()).count();
        let somewhere: usize = self.somewhere.iter().map(|(_, count)| count).sum();
        // One virtual slot is as good as another; of GPUs, each may be one of theirs.
        let unknown = if somewhere > 0 && !self.are_virtual() { free } else { somewhere };
        free >= unknown + gpus as usize
    }

    fn are_virtual(&self) -> bool {
        self.gpu.iter().all(|slot| slot.gpu.uuid.is_none())
    }

    /// Gives a launch this many slots, the lowest first; none when too few are free.
    pub(super) fn take(&mut self, launch: LaunchId, gpus: u32) -> Option<Taken> {
        if !self.are_free(gpus) {
            return None;
        }
        let mut taken = Taken { uuids: Vec::new(), idle_since: None };
        if gpus == 0 {
            self.cpu.push(launch);
            return Some(taken);
        }
        for slot in self.gpu.iter_mut().filter(|slot| slot.holder.is_none()).take(gpus as usize) {
            slot.holder = Some(launch);
            taken.uuids.extend(slot.gpu.uuid.clone());
            taken.idle_since = taken.idle_since.max(slot.idle_since.take());
        }
        Some(taken)
    }

    /// The GPUs that the next launch will get, as far as it can be told: those that are free, then those that are held, the
    /// lowest first.
    pub(super) fn likely(&self, gpus: u32) -> Vec<String> {
        let (free, held): (Vec<&Slot>, Vec<&Slot>) = self.gpu.iter().partition(|slot| slot.holder.is_none());
        free.into_iter().chain(held).take(gpus as usize).filter_map(|slot| slot.gpu.uuid.clone()).collect()
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
        if missing > 0 && (uuids.is_empty() || self.are_virtual()) {
            self.somewhere.push((launch, missing));
        }
    }

    /// Takes back what a launch holds. `ended_at` is when its process ended, if others wait for the slot.
    pub(super) fn free(&mut self, launch: LaunchId, ended_at: Option<u64>) {
        self.cpu.retain(|holder| *holder != launch);
        self.somewhere.retain(|(holder, _)| *holder != launch);
        for slot in self.gpu.iter_mut().filter(|slot| slot.holder == Some(launch)) {
            slot.holder = None;
            slot.idle_since = ended_at;
        }
    }

    /// The slots that are held: their label and their holder.
    pub(super) fn held(&self) -> impl Iterator<Item = (&str, LaunchId)> {
        let placed = self.gpu.iter().filter_map(|slot| Some((slot.gpu.label.as_str(), slot.holder?)));
        placed.chain(self.somewhere.iter().map(|(launch, _)| ("a slot", *launch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize) -> Slots {
        let gpu = |n: usize| SlotGpu { uuid: Some(format!("GPU-{n}")), label: format!("GPU {n}") };
        Slots::new((0..count).map(gpu).collect(), 2)
    }

    #[test]
    fn a_slot_is_held_by_one_launch_at_a_time() {
        let mut slots = slots(3);
        let (a, b, c) = (LaunchId::random(), LaunchId::random(), LaunchId::random());
        assert_eq!(slots.take(a, 2).expect("two are free").uuids, ["GPU-0", "GPU-1"]);
        assert_eq!(slots.take(b, 2), None);
        assert_eq!(slots.take(c, 1).expect("one is free").uuids, ["GPU-2"]);
        slots.free(a, Some(7));
        let taken = slots.take(b, 2).expect("two are free again");
        assert_eq!((taken.uuids.len(), taken.idle_since), (2, Some(7)));
        assert_eq!(slots.held().count(), 3);
    }

    #[test]
    fn jobs_without_gpus_never_wait_for_them() {
        let mut slots = slots(1);
        assert!(slots.take(LaunchId::random(), 1).is_some());
        let cpu = LaunchId::random();
        assert!(slots.take(cpu, 0).is_some());
        assert!(slots.take(LaunchId::random(), 0).is_some());
        assert!(!slots.are_free(0));
        slots.free(cpu, None);
        assert!(slots.are_free(0));
    }

    #[test]
    fn an_adopted_launch_keeps_its_gpus() {
        let mut slots = slots(2);
        let adopted = LaunchId::random();
        slots.reserve(adopted, 2, &["GPU-1".into(), "GPU-gone".into()]);
        assert_eq!(slots.take(LaunchId::random(), 1).expect("GPU 0 is free").uuids, ["GPU-0"]);
        assert!(!slots.are_free(1));
    }

    #[test]
    fn gpus_that_may_be_those_of_an_unsettled_launch_are_not_given_away() {
        let mut slots = slots(3);
        let (adopted, perhaps) = (LaunchId::random(), LaunchId::random());
        slots.reserve(adopted, 1, &["GPU-0".into()]);
        slots.reserve(perhaps, 1, &[]);
        assert!(!slots.are_free(1));
        slots.free(adopted, None);
        assert!(!slots.are_free(1));
        slots.free(perhaps, None);
        assert!(slots.are_free(3));
    }

    #[test]
    fn a_virtual_slot_is_shared_only_by_launches_of_the_previous_service() {
        let slot = |n: usize| SlotGpu { uuid: None, label: format!("slot {n}") };
        let mut slots = Slots::new((0..2).map(slot).collect(), 1);
        let [first, second, perhaps] = [(); 3].map(|()| LaunchId::random());
        for launch in [first, second, perhaps] {
            slots.reserve(launch, 1, &[]);
        }
        slots.free(first, None);
        assert!(!slots.are_free(1));
        slots.free(second, None);
        assert!(slots.are_free(1) && !slots.are_free(2));
        slots.free(perhaps, None);
        assert!(slots.are_free(2));
    }
}
