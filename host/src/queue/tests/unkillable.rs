//! A job whose processes survive SIGKILL.

use std::sync::{Arc, Mutex};

use taxiway_job::Job;
use taxiway_launcher::Event;

use super::rules::{all_but_ends, end, machine, nothing_is_broken, runs};
use super::{FreeGpus, Service, gpus, job, virtual_slots};
use crate::queue::{Count, QueueError, SlotState};

#[tokio::test]
async fn a_slot_whose_job_survives_sigkill_is_not_there_and_the_line_goes_on_elsewhere() {
    for slots in [virtual_slots(2), gpus(2)] {
        let (stuck, both, one) = (job(1, 0), job(2, 0), job(1, 0));
        let (machine, directory) = machine(&slots, &[&stuck, &both, &one]);
        let service = Service::start(directory.path(), &machine, slots).await.expect("starts");
        let code = async |job: &Job| {
            let standings = service.queue.standing(vec![job.id]).await;
            standings[0].reason.as_ref().map(|reason| (reason.code.clone(), reason.message.clone()))
        };
        for job in [&stuck, &both, &one] {
            service.submit(job).await;
        }
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &stuck) && !runs(&machine, &one), "it does not overtake one that wants its slot");
        let launch = service.store.launches(stuck.id).await.expect("reads")[0];
        let survive = Event::Unkillable { launch, pids: vec![7] };
        service.events.send(survive).await.expect("the owner lives");
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &one) && !runs(&machine, &both));
        let (why, message) = code(&both).await.expect("it waits");
        assert_eq!(why, "gpus_unavailable");
        assert!(message.contains(&format!("job {} has processes that survive SIGKILL", stuck.id)), "{message}");
        let standings = service.queue.slots().await.expect("the owner lives");
        assert_eq!((standings[0].state, standings[0].job), (SlotState::Quarantined, Some(stuck.id)));
        if let Some(uuid) = &standings[0].uuid {
            let answer = service.queue.mend(uuid, "tester").await;
            assert!(matches!(&answer, Err(QueueError::Unkillable(why)) if message.contains(why)), "{answer:?}");
        }

        end(&service, &machine, &stuck, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert_eq!(code(&both).await.expect("it waits").0, "waiting_for_gpu");
        end(&service, &machine, &one, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &both));
        nothing_is_broken(&machine);
    }
}

#[tokio::test]
async fn a_slot_that_is_counted_after_its_job_survived_sigkill_is_not_there_either() {
    let (stuck, both, one) = (job(1, 0), job(2, 0), job(1, 0));
    let (machine, directory) = machine(&gpus(2), &[&stuck, &both, &one]);
    let service = Service::start(directory.path(), &machine, gpus(2)).await.expect("starts");
    for job in [&stuck, &both, &one] {
        service.submit(job).await;
    }
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &stuck));
    service.kill(&machine).await;

    let missing = crate::gpu::tests::one_of_two_unread().await.missing();
    let later =
        Arc::new(FreeGpus { count: Mutex::new(Count { slots: gpus(2), missing: Vec::new() }), ..FreeGpus::default() });
    let nothing = Count { slots: Vec::new(), missing };
    let service = Service::start_with(directory.path(), &machine, nothing, later.clone()).await.expect("starts again");
    service.settle(&machine, all_but_ends).await;
    let launch = service.store.launches(stuck.id).await.expect("reads")[0];
    service.events.send(Event::Unkillable { launch, pids: vec![7] }).await.expect("the owner lives");
    service.rest().await;
    later.asked.notified().await;
    assert!(!runs(&machine, &one), "no GPU is known");
    later.counted.notify_one();
    service.settle(&machine, all_but_ends).await;
    let standings = service.queue.slots().await.expect("the owner lives");
    assert_eq!((standings[0].state, standings[0].job), (SlotState::Quarantined, Some(stuck.id)));
    assert!(runs(&machine, &one) && !runs(&machine, &both), "the other one is free");

    for job in [&stuck, &one] {
        end(&service, &machine, job, 0).await;
    }
    service.settle(&machine, all_but_ends).await;
    assert!(runs(&machine, &both));
    nothing_is_broken(&machine);
}
