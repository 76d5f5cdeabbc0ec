//! Counting the GPUs again, where NVML did not work at the start.
//!
//! Until it does, nobody knows which slots there are: jobs that need a GPU wait, and the others go on. As long as anybody waits
//! the GPUs are counted again, after a rest that grows from [`FIRST_REST`] to [`LONGEST_REST`].

use std::time::Duration;

use tokio::time::Instant;

use super::handle::Mode;
use super::owner::{Done, Owner};
use super::slots::SlotGpu;
use crate::gpu::Trouble;

const FIRST_REST: Duration = Duration::from_millis(50);
/// Each time means to begin a new session with NVML, and whoever mends a driver takes minutes for it.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// A GPU that the previous service kept from jobs: its UUID, what is wrong with it, and the boot in which that was found.
pub(super) type Quarantined = (String, Trouble, String);

/// What is known of GPUs that are not counted yet.
pub(super) struct Uncounted {
    /// Why they are not.
    pub(super) why: String,
    /// Those that the previous service kept from jobs.
    pub(super) quarantined: Vec<Quarantined>,
    /// When to count next; none while nobody waits or a count is under way.
    next: Option<Instant>,
    rest: Duration,
    under_way: bool,
}

impl Uncounted {
    pub(super) fn new(why: String) -> Self {
        Self { why, quarantined: Vec::new(), next: None, rest: FIRST_REST, under_way: false }
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
        self.work.push(Box::pin(async move { Done::Counted { counted: gpus.count().await } }));
    }

    /// The GPUs were counted, or why they still cannot be.
    pub(super) fn counted(&mut self, counted: Result<Vec<SlotGpu>, String>) {
        let gpus = match (counted, &mut self.uncounted) {
            (Ok(gpus), Some(_)) => gpus,
            (Err(why), Some(uncounted)) => {
                uncounted.under_way = false;
                uncounted.why = why;
                return;
            }
            (_, None) => return,
        };
        tracing::info!(gpus = gpus.len(), "NVML works by now, and jobs may have GPUs");
        let quarantined = self.uncounted.take().map(|uncounted| uncounted.quarantined).unwrap_or_default();
        let live = &self.live;
        self.slots.counted(gpus, |launch| live.get(&launch).map_or(&[], |live| live.taken.uuids.as_slice()));
        self.take_over_quarantine(quarantined);
        self.check_gpus_of_all();
    }
}
