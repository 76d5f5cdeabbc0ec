//! Changes that meet each other, or a start: whose turn it is meanwhile, and what is kept of it.

use std::sync::Arc;
use std::time::Duration;

use taxiway_job::{FailureClass, Job, Retries, State, Time};

use super::launch::Shim;
use super::machine::Step;
use super::rules::{all_but_ends, machine, nothing_is_broken, runs, up_to_go};
use super::{Service, job, virtual_slots};
use crate::queue::QueueError;
use crate::store::Change;

#[tokio::test]
async fn a_job_that_is_being_edited_is_not_overtaken_and_one_that_is_being_held_is() {
    for holds in [false, true] {
        let (slots, first, second, third) = (virtual_slots(1), job(1, 0), job(1, 0), job(1, 0));
        let (machine, directory) = machine(&slots, &[&first, &second, &third]);
        let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
        for job in [&first, &second, &third] {
            service.submit(job).await;
        }
        service.settle(&machine, all_but_ends).await;
        assert_eq!((machine.shim_of(second.id), machine.shim_of(third.id)), (Some(Shim::Waiting), Some(Shim::Waiting)));
        // Nothing can be committed while another connection writes.
        let other = rusqlite::Connection::open(directory.path().join("taxiway.db")).expect("opens");
        other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
        let (queue, mut edited) = (service.queue.clone(), second.clone());
        edited.spec.labels.insert("team".into(), "nlp".into());
        let change = tokio::spawn(async move {
            match holds {
                false => queue.edit(Arc::new(edited), None, "tester").await,
                true => queue.hold(edited.id, "tester").await,
            }
        });
        let [of_first, of_second] = [&first, &second].map(|job| machine.launch_of(job.id).expect("it was launched"));
        let ends = [Step::Serve(of_second), Step::Deliver(of_second), Step::End(of_first, 0), Step::Deliver(of_first)];
        // Each answer shows that the owner has done what it was told before.
        for step in [None, None].into_iter().chain(ends.map(Some)).chain([None, None]) {
            if let Some(step) = step {
                machine.step(step, &service.events).await;
            }
            tokio::task::yield_now().await;
            service.queue.summary().await.expect("the owner lives");
        }
        let overtaken = machine.shim_of(third.id) != Some(Shim::Waiting);
        assert_eq!(overtaken, holds, "the slot is free, and the change of the next in line is not written yet");
        other.execute_batch("COMMIT").expect("nothing was written");
        change.await.expect("no panic").expect("it is changed");
        service.settle(&machine, all_but_ends).await;
        assert_eq!((runs(&machine, &second), runs(&machine, &third)), (!holds, holds));
        nothing_is_broken(&machine);
    }
}

