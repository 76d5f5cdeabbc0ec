//! Every job that has not ended, in memory: what state it is in, where in line, and what it waits for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::array::Arrays;
use crate::dependencies::Dependencies;
use crate::{ArrayId, Condition, JobId, Line, Place, Shift, Spot, State, StopTarget, Target, Terms, Time, Unmet};

/// Whether a change of a job is being written. Meanwhile it neither starts nor takes another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Busy {
    /// It is not.
    #[default]
    No,
    /// What it is or where it stands is being changed, and it stays in line: those behind it wait for that.
    Staying,
    /// It may be on its way out of the line, or it cannot be told for how long it is busy: those behind it pass.
    Leaving,
}

/// Changes in a row for which those behind a job wait: more than a person makes of one that is about to start, and few enough for a
/// program that never leaves it alone to keep nobody waiting but it.
const MOST_CHANGES: u8 = 8;

/// A job that has not ended, as small as it can be: there may be a million of them.
#[derive(Debug, Clone)]
pub struct Entry {
    state: State,
    gpus: u32,
    priority: i16,
    rank: i64,
    unmet: Unmet,
    /// A launch of it is not settled: it may have started.
    unsettled: bool,
    /// Whether a change of it is being written.
    pub busy: Busy,
    /// Changes in which it stayed in line since it was last ready to start.
    changes: u8,
    /// The present attempt, from 1.
    pub attempt: u32,
    /// Automatic retries since somebody last asked for it to run.
    pub retries_done: u32,
    /// Grows with every edit.
    pub revision: u32,
    /// Where a stop that was ordered leads.
    pub stop_target: Option<StopTarget>,
    /// Its profile.
    pub profile: Option<Arc<str>>,
    terms: Option<Box<Terms>>,
}

impl Entry {
    /// An entry of the first attempt of a job that nobody is changing.
    #[must_use]
    pub fn new(state: State, gpus: u32, priority: i16, rank: i64, terms: Option<Box<Terms>>) -> Self {
        Self {
            state,
            gpus,
            priority,
            rank,
            unmet: Unmet::default(),
            unsettled: false,
            busy: Busy::No,
            changes: 0,
            attempt: 1,
            retries_done: 0,
            revision: 1,
            stop_target: None,
            profile: None,
            terms,
        }
    }

    /// The same at another place.
    #[must_use]
    pub fn at(self, place: Place) -> Self {
        Self { priority: place.priority(), rank: place.rank(), ..self }
    }

    /// The same in another state, before it is taken in.
    #[must_use]
    pub fn in_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// A change begins to be written in which it stays in line. Those behind it wait for that, unless it was never ready to start
    /// between many.
    pub fn begin_change(&mut self) {
        self.changes = self.changes.saturating_add(1);
        self.busy = if self.changes > MOST_CHANGES { Busy::Leaving } else { Busy::Staying };
    }

    /// It could start now, if its slots were free.
    pub fn was_ready(&mut self) {
        self.changes = 0;
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Slots that it needs; 0 is the CPU lane.
    #[must_use]
    pub fn gpus(&self) -> u32 {
        self.gpus
    }

    /// What keeps it from starting, whatever is free.
    #[must_use]
    pub fn unmet(&self) -> Unmet {
        self.unmet
    }

    /// What it asks of the queue beside its slots; none for nothing.
    #[must_use]
    pub fn terms(&self) -> Option<&Terms> {
        self.terms.as_deref()
    }

    /// Its place in the order.
    #[must_use]
    pub fn place(&self, id: JobId) -> Place {
        Place::new(self.priority, self.rank, id)
    }

    fn spot(&self) -> Spot {
        Spot::of(self.state, self.unmet, self.gpus)
    }

    /// The array that limits how many of its members are under way.
    fn array(&self) -> Option<ArrayId> {
        Some(self.terms()?.array?.array)
    }
}

/// All jobs that have not ended. What is decided here is decided without a clock, a disk or a process: the owner of the queue
/// feeds it with what happened, in the order in which it happened.
///
/// Invariant: a job's place is in the line at the spot that its state and its conditions say, and nowhere else.
#[derive(Debug, Default)]
pub struct Jobs {
    entries: HashMap<JobId, Entry>,
    line: Line,
    held: usize,
    dependencies: Dependencies,
    /// Whom jobs will come after once that is written.
    being_linked: HashMap<JobId, Vec<JobId>>,
    arrays: Arrays,
    /// Jobs whose pause before a retry is not over.
    retry_at: HashMap<JobId, Time>,
    /// When a condition that is a matter of time may be met.
    alarms: BTreeSet<(Time, JobId)>,
}

impl Jobs {
    /// No jobs; ranks are given out behind this one.
    #[must_use]
    pub fn new(last_rank: i64) -> Self {
        Self { line: Line::new(last_rank), ..Self::default() }
    }

