//! The service, put together: which room gets what of the others, and in which order they start and stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use taxiway_job::{Job, JobId, LaunchId, State, Time, Verdict};
use taxiway_launcher::{Delegated, LocalLauncher};
use taxiway_plugin_host::PluginHost;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Admission, LaunchJudgement};
use crate::alarm::Alarm;
use crate::api;
use crate::config::{DataDir, Settings, Startup};
use crate::gpu::{self, Inventory, Looked, Released};
use crate::line::Line;
use crate::outbox::{self, Outbox};
use crate::plugin_events;
use crate::queue::{self, Count, Gpus, Hooks, LaunchVerdict, Mode, Queue, SlotGpu};
use crate::retention::Retention;
use crate::store::{NewDelivery, Store};
use crate::vital;

/// Events of the launcher that may wait for the queue: a few for each job that runs at a time.
const LAUNCHER_EVENTS: usize = 256;

/// How long deliveries that are under way may take once the service stops; those cut off are made again.
const LAST_DELIVERIES: Duration = Duration::from_secs(2);

/// What is said where starting the launcher or the queue panics.
const UNFINISHED: &str = "Taxiway made a mistake while it started; its log says more";

/// Everything a request may need.
pub struct Service {
    /// What it runs with.
    pub settings: Settings,
    /// Everything that is kept.
    pub store: Store,
    /// What starts next.
    pub queue: Queue,
    /// What may be submitted.
    pub admission: Admission,
    /// The plugins.
    pub plugins: PluginHost,
    /// The GPUs.
    pub gpus: Inventory,
    /// What removes what was kept long enough.
    pub retention: Retention,
    /// When it started.
    pub started_at: Time,
}

/// Runs the service until `stop` is cancelled or a drained queue has nothing left to do. Jobs that run go on after it.
///
/// # Errors
/// When it cannot start; each error says what to do.
pub async fn serve(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    // Asked before the first process is started.
    let started_alone = taxiway_launcher::started_alone();
    // Held until the end: one service on one data directory.
    let _claim = DataDir::claim(&settings.data_dir)?;
    let server = api::Server::bind(&settings).await?;
    let store = Store::open(&settings.database())?;
    api::ensure_admin_token(&store, &settings.token_file()).await?;

    let program = std::env::current_exe().context("cannot find the taxiway program itself (/proc must be mounted)")?;
    let plugins = PluginHost::start(taxiway_plugin_host::Options {
        plugins_dir: settings.plugins_dir(),
        state_dir: settings.data_dir.clone(),
        cache_dir: settings.cache_dir(),
        ca_file: settings.config.plugins.ca_file.clone(),
        limits: settings.config.plugins.limits.clone(),
        bundled: crate::bundled::BUNDLED,
        compiler: program,
    })
    .await?;
    let gpus = inventory(&settings).await?;
    let groups = control_groups(&settings)?;
    let admission = Admission::new(admission::Options {
        hooks: Arc::new(plugins.clone()),
        gpus: gpus.clone(),
        profiles: settings.config.profiles.clone(),
        grace: settings.config.launcher.grace,
        jobs_dir: settings.jobs_dir(),
    });

    let (events, launcher_events) = mpsc::channel(LAUNCHER_EVENTS);
    let line = Line::start().context("cannot start the queue's own thread")?;
    let launcher = launcher_options(&settings, groups, started_alone);
    let launcher = line.run(async move { LocalLauncher::start(launcher, events) }).await;
    let launcher = launcher.context(UNFINISHED)?.context("cannot start the launcher")?;
    let drained = CancellationToken::new();
    let starting = queue::start(queue::Options {
        store: store.clone(),
        boot_id: taxiway_launcher::boot_id().context("cannot read the machine's boot id")?,
        launcher: Arc::new(launcher),
        events: launcher_events,
        jobs_dir: settings.jobs_dir(),
        min_free_disk: settings.config.launcher.min_free_disk,
        hooks: Arc::new(Plugins { admission: admission.clone(), plugins: plugins.clone(), gpus: gpus.clone() }),
        beside: Handle::current(),
        slots: slots(&gpus.slots()),
        missing: gpus.missing(),
        gpus: Arc::new(gpus.clone()),
        faults: gpus.faults().context("somebody else listens to the GPUs")?,
        cpu_slots: settings.config.queue.cpu_slots as usize,
        mode: match settings.config.queue.startup {
            Startup::Run => Some(Mode::Run),
            Startup::Paused => Some(Mode::Paused),
            Startup::Last => None,
        },
        drained: drained.clone(),
    });
    let (queue, owner) = line.run(starting).await.context(UNFINISHED)??;
    tokio::spawn(vital::task("the queue", owner));
    let alarm = || Alarm::new().context("could not make a timer; check the limit of open files (`ulimit -n`)");
    let kept = settings.config.queue.retention.clone();
    let retention = Retention::spawn(store.clone(), settings.jobs_dir(), kept, alarm()?);
    let deliveries = outbox::Options {
        store: store.clone(),
        hooks: Arc::new(plugins.clone()),
        jobs_dir: settings.jobs_dir(),
        max_attempts: outbox::MAX_ATTEMPTS,
    };
    let outbox = Outbox::spawn(deliveries, alarm()?);

    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %settings.data_dir.display(),
        slots = gpus.slot_count(),
        token_file = %settings.token_file().display(),
        socket = %settings.socket().display(),
        "started"
    );
    tokio::spawn(plugin_events::tell(plugins.clone(), store.clone(), stop.clone()));
    let service =
        Arc::new(Service { settings, store, queue, admission, plugins, gpus, retention, started_at: Time::now() });
    let ends = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = drained.cancelled() => ends.cancel(),
            () = ends.cancelled() => {}
        }
    });
    server.run(service, stop).await;
    outbox.stop(LAST_DELIVERIES).await;
    line.end().await;
    tracing::info!("stopped; jobs that run go on");
    Ok(())
}

