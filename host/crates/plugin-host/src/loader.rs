//! The one task that decides what is in force. It waits for the folder to change, looks at all of it, starts a load for
//! everything that is new, and puts what has loaded in force. Everybody else only reads what it publishes.

use crate::folder::{self, Listing, Stamp};
use crate::load::{Ingredients, LoadError, Loading, NewPlugin, Origin, Places, load};
use crate::manifest::Manifest;
use crate::plugin::{Body, Inner, Plugin, Terms};
use crate::registry::{Entry, Registry};
use crate::remembered::Remembered;
use crate::status::PluginError;
use crate::watch::FolderWatch;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// The folder counts as quiet when nothing has changed for so long: between a manifest and its component, copied by one
/// command, lie a few milliseconds.
const QUIET: Duration = Duration::from_millis(100);

/// In a folder that never gets quiet the loader looks after this time, so that a change takes effect within a second.
const LATEST: Duration = Duration::from_millis(500);

/// What the loader knows of one plugin beside what it publishes.
struct Known {
    entry: Entry,
    /// What was last loaded, or tried.
    tried: Option<Wanted>,
    load: Option<AbortHandle>,
}

/// A manifest, or why there is none. Shared, because it is kept until the file changes.
type ReadManifest = Result<Arc<Manifest>, Arc<LoadError>>;

/// What the folder asks for, for one name.
#[derive(Clone)]
struct Wanted {
    manifest: ReadManifest,
    manifest_stamp: Option<Stamp>,
    origin: Option<Origin>,
    component_stamp: Option<Stamp>,
}

impl Wanted {
    /// Whether nothing has changed. What could not be read is named by its stamps too.
    fn same(&self, other: &Wanted) -> bool {
        self.manifest_stamp == other.manifest_stamp
            && self.origin == other.origin
            && self.component_stamp == other.component_stamp
    }
}

struct Loaded {
    name: String,
    loading: Arc<Loading>,
    result: Result<NewPlugin, LoadError>,
}

pub(crate) struct Loader {
    folder: PathBuf,
    ingredients: Ingredients,
    registry: Arc<Registry>,
    remembered: Remembered,
    known: BTreeMap<String, Known>,
    /// Manifests that were read, by their stamps.
    manifests: BTreeMap<String, (Stamp, ReadManifest)>,
    loads: JoinSet<Loaded>,
    watch: FolderWatch,
    scanned: bool,
}

