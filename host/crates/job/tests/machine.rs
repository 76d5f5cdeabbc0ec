//! Random orders of everything that can happen to jobs in line, against a reference that is too simple to be wrong.
//!
//! The reference is one list of jobs in their order, from which everything else is found anew at each step: who is queued, at
//! which position, who waits for what, who is next. The queue's owner is played by the test: it starts the next in line when
//! slots are free, and ends whom nobody can help any more.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use taxiway_job::{
    ArrayId, ArrayLimit, Busy, Condition, Entry, JobId, Jobs, Retries, Spot, State, Target, Terms, Time, Unmet,
};

/// Sequences of operations. More: `TAXIWAY_TEST_SEQUENCES=1000000`.
const SEQUENCES: u32 = 200_000;

const GPU_SLOTS: u32 = 3;
const CPU_SLOTS: usize = 1;

#[derive(Debug, Clone)]
enum Op {
    Submit {
        priority: i16,
        gpus: u32,
        hold: bool,
        after: Vec<(usize, bool)>,
        not_before: Option<i64>,
        retries: u32,
        /// Of one of two arrays.
        array: Option<usize>,
    },
    /// A running job ends: well, badly, or badly and to be tried again after its pause.
    End {
        which: usize,
        well: bool,
    },
    Cancel(usize),
    Hold(usize),
    Release(usize),
    Requeue {
        which: usize,
        hold: bool,
    },
    Retry(usize),
    Move {
        which: usize,
        to: usize,
        kind: u8,
    },
    /// Other terms: comes after these.
    Edit {
        which: usize,
        gpus: u32,
        after: Vec<(usize, bool)>,
    },
    /// A condition that others look after changes.
    Limit {
        which: usize,
        unmet: bool,
    },
    /// The service was restarted, and it is found out whether a job was told to start; or that is known.
    Unsettled {
        which: usize,
        unsettled: bool,
    },
    /// Somebody begins or ends a change of a job, in which it stays in line or not.
    Busy {
        which: usize,
        busy: Busy,
    },
    Pass(i64),
}

fn after() -> impl Strategy<Value = Vec<(usize, bool)>> {
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec((0usize..12, any::<bool>()), 1..3)]
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0usize..12;
    prop_oneof![
        6 => (-1i16..=1, 0u32..=GPU_SLOTS, prop::bool::weighted(0.1), after(), prop::option::weighted(0.2, 0i64..20), 0u32..2, prop::option::of(0usize..2))
            .prop_map(|(priority, gpus, hold, after, not_before, retries, array)| Op::Submit {
                priority, gpus, hold, after, not_before, retries, array
            }),
        6 => (which(), any::<bool>()).prop_map(|(which, well)| Op::End { which, well }),
        2 => which().prop_map(Op::Cancel),
        1 => which().prop_map(Op::Hold),
        2 => which().prop_map(Op::Release),
        1 => (which(), any::<bool>()).prop_map(|(which, hold)| Op::Requeue { which, hold }),
        2 => which().prop_map(Op::Retry),
        3 => (which(), which(), 0u8..4).prop_map(|(which, to, kind)| Op::Move { which, to, kind }),
        1 => (which(), 0u32..=GPU_SLOTS, after()).prop_map(|(which, gpus, after)| Op::Edit { which, gpus, after }),
        1 => (which(), any::<bool>()).prop_map(|(which, unmet)| Op::Limit { which, unmet }),
        1 => (which(), any::<bool>()).prop_map(|(which, unsettled)| Op::Unsettled { which, unsettled }),
        1 => (which(), prop::sample::select(vec![Busy::No, Busy::Staying, Busy::Leaving])).prop_map(|(which, busy)| Op::Busy { which, busy }),
        2 => (1i64..15).prop_map(Op::Pass),
    ]
}

/// Whether a job takes a place of its array.
fn is_under_way(known: &Known) -> bool {
    known.state.is_live() || known.unsettled
}

/// A job as the reference knows it.
#[derive(Debug, Clone)]
struct Known {
    state: State,
    priority: i16,
    gpus: u32,
    terms: Terms,
    attempt: u32,
    retries_done: u32,
    retry_at: Option<Time>,
    without_gpus: bool,
    unsettled: bool,
    busy: Busy,
}

