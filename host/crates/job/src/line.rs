//! The order in which waiting jobs start.

use std::cmp::Reverse;

use indexset::BTreeSet;

use crate::JobId;

/// Room between the ranks of neighbours, for jobs that are moved there.
const GAP: i64 = 1 << 20;

/// The least room that neighbours have after a renumbering: the next ten moves to one spot need none.
const LEAST_GAP: i64 = 1 << 10;

/// Neighbours on each side of a spot without room that are renumbered at first; twice as many each time that is too few.
const WINDOW: usize = 32;

/// A job's place in the order `(priority desc, rank, submission)`: smaller starts first.
///
/// `rank` is where the job stands among its priority (it grows with every job that is queued; a move sets it anew), and the
/// id, which grows with the time of submission, settles equal ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    priority: Reverse<i16>,
    rank: i64,
    job: JobId,
}

impl Place {
    /// The place of `job` with this priority and rank.
    #[must_use]
    pub fn new(priority: i16, rank: i64, job: JobId) -> Self {
        Self { priority: Reverse(priority), rank, job }
    }

    /// Whose place it is.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The job's priority.
    #[must_use]
    pub fn priority(&self) -> i16 {
        self.priority.0
    }

    /// Where it stands among its priority.
    #[must_use]
    pub fn rank(&self) -> i64 {
        self.rank
    }

    fn ranked(self, rank: i64) -> Self {
        Self { rank, ..self }
    }
}

/// What a place is to the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spot {
    /// A queued job that needs GPUs and may start.
    Gpu,
    /// A queued job that needs none and may start.
    Cpu,
    /// A queued job that something beside the slots keeps from starting: it has a position and is never next.
    Waiting,
    /// A job that is not queued and may come back to its place: held, or running with retries left.
    Aside,
}

/// Where a job is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Before all queued jobs.
    Front,
    /// Behind all queued jobs.
    Back,
    /// Just before this queued job.
    Before(JobId),
    /// To this position, from 1; one past the end is the end.
    Position(usize),
}

/// A job goes from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// Where it is.
    pub from: Place,
    /// Where it will be; the same job's.
    pub to: Place,
}

/// All jobs that have not ended, in the order in which they start. Positions count the queued ones.
///
/// Every operation is O(log n), but for the renumbering of neighbours once there is no room left between two of them.
#[derive(Debug, Default)]
pub struct Line {
    spots: [BTreeSet<Place>; 4],
    /// The highest rank given out.
    last_rank: i64,
}

/// The spots of queued jobs.
const QUEUED: [Spot; 3] = [Spot::Gpu, Spot::Cpu, Spot::Waiting];
const ALL: [Spot; 4] = [Spot::Gpu, Spot::Cpu, Spot::Waiting, Spot::Aside];

impl Line {
    /// An empty line that gives out ranks behind this one.
    #[must_use]
    pub fn new(last_rank: i64) -> Self {
        Self { spots: Default::default(), last_rank }
    }

    fn of(&self, spot: Spot) -> &BTreeSet<Place> {
        &self.spots[spot as usize]
    }

    /// Puts a job there. Returns false when it was there already.
    pub fn insert(&mut self, place: Place, spot: Spot) -> bool {
        self.last_rank = self.last_rank.max(place.rank);
        self.spots[spot as usize].insert(place)
    }

    /// Takes a job away from there. Returns false when it was not there.
    pub fn remove(&mut self, place: Place, spot: Spot) -> bool {
        self.spots[spot as usize].remove(&place)
    }

    /// A rank behind all others.
    pub fn take_rank(&mut self) -> i64 {
        self.last_rank = self.last_rank.saturating_add(GAP);
        self.last_rank
    }

    /// How many jobs are queued.
    #[must_use]
    pub fn len(&self) -> usize {
        QUEUED.iter().map(|spot| self.of(*spot).len()).sum()
    }

    /// Whether no job is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many queued jobs start before this place, whether or not a job is there, plus one.
    #[must_use]
    pub fn position(&self, place: Place) -> usize {
        self.queued_before(&place) + 1
    }

    fn queued_before(&self, place: &Place) -> usize {
        QUEUED.iter().map(|spot| self.of(*spot).rank(place)).sum()
    }