    /// One job.
    #[must_use]
    pub fn get(&self, id: JobId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// One job, for what the line does not depend on.
    #[must_use]
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// Whether the job is here: it has not ended.
    #[must_use]
    pub fn contains(&self, id: JobId) -> bool {
        self.entries.contains_key(&id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// The order.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// How many are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// A rank behind all others.
    pub fn take_rank(&mut self) -> i64 {
        self.line.take_rank()
    }

    /// The position of a queued job, from 1.
    #[must_use]
    pub fn position(&self, id: JobId) -> Option<usize> {
        let entry = self.entries.get(&id).filter(|entry| entry.state == State::Queued)?;
        Some(self.line.position(entry.place(id)))
    }

    /// The first job of a lane ([`Spot::Gpu`] or [`Spot::Cpu`]) that is not on its way out of the line. It may start unless it is
    /// being changed where it stands.
    #[must_use]
    pub fn head(&self, lane: Spot) -> Option<JobId> {
        let stays = |job: &JobId| self.entries.get(job).is_some_and(|entry| entry.busy != Busy::Leaving);
        self.line.spot(lane).map(|place| place.job()).find(stays)
    }

    /// Takes in a job that has not ended. The jobs it comes after must be here already, unless they have ended; whether one
    /// of those ended in vain is the caller's to find out.
    pub fn enter(&mut self, id: JobId, mut entry: Entry, now: Time) {
        entry.unmet = entry.unmet.with(Condition::After, self.link(id, entry.terms()));
        let not_before = entry.terms().and_then(|terms| terms.not_before);
        entry.unmet = entry.unmet.with(Condition::NotBefore, self.arm(id, not_before, now));
        self.held += usize::from(entry.state == State::Held);
        self.line.insert(entry.place(id), entry.spot());
        self.entries.insert(id, entry);
        self.count_in_array(id);
        for successor in self.dependencies.returned(id) {
            self.set_unmet(successor, Condition::After, true);
        }
    }

    fn link(&mut self, id: JobId, terms: Option<&Terms>) -> bool {
        let Some(terms) = terms.filter(|terms| terms.predecessors().next().is_some()) else { return false };
        let entries = &self.entries;
        self.dependencies.link(id, terms, |predecessor| entries.contains_key(&predecessor)) > 0
    }

    /// Whether this time is still to come; then there is an alarm for it.
    fn arm(&mut self, id: JobId, at: Option<Time>, now: Time) -> bool {
        let Some(at) = at.filter(|at| *at > now) else { return false };
        self.alarms.insert((at, id));
        true
    }

    /// Changes the state of a job. Returns the jobs that came after it and now wait in vain.
    #[must_use]
    pub fn set_state(&mut self, id: JobId, to: State) -> Vec<JobId> {
        let Some(entry) = self.entries.get_mut(&id) else { return Vec::new() };
        let from = std::mem::replace(&mut entry.state, to);
        debug_assert!(from == to || from.may_become(to), "{from} to {to}");
        let before = Spot::of(from, entry.unmet, entry.gpus);
        let (place, after) = (entry.place(id), entry.spot());
        self.line.remove(place, before);
        self.held -= usize::from(from == State::Held);
        self.held += usize::from(to == State::Held);
        if !to.has_ended() {
            self.line.insert(place, after);
            self.count_in_array(id);
            return Vec::new();
        }
        self.forget(id);
        let (met, vain) = self.dependencies.ended(id, to);
        for successor in met {
            self.set_unmet(successor, Condition::After, false);
        }
        vain
    }

    /// The job for which this one waits in vain, and how that one ended while this one was here.
    #[must_use]
    pub fn in_vain(&self, id: JobId) -> Option<(JobId, State)> {
        self.dependencies.in_vain(id)
    }

    fn forget(&mut self, id: JobId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(terms) = entry.terms {
            self.dependencies.unlink(id, &terms);
            if let Some(at) = terms.not_before {
                self.alarms.remove(&(at, id));
            }
            if let Some(limit) = terms.array {
                let turned = self.arrays.leave(limit.array, id);
                self.limit_members(limit.array, turned);
            }
        }
        if let Some(at) = self.retry_at.remove(&id) {
            self.alarms.remove(&(at, id));
        }
    }

    /// A launch of a job that the store knows as waiting is being settled, or is settled. Meanwhile the job may have started, and
    /// takes a place of its array.
    pub fn set_unsettled(&mut self, id: JobId, unsettled: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.unsettled = unsettled;
            self.count_in_array(id);
        }
    }

    /// Counts a job among the members of its array. Where that changes for all of them whether they may start, a thousand at most
    /// take another spot in the line.
    fn count_in_array(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(limit) = entry.terms().and_then(|terms| terms.array) else { return };
        let turned = self.arrays.count(limit, id, entry.state.is_live() || entry.unsettled);
        self.limit_members(limit.array, turned);
        self.set_unmet(id, Condition::ArrayLimit, self.arrays.keeps_waiting(limit.array, id));
    }

    fn limit_members(&mut self, array: ArrayId, turned: bool) {
        if !turned {
            return;
        }
        for member in self.arrays.members(array) {
            self.set_unmet(member, Condition::ArrayLimit, self.arrays.keeps_waiting(array, member));
        }
    }

    /// The members of a job's array that are under way, when there is a limit to their number.
    pub fn under_way_in_array(&self, id: JobId) -> impl Iterator<Item = JobId> {
        self.entries.get(&id).and_then(Entry::array).into_iter().flat_map(|array| self.arrays.under_way(array))
    }

    /// A condition of a job is unmet, or met.
    pub fn set_unmet(&mut self, id: JobId, condition: Condition, unmet: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = entry.spot();
        entry.unmet = entry.unmet.with(condition, unmet);
        let (place, after) = (entry.place(id), entry.spot());
        if before != after {
            self.line.remove(place, before);
            self.line.insert(place, after);
        }
    }

    /// The next attempt of a job comes no earlier than this; none: as soon as it is its turn.
    pub fn set_retry_at(&mut self, id: JobId, at: Option<Time>, now: Time) {
        if let Some(before) = self.retry_at.remove(&id)
            && self.not_before(id) != Some(before)
        {
            self.alarms.remove(&(before, id));
        }
        if !self.contains(id) {
            return;
        }
        let unmet = self.arm(id, at, now);
        self.retry_at.extend(at.filter(|_| unmet).map(|at| (id, at)));
        self.set_unmet(id, Condition::RetryBackoff, unmet);
    }

    /// When the pause before the next attempt of a job is over.
    #[must_use]
    pub fn retry_at(&self, id: JobId) -> Option<Time> {
        self.retry_at.get(&id).copied()
    }

    fn not_before(&self, id: JobId) -> Option<Time> {
        self.entries.get(&id)?.terms()?.not_before
    }

    /// When [`Jobs::ring`] has something to do.
    #[must_use]
    pub fn next_alarm(&self) -> Option<Time> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Conditions that are a matter of time are met by now.
    pub fn ring(&mut self, now: Time) {
        while let Some((at, id)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, id));
            if self.not_before(id).is_some_and(|at| at <= now) {
                self.set_unmet(id, Condition::NotBefore, false);
            }
            if self.retry_at(id).is_some_and(|at| at <= now) {
                self.retry_at.remove(&id);
                self.set_unmet(id, Condition::RetryBackoff, false);
            }
        }
    }

