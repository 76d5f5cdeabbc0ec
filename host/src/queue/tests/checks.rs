//! What must be true of a story while it goes on, and at its end.

use std::collections::HashMap;
use std::sync::Arc;

use taxiway_job::{FailureClass, Job, JobId, State};
use taxiway_launcher::Status;
use tokio::sync::broadcast;

use super::Service;
use super::faults::Story;
use super::machine::Truth;
use crate::store::{Event, JobFilter};

impl Story {
    /// Checks what was committed against what is alive.
    pub(super) fn watch(&self, seen: &mut broadcast::Receiver<Arc<Event>>) {
        while let Ok(event) = seen.try_recv() {
            let Some(job) = event.job else { continue };
            let without_processes = ["job.held", "job.queued", "job.completed", "job.failed", "job.cancelled"];
            // A job that was queued may have gone since.
            if without_processes.contains(&event.kind.as_str())
                && event.kind != "job.queued"
                && !self.notes().jobs.get(&job).is_some_and(|asked| asked.rearranged)
                && self.machine.is_alive(job)
            {
                self.notes().broken.push(format!("{} of job {job}, and a process of it is alive", event.kind));
            }
        }
        self.check();
    }

    pub(super) fn check(&self) {
        let broken = self.machine.rules(|rules| std::mem::take(&mut rules.broken));
        assert!(broken.is_empty(), "{broken:#?}");
        let broken = std::mem::take(&mut self.notes().broken);
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// Lets the owner come to rest, and compares what it and the store say.
    pub(super) async fn look(&mut self, service: &Service) {
        service.rest().await;
        let mut wrong = self.compare(service).await;
        // An answer that came late, as that of a read, may have changed something meanwhile.
        for _ in 0..3 {
            if wrong.is_empty() || self.machine.was_killed() {
                return;
            }
            service.rest().await;
            wrong = self.compare(service).await;
        }
        assert!(wrong.is_empty() || self.machine.was_killed(), "{wrong:#?}");
    }

    async fn compare(&self, service: &Service) -> Vec<String> {
        let jobs = all_jobs(service).await;
        let order = self.notes().order.clone();
        let index = |id: JobId| order.iter().position(|other| *other == id).expect("the tester submitted it");
        let mut queued: Vec<&Job> = jobs.iter().filter(|job| job.state == State::Queued).collect();
        queued.sort_by_key(|job| (-i32::from(job.spec.priority), index(job.id)));
        let places: HashMap<JobId, usize> = queued.iter().enumerate().map(|(at, job)| (job.id, at + 1)).collect();
        let standing = service.queue.standing(jobs.iter().map(|job| job.id).collect()).await;
        let mut wrong = Vec::new();
        for (job, standing) in jobs.iter().zip(&standing) {
            let (at, state) = (index(job.id), job.state);
            if !self.rearranges && standing.position != places.get(&job.id).copied() {
                wrong.push(format!("job {at} is {state} and its position is {:?}", standing.position));
            }
            if standing.reason.is_some() != matches!(state, State::Queued | State::Cancelling) {
                wrong.push(format!("job {at} is {state} and its reason is {:?}", standing.reason));
            }
            if state == State::Cancelling && self.machine.runs_on(job.id) {
                wrong.push(format!("job {at} is cancelling and was not asked to stop"));
            }
        }
        let mut positions: Vec<usize> = standing.iter().filter_map(|standing| standing.position).collect();
        positions.sort_unstable();
        if positions != (1..=queued.len()).collect::<Vec<_>>() {
            wrong.push(format!("the positions of {} queued jobs are {positions:?}", queued.len()));
        }
        if let Ok(summary) = service.queue.summary().await {
            let count = |states: &[State]| jobs.iter().filter(|job| states.contains(&job.state)).count();
            let live = count(&[State::Pending, State::Running, State::Cancelling]);
            let counts = (summary.queued, summary.held, summary.running.len());
            if counts != (count(&[State::Queued]), count(&[State::Held]), live) {
                wrong.push(format!("the summary says {counts:?}"));
            }
        }
        if wrong.is_empty() && !self.machine.was_killed() && !self.rearranges {
            let notes = self.notes();
            let sure = queued
                .iter()
                .map(|job| job.id)
                .filter(|id| notes.jobs[id].open == 0 && !notes.jobs[id].limited && !self.machine.is_unsettled(*id))
                .collect();
            self.machine.rules(|rules| rules.in_line = sure);
        }
        wrong
    }

    pub(super) async fn judge(&self, service: &Service, order: &[JobId]) {
        let jobs: HashMap<JobId, Job> = all_jobs(service).await.into_iter().map(|job| (job.id, job)).collect();
        let ends = self.machine.rules(|rules| std::mem::take(&mut rules.ends));
        for (index, id) in order.iter().enumerate() {
            let (submitted, cancel_tried, cancelled, rearranged) = {
                let notes = self.notes();
                let asked = &notes.jobs[id];
                // One that was cancelled may have been retried.
                let cancelled = asked.cancelled && !asked.rearranged;
                (asked.submitted, asked.cancel_tried, cancelled, asked.rearranged)
            };
            let Some(job) = jobs.get(id) else {
                assert!(!submitted, "job {index} was acknowledged and is lost");
                continue;
            };
            let failure = job.failure.as_ref().map(|failure| failure.class);
            let expected = match ends.get(id) {
                _ if cancelled => (State::Cancelled, None),
                _ if cancel_tried && job.state == State::Cancelled => (State::Cancelled, None),
                Some(Truth::Status(Status::Exited(0))) => (State::Completed, None),
                Some(Truth::Status(Status::Exited(_))) => (State::Failed, Some(FailureClass::Exit)),
                Some(Truth::Status(Status::Signaled(_))) => (State::Failed, Some(FailureClass::Signal)),
                Some(Truth::Status(Status::LaunchError(_))) => (State::Failed, Some(FailureClass::LaunchError)),
                Some(Truth::Lost) => (State::Failed, Some(FailureClass::HostLost)),
                None => panic!("job {index} is {} and never ran", job.state),
            };
            assert_eq!((job.state, failure), expected, "job {index}");
            // One that was put back into the line and cancelled there has no status any more.
            let kept = !rearranged || job.state != State::Cancelled;
            if let Some(Truth::Status(Status::Exited(code))) = ends.get(id).filter(|_| kept) {
                assert_eq!(job.exit.code, Some(*code), "job {index}");
            }
            let deliveries = service.store.deliveries_of(*id).await.expect("the store can be read");
            let told: Vec<State> = deliveries.iter().map(|delivery| delivery.end).collect();
            if rearranged {
                // One for each end, of which there may have been several.
                assert_eq!(told.last(), Some(&job.state), "the last delivery of job {index}");
            } else {
                assert_eq!(told, [job.state], "deliveries of job {index}");
            }
        }
        assert!(service.store.unsettled_attempts().await.expect("the store can be read").is_empty());
        self.transitions_are_legal(service).await;
    }

    async fn transitions_are_legal(&self, service: &Service) {
        let mut at: HashMap<JobId, State> = HashMap::new();
        for event in service.store.events_after(0, 1_000_000).await.expect("the store can be read") {
            let Some(job) = event.job else { continue };
            let name = event.kind.strip_prefix("job.").expect("events of jobs are transitions here");
            if name == "moved" {
                continue;
            }
            let to: State = name.parse().expect("a state");
            match at.insert(job, to) {
                Some(from) => assert!(from.may_become(to), "job {job} went from {from} to {to}"),
                None => assert!(matches!(to, State::Queued | State::Held), "job {job} began as {to}"),
            }
        }
    }
}

/// Every job that there ever was.
pub(super) async fn all_jobs(service: &Service) -> Vec<Job> {
    let all = JobFilter { limit: 10_000, ..JobFilter::default() };
    service.store.jobs(all).await.expect("the store can be read").items
}
