//! Single stories: what once went wrong, or would be seen only by luck among random orders.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use taxiway_job::{ArrayId, ArrayLimit, FailureClass, Job, Retries, State, Target};
use tokio::runtime::Handle;

use super::launch::Shim;
use super::machine::{Kill, Known, Machine, Step};
use super::{Service, gpus, job, virtual_slots};
use crate::line::Line;
use crate::queue::{Count, QueueError, SlotGpu};
use crate::store::BodyHash;

/// Everything but ends, which the tests choose.
pub(super) fn all_but_ends(step: &Step) -> bool {
    !matches!(step, Step::End(..))
}

/// Launches get as far as `go`, and no command is started.
pub(super) fn up_to_go(step: &Step) -> bool {
    matches!(step, Step::Serve(_) | Step::Deliver(_))
}

/// A machine that knows these jobs, first to start first, and an empty directory for the database.
pub(super) fn machine(slots: &[SlotGpu], jobs: &[&Job]) -> (Arc<Machine>, tempfile::TempDir) {
    let machine = Machine::new(slots.len());
    for (index, job) in jobs.iter().enumerate() {
        let known = Known { gpus: job.spec.gpus, array: job.spec.terms.array, place: (0, index) };
        machine.rules(|rules| rules.jobs.insert(job.id, known));
    }
    (Arc::new(machine), tempfile::tempdir().expect("a directory"))
}

pub(super) fn nothing_is_broken(machine: &Machine) {
    assert_eq!(machine.rules(|rules| std::mem::take(&mut rules.broken)), Vec::<String>::new());
}

pub(super) fn runs(machine: &Machine, job: &Job) -> bool {
    matches!(machine.shim_of(job.id), Some(Shim::Running(_)))
}

pub(super) async fn end(service: &Service, machine: &Machine, job: &Job, code: i32) {
    let launch = machine.launch_of(job.id).expect("it was launched");
    machine.step(Step::End(launch, code), &service.events).await;
}

#[tokio::test]
async fn after_a_restart_nothing_starts_beside_a_job_that_runs_on() {
    for slots in [virtual_slots(1), gpus(1)] {
        let (first, second) = (job(1, 0), job(1, 0));
        let (machine, directory) = machine(&slots, &[&first, &second]);
        let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
        service.submit(&first).await;
        service.submit(&second).await;
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &first));
        assert_eq!(machine.shim_of(second.id), Some(Shim::Waiting), "the next in line is armed");
        service.kill(&machine).await;

        let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &first) && !runs(&machine, &second));
        end(&service, &machine, &first, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &second));
        assert_eq!((service.state(&first).await, service.state(&second).await), (State::Completed, State::Running));
        nothing_is_broken(&machine);
    }
}

#[tokio::test]
async fn a_job_told_to_start_in_the_last_instant_of_a_service_keeps_its_slot_in_the_next() {
    for slots in [virtual_slots(1), gpus(1)] {
        let (first, second, third) = (job(1, 0), job(1, 0), job(1, 0));
        let (machine, directory) = machine(&slots, &[&first, &second, &third]);
        let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
        for job in [&first, &second, &third] {
            service.submit(job).await;
        }
        service.settle(&machine, all_but_ends).await;
        machine.kill(Kill { call: Some("go"), calls: 1, before: false });
        end(&service, &machine, &first, 0).await;
        service.settle(&machine, up_to_go).await;
        assert!(machine.was_killed());
        assert_eq!(machine.shim_of(second.id), Some(Shim::Told));
        assert_eq!((service.state(&first).await, service.state(&second).await), (State::Running, State::Queued));
        service.kill(&machine).await;

        let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
        service.settle(&machine, all_but_ends).await;
        assert_eq!((service.state(&first).await, service.state(&second).await), (State::Completed, State::Running));
        assert!(!runs(&machine, &third));
        end(&service, &machine, &second, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &third));
        nothing_is_broken(&machine);
    }
}

#[tokio::test]
async fn a_stop_that_was_stored_and_not_signalled_is_signalled_by_the_next_service() {
    let (slots, job) = (virtual_slots(1), job(1, 0));
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
    service.submit(&job).await;
    service.settle(&machine, all_but_ends).await;
    machine.kill(Kill { call: Some("stop"), calls: 1, before: true });
    let answer = service.queue.cancel(job.id, "tester").await;
    assert!(matches!(answer, Err(QueueError::Stopping)), "{answer:?}");
    service.kill(&machine).await;

    let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &job) && !machine.runs_on(job.id), "it was asked to stop");
    assert_eq!(service.state(&job).await, State::Cancelling);
    end(&service, &machine, &job, 0).await;
    service.settle(&machine, all_but_ends).await;
    assert_eq!(service.state(&job).await, State::Cancelled);
}