    /// What a job's priority, slots and terms are from now on.
    pub fn edit(&mut self, id: JobId, gpus: u32, priority: i16, terms: Option<Box<Terms>>, now: Time) {
        let Some(mut entry) = self.entries.remove(&id) else { return };
        self.line.remove(entry.place(id), entry.spot());
        debug_assert_eq!(
            entry.array(),
            terms.as_ref().and_then(|terms| Some(terms.array?.array)),
            "no job changes arrays"
        );
        if let Some(before) = entry.terms.take() {
            self.dependencies.unlink(id, &before);
            if let Some(at) = before.not_before
                && self.retry_at.get(&id) != Some(&at)
            {
                self.alarms.remove(&(at, id));
            }
        }
        entry.unmet = entry.unmet.with(Condition::After, self.link(id, terms.as_deref()));
        let not_before = terms.as_ref().and_then(|terms| terms.not_before);
        entry.unmet = entry.unmet.with(Condition::NotBefore, self.arm(id, not_before, now));
        (entry.gpus, entry.priority, entry.terms) = (gpus, priority, terms);
        self.line.insert(entry.place(id), entry.spot());
        self.entries.insert(id, entry);
    }

    /// The shifts that bring a job to its target ([`Line::shifts`]); none when the target names a job that is not queued.
    #[must_use]
    pub fn shifts(&mut self, who: Place, target: Target) -> Option<Vec<Shift>> {
        let entries = &self.entries;
        let place_of =
            |job: JobId| entries.get(&job).filter(|entry| entry.state == State::Queued).map(|entry| entry.place(job));
        if let Target::Before(job) = target {
            place_of(job)?;
        }
        Some(self.line.shifts(who, target, place_of))
    }

