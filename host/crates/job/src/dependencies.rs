//! Which job waits for which.

use std::collections::{BTreeMap, HashMap};

use crate::{JobId, State, Terms};

/// Who comes after whom, among jobs that have not ended and those they name.
#[derive(Debug, Default)]
pub(crate) struct Dependencies {
    /// For each job that others come after: those others, and whether any end of it will do for them.
    successors: HashMap<JobId, BTreeMap<JobId, bool>>,
    /// For each job that comes after others: what of them it still needs.
    needs: HashMap<JobId, Needs>,
}

#[derive(Debug, Default)]
struct Needs {
    /// How many of them have not ended.
    open: usize,
    /// Those that ended otherwise than they should have.
    in_vain: BTreeMap<JobId, State>,
}

impl Dependencies {
    /// A job comes after those of its terms. Returns how many of them have not ended.
    pub(crate) fn link(&mut self, job: JobId, terms: &Terms, has_not_ended: impl Fn(JobId) -> bool) -> usize {
        let mut open = 0;
        for (predecessor, any) in terms.predecessors() {
            let successors = self.successors.entry(predecessor).or_default();
            match successors.get_mut(&job) {
                // Named twice: the stricter condition holds.
                Some(before) => *before &= any,
                None => {
                    successors.insert(job, any);
                    open += usize::from(has_not_ended(predecessor));
                }
            }
        }
        self.needs.insert(job, Needs { open, in_vain: BTreeMap::new() });
        open
    }

    /// The opposite of [`Dependencies::link`] with the same terms.
    pub(crate) fn unlink(&mut self, job: JobId, terms: &Terms) {
        for (predecessor, _) in terms.predecessors() {
            if let Some(successors) = self.successors.get_mut(&predecessor) {
                successors.remove(&job);
                if successors.is_empty() {
                    self.successors.remove(&predecessor);
                }
            }
        }
        self.needs.remove(&job);
    }

    /// A job has ended like this. Returns the jobs that wait for none any more, and those that now wait in vain.
    pub(crate) fn ended(&mut self, job: JobId, end: State) -> (Vec<JobId>, Vec<JobId>) {
        let (mut met, mut vain) = (Vec::new(), Vec::new());
        for (successor, any) in self.successors.get(&job).into_iter().flatten() {
            let Some(needs) = self.needs.get_mut(successor) else { continue };
            needs.open = needs.open.saturating_sub(1);
            if !any && end != State::Completed {
                needs.in_vain.insert(job, end);
                vain.push(*successor);
            } else if needs.open == 0 && needs.in_vain.is_empty() {
                met.push(*successor);
            }
        }
        (met, vain)
    }

    /// The job for which a job waits in vain, and how that one ended.
    pub(crate) fn in_vain(&self, job: JobId) -> Option<(JobId, State)> {
        self.needs.get(&job)?.in_vain.first_key_value().map(|(job, end)| (*job, *end))
    }

    /// A job that had ended waits again. Returns the jobs that come after it, and so wait again too.
    pub(crate) fn returned(&mut self, job: JobId) -> Vec<JobId> {
        let mut waiting = Vec::new();
        for successor in self.successors.get(&job).into_iter().flatten().map(|(successor, _)| successor) {
            if let Some(needs) = self.needs.get_mut(successor) {
                needs.open += 1;
                needs.in_vain.remove(&job);
                waiting.push(*successor);
            }
        }
        waiting
    }
}
