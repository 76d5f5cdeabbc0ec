//! Counting the GPUs again, where NVML did not work at the start, or could not read some of them.
//!
//! Until it does, nobody knows which slots there are, or that there are more: jobs that need them wait, and the others go on. As
//! long as anybody waits the GPUs are counted again, after a rest that grows from [`FIRST_REST`] to [`LONGEST_REST`];
//! where jobs run on others, it begins with [`FIRST_REST_BESIDE_OTHERS`] and does not begin again.

use std::time::Duration;

use tokio::time::Instant;

use super::owner::{Done, Owner};
use super::slots::SlotGpu;
use crate::gpu::{Fault, Missing, Trouble};

const FIRST_REST: Duration = Duration::from_millis(50);
/// The same where other GPUs are known: the looks at these wait for a count, and an error that one of them has in the moment between two
/// sessions is not told.
const FIRST_REST_BESIDE_OTHERS: Duration = Duration::from_secs(2);
/// Each time means to begin a new session with NVML, and whoever mends a driver takes minutes for it.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The slots there are, and what is missing among them.
#[derive(Debug, Clone, Default)]
pub struct Count {
    /// Those that are known, in an order in which others only come after them.
    pub slots: Vec<SlotGpu>,
    /// GPUs that are there and cannot be read.
    pub missing: Vec<Missing>,
}

/// A GPU that the previous service kept from jobs: its UUID, what is wrong with it, and the boot in which that was found.
pub(super) type Quarantined = (String, Trouble, String);

/// What is known of GPUs that are not counted yet.
pub(super) struct Uncounted {
    /// Which, and why they are not. Never empty.
    pub(super) missing: Vec<Missing>,
    /// Those that the previous service kept from jobs, and that may be among them.
    pub(super) quarantined: Vec<Quarantined>,
    /// What NVML tells of GPUs that the queue does not know, each once: it may be of these.
    faults: Vec<Fault>,
    /// When to count next; none while nobody waits or a count is under way.
    next: Option<Instant>,
    rest: Duration,
    under_way: bool,
}

impl Uncounted {
    /// None when nothing is missing.
    pub(super) fn of(missing: Vec<Missing>) -> Option<Self> {
        let rest = FIRST_REST;
        let (quarantined, faults) = (Vec::new(), Vec::new());
        (!missing.is_empty()).then_some(Self { missing, quarantined, faults, next: None, rest, under_way: false })
    }

    /// Why, in one sentence after the other.
    pub(super) fn why(&self) -> String {
        let sentences: Vec<&str> = self.missing.iter().map(|missing| missing.why.as_str()).collect();
        sentences.join("; ")
    }

    /// How many slots this makes at most; none where nobody knows.
    pub(super) fn most_slots(&self) -> Option<usize> {
        self.missing.iter().map(|missing| Some(missing.most_slots()? as usize)).sum()
    }

    /// Keeps a fault until the GPU that has it is counted. A later one of the same GPU says nothing new.
    pub(super) fn keep(&mut self, fault: &Fault) {
        if self.faults.iter().all(|known| known.uuid != fault.uuid) {
            self.faults.push(fault.clone());
        }
    }

    /// Plans the next count, if anybody waits for it. `beside_others`: some slots are known.
    fn plan(&mut self, anybody_waits: bool, beside_others: bool) {
        if self.under_way {
            return;
        }
        match (anybody_waits, beside_others) {
            (true, _) if self.next.is_some() => {}
            (true, _) => {
                if beside_others {
                    self.rest = self.rest.max(FIRST_REST_BESIDE_OTHERS);
                }
                self.next = Some(Instant::now() + self.rest);
            }
            (false, true) => self.next = None,
            (false, false) => (self.next, self.rest) = (None, FIRST_REST),
        }
    }

    /// It is time to count.
    fn begin(&mut self) {
        (self.next, self.under_way) = (None, true);
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }
}

impl Owner {
    /// When the GPUs are to be counted again.
    pub(super) fn next_count(&self) -> Option<Instant> {
        self.uncounted.as_ref()?.next
    }

    /// Plans the next count, if anybody waits for it.
    pub(super) fn plan_count(&mut self) {
        let anybody_waits = self.anybody_wants_gpus();
        if let Some(uncounted) = &mut self.uncounted {
            uncounted.plan(anybody_waits, self.slots.count() > 0);
        }
    }

    pub(super) fn count_again(&mut self) {
        let Some(uncounted) = &mut self.uncounted else { return };
        uncounted.begin();
        let gpus = self.gpus.clone();
        self.work.push(Box::pin(async move { Done::Counted { count: gpus.count().await } }));
    }

    /// The GPUs were counted once more.
    pub(super) fn counted(&mut self, count: Count) {
        let Some(uncounted) = &mut self.uncounted else { return };
        uncounted.under_way = false;
        uncounted.missing = count.missing;
        let (quarantined, faults) = (std::mem::take(&mut uncounted.quarantined), std::mem::take(&mut uncounted.faults));
        if uncounted.missing.is_empty() {
            self.uncounted = None;
        }
        let live = &self.live;
        let uuids_of = |launch| live.get(&launch).map_or(&[][..], |live| live.taken.uuids.as_slice());
        let holder_of =
            |uuid: &String| live.iter().find(|(_, live)| live.taken.uuids.contains(uuid)).map(|(id, _)| *id);
        let added = self.slots.add(count.slots, uuids_of, holder_of);
        self.take_over_quarantine(quarantined);
        faults.iter().for_each(|fault| self.fault(fault));
        if added > 0 {
            tracing::info!(gpus = added, "jobs may have GPUs that could not be read before");
            self.check_gpus_of_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn uncounted() -> Uncounted {
        Uncounted::of(crate::gpu::tests::one_of_two_unread().await.missing()).expect("one is missing")
    }

    #[tokio::test]
    async fn the_rest_before_a_count_begins_anew_only_where_no_slot_is_known() {
        for (beside_others, first) in [(false, FIRST_REST), (true, FIRST_REST_BESIDE_OTHERS)] {
            let mut uncounted = uncounted().await;
            uncounted.plan(true, beside_others);
            assert!(uncounted.next.is_some());
            assert_eq!(uncounted.rest, first);
            uncounted.begin();
            uncounted.plan(true, beside_others);
            assert_eq!(uncounted.next, None, "one is under way");
            uncounted.under_way = false;
            uncounted.plan(false, beside_others);
            assert_eq!(uncounted.next, None, "nobody waits");
            uncounted.plan(true, beside_others);
            assert_eq!(uncounted.rest, if beside_others { 2 * first } else { first });
        }
    }

    #[tokio::test]
    async fn a_gpu_that_cannot_be_read_makes_seven_slots_at_most() {
        assert_eq!(uncounted().await.most_slots(), Some(7));
    }
}