#[tokio::test]
async fn a_drained_queue_is_done_when_the_last_end_is_stored() {
    let (slots, running, waiting) = (virtual_slots(1), job(1, 0), job(1, 0));
    let (machine, directory) = machine(&slots, &[&running, &waiting]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&running).await;
    service.submit(&waiting).await;
    service.settle(&machine, all_but_ends).await;
    let (queue, drain) = (service.queue.clone(), service.settle(&machine, all_but_ends));
    let (drained, ()) = tokio::join!(queue.drain("tester"), drain);
    drained.expect("is stored");
    assert!(!service.drained.is_cancelled(), "a job still runs");
    end(&service, &machine, &running, 0).await;
    machine.step(Step::Deliver(machine.launch_of(running.id).expect("it was launched")), &service.events).await;
    service.drained.cancelled().await;
    assert_eq!((service.state(&running).await, service.state(&waiting).await), (State::Completed, State::Queued));
    assert_eq!(service.store.setting("mode").await.expect("reads").as_deref(), Some("paused"));
}

#[tokio::test]
async fn an_operation_that_comes_right_after_an_end_hears_of_it() {
    let (slots, job) = (virtual_slots(1), job(1, 0));
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&job).await;
    service.settle(&machine, all_but_ends).await;
    end(&service, &machine, &job, 0).await;
    let launch = machine.launch_of(job.id).expect("it was launched");
    machine.step(Step::Deliver(launch), &service.events).await;
    let answer = service.queue.cancel(job.id, "tester").await;
    assert!(matches!(answer, Err(QueueError::Illegal { state: State::Completed, .. })), "{answer:?}");
}

#[tokio::test]
async fn an_operation_that_comes_right_after_a_submission_finds_its_job() {
    let (slots, job) = (virtual_slots(1), job(1, 0));
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    let (submitted, cancelled) = tokio::join!(
        service.queue.submit(Arc::new(job.clone()), BodyHash([0; 32])),
        service.queue.cancel(job.id, "tester"),
    );
    submitted.expect("is accepted");
    assert_eq!(cancelled.expect("is cancelled"), State::Cancelled);
}

#[tokio::test]
async fn a_job_whose_gpus_were_lost_does_not_hold_up_the_others() {
    let (large, small) = (job(2, 0), job(1, 0));
    let (machine, directory) = machine(&gpus(2), &[&large, &small]);
    let service = Service::start(directory.path(), &machine, gpus(2)).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    service.submit(&large).await;
    service.submit(&small).await;
    service.queue.resume("tester").await.expect("is stored");
    service.kill(&machine).await;

    let service = Service::start(directory.path(), &machine, gpus(1)).await.expect("starts again");
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &small));
    let standing = service.queue.standing(vec![large.id]).await.remove(0);
    assert_eq!(
        (standing.position, standing.reason.map(|reason| reason.code)),
        (Some(1), Some("gpus_unavailable".into()))
    );
}

