use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use serde_json::{Map, json};
use taxiway_job::{ConfigFormat, Exit, Failure, FailureClass, Job, JobId, JobSpec, LaunchId, ProcessSpec, State};
use taxiway_plugin_host::{CallError, End as EndView, FailureKind, JobView, OnError, OutcomeView};
use tokio::sync::mpsc;

use super::*;
use crate::store::{Change, Delivery, DeliveryStatus, End, test_new_job};

/// How a receiver fails, try by try; when nothing is left it takes everything.
type Failures = Mutex<Vec<CallError>>;

/// Plugins that take what they are told and tell the test of it.
struct Receivers {
    in_force: Mutex<Vec<&'static str>>,
    failures: Failures,
    told: mpsc::UnboundedSender<Told>,
    /// Calls wait for a permit.
    gate: Arc<tokio::sync::Semaphore>,
}

struct Told {
    plugin: String,
    job: JobView,
    outcome: OutcomeView,
    delivery: taxiway_plugin_host::Delivery,
}

#[async_trait]
impl CompletionHooks for Receivers {
    async fn ready(&self) {}

    fn in_force(&self, _: Option<&str>) -> Vec<String> {
        self.in_force.lock().unwrap().iter().map(|name| (*name).to_owned()).collect()
    }

    async fn complete(
        &self,
        plugin: &str,
        profile: Option<&str>,
        job: &JobView,
        outcome: &OutcomeView,
        delivery: &taxiway_plugin_host::Delivery,
    ) -> Option<Result<(), CallError>> {
        if !self.in_force(profile).iter().any(|name| name == plugin) {
            return None;
        }
        let told =
            Told { plugin: plugin.into(), job: job.clone(), outcome: outcome.clone(), delivery: delivery.clone() };
        self.told.send(told).unwrap();
        self.gate.acquire().await.unwrap().forget();
        Some(self.failures.lock().unwrap().pop().map_or(Ok(()), Err))
    }
}

fn failure(kind: FailureKind, retry_after: Option<Duration>) -> CallError {
    CallError {
        plugin: "webhook".into(),
        version: "1.0.0".into(),
        kind,
        limit: None,
        message: "the receiver is down".into(),
        on_error: OnError::Reject,
        retry_after,
    }
}

struct Scene {
    directory: tempfile::TempDir,
    store: Store,
    receivers: Arc<Receivers>,
    told: mpsc::UnboundedReceiver<Told>,
}

impl Scene {
    fn new(in_force: &[&'static str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("taxiway.db")).unwrap();
        let (sender, told) = mpsc::unbounded_channel();
        let receivers = Receivers {
            in_force: Mutex::new(in_force.to_vec()),
            failures: Mutex::default(),
            told: sender,
            gate: Arc::new(tokio::sync::Semaphore::new(1000)),
        };
        Self { directory, store, receivers: Arc::new(receivers), told }
    }

    fn failing(self, mut failures: Vec<CallError>) -> Self {
        failures.reverse();
        *self.receivers.failures.lock().unwrap() = failures;
        self
    }

    fn outbox(&self, max_attempts: u32) -> Outbox {
        let options = Options {
            store: self.store.clone(),
            hooks: self.receivers.clone(),
            jobs_dir: self.jobs_dir(),
            max_attempts,
        };
        Outbox::spawn(options, Alarm::new().unwrap())
    }

    fn jobs_dir(&self) -> PathBuf {
        self.directory.path().join("jobs")
    }

    /// A job that ran and failed with status 3, and the deliveries that tell of it.
    async fn failed_job(&self) -> Job {
        let (job, launch, now) = (job(), LaunchId::random(), Time::now());
        let id = job.id;
        let new = test_new_job(job.clone());
        self.store.commit(vec![Change::Submit(Box::new(new))]).await.unwrap();
        self.store.commit(vec![Change::Arm { job: id, attempt: 1, launch, boot_id: "boot".into() }]).await.unwrap();
        write_log(&taxiway_launcher::log::path(&self.jobs_dir(), id, launch));
        let end = End {
            job: id,
            launch: Some(launch),
            from: State::Running,
            to: State::Failed,
            exit: Exit { code: Some(3), signal: None },
            failure: Some(Failure { class: FailureClass::CudaOom, message: "no memory".into(), evidence: None }),
            reason: None,
            usage: None,
            started_at: Some(now),
            finished_at: now,
            deliveries: deliveries_for(self.receivers.as_ref(), None),
            next: None,
        };
        let ran = vec![
            Change::Go { job: id, launch, gpu_uuids: Vec::new(), at: now },
            Change::Running { job: id, launch, pid: 4711, start_time: 5, at: now, handover: None },
            Change::End(Box::new(end)),
        ];
        self.store.commit(ran).await.unwrap();
        job
    }

    async fn deliveries(&self, job: &Job) -> Vec<Delivery> {
        self.store.deliveries_of(job.id).await.unwrap()
    }
}

fn write_log(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("{}CUDA out of memory\n", "x".repeat(20_000))).unwrap();
}