#[derive(Default)]
struct World {
    /// Two arrays; of the first one member may run at a time, of the second two.
    arrays: [ArrayId; 2],
    jobs: Jobs,
    now: i64,
    /// Every job that there ever was, in the order of submission.
    ids: Vec<JobId>,
    known: HashMap<JobId, Known>,
    /// All jobs that have not ended, in their order.
    order: Vec<JobId>,
    /// Attempts that were started.
    started: HashSet<(JobId, u32)>,
}

impl World {
    fn time(&self) -> Time {
        Time::from_millis(self.now)
    }

    fn pick(&self, which: usize, fits: impl Fn(&Known) -> bool) -> Option<JobId> {
        let fitting: Vec<JobId> = self.ids.iter().copied().filter(|id| fits(&self.known[id])).collect();
        fitting.get(which % fitting.len().max(1)).copied()
    }

    fn terms(&self, after: &[(usize, bool)], id: JobId) -> Terms {
        let mut terms = Terms::default();
        for (which, any) in after {
            let Some(other) = self.ids.get(which % self.ids.len().max(1)).copied().filter(|other| *other != id) else {
                continue;
            };
            if *any { terms.after_any.push(other) } else { terms.after.push(other) }
        }
        terms
    }

    /// The end of a priority in the order.
    fn behind(&self, priority: i16) -> usize {
        self.order.iter().position(|id| self.known[id].priority < priority).unwrap_or(self.order.len())
    }

    fn unmet(&self, known: &Known) -> Unmet {
        let has_not_ended = |job: JobId| !self.known[&job].state.has_ended();
        Unmet::default()
            .with(
                Condition::After,
                known.terms.predecessors().any(|(job, _)| has_not_ended(job)) || self.is_in_vain(known),
            )
            .with(Condition::NotBefore, known.terms.not_before.is_some_and(|at| at > self.time()))
            .with(Condition::RetryBackoff, known.retry_at.is_some_and(|at| at > self.time()))
            .with(Condition::GpusUnavailable, known.without_gpus)
            .with(Condition::ArrayLimit, !is_under_way(known) && self.is_full(known))
    }

    /// Whether as many of a job's array are under way as may be.
    fn is_full(&self, known: &Known) -> bool {
        let of_it = |other: &&Known| other.terms.array == known.terms.array && is_under_way(other);
        known
            .terms
            .array
            .is_some_and(|limit| self.known.values().filter(of_it).count() >= limit.max_parallel.get() as usize)
    }

    fn is_in_vain(&self, known: &Known) -> bool {
        known.terms.after.iter().any(|job| matches!(self.known[job].state, State::Failed | State::Cancelled))
    }

    fn set(&mut self, id: JobId, to: State) -> Vec<JobId> {
        let known = self.known.get_mut(&id).expect("it is known");
        assert!(known.state == to || known.state.may_become(to), "{} to {to}", known.state);
        known.state = to;
        if to.has_ended() {
            self.order.retain(|other| *other != id);
            known.busy = Busy::No;
            known.without_gpus = false;
            known.unsettled = false;
            known.retry_at = None;
        }
        self.jobs.set_state(id, to)
    }

    /// Ends a job, and all that wait in vain then.
    fn end(&mut self, id: JobId, to: State) {
        let mut in_vain = self.set(id, to);
        while let Some(job) = in_vain.pop() {
            if matches!(self.known[&job].state, State::Queued | State::Held) && self.is_in_vain(&self.known[&job]) {
                in_vain.extend(self.set(job, State::Cancelled));
            }
        }
    }

    /// A job that ran waits again, unless what it comes after has failed meanwhile.
    fn wait_again(&mut self, id: JobId, state: State) {
        assert!(self.set(id, state).is_empty());
        assert_eq!(self.jobs.in_vain(id).is_some(), self.is_in_vain(&self.known[&id]));
        if self.is_in_vain(&self.known[&id]) {
            self.end(id, State::Cancelled);
        }
    }

    fn send_back(&mut self, id: JobId) {
        self.order.retain(|other| *other != id);
        let at = self.behind(self.known[&id].priority);
        self.order.insert(at, id);
        let rank = self.jobs.take_rank();
        self.jobs.set_rank(id, rank);
    }

