//! What a plugin, or Taxiway itself, has to say about a job.

use serde::{Deserialize, Serialize};

/// How much a problem matters. Only an [`Error`](Severity::Error) refuses the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Likely a mistake; kept with the job.
    Warning,
    /// The job must not run.
    Error,
}

/// One thing found in a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Name of the plugin that found it; `taxiway` for the service itself.
    pub plugin: String,
    /// How much it matters.
    pub severity: Severity,
    /// JSON Pointer (RFC 6901) into the rewritten configuration; empty for the job as a whole.
    pub path: String,
    /// Stable and machine-readable, kebab-case.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
    /// What the user can do about it.
    pub help: Option<String>,
}