#[tokio::test]
async fn what_a_plugin_says_at_launch_is_what_becomes_of_the_job() {
    let slots = virtual_slots(1);
    let judged = |name: &str| {
        let mut job = job(1, 0);
        job.spec.profile = Some("judged".into());
        job.spec.name = name.into();
        job
    };
    let (bad, doubtful, good) = (judged("bad"), judged("doubtful"), judged("good"));
    let (machine, directory) = machine(&slots, &[&bad, &doubtful, &good]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    for job in [&bad, &doubtful, &good] {
        service.submit(job).await;
    }
    service.settle(&machine, all_but_ends).await;
    let failed = service.store.job(bad.id).await.expect("reads").expect("is there");
    assert_eq!(
        (failed.state, failed.failure.map(|failure| failure.class)),
        (State::Failed, Some(FailureClass::Preflight))
    );
    assert_eq!(service.store.deliveries_of(bad.id).await.expect("reads").len(), 1);
    let held = service.store.job(doubtful.id).await.expect("reads").expect("is there");
    assert_eq!((held.state, held.reason.map(|reason| reason.code)), (State::Held, Some("doubtful".into())));
    assert!(runs(&machine, &good));
    nothing_is_broken(&machine);
}

#[tokio::test]
async fn plugins_judge_a_launch_on_another_thread_than_the_queue_s() {
    let (slots, mut job) = (virtual_slots(1), job(1, 0));
    (job.spec.profile, job.spec.name) = (Some("judged".into()), "where".into());
    let (machine, directory) = machine(&slots, &[&job]);
    let line = Line::start().expect("a runtime");
    let (at, machine, beside) = (directory.path().to_owned(), machine.clone(), Handle::current());
    let counted = Count { slots, missing: Vec::new() };
    let start = async move { Service::start_beside(&at, &machine, counted, Arc::default(), beside).await };
    let service = line.run(start).await.expect("no panic").expect("starts");
    let mut events = service.store.events();
    service.submit(&job).await;
    while service.state(&job).await != State::Held {
        events.recv().await.expect("the store lives");
    }
    let held = service.store.job(job.id).await.expect("reads").expect("is there");
    let thread = held.reason.expect("a reason").message;
    assert!(!thread.is_empty() && thread != "queue", "{thread}");
}

#[tokio::test]
async fn a_job_whose_plugin_has_no_place_waits_for_it_and_lets_those_pass_that_want_other_slots() {
    let slots = virtual_slots(1);
    let (mut crowded, behind, without_gpus) = (job(1, 0), job(1, 0), job(0, 0));
    crowded.spec.profile = Some("judged".into());
    crowded.spec.name = "crowded".into();
    let (machine, directory) = machine(&slots, &[&crowded, &behind, &without_gpus]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&crowded).await;
    service.submit(&behind).await;
    let code = async |job: &Job| service.queue.standing(vec![job.id]).await[0].reason.clone();
    while code(&crowded).await.is_none_or(|reason| reason.code != "plugin_busy") {
        service.rest().await;
    }
    service.submit(&without_gpus).await;
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &without_gpus));
    assert!(!runs(&machine, &crowded) && !runs(&machine, &behind), "the head is not overtaken");
    assert_eq!(code(&crowded).await.expect("it waits").code, "plugin_busy");
    assert_eq!(code(&behind).await.expect("it waits").code, "behind");
    nothing_is_broken(&machine);
}

#[tokio::test]
async fn a_queue_that_could_not_arm_a_job_rests_once_the_job_is_gone() {
    let (slots, job) = (virtual_slots(1), job(1, 0));
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&job).await;
    while machine.launch_of(job.id).is_none() {
        machine.called().await;
    }
    machine.step(Step::Refuse(0), &service.events).await;
    machine.step(Step::Deliver(0), &service.events).await;
    service.rest().await;
    service.queue.cancel(job.id, "tester").await.expect("is cancelled");
    // The owner runs on this thread. Doing nothing has no event, so this watches it do nothing for a while.
    let busy = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).expect("the clock exists");
    let before = busy();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let spent = busy() - before;
    assert!(spent < Duration::from_millis(100), "it spent {spent:?}");
}

#[tokio::test]
async fn each_attempt_that_fails_is_told_and_only_the_last_one_is_the_end() {
    let (slots, mut job) = (virtual_slots(1), job(1, 0));
    job.spec.terms.retries = Retries { max: 1, backoff: Duration::ZERO, ..Retries::default() };
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
    service.submit(&job).await;
    service.settle(&machine, all_but_ends).await;
    end(&service, &machine, &job, 1).await;
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &job), "it is tried again");
    service.kill(&machine).await;

    // Also when nobody was there to see the end.
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
    service.settle(&machine, all_but_ends).await;
    end(&service, &machine, &job, 1).await;
    service.settle(&machine, all_but_ends).await;
    assert_eq!(service.state(&job).await, State::Failed);
    let told = service.store.deliveries_of(job.id).await.expect("reads");
    let told: Vec<_> = told.iter().map(|delivery| (delivery.attempt, delivery.will_retry, delivery.end)).collect();
    assert_eq!(told, [(1, true, State::Failed), (2, false, State::Failed)]);
    let attempts = service.store.attempts(job.id).await.expect("reads");
    assert_eq!(attempts.iter().map(|attempt| attempt.exit.code).collect::<Vec<_>>(), [Some(1), Some(1)]);
    nothing_is_broken(&machine);
}