    /// Applies shifts; another priority is an edit of the job. A job that has left the place that a shift names meanwhile stays where it is.
    pub fn shift(&mut self, shifts: &[Shift]) {
        for Shift { from, to } in shifts {
            let id = from.job();
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.place(id) == *from) else { continue };
            let spot = entry.spot();
            entry.revision += u32::from(from.priority() != to.priority());
            (entry.priority, entry.rank) = (to.priority(), to.rank());
            self.line.remove(*from, spot);
            self.line.insert(*to, spot);
        }
    }

    /// A job goes behind all others of its priority, with this rank of [`Jobs::take_rank`].
    pub fn set_rank(&mut self, id: JobId, rank: i64) {
        if let Some(entry) = self.entries.get(&id) {
            let from = entry.place(id);
            self.shift(&[Shift { from, to: Place::new(from.priority(), rank, id) }]);
        }
    }

    /// A job is to come after those of these terms, and that is being written until [`Jobs::end_linking`]. False, and nothing is
    /// to be written, when it would come after itself and never start, whatever becomes of all else that is being written.
    #[must_use]
    pub fn begin_linking(&mut self, id: JobId, terms: &Terms) -> bool {
        if self.closes_a_circle(id, terms) {
            return false;
        }
        let predecessors: Vec<JobId> = terms.predecessors().map(|(job, _)| job).collect();
        if !predecessors.is_empty() {
            self.being_linked.insert(id, predecessors);
        }
        true
    }

    /// What a job comes after is written, or was refused.
    pub fn end_linking(&mut self, id: JobId) {
        self.being_linked.remove(&id);
    }

    fn closes_a_circle(&self, id: JobId, terms: &Terms) -> bool {
        let mut seen = HashSet::new();
        let mut open: Vec<JobId> = terms.predecessors().map(|(job, _)| job).collect();
        while let Some(job) = open.pop() {
            if job == id {
                return true;
            }
            if seen.insert(job) {
                let terms = self.entries.get(&job).and_then(|entry| entry.terms());
                open.extend(terms.into_iter().flat_map(Terms::predecessors).map(|(job, _)| job));
                open.extend(self.being_linked.get(&job).into_iter().flatten());
            }
        }
        false
    }
}

impl Spot {
    fn of(state: State, unmet: Unmet, gpus: u32) -> Self {
        match state {
            State::Queued if !unmet.is_empty() => Self::Waiting,
            State::Queued if gpus == 0 => Self::Cpu,
            State::Queued => Self::Gpu,
            _ => Self::Aside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_after_the_other_keeps_those_behind_waiting_only_so_often() {
        let mut entry = Entry::new(State::Queued, 1, 0, 0, None);
        let mut change = || {
            entry.begin_change();
            std::mem::take(&mut entry.busy)
        };
        assert!((0..MOST_CHANGES).all(|_| change() == Busy::Staying));
        assert!((0..1000).all(|_| change() == Busy::Leaving));
        entry.was_ready();
        entry.begin_change();
        assert_eq!(entry.busy, Busy::Staying);
    }

    #[test]
    fn two_changes_that_are_written_at_once_close_no_circle() {
        let now = Time::from_millis(0);
        let [first, second, third] = [(); 3].map(|()| JobId::new());
        let after = |job: JobId| Terms { after: vec![job], ..Terms::default() };
        let mut jobs = Jobs::default();
        for id in [first, second, third] {
            let rank = jobs.take_rank();
            jobs.enter(id, Entry::new(State::Queued, 1, 0, rank, None), now);
        }
        assert!(jobs.begin_linking(first, &after(second)));
        assert!(jobs.begin_linking(second, &after(third)));
        assert!(!jobs.begin_linking(third, &after(first)), "by way of what is being written");
        // The first was refused, the second is written.
        jobs.end_linking(first);
        jobs.edit(second, 1, 0, Some(Box::new(after(third))), now);
        jobs.end_linking(second);
        assert!(!jobs.begin_linking(third, &after(second)));
        assert!(jobs.begin_linking(third, &after(first)));
        assert!(!jobs.begin_linking(first, &after(second)));
    }
}
