use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, json};
use taxiway_job::{
    ConfigFormat, EnvValue, Exit, Job, JobId, JobSpec, LaunchId, ProcessSpec, Progress, State, StopTarget, Time,
};

use super::*;

fn job(name: &str) -> Job {
    job_at(name, Time::now())
}

/// A job that was submitted then.
pub(crate) fn job_at(name: &str, now: Time) -> Job {
    Job {
        id: JobId::new(),
        spec: JobSpec {
            name: name.into(),
            profile: None,
            command: vec!["true".into()],
            cwd: None,
            env: BTreeMap::from([("TOKEN".into(), EnvValue::Secret { secret: "s3cret".into() })]),
            labels: BTreeMap::from([("team".into(), "vision".into())]),
            gpus: 1,
            priority: 0,
            time_limit: Some(Duration::from_secs(60)),
            grace: Duration::from_secs(30),
            external_id: None,
            config_format: ConfigFormat::Json,
            terms: taxiway_job::Terms::default(),
            array: None,
            process: ProcessSpec::default(),
        },
        config: Map::new(),
        submitted_config: None,
        submitted_beside: None,
        rewrites: Vec::new(),
        verdicts: Vec::new(),
        launch_verdicts: Vec::new(),
        warnings: Vec::new(),
        state: State::Queued,
        attempt: 1,
        revision: 1,
        retries_done: 0,
        retry_at: None,
        reason: None,
        submitted_at: now,
        queued_at: now,
        started_at: None,
        finished_at: None,
        submitted_by: "admin".into(),
        exit: Exit::default(),
        failure: None,
        progress: None,
        gpu_uuids: Vec::new(),
        usage: None,
        handover: None,
    }
}

/// The same to be stored, first in line.
pub(crate) fn new_job(job: Job) -> NewJob {
    let texts = JobTexts::of(&job).expect("JSON");
    NewJob { job: Arc::new(job), texts, rank: 1, body: BodyHash([7; 32]) }
}

fn submit(job: &Job) -> Change {
    Change::Submit(Box::new(new_job(job.clone())))
}

fn open(directory: &Path) -> Store {
    Store::open(&directory.join("taxiway.db")).expect("opens")
}

#[tokio::test]
async fn a_job_reads_back_as_it_was_written_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut job = job("a");
    job.config = json!({"lr": 0.1}).as_object().expect("an object").clone();
    let store = open(directory.path());
    store.commit(vec![submit(&job)]).await.expect("is stored");
    drop(store);
    assert_eq!(open(directory.path()).job(job.id).await.expect("reads"), Some(job));
}

#[tokio::test]
async fn the_path_of_a_job_leaves_its_events_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut subscriber = store.events();
    let (job, launch, now) = (job("a"), LaunchId::random(), Time::now());
    let id = job.id;
    store.commit(vec![submit(&job)]).await.expect("submit");
    store.commit(vec![Change::Arm { job: id, attempt: 1, launch, boot_id: "boot".into() }]).await.expect("arm");
    assert_eq!(store.unsettled_attempts().await.expect("reads")[0].phase, Phase::Armed);
    let end = End {
        job: id,
        launch: Some(launch),
        from: State::Running,
        to: State::Completed,
        exit: Exit { code: Some(0), signal: None },
        failure: None,
        reason: None,
        usage: None,
        started_at: Some(now),
        finished_at: now,
        deliveries: vec![NewDelivery { id: DeliveryId(uuid::Uuid::now_v7()), plugin: "webhook".into() }],
        next: None,
    };
    let answer = store
        .record(vec![
            Change::Go { job: id, launch, gpu_uuids: vec!["GPU-0".into()], at: now },
            Change::Running { job: id, launch, pid: 4711, start_time: 5, at: now, handover: None },
            Change::End(Box::new(end)),
        ])
        .await
        .expect("is sent");
    answer.durable().await.expect("is stored");
    let mut kinds = Vec::new();
    while let Ok(event) = subscriber.try_recv() {
        kinds.push(event.kind.clone());
    }
    assert_eq!(kinds, ["job.queued", "job.pending", "job.running", "job.completed"]);
    let stored: Vec<String> =
        store.events_after(0, 10).await.expect("reads").into_iter().map(|event| event.kind).collect();
    assert_eq!(stored, kinds);
    let read = store.job(id).await.expect("reads").expect("is there");
    assert_eq!((read.state, read.exit.code, read.gpu_uuids.len()), (State::Completed, Some(0), 1));
    assert!(store.unsettled_attempts().await.expect("reads").is_empty());
    let deliveries = store.due_deliveries(Time::now(), 10).await.expect("reads");
    assert_eq!(
        (deliveries[0].plugin.as_str(), deliveries[0].end, deliveries[0].attempt),
        ("webhook", State::Completed, 1)
    );
}

