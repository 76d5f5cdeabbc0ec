//! What people change of a job: its place in the line, its description, its time limit, and that it runs again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use taxiway_job::{Busy, Condition, Entry, Job, JobId, LaunchId, Reason, Shift, State, Target, Time};

use super::handle::{Operation, QueueError, Verb};
use super::owner::{Asker, Done, Owner, Reranking, entry_of};
use crate::store::{Change, StoreError};

/// A change of a running job's time limit that is stored and on its way to the shim.
pub(super) struct Extending {
    operation: Operation,
    from: Option<Duration>,
}

impl Owner {
    /// A job that has ended waits for another attempt: at the back of its priority, or at the front of the line.
    pub(super) fn retry(&mut self, operation: Operation, job: Box<Job>) {
        let id = job.id;
        if !self.jobs.begin_linking(id, &job.spec.terms) {
            return operation.answer(Err(QueueError::Circle(id)));
        }
        self.submitting.insert(id);
        if operation.verb.chooses_a_place() && self.reranking {
            self.to_rerank.push_back(Reranking::Ended(operation, job));
        } else {
            self.begin_attempt(operation, &job);
        }
    }

    fn begin_attempt(&mut self, operation: Operation, job: &Job) {
        let id = job.id;
        let rank = self.jobs.take_rank();
        let mut entry = entry_of(job, rank);
        let mut neighbours = Vec::new();
        if operation.verb.chooses_a_place() {
            self.reranking = true;
            neighbours = self.jobs.shifts(entry.place(id), Target::Front).unwrap_or_default();
            if !neighbours.is_empty() {
                // Its own is the first.
                entry = entry.at(neighbours.remove(0).to);
            }
        }
        entry.attempt += 1;
        entry.revision += 1;
        let (place, at, by) = (entry.place(id), Time::now(), operation.by.clone());
        let mut changes = vec![Change::Retry {
            job: id,
            from: job.state,
            priority: place.priority(),
            rank: place.rank(),
            at,
            by: by.clone(),
            action: operation.verb.as_str(),
        }];
        if !neighbours.is_empty() {
            changes.push(Change::Rerank { job: id, shifts: neighbours.clone(), at, by, action: None });
        }
        let entry = Box::new(entry.in_state(State::Queued));
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(changes).await;
            Done::Returned { operation, entry, neighbours, result }
        }));
    }

    pub(super) fn returned(
        &mut self,
        operation: Operation,
        entry: Entry,
        neighbours: &[Shift],
        result: Result<(), StoreError>,
    ) {
        let id = operation.id;
        let chose_a_place = operation.verb.chooses_a_place();
        self.submitting.remove(&id);
        self.jobs.end_linking(id);
        match result {
            Ok(()) => {
                self.jobs.shift(neighbours);
                self.jobs.enter(id, entry, Time::now());
                self.check_gpus(id);
                self.look_at_predecessors(vec![id], Asker::Operation(operation));
            }
            Err(error) => {
                match error {
                    // It was removed since it was looked up: another look says so.
                    StoreError::Conflict(_) => self.look_up(operation),
                    error => operation.answer(Err(error.into())),
                }
                self.resume_operations(id);
            }
        }
        if chose_a_place {
            self.rerank_next();
        }
    }

    /// Finds out how the jobs have ended that these jobs come after and that the queue does not have any more. Until then they do
    /// not start; then whoever put them into the line is answered.
    pub(super) fn look_at_predecessors(&mut self, ids: Vec<JobId>, asker: Asker) {
        let mut ended: Vec<JobId> = Vec::new();
        let mut waiting: Vec<JobId> = Vec::new();
        // The others of a batch need not wait, and neither need operations on them.
        let mut others: Vec<JobId> = Vec::new();
        for id in ids.iter().copied() {
            let terms = self.jobs.get(id).and_then(|entry| entry.terms());
            let of_it = terms.into_iter().flat_map(|terms| &terms.after).filter(|job| !self.jobs.contains(**job));
            let before = ended.len();
            ended.extend(of_it);
            // A job that is being operated on is busy already, and stays so until its asker has been answered.
            if ended.len() > before || matches!(asker, Asker::Operation(_)) {
                waiting.push(id);
            } else {
                others.push(id);
            }
        }
        for id in &waiting {
            if let Some(entry) = self.jobs.get_mut(*id).filter(|entry| entry.busy == Busy::No) {
                entry.busy = Busy::Staying;
            }
        }
        if ended.is_empty() {
            self.predecessors_looked_at(&ids, &waiting, asker, Ok(HashMap::new()));
        } else {
            self.read_ends(ids, waiting, asker, ended);
        }
        others.into_iter().for_each(|id| self.resume_operations(id));
    }

    /// Reads how these jobs have ended.
    fn read_ends(&mut self, jobs: Vec<JobId>, waiting: Vec<JobId>, asker: Asker, ended: Vec<JobId>) {
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            // Their ends may still be on their way to the store: what was sent before this is there after it.
            let ends = match store.commit(Vec::new()).await {
                Ok(()) => store.states(ended).await,
                Err(error) => Err(error),
            };
            Done::Predecessors { jobs, waiting, asker, ends }
        }));
    }

    pub(super) fn predecessors_looked_at(
        &mut self,
        ids: &[JobId],
        waiting: &[JobId],
        asker: Asker,
        ends: Result<HashMap<JobId, State>, StoreError>,
    ) {
        for id in waiting.iter().copied() {
            let Some(terms) = self.jobs.get(id).and_then(|entry| entry.terms()) else { continue };
            match &ends {
                Ok(ends) => {
                    let end_of = |job: &JobId| Some((*job, *ends.get(job)?));
                    let in_vain = terms.after.iter().filter_map(end_of);
                    let in_vain = in_vain.filter(|(_, end)| matches!(end, State::Failed | State::Cancelled));
                    self.in_vain.extend(in_vain.map(|(job, end)| (id, Verb::InVain(job, end))));
                }
                Err(error) => {
                    tracing::error!(job = %id, %error, "it cannot be told how the jobs ended that it comes after: it waits");
                    self.jobs.set_unmet(id, Condition::After, true);
                }
            }
        }
        for id in waiting {
            if let Some(entry) = self.jobs.get_mut(*id) {
                entry.busy = Busy::No;
            }
        }
        self.give_up_in_vain();
        // Answered when what has just followed is durable too.
        match asker {
            Asker::Submission(reply) => {
                let candidates = self.candidates();
                let standings = ids.iter().map(|id| self.standing(*id, &candidates)).collect();
                // An error means that the asker has gone away.
                self.then.answers.push(Box::new(move |result| drop(reply.send(result.map(|()| standings)))));
            }
            Asker::Operation(operation) => {
                let state = self.jobs.get(operation.id).map_or(State::Cancelled, |entry| entry.state());
                self.then.answers.push(Box::new(move |result| operation.answer(result.map(|()| state))));
            }
        }
        for id in waiting {
            self.resume_operations(*id);
        }
    }

    /// Moves a queued job, or has a held one released at the front. Places that are chosen by their neighbours are written one
    /// after another.
    pub(super) fn rerank(&mut self, operation: Operation) {
        let id = operation.id;
        let Some(entry) = self.jobs.get_mut(id) else { return };
        entry.begin_change();
        let (place, state) = (entry.place(id), entry.state());
        if self.reranking {
            return self.to_rerank.push_back(Reranking::Waiting(operation));
        }
        let target = match operation.verb {
            Verb::Move(target) => target,
            _ => Target::Front,
        };
        let Some(shifts) = self.jobs.shifts(place, target) else {
            let Target::Before(other) = target else { return };
            operation.answer(Err(QueueError::NotInLine(other)));
            return self.resume_operations(id);
        };
        let (at, by, action) = (Time::now(), operation.by.clone(), operation.verb.as_str());
        let mut changes = Vec::new();
        if state == State::Held {
            let (to, by, deliveries) = (State::Queued, by.clone(), Vec::new());
            changes.push(Change::Move { job: id, from: state, to, reason: None, at, by, action, deliveries });
        }
        if !shifts.is_empty() {
            // One operation, one row of the audit trail.
            let action = changes.is_empty().then_some(action);
            changes.push(Change::Rerank { job: id, shifts: shifts.clone(), at, by, action });
        }
        self.reranking = true;
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(changes).await;
            Done::Reranked { operation, shifts, result }
        }));
    }

    pub(super) fn reranked(&mut self, operation: Operation, shifts: &[Shift], result: Result<(), StoreError>) {
        let id = operation.id;
        if result.is_ok() {
            self.jobs.shift(shifts);
            self.set_state(id, State::Queued);
        }
        operation.answer(result.map(|()| State::Queued).map_err(QueueError::from));
        self.resume_operations(id);
        self.rerank_next();
    }

    /// The place that was chosen last is written: the next may choose.
    fn rerank_next(&mut self) {
        self.reranking = false;
        while !self.reranking
            && let Some(next) = self.to_rerank.pop_front()
        {
            match next {
                Reranking::Waiting(operation) => self.rerank(operation),
                Reranking::Ended(operation, job) => self.begin_attempt(operation, &job),
            }
        }
    }

    pub(super) fn edit(&mut self, operation: Operation, job: Arc<Job>, hold: Option<Reason>) {
        let id = job.id;
        let Some(entry) = self.jobs.get(id) else { return };
        if entry.revision != job.revision {
            return operation.answer(Err(QueueError::Changed(id)));
        }
        if let Some(error) = self.asks_too_much(&job) {
            return operation.answer(Err(error));
        }
        if !self.jobs.begin_linking(id, &job.spec.terms) {
            return operation.answer(Err(QueueError::Circle(id)));
        }
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let hold = hold.filter(|_| entry.state() == State::Queued);
        let held = hold.is_some();
        match held {
            true => entry.busy = Busy::Leaving,
            false => entry.begin_change(),
        }
        let at = Time::now();
        let mut changes = vec![Change::Edit { job: job.clone(), at, by: operation.by.clone() }];
        if hold.is_some() {
            let (from, to, by, action) = (State::Queued, State::Held, "plugin".to_owned(), "hold");
            changes.push(Change::Move { job: id, from, to, reason: hold, at, by, action, deliveries: Vec::new() });
        }
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(changes).await;
            Done::Edited { operation, job, held, result }
        }));
    }

    pub(super) fn edited(&mut self, operation: Operation, job: &Job, held: bool, result: Result<(), StoreError>) {
        let id = job.id;
        self.jobs.end_linking(id);
        if let Err(error) = result {
            operation.answer(Err(error.into()));
            return self.resume_operations(id);
        }
        let terms = (!job.spec.terms.are_none()).then(|| Box::new(job.spec.terms.clone()));
        self.jobs.edit(id, job.spec.gpus, job.spec.priority, terms, Time::now());
        if held {
            self.set_state(id, State::Held);
        }
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.revision += 1;
        }
        self.check_gpus(id);
        self.look_at_predecessors(vec![id], Asker::Operation(operation));
    }

    /// Changes a time limit as long as the one that the job has lets it run: then the shim hears of the other one in time, and
    /// what is answered is what happens.
    pub(super) fn limit(&mut self, operation: Operation, from: Option<Duration>, to: Option<Duration>) {
        let id = operation.id;
        if self.time_is_up(id, from) {
            return operation.answer(Err(QueueError::TimeIsUp(id)));
        }
        // Its limit may have run out while nobody could look: nobody knows whether another one comes in time.
        if let Some(error) = self.start_is_unknown(id) {
            return operation.answer(Err(error));
        }
        let Some(entry) = self.jobs.get_mut(id) else { return };
        entry.busy = Busy::Staying;
        let change = limited_to(id, to, operation.by.clone());
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![change]).await;
            Done::Limited { operation, from, to, result }
        }));
    }

    pub(super) fn limited(
        &mut self,
        operation: Operation,
        from: Option<Duration>,
        to: Option<Duration>,
        result: Result<(), StoreError>,
    ) {
        let id = operation.id;
        let launch = self.live.iter().find(|(_, live)| live.job == id).map(|(launch, _)| *launch);
        if let Err(error) = result {
            operation.answer(Err(error.into()));
            return self.limit_changed(id, launch);
        }
        let in_time = !self.time_is_up(id, from);
        let extending = Extending { operation, from };
        if in_time
            && let Some(launch) = launch
            && self.launcher.extend(launch, to)
            && let Some(live) = self.live.get_mut(&launch).filter(|live| live.end.is_none())
        {
            live.extending = Some(extending);
            return;
        }
        self.answer_extension(extending, in_time);
        self.limit_changed(id, launch);
    }

    /// The shim has said whether another time limit holds, or it is known otherwise.
    pub(super) fn extended(&mut self, launch: LaunchId, in_time: bool) {
        let Some(live) = self.live.get_mut(&launch) else { return };
        let (id, extending) = (live.job, live.extending.take());
        if let Some(extending) = extending {
            self.answer_extension(extending, in_time);
            self.limit_changed(id, Some(launch));
        }
    }

    fn answer_extension(&mut self, Extending { operation, from }: Extending, in_time: bool) {
        let id = operation.id;
        let Some(entry) = self.jobs.get_mut(id) else { return operation.answer(Err(QueueError::NotFound(id))) };
        entry.revision += 1;
        if in_time {
            return operation.answer(Ok(entry.state()));
        }
        // The one before ran out while this one was being stored: what is stored is what has struck.
        entry.revision += 1;
        self.owed.push(limited_to(id, from, "taxiway".into()));
        let too_late = move |result: Result<(), QueueError>| {
            operation.answer(result.and(Err(QueueError::TimeIsUp(id))));
        };
        self.then.answers.push(Box::new(too_late));
    }

    fn limit_changed(&mut self, id: JobId, launch: Option<LaunchId>) {
        if let Some(launch) = launch {
            self.end_that_waited(launch);
        }
        self.resume_operations(id);
    }

    /// Whether a job has run for longer than this limit.
    fn time_is_up(&self, id: JobId, limit: Option<Duration>) -> bool {
        let begun = self.live.values().find(|live| live.job == id).and_then(|live| live.begun);
        let ran = begun.map(|begun| taxiway_launcher::Instant::now().since(&begun));
        ran.zip(limit).is_some_and(|(ran, limit)| ran >= limit)
    }
}

fn limited_to(job: JobId, limit: Option<Duration>, by: String) -> Change {
    Change::TimeLimit { job, limit, at: Time::now(), by }
}
