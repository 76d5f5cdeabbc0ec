//! What is in force right now. Written by the loader alone, read by everybody, never held over a call.

use crate::load::{Facts, Kept, Loading};
use crate::manifest::Manifest;
use crate::plugin::Plugin;
use crate::stats::PluginMetrics;
use crate::status::{PluginError, PluginState, PluginStatus};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// A plugin as the loader last left it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub name: String,
    /// The newest manifest that could be read.
    pub manifest: Arc<Manifest>,
    /// What is called, if anything.
    pub in_force: Option<Plugin>,
    /// Of the version in force.
    pub facts: Facts,
    pub error: Option<PluginError>,
    /// Why the folder itself cannot be used right now.
    pub folder_error: Option<PluginError>,
    /// The load that is under way.
    pub loading: Option<Arc<Loading>>,
    pub kept: Kept,
}

/// The entries, published as a whole.
pub(crate) struct Registry {
    entries: RwLock<Arc<Vec<Entry>>>,
    generation: watch::Sender<u64>,
    statuses: watch::Sender<u64>,
    settled: watch::Sender<bool>,
}

impl Registry {
    pub fn new() -> Registry {
        Registry {
            entries: RwLock::default(),
            generation: watch::Sender::new(0),
            statuses: watch::Sender::new(0),
            settled: watch::Sender::new(false),
        }
    }

    /// Puts new entries in the place of the old ones, at once.
    pub fn publish(&self, entries: Vec<Entry>, in_force_changed: bool) {
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
        if in_force_changed {
            self.generation.send_modify(|generation| *generation += 1);
        }
        self.statuses.send_modify(|count| *count += 1);
    }

    /// Something that is shown of an entry has changed without a new entry.
    pub fn touch(&self) {
        self.statuses.send_modify(|count| *count += 1);
    }

    /// What submissions wait for is in force or has its error.
    pub fn settle(&self) {
        self.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
    }

    pub fn entries(&self) -> Arc<Vec<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub fn statuses(&self) -> watch::Receiver<u64> {
        self.statuses.subscribe()
    }

    pub fn settled(&self) -> watch::Receiver<bool> {
        self.settled.subscribe()
    }
}

impl Entry {
    pub fn state(&self) -> PluginState {
        let runs = self.in_force.as_ref().is_some_and(Plugin::is_loaded);
        match &self.loading {
            Some(loading) if loading.is_compiling() => PluginState::Compiling,
            Some(_) if !runs => PluginState::Loading,
            _ if runs => PluginState::InForce,
            _ if self.error.is_some() || self.in_force.is_some() && self.folder_error.is_some() => PluginState::Failed,
            // In force when the service ended, and not yet looked at since.
            _ if self.in_force.is_some() => PluginState::Loading,
            _ => PluginState::Disabled,
        }
    }

    pub fn metrics(&self) -> PluginMetrics {
        self.kept.stats.metrics(&self.name, self.state())
    }

    pub fn status(&self) -> PluginStatus {
        let terms = self.in_force.as_ref().map(|plugin| &plugin.0.terms);
        let loaded = self.in_force.as_ref().and_then(Plugin::loaded);
        let (manifest, facts, stats) = (&self.manifest, &self.facts, &self.kept.stats);
        let bundled = manifest.bundled.clone();
        let file = || manifest.component.as_ref().map_or_else(|| format!("{}.wasm", self.name), |file| file.0.clone());
        PluginStatus {
            name: self.name.clone(),
            component: bundled.is_none().then(file),
            bundled,
            state: self.state(),
            hooks: terms.map_or_else(Vec::new, |terms| terms.hooks.clone()),
            version: terms.map(|terms| terms.version.clone()),
            sha256: terms.map(|terms| terms.sha256.clone()),
            summary: facts.summary.clone(),
            grants: facts.grants.clone(),
            mode: terms.map_or(manifest.mode, |terms| terms.mode),
            order: terms.map_or(manifest.order, |terms| terms.order),
            stages: terms.map_or_else(|| manifest.stages.clone(), |terms| terms.stages.clone()),
            profiles: terms.map_or_else(|| manifest.profiles.clone(), |terms| terms.profiles.clone()),
            on_error: terms.map_or(manifest.on_error, |terms| terms.on_error),
            timeout_seconds: loaded.map(|loaded| loaded.timeout.answer.as_secs_f64()),
            memory_bytes: loaded.map(|loaded| loaded.room.memory),
            settings_schema: facts.settings_schema.clone(),
            load_seconds: loaded.map(|_| facts.load.as_secs_f64()),
            compile_seconds: loaded.and(facts.compile).map(|took| took.as_secs_f64()),
            error: self.error.clone().or_else(|| self.folder_error.clone()),
            warnings: facts.warnings.clone(),
            calls: stats.calls(),
            failures: stats.failures(),
            last_failure: stats.last_failure(),
            seconds: stats.seconds(),
            p50_seconds: stats.percentile(0.5),
            p99_seconds: stats.percentile(0.99),
        }
    }
}
