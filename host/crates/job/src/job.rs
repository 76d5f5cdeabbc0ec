//! A job and everything that has happened to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{EnvValue, Exit, Failure, Handover, JobId, JobSpec, Problem, Progress, State, Time, Usage};

/// A job as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// The configuration that it runs with.
    pub config: Map<String, Value>,
    /// The configuration as it was submitted; none when no rewriter changed it.
    pub submitted_config: Option<Map<String, Value>>,
    /// What rewriters change beside the configuration, as it was submitted; none when no rewriter changed it.
    pub submitted_beside: Option<Beside>,
    /// What each rewriter changed, in order.
    pub rewrites: Vec<Rewrite>,
    /// What each plugin said of it at submission, or at its last edit.
    pub verdicts: Vec<Verdict>,
    /// What each plugin said of it just before its last start.
    pub launch_verdicts: Vec<Verdict>,
    /// Problems that did not refuse it.
    pub warnings: Vec<Problem>,
    /// Where it is in its life.
    pub state: State,
    /// The present attempt; 1 from the submission on.
    pub attempt: u32,
    /// Grows with every edit.
    pub revision: u32,
    /// Automatic retries since somebody last asked for it to run.
    pub retries_done: u32,
    /// The next attempt comes no earlier than this.
    pub retry_at: Option<Time>,
    /// Why it is where it is, when that was decided once and for all (why it is held, why it was cancelled). Why a
    /// queued job waits is not here: the queue knows it.
    pub reason: Option<Reason>,
    /// When it was accepted.
    pub submitted_at: Time,
    /// When it last entered the line.
    pub queued_at: Time,
    /// When its process was started, in the present attempt.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// Name of the token, or the user of the unix socket.
    pub submitted_by: String,
    /// How its process ended.
    pub exit: Exit,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The last it said of how far it is.
    pub progress: Option<Progress>,
    /// The GPUs it has or had.
    pub gpu_uuids: Vec<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// The hand-over to it.
    pub handover: Option<Handover>,
}

/// A machine-readable code and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable, snake_case: `waiting_for_gpu`, `behind`, `paused` …
    pub code: String,
    /// The sentence.
    pub message: String,
}

impl Reason {
    /// A reason with this code and sentence.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// What rewriters may change of a job beside its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Environment variables.
    pub env: BTreeMap<String, EnvValue>,
}

/// What one rewriter did to a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The plugin's name.
    pub plugin: String,
    /// Its version, as it says itself.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub sha256: String,
    /// RFC 6902 operations from the previous configuration to the next.
    pub patch: Value,
    /// Seconds the call took.
    pub duration_seconds: f64,
}

/// What one plugin said of a job in one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The plugin's name.
    pub plugin: String,
    /// Its version, as it says itself.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub sha256: String,
    /// `submit` or `launch`.
    pub stage: String,
    /// `rewrite` or `validate`.
    pub hook: String,
    /// `accepted`, `rejected`, `changed`, `unchanged`, `failed`; what an observing plugin said is marked `observed`.
    pub outcome: String,
    /// What it found.
    pub problems: Vec<Problem>,
    /// What it changed (RFC 6902).
    pub patch: Option<Value>,
    /// Seconds the call took.
    pub duration_seconds: f64,
}
