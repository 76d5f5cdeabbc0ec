//! A job whose processes survive SIGKILL.

use taxiway_job::Job;
use taxiway_launcher::Event;

use super::rules::{all_but_ends, end, machine, nothing_is_broken, runs};
use super::{Service, gpus, job, virtual_slots};
use crate::queue::SlotState;

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

        end(&service, &machine, &stuck, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert_eq!(code(&both).await.expect("it waits").0, "waiting_for_gpu");
        end(&service, &machine, &one, 0).await;
        service.settle(&machine, all_but_ends).await;
        assert!(runs(&machine, &both));
        nothing_is_broken(&machine);
    }
}
