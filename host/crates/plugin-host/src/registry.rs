//! What is in force right now. Written by the loader alone, read by everybody, never held over a call.

use crate::grant::Grants;
use crate::load::{Loading, Places};
use crate::manifest::Manifest;
use crate::plugin::Plugin;
use crate::status::{PluginError, PluginState, PluginStatus};
use std::sync::atomic::Ordering;
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
    pub grants: Grants,
    pub summary: String,
    pub warnings: Vec<String>,
    pub error: Option<PluginError>,
    /// The load that is under way.
    pub loading: Option<Arc<Loading>>,
    pub kept: Places,
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

    /// The first scan is done, and everything that it found is in force or has its error.
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
    pub fn status(&self) -> PluginStatus {
        let terms = self.in_force.as_ref().map(|plugin| &plugin.0.terms);
        let runs = self.in_force.as_ref().is_some_and(Plugin::is_loaded);
        let state = match &self.loading {
            Some(loading) if loading.compiling.load(Ordering::Relaxed) => PluginState::Compiling,
            Some(_) if !runs => PluginState::Loading,
            _ if runs => PluginState::InForce,
            _ if self.error.is_some() => PluginState::Failed,
            _ => PluginState::Disabled,
        };
        let stats = &self.kept.stats;
        PluginStatus {
            name: self.name.clone(),
            state,
            hooks: terms.map_or_else(Vec::new, |terms| terms.hooks.clone()),
            version: terms.map(|terms| terms.version.clone()),
            sha256: terms.map(|terms| terms.sha256.clone()),
            summary: self.summary.clone(),
            grants: self.grants.clone(),
            mode: terms.map_or(self.manifest.mode, |terms| terms.mode),
            order: terms.map_or(self.manifest.order, |terms| terms.order),
            stages: terms.map_or_else(|| self.manifest.stages.clone(), |terms| terms.stages.clone()),
            profiles: terms.map_or_else(|| self.manifest.profiles.clone(), |terms| terms.profiles.clone()),
            on_error: terms.map_or(self.manifest.on_error, |terms| terms.on_error),
            error: self.error.clone(),
            warnings: self.warnings.clone(),
            calls: stats.calls(),
            failures: stats.failures(),
            seconds: stats.seconds(),
            p50_seconds: stats.percentile(0.5),
            p99_seconds: stats.percentile(0.99),
        }
    }
}