    fn next_attempt(&mut self, id: JobId) {
        self.known.get_mut(&id).expect("it is known").attempt += 1;
        self.jobs.get_mut(id).expect("it has not ended").attempt += 1;
    }

    fn enter(&mut self, id: JobId, state: State) {
        let known = self.known[&id].clone();
        let rank = self.jobs.take_rank();
        let terms = (!known.terms.are_none()).then(|| Box::new(known.terms.clone()));
        let mut entry = Entry::new(state, known.gpus, known.priority, rank, terms);
        entry.attempt = known.attempt;
        let now = self.time();
        self.jobs.enter(id, entry, now);
        let at = self.behind(known.priority);
        self.order.insert(at, id);
        self.known.get_mut(&id).expect("it is known").state = state;
        if self.is_in_vain(&known) {
            self.end(id, State::Cancelled);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit { priority, gpus, hold, after, not_before, retries, array } => {
                if self.ids.len() >= 12 {
                    return;
                }
                let id = JobId::new();
                let mut terms = self.terms(&after, id);
                terms.not_before = not_before.map(|wait| Time::from_millis(self.now + wait));
                terms.array = array.map(|array| ArrayLimit {
                    array: self.arrays[array],
                    max_parallel: NonZeroU32::MIN.saturating_add(array as u32),
                });
                terms.retries =
                    Retries { max: retries, backoff: std::time::Duration::from_millis(7), ..Retries::default() };
                let state = if hold { State::Held } else { State::Queued };
                let known = Known {
                    state,
                    priority,
                    gpus,
                    terms,
                    attempt: 1,
                    retries_done: 0,
                    retry_at: None,
                    without_gpus: false,
                    unsettled: false,
                    busy: Busy::No,
                };
                self.ids.push(id);
                self.known.insert(id, known);
                self.enter(id, state);
            }
            Op::End { which, well } => {
                let Some(id) = self.pick(which, |known| known.state == State::Running) else { return };
                if well {
                    return self.end(id, State::Completed);
                }
                let known = &self.known[&id];
                let class = taxiway_job::FailureClass::Exit;
                match known.terms.retries.pause_after(class, known.retries_done) {
                    Some(pause) => {
                        // It keeps its place.
                        let at = self.time().plus(pause);
                        self.next_attempt(id);
                        let known = self.known.get_mut(&id).expect("it is known");
                        (known.retry_at, known.retries_done) = (Some(at), known.retries_done + 1);
                        let now = self.time();
                        self.jobs.set_retry_at(id, Some(at), now);
                        self.wait_again(id, State::Queued);
                    }
                    None => self.end(id, State::Failed),
                }
            }
            Op::Cancel(which) => {
                let Some(id) = self.pick(which, |known| !known.state.has_ended()) else { return };
                if self.known[&id].state == State::Running {
                    assert!(self.set(id, State::Cancelling).is_empty());
                }
                self.end(id, State::Cancelled);
            }
            Op::Hold(which) => {
                let Some(id) = self.pick(which, |known| known.state == State::Queued) else { return };
                assert!(self.set(id, State::Held).is_empty());
            }
            Op::Release(which) => {
                let Some(id) = self.pick(which, |known| known.state == State::Held) else { return };
                assert!(self.set(id, State::Queued).is_empty());
            }
            Op::Requeue { which, hold } => {
                let Some(id) = self.pick(which, |known| known.state == State::Running) else { return };
                assert!(self.set(id, State::Cancelling).is_empty());
                self.next_attempt(id);
                self.send_back(id);
                self.wait_again(id, if hold { State::Held } else { State::Queued });
            }
            Op::Retry(which) => {
                let Some(id) = self.pick(which, |known| known.state.has_ended()) else { return };
                if !self.jobs.begin_linking(id, &self.known[&id].terms) {
                    return;
                }
                let known = self.known.get_mut(&id).expect("it is known");
                known.attempt += 1;
                known.retries_done = 0;
                self.jobs.end_linking(id);
                self.enter(id, State::Queued);
            }
            Op::Move { which, to, kind } => self.move_to(which, to, kind),
            Op::Edit { which, gpus, after } => {
                let Some(id) = self.pick(which, |known| matches!(known.state, State::Queued | State::Held)) else {
                    return;
                };
                let Terms { not_before, array, .. } = self.known[&id].terms;
                let terms = Terms { not_before, array, ..self.terms(&after, id) };
                if !self.jobs.begin_linking(id, &terms) {
                    return;
                }
                let known = self.known.get_mut(&id).expect("it is known");
                (known.gpus, known.terms) = (gpus, terms.clone());
                let (priority, now) = (known.priority, self.time());
                let terms = (!terms.are_none()).then(|| Box::new(terms));
                self.jobs.edit(id, gpus, priority, terms, now);
                self.jobs.end_linking(id);
                if self.is_in_vain(&self.known[&id]) {
                    self.end(id, State::Cancelled);
                }
            }
            Op::Limit { which, unmet } => {
                let Some(id) = self.pick(which, |known| !known.state.has_ended()) else { return };
                self.known.get_mut(&id).expect("it is known").without_gpus = unmet;
                self.jobs.set_unmet(id, Condition::GpusUnavailable, unmet);
            }
            Op::Unsettled { which, unsettled } => {
                let Some(id) = self.pick(which, |known| known.state == State::Queued) else { return };
                self.known.get_mut(&id).expect("it is known").unsettled = unsettled;
                self.jobs.set_unsettled(id, unsettled);
            }
            Op::Busy { which, busy } => {
                let Some(id) = self.pick(which, |known| !known.state.has_ended()) else { return };
                self.known.get_mut(&id).expect("it is known").busy = busy;
                self.jobs.get_mut(id).expect("it has not ended").busy = busy;
            }
            Op::Pass(time) => {
                self.now += time;
                self.jobs.ring(self.time());
            }
        }
    }