#[tokio::test]
async fn moves_that_leave_no_room_between_neighbours_renumber_them_and_last() {
    let (slots, jobs) = (virtual_slots(1), [(); 6].map(|()| job(1, 0)));
    let (machine, directory) = machine(&slots, &jobs.iter().collect::<Vec<_>>());
    let service = Service::start(directory.path(), &machine, slots.clone()).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    for job in &jobs {
        service.submit(job).await;
    }
    service.queue.hold(jobs[1].id, "tester").await.expect("is held");
    let target = jobs[5].id;
    // Each move halves the room before the target: sixty of them need a renumbering or two.
    for turn in 0..60 {
        let who = jobs[[0, 2, 3, 4][turn % 4]].id;
        service.queue.move_to(who, Target::Before(target), "tester").await.expect("is moved");
    }
    let positions = async |service: &Service| {
        let standing = service.queue.standing(jobs.iter().map(|job| job.id).collect()).await;
        standing.iter().map(|standing| standing.position).collect::<Vec<_>>()
    };
    let expected = [Some(1), None, Some(2), Some(3), Some(4), Some(5)];
    assert_eq!(positions(&service).await, expected);
    service.kill(&machine).await;

    let service = Service::start(directory.path(), &machine, slots).await.expect("starts again");
    assert_eq!(positions(&service).await, expected);
    service.queue.release(jobs[1].id, "tester").await.expect("is released");
    assert_eq!(positions(&service).await[1], Some(1), "those that were behind it have stayed so");
    let moved = service.queue.move_to(jobs[0].id, Target::Before(jobs[1].id), "tester").await;
    assert_eq!(moved.expect("is moved"), State::Queued);
    assert_eq!(positions(&service).await[..2], [Some(1), Some(2)]);
}

#[tokio::test]
async fn two_moves_to_one_spot_at_once_stand_in_the_order_in_which_they_were_asked_for() {
    let (slots, jobs) = (virtual_slots(1), [(); 4].map(|()| job(1, 0)));
    let (machine, directory) = machine(&slots, &jobs.iter().collect::<Vec<_>>());
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    for job in &jobs {
        service.submit(job).await;
    }
    let target = Target::Before(jobs[0].id);
    let (first, second) = tokio::join!(
        service.queue.move_to(jobs[3].id, target, "tester"),
        service.queue.move_to(jobs[2].id, target, "tester")
    );
    assert!(first.is_ok() && second.is_ok());
    let standing = service.queue.standing(jobs.iter().map(|job| job.id).collect()).await;
    let positions: Vec<_> = standing.iter().filter_map(|standing| standing.position).collect();
    assert_eq!(positions, [3, 4, 2, 1]);
}

#[tokio::test]
async fn a_slot_that_stands_idle_because_nobody_may_start_is_not_being_handed_over() {
    let (slots, first, mut held, mut waiting, last) = (virtual_slots(1), job(1, 0), job(1, 0), job(1, 0), job(1, 0));
    held.state = State::Held;
    waiting.spec.terms.after = vec![held.id];
    let (machine, directory) = machine(&slots, &[&first, &held, &waiting, &last]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    for job in [&first, &held, &waiting] {
        service.submit(job).await;
    }
    service.settle(&machine, all_but_ends).await;
    end(&service, &machine, &first, 0).await;
    service.settle(&machine, all_but_ends).await;
    assert!(!runs(&machine, &waiting), "it comes after one that is held");

    service.queue.release(held.id, "tester").await.expect("is released");
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &held));
    service.submit(&last).await;
    service.settle(&machine, all_but_ends).await;
    end(&service, &machine, &held, 0).await;
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &waiting));
    let handover = async |job: &Job| service.store.job(job.id).await.expect("reads").expect("is there").handover;
    assert_eq!(handover(&held).await, None, "the slot stood idle for as long as nobody released it");
    assert!(handover(&waiting).await.is_some(), "it was made next by the end of the one before");
    nothing_is_broken(&machine);
}