impl Loader {
    pub fn new(
        folder: PathBuf,
        ingredients: Ingredients,
        registry: Arc<Registry>,
        remembered: Remembered,
        watch: FolderWatch,
    ) -> Loader {
        Loader {
            folder,
            ingredients,
            registry,
            remembered,
            known: BTreeMap::new(),
            manifests: BTreeMap::new(),
            loads: JoinSet::new(),
            watch,
            scanned: false,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self, changed: Arc<Notify>) {
        self.scan().await;
        let mut look: Option<(Instant, Instant)> = None;
        loop {
            if self.scanned && self.loads.is_empty() {
                self.registry.settle();
            }
            let at = look.map(|(quiet, latest)| quiet.min(latest));
            tokio::select! {
                () = changed.notified() => {
                    let now = Instant::now();
                    let latest = look.map_or(now + LATEST, |(_, latest)| latest);
                    look = Some((now + QUIET, latest));
                }
                () = async { tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await }, if at.is_some() => {
                    look = None;
                    self.scan().await;
                }
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => {
                    // An aborted load was overtaken by a newer file.
                    let mut arrived: Vec<Loaded> = loaded.ok().into_iter().collect();
                    while let Some(more) = self.loads.try_join_next() {
                        arrived.extend(more.ok());
                    }
                    for loaded in arrived {
                        self.apply(loaded);
                    }
                    self.publish().await;
                }
            }
        }
    }

    /// Looks at the whole folder, and starts what has changed.
    async fn scan(&mut self) {
        if let Err(error) = self.watch.follow() {
            tracing::error!(%error, "cannot watch the plugins folder any more: changes in it are not seen; raise fs.inotify.max_user_watches and restart");
        }
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || {
            folder::trusted(&folder).map_err(|error| error.to_string())?;
            folder::list(&folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))
        })
        .await;
        let first = !std::mem::replace(&mut self.scanned, true);
        let listing = match listed.unwrap_or_else(|error| Err(format!("looking at the plugins folder failed: {error}")))
        {
            Ok(listing) => listing,
            Err(error) => return self.cannot_scan(error, first).await,
        };
        for known in self.known.values_mut() {
            known.entry.folder_error = None;
        }
        self.read_manifests(&listing).await;
        let wanted = self.wanted(&listing);
        self.known.retain(|name, known| {
            let stays = wanted.contains_key(name);
            if !stays {
                tracing::info!(plugin = name, "plugin removed");
                if let Some(load) = &known.load {
                    load.abort();
                }
            }
            stays
        });
        for (name, wanted) in wanted {
            self.want(name, wanted);
        }
        self.publish().await;
    }

    /// Says that the folder cannot be used. What is in force stays, and what was in force when the service ended fails in
    /// every call: it may not be passed by because its folder is missing.
    async fn cannot_scan(&mut self, error: String, first: bool) {
        tracing::error!(error, "the plugins folder cannot be used; what is in force stays");
        if first {
            let kept = || Places::new(&self.ingredients.runtime);
            for name in self.remembered.names() {
                let entry = new_entry(&name, kept());
                let known = self.known.entry(name).or_insert(Known { entry, tried: None, load: None });
                broken(known, &error, &self.remembered);
            }
        }
        let advice = "Put the folder back, for the service's user alone; it is looked at again at once.".to_owned();
        let error = PluginError { message: error, advice };
        for known in self.known.values_mut() {
            known.entry.folder_error = Some(error.clone());
        }
        self.publish().await;
    }

    /// Reads the manifests that are new or changed.
    async fn read_manifests(&mut self, listing: &Listing) {
        self.manifests.retain(|name, _| listing.manifests.contains_key(name));
        for (name, stamp) in &listing.manifests {
            if self.manifests.get(name).is_some_and(|(known, _)| known == stamp) {
                continue;
            }
            let path = self.folder.join(format!("{name}.toml"));
            let limit = self.ingredients.runtime.limits.manifest;
            let file = name.clone();
            let read = tokio::task::spawn_blocking(move || read_manifest(&path, file, limit)).await;
            let read = read.unwrap_or_else(|error| Err(LoadError::Inside(error.to_string())));
            self.manifests.insert(name.clone(), (*stamp, read.map(Arc::new).map_err(Arc::new)));
        }
    }

    /// What the folder asks for. A component that has no manifest of its own and serves another one is no plugin of its
    /// own.
    fn wanted(&self, listing: &Listing) -> BTreeMap<String, Wanted> {
        let mut wanted = BTreeMap::new();
        let mut serving = BTreeSet::new();
        for (name, (stamp, manifest)) in &self.manifests {
            let component = manifest.as_ref().ok().and_then(|manifest| manifest.component.as_ref());
            let file = component.map_or_else(|| format!("{name}.wasm"), |file| file.0.clone());
            let stem = file.trim_end_matches(".wasm").to_owned();
            let bundled = manifest.as_ref().ok().and_then(|manifest| manifest.bundled.clone());
            let component_stamp = listing.components.get(&stem).copied();
            let (origin, component_stamp) = match bundled {
                Some(name) => (Some(Origin::Bundled(name)), None),
                None => (component_stamp.map(|_| Origin::File(self.folder.join(&file))), component_stamp),
            };
            serving.insert(stem);
            wanted.insert(
                name.clone(),
                Wanted { manifest: manifest.clone(), manifest_stamp: Some(*stamp), origin, component_stamp },
            );
        }
        for (name, stamp) in &listing.components {
            if !wanted.contains_key(name) && !serving.contains(name) {
                let origin = Some(Origin::File(self.folder.join(format!("{name}.wasm"))));
                let manifest = Ok(Arc::new(Manifest::default()));
                wanted.insert(
                    name.clone(),
                    Wanted { manifest, manifest_stamp: None, origin, component_stamp: Some(*stamp) },
                );
            }
        }
        wanted
    }

    /// Starts loading what is wanted under a name, if it is not what was tried last.
    fn want(&mut self, name: String, wanted: Wanted) {
        let kept = || Places::new(&self.ingredients.runtime);
        let known = self.known.entry(name.clone()).or_insert_with(|| Known {
            entry: new_entry(&name, kept()),
            tried: None,
            load: None,
        });
        if known.tried.as_ref().is_some_and(|tried| tried.same(&wanted)) {
            return;
        }
        if let Some(overtaken) = known.load.take() {
            overtaken.abort();
        }
        known.tried = Some(wanted.clone());
        known.entry.loading = None;
        let manifest = match wanted.manifest {
            Ok(manifest) => manifest,
            Err(error) => return fail(known, &error, &self.remembered),
        };
        known.entry.manifest = manifest.clone();
        if !manifest.enabled {
            tracing::info!(plugin = name, "plugin disabled by its manifest");
            known.entry = Entry { manifest, ..new_entry(&name, known.entry.kept.clone()) };
            return;
        }
        let Some(origin) = wanted.origin else {
            let file = manifest.component.as_ref().map_or_else(|| format!("{name}.wasm"), |file| file.0.clone());
            // Removing a component is a decision, not a failure to load it: the plugin is gone, whatever its manifest.
            let error = LoadError::NoComponent(file);
            let (message, advice) = (error.to_string(), error.advice());
            tracing::warn!(plugin = name, "plugin is not in force: {message}. {advice}");
            let fresh = new_entry(&name, known.entry.kept.clone());
            known.entry = Entry { manifest, error: Some(PluginError { message, advice }), ..fresh };
            return;
        };
        let registry = self.registry.clone();
        let loading = Arc::new(Loading::new(move || registry.touch()));
        known.entry.loading = Some(loading.clone());
        let (ingredients, kept) = (self.ingredients.clone(), known.entry.kept.clone());
        known.load = Some(self.loads.spawn(async move {
            let result = load(&ingredients, &name, &manifest, &origin, &kept, &loading).await;
            Loaded { name, loading, result }
        }));
    }

    /// Takes in what a load has come to.
    fn apply(&mut self, loaded: Loaded) {
        let Some(known) = self.known.get_mut(&loaded.name) else { return };
        // A load that was overtaken just before it ended.
        if !known.entry.loading.as_ref().is_some_and(|loading| Arc::ptr_eq(loading, &loaded.loading)) {
            return;
        }
        known.entry.loading = None;
        known.load = None;
        match loaded.result {
            Ok(new) => {
                let (plugin, facts) = (&new.plugin, &new.facts);
                tracing::info!(
                    plugin = plugin.name(),
                    version = plugin.version(),
                    sha256 = plugin.sha256(),
                    hooks = ?plugin.hooks(),
                    load_ms = facts.load.as_millis(),
                    compile_ms = facts.compile.map(|took| took.as_millis()),
                    "plugin in force"
                );
                for warning in &facts.warnings {
                    tracing::warn!(plugin = plugin.name(), "{warning}");
                }
                known.entry = Entry {
                    in_force: Some(new.plugin),
                    facts: new.facts,
                    error: None,
                    loading: None,
                    ..known.entry.clone()
                };
            }
            Err(error) => fail(known, &error, &self.remembered),
        }
    }

    /// Remembers the new set, then puts it in force: after a crash in between it is loaded again anyway.
    async fn publish(&mut self) {
        let entries: Vec<Entry> = self.known.values().map(|known| known.entry.clone()).collect();
        let before = self.registry.entries();
        let changed = in_force(&entries) != in_force(&before);
        // During the first loads a plugin that is still loading was in force when the service ended.
        let terms = entries.iter().filter_map(|entry| match &entry.in_force {
            Some(plugin) => Some(plugin.0.terms.clone()),
            None if entry.loading.is_some() => self.remembered.get(&entry.name).cloned(),
            None => None,
        });
        let terms: BTreeMap<String, Terms> = terms.map(|terms| (terms.name.clone(), terms)).collect();
        if !self.remembered.is(&terms) {
            self.remember(terms).await;
        }
        self.registry.publish(entries, changed);
    }

    async fn remember(&mut self, terms: BTreeMap<String, Terms>) {
        let mut remembered = self.remembered.take();
        let written = tokio::task::spawn_blocking(move || {
            let result = remembered.write(terms);
            (remembered, result)
        })
        .await;
        match written {
            Ok((remembered, result)) => {
                self.remembered = remembered;
                if let Err(error) = result {
                    tracing::error!(%error, "cannot remember the plugins in force; after a restart broken ones would not reject jobs");
                }
            }
            Err(error) => tracing::error!(%error, "remembering the plugins in force failed"),
        }
    }
}