fn job() -> Job {
    let now = Time::now();
    Job {
        id: JobId::new(),
        spec: JobSpec {
            name: "lora".into(),
            profile: None,
            command: vec!["true".into()],
            cwd: None,
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            gpus: 1,
            priority: 0,
            time_limit: None,
            grace: Duration::from_secs(30),
            external_id: None,
            config_format: ConfigFormat::Json,
            terms: taxiway_job::Terms::default(),
            array: None,
            process: ProcessSpec::default(),
        },
        config: Map::from_iter([("lr".to_owned(), json!(0.1))]),
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

/// Waits for this many events of one kind.
async fn heard(events: &mut tokio::sync::broadcast::Receiver<Arc<crate::store::Event>>, kind: &str, mut count: usize) {
    while count > 0 {
        count -= usize::from(events.recv().await.unwrap().kind == kind);
    }
}

#[tokio::test]
async fn an_end_is_told_with_its_facts_and_the_end_of_its_log() {
    let mut scene = Scene::new(&["webhook"]);
    let mut events = scene.store.events();
    let outbox = scene.outbox(5);
    let job = scene.failed_job().await;
    let told = scene.told.recv().await.unwrap();
    assert_eq!(
        (told.plugin.as_str(), told.job.id.as_str(), told.job.config["lr"].as_f64()),
        ("webhook", job.id.to_string().as_str(), Some(0.1))
    );
    let outcome = &told.outcome;
    assert_eq!(
        (outcome.end, outcome.exit_code, outcome.failure.as_deref()),
        (EndView::Failed, Some(3), Some("cuda_oom"))
    );
    assert!(outcome.started_at_ms.is_some() && outcome.finished_at_ms >= outcome.started_at_ms.unwrap());
    assert!(outcome.log_tail.len() <= 8192 && outcome.log_tail.ends_with("xCUDA out of memory\n"));
    assert_eq!((&outcome.details["id"], &outcome.details["state"]), (&json!(job.id), &json!("failed")));
    heard(&mut events, "delivery.delivered", 1).await;
    let delivery = &scene.deliveries(&job).await[0];
    assert_eq!((delivery.status, delivery.tries), (DeliveryStatus::Delivered, 1));
    assert_eq!((told.delivery.id, told.delivery.attempt), (delivery.id.to_string(), 1));
    outbox.stop(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn a_failed_try_is_made_again_under_the_same_id() {
    let mut scene = Scene::new(&["webhook"]).failing(vec![failure(FailureKind::Timeout, None)]);
    let mut events = scene.store.events();
    let _outbox = scene.outbox(5);
    let job = scene.failed_job().await;
    let (first, second) = (scene.told.recv().await.unwrap(), scene.told.recv().await.unwrap());
    assert_eq!((first.delivery.attempt, second.delivery.attempt), (1, 2));
    assert_eq!(first.delivery.id, second.delivery.id);
    heard(&mut events, "delivery.delivered", 1).await;
    assert_eq!(scene.deliveries(&job).await[0].tries, 2);
}

#[tokio::test]
async fn a_plugin_that_had_no_place_for_the_call_has_not_been_tried() {
    let mut scene = Scene::new(&["webhook"]).failing(vec![failure(FailureKind::Busy, None)]);
    let mut events = scene.store.events();
    let _outbox = scene.outbox(1);
    let job = scene.failed_job().await;
    let (first, second) = (scene.told.recv().await.unwrap(), scene.told.recv().await.unwrap());
    assert_eq!((first.delivery.attempt, second.delivery.attempt), (1, 1));
    heard(&mut events, "delivery.delivered", 1).await;
    let delivery = &scene.deliveries(&job).await[0];
    assert_eq!((delivery.status, delivery.tries), (DeliveryStatus::Delivered, 1));
}

#[tokio::test]
async fn a_plugin_says_when_to_try_again_or_that_it_is_of_no_use() {
    let later = Duration::from_secs(600);
    let refused = FailureKind::HookError { code: "gone".into() };
    let scene = Scene::new(&["webhook"]).failing(vec![failure(refused.clone(), Some(later)), failure(refused, None)]);
    let mut events = scene.store.events();
    let _outbox = scene.outbox(5);
    let job = scene.failed_job().await;
    heard(&mut events, "delivery.retry", 1).await;
    let delivery = &scene.deliveries(&job).await[0];
    assert_eq!(delivery.status, DeliveryStatus::Waiting);
    assert!(delivery.next_at >= delivery.created_at.plus(later));
    assert!(delivery.last_error.as_ref().is_some_and(|error| error.contains("the receiver is down")));
    let job = scene.failed_job().await;
    heard(&mut events, "delivery.dead", 1).await;
    assert_eq!(scene.deliveries(&job).await[0].status, DeliveryStatus::Dead);
}

#[tokio::test]
async fn the_last_try_leaves_a_dead_letter() {
    let scene =
        Scene::new(&["webhook"]).failing(vec![failure(FailureKind::Trap, None), failure(FailureKind::Trap, None)]);
    let mut events = scene.store.events();
    let _outbox = scene.outbox(2);
    let job = scene.failed_job().await;
    heard(&mut events, "delivery.dead", 1).await;
    let delivery = &scene.deliveries(&job).await[0];
    assert_eq!((delivery.status, delivery.tries), (DeliveryStatus::Dead, 2));
}

#[tokio::test]
async fn a_delivery_waits_for_a_plugin_that_is_not_in_force() {
    let mut scene = Scene::new(&["webhook"]);
    let mut events = scene.store.events();
    let job = scene.failed_job().await;
    scene.receivers.in_force.lock().unwrap().clear();
    let _outbox = scene.outbox(5);
    heard(&mut events, "delivery.retry", 1).await;
    let delivery = &scene.deliveries(&job).await[0];
    assert!(delivery.last_error.as_ref().is_some_and(|error| error.contains("not in force")), "{delivery:?}");
    scene.receivers.in_force.lock().unwrap().push("webhook");
    assert_eq!(scene.told.recv().await.unwrap().delivery.attempt, 2);
}

#[tokio::test]
async fn what_an_earlier_outbox_left_is_told_by_the_next_one() {
    let mut scene = Scene::new(&["chat", "webhook"]);
    let mut events = scene.store.events();
    scene.failed_job().await;
    scene.receivers.gate.forget_permits(1000);
    let first = scene.outbox(5);
    let interrupted = scene.told.recv().await.unwrap();
    first.stop(Duration::ZERO).await;
    scene.receivers.gate.add_permits(1000);
    let _second = scene.outbox(5);
    heard(&mut events, "delivery.delivered", 2).await;
    let mut again = Vec::new();
    while let Ok(told) = scene.told.try_recv() {
        again.push((told.plugin, told.delivery));
    }
    assert!(
        again.contains(&(interrupted.plugin, interrupted.delivery)),
        "it was not taken, so it is told again as it was"
    );
}

#[tokio::test]
async fn a_plugin_that_lets_everybody_wait_does_not_hold_up_another() {
    let mut scene = Scene::new(&["slow"]);
    scene.receivers.gate.forget_permits(1000);
    for _ in 0..UNDER_WAY + 5 {
        scene.failed_job().await;
    }
    *scene.receivers.in_force.lock().unwrap() = vec!["quick", "slow"];
    scene.failed_job().await;
    let _outbox = scene.outbox(5);
    let mut slow = 0;
    while scene.told.recv().await.unwrap().plugin == "slow" {
        slow += 1;
    }
    assert!(slow <= UNDER_WAY_OF_ONE_PLUGIN);
}

#[tokio::test]
async fn an_outbox_that_stops_waits_for_what_is_under_way() {
    let mut scene = Scene::new(&["webhook"]);
    scene.receivers.gate.forget_permits(1000);
    let outbox = Arc::new(scene.outbox(5));
    let job = scene.failed_job().await;
    scene.told.recv().await.unwrap();
    let stopping = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.stop(Duration::from_secs(60)).await }
    });
    scene.receivers.gate.add_permits(1);
    stopping.await.unwrap();
    assert_eq!(scene.deliveries(&job).await[0].status, DeliveryStatus::Delivered);
}
