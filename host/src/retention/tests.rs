use taxiway_job::{Exit, Handover, JobId, LaunchId, State};

use super::*;
use crate::store::{DeliveryId, End, NewDelivery, test_new_job};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn limits() -> Limits {
    Limits { jobs: 90 * DAY, logs: 30 * DAY, logs_size: 1 << 30 }
}

/// A place with jobs that ended some days ago and wrote logs.
struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("taxiway.db")).expect("opens");
        Self { directory, store }
    }

    fn jobs_dir(&self) -> PathBuf {
        self.directory.path().join("jobs")
    }

    fn log(&self, job: JobId, launch: LaunchId) -> PathBuf {
        taxiway_launcher::log::path(&self.jobs_dir(), job, launch)
    }

    /// A job that ended so many days ago with a log of this size.
    async fn ended(&self, days: u32, log_bytes: usize) -> (JobId, LaunchId) {
        let at = Time::now().minus(days * DAY);
        let (job, launch) = (crate::store::test_job("old", at), LaunchId::random());
        let id = job.id;
        let new = test_new_job(job);
        let end = End {
            job: id,
            launch: Some(launch),
            from: State::Running,
            to: State::Completed,
            exit: Exit { code: Some(0), signal: None },
            failure: None,
            reason: None,
            usage: None,
            started_at: Some(at),
            finished_at: at,
            deliveries: Vec::new(),
            next: None,
        };
        let handover = Handover { gap_seconds: 0.01, parts: serde_json::Map::new() };
        let path = vec![
            Change::Submit(Box::new(new)),
            Change::Arm { job: id, attempt: 1, launch, boot_id: "boot".into() },
            Change::Go { job: id, launch, gpu_uuids: Vec::new(), at },
            Change::Running { job: id, launch, pid: 1, start_time: 1, at, handover: Some(handover) },
            Change::End(Box::new(end)),
        ];
        self.store.commit(path).await.expect("is stored");
        let log = self.log(id, launch);
        std::fs::create_dir_all(log.parent().expect("a launch")).expect("a directory");
        std::fs::write(log, vec![b'x'; log_bytes]).expect("a log");
        (id, launch)
    }

    /// A retry of a job that ended, which ended too; a completion hook is to be told.
    async fn owe(&self, job: JobId) -> DeliveryId {
        let (delivery, at) = (DeliveryId(uuid::Uuid::now_v7()), Time::now().minus(100 * DAY));
        let by = "tester".to_owned();
        let retry =
            Change::Retry { job, from: State::Completed, priority: 0, rank: 2, at, by: by.clone(), action: "retry" };
        let cancel = Change::Move {
            job,
            from: State::Queued,
            to: State::Cancelled,
            reason: None,
            at,
            by,
            action: "cancel",
            deliveries: vec![NewDelivery { id: delivery, plugin: "receiver".into() }],
        };
        self.store.commit(vec![retry, cancel]).await.expect("is stored");
        delivery
    }

    async fn collect(&self, limits: Limits) -> Removed {
        let worker = Worker { store: self.store.clone(), jobs_dir: self.jobs_dir(), limits };
        worker.collect().await.expect("it can be read and written")
    }

    async fn is_kept(&self, job: JobId) -> bool {
        self.store.job(job).await.expect("reads").is_some()
    }
}

#[tokio::test]
async fn logs_go_by_their_age_and_before_their_jobs() {
    let place = Place::new();
    let (ancient, ancient_launch) = place.ended(100, 10).await;
    let (old, old_launch) = place.ended(40, 20).await;
    let (recent, recent_launch) = place.ended(2, 30).await;
    let removed = place.collect(limits()).await;
    assert_eq!(removed, Removed { jobs: 1, logs: 2, log_bytes: 30 });
    assert!(!place.is_kept(ancient).await && place.is_kept(old).await && place.is_kept(recent).await);
    assert!(!place.jobs_dir().join(ancient.to_string()).exists(), "nothing of it is left");
    assert!(!place.log(ancient, ancient_launch).exists() && !place.log(old, old_launch).exists());
    assert!(place.log(recent, recent_launch).exists());
    let first = place.store.events_after(0, 1).await.expect("reads");
    assert_eq!(first[0].job, Some(old), "events of the oldest job have gone with it");
    assert_eq!(place.collect(limits()).await, Removed::default(), "what is kept stays kept");
}

#[tokio::test]
async fn logs_that_are_too_large_together_go_the_first_to_end_first() {
    let place = Place::new();
    let (first, first_launch) = place.ended(3, 1000).await;
    let (second, second_launch) = place.ended(2, 1000).await;
    let (third, third_launch) = place.ended(1, 1000).await;
    let removed = place.collect(Limits { logs_size: 2500, ..limits() }).await;
    assert_eq!(removed, Removed { jobs: 0, logs: 1, log_bytes: 1000 });
    assert!(!place.log(first, first_launch).exists());
    assert!(place.log(second, second_launch).exists() && place.log(third, third_launch).exists());
    let removed = place.collect(Limits { logs_size: 500, ..limits() }).await;
    assert_eq!(removed.logs, 2, "also the last one, when it alone is too large");
    assert!(place.is_kept(first).await && place.is_kept(third).await);
}

#[tokio::test]
async fn a_clock_that_was_ahead_does_not_keep_logs_for_as_long_as_it_was() {
    let place = Place::new();
    let ahead = Time::now().plus(90 * DAY).as_millis().to_string();
    place.store.commit(vec![Change::Setting { key: LOGS_GONE, value: ahead }]).await.expect("is stored");
    let (old, old_launch) = place.ended(40, 20).await;
    let removed = place.collect(limits()).await;
    assert_eq!(removed, Removed { jobs: 0, logs: 1, log_bytes: 20 });
    assert!(place.is_kept(old).await && !place.log(old, old_launch).exists());
}

