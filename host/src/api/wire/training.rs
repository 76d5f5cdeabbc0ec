//! The bodies of `/api/training/*`: what clients of the FastAPI `training_server.py` send and expect.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use taxiway_job::{Problem, State, Time};

/// `POST /api/training/execute`. Fields that are not here are ignored.
#[derive(Debug, Deserialize)]
pub struct Execute<'a> {
    /// The training configuration.
    pub config: Map<String, Value>,
    /// The client's own id of the job.
    #[serde(default)]
    pub execution_id: Option<String>,
    /// For whom; kept as the label `user_id`. Servers before this one took text and numbers alike.
    #[serde(default)]
    pub user_id: Option<Value>,
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// Put into the configuration.
    #[serde(default)]
    pub dataset_path: Option<String>,
    /// Stored as a file of the job, whose path is put into the configuration as `dataset_path`.
    #[serde(default, borrow)]
    pub dataset_content: Option<Cow<'a, str>>,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Executed {
    /// The `execution_id`, or the job's id when there was none.
    pub job_id: String,
    /// See [`status`].
    pub status: Cow<'static, str>,
    /// Ends in `(position: N)`.
    pub message: String,
}

/// A refusal. `detail`, `error` and `message` are the same, because clients read any of the three.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal<'a> {
    /// What was wrong.
    pub detail: Cow<'a, str>,
    /// The same.
    pub error: Cow<'a, str>,
    /// The same.
    pub message: Cow<'a, str>,
    /// Stable and machine-readable.
    pub code: Cow<'a, str>,
    /// Everything that is wrong with the configuration.
    pub problems: Cow<'a, [Problem]>,
}

/// `GET /api/training/queue`.
#[derive(Debug, Serialize)]
pub struct Queue {
    /// How many run.
    pub running_count: usize,
    /// How many wait.
    pub queued_count: usize,
    /// Those that run.
    pub running_jobs: Vec<Running>,
    /// Those that wait, the next to start first.
    pub queued_jobs: Vec<Waiting>,
    /// Whether jobs start.
    pub queue_active: bool,
}

/// A job that runs.
#[derive(Debug, Serialize)]
pub struct Running {
    /// See [`Executed::job_id`].
    pub job_id: String,
    /// For people.
    pub name: String,
    /// From 0 to 100.
    pub progress: f64,
    /// 0 when the job does not say.
    pub current_epoch: Number,
    /// 0 when the job does not say.
    pub total_epochs: Number,
}

/// A job that waits.
#[derive(Debug, Serialize)]
pub struct Waiting {
    /// See [`Executed::job_id`].
    pub job_id: String,
    /// For people.
    pub name: String,
    /// From 1.
    pub position: usize,
    /// `queued`.
    pub status: &'static str,
}

/// `GET /api/training/status/{job_id}`. What the job does not say is null or 0.
#[derive(Debug, Serialize)]
pub struct Status {
    /// See [`Executed::job_id`].
    pub job_id: String,
    /// See [`status`].
    pub status: &'static str,
    /// For people.
    pub name: String,
    /// From 0 to 100.
    pub progress: f64,
    /// Epochs begun or done.
    pub current_epoch: Number,
    /// Epochs in all.
    pub total_epochs: Number,
    /// Steps done.
    pub current_step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Its place in the line, from 1.
    pub queue_position: Option<usize>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// When its process was started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub completed_at: Option<Time>,
    /// When it last changed its state.
    pub updated_at: Time,
    /// Its process, while it runs.
    pub process_pid: Option<i32>,
}

/// `GET /api/training/logs/{job_id}`.
#[derive(Debug, Serialize)]
pub struct Logs {
    /// See [`Executed::job_id`].
    pub job_id: String,
    /// Lines, without their ends.
    pub logs: Vec<String>,
    /// Lines in all.
    pub total_lines: usize,
    /// The first line answered; negative counts from the end.
    pub offset: i64,
    /// The most lines.
    pub limit: usize,
}

/// `POST /api/training/cancel/{job_id}`.
#[derive(Debug, Serialize)]
pub struct Cancelled {
    /// Whether it is or will be cancelled.
    pub success: bool,
    /// As it was asked for.
    pub job_id: String,
    /// What it was; null when there is no such job.
    pub previous_status: Option<&'static str>,
    /// A sentence for a person.
    pub message: String,
}

/// `POST /api/training/pause/{job_id}` and `resume/{job_id}`.
#[derive(Debug, Serialize)]
pub struct Switched {
    /// Whether it is or will be so.
    pub success: bool,
    /// As it was asked for.
    pub job_id: String,
    /// A sentence for a person.
    pub message: String,
    /// When it was paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<Time>,
}

/// `POST /api/training/{job_id}/force-start`.
#[derive(Debug, Serialize)]
pub struct Forced {
    /// Whether it is at the front of the line, or has started already.
    pub success: bool,
    /// As it was asked for.
    pub job_id: String,
    /// Its place in the line, from 1; null once it has started.
    pub queue_position: Option<usize>,
    /// A sentence for a person.
    pub message: String,
}

/// `GET /health`.
#[derive(Debug, Serialize)]
pub struct Health {
    /// `healthy`
    pub status: &'static str,
    /// `taxiway`
    pub service: &'static str,
    /// The service's version.
    pub version: &'static str,
    /// Whether the queue has GPUs to give.
    pub gpu_available: bool,
    /// One entry for each.
    pub gpu_info: Vec<Value>,
}

/// Epochs as that server has them: a whole number as an integer, and 0 for none.
#[must_use]
pub fn epochs(epochs: Option<f64>) -> Number {
    let epochs = epochs.unwrap_or(0.0);
    // 2^53: up to there, every whole number of a float is exact.
    if epochs.fract() == 0.0 && epochs.abs() < 9_007_199_254_740_992.0 {
        Number::from(epochs as i64)
    } else {
        Number::from_f64(epochs).unwrap_or_else(|| Number::from(0))
    }
}

/// A state in the words of that server.
#[must_use]
pub fn status(state: State) -> &'static str {
    match state {
        State::Held => "paused",
        State::Cancelling => "running",
        other => other.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_epochs_are_integers() {
        let written = |value| epochs(value).to_string();
        assert_eq!([written(None), written(Some(3.0)), written(Some(2.5))], ["0", "3", "2.5"]);
        assert_eq!(written(Some(f64::NAN)), "0");
    }
}
