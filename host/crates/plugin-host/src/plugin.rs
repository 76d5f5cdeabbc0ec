//! One loaded version of a plugin, as the service holds it while it calls.

use crate::apart::Steps;
use crate::bindings;
use crate::egress::Policy;
use crate::grant::variable::AllowedVariable;
use crate::limits::Limits;
use crate::places::Places;
use crate::runtime::Runtime;
use crate::secret::Secrets;
use crate::state::{Room, State};
use crate::stats::Stats;
use crate::view::{Hook, Mode, OnError, Stage};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One version of a plugin that is in force. Calls that were begun finish on it also when another has taken its place.
#[derive(Clone)]
pub struct Plugin(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub terms: Terms,
    pub stats: Arc<Stats>,
    pub body: Body,
}

/// What the service must know of a plugin to call it, or to refuse in its name. Remembered over restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub name: String,
    pub version: String,
    pub sha256: String,
    pub hooks: Vec<Hook>,
    pub order: i64,
    pub stages: Vec<Stage>,
    pub profiles: Option<Vec<String>>,
    pub mode: Mode,
    pub on_error: OnError,
}

pub(crate) enum Body {
    /// Ready to be called.
    Loaded(Box<Loaded>),
    /// Was in force and cannot be loaded any more, for this reason.
    Broken(String),
}

pub(crate) struct Loaded {
    pub runtime: Arc<Runtime>,
    pub hooks: Hooks,
    pub timeout: Timeouts,
    pub room: Room,
    pub settings: Arc<str>,
    pub secrets: Arc<Secrets>,
    pub policy: Arc<Policy>,
    pub read: Vec<PathBuf>,
    pub env: Vec<AllowedVariable>,
    /// Places for its calls.
    pub places: Places,
    /// What its calls have shown of their steps.
    pub steps: Arc<Steps>,
}

#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    pub answer: Duration,
    pub complete: Duration,
}

impl Timeouts {
    pub fn new(limits: &Limits, own: Option<Duration>) -> Timeouts {
        Timeouts { answer: own.unwrap_or(limits.timeout), complete: own.unwrap_or(limits.complete_timeout) }
    }
}

/// The hooks that the component exports, linked and type-checked.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub metadata: Option<bindings::metadata::MetadataHookPre<State>>,
    pub validate: Option<bindings::validate::ValidateHookPre<State>>,
    pub rewrite: Option<bindings::rewrite::RewriteHookPre<State>>,
    pub complete: Option<bindings::complete::CompleteHookPre<State>>,
}

impl Hooks {
    /// The names of those that there are.
    pub fn names(&self) -> Vec<Hook> {
        let there = [
            self.validate.is_some().then_some(Hook::Validate),
            self.rewrite.is_some().then_some(Hook::Rewrite),
            self.complete.is_some().then_some(Hook::Complete),
        ];
        there.into_iter().flatten().collect()
    }
}

impl Plugin {
    /// The name of its manifest, or else of its file.
    pub fn name(&self) -> &str {
        &self.0.terms.name
    }

    /// The version that its `metadata` gives; without that the first twelve digits of its digest.
    pub fn version(&self) -> &str {
        &self.0.terms.version
    }

    /// The SHA-256 of the component, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.0.terms.sha256
    }

    /// Whether its verdicts count.
    pub fn mode(&self) -> Mode {
        self.0.terms.mode
    }

    /// What its failure means for the job.
    pub fn on_error(&self) -> OnError {
        self.0.terms.on_error
    }

    /// Rewriters run in this order, lower first, then by name.
    pub fn order(&self) -> i64 {
        self.0.terms.order
    }

    /// The profiles whose jobs it sees; none: all.
    pub fn profiles(&self) -> Option<&[String]> {
        self.0.terms.profiles.as_deref()
    }

    /// The hooks that it has.
    pub fn hooks(&self) -> &[Hook] {
        &self.0.terms.hooks
    }

    /// False when it was in force and cannot be loaded any more: then every call fails.
    pub fn is_loaded(&self) -> bool {
        self.loaded().is_some()
    }

    pub(crate) fn loaded(&self) -> Option<&Loaded> {
        match &self.0.body {
            Body::Loaded(loaded) => Some(loaded),
            Body::Broken(_) => None,
        }
    }

    /// Whether it is called for this hook, at this stage, for jobs of this profile. The stage counts for validators
    /// only, and not when none is given.
    pub fn concerns(&self, hook: Hook, stage: Option<Stage>, profile: Option<&str>) -> bool {
        let terms = &self.0.terms;
        let at_stage = hook != Hook::Validate || stage.is_none_or(|stage| terms.stages.contains(&stage));
        let for_profile = match &terms.profiles {
            None => true,
            Some(names) => profile.is_some_and(|profile| names.iter().any(|name| name == profile)),
        };
        terms.hooks.contains(&hook) && at_stage && for_profile
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Plugin").field(&self.0.terms).finish()
    }
}