#[tokio::test]
async fn a_time_limit_that_has_run_out_is_not_changed_any_more() {
    let (slots, mut job) = (virtual_slots(1), job(1, 0));
    job.spec.time_limit = Some(Duration::from_secs(3600));
    let (machine, directory) = machine(&slots, &[&job]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.submit(&job).await;
    service.settle(&machine, all_but_ends).await;
    let (hour, day) = (job.spec.time_limit, Some(Duration::from_secs(86_400)));
    service.queue.set_time_limit(job.id, hour, day, "tester").await.expect("it runs");
    let limit = async || service.store.job(job.id).await.expect("reads").expect("is there").spec.time_limit;
    assert_eq!(limit().await, day);
    // By a limit of nothing its time has been up since its start.
    let late = service.queue.set_time_limit(job.id, Some(Duration::ZERO), hour, "tester").await;
    assert!(matches!(late, Err(QueueError::TimeIsUp(id)) if id == job.id), "{late:?}");
    assert_eq!(limit().await, day, "nothing was stored");
}

#[tokio::test]
async fn a_job_whose_row_cannot_be_read_fails_and_keeps_nobody_waiting() {
    let (slots, deep, next) = (virtual_slots(1), job(1, 0), job(1, 0));
    let (machine, directory) = machine(&slots, &[&deep, &next]);
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    service.queue.pause("tester").await.expect("is stored");
    service.submit(&deep).await;
    service.submit(&next).await;
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let other = rusqlite::Connection::open(directory.path().join("taxiway.db")).expect("opens");
    let changed = other.execute("UPDATE jobs SET config = ?1 WHERE id = ?2", (&nested, deep.id.as_bytes()));
    assert_eq!(changed.expect("is changed"), 1);
    service.queue.resume("tester").await.expect("is stored");
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &next));
    let failed = service.store.job(deep.id).await.expect("reads").expect("it is there");
    let failure = failed.failure.expect("it failed");
    assert_eq!((failed.state, failure.class), (State::Failed, FailureClass::LaunchError));
    assert!(failure.evidence.as_ref().is_some_and(|why| why.contains("`config`")), "{failure:?}");
}

/// How many launches are armed.
fn armed(machine: &Machine, jobs: &[Job]) -> usize {
    jobs.iter().filter(|job| machine.shim_of(job.id) == Some(Shim::Waiting)).count()
}

#[tokio::test]
async fn a_line_of_short_jobs_is_armed_ahead_and_a_long_job_takes_none_of_that_back() {
    let (slots, jobs) = (virtual_slots(1), Vec::from_iter((0..12).map(|_| job(1, 0))));
    let (machine, directory) = machine(&slots, &jobs.iter().collect::<Vec<_>>());
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    for job in &jobs {
        service.submit(job).await;
    }
    service.settle(&machine, all_but_ends).await;
    let mut seen = vec![armed(&machine, &jobs)];
    for ended in &jobs[..8] {
        if ended.id == jobs[4].id {
            machine.rules(|rules| rules.jobs_are_long = true);
        }
        end(&service, &machine, ended, 0).await;
        service.settle(&machine, all_but_ends).await;
        seen.push(armed(&machine, &jobs));
    }
    // The next and the one behind it; after three that were short the next and four; after the first that was not as many are left as
    // have not started.
    assert_eq!(seen, [2, 2, 2, 5, 5, 4, 3, 2, 2]);
    nothing_is_broken(&machine);
}

#[tokio::test]
async fn of_an_array_no_more_is_armed_ahead_than_the_member_behind_the_next() {
    let array = ArrayLimit { array: ArrayId::new(), max_parallel: NonZeroU32::MIN };
    let member = || {
        let mut job = job(1, 0);
        job.spec.terms.array = Some(array);
        job
    };
    let slots = virtual_slots(2);
    let jobs = Vec::from_iter((0..6).map(|_| job(1, 0)).chain((0..6).map(|_| member())));
    let (machine, directory) = machine(&slots, &jobs.iter().collect::<Vec<_>>());
    let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
    for job in &jobs {
        service.submit(job).await;
    }
    service.settle(&machine, all_but_ends).await;
    let mut seen = Vec::new();
    for ended in &jobs[..5] {
        end(&service, &machine, ended, 0).await;
        service.settle(&machine, all_but_ends).await;
        seen.push(armed(&machine, &jobs[6..]));
    }
    assert_eq!(seen[..4], [0, 0, 1, 2]);
    assert!(runs(&machine, &jobs[6]) && !runs(&machine, &jobs[7]));
    assert_eq!(armed(&machine, &jobs), 0, "the others may not start");
    nothing_is_broken(&machine);
}
