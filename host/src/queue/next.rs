//! Which jobs are next in line, and which follow them.

use taxiway_job::{Busy, Entry, JobId, Spot, Terms};

use super::owner::Owner;
use super::pace::Pace;
use super::slots::SlotId;

/// Places in line that are looked through for jobs whose GPUs none before them waits for. Only a line that begins with jobs that
/// name their GPUs is looked through at all; were a thousand of them at its front, those behind wait for one to start.
const LOOKED_THROUGH: usize = 1000;

/// A job that may start as soon as its slots are free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) job: JobId,
    pub(super) gpus: u32,
    /// The slots that it may get, free or not: those that its terms allow and no job before it waits for. None for a job without
    /// GPUs.
    pub(super) slots: Vec<SlotId>,
}

/// One that follows a candidate.
pub(super) struct Following {
    /// How many stand between the two.
    pub(super) place: usize,
    pub(super) job: Candidate,
}

impl Owner {
    /// The jobs that are next: the first of those without GPUs, the first of those with, and every other whose GPUs none before
    /// it waits for. One that may be on its way out of the line is passed by.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        if let Some(job) = self.jobs.head(Spot::Cpu) {
            candidates.push(Candidate { job, gpus: 0, slots: Vec::new() });
        }
        let mut unclaimed = self.slots.allowed(None);
        for place in self.jobs.line().spot(Spot::Gpu).take(LOOKED_THROUGH) {
            let job = place.job();
            let Some(entry) = self.jobs.get(job).filter(|entry| entry.busy != Busy::Leaving) else { continue };
            let allowed = match entry.terms() {
                Some(terms) if terms.choose_gpus() => self.slots.allowed(Some(terms)),
                // Whatever there is: nobody comes after it.
                _ => unclaimed.clone(),
            };
            let slots: Vec<SlotId> = allowed.iter().filter(|id| unclaimed.contains(id)).copied().collect();
            if slots.len() >= entry.gpus() as usize {
                candidates.push(Candidate { job, gpus: entry.gpus(), slots });
            }
            match entry.terms() {
                Some(terms) if terms.choose_gpus() => unclaimed.retain(|id| !allowed.contains(id)),
                _ => break,
            }
            if unclaimed.is_empty() {
                break;
            }
        }
        candidates
    }

    /// The jobs that will be next once the candidates have started, as many behind each as may be armed at most. Jobs that plugins
    /// judge at their launch are judged when they are next, and those that name their GPUs may be next for others by then.
    pub(super) fn following(&self, candidates: &[Candidate]) -> Vec<Following> {
        let mut following = Vec::new();
        let names_gpus = |entry: &Entry| entry.terms().is_some_and(Terms::choose_gpus);
        for candidate in candidates {
            if self.jobs.get(candidate.job).is_none_or(names_gpus) {
                continue;
            }
            let spot = if candidate.gpus == 0 { Spot::Cpu } else { Spot::Gpu };
            let places = self.jobs.line().spot(spot).map(|place| place.job());
            let behind = places.skip_while(|job| *job != candidate.job).skip(1);
            let entries =
                behind.filter_map(|job| Some((job, self.jobs.get(job).filter(|entry| entry.busy != Busy::Leaving)?)));
            following.extend(
                entries
                    .take(Pace::MOST)
                    .enumerate()
                    .take_while(|(place, (_, entry))| {
                        let fits = entry.gpus() == 0 || entry.gpus() as usize <= candidate.slots.len();
                        // The start of one member of an array may be what keeps the others waiting.
                        let stays = *place == 0 || entry.terms().is_none_or(|terms| terms.array.is_none());
                        let is_judged = self.hooks.judges_launch(entry.profile.as_deref());
                        fits && stays && !names_gpus(entry) && !is_judged
                    })
                    .map(|(place, (job, entry))| {
                        let slots = candidate.slots.clone();
                        Following { place, job: Candidate { job, gpus: entry.gpus(), slots } }
                    }),
            );
        }
        following
    }
}