#[tokio::test]
async fn of_the_progress_of_a_job_every_event_is_told_and_the_last_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut subscriber = store.events();
    let (first, second) = (job("a"), job("b"));
    store.commit(vec![submit(&first), submit(&second)]).await.expect("submit");
    for step in 1..=3 {
        for job in [first.id, second.id] {
            let progress = Progress { step: Some(step), ..Progress::default() };
            store
                .commit(vec![Change::Progress { job, progress, at: Time::now(), sample: None }])
                .await
                .expect("stored");
        }
    }
    let told: Vec<u64> = std::iter::from_fn(|| subscriber.try_recv().ok()).map(|event| event.id).collect();
    assert_eq!(told, (1..=8).collect::<Vec<_>>());
    let kept = store.events_after(2, 10).await.expect("reads");
    let kept: Vec<_> =
        kept.iter().map(|event| (event.id, event.job, event.data["progress"]["step"].as_u64())).collect();
    assert_eq!(kept, [(7, Some(first.id), Some(3)), (8, Some(second.id), Some(3))]);
}

#[tokio::test]
async fn a_refused_unit_leaves_nothing_behind_and_does_not_disturb_its_neighbours() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (mut first, mut second, third) = (job("first"), job("second"), job("third"));
    first.spec.external_id = Some("x".into());
    second.spec.external_id = Some("x".into());
    let units = [vec![submit(&first)], vec![submit(&third), submit(&second)], vec![submit(&job("fourth"))]];
    let results = futures_util::future::join_all(units.into_iter().map(|unit| store.commit(unit))).await;
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(StoreError::DuplicateExternalId)), "{results:?}");
    let names: Vec<String> = store
        .jobs(JobFilter { limit: 10, ..JobFilter::default() })
        .await
        .expect("reads")
        .items
        .into_iter()
        .map(|job| job.spec.name)
        .collect();
    assert_eq!(names, ["first", "fourth"]);
    assert_eq!(store.job_by_external_id("x").await.expect("reads").map(|(job, _)| job.id), Some(first.id));
}

#[tokio::test]
async fn a_fact_that_does_not_fit_takes_no_other_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (job, other, launch, now) = (job("a"), job("b"), LaunchId::random(), Time::now());
    store.commit(vec![submit(&job), submit(&other)]).await.expect("submit");
    store.commit(vec![Change::Arm { job: job.id, attempt: 1, launch, boot_id: "boot".into() }]).await.expect("arm");
    let unknown = LaunchId::random();
    let facts = vec![
        Change::Go { job: other.id, launch: unknown, gpu_uuids: Vec::new(), at: now },
        Change::Go { job: job.id, launch, gpu_uuids: Vec::new(), at: now },
    ];
    let answer = store.record(facts).await.expect("is sent").durable().await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    let mut states = Vec::new();
    for id in [job.id, other.id] {
        states.push(store.job(id).await.expect("reads").expect("is there").state);
    }
    assert_eq!(states, [State::Pending, State::Queued]);
}

#[tokio::test]
async fn a_change_that_finds_another_state_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let job = job("a");
    store.commit(vec![submit(&job)]).await.expect("submit");
    let stop = Change::Stop {
        job: job.id,
        target: StopTarget::Cancelled,
        at: Time::now(),
        by: "admin".into(),
        action: "cancel",
    };
    assert!(matches!(store.commit(vec![stop]).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.job(job.id).await.expect("reads").map(|job| job.state), Some(State::Queued));
}

