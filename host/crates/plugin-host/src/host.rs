//! The plugin host as the service holds it.

use crate::compile::Cache;
use crate::folder::{self, FolderError};
use crate::limits::Limits;
use crate::load::{DESCRIBERS, Ingredients, Kept, LoadError, Loading, Origin, READERS, load};
use crate::loader::Loader;
use crate::manifest::Manifest;
use crate::plugin::Plugin;
use crate::registry::{Entry, Registry};
use crate::remembered::Remembered;
use crate::runtime::{Runtime, RuntimeError};
use crate::stats::PluginMetrics;
use crate::status::PluginStatus;
use crate::tls::{CaFileError, Tls};
use crate::view::{Hook, Stage};
use crate::watch::FolderWatch;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

/// A component that is part of the service: compiled when a manifest asks for it with `bundled = "NAME"`.
#[derive(Debug, Clone, Copy)]
pub struct Bundled {
    /// The name in manifests.
    pub name: &'static str,
    /// The component, as built.
    pub component: &'static [u8],
}

/// What the host is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where components and manifests are dropped. Made if it is missing and nothing was in force; [`open`] does without.
    pub plugins_dir: PathBuf,
    /// Where the set in force is remembered. [`open`] does without.
    pub state_dir: PathBuf,
    /// Compiled code, which may be deleted at any time. Made if missing; only the service's user may enter it.
    pub cache_dir: PathBuf,
    /// PEM roots for plugins' TLS, in place of the platform's.
    pub ca_file: Option<PathBuf>,
    /// Limits of calls and loads.
    pub limits: Limits,
    /// Components that are part of the service.
    pub bundled: &'static [Bundled],
    /// The program that is run as `PROGRAM plugin-compiler …`: the service's own, whose `main` calls
    /// [`dispatch_compiler`](crate::dispatch_compiler). Best `/proc/self/exe`: it is this very program also after an
    /// upgrade has put another file in its place.
    pub compiler: PathBuf,
}

/// Why the host does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder is not the service's.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// `plugins.ca_file` is of no use.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The engine does not start.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The folder cannot be watched.
    #[error("cannot watch {folder}: {source}; raise fs.inotify.max_user_watches and max_user_instances")]
    Watch {
        /// The plugins folder.
        folder: PathBuf,
        /// The system's answer.
        source: notify::Error,
    },
}

/// Why [`open`] has no plugin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host's own parts do not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The plugin does not load; [`LoadError::advice`] says what to do.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The plugins in force. A handle: clones are the same host, and the last one dropped ends it.
#[derive(Clone)]
pub struct PluginHost(Arc<Running>);

struct Running {
    registry: Arc<Registry>,
    loader: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.loader.abort();
    }
}

impl PluginHost {
    /// Checks the folders and begins to watch. The first scan goes on in the background: see [`PluginHost::ready`].
    ///
    /// # Errors
    /// When the host cannot work at all. A broken plugin is no such error.
    pub async fn start(options: Options) -> Result<PluginHost, StartError> {
        let (folder, state_dir, cache_dir) =
            (options.plugins_dir.clone(), options.state_dir.clone(), options.cache_dir.clone());
        let ingredients = prepare(options).await?;
        let changed = Arc::new(Notify::new());
        let (remembered, watching) = tokio::task::spawn_blocking({
            let (folder, changed) = (folder.clone(), changed.clone());
            move || -> Result<_, StartError> {
                let remembered = Remembered::read(&state_dir, &cache_dir);
                // One that held plugins and is missing says nothing about them: it may be on a disk that is not mounted.
                if remembered.names().is_empty() || folder.exists() {
                    folder::made(&folder)?;
                }
                let watching = FolderWatch::begin(&folder, changed);
                Ok((remembered, watching.map_err(|source| StartError::Watch { folder, source })?))
            }
        })
        .await
        .map_err(|error| RuntimeError::Engine(error.to_string()))??;
        let registry = Arc::new(Registry::new());
        let loader = Loader::new(folder, ingredients, registry.clone(), remembered, watching);
        let loader = tokio::spawn(loader.run(changed));
        Ok(PluginHost(Arc::new(Running { registry, loader })))
    }

    /// Waits until it is known what guards the queue: at the first start until everything that lies in the folder is in force or
    /// has its error, later until this holds for everything that was in force when the service ended.
    pub async fn ready(&self) {
        let mut settled = self.0.registry.settled();
        // As nearly always. A wait that is over at once would count against what its task may do before others have their turn.
        if *settled.borrow() {
            return;
        }
        // An error means that the registry is gone, which this handle keeps.
        let _ = settled.wait_for(|settled| *settled).await;
    }

    /// Whether [`PluginHost::ready`] returns at once.
    pub fn is_ready(&self) -> bool {
        *self.0.registry.settled().borrow()
    }

