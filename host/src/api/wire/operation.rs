//! What operations on a job may be told, and its explanation.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use taxiway_job::{Failure, Reason, Time, Verdict};

/// `GET /jobs/{id}/explain`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation<'a> {
    /// Why it is where it is.
    pub reason: Option<Cow<'a, Reason>>,
    /// Its place in the line, from 1; null for what is not queued.
    pub position: Option<usize>,
    /// When it will start, by what is known of those before it; null when nothing is.
    pub expected_start_at: Option<Time>,
    /// What each plugin said and changed, at submission and just before the last start.
    pub verdicts: Vec<Cow<'a, Verdict>>,
    /// Why it failed, or why its last attempt did.
    pub failure: Option<Cow<'a, Failure>>,
}

/// `POST /jobs/{id}/requeue`. The body may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requeue {
    /// Out of the line, until it is released.
    pub hold: bool,
}

/// `POST /jobs/{id}/move`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Where to.
    pub to: MoveTo,
}

/// A place in the line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveTo {
    /// Before all others.
    Front,
    /// Behind all others.
    Back,
    /// Just before the queued job with this id.
    Before(String),
    /// To this position, from 1; one beyond the last is the last.
    Position(NonZeroUsize),
}