#[tokio::test]
async fn a_job_is_removed_only_at_the_revision_for_which_that_is_meant() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let job = job("a");
    let by = || "admin".to_owned();
    let cancel = Change::Move {
        job: job.id,
        from: State::Queued,
        to: State::Cancelled,
        reason: None,
        at: Time::now(),
        by: by(),
        action: "cancel",
        deliveries: Vec::new(),
    };
    store.commit(vec![submit(&job), cancel]).await.expect("submit and cancel");
    let remove = |revisions: &[u32]| {
        store.commit(vec![Change::Remove {
            job: job.id,
            revisions: Some(revisions.to_vec()),
            at: Time::now(),
            by: by(),
        }])
    };
    for others in [&[][..], &[job.revision + 1]] {
        assert!(matches!(remove(others).await, Err(StoreError::Conflict(_))), "{others:?}");
    }
    assert!(store.job(job.id).await.expect("reads").is_some());
    remove(&[job.revision + 1, job.revision]).await.expect("it is removed");
    assert_eq!(store.job(job.id).await.expect("reads"), None);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut jobs: Vec<Job> = (0..5).map(|index| job(&format!("job-{index}"))).collect();
    jobs[2].spec.labels.insert("team".into(), "o'brien \"x\"".into());
    jobs[3].state = State::Held;
    store.commit(jobs.iter().map(submit).collect()).await.expect("submit");
    let names = |page: &Page<Job>| page.items.iter().map(|job| job.spec.name.clone()).collect::<Vec<_>>();
    let filter = JobFilter { limit: 2, newest_first: true, ..JobFilter::default() };
    let page = store.jobs(filter.clone()).await.expect("reads");
    assert_eq!(names(&page), ["job-4", "job-3"]);
    let page = store.jobs(JobFilter { after: page.next, ..filter.clone() }).await.expect("reads");
    assert_eq!(names(&page), ["job-2", "job-1"]);
    let page = store.jobs(JobFilter { after: page.next, ..filter.clone() }).await.expect("reads");
    assert_eq!((names(&page), page.next), (vec!["job-0".to_owned()], None));
    let label = JobFilter { labels: vec![("team".into(), "o'brien \"x\"".into())], limit: 10, ..JobFilter::default() };
    assert_eq!(names(&store.jobs(label).await.expect("reads")), ["job-2"]);
    let held = JobFilter { states: vec![State::Held, State::Failed], limit: 10, ..JobFilter::default() };
    assert_eq!(names(&store.jobs(held).await.expect("reads")), ["job-3"]);
    let prefix = jobs[1].id.to_string();
    let by_id = JobFilter { id_prefix: Some(prefix[..35].into()), limit: 10, ..JobFilter::default() };
    assert_eq!(names(&store.jobs(by_id).await.expect("reads")), ["job-1"]);
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("taxiway.db");
    let connection = rusqlite::Connection::open(&path).expect("opens");
    connection.pragma_update(None, "user_version", 99).expect("is set");
    assert!(matches!(Store::open(&path), Err(OpenError::Newer { found: 99, .. })));
}

/// A file as the first release wrote it, with a job in every state.
fn first_file(path: &Path) {
    let db = rusqlite::Connection::open(path).expect("opens");
    db.execute_batch(include_str!("schema/001.sql")).expect("the first schema");
    for (index, state) in State::ALL.into_iter().enumerate() {
        let ended = state.has_ended().then_some(2000);
        db.execute(
            "INSERT INTO jobs (id, state, priority, rank, gpus, attempt, name, body, spec, config, submitted_at, queued_at,
                submitted_by, finished_at)
             VALUES (?1, ?2, 0, ?3, 1, 1, ?2, zeroblob(32), ?4, '{\"lr\":0.1}', 1000, 1000, 'admin', ?5)",
            rusqlite::params![
                JobId::new().as_bytes(),
                state.as_str(),
                index as i64 + 1,
                r#"{"name":"a","profile":null,"command":["true"],"cwd":null,"env":{},"labels":{},"gpus":1,"priority":0,
                    "time_limit":null,"grace":30,"external_id":null,"config_format":"json"}"#,
                ended,
            ],
        )
        .expect("a job");
    }
    db.execute("INSERT INTO settings (key, value) VALUES ('mode', 'paused')", []).expect("a setting");
    db.execute_batch(
        "INSERT INTO attempts (launch, job, attempt, phase, boot_id, pid, start_time, started_at)
            SELECT randomblob(16), id, 1, 'running', 'boot', 4711, 5, 1500 FROM jobs WHERE state = 'running';
         INSERT INTO attempts (launch, job, attempt, phase, boot_id, end_state, exit_code, started_at, finished_at)
            SELECT randomblob(16), id, 1, 'ended', 'boot', 'failed', 7, 1500, 2000 FROM jobs WHERE state = 'failed';
         INSERT INTO events (id, at, kind, job) SELECT seq + 10, 1000, 'job.queued', id FROM jobs;",
    )
    .expect("attempts and events");
    db.pragma_update(None, "user_version", 1).expect("is set");
}