    /// Every plugin of the folder, by name.
    pub fn plugins(&self) -> Vec<PluginStatus> {
        self.0.registry.entries().iter().map(Entry::status).collect()
    }

    /// The numbers of every plugin of the folder, by name, for a metrics page.
    pub fn metrics(&self) -> Vec<PluginMetrics> {
        self.0.registry.entries().iter().map(Entry::metrics).collect()
    }

    /// The plugins to call, by `order`, then name. `stage` counts for validators; `profile` is the job's. A plugin that
    /// was in force and cannot be loaded any more is among them: its calls fail.
    pub fn in_force(&self, hook: Hook, stage: Option<Stage>, profile: Option<&str>) -> Vec<Plugin> {
        let entries = self.0.registry.entries();
        let concerned = entries
            .iter()
            .filter_map(|entry| entry.in_force.as_ref())
            .filter(|plugin| plugin.concerns(hook, stage, profile));
        let mut plugins: Vec<Plugin> = concerned.cloned().collect();
        // Entries are by name, and the sort keeps that order among equals.
        plugins.sort_by_key(Plugin::order);
        plugins
    }

    /// The plugin of this name, if it is in force: what a stored delivery names.
    pub fn plugin(&self, name: &str) -> Option<Plugin> {
        self.0.registry.entries().iter().find(|entry| entry.name == name)?.in_force.clone()
    }

    /// A number that changes whenever the set in force changes.
    pub fn generation(&self) -> u64 {
        *self.0.registry.generation().borrow()
    }

    /// The same number, as an event.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry.generation()
    }

    /// An event for everything that [`PluginHost::plugins`] may show differently, errors too; calls are not counted.
    pub fn status_changes(&self) -> watch::Receiver<u64> {
        self.0.registry.statuses()
    }
}

/// Loads one plugin outside the folder, through the same code path and under the same limits: for `taxiway plugin check`
/// and `test`. `file` is its component, or its manifest, which then stands beside the component or names it. The manifest
/// beside a component counts, as in the folder, unless `manifest` is another. Nothing is put in force.
///
/// # Errors
/// When it does not load; [`LoadError::advice`] says what to do.
pub async fn open(options: Options, file: &Path, manifest: Option<&Path>) -> Result<(Plugin, PluginStatus), OpenError> {
    let ingredients = prepare(options).await?;
    let limits = &ingredients.runtime.limits;
    let is_manifest = file.extension().is_some_and(|extension| extension == "toml");
    let beside = file.with_extension("toml");
    let manifest_file = match manifest {
        Some(manifest) => Some(manifest),
        None if is_manifest => Some(file),
        None => beside.exists().then_some(beside.as_path()),
    };
    let stem = |path: &Path| path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let name = stem(manifest_file.unwrap_or(file));
    if !folder::is_plugin_name(&name) {
        return Err(LoadError::Name(name).into());
    }
    let manifest = match manifest_file {
        None => Manifest::default(),
        Some(path) => {
            let text = folder::read(path, limits.manifest).map_err(LoadError::from)?;
            Manifest::parse(&String::from_utf8_lossy(&text))
                .map_err(|source| LoadError::Manifest { file: name.clone(), source })?
        }
    };
    let origin = match (&manifest.bundled, &manifest.component) {
        (Some(bundled), _) => Origin::Bundled(bundled.clone()),
        (None, Some(component)) if is_manifest => Origin::File(file.with_file_name(&component.0)),
        (None, None) if is_manifest => Origin::File(file.with_extension("wasm")),
        (None, _) => Origin::File(file.to_owned()),
    };
    let kept = Kept::new(&ingredients.runtime);
    let mut new = load(&ingredients, &name, &manifest, &origin, &kept, &Loading::new(|| ()), None).await?;
    if !manifest.enabled {
        new.facts.warnings.push("its manifest has enabled = false: the service would not call it".to_owned());
    }
    let entry = Entry {
        name,
        manifest: Arc::new(manifest),
        in_force: Some(new.plugin.clone()),
        facts: new.facts,
        error: None,
        folder_error: None,
        loading: None,
        kept,
    };
    Ok((new.plugin, entry.status()))
}

async fn prepare(options: Options) -> Result<Ingredients, StartError> {
    let prepared = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
        let tls = Tls::new(options.ca_file.as_deref())?;
        let runtime = Runtime::start(options.limits, tls)?;
        let cache = Cache::open(&options.cache_dir, &options.compiler, runtime.engine.clone(), runtime.limits.clone())?;
        Ok(Ingredients {
            runtime: Arc::new(runtime),
            cache: Arc::new(cache),
            bundle: options.bundled,
            reading: Arc::new(Semaphore::new(READERS)),
            describing: Arc::new(Semaphore::new(DESCRIBERS)),
        })
    });
    prepared.await.unwrap_or_else(|error| Err(RuntimeError::Engine(error.to_string()).into()))
}
