//! Lists, the queue, and verdicts of dry runs.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taxiway_job::{JobId, Problem, Rewrite, Time};

use super::{GpuSeries, Job};
use crate::queue::Mode;

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// What to send as `cursor` for the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// `GET /jobs/{id}/metrics`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobMetrics {
    /// Whose.
    pub job_id: JobId,
    /// Which attempt's.
    pub attempt: u32,
    /// Where the series begin: when its process was started.
    pub started_at: Option<Time>,
    /// One for each name that was reported.
    pub items: Vec<Series>,
    /// What each of its GPUs measured meanwhile.
    #[serde(default)]
    pub gpus: Vec<GpuSeries>,
    /// Always null: all series are in one answer.
    pub next_cursor: Option<String>,
}

/// One series.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// `progress` (0 to 1), `step`, `epoch`, or the name of a metric of the job.
    pub name: String,
    /// Seconds since the start, and the value.
    pub points: Vec<(f64, f64)>,
}

/// `GET /queue`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueueSummary<'a> {
    /// Whether jobs start.
    pub mode: Mode,
    /// Jobs that are pending, running or cancelling.
    pub running: Vec<Job<'a>>,
    /// How many are queued.
    pub queued: usize,
    /// How many are held.
    pub held: usize,
}

/// The answer to a dry run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict<'a> {
    /// Whether the submission would be accepted.
    pub accepted: bool,
    /// Everything that was found; only errors refuse.
    pub problems: Cow<'a, [Problem]>,
    /// The configuration that the job would run with.
    pub config: Cow<'a, Map<String, Value>>,
    /// What each rewriter would change, in order.
    pub rewrites: Cow<'a, [Rewrite]>,
}

/// `GET /healthz` and `GET /readyz`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health<'a> {
    /// `ok`, or what keeps the service from accepting jobs.
    pub status: Cow<'a, str>,
    /// The service's version.
    pub version: Cow<'a, str>,
}
