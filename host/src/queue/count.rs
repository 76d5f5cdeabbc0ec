//! Counting the GPUs again, where NVML did not work at the start, or could not read some of them.
//!
//! Until it does, nobody knows which slots there are, or that there are more: jobs that need them wait, and the others go on. As
//! long as anybody waits the GPUs are counted again, after a rest that grows from [`FIRST_REST`] to [`LONGEST_REST`].

use std::time::Duration;

use tokio::time::Instant;

use super::handle::Mode;
use super::owner::{Done, Owner};
use super::slots::SlotGpu;
use crate::gpu::{Missing, Trouble};

const FIRST_REST: Duration = Duration::from_millis(50);
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
    /// When to count next; none while nobody waits or a count is under way.
    next: Option<Instant>,
    rest: Duration,
    under_way: bool,
}

impl Uncounted {
    /// None when nothing is missing.
    pub(super) fn of(missing: Vec<Missing>) -> Option<Self> {
        let rest = FIRST_REST;
        (!missing.is_empty()).then(|| Self { missing, quarantined: Vec::new(), next: None, rest, under_way: false })
    }

    /// Why, in one sentence after the other.
    pub(super) fn why(&self) -> String {
        let sentences: Vec<&str> = self.missing.iter().map(|missing| missing.why.as_str()).collect();
        sentences.join("; ")
    }
}

impl Owner {
    /// When the GPUs are to be counted again.
    pub(super) fn next_count(&self) -> Option<Instant> {
        self.uncounted.as_ref()?.next
    }

    /// Plans the next count, if anybody waits for it.
    pub(super) fn plan_count(&mut self) {
        // A queue that is paused or drained waits for nothing.
        let anybody_waits = self.mode == Mode::Run && !self.jobs.line().is_empty();
        let Some(uncounted) = self.uncounted.as_mut().filter(|uncounted| !uncounted.under_way) else { return };
        if !anybody_waits {
            (uncounted.next, uncounted.rest) = (None, FIRST_REST);
        } else if uncounted.next.is_none() {
            uncounted.next = Some(Instant::now() + uncounted.rest);
        }
    }

    pub(super) fn count_again(&mut self) {
        let Some(uncounted) = &mut self.uncounted else { return };
        (uncounted.next, uncounted.under_way) = (None, true);
        uncounted.rest = (uncounted.rest * 2).min(LONGEST_REST);
        let gpus = self.gpus.clone();
        self.work.push(Box::pin(async move { Done::Counted { count: gpus.count().await } }));
    }

    /// The GPUs were counted once more.
    pub(super) fn counted(&mut self, count: Count) {
        let Some(uncounted) = &mut self.uncounted else { return };
        uncounted.under_way = false;
        uncounted.missing = count.missing;
        let quarantined = std::mem::take(&mut uncounted.quarantined);
        if uncounted.missing.is_empty() {
            self.uncounted = None;
        }
        let live = &self.live;
        let uuids_of = |launch| live.get(&launch).map_or(&[][..], |live| live.taken.uuids.as_slice());
        let holder_of =
            |uuid: &String| live.iter().find(|(_, live)| live.taken.uuids.contains(uuid)).map(|(id, _)| *id);
        let added = self.slots.add(count.slots, uuids_of, holder_of);
        self.take_over_quarantine(quarantined);
        if added > 0 {
            tracing::info!(gpus = added, "jobs may have GPUs that could not be read before");
            self.check_gpus_of_all();
        }
    }
}
