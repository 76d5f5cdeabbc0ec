//! An error as a document (RFC 9457).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taxiway_job::{Problem, State};

/// `application/problem+json`: a refusal, with what a script and what a person needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProblemDocument {
    /// `urn:taxiway:problem:CODE`
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong with this request, and what to do about it.
    pub detail: String,
    /// Stable and machine-readable, kebab-case.
    pub code: String,
    /// Everything that is wrong with a submission. Paths point into the rewritten configuration; with the code
    /// `invalid-submission` into the submission itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// The plugin that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// The limit that it hit, for people: `timeout of 2 s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The job's state, when that forbids the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What became of each submission of a batch that was refused as a whole; of an array, the first members that were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Value>,
}
