//! What the receiver reads.

use jiff::Timestamp;
use taxiway_plugin::{Job, Outcome, Value, json};

/// What of the job is told beside its id, name and attempt: who it is, not what it contains. Its configuration,
/// command and environment stay on the machine.
const JOB_FACTS: [&str; 7] = ["external_id", "profile", "labels", "gpus", "submitted_by", "submitted_at", "array_id"];

/// What of its end is told, as the HTTP API words it.
const OUTCOME_FACTS: [&str; 3] = ["progress", "usage", "gpu_uuids"];

/// The whole payload: `type`, `timestamp` and `data`.
pub fn of(job: &Job, outcome: &Outcome, include_log_tail: bool) -> Value {
    let mut summary = json!({"id": job.id, "name": job.name, "attempt": job.attempt});
    for fact in JOB_FACTS {
        // The outcome has the whole job; what the hook was called with fills the gaps.
        summary[fact] = outcome.details.get(fact).or(job.details().get(fact)).cloned().unwrap_or_default();
    }

    let mut end = json!({
        "state": outcome.end.as_str(),
        "will_retry": outcome.will_retry,
        "exit": {"code": outcome.exit_code, "signal": outcome.signal},
        "failure": failure(outcome),
        "started_at": outcome.started_at_ms.and_then(time),
        "finished_at": time(outcome.finished_at_ms),
        "wall_seconds": outcome.started_at_ms.map(|start| seconds_between(start, outcome.finished_at_ms)),
    });
    for fact in OUTCOME_FACTS {
        end[fact] = outcome.details.get(fact).cloned().unwrap_or_default();
    }
    if include_log_tail {
        end["log_tail"] = json!(outcome.log_tail);
    }

    json!({
        "type": format!("job.{}", outcome.end.as_str()),
        "timestamp": time(outcome.finished_at_ms),
        "data": {"job": summary, "outcome": end},
    })
}

/// Class, message and evidence where the server knows them, else the class alone.
fn failure(outcome: &Outcome) -> Value {
    match (&outcome.failure, outcome.details.get("failure")) {
        (_, Some(Value::Object(failure))) => Value::Object(failure.clone()),
        (Some(class), _) => json!({"class": class}),
        (None, _) => Value::Null,
    }
}

/// RFC 3339 with milliseconds, in UTC; `None` past the year 9999.
fn time(millis: u64) -> Option<String> {
    let time = Timestamp::from_millisecond(i64::try_from(millis).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

fn seconds_between(start_ms: u64, end_ms: u64) -> f64 {
    // Exact below 2⁵³ ms, which is 285,000 years.
    end_ms.saturating_sub(start_ms) as f64 / 1000.0
}