fn launcher_options(settings: &Settings, groups: Option<Delegated>, started_alone: bool) -> taxiway_launcher::Options {
    taxiway_launcher::Options {
        groups,
        started_alone,
        ..taxiway_launcher::Options::new(
            settings.jobs_dir(),
            // A spawner that has to be started again is this program's also after its file was replaced.
            "/proc/self/exe".into(),
            settings.config.launcher.log_max_size,
        )
    }
}

/// Where jobs get control groups: where the configuration says, else where systemd does.
fn control_groups(settings: &Settings) -> anyhow::Result<Option<Delegated>> {
    let groups = match &settings.config.launcher.cgroup {
        Some(path) => Some(Delegated::at(path.clone()).context("launcher.cgroup cannot be used")?),
        None => Delegated::find(),
    };
    match &groups {
        Some(groups) => {
            tracing::info!(path = %groups.path().display(), bounds_memory = groups.bounds_memory(), "jobs get control groups")
        }
        None => tracing::debug!("no control group is delegated: jobs are known by their descent"),
    }
    if !groups.as_ref().is_some_and(Delegated::bounds_memory) {
        for (profile, _) in settings.config.profiles.iter().filter(|(_, profile)| profile.memory.is_some()) {
            tracing::warn!(
                profile,
                "its `memory` is not enforced: no control group with the memory controller is delegated to the service; \
                 `taxiway service install` makes a systemd unit that has one"
            );
        }
    }
    Ok(groups)
}

/// The GPUs as the configuration has them.
pub(crate) async fn inventory(settings: &Settings) -> anyhow::Result<Inventory> {
    let section = &settings.config.gpu;
    let settings = gpu::Settings {
        only: section.use_.clone(),
        slots: section.slots,
        min_free_memory: section.min_free_memory,
        ignore: section.ignore.clone(),
        nvml_library: std::env::var_os(gpu::NVML_LIBRARY_VARIABLE).map(PathBuf::from),
        jobs_dir: settings.jobs_dir(),
    };
    Ok(Inventory::open(settings).await?)
}

fn slots(slots: &[gpu::SlotGpu]) -> Vec<SlotGpu> {
    let slot = |slot: &gpu::SlotGpu| SlotGpu {
        uuid: slot.uuid().map(str::to_owned),
        whole: slot.gpu().and_then(|gpu| Some(gpu.instance.as_ref()?.1.clone())),
        label: slot.to_string(),
        memory_total_bytes: slot.gpu().map_or(0, |gpu| gpu.memory_total_bytes),
    };
    slots.iter().map(slot).collect()
}

#[async_trait]
impl Gpus for Inventory {
    async fn count(&self) -> Count {
        self.count().await;
        Count { slots: slots(&self.slots()), missing: self.missing() }
    }

    async fn look(&self, uuids: &[String], ours: &[LaunchId], again: bool) -> Looked {
        self.look(uuids, ours, again).await
    }

    fn hold(&self, job: JobId, launch: LaunchId, uuids: &[String], adopted: bool) {
        self.hold(job, launch, uuids, adopted);
    }

    async fn release(&self, launch: LaunchId, uuids: &[String], ours: &[LaunchId]) -> Released {
        self.release(launch, uuids, ours).await
    }
}

/// What the queue needs of plugins, through the rooms that know them.
struct Plugins {
    admission: Admission,
    plugins: PluginHost,
    gpus: Inventory,
}

#[async_trait]
impl Hooks for Plugins {
    fn judges_launch(&self, profile: Option<&str>) -> bool {
        self.admission.has_launch_stage(profile)
    }

    fn generation(&self) -> u64 {
        self.plugins.generation()
    }

    async fn judge_launch(&self, job: &Job, gpu_uuids: &[String]) -> (LaunchVerdict, Vec<Verdict>) {
        match self.gpus.views(gpu_uuids).await {
            Ok(views) => {
                let LaunchJudgement { verdict, verdicts } = self.admission.judge_launch(job, views).await;
                (verdict, verdicts)
            }
            Err(not_free) => (LaunchVerdict::Wait(not_free.reason()), Vec::new()),
        }
    }

    fn deliveries(&self, profile: Option<&str>, _end: State) -> Vec<NewDelivery> {
        outbox::deliveries_for(&self.plugins, profile)
    }
}
