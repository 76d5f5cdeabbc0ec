//! Loading one plugin: read, check, compile, link, ask. Nothing here touches what is in force.

use super::{LoadError, component, instances};
use crate::compile::{Cache, First};
use crate::digest;
use crate::egress::Policy;
use crate::folder;
use crate::grant::Grants;
use crate::host::Bundled;
use crate::manifest::{Manifest, SecretSource, settings_as_json};
use crate::places::Places;
use crate::plugin::{Body, Inner, Loaded, Plugin, Terms, Timeouts};
use crate::runtime::Runtime;
use crate::secret::Secrets;
use crate::state::Room;
use crate::stats::Stats;
use serde_json::Value;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component;

/// The components that are part of the service.
pub(crate) type Bundle = &'static [Bundled];

/// What every load needs.
#[derive(Clone)]
pub(crate) struct Ingredients {
    pub runtime: Arc<Runtime>,
    pub cache: Arc<Cache>,
    pub bundle: Bundle,
    pub reading: Arc<Semaphore>,
    pub describing: Arc<Semaphore>,
}

/// Components that are read at the same time: they are up to 64 MiB each.
pub(crate) const READERS: usize = 4;

/// Plugins that are asked for their metadata at the same time: at the default memory limit 1 GiB. They do not wait for the calls
/// of those in force, which may be the ones that a new version is to end.
pub(crate) const DESCRIBERS: usize = 8;

/// Where a component comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    File(PathBuf),
    Bundled(String),
}

/// What a plugin keeps over all its versions.
#[derive(Clone)]
pub(crate) struct Kept {
    pub stats: Arc<Stats>,
    pub places: Places,
}

impl Kept {
    pub fn new(runtime: &Runtime) -> Kept {
        Kept { stats: Arc::default(), places: Places::new(&runtime.limits, &runtime.places) }
    }
}

/// A load under way, as others see it.
pub(crate) struct Loading {
    needs_compiler: AtomicBool,
    compiling: AtomicBool,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Loading {
    /// A load that calls `changed` when it turns out to need the compiler, and whenever it begins or ends to compile.
    pub fn new(changed: impl Fn() + Send + Sync + 'static) -> Loading {
        Loading {
            needs_compiler: AtomicBool::new(false),
            compiling: AtomicBool::new(false),
            changed: Box::new(changed),
        }
    }

    /// Whether its code is known not to be in the cache.
    pub fn needs_compiler(&self) -> bool {
        self.needs_compiler.load(Ordering::Relaxed)
    }

    pub fn is_compiling(&self) -> bool {
        self.compiling.load(Ordering::Relaxed)
    }

    fn is_not_cached(&self) {
        self.needs_compiler.store(true, Ordering::Relaxed);
        (self.changed)();
    }

    fn compiles(&self, compiling: bool) {
        self.compiling.store(compiling, Ordering::Relaxed);
        (self.changed)();
    }
}

/// A plugin that is ready to be put in force.
pub(crate) struct NewPlugin {
    pub plugin: Plugin,
    pub facts: Facts,
}

/// What is shown of a loaded plugin beside its terms.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    pub grants: Grants,
    pub summary: String,
    pub settings_schema: Option<Value>,
    pub warnings: Vec<String>,
    pub load: Duration,
    /// None when the code came from the cache.
    pub compile: Option<Duration>,
}

