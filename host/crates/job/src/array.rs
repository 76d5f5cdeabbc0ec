//! Jobs that were submitted together as an array, one for each combination of values.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ArrayId, JobId};

/// Which member of an array a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArrayMember {
    /// The array.
    pub id: ArrayId,
    /// Its number in it, from 0.
    pub index: u32,
    /// The values that were merged into its configuration, by their keys.
    pub params: Map<String, Value>,
}

/// How many members of an array may be under way at a time. The same for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayLimit {
    /// The array.
    pub array: ArrayId,
    /// At most so many.
    pub max_parallel: NonZeroU32,
}

/// The members that have not ended, of every array that has a limit.
#[derive(Debug, Default)]
pub(crate) struct Arrays(HashMap<ArrayId, Members>);

#[derive(Debug, Default)]
struct Members {
    max_parallel: usize,
    all: HashSet<JobId>,
    /// Those that hold one of the places.
    under_way: BTreeSet<JobId>,
}

impl Members {
    fn is_full(&self) -> bool {
        self.under_way.len() >= self.max_parallel
    }
}

impl Arrays {
    /// A job is a member, and under way or not. True when no further member may start now although one could before, or the
    /// other way round.
    pub(crate) fn count(&mut self, limit: ArrayLimit, job: JobId, is_under_way: bool) -> bool {
        let members = self.0.entry(limit.array).or_default();
        let was_full = !members.all.is_empty() && members.is_full();
        members.max_parallel = usize::try_from(limit.max_parallel.get()).unwrap_or(usize::MAX);
        members.all.insert(job);
        if is_under_way {
            members.under_way.insert(job);
        } else {
            members.under_way.remove(&job);
        }
        was_full != members.is_full()
    }

    /// A job is no member any more. The same as for [`Arrays::count`].
    pub(crate) fn leave(&mut self, array: ArrayId, job: JobId) -> bool {
        let Some(members) = self.0.get_mut(&array) else { return false };
        let was_full = members.is_full();
        members.all.remove(&job);
        members.under_way.remove(&job);
        let turned = was_full != members.is_full();
        if members.all.is_empty() {
            self.0.remove(&array);
        }
        turned
    }

    /// Whether this member has to wait for others.
    pub(crate) fn keeps_waiting(&self, array: ArrayId, job: JobId) -> bool {
        self.0.get(&array).is_some_and(|members| members.is_full() && !members.under_way.contains(&job))
    }

    /// All members.
    pub(crate) fn members(&self, array: ArrayId) -> Vec<JobId> {
        self.0.get(&array).map(|members| members.all.iter().copied().collect()).unwrap_or_default()
    }

    /// Those that hold a place.
    pub(crate) fn under_way(&self, array: ArrayId) -> impl Iterator<Item = JobId> {
        self.0.get(&array).into_iter().flat_map(|members| members.under_way.iter().copied())
    }
}
