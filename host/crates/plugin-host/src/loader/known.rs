//! What the loader knows of one plugin, and what becomes of it when it does not load.

use super::wanted::Wanted;
use crate::load::{Kept, LoadError, Loading, NewPlugin};
use crate::manifest::Manifest;
use crate::plugin::{Body, Inner, Plugin, Terms};
use crate::registry::Entry;
use crate::remembered::Remembered;
use crate::status::PluginError;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// One plugin beside what is published of it.
pub struct Known {
    pub entry: Entry,
    /// What was last loaded, or tried.
    pub tried: Option<Wanted>,
    pub load: Option<AbortHandle>,
    /// Its files are gone.
    pub leaves: bool,
}

impl Known {
    pub fn new(name: &str, kept: Kept) -> Known {
        Known { entry: blank(name, kept), tried: None, load: None, leaves: false }
    }

    /// Whether this is the load that is under way.
    pub fn awaits(&self, loading: &Arc<Loading>) -> bool {
        self.entry.loading.as_ref().is_some_and(|awaited| Arc::ptr_eq(awaited, loading))
    }

    /// Ends the load that is under way.
    pub fn stop_loading(&mut self) {
        if let Some(load) = self.load.take() {
            load.abort();
        }
        self.entry.loading = None;
    }

    /// Its files are gone: what is in force stays until the loader lets it go.
    pub fn leave(&mut self) {
        self.stop_loading();
        self.tried = None;
        self.leaves = true;
    }

    /// Whether it is being loaded and its code may be in the cache.
    pub fn may_come_at_once(&self) -> bool {
        self.load.is_some() && self.entry.loading.as_ref().is_some_and(|loading| !loading.needs_compiler())
    }

    /// Puts a new version in the place of the old one.
    pub fn succeed(&mut self, new: NewPlugin) {
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
        self.entry.kept.stats.record_load(true);
        self.entry.in_force = Some(new.plugin);
        self.entry.facts = new.facts;
        self.entry.error = None;
    }

    /// Shows the error. What is in force stays; what was in force before a restart fails from now on in every call, by the newest
    /// `manifest`, if that could be read.
    pub fn fail(&mut self, error: &LoadError, manifest: Option<&Manifest>, remembered: &Remembered) {
        let error = PluginError::from(error);
        tracing::error!(
            plugin = self.entry.name,
            in_force = self.entry.in_force.is_some(),
            advice = error.advice,
            "plugin does not load: {}",
            error.message
        );
        self.entry.kept.stats.record_load(false);
        self.breaks(&error.message, manifest, remembered);
        self.entry.error = Some(error);
    }

    /// If the plugin was in force when the service ended and has not been loaded since, its calls fail from now on.
    pub fn breaks(&mut self, message: &str, manifest: Option<&Manifest>, remembered: &Remembered) {
        let entry = &mut self.entry;
        let never_in_force = entry.in_force.as_ref().is_none_or(|plugin| !plugin.is_loaded());
        if never_in_force && let Some(terms) = remembered.get(&entry.name) {
            let terms = manifest.map_or_else(|| terms.clone(), |manifest| terms.under(manifest));
            let body = Body::Broken(message.to_owned());
            entry.in_force = Some(Plugin(Arc::new(Inner { terms, stats: entry.kept.stats.clone(), body })));
        }
    }

    /// Takes it out of force: its manifest says so.
    pub fn disable(&mut self, manifest: Arc<Manifest>) {
        tracing::info!(plugin = self.entry.name, "plugin disabled by its manifest");
        self.entry = Entry { manifest, ..blank(&self.entry.name, self.entry.kept.clone()) };
    }
}

impl Terms {
    /// The same as another manifest has them.
    fn under(&self, manifest: &Manifest) -> Terms {
        Terms {
            order: manifest.order,
            stages: manifest.stages.clone(),
            profiles: manifest.profiles.clone(),
            mode: manifest.mode,
            on_error: manifest.on_error,
            ..self.clone()
        }
    }
}

fn blank(name: &str, kept: Kept) -> Entry {
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
