//! The one task that decides what is in force. It waits for the folder to change, looks at all of it, starts a load for
//! everything that is new, and puts what has loaded in force. Everybody else only reads what it publishes.
//!
//! Until it has *settled*, submissions wait: the first time until everything in the folder is in force or has its error, since
//! nobody knows yet what guards the queue; after a restart until this holds for what was in force when the service ended. A
//! file that is dropped in later, or was never in force, keeps nobody waiting while it is compiled.

mod known;
mod wanted;

use crate::load::{Ingredients, Kept, LoadError, Loading, NewPlugin, load};
use crate::plugin::{Inner, Terms};
use crate::registry::{Entry, Registry};
use crate::remembered::Remembered;
use crate::status::PluginError;
use crate::watch::FolderWatch;
use futures_util::FutureExt;
use known::Known;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wanted::{Looker, Wanted};

/// The folder counts as quiet when nothing has changed for so long: between a manifest and its component, copied by one
/// command, lie a few milliseconds.
const QUIET: Duration = Duration::from_millis(100);

/// In a folder that never gets quiet the loader looks after this time, so that a change takes effect within a second.
const LATEST: Duration = Duration::from_millis(500);

struct Loaded {
    name: String,
    loading: Arc<Loading>,
    result: Result<NewPlugin, LoadError>,
}

pub(crate) struct Loader {
    ingredients: Ingredients,
    registry: Arc<Registry>,
    remembered: Remembered,
    known: BTreeMap<String, Known>,
    loads: JoinSet<Loaded>,
    /// Locked by one look at a time.
    looker: Arc<Mutex<Looker>>,
    /// A load turned out to need the compiler.
    slowed: Arc<Notify>,
    scanned: bool,
    settled: bool,
}