    fn move_to(&mut self, which: usize, to: usize, kind: u8) {
        let is_queued = |known: &Known| known.state == State::Queued;
        let Some(id) = self.pick(which, is_queued) else { return };
        let rest: Vec<JobId> =
            self.order.iter().copied().filter(|other| *other != id && is_queued(&self.known[other])).collect();
        let target = match kind {
            0 => Target::Front,
            1 => Target::Back,
            2 => Target::Position(to + 1),
            _ => match rest.get(to % rest.len().max(1)) {
                Some(other) => Target::Before(*other),
                None => return,
            },
        };
        let position = 1 + self
            .order
            .iter()
            .take_while(|other| **other != id)
            .filter(|other| is_queued(&self.known[other]))
            .count();
        let is_there = match target {
            Target::Front => position == 1,
            Target::Position(wanted) => position == wanted,
            Target::Back | Target::Before(_) => false,
        };
        let before = match target {
            Target::Front => rest.first(),
            Target::Back => None,
            Target::Position(position) => rest.get(position - 1),
            Target::Before(job) => rest.iter().find(|other| **other == job),
        };
        let place = self.jobs.get(id).expect("it is queued").place(id);
        let shifts = self.jobs.shifts(place, target).expect("the target is queued");
        self.jobs.shift(&shifts);
        if is_there {
            return;
        }
        let Some(beside) = before.or(rest.last()).copied() else { return };
        let already_last =
            before.is_none() && self.order.iter().rfind(|other| is_queued(&self.known[other])) == Some(&id);
        if already_last {
            return;
        }
        let priority = self.known[&beside].priority;
        self.order.retain(|other| *other != id);
        self.known.get_mut(&id).expect("it is known").priority = priority;
        let at = match before {
            Some(before) => self.order.iter().position(|other| other == before).expect("it is in the order"),
            None => self.behind(priority),
        };
        self.order.insert(at, id);
    }

    /// The owner starts whom it may.
    fn start(&mut self) {
        loop {
            let running = |lane: fn(u32) -> bool| {
                self.known.values().filter(move |known| known.state == State::Running && lane(known.gpus))
            };
            let taken: u32 = running(|gpus| gpus > 0).map(|known| known.gpus).sum();
            let cpu = running(|gpus| gpus == 0).count();
            assert!(taken <= GPU_SLOTS && cpu <= CPU_SLOTS, "a slot is held twice");
            // One that is being changed keeps those behind it waiting.
            let next = |lane: Spot| self.jobs.head(lane).filter(|id| self.known[id].busy == Busy::No);
            let on_gpus = next(Spot::Gpu).filter(|id| self.known[id].gpus <= GPU_SLOTS - taken);
            let Some(id) = on_gpus.or_else(|| next(Spot::Cpu).filter(|_| cpu < CPU_SLOTS)) else { return };
            assert!(self.started.insert((id, self.known[&id].attempt)), "an attempt was started twice");
            assert!(self.known[&id].unsettled || !self.is_full(&self.known[&id]), "too many of an array run");
            assert!(self.set(id, State::Pending).is_empty() && self.set(id, State::Running).is_empty());
        }
    }