#[tokio::test]
async fn a_file_of_the_first_release_is_brought_up_to_date_with_all_that_is_in_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("taxiway.db");
    first_file(&path);
    let store = Store::open(&path).expect("it is brought up to date");
    let all = store.jobs(JobFilter { limit: 100, ..JobFilter::default() }).await.expect("reads").items;
    assert_eq!(all.iter().map(|job| job.state).collect::<Vec<_>>(), State::ALL);
    assert!(all.iter().all(|job| job.config["lr"] == 0.1 && job.spec.command == ["true"]));
    assert_eq!(store.unended_jobs().await.expect("reads").len(), 5);
    assert_eq!(store.setting("mode").await.expect("reads").as_deref(), Some("paused"));
    let two = JobFilter { states: vec![State::Failed, State::Held], limit: 10, ..JobFilter::default() };
    assert_eq!(store.jobs(two).await.expect("reads").items.len(), 2);
    let unsettled = store.unsettled_attempts().await.expect("reads");
    assert_eq!(
        unsettled.iter().map(|attempt| (attempt.phase, &*attempt.boot_id)).collect::<Vec<_>>(),
        [(Phase::Running, "boot")]
    );
    let failed = all.iter().find(|job| job.state == State::Failed).expect("one");
    let attempts = store.attempts(failed.id).await.expect("reads");
    assert_eq!(attempts.iter().map(|attempt| attempt.exit.code).collect::<Vec<_>>(), [Some(7)]);
    let events = store.events_after(0, 100).await.expect("reads");
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), (11..=18).collect::<Vec<_>>());
    assert_eq!(
        events.iter().map(|event| event.job).collect::<Vec<_>>(),
        all.iter().map(|job| Some(job.id)).collect::<Vec<_>>()
    );
    store.commit(vec![submit(&job("new"))]).await.expect("it takes new ones");
    let old = store.ended_between(Time::from_millis(0), Time::now(), 10).await.expect("reads");
    store.commit(vec![Change::Forget { jobs: old.iter().map(|job| job.id).collect() }]).await.expect("is stored");
    assert_eq!(store.jobs_by_state().await.expect("reads").iter().map(|(_, count)| count).sum::<u64>(), 6);
    drop(store);
    Store::open(&path).expect("once more");
}

#[tokio::test]
async fn the_id_of_an_event_is_never_used_again_whatever_was_forgotten() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    for name in ["a", "b"] {
        store.commit(vec![submit(&job(name))]).await.expect("is stored");
    }
    let last = store.events_after(0, 10).await.expect("reads").last().expect("two").id;
    let later = Time::now().plus(Duration::from_secs(1));
    store.commit(vec![Change::ForgetEvents { before: later, keys_before: later }]).await.expect("is stored");
    assert_eq!(store.oldest(later).await.expect("reads").event, None, "nothing more may go");
    drop(store);
    let store = open(directory.path());
    let mut subscriber = store.events();
    store.commit(vec![submit(&job("c"))]).await.expect("is stored");
    assert_eq!(subscriber.try_recv().expect("it is told").id, last + 1);
}

