//! Why a job waits, and where in line.

use taxiway_job::{Condition, Entry, JobId, Reason, Spot, State, StopTarget, Terms};

use super::gpus::SlotState;
use super::handle::{Holder, Mode, Outlook, Standing};
use super::next::Candidate;
use super::owner::{Live, Owner};
use super::slots::SlotId;

/// Jobs that a sentence names: more do not help a reader.
const JOBS_NAMED: usize = 5;

/// The last position for which a start is foretold: each job ahead is looked up.
const OUTLOOK: usize = 1000;

impl Owner {
    /// How a job stands, when these are next.
    pub(super) fn standing(&self, id: JobId, candidates: &[Candidate]) -> Standing {
        let Some(entry) = self.jobs.get(id) else { return Standing::default() };
        if entry.state().is_live() {
            let live = self.live.values().find(|live| live.job == id);
            return Standing {
                position: None,
                reason: live.and_then(trouble).or_else(|| stopping(entry)),
                progress: live.and_then(|live| live.progress.clone()),
            };
        }
        let Some(position) = self.jobs.position(id) else { return Standing::default() };
        Standing {
            position: Some(position),
            reason: Some(self.reason(id, entry, position, candidates)),
            progress: None,
        }
    }

    /// What stands between a queued job and its start. None when it waits for more than other jobs and time: for a person, for
    /// jobs that it comes after, for GPUs that are gone or in use by others, for a disk; and when it is so far behind that any
    /// guess is as good.
    pub(super) fn outlook(&self, id: JobId) -> Option<Outlook> {
        let entry = self.jobs.get(id).filter(|_| self.mode == Mode::Run)?;
        let position = self.jobs.position(id)?;
        let matter_of_time = [Condition::NotBefore, Condition::RetryBackoff];
        let unmet = matter_of_time.into_iter().fold(entry.unmet(), |unmet, condition| unmet.with(condition, false));
        let nothing_starts = !self.pauses.is_empty() || !self.store.is_committing();
        if !unmet.is_empty() || position > OUTLOOK || nothing_starts {
            return None;
        }
        let needs = |gpus: u32| gpus.max(1) as usize;
        let may_have = |entry: &Entry| match entry.gpus() {
            0 => Vec::new(),
            _ => self.open_slots(entry.terms()),
        };
        let own = may_have(entry);
        let (slots, spot) = match entry.gpus() {
            0 => (self.slots.cpu_count(), Spot::Cpu),
            _ => (own.len(), Spot::Gpu),
        };
        // How many of the slots in question another job takes.
        let shared = |other: &Entry| match (entry.gpus(), other.gpus()) {
            (0, 0) => 1,
            (0, _) | (_, 0) => 0,
            (_, gpus) => needs(gpus).min(may_have(other).iter().filter(|id| own.contains(id)).count()),
        };
        let held = |launch, job: JobId| {
            let other = self.jobs.get(job)?;
            Some(match (entry.gpus(), other.gpus()) {
                (0, 0) => 1,
                (0, _) | (_, 0) => 0,
                _ => self.slots.held_by(launch, &own),
            })
        };
        let live = self.live.iter().map(|(launch, live)| {
            let ends = live.unresponsive.is_none() && live.unkillable.is_empty();
            let ends = ends.then_some(Holder { job: live.job, said_at: live.said_at });
            (ends, held(*launch, live.job).unwrap_or(0))
        });
        let unsettled = self.recovering.iter().map(|(launch, job)| (None, held(*launch, *job).unwrap_or(0)));
        let running = live.chain(unsettled).filter(|(_, slots)| *slots > 0).collect();
        let place = entry.place(id);
        let before = self.jobs.line().spot(spot).take_while(|other| *other < place);
        let ahead = before.filter_map(|place| Some((place.job(), shared(self.jobs.get(place.job())?))));
        let not_before = entry.terms().and_then(|terms| terms.not_before).max(self.jobs.retry_at(id));
        Some(Outlook {
            slots,
            needs: needs(entry.gpus()),
            running,
            ahead: ahead.filter(|(_, slots)| *slots > 0).collect(),
            not_before,
        })
    }