    fn check(&self) {
        assert_eq!(self.jobs.iter().count(), self.order.len(), "a job is lost");
        assert_eq!(self.jobs.held(), self.known.values().filter(|known| known.state == State::Held).count());
        let mut position = 0;
        let (mut gpu_head, mut cpu_head) = (None, None);
        for id in &self.order {
            let known = &self.known[id];
            let entry = self.jobs.get(*id).expect("it has not ended");
            assert_eq!((entry.state(), entry.attempt), (known.state, known.attempt));
            assert_eq!(entry.place(*id).priority(), known.priority);
            assert_eq!(entry.unmet(), self.unmet(known), "conditions of {known:?}");
            let mut under_way: Vec<JobId> = self.jobs.under_way_in_array(*id).collect();
            under_way.sort_unstable();
            let of_its_array = |other: &Known| known.terms.array.is_some() && other.terms.array == known.terms.array;
            let counts = |other: &&JobId| is_under_way(&self.known[other]) && of_its_array(&self.known[other]);
            let mut expected: Vec<JobId> = self.order.iter().filter(counts).copied().collect();
            expected.sort_unstable();
            assert_eq!(under_way, expected);
            if known.state != State::Queued {
                assert_eq!(self.jobs.position(*id), None);
                continue;
            }
            position += 1;
            assert_eq!(self.jobs.position(*id), Some(position));
            assert_eq!(self.jobs.line().at(position).map(|place| place.job()), Some(*id));
            if known.busy != Busy::Leaving && self.unmet(known).is_empty() {
                let head = if known.gpus == 0 { &mut cpu_head } else { &mut gpu_head };
                head.get_or_insert(*id);
            }
        }
        assert_eq!(self.jobs.line().len(), position);
        assert_eq!((self.jobs.head(Spot::Gpu), self.jobs.head(Spot::Cpu)), (gpu_head, cpu_head), "who is next");
        // An alarm rings before anything that waits for it is overlooked.
        let times = self.order.iter().flat_map(|id| [self.known[id].terms.not_before, self.known[id].retry_at]);
        let next = times.flatten().filter(|at| *at > self.time()).min();
        assert!(self.jobs.next_alarm() <= next || next.is_none(), "{:?} and {next:?}", self.jobs.next_alarm());
        assert!(next.is_none() || self.jobs.next_alarm().is_some());
    }

    /// Nothing new comes, and nothing stands in the way: everybody's turn comes.
    fn finish(&mut self) {
        self.now += 1_000;
        self.jobs.ring(self.time());
        for id in self.ids.clone() {
            let known = self.known.get_mut(&id).expect("it is known");
            (known.without_gpus, known.unsettled, known.busy) = (false, false, Busy::No);
            if let Some(entry) = self.jobs.get_mut(id) {
                entry.busy = Busy::No;
                self.jobs.set_unmet(id, Condition::GpusUnavailable, false);
                self.jobs.set_unsettled(id, false);
            }
            if self.known[&id].state == State::Held {
                assert!(self.set(id, State::Queued).is_empty());
            }
        }
        for _ in 0..10 * self.ids.len() {
            self.start();
            self.check();
            let Some(id) = self.pick(0, |known| known.state == State::Running) else { break };
            self.end(id, State::Completed);
        }
        assert!(self.order.is_empty(), "somebody is starved: {:?}", self.known);
    }
}

#[test]
fn whatever_is_done_to_jobs_the_line_is_what_a_simple_list_would_be() {
    let sequences =
        std::env::var("TAXIWAY_TEST_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(SEQUENCES);
    let config = Config { cases: sequences, failure_persistence: None, ..Config::default() };
    let operations = prop::collection::vec(op(), 1..40);
    TestRunner::new(config)
        .run(&operations, |operations| {
            let mut world = World::default();
            for operation in operations {
                world.apply(operation);
                world.start();
                world.check();
            }
            world.finish();
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
