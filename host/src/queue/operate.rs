//! What people do to jobs: cancel, hold, release.

use taxiway_job::{JobId, Reason, State, StopTarget, Time};
use taxiway_launcher::Stop;

use super::handle::{Operation, QueueError, Verb};
use super::owner::{Done, Owner};
use crate::store::{Change, StoreError};

/// A stop with the signal and the grace of the launch's own plan.
pub(super) const AS_PLANNED: Stop = Stop { grace: None, signal: None };

impl Owner {
    pub(super) fn operate(&mut self, operation: Operation) {
        let id = operation.id;
        let Some(entry) = self.jobs.get(&id) else {
            if self.submitting.contains(&id) {
                return self.waiting.entry(id).or_default().push_back(operation);
            }
            return self.look_up(operation);
        };
        if entry.busy {
            return self.waiting.entry(id).or_default().push_back(operation);
        }
        let state = entry.state;
        match (operation.verb, state) {
            (Verb::Cancel | Verb::Hold, State::Queued) if self.is_armed(id) => {
                self.waiting.entry(id).or_default().push_back(operation);
                self.disarm(id);
            }
            (Verb::Cancel, State::Queued | State::Held) => self.move_to(operation, state, State::Cancelled),
            (Verb::Cancel, State::Pending | State::Running) => self.stop(operation, StopTarget::Cancelled),
            (Verb::Hold, State::Queued) => self.move_to(operation, state, State::Held),
            (Verb::Release, State::Held) => self.move_to(operation, state, State::Queued),
            // Nothing is left to change.
            (Verb::Cancel, State::Cancelling) | (Verb::Hold, State::Held) | (Verb::Release, State::Queued) => {
                operation.answer(Ok(state));
            }
            (verb, state) => operation.answer(Err(QueueError::Illegal { id, state, verb: verb.as_str() })),
        }
    }

    /// Runs the operations that waited for this job, now that it is not busy any more.
    pub(super) fn resume_operations(&mut self, id: JobId) {
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.busy = false;
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
            let blocked = self.jobs.get(&id).is_some_and(|entry| entry.busy)
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
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.busy = true;
        let deliveries = if to.has_ended() { self.hooks.deliveries(entry.profile.as_deref(), to) } else { Vec::new() };
        let by = operation.by.clone();
        let reason = match to {
            State::Cancelled => Some(Reason::new("cancelled", format!("cancelled by {by} before it started"))),
            State::Held => {
                Some(Reason::new("held", format!("held by {by}; `taxiway release` puts it back into the line")))
            }
            _ => None,
        };
        let change = Change::Move { job: id, from, to, reason, at: Time::now(), by, deliveries };
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            let result = store.commit(vec![change]).await;
            Done::Moved { operation, to, result }
        }));
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
        let Some(entry) = self.jobs.get_mut(&operation.id) else { return };
        entry.busy = true;
        let change = Change::Stop { job: operation.id, target, at: Time::now(), by: operation.by.clone() };
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
                if let Some(entry) = self.jobs.get_mut(&id) {
                    entry.stop_target = Some(target);
                }
                self.set_state(id, State::Cancelling);
                if let Some(launch) = launch {
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
    fn look_up(&mut self, operation: Operation) {
        let store = self.store.clone();
        self.work.push(Box::pin(async move {
            // Its end may still be on its way to the store: what was sent before this is there after it.
            let found = match store.commit(Vec::new()).await {
                Ok(()) => store.job(operation.id).await.map(|job| job.map(|job| job.state)),
                Err(error) => Err(error),
            };
            Done::Looked { operation, found }
        }));
    }

    pub(super) fn looked(operation: Operation, found: Result<Option<State>, StoreError>) {
        let (id, verb) = (operation.id, operation.verb);
        operation.answer(match found {
            Ok(Some(State::Cancelled)) if verb == Verb::Cancel => Ok(State::Cancelled),
            Ok(Some(state)) => Err(QueueError::Illegal { id, state, verb: verb.as_str() }),
            Ok(None) => Err(QueueError::NotFound(id)),
            Err(error) => Err(error.into()),
        });
    }
}