    /// The slots that these terms allow and that a job holds or could have now: not those that something else is in the way of.
    fn open_slots(&self, terms: Option<&Terms>) -> Vec<SlotId> {
        let mut open = self.slots.allowed(terms);
        open.retain(|id| {
            let slot = self.slots.get(*id);
            slot.holder.is_some() || slot.obstacle.is_none()
        });
        open
    }

    fn reason(&self, id: JobId, entry: &Entry, position: usize, candidates: &[Candidate]) -> Reason {
        if let Some(why) = self.silent.get(&id) {
            return Reason::new("shim_unresponsive", format!("{why}; nothing starts in its place"));
        }
        if let Some(condition) = entry.unmet().first() {
            return Reason::new(condition.code(), self.sentence(id, entry, condition));
        }
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
        let Some(candidate) = candidates.iter().find(|candidate| candidate.job == id) else {
            let is_before = |other: &&Candidate| {
                let same_lane = (other.gpus == 0) == (entry.gpus() == 0);
                let before = |first: &Entry| first.place(other.job) < entry.place(id);
                same_lane && self.jobs.get(other.job).is_some_and(before)
            };
            return match candidates.iter().find(is_before) {
                Some(first) => {
                    let first = first.job;
                    Reason::new("behind", format!("it is number {position} in line; job {first} is next"))
                }
                // It is being changed.
                None => Reason::new("starting", "it is about to start"),
            };
        };
        if let Some(reason) = self.slots_taken(candidate) {
            return reason;
        }
        if let Some(reason) = self.pauses.reason(id) {
            return reason.clone();
        }
        Reason::new("starting", "it is about to start")
    }

    /// Why the slots of a job that is next are not to be had.
    fn slots_taken(&self, candidate: &Candidate) -> Option<Reason> {
        let among = &candidate.slots;
        if candidate.gpus == 0 {
            let message = "all slots for jobs without GPUs are taken";
            return (!self.slots.cpu_is_free()).then(|| Reason::new("waiting_for_slot", message));
        }
        if self.slots.choose(candidate.gpus, among).is_some() {
            return None;
        }
        if self.slots.unheld(among) >= candidate.gpus as usize {
            // They are free but for this.
            let slots = among.iter().map(|id| self.slots.get(*id)).filter(|slot| slot.holder.is_none());
            if let Some(obstacle) = slots.filter_map(|slot| slot.obstacle.as_ref()).next() {
                return Some(obstacle.reason());
            }
        }
        let held = self.slots.held(among).map(|(label, launch)| match self.live.get(&launch) {
            Some(Live { job, .. }) => format!("{label} is held by job {job}"),
            None => match self.recovering.get(&launch).and_then(|job| Some((job, self.silent.get(job)?))) {
                Some((job, why)) => format!("{label} is held by job {job}: {why}"),
                None => format!("{label} is held by a launch of the previous service that is being settled"),
            },
        });
        Some(Reason::new("waiting_for_gpu", held.collect::<Vec<_>>().join("; ")))
    }

    /// Why a condition of a queued job is not met.
    fn sentence(&self, id: JobId, entry: &Entry, condition: Condition) -> String {
        match condition {
            Condition::After => {
                let open: Vec<String> = entry
                    .terms()
                    .into_iter()
                    .flat_map(Terms::predecessors)
                    .filter_map(|(job, any)| {
                        let state = self.jobs.get(job)?.state();
                        Some(format!("{job} is {state} and must have {}", if any { "ended" } else { "completed" }))
                    })
                    .collect();
                let more = open.len().saturating_sub(JOBS_NAMED);
                let mut sentence = open[..open.len() - more].join("; ");
                if more > 0 {
                    sentence.push_str(&format!("; and {more} more"));
                }
                if sentence.is_empty() {
                    "it comes after jobs of which it cannot be told how they ended".into()
                } else {
                    sentence
                }
            }
            Condition::NotBefore => match entry.terms().and_then(|terms| terms.not_before) {
                Some(at) => format!("it starts at {at} or later"),
                None => "its earliest start has not come".into(),
            },
            Condition::RetryBackoff => {
                let failed = entry.attempt.saturating_sub(1);
                match self.jobs.retry_at(id) {
                    Some(at) => {
                        format!("attempt {failed} failed, and attempt {} starts at {at} or later", entry.attempt)
                    }
                    None => format!("attempt {failed} failed, and another follows"),
                }
            }
            Condition::ArrayLimit => self.who_of_its_array(id, entry),
            Condition::GpusUnavailable => self.why_too_few(entry),
            Condition::StillRunning => self.who_still_runs(id),
        }
    }