/// Loads one plugin, up to and including its `metadata`. With `first` it is compiled before others.
pub(crate) async fn load(
    ingredients: &Ingredients,
    name: &str,
    manifest: &Manifest,
    origin: &Origin,
    kept: &Kept,
    loading: &Loading,
    first: Option<First>,
) -> Result<NewPlugin, LoadError> {
    let begun = Instant::now();
    let runtime = &ingredients.runtime;
    let (sha256, instances) = {
        let _one_of_few = turn(&ingredients.reading).await?;
        let (bytes, sha256) = read(ingredients, origin).await?;
        component::sniff(&bytes)?;
        let limit = runtime.limits.instances;
        (sha256, blocking(move || instances::allowed(&bytes, limit)).await?)
    };
    if let Some(pin) = &manifest.sha256
        && pin.0 != sha256
    {
        return Err(LoadError::Digest { found: sha256, wanted: pin.0.clone() });
    }
    let (compiled, compile) = match ingredients.cache.find(&sha256).await {
        Some(found) => (found, None),
        None => compile(ingredients, origin, &sha256, loading, first.as_ref()).await?,
    };
    drop(first);
    let linked = {
        let runtime = runtime.clone();
        blocking(move || component::link(&runtime, &compiled)).await??
    };
    let secrets = {
        let sources = manifest.secrets.clone();
        let directories: Vec<PathBuf> = manifest.read.iter().map(|path| path.0.clone()).collect();
        blocking(move || {
            for path in directories {
                if let Err(error) = std::fs::read_dir(&path) {
                    return Err(LoadError::Directory { path: path.display().to_string(), why: error.to_string() });
                }
            }
            read_secrets(sources)
        })
        .await??
    };
    let secrets = Arc::new(secrets);
    let grants = Grants {
        http: manifest.http.clone(),
        allow_private: manifest.allow_private.clone(),
        read: manifest.read.iter().map(|path| path.0.clone()).collect(),
        env: manifest.env.clone(),
        secrets: secrets.names().map(str::to_owned).collect(),
    };
    let policy = Arc::new(Policy {
        plugin: name.to_owned(),
        hosts: grants.http.clone(),
        allow_private: grants.allow_private.clone(),
        limits: runtime.limits.clone(),
        secrets: secrets.clone(),
        tls: runtime.tls.clone(),
    });
    let mut terms = Terms {
        name: name.to_owned(),
        version: sha256[..12].to_owned(),
        sha256,
        hooks: linked.names(),
        order: manifest.order,
        stages: manifest.stages.clone(),
        profiles: manifest.profiles.clone(),
        mode: manifest.mode,
        on_error: manifest.on_error,
    };
    let settings: Arc<str> = settings_as_json(&manifest.settings).to_string().into();
    let steps = Arc::default();
    let loaded = |places| Loaded {
        runtime: runtime.clone(),
        hooks: linked.clone(),
        timeout: Timeouts::new(&runtime.limits, manifest.timeout),
        room: Room { memory: manifest.memory.unwrap_or(runtime.limits.memory), instances },
        settings: settings.clone(),
        secrets: secrets.clone(),
        policy: policy.clone(),
        read: grants.read.clone(),
        env: grants.env.clone(),
        places,
        steps: Arc::clone(&steps),
    };
    // Its metadata is called before the version is known, and is not among its calls for jobs.
    let description = {
        let body = Body::Loaded(Box::new(loaded(Places::one())));
        let candidate = Plugin(Arc::new(Inner { terms: terms.clone(), stats: Arc::default(), body }));
        let _one_of_few = turn(&ingredients.describing).await?;
        candidate.describe().await.map_err(|error| LoadError::Metadata(Box::new(error)))?.unwrap_or_default()
    };
    if !description.setting_errors.is_empty() {
        return Err(LoadError::Settings(description.setting_errors));
    }
    if !description.version.is_empty() {
        terms.version = description.version;
    }
    let body = Body::Loaded(Box::new(loaded(kept.places.clone())));
    let plugin = Plugin(Arc::new(Inner { terms, stats: kept.stats.clone(), body }));
    let facts = Facts {
        grants,
        summary: description.summary,
        settings_schema: description.settings_schema,
        warnings: description.setting_warnings,
        load: begun.elapsed(),
        compile,
    };
    Ok(NewPlugin { plugin, facts })
}

/// Compiles the component when its turn has come. It is read again for that: many may wait, and each is up to 64 MiB.
async fn compile(
    ingredients: &Ingredients,
    origin: &Origin,
    sha256: &str,
    loading: &Loading,
    first: Option<&First>,
) -> Result<(Component, Option<Duration>), LoadError> {
    loading.is_not_cached();
    let turn = ingredients.cache.turn(first).await;
    if let Some(found) = ingredients.cache.find(sha256).await {
        return Ok((found, None));
    }
    let begun = Instant::now();
    loading.compiles(true);
    let (bytes, now) = read(ingredients, origin).await?;
    if now != sha256 {
        return Err(LoadError::Changed);
    }
    let compiled = ingredients.cache.compile(&turn, sha256, bytes.into_owned()).await;
    loading.compiles(false);
    Ok((compiled?, Some(begun.elapsed())))
}

async fn read(ingredients: &Ingredients, origin: &Origin) -> Result<(Cow<'static, [u8]>, String), LoadError> {
    match origin {
        Origin::Bundled(name) => {
            let Some(bundled) = ingredients.bundle.iter().find(|bundled| bundled.name == name) else {
                let known = ingredients.bundle.iter().map(|bundled| bundled.name).collect();
                return Err(LoadError::NoBundled { name: name.clone(), known });
            };
            let component = bundled.component;
            let sha256 = blocking(move || digest::sha256(component)).await?;
            Ok((Cow::Borrowed(component), sha256))
        }
        Origin::File(path) => {
            let (path, limit) = (path.clone(), ingredients.runtime.limits.component);
            blocking(move || -> Result<_, LoadError> {
                let bytes = folder::read(&path, limit)?;
                let sha256 = digest::sha256(&bytes);
                Ok((Cow::Owned(bytes), sha256))
            })
            .await?
        }
    }
}

async fn turn(few: &Semaphore) -> Result<SemaphorePermit<'_>, LoadError> {
    few.acquire().await.map_err(|error| LoadError::Inside(error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LoadError::Inside(error.to_string()))
}

/// A secret is a token or a key, not a file of data.
const SECRET_LIMIT: u64 = 64 << 10;

fn read_secrets(sources: std::collections::BTreeMap<String, SecretSource>) -> Result<Secrets, LoadError> {
    let mut named = Vec::new();
    for (name, source) in sources {
        let value = match &source {
            SecretSource::Env(variable) => std::env::var(variable).map_err(|error| format!("{variable}: {error}")),
            SecretSource::File(path) => read_secret_file(path),
        };
        match value {
            Ok(value) => named.push((name, value)),
            Err(why) => return Err(LoadError::Secret { name, why }),
        }
    }
    Secrets::new(named).map_err(|name| LoadError::ShortSecret { name })
}

fn read_secret_file(path: &std::path::Path) -> Result<String, String> {
    let bytes = folder::read(path, SECRET_LIMIT).map_err(|error| error.to_string())?;
    let mut text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