/// The versions in force, to tell whether anything changed.
fn in_force(entries: &[Entry]) -> Vec<*const Inner> {
    entries.iter().filter_map(|entry| entry.in_force.as_ref().map(|plugin| Arc::as_ptr(&plugin.0))).collect()
}

fn new_entry(name: &str, kept: Places) -> Entry {
    Entry {
        name: name.to_owned(),
        manifest: Arc::new(Manifest::default()),
        in_force: None,
        facts: Default::default(),
        error: None,
        folder_error: None,
        loading: None,
        kept,
    }
}

/// Shows the error. What is in force stays; what was in force before a restart fails from now on in every call.
fn fail(known: &mut Known, error: &LoadError, remembered: &Remembered) {
    let (message, advice) = (error.to_string(), error.advice());
    tracing::error!(
        plugin = known.entry.name,
        in_force = known.entry.in_force.is_some(),
        "plugin does not load: {message}. {advice}"
    );
    broken(known, &message, remembered);
    known.entry.error = Some(PluginError { message, advice });
}

/// If the plugin was in force when the service ended and has not been loaded since, its calls fail from now on.
fn broken(known: &mut Known, message: &str, remembered: &Remembered) {
    let entry = &mut known.entry;
    let never_in_force = entry.in_force.as_ref().is_none_or(|plugin| !plugin.is_loaded());
    if never_in_force && let Some(terms) = remembered.get(&entry.name) {
        let body = Body::Broken(message.to_owned());
        entry.in_force = Some(Plugin(Arc::new(Inner { terms: terms.clone(), stats: entry.kept.stats.clone(), body })));
    }
}

fn read_manifest(path: &Path, file: String, limit: u64) -> Result<Manifest, LoadError> {
    let bytes = folder::read(path, limit)?;
    let text = String::from_utf8_lossy(&bytes);
    Manifest::parse(&text).map_err(|source| LoadError::Manifest { file, source })
}
