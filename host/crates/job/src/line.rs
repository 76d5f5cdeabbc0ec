//! The order in which waiting jobs start.

use std::cmp::Reverse;

use indexset::BTreeMap;

use crate::JobId;

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
}

/// The jobs that wait, in the order in which they start: two lanes, one for jobs that need GPUs and one for those that do
/// not, with positions counted over both.
///
/// Every operation is O(log n).
#[derive(Debug, Default)]
pub struct Line {
    gpu: BTreeMap<Place, ()>,
    cpu: BTreeMap<Place, ()>,
}

impl Line {
    /// An empty line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lane(&mut self, gpus: u32) -> &mut BTreeMap<Place, ()> {
        if gpus == 0 { &mut self.cpu } else { &mut self.gpu }
    }

    /// Puts a job that needs this many GPUs into the line. Returns false when it was there already.
    pub fn insert(&mut self, place: Place, gpus: u32) -> bool {
        self.lane(gpus).insert(place, ()).is_none()
    }

    /// Takes a job out of the line. Returns false when it was not there.
    pub fn remove(&mut self, place: Place, gpus: u32) -> bool {
        self.lane(gpus).remove(&place).is_some()
    }

    /// How many jobs wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.gpu.len() + self.cpu.len()
    }

    /// Whether no job waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many jobs start before this place, whether or not a job is there, plus one.
    #[must_use]
    pub fn position(&self, place: Place) -> usize {
        self.gpu.rank(&place) + self.cpu.rank(&place) + 1
    }

    /// The jobs that need GPUs, first to start first.
    pub fn gpu_lane(&self) -> impl Iterator<Item = Place> + '_ {
        self.gpu.keys().copied()
    }

    /// The jobs that need none, first to start first.
    pub fn cpu_lane(&self) -> impl Iterator<Item = Place> + '_ {
        self.cpu.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_in_is_first_out_within_a_priority_and_higher_priorities_come_first() {
        let ids: Vec<JobId> = (0..4).map(|_| JobId::new()).collect();
        let mut line = Line::new();
        for (index, (priority, gpus)) in [(0, 1), (5, 0), (0, 0), (5, 1)].into_iter().enumerate() {
            assert!(line.insert(Place::new(priority, index as i64, ids[index]), gpus));
        }
        let position = |priority, index: usize| line.position(Place::new(priority, index as i64, ids[index]));
        assert_eq!([position(5, 1), position(5, 3), position(0, 0), position(0, 2)], [1, 2, 3, 4]);
        assert_eq!(line.gpu_lane().map(|place| place.job()).collect::<Vec<_>>(), [ids[3], ids[0]]);
        assert_eq!(line.cpu_lane().map(|place| place.job()).collect::<Vec<_>>(), [ids[1], ids[2]]);
    }

    proptest! {
        #[test]
        fn positions_are_those_of_a_sorted_list(
            operations in prop::collection::vec((any::<bool>(), 0u8..40, -3i16..=3, 0i64..10, 0u32..2), 1..200)
        ) {
            let mut line = Line::new();
            let mut list: Vec<(Place, u32)> = Vec::new();
            for (add, number, priority, rank, gpus) in operations {
                let mut bytes = [0; 16];
                bytes[15] = number;
                let job = JobId::from_bytes(bytes);
                match list.iter().position(|(place, _)| place.job() == job) {
                    Some(at) if !add => {
                        let (place, gpus) = list.remove(at);
                        prop_assert!(line.remove(place, gpus));
                    }
                    None if add => {
                        let place = Place::new(priority, rank, job);
                        list.push((place, gpus));
                        list.sort();
                        prop_assert!(line.insert(place, gpus));
                    }
                    _ => {}
                }
                prop_assert_eq!(line.len(), list.len());
                for (index, (place, _)) in list.iter().enumerate() {
                    prop_assert_eq!(line.position(*place), index + 1);
                }
                let gpu: Vec<Place> = list.iter().filter(|(_, gpus)| *gpus > 0).map(|(place, _)| *place).collect();
                prop_assert_eq!(line.gpu_lane().collect::<Vec<_>>(), gpu);
            }
        }
    }
}