#[tokio::test]
async fn two_edits_at_once_of_which_each_closes_half_a_circle_are_not_both_taken() {
    let (slots, first, second) = (virtual_slots(1), job(1, 0), job(1, 0));
    let (machine, directory) = machine(&slots, &[&first, &second]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    service.submit(&first).await;
    service.submit(&second).await;
    // Nothing can be committed while another connection writes.
    let other = rusqlite::Connection::open(directory.path().join("taxiway.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
    let after = |job: &Job, predecessor: &Job| {
        let mut job = job.clone();
        job.spec.terms.after.push(predecessor.id);
        let queue = service.queue.clone();
        async move { queue.edit(Arc::new(job), None, "tester").await }
    };
    let (one, another) = (after(&first, &second), after(&second, &first));
    let release = async {
        // Both have been looked at when the owner answers this.
        service.queue.summary().await.expect("the owner lives");
        other.execute_batch("COMMIT").expect("nothing was written");
    };
    let (one, another, ()) = tokio::join!(one, another, release);
    assert!(one.is_ok(), "{one:?}");
    assert!(matches!(another, Err(QueueError::Circle(id)) if id == second.id), "{another:?}");
}

#[tokio::test]
async fn a_launch_that_started_nothing_while_its_job_is_being_stopped_leaves_no_history() {
    for (verb, state) in [("requeue", State::Queued), ("requeue to held", State::Held), ("cancel", State::Cancelled)] {
        let (slots, job) = (virtual_slots(1), job(1, 0));
        let (machine, directory) = machine(&slots, &[&job]);
        let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
        service.submit(&job).await;
        service.settle(&machine, up_to_go).await;
        service.queue.pause("tester").await.expect("nothing is armed");
        // Nothing can be committed while another connection writes.
        let other = rusqlite::Connection::open(directory.path().join("taxiway.db")).expect("opens");
        other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
        let (queue, id) = (service.queue.clone(), job.id);
        let stop = tokio::spawn(async move {
            match verb {
                "cancel" => queue.cancel(id, "tester").await,
                _ => queue.requeue(id, verb == "requeue to held", "tester").await,
            }
        });
        let launch = machine.launch_of(job.id).expect("it was launched");
        // Each answer shows that the owner has done what it was told before.
        for step in [None, None, Some(Step::Lose(launch)), Some(Step::Deliver(launch)), None] {
            if let Some(step) = step {
                machine.step(step, &service.events).await;
            }
            tokio::task::yield_now().await;
            service.queue.summary().await.expect("the owner lives");
        }
        other.execute_batch("COMMIT").expect("nothing was written");
        assert_eq!(stop.await.expect("no panic").expect("it is stopped"), State::Cancelling, "{verb}");
        service.settle(&machine, all_but_ends).await;
        assert!(service.queue.summary().await.expect("the owner lives").running.is_empty(), "{verb}");
        let stored = service.store.job(job.id).await.expect("reads").expect("it is there");
        assert_eq!((stored.state, stored.attempt), (state, 1), "{verb}");
        let history = service.store.attempts(job.id).await.expect("reads");
        assert!(history.is_empty(), "{verb}: {history:?}");
        service.kill(&machine).await;
        let service = Service::start(directory.path(), &machine, virtual_slots(1)).await.expect("starts again");
        assert_eq!(service.state(&job).await, state, "{verb}");
    }
}

#[tokio::test]
async fn a_job_that_fails_before_its_start_leaves_that_in_its_history() {
    let (slots, mut job) = (virtual_slots(1), job(1, 0));
    (job.spec.profile, job.spec.name) = (Some("judged".into()), "bad".into());
    let on = vec![FailureClass::Preflight];
    job.spec.terms.retries = Retries { max: 1, backoff: Duration::from_millis(1), on };
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&job).await;
    let mut events = service.store.events();
    while service.state(&job).await != State::Failed {
        events.recv().await.expect("the store lives");
    }
    let history = service.store.attempts(job.id).await.expect("reads");
    let told: Vec<_> = history
        .iter()
        .map(|record| {
            (record.attempt, record.end_state, record.failure.as_ref().map(|failure| failure.class), record.armed)
        })
        .collect();
    let failed = |attempt: u32| (attempt, Some(State::Failed), Some(FailureClass::Preflight), false);
    assert_eq!(told, [failed(1), failed(2)]);
    assert_eq!(service.store.latest_launch(job.id).await.expect("reads"), None, "none of them has a log");
}

#[tokio::test]
async fn whoever_is_forced_comes_to_the_front_however_many_were_before() {
    let (slots, held) = (virtual_slots(1), job(1, 0));
    let ended: Vec<Job> = (0..40).map(|_| job(1, 0)).collect();
    let all: Vec<&Job> = [&held].into_iter().chain(&ended).collect();
    let (machine, directory) = machine(&slots, &all);
    let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    for job in all {
        service.submit(job).await;
    }
    // Its place is right before those that are forced.
    service.queue.hold(held.id, "tester").await.expect("it is queued");
    for job in &ended {
        service.queue.cancel(job.id, "tester").await.expect("it is queued");
    }
    let (one_by_one, at_once) = ended.split_at(30);
    for job in one_by_one {
        service.queue.force_start(job.id, "tester").await.expect("it has ended");
        let standing = service.queue.standing(vec![job.id]).await;
        assert_eq!(standing[0].position, Some(1));
    }
    let forced = at_once.iter().map(|job| service.queue.force_start(job.id, "tester"));
    for answer in futures_util::future::join_all(forced).await {
        assert_eq!(answer.expect("it has ended"), State::Queued);
    }
    let positions = async |service: &Service| -> Vec<Option<usize>> {
        let standings = service.queue.standing(ended.iter().map(|job| job.id).collect()).await;
        standings.iter().map(|standing| standing.position).collect()
    };
    let before = positions(&service).await;
    assert!(before[30..].iter().all(|position| position.is_some_and(|position| position <= 10)), "{before:?}");
    assert_eq!(before[..30], (11..=40).rev().map(Some).collect::<Vec<_>>());
    service.kill(&machine).await;
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
    assert_eq!(positions(&service).await, before);
}

#[tokio::test]
async fn a_retry_of_a_job_that_is_being_removed_finds_it_or_does_not() {
    let (slots, jobs) = (virtual_slots(1), (0..60).map(|_| job(1, 0)).collect::<Vec<Job>>());
    let (machine, directory) = machine(&slots, &jobs.iter().collect::<Vec<_>>());
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    for (index, job) in jobs.iter().enumerate() {
        service.submit(job).await;
        service.queue.cancel(job.id, "tester").await.expect("it is queued");
        let delivery = service.store.deliveries_of(job.id).await.expect("reads").pop().expect("its end is told");
        let delivered = Change::Delivered { delivery: delivery.id, at: Time::now() };
        service.store.commit(vec![delivered]).await.expect("is stored");
        // Removed a little later each time, so that it comes at each point of the way.
        let removed = async {
            for _ in 0..index {
                service.queue.summary().await.expect("the owner lives");
            }
            let (at, by) = (Time::now(), "tester".to_owned());
            service.store.commit(vec![Change::Remove { job: job.id, revisions: None, at, by }]).await
        };
        let (retried, removed) = tokio::join!(service.queue.retry(job.id, "tester"), removed);
        match retried {
            Ok(State::Queued) => assert!(removed.is_err(), "it waits again"),
            Err(QueueError::NotFound(_)) => assert!(removed.is_ok(), "it is gone"),
            other => panic!("{other:?}"),
        }
    }
}