impl Loader {
    pub fn new(
        folder: PathBuf,
        ingredients: Ingredients,
        registry: Arc<Registry>,
        remembered: Remembered,
        watch: FolderWatch,
    ) -> Loader {
        let looker = Looker::new(folder, watch, ingredients.runtime.limits.manifest);
        // Known from the first moment: who asks what is in force, and for which jobs, must not be told "nothing" because it has not
        // been loaded yet.
        let known: BTreeMap<String, Known> = remembered
            .names()
            .into_iter()
            .map(|name| {
                let mut known = Known::new(&name, Kept::new(&ingredients.runtime));
                known.breaks("it has not been loaded since the service started", None, &remembered);
                (name, known)
            })
            .collect();
        registry.publish(known.values().map(|known| known.entry.clone()).collect(), true);
        Loader {
            ingredients,
            registry,
            remembered,
            known,
            loads: JoinSet::new(),
            looker: Arc::new(Mutex::new(looker)),
            slowed: Arc::new(Notify::new()),
            scanned: false,
            settled: false,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self, changed: Arc<Notify>) {
        self.scan().await;
        let mut look: Option<(Instant, Instant)> = None;
        loop {
            self.settle().await;
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
                    // An aborted load was overtaken by a newer file. None panics: see `start`.
                    let mut arrived: Vec<Loaded> = loaded.ok().into_iter().collect();
                    while let Some(more) = self.loads.try_join_next() {
                        arrived.extend(more.ok());
                    }
                    for loaded in arrived {
                        self.apply(loaded);
                    }
                    self.let_go();
                    self.publish().await;
                }
                () = self.slowed.notified() => {
                    if self.let_go() {
                        self.publish().await;
                    }
                }
            }
        }
    }

    /// Looks at the whole folder, and starts what has changed.
    async fn scan(&mut self) {
        let guarding = self.guarding();
        let looker = self.looker.clone();
        let looked = tokio::task::spawn_blocking(move || {
            // What a look left half done when it panicked the next one does again.
            looker.lock().unwrap_or_else(PoisonError::into_inner).look(&guarding)
        })
        .await;
        let first = !std::mem::replace(&mut self.scanned, true);
        let wanted = match looked.unwrap_or_else(|error| Err(format!("looking at the plugins folder failed: {error}")))
        {
            Ok(wanted) => wanted,
            Err(error) => return self.cannot_scan(error, first).await,
        };
        for known in self.known.values_mut() {
            known.entry.folder_error = None;
        }
        for (name, known) in &mut self.known {
            if !wanted.contains_key(name) {
                known.leave();
            }
        }
        let (guards, others): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(name, _)| self.guarded(name));
        for (name, wanted) in guards.into_iter().chain(others) {
            self.want(name, wanted);
        }
        self.let_go();
        self.publish().await;
    }

    /// Takes out of force what was removed, once nothing is being loaded that may take its place: a file that is given another
    /// name is one that goes and one that comes, and between the two nothing would guard the queue. Such a load is quick, since
    /// its code is in the cache; one that has to be compiled keeps nothing in force. Tells whether anything went.
    fn let_go(&mut self) -> bool {
        let before = self.known.len();
        if !self.known.values().any(Known::may_come_at_once) {
            self.known.retain(|name, known| {
                if known.leaves {
                    tracing::info!(plugin = name, "plugin removed");
                }
                !known.leaves
            });
        }
        self.known.len() < before
    }

    /// The plugins that are in force, and those that were when the service ended.
    fn guarding(&self) -> BTreeSet<String> {
        let in_force = self.known.iter().filter(|(_, known)| known.entry.in_force.is_some());
        let names = in_force.map(|(name, _)| name.clone());
        if self.settled { names.collect() } else { names.chain(self.remembered.names()).collect() }
    }

    /// Whether submissions wait for this plugin because it was in force when the service ended. It is compiled before those that
    /// keep nobody waiting.
    fn guarded(&self, name: &str) -> bool {
        !self.settled && self.remembered.get(name).is_some()
    }

    /// Says that the folder cannot be used. What is in force stays, and what was in force when the service ended fails in
    /// every call: it may not be passed by because its folder is missing.
    async fn cannot_scan(&mut self, error: String, first: bool) {
        tracing::error!(error, "the plugins folder cannot be used; what is in force stays");
        if first {
            for name in self.remembered.names() {
                let kept = Kept::new(&self.ingredients.runtime);
                let known = self.known.entry(name.clone()).or_insert_with(|| Known::new(&name, kept));
                known.breaks(&error, None, &self.remembered);
            }
        }
        let advice = "Put the folder back, for the service's user alone; it is looked at again at once. An empty one does without plugins.";
        let error = PluginError::new(&error, advice);
        for known in self.known.values_mut() {
            known.entry.folder_error = Some(error.clone());
        }
        self.publish().await;
    }

    /// Starts loading what is wanted under a name, if it is not what was tried last.
    fn want(&mut self, name: String, wanted: Wanted) {
        let first = self.guarded(&name).then(|| self.ingredients.cache.first());
        let kept = || Kept::new(&self.ingredients.runtime);
        let known = self.known.entry(name.clone()).or_insert_with(|| Known::new(&name, kept()));
        known.leaves = false;
        if known.tried.as_ref().is_some_and(|tried| tried.same(&wanted)) {
            return;
        }
        known.stop_loading();
        known.tried = Some(wanted.clone());
        let manifest = match &wanted.manifest {
            Ok(manifest) => manifest.clone(),
            Err(error) => return known.fail(error, None, &self.remembered),
        };
        known.entry.manifest = manifest.clone();
        if !manifest.enabled {
            return known.disable(manifest);
        }
        let Some(origin) = &wanted.origin else {
            // Half removed, or not yet put back: a plugin goes when both of its files are gone.
            let error = LoadError::NoComponent { file: wanted.file(&name), name };
            return known.fail(&error, Some(&manifest), &self.remembered);
        };
        let (registry, slowed) = (self.registry.clone(), self.slowed.clone());
        let loading = Arc::new(Loading::new(move || {
            registry.touch();
            slowed.notify_one();
        }));
        known.entry.loading = Some(loading.clone());
        let (ingredients, kept, origin) = (self.ingredients.clone(), known.entry.kept.clone(), origin.clone());
        known.load = Some(self.loads.spawn(async move {
            let result = AssertUnwindSafe(load(&ingredients, &name, &manifest, &origin, &kept, &loading, first));
            let result = result.catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(LoadError::Inside("a panic".to_owned())));
            Loaded { name, loading, result }
        }));
    }

    /// Takes in what a load has come to.
    fn apply(&mut self, loaded: Loaded) {
        let Some(known) = self.known.get_mut(&loaded.name) else { return };
        // A load that was overtaken just before it ended.
        if !known.awaits(&loaded.loading) {
            return;
        }
        known.entry.loading = None;
        known.load = None;
        match loaded.result {
            Ok(new) => known.succeed(new),
            Err(error) => {
                let manifest = known.entry.manifest.clone();
                known.fail(&error, Some(&manifest), &self.remembered);
            }
        }
    }

    /// Lets submissions through when all is known that they wait for.
    async fn settle(&mut self) {
        let awaited = |(name, known): (&String, &Known)| {
            let guards = self.remembered.is_blank() || self.remembered.get(name).is_some();
            known.leaves || known.load.is_some() && guards
        };
        if self.settled || !self.scanned || self.known.iter().any(awaited) {
            return;
        }
        self.settled = true;
        let terms = self.terms();
        if !self.remembered.is(&terms) {
            self.remember(terms).await;
        }
        self.registry.settle();
    }

    /// Remembers the new set, then puts it in force: after a crash in between it is loaded again anyway. A first set is not
    /// remembered before it is whole: what was still missing from it would keep nobody waiting after the next start.
    async fn publish(&mut self) {
        let entries: Vec<Entry> = self.known.values().map(|known| known.entry.clone()).collect();
        let before = self.registry.entries();
        let changed = in_force(&entries) != in_force(&before);
        let terms = self.terms();
        if (self.settled || !self.remembered.is_blank()) && !self.remembered.is(&terms) {
            self.remember(terms).await;
        }
        self.registry.publish(entries, changed);
    }

    /// What is to be remembered: what is in force, and during the first loads what was in force when the service ended.
    fn terms(&self) -> BTreeMap<String, Terms> {
        let terms = self.known.values().filter_map(|Known { entry, .. }| match &entry.in_force {
            Some(plugin) => Some(plugin.0.terms.clone()),
            None if entry.loading.is_some() => self.remembered.get(&entry.name).cloned(),
            None => None,
        });
        terms.map(|terms| (terms.name.clone(), terms)).collect()
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
