//! What people do to jobs: cancel, hold, release, requeue; [`change`](super::change) has what changes the job itself or its
//! place.

use taxiway_job::{Busy, Job, JobId, Reason, State, StopTarget, Time};
use taxiway_launcher::Stop;

use super::handle::{Operation, QueueError, Verb};
use super::owner::{Done, Owner};
use crate::store::{Change, StoreError};

/// A stop with the signal and the grace of the launch's own plan.
pub(super) const AS_PLANNED: Stop = Stop { grace: None, signal: None };

impl Owner {
    pub(super) fn operate(&mut self, operation: Operation) {
        let id = operation.id;
        let Some(entry) = self.jobs.get(id) else {
            if self.submitting.contains(&id) {
                return self.waiting.entry(id).or_default().push_back(operation);
            }
            return self.look_up(operation);
        };
        if entry.busy != Busy::No {
            if let Some(error) = self.stuck(id)
                && !matches!(operation.verb, Verb::InVain(..))
            {
                return operation.answer(Err(error));
            }
            return self.waiting.entry(id).or_default().push_back(operation);
        }
        if !operation.is_meant_for(entry.revision) {
            return operation.answer(Err(QueueError::Changed(id)));
        }
        let (state, stop_target) = (entry.state(), entry.stop_target);
        let illegal = |verb: &Verb| Err(QueueError::Illegal { id, state, verb: verb.as_str() });
        match (&operation.verb, state) {
            // Whatever changes a job that is armed takes it back first.
            (verb, State::Queued) if self.is_armed(id) && !verb.leaves_as_it_is() => {
                self.waiting.entry(id).or_default().push_back(operation);
                self.disarm(id);
            }
            (Verb::Cancel, State::Queued | State::Held) => self.move_to(operation, state, State::Cancelled),
            (Verb::Cancel, State::Pending | State::Running) => self.stop(operation, StopTarget::Cancelled),
            (Verb::Cancel, State::Cancelling) if stop_target != Some(StopTarget::Cancelled) => {
                self.stop(operation, StopTarget::Cancelled);
            }
            (Verb::Hold | Verb::Requeue { hold: true }, State::Queued) => self.move_to(operation, state, State::Held),
            (Verb::Release, State::Held) => self.move_to(operation, state, State::Queued),
            (Verb::Requeue { hold }, State::Pending | State::Running | State::Cancelling)
                if stop_target != Some(StopTarget::Cancelled) =>
            {
                let target = if *hold { StopTarget::Held } else { StopTarget::Queued };
                if stop_target == Some(target) { operation.answer(Ok(state)) } else { self.stop(operation, target) }
            }
            (Verb::Move(_), State::Queued) | (Verb::ForceStart, State::Queued | State::Held) => self.rerank(operation),
            (Verb::Edit { job, hold }, State::Queued | State::Held) => {
                let (job, hold) = (job.clone(), hold.clone());
                self.edit(operation, job, hold);
            }
            (Verb::Limit { from, to }, State::Pending | State::Running) => {
                let (from, to) = (*from, *to);
                self.limit(operation, from, to);
            }
            (Verb::InVain(because, end), State::Queued | State::Held) => {
                let (because, end) = (*because, *end);
                self.give_up(id, because, end);
                operation.answer(Ok(State::Cancelled));
            }
            // Nothing is left to change.
            (Verb::Cancel, State::Cancelling)
            | (Verb::Hold | Verb::Requeue { hold: true }, State::Held)
            | (Verb::Release | Verb::Requeue { hold: false }, State::Queued) => operation.answer(Ok(state)),
            (verb, _) => {
                let answer = illegal(verb);
                operation.answer(answer);
            }
        }
    }

