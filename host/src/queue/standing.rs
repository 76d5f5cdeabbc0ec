//! Why a job waits, and where in line.

use taxiway_job::{JobId, Reason, State};

use super::arm::Lane;
use super::handle::{Mode, Standing};
use super::owner::{Entry, Owner};

impl Owner {
    pub(super) fn standing(&self, id: JobId) -> Standing {
        let Some(entry) = self.jobs.get(&id) else { return Standing::default() };
        if entry.state.is_live() {
            let live = self.live.values().find(|live| live.job == id);
            return Standing {
                position: None,
                reason: live.and_then(|live| live.unresponsive).map(|shim_pid| {
                    Reason::new(
                        "shim_unresponsive",
                        format!("its shim, process {shim_pid}, holds its lock and does not answer; nothing starts in its place"),
                    )
                }),
                progress: live.and_then(|live| live.progress.clone()),
            };
        }
        if entry.state != State::Queued {
            return Standing::default();
        }
        let position = self.line.position(entry.place(id));
        Standing { position: Some(position), reason: Some(self.reason(id, entry, position)), progress: None }
    }

    fn reason(&self, id: JobId, entry: &Entry, position: usize) -> Reason {
        match self.mode {
            Mode::Run => {}
            Mode::Paused => {
                return Reason::new("paused", "the queue is paused; `taxiway queue resume` starts it again");
            }
            Mode::Draining => {
                return Reason::new(
                    "draining",
                    "the queue is being drained: nothing starts until the service is started again",
                );
            }
        }
        if !self.store.is_committing() {
            return Reason::new("store_unavailable", "the database cannot be written just now, so nothing starts");
        }
        let there = self.slots.count();
        if entry.gpus as usize > there {
            let message = format!("it needs {} GPUs and {there} are left that the queue may use", entry.gpus);
            return Reason::new("gpus_unavailable", message);
        }
        if let Some(first) = self.head(Lane::of(entry.gpus))
            && self.jobs.get(&first).is_some_and(|head| head.place(first) < entry.place(id))
        {
            return Reason::new("behind", format!("it is number {position} in line; job {first} is next"));
        }
        if !self.slots.are_free(entry.gpus) {
            if entry.gpus == 0 {
                return Reason::new("waiting_for_slot", "all slots for jobs without GPUs are taken");
            }
            let holders: Vec<String> = self
                .slots
                .held()
                .map(|(label, launch)| match self.live.get(&launch).map(|live| live.job) {
                    Some(job) => format!("{label} is held by job {job}"),
                    None => format!("{label} is held by a launch of the previous service that is being settled"),
                })
                .collect();
            return Reason::new("waiting_for_gpu", holders.join("; "));
        }
        if let Some(pause) = &self.arm_pause {
            return pause.reason.clone();
        }
        Reason::new("starting", "it is about to start")
    }
}