#[tokio::test]
async fn a_unit_that_can_wait_is_written_before_what_is_sent_after_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (job, launch) = (job("a"), LaunchId::random());
    store.commit(vec![submit(&job)]).await.expect("is stored");
    let (boot_id, at) = ("boot".to_owned(), Time::now());
    let arm = vec![Change::Arm { job: job.id, attempt: 1, launch, boot_id }];
    let go = vec![Change::Go { job: job.id, launch, gpu_uuids: Vec::new(), at }];
    let running = vec![Change::Running { job: job.id, launch, pid: 4711, start_time: 5, at, handover: None }];
    let mut commits = store.counted().commits.buckets.iter().sum::<u64>();
    // Nobody else sends anything: each of them is written in the end.
    store.commit_soon(arm).await.expect("is stored");
    commits += 1;
    assert_eq!(store.counted().commits.buckets.iter().sum::<u64>(), commits);
    store.commit(go).await.expect("it finds what was written before");
    commits += 1;
    let answer = store.record_soon(running).await.expect("is sent");
    store.commit(Vec::new()).await.expect("is stored");
    answer.durable().await.expect("is stored");
    assert_eq!(store.job(job.id).await.expect("reads").map(|job| job.state), Some(State::Running));
    // One for both, unless the second came only after the first had waited long enough.
    let more = store.counted().commits.buckets.iter().sum::<u64>() - commits;
    assert!((1..=2).contains(&more), "{more} commits");
}

#[tokio::test]
async fn a_backup_holds_all_that_was_acknowledged_before_it_and_is_its_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let job = job("a");
    store.commit(vec![submit(&job)]).await.expect("is stored");
    let (from, to) = (directory.path().join("taxiway.db"), directory.path().join("copy.db"));
    backup(&from, &to).expect("a copy");
    assert_eq!(std::fs::metadata(&to).expect("a file").permissions().mode() & 0o777, 0o600);
    assert!(matches!(backup(&from, &to), Err(BackupError::Create { .. })), "it is not written over");
    store.commit(vec![submit(&self::job("b"))]).await.expect("the service goes on");
    let copy = Store::open(&to).expect("the copy opens");
    let all = copy.jobs(JobFilter { limit: 10, ..JobFilter::default() }).await.expect("reads").items;
    assert_eq!(all, [job]);
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let text = format!("{:?}", submit(&job("a")));
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_hides_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (first, deep, last) = (job("first"), job("deep"), job("last"));
    store.commit([&first, &deep, &last].into_iter().map(submit).collect()).await.expect("are stored");
    let progress = Change::Progress { job: deep.id, progress: Progress::default(), at: Time::now(), sample: None };
    store.commit(vec![progress]).await.expect("is stored");
    // As an earlier version would have taken it.
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let other = rusqlite::Connection::open(directory.path().join("taxiway.db")).expect("opens");
    let said = format!("{{\"metrics\":{nested}}}");
    let changed = other.execute("UPDATE jobs SET config = ?1, progress = ?2 WHERE name = 'deep'", [&nested, &said]);
    assert_eq!(changed.expect("is changed"), 1);
    assert_eq!(
        other.execute("UPDATE events SET data = ?1 WHERE kind = 'job.progress'", [&nested]).expect("changed"),
        1
    );

    let filter = JobFilter { limit: 10, ..JobFilter::default() };
    let listed = store.jobs(filter).await.expect("the list is read").items;
    let names: Vec<&str> = listed.iter().map(|job| job.spec.name.as_str()).collect();
    assert_eq!(names, ["first", "deep", "last"]);
    let read = store.job(deep.id).await.expect("reads").expect("it is there");
    assert_eq!((&read, &read.config), (&listed[1], &Map::new()));
    let codes: Vec<&str> = read.warnings.iter().map(|warning| warning.code.as_str()).collect();
    assert_eq!(codes, ["unreadable", "unreadable"]);
    assert!(read.warnings[0].message.contains("`config`"), "{:?}", read.warnings);
    let whole = store.whole_job(deep.id).await.expect_err("its configuration is lost");
    assert!(matches!(&whole, StoreError::Unreadable(why) if why.contains("`config`")), "{whole:?}");
    assert_eq!(store.whole_job(last.id).await.expect("reads"), Some(last));
    assert_eq!(store.courses(vec![deep.id]).await.expect("reads").len(), 1);
    let events = store.events_after(0, 10).await.expect("the events are read");
    assert_eq!(events.iter().map(|event| event.data.len()).collect::<Vec<_>>(), [0, 0, 0, 0]);
}