    /// The queued job at this position, from 1.
    #[must_use]
    pub fn at(&self, position: usize) -> Option<Place> {
        let wanted = position.checked_sub(1)?;
        QUEUED.iter().find_map(|spot| {
            let set = self.of(*spot);
            // The positions of a set's members grow with their index.
            let (mut low, mut high) = (0, set.len());
            while low < high {
                let middle = low + (high - low) / 2;
                let place = set.get_index(middle)?;
                if self.queued_before(place) < wanted { low = middle + 1 } else { high = middle }
            }
            set.get_index(low).copied().filter(|place| self.queued_before(place) == wanted)
        })
    }

    /// The queued jobs from the first on, whether or not they may start.
    pub fn queued(&self) -> impl Iterator<Item = Place> + '_ {
        let mut sets = QUEUED.map(|spot| self.of(spot).iter().copied().peekable());
        std::iter::from_fn(move || {
            let firsts = sets.iter_mut().enumerate().filter_map(|(at, set)| Some((*set.peek()?, at)));
            let (_, at) = firsts.min()?;
            sets[at].next()
        })
    }

    /// The jobs at one kind of spot, first to start first.
    pub fn spot(&self, spot: Spot) -> impl Iterator<Item = Place> + '_ {
        self.of(spot).iter().copied()
    }

    /// The nearest place before this one, of whatever job.
    fn previous(&self, place: &Place) -> Option<Place> {
        ALL.iter()
            .filter_map(|spot| {
                let set = self.of(*spot);
                set.get_index(set.rank(place).checked_sub(1)?).copied()
            })
            .max()
    }

    /// The nearest place behind this one, of whatever job.
    fn next(&self, place: &Place) -> Option<Place> {
        ALL.iter()
            .filter_map(|spot| {
                let set = self.of(*spot);
                let at = set.rank(place);
                let here = set.get_index(at)?;
                if here == place { set.get_index(at + 1) } else { Some(here) }.copied()
            })
            .min()
    }

    /// The shifts that bring a job to its target: its own first, then those of neighbours that must make room. None when it
    /// is there already, with the priority that it has. The job's own place may be of any spot; a target that names a job names a queued one, whose place
    /// `place_of` tells.
    #[must_use]
    pub fn shifts(&mut self, who: Place, target: Target, place_of: impl Fn(JobId) -> Option<Place>) -> Vec<Shift> {
        let others = |position: usize| {
            // Its own place is no position of another's.
            let own = QUEUED.iter().any(|spot| self.of(*spot).contains(&who)).then(|| self.position(who));
            self.at(position + usize::from(own.is_some_and(|own| own <= position)))
        };
        let before = match target {
            // Where its own priority has brought it, nobody's else is needed.
            Target::Front if self.position(who) == 1 => return Vec::new(),
            Target::Position(position) if self.position(who) == position.max(1) => return Vec::new(),
            Target::Front => others(1),
            Target::Position(position) => others(position.max(1)),
            Target::Before(job) if job == who.job => return Vec::new(),
            Target::Before(job) => place_of(job),
            Target::Back => None,
        };
        match before {
            Some(place) => self.shifts_before(who, place),
            None => self.shifts_to_the_back(who),
        }
    }

    fn shifts_before(&mut self, who: Place, target: Place) -> Vec<Shift> {
        if who == target {
            return Vec::new();
        }
        let previous = self.previous(&target);
        if previous == Some(who) && who.priority == target.priority {
            return Vec::new();
        }
        let to = |rank| Place { priority: target.priority, rank, job: who.job };
        // Its own place makes room when it leaves.
        let previous = if previous == Some(who) { self.previous(&who) } else { previous };
        let Some(previous) = previous.filter(|place| place.priority == target.priority) else {
            return vec![Shift { from: who, to: to(target.rank - GAP) }];
        };
        let middle = previous.rank + (target.rank - previous.rank) / 2;
        if previous.rank < middle && middle < target.rank {
            return vec![Shift { from: who, to: to(middle) }];
        }
        self.renumbered(who, target)
    }

    fn shifts_to_the_back(&mut self, who: Place) -> Vec<Shift> {
        let last = QUEUED.iter().filter_map(|spot| self.of(*spot).last()).max().copied();
        match last {
            Some(last) if last == who => Vec::new(),
            Some(last) => {
                let to = Place { priority: last.priority, rank: self.take_rank(), job: who.job };
                vec![Shift { from: who, to }]
            }
            None => Vec::new(),
        }
    }

    /// Spreads the neighbours of a spot without room, with `who` among them, just before `target`.
    fn renumbered(&self, who: Place, target: Place) -> Vec<Shift> {
        let priority = target.priority;
        let same = |place: &Place| place.priority == priority;
        let mut size = WINDOW;
        loop {
            let mut window = std::collections::VecDeque::from([target]);
            let mut low = self.previous(&target).filter(same);
            for _ in 0..size {
                let Some(place) = low else { break };
                if place != who {
                    window.push_front(place);
                }
                low = self.previous(&place).filter(same);
            }
            let at = window.len() - 1;
            let mut high = self.next(&target).filter(same);
            for _ in 0..size {
                let Some(place) = high else { break };
                if place != who {
                    window.push_back(place);
                }
                high = self.next(&place).filter(same);
            }
            window.insert(at, who);
            let count = window.len() as i64 + 1;
            // Nobody who comes later gets a rank up to the last one given out.
            let high = high.map_or(self.last_rank + 1, |place| place.rank);
            let low = low.map_or(high - count * GAP, |place| place.rank);
            let step = (high - low) / count;
            if step < LEAST_GAP {
                size *= 2;
                continue;
            }
            let mut shifts: Vec<Shift> = window
                .iter()
                .enumerate()
                .map(|(index, from)| {
                    let place = from.ranked(low + step * (index as i64 + 1));
                    Shift { from: *from, to: Place { priority, ..place } }
                })
                .filter(|shift| shift.from != shift.to)
                .collect();
            if let Some(own) = shifts.iter().position(|shift| shift.from == who) {
                shifts.swap(0, own);
            }
            return shifts;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_in_is_first_out_within_a_priority_and_higher_priorities_come_first() {
        let ids: Vec<JobId> = (0..4).map(|_| JobId::new()).collect();
        let mut line = Line::default();
        for (index, (priority, spot)) in
            [(0, Spot::Gpu), (5, Spot::Cpu), (0, Spot::Cpu), (5, Spot::Waiting)].into_iter().enumerate()
        {
            assert!(line.insert(Place::new(priority, index as i64, ids[index]), spot));
        }
        let position = |priority, index: usize| line.position(Place::new(priority, index as i64, ids[index]));
        assert_eq!([position(5, 1), position(5, 3), position(0, 0), position(0, 2)], [1, 2, 3, 4]);
        assert_eq!(line.spot(Spot::Gpu).map(|place| place.job()).collect::<Vec<_>>(), [ids[0]]);
        assert_eq!(line.spot(Spot::Cpu).map(|place| place.job()).collect::<Vec<_>>(), [ids[1], ids[2]]);
    }

    #[test]
    fn many_moves_to_one_spot_keep_the_order_and_shift_few_at_a_time() {
        let mut line = Line::default();
        let mut places: Vec<Place> = (0..200).map(|_| Place::new(0, line.take_rank(), JobId::new())).collect();
        for place in &places {
            line.insert(*place, Spot::Gpu);
        }
        let target = places[100].job();
        let (mut shifted, moves) = (0, 100_000);
        for turn in 0..moves {
            // Whoever stands first goes just before the target, again and again.
            let who = places[turn % 100];
            let shifts = line.shifts(who, Target::Before(target), |_| Some(places[100]));
            for Shift { from, to } in shifts {
                shifted += 1;
                assert!(line.remove(from, Spot::Gpu) && line.insert(to, Spot::Gpu));
                let at = places.iter().position(|place| *place == from).expect("it is known");
                places[at] = to;
            }
            if turn % 10_007 == 0 {
                let order: Vec<JobId> = line.queued().map(|place| place.job()).collect();
                assert_eq!((order[99], order[100]), (who.job(), target));
            }
        }
        assert!(shifted / moves < 10, "{shifted} shifts");
    }

    #[test]
    fn who_is_at_a_position_already_keeps_its_priority() {
        let ids: Vec<JobId> = (0..3).map(|_| JobId::new()).collect();
        let mut line = Line::default();
        let mut places = Vec::new();
        for (id, priority) in ids.iter().zip([50, 10, 0]) {
            let place = Place::new(priority, line.take_rank(), *id);
            line.insert(place, Spot::Gpu);
            places.push(place);
        }
        let place_of = |job: JobId| places.iter().find(|place| place.job() == job).copied();
        for (index, target) in [
            (0, Target::Front),
            (0, Target::Position(1)),
            (0, Target::Position(0)),
            (1, Target::Position(2)),
            (2, Target::Back),
        ] {
            assert_eq!(line.shifts(places[index], target, place_of), [], "{target:?}");
        }
        // One that is held, or about to come, and stands before all others.
        let held = Place::new(60, line.take_rank(), JobId::new());
        assert_eq!(line.shifts(held, Target::Front, place_of), []);
        line.insert(held, Spot::Aside);
        assert_eq!(line.shifts(held, Target::Front, place_of), []);
        let moved = line.shifts(places[2], Target::Position(2), place_of);
        assert_eq!(moved.iter().map(|shift| shift.to.priority()).collect::<Vec<_>>(), [10]);
    }

    fn any_target() -> impl Strategy<Value = (u8, usize)> {
        (0u8..4, 0usize..45)
    }

    proptest! {
        #[test]
        fn positions_and_moves_are_those_of_a_list(
            operations in prop::collection::vec((0u8..4, 0u8..40, -2i16..=2, 0usize..4, any_target()), 1..300)
        ) {
            let mut line = Line::default();
            // The reference: queued and other jobs in their order.
            let mut list: Vec<(Place, Spot)> = Vec::new();
            for (what, number, priority, spot, (kind, argument)) in operations {
                let mut bytes = [0; 16];
                bytes[15] = number;
                let job = JobId::from_bytes(bytes);
                let spot = ALL[spot];
                match list.iter().position(|(place, _)| place.job() == job) {
                    Some(at) if what == 0 => {
                        let (place, spot) = list.remove(at);
                        prop_assert!(line.remove(place, spot));
                    }
                    Some(at) if list[at].1 != Spot::Aside => {
                        let queued: Vec<JobId> = list.iter().filter(|(_, spot)| *spot != Spot::Aside)
                            .map(|(place, _)| place.job()).collect();
                        let rest: Vec<JobId> = queued.iter().copied().filter(|other| *other != job).collect();
                        let target = match kind {
                            0 => Target::Front,
                            1 => Target::Back,
                            2 => Target::Position(argument),
                            _ => Target::Before(queued[argument % queued.len()]),
                        };
                        let mut expected = rest.clone();
                        match target {
                            Target::Front => expected.insert(0, job),
                            Target::Back => expected.push(job),
                            Target::Position(n) => expected.insert(n.saturating_sub(1).min(rest.len()), job),
                            Target::Before(other) if other == job => expected = queued.clone(),
                            Target::Before(other) => {
                                let at = rest.iter().position(|id| *id == other).expect("it is queued");
                                expected.insert(at, job);
                            }
                        }
                        let aside: Vec<JobId> = list.iter().filter(|(_, spot)| *spot == Spot::Aside)
                            .map(|(place, _)| place.job()).collect();
                        let neighbours: Vec<JobId> = list.iter().map(|(place, _)| place.job())
                            .filter(|other| *other != job).collect();
                        let place_of = |job| list.iter().map(|(place, _)| *place).find(|place| place.job() == job);
                        let shifts = line.shifts(list[at].0, target, place_of);
                        prop_assert!(shifts.iter().all(|shift| shift.from.job() == shift.to.job()));
                        prop_assert!(shifts.first().is_none_or(|shift| shift.from.job() == job));
                        for Shift { from, to } in shifts {
                            let at = list.iter().position(|(place, _)| *place == from).expect("it is there");
                            let spot = list[at].1;
                            prop_assert!(line.remove(from, spot) && line.insert(to, spot));
                            list[at].0 = to;
                        }
                        list.sort_by_key(|(place, _)| *place);
                        let now: Vec<JobId> = line.queued().map(|place| place.job()).collect();
                        prop_assert_eq!(&now, &expected);
                        // Nobody else overtakes anybody, held jobs included.
                        let others: Vec<JobId> = list.iter().map(|(place, _)| place.job())
                            .filter(|other| *other != job).collect();
                        prop_assert_eq!(others, neighbours);
                        let still: Vec<JobId> = line.spot(Spot::Aside).map(|place| place.job()).collect();
                        prop_assert_eq!(still, aside);
                    }
                    Some(_) => {}
                    None => {
                        let place = Place::new(priority, line.take_rank(), job);
                        list.push((place, spot));
                        list.sort_by_key(|(place, _)| *place);
                        prop_assert!(line.insert(place, spot));
                    }
                }
                let queued: Vec<Place> =
                    list.iter().filter(|(_, spot)| *spot != Spot::Aside).map(|(place, _)| *place).collect();
                prop_assert_eq!(line.len(), queued.len());
                for (index, place) in queued.iter().enumerate() {
                    prop_assert_eq!(line.position(*place), index + 1);
                    prop_assert_eq!(line.at(index + 1), Some(*place));
                }
                prop_assert_eq!(line.at(0), None);
                prop_assert_eq!(line.at(queued.len() + 1), None);
            }
        }
    }
}
