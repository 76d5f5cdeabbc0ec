//! What has come out of a judgement so far, and what a plugin's failure does to it.

use std::time::Duration;

use serde_json::{Map, Value};
use taxiway_job::{Problem, Reason, Rewrite, Severity, Verdict};
use taxiway_plugin_host::{CallError, FailureKind, Hook, Mode, OnError, Stage};

use super::hooks::Guest;
use super::{PluginFailure, Refusal};

/// The code of problems that tell of a plugin's failure.
pub(super) const PLUGIN_FAILED: &str = "plugin-failed";

/// The code of problems that tell of a plugin that could not be asked, for all the others that were.
const PLUGIN_BUSY: &str = "plugin-busy";

/// The course of one judgement.
pub(super) struct Course {
    stage: Stage,
    /// What counts, in the order in which it is shown.
    pub(super) problems: Vec<Problem>,
    /// One for each rewriter whose word counts, also when it changed nothing.
    pub(super) rewrites: Vec<Rewrite>,
    /// One for each call.
    pub(super) verdicts: Vec<Verdict>,
    /// Set by the first plugin that failed and wants the job held then.
    pub(super) hold: Option<Reason>,
    /// The first plugin that failed and wants the job refused then.
    failure: Option<PluginFailure>,
    /// The first plugin that had no place for a call just before the start, whatever it wants when it fails.
    unasked: Option<PluginFailure>,
}

impl Course {
    pub(super) fn new(stage: Stage, problems: Vec<Problem>) -> Self {
        Self { stage, problems, rewrites: Vec::new(), verdicts: Vec::new(), hold: None, failure: None, unasked: None }
    }

    /// Whether a plugin failed that has the job refused.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.has_errors() || self.has_failed()
    }

    /// Takes the failure that has the job refused.
    pub(super) fn take_failure(&mut self) -> Option<PluginFailure> {
        self.failure.take()
    }

    /// Takes the plugin that could not be asked and may be later.
    pub(super) fn take_unasked(&mut self) -> Option<PluginFailure> {
        self.unasked.take()
    }

    /// What to answer when the job is refused.
    pub(super) fn refusal(mut self, config: Map<String, Value>) -> Refusal {
        match self.failure.take() {
            // Errors are for good, whatever the failed plugin would have said: the user can begin to mend them.
            Some(PluginFailure { plugin, message, kind, .. }) if self.has_errors() => {
                self.problems.push(failed(plugin, &kind, &message, Severity::Warning))
            }
            Some(failure) => return Refusal::PluginFailed(failure),
            None => {}
        }
        Refusal::Problems { problems: self.problems, config, rewrites: self.rewrites, verdicts: self.verdicts }
    }

    /// Keeps what a plugin said in one call.
    pub(super) fn record(
        &mut self,
        guest: &dyn Guest,
        hook: Hook,
        outcome: &str,
        problems: Vec<Problem>,
        patch: Option<Value>,
        duration: Duration,
    ) {
        let outcome = match guest.mode() {
            Mode::Enforce => outcome.to_owned(),
            Mode::Observe => format!("observed_{outcome}"),
        };
        self.verdicts.push(Verdict {
            plugin: guest.name().to_owned(),
            version: guest.version().to_owned(),
            sha256: guest.sha256().to_owned(),
            stage: self.stage.as_str().to_owned(),
            hook: hook.as_str().to_owned(),
            outcome,
            problems,
            patch,
            duration_seconds: duration.as_secs_f64(),
        });
    }

    /// Keeps that a plugin failed, and does what its manifest wants then. The failure of an observing plugin has no effect.
    pub(super) fn fail(&mut self, guest: &dyn Guest, hook: Hook, error: CallError, duration: Duration) {
        let CallError { plugin, kind, limit, message, on_error, .. } = error;
        let weight = if on_error == OnError::Reject { Severity::Error } else { Severity::Warning };
        let problem = |weight| failed(plugin.clone(), &kind, &message, weight);
        self.record(guest, hook, "failed", vec![problem(weight)], None, duration);
        if guest.mode() == Mode::Observe {
            return;
        }
        if kind == FailureKind::Busy && self.stage == Stage::Launch {
            // Nobody waits for this answer with a submission in hand: it is asked again.
            self.unasked.get_or_insert(PluginFailure { plugin, message, limit, kind });
            return;
        }
        match on_error {
            OnError::Reject => {
                self.failure.get_or_insert(PluginFailure { plugin, message, limit, kind });
            }
            OnError::Ignore => self.problems.push(problem(Severity::Warning)),
            OnError::Hold => {
                let what_happened = kind.what_happened();
                let sentence = format!("plugin `{plugin}` {what_happened} and has the job held then: {message}");
                self.problems.push(problem(Severity::Warning));
                self.hold.get_or_insert(Reason::new("plugin_failed", sentence));
            }
        }
    }
}

fn failed(plugin: String, kind: &FailureKind, message: &str, severity: Severity) -> Problem {
    let code = if *kind == FailureKind::Busy { PLUGIN_BUSY } else { PLUGIN_FAILED };
    Problem {
        plugin,
        severity,
        path: String::new(),
        code: code.to_owned(),
        message: format!("the plugin {}, which says nothing of the job: {message}", kind.what_happened()),
        help: None,
    }
}