    /// Runs the operations that waited for this job, now that it is not busy any more.
    pub(super) fn resume_operations(&mut self, id: JobId) {
        // Whatever it was that did not answer, the job waits for it no more.
        self.silent.remove(&id);
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.busy = Busy::No;
        }
        // Each operation either is answered at once, or makes the job busy or disarms it and so ends this loop; the rest
        // waits for the next call.
        while let Some(waiting) = self.waiting.get_mut(&id) {
            let Some(operation) = waiting.pop_front() else {
                self.waiting.remove(&id);
                return;
            };
            let left = waiting.len();
            self.operate(operation);
            let blocked = self.jobs.get(id).is_some_and(|entry| entry.busy != Busy::No)
                || self.waiting.get(&id).is_some_and(|waiting| waiting.len() > left);
            if blocked {
                // What was pushed back by a disarming goes to the front again, where it was.
                if let Some(waiting) = self.waiting.get_mut(&id)
                    && waiting.len() > left
                {
                    waiting.rotate_right(1);
                }
                return;
            }
        }
    }

    fn move_to(&mut self, operation: Operation, from: State, to: State) {
        let id = operation.id;
        let Some(entry) = self.jobs.get_mut(id) else { return };
        entry.busy = Busy::Leaving;
        let deliveries = if to.has_ended() { self.hooks.deliveries(entry.profile.as_deref(), to) } else { Vec::new() };
        let by = operation.by.clone();
        let reason = match to {
            State::Cancelled => Some(Reason::new("cancelled", format!("cancelled by {by} before it started"))),
            State::Held => {
                Some(Reason::new("held", format!("held by {by}; `taxiway release` puts it back into the line")))
            }
            _ => None,
        };
        let action = operation.verb.as_str();
        let change = Change::Move { job: id, from, to, reason, at: Time::now(), by, action, deliveries };
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![change]).await;
            Done::Moved { operation, to, result }
        }));
    }

    /// The end of a job that waits for another one in vain. A fact: what it follows from has happened.
    fn give_up(&mut self, id: JobId, because: JobId, end: State) {
        let Some(entry) = self.jobs.get(id) else { return };
        // The job may have been edited meanwhile, or the other one retried.
        let still = entry.terms().is_some_and(|terms| terms.after.contains(&because)) && !self.jobs.contains(because);
        if !still {
            return;
        }
        let (from, deliveries) = (entry.state(), self.hooks.deliveries(entry.profile.as_deref(), State::Cancelled));
        let message = format!("job {because} is {end}, and this job starts only after that one has completed");
        self.owed.push(Change::Move {
            job: id,
            from,
            to: State::Cancelled,
            reason: Some(Reason::new("after_failed", message)),
            at: Time::now(),
            by: "taxiway".into(),
            action: "cancel",
            deliveries,
        });
        self.set_state(id, State::Cancelled);
    }

    pub(super) fn moved(&mut self, operation: Operation, to: State, result: Result<(), StoreError>) {
        let id = operation.id;
        if result.is_ok() {
            self.set_state(id, to);
        }
        operation.answer(result.map(|()| to).map_err(QueueError::from));
        self.resume_operations(id);
    }

    /// A stop is stored with its target before anything is signalled.
    fn stop(&mut self, operation: Operation, target: StopTarget) {
        let Some(entry) = self.jobs.get_mut(operation.id) else { return };
        entry.busy = Busy::Leaving;
        let (by, action) = (operation.by.clone(), operation.verb.as_str());
        let change = Change::Stop { job: operation.id, target, at: Time::now(), by, action };
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![change]).await;
            Done::Stopped { operation, target, result }
        }));
    }

    pub(super) fn stopped(&mut self, operation: Operation, target: StopTarget, result: Result<(), StoreError>) {
        let id = operation.id;
        let launch = self.live.iter().find(|(_, live)| live.job == id).map(|(launch, _)| *launch);
        let answer = match result {
            Ok(()) => {
                if let Some(entry) = self.jobs.get_mut(id) {
                    entry.stop_target = Some(target);
                }
                // One that is being stopped already is not signalled again: its grace runs.
                let begins = self.jobs.get(id).is_some_and(|entry| entry.state() != State::Cancelling);
                self.set_state(id, State::Cancelling);
                if let Some(launch) = launch.filter(|_| begins) {
                    self.launcher.stop(launch, AS_PLANNED);
                }
                Ok(State::Cancelling)
            }
            Err(error) => Err(error.into()),
        };
        operation.answer(answer);
        if let Some(launch) = launch {
            self.end_that_waited(launch);
        }
        self.resume_operations(id);
    }

    /// A job that the queue does not have: it has ended, or never was.
    pub(super) fn look_up(&mut self, operation: Operation) {
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            // Its end may still be on its way to the store: what was sent before this is there after it.
            let found = match store.commit(Vec::new()).await {
                Ok(()) => store.job(operation.id).await,
                Err(error) => Err(error),
            };
            Done::Looked { operation, found: found.map(|job| job.map(Box::new)) }
        }));
    }

    pub(super) fn looked(&mut self, operation: Operation, found: Result<Option<Box<Job>>, StoreError>) {
        let id = operation.id;
        if self.jobs.contains(id) || self.submitting.contains(&id) {
            // Somebody had it retried meanwhile.
            return self.operate(operation);
        }
        let job = match found {
            Ok(Some(job)) => job,
            Ok(None) => return operation.answer(Err(QueueError::NotFound(id))),
            Err(error) => return operation.answer(Err(error.into())),
        };
        if !operation.is_meant_for(job.revision) {
            return operation.answer(Err(QueueError::Changed(id)));
        }
        match (&operation.verb, job.state) {
            (Verb::Cancel, State::Cancelled) => operation.answer(Ok(State::Cancelled)),
            (Verb::Retry, State::Completed | State::Failed | State::Cancelled)
            | (Verb::ForceStart, State::Failed | State::Cancelled) => self.retry(operation, job),
            (verb, state) => {
                let verb = verb.as_str();
                operation.answer(Err(QueueError::Illegal { id, state, verb }));
            }
        }
    }
}

impl Verb {
    /// Whether a queued job stays as it is: there is nothing to be changed, or it may not be.
    fn leaves_as_it_is(&self) -> bool {
        match self {
            Self::Release | Self::Retry | Self::Requeue { hold: false } | Self::Limit { .. } => true,
            Self::Cancel
            | Self::Hold
            | Self::Requeue { hold: true }
            | Self::ForceStart
            | Self::Move(_)
            | Self::Edit { .. }
            | Self::InVain(..) => false,
        }
    }
}
