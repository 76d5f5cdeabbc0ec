//! What is kept of the past: attempts, hand-overs, deliveries, the audit trail.

use serde::{Deserialize, Serialize};
use taxiway_job::{Exit, Failure, Handover, JobId, LaunchId, State, Time, Usage};

use crate::store::{AttemptRecord, AuditRecord, Delivery, DeliveryStatus, HandoverRecord};

/// One attempt of a job that was started, or failed before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number.
    pub attempt: u32,
    /// The launch's name.
    pub launch_id: LaunchId,
    /// How it ended; null while it is under way.
    pub end_state: Option<State>,
    /// The exit status.
    pub exit: Exit,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What it used.
    pub usage: Option<Usage>,
    /// The hand-over to it.
    pub handover: Option<Handover>,
    /// The GPUs it had.
    pub gpu_uuids: Vec<String>,
    /// The process.
    pub pid: Option<i32>,
    /// When its process was started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
}

impl From<AttemptRecord> for Attempt {
    fn from(record: AttemptRecord) -> Self {
        Self {
            attempt: record.attempt,
            launch_id: record.launch,
            end_state: record.end_state,
            exit: record.exit,
            failure: record.failure,
            usage: record.usage,
            handover: record.handover,
            gpu_uuids: record.gpu_uuids,
            pid: record.pid,
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }
}

/// One hand-over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandoverItem {
    /// The job that started.
    pub job_id: JobId,
    /// Its attempt.
    pub attempt: u32,
    /// When its process was started.
    pub at: Time,
    /// How long the slot was idle, and its parts.
    pub handover: Handover,
}

impl From<HandoverRecord> for HandoverItem {
    fn from(record: HandoverRecord) -> Self {
        Self { job_id: record.job, attempt: record.attempt, at: record.at, handover: record.handover }
    }
}

/// One delivery.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryItem {
    /// Its id, the same over all its tries.
    pub id: String,
    /// The plugin that hears of it.
    pub plugin: String,
    /// Whose end it tells of.
    pub job_id: JobId,
    /// Which attempt's.
    pub attempt: u32,
    /// The end it tells of.
    pub end_state: State,
    /// Whether another attempt follows.
    pub will_retry: bool,
    /// `waiting`, `delivered` or `dead`.
    pub status: DeliveryStatus,
    /// Tries made.
    pub tries: u32,
    /// When the next try is due; null when none is.
    pub next_at: Option<Time>,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// When the end was stored.
    pub created_at: Time,
}

impl From<Delivery> for DeliveryItem {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id.to_string(),
            plugin: delivery.plugin,
            job_id: delivery.job,
            attempt: delivery.attempt,
            end_state: delivery.end,
            will_retry: delivery.will_retry,
            status: delivery.status,
            tries: delivery.tries,
            next_at: (delivery.status == DeliveryStatus::Waiting).then_some(delivery.next_at),
            last_error: delivery.last_error,
            created_at: delivery.created_at,
        }
    }
}

/// Who did what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditItem {
    /// Grows with every row.
    pub id: i64,
    /// When.
    pub at: Time,
    /// Name of the token, or the user of the unix socket.
    pub actor: String,
    /// What.
    pub action: String,
    /// The job concerned.
    pub job_id: Option<JobId>,
}

impl From<AuditRecord> for AuditItem {
    fn from(record: AuditRecord) -> Self {
        Self { id: record.id, at: record.at, actor: record.actor, action: record.action, job_id: record.job }
    }
}