    /// Who keeps a job from starting of whose array as many are under way as may be.
    fn who_of_its_array(&self, id: JobId, entry: &Entry) -> String {
        let most = entry.terms().and_then(|terms| terms.array).map_or(0, |limit| limit.max_parallel.get());
        let under_way: Vec<String> = self.jobs.under_way_in_array(id).map(|job| job.to_string()).collect();
        let named = under_way[..under_way.len().min(JOBS_NAMED)].join(", ");
        let more = match under_way.len().saturating_sub(JOBS_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("of its array {most} may run at a time (`max_parallel`), and these do: {named}{more}")
    }

    /// Which launch of a job goes on without the store's knowing of it.
    fn who_still_runs(&self, id: JobId) -> String {
        let stranger = self.strangers.values().find(|stranger| stranger.job == id);
        let shim = match stranger.map(|stranger| stranger.shim_pid) {
            Some(pid @ 1..) => format!(" (its shim is process {pid})"),
            _ => String::new(),
        };
        format!(
            "an earlier launch of it still runs{shim}, of which the database knows nothing, as after a backup was put back; \
             the job starts when that is over"
        )
    }

    /// Which GPUs are missing to a job.
    fn why_too_few(&self, entry: &Entry) -> String {
        if let Some(uncounted) = self.uncounted.as_ref().filter(|_| self.slots.count() == 0) {
            return uncounted.why();
        }
        let left = self.slots.allowed(entry.terms()).len();
        let mut sentence = match (entry.gpus(), left) {
            (1, _) => "it needs a GPU and may use none of those that are left".to_owned(),
            (gpus, 0) => format!("it needs {gpus} GPUs and may use none of those that are left"),
            (gpus, left) => format!("it needs {gpus} GPUs and may use {left} of those that are left"),
        };
        let suits = self.slots.iter().map(|(_, slot)| slot.gpu.suits(entry.terms()));
        // Beyond the slots come those that are missing.
        let standings = self.slot_standings().into_iter().zip(suits.chain(std::iter::repeat(false)));
        let lost = standings.filter(|(slot, suits)| slot.state == SlotState::Quarantined && *suits);
        for reason in lost.filter_map(|(slot, _)| slot.reason) {
            sentence.push_str(&format!("; {}", reason.message));
        }
        if let Some(uncounted) = &self.uncounted {
            sentence.push_str(&format!("; {}", uncounted.why()));
        }
        sentence
    }
}

/// What a job that is being stopped waits for, and what becomes of it then.
fn stopping(entry: &Entry) -> Option<Reason> {
    let then = match entry.stop_target.filter(|_| entry.state() == State::Cancelling)? {
        StopTarget::Cancelled => "it is cancelled",
        StopTarget::Queued => "it waits in the line again",
        StopTarget::Held => "it is held",
    };
    let message = format!("it was asked to stop: once every process of it is gone, {then}");
    Some(Reason::new("stopping", message))
}

/// What keeps a job that was told to start from going on as it should.
fn trouble(live: &Live) -> Option<Reason> {
    if let Some(why) = &live.unresponsive {
        return Some(Reason::new("shim_unresponsive", format!("{why}; nothing starts in its place")));
    }
    if live.unkillable.is_empty() {
        return None;
    }
    let pids: Vec<String> = live.unkillable.iter().map(i32::to_string).collect();
    let message = format!(
        "its processes {} survive SIGKILL (a driver or a filesystem does not let go of them); its slot is in quarantine until they are gone",
        pids.join(", ")
    );
    Some(Reason::new("unkillable", message))
}