#[tokio::test]
async fn what_a_job_wrote_into_its_own_directory_stays() {
    let place = Place::new();
    let (job, launch) = place.ended(100, 10).await;
    let model = place.jobs_dir().join(job.to_string()).join("model.bin");
    std::fs::write(&model, "weights").expect("a model");
    assert_eq!(place.collect(limits()).await.jobs, 1);
    assert!(model.exists() && !place.log(job, launch).parent().expect("a launch").exists());
}

#[tokio::test]
async fn a_job_that_has_not_ended_stays_however_old_it_is() {
    let place = Place::new();
    let job = crate::store::test_job("waits", Time::now().minus(400 * DAY));
    let id = job.id;
    let new = test_new_job(job);
    place.store.commit(vec![Change::Submit(Box::new(new))]).await.expect("is stored");
    assert_eq!(place.collect(limits()).await, Removed::default());
    assert!(place.is_kept(id).await);
}

#[tokio::test]
async fn a_job_stays_until_every_completion_hook_was_told_of_its_end() {
    let place = Place::new();
    let (job, _) = place.ended(100, 10).await;
    let (other, _) = place.ended(101, 10).await;
    let delivery = place.owe(job).await;
    let removed = place.collect(limits()).await;
    assert_eq!(removed.jobs, 1);
    assert!(place.is_kept(job).await && !place.is_kept(other).await);
    place.store.commit(vec![Change::Delivered { delivery, at: Time::now() }]).await.expect("is stored");
    assert_eq!(place.collect(limits()).await.jobs, 1);
    assert!(!place.is_kept(job).await);
}

/// A person removes the job, and the service is killed before any of its files has gone.
async fn remove_and_crash(place: &Place, job: JobId) {
    let (at, by) = (Time::now(), "tester".to_owned());
    place.store.commit(vec![Change::Remove { job, revisions: None, at, by }]).await.expect("it is removed");
}

#[tokio::test]
async fn the_files_of_a_job_that_was_removed_just_before_a_crash_go_at_the_next_start() {
    let place = Place::new();
    let (job, launch) = place.ended(1, 10).await;
    let (other, other_launch) = place.ended(1, 10).await;
    remove_and_crash(&place, job).await;
    assert!(!place.is_kept(job).await && place.log(job, launch).exists());
    // A worker that is asked for nothing: its handle is gone at once.
    let (_, asking) = mpsc::channel(1);
    let worker = Worker { store: place.store.clone(), jobs_dir: place.jobs_dir(), limits: limits() };
    worker.run(asking, Alarm::new().expect("an alarm")).await;
    assert!(!place.jobs_dir().join(job.to_string()).exists(), "nothing of it is left");
    assert_eq!(place.store.removed(None, 10).await.expect("reads"), []);
    assert_eq!(place.store.launches(job).await.expect("reads"), []);
    assert!(place.is_kept(other).await && place.log(other, other_launch).exists());
    assert_eq!(place.store.launches(other).await.expect("reads"), [other_launch]);
}

#[tokio::test]
async fn directories_of_launches_that_no_row_names_go_with_their_job() {
    let place = Place::new();
    let (job, _) = place.ended(1, 10).await;
    // The service was killed when it had made a launch's directory and had yet to store the launch.
    let log = place.log(job, LaunchId::random());
    let leftover = log.parent().expect("a launch");
    std::fs::create_dir_all(leftover).expect("a directory");
    for name in ["config.json", "exit.json", "log"] {
        std::fs::write(leftover.join(name), "").expect("a file");
    }
    remove_and_crash(&place, job).await;
    place.collect(limits()).await;
    assert!(!place.jobs_dir().join(job.to_string()).exists(), "nothing of it is left");
    assert_eq!(place.store.removed(None, 10).await.expect("reads"), []);
}

#[tokio::test]
async fn the_hand_over_of_a_job_that_was_removed_is_not_listed_while_its_files_stay() {
    let place = Place::new();
    let ((job, _), (other, _)) = (place.ended(1, 10).await, place.ended(1, 10).await);
    let listed = async || -> Vec<JobId> {
        place.store.handovers(10).await.expect("reads").into_iter().map(|handover| handover.job).collect()
    };
    assert!(listed().await.contains(&job));
    remove_and_crash(&place, job).await;
    assert_eq!(listed().await, [other]);
}

#[tokio::test]
async fn files_that_cannot_be_removed_are_tried_again_and_keep_no_others() {
    let place = Place::new();
    let (stuck, launch) = place.ended(1, 10).await;
    let (other, _) = place.ended(1, 10).await;
    let (directory, aside) = (place.jobs_dir().join(stuck.to_string()), place.directory.path().join("aside"));
    std::fs::rename(&directory, &aside).expect("moved");
    std::fs::write(&directory, "in the way").expect("a file");
    remove_and_crash(&place, stuck).await;
    remove_and_crash(&place, other).await;
    place.collect(limits()).await;
    assert!(!place.jobs_dir().join(other.to_string()).exists());
    let left = crate::store::RemovedJob { id: stuck, launches: vec![launch] };
    assert_eq!(place.store.removed(None, 10).await.expect("reads"), [left]);
    std::fs::remove_file(&directory).expect("removed");
    std::fs::rename(&aside, &directory).expect("moved back");
    place.collect(limits()).await;
    assert!(!directory.exists());
    assert_eq!(place.store.removed(None, 10).await.expect("reads"), []);
}
