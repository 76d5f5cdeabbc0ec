//! The owner task on a machine in memory: [`machine`] stands for shims and their files, [`faults`] does random things to both
//! and checks the rules, [`rules`], [`changes`] and [`unkillable`] tell single stories.

mod changes;
mod checks;
mod faults;
mod launch;
mod machine;
mod rules;
mod unkillable;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Map;
use taxiway_job::{
    ConfigFormat, Exit, Failure, FailureClass, Job, JobId, JobSpec, LaunchId, ProcessSpec, Reason, State, Time, Verdict,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::machine::{Machine, Step};
use super::{Count, Gpus, Hooks, LaunchVerdict, Options, Queue, SlotGpu};
use crate::gpu::{Look, Looked, Measured, Released};
use crate::store::{BodyHash, DeliveryId, NewDelivery, Store};

/// A service over a machine: what a restart replaces.
struct Service {
    store: Store,
    queue: Queue,
    /// What the launcher says goes in here.
    events: mpsc::Sender<taxiway_launcher::Event>,
    drained: CancellationToken,
}

impl Service {
    async fn start(directory: &Path, machine: &Arc<Machine>, slots: Vec<SlotGpu>) -> Result<Self, super::StartError> {
        let counted = Count { slots, missing: Vec::new() };
        Self::start_with(directory, machine, counted, Arc::new(FreeGpus::default())).await
    }

    /// The same where some GPUs may be missing.
    async fn start_with(
        directory: &Path,
        machine: &Arc<Machine>,
        counted: Count,
        gpus: Arc<FreeGpus>,
    ) -> Result<Self, super::StartError> {
        Self::start_beside(directory, machine, counted, gpus, Handle::current()).await
    }

    /// The same with plugins on a runtime that may be another.
    async fn start_beside(
        directory: &Path,
        machine: &Arc<Machine>,
        counted: Count,
        gpus: Arc<FreeGpus>,
        beside: Handle,
    ) -> Result<Self, super::StartError> {
        let Count { slots, missing } = counted;
        let store = Store::open(&directory.join("taxiway.db")).expect("the database opens");
        let (events, said) = mpsc::channel(1024);
        let drained = CancellationToken::new();
        let (queue, _) = super::start(Options {
            store: store.clone(),
            boot_id: machine.boot_id(),
            launcher: machine.clone(),
            events: said,
            jobs_dir: directory.join("jobs"),
            min_free_disk: 0,
            hooks: Arc::new(Plugins),
            beside,
            slots,
            missing,
            gpus,
            faults: mpsc::channel(1).1,
            cpu_slots: 1,
            mode: None,
            drained: drained.clone(),
        })
        .await?;
        Ok(Self { store, queue, events, drained })
    }

    /// Waits until the owner has heard everything and has written everything that follows from it. What it waits for beyond
    /// that is the machine's to say.
    async fn rest(&self) {
        // A commit's answer may lead to another commit, as when one operation waited for the other; never to a third.
        for _ in 0..4 {
            // An error means that the owner was killed.
            let _ = self.queue.summary().await;
            let _ = self.store.commit(Vec::new()).await;
        }
        let _ = self.queue.summary().await;
    }

    async fn submit(&self, job: &Job) {
        self.queue.submit(Arc::new(job.clone()), BodyHash([0; 32])).await.expect("the job is accepted");
    }

    async fn state(&self, job: &Job) -> State {
        self.store.job(job.id).await.expect("the store can be read").expect("the job is there").state
    }

    /// Lets the machine take every step of these kinds that it can, until nothing is left to be done.
    async fn settle(&self, machine: &Machine, kinds: fn(&Step) -> bool) {
        loop {
            self.rest().await;
            let steps: Vec<Step> = machine.steps().into_iter().filter(kinds).collect();
            for step in &steps {
                machine.step(*step, &self.events).await;
            }
            // A read of the store may be under way, from which the next call of the launcher follows. That nothing follows
            // has no event.
            let quiet = Duration::from_millis(50);
            if steps.is_empty() && tokio::time::timeout(quiet, machine.called()).await.is_err() {
                return;
            }
        }
    }

    /// Ends the service as a kill would, and waits until what it had sent to its database is there.
    async fn kill(self, machine: &Machine) {
        let mut writer = self.store.committing();
        drop(self);
        while writer.changed().await.is_ok() {}
        machine.host_died(false);
    }
}

/// GPUs that nobody else uses.
#[derive(Default)]
struct FreeGpus {
    /// What is found when those that are missing are counted again.
    count: Mutex<Count>,
    /// They are being counted.
    asked: Notify,
    /// They have been.
    counted: Notify,
}

#[async_trait]
impl Gpus for FreeGpus {
    async fn count(&self) -> Count {
        self.asked.notify_one();
        self.counted.notified().await;
        self.count.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(&self, uuids: &[String], _: &[LaunchId], _: bool) -> Looked {
        let gpus = uuids.iter().map(|uuid| Look { uuid: uuid.clone(), state: Ok(()) }).collect();
        Looked { gpus, faults: Vec::new() }
    }

    fn hold(&self, _: JobId, _: LaunchId, _: &[String], _: bool) {}

    async fn release(&self, launch: LaunchId, uuids: &[String], ours: &[LaunchId]) -> Released {
        let others = self.look(uuids, ours, false).await;
        assert!(!ours.contains(&launch), "it is over");
        Released { looked: others, measured: Measured::default() }
    }
}

/// A completion hook that hears of every end, and a plugin that judges jobs of the profile `judged` by their name.
struct Plugins;

#[async_trait]
impl Hooks for Plugins {
    fn judges_launch(&self, profile: Option<&str>) -> bool {
        profile == Some("judged")
    }

    fn generation(&self) -> u64 {
        0
    }

    async fn judge_launch(&self, job: &Job, _: &[String]) -> (LaunchVerdict, Vec<Verdict>) {
        let verdict = match job.spec.name.as_str() {
            "bad" => LaunchVerdict::Reject(Failure {
                class: FailureClass::Preflight,
                message: "it is bad".into(),
                evidence: None,
            }),
            "crowded" => LaunchVerdict::Wait(Reason::new("plugin_busy", "there was no place for the call")),
            "doubtful" => LaunchVerdict::Hold(Reason::new("doubtful", "somebody should look at it")),
            "where" => LaunchVerdict::Hold(Reason::new("where", std::thread::current().name().unwrap_or_default())),
            _ => LaunchVerdict::Accept,
        };
        (verdict, Vec::new())
    }

    fn deliveries(&self, _: Option<&str>, _: State) -> Vec<NewDelivery> {
        vec![NewDelivery { id: DeliveryId(uuid::Uuid::now_v7()), plugin: "receiver".into() }]
    }
}

fn gpus(count: usize) -> Vec<SlotGpu> {
    (0..count)
        .map(|n| SlotGpu {
            uuid: Some(format!("GPU-{n}")),
            whole: None,
            label: format!("GPU {n}"),
            memory_total_bytes: 80 << 30,
        })
        .collect()
}

fn virtual_slots(count: usize) -> Vec<SlotGpu> {
    (0..count).map(|n| SlotGpu { uuid: None, whole: None, label: format!("slot {n}"), memory_total_bytes: 0 }).collect()
}

fn job(gpus: u32, priority: i16) -> Job {
    let now = Time::now();
    Job {
        id: JobId::new(),
        spec: JobSpec {
            name: "job".into(),
            profile: None,
            command: vec!["true".into()],
            cwd: None,
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            gpus,
            priority,
            time_limit: None,
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
