//! What a completion hook is told.

use std::path::Path;

use serde_json::Value;
use taxiway_job::{Job, State};
use taxiway_plugin_host::{End, JobView, OutcomeView};

use crate::admission::job_details;
use crate::api::wire;
use crate::queue::Standing;
use crate::store::{AttemptRecord, Delivery};

/// Bytes of the log that are told: a screen or two, enough for a stack trace.
const LOG_TAIL_BYTES: usize = 8 << 10;

/// The job of a delivery as its plugin sees it.
pub(super) fn job_view(job: &Job, delivery: &Delivery, jobs_dir: &Path) -> JobView {
    JobView {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        attempt: delivery.attempt,
        config: Value::Object(job.config.clone()),
        details: job_details(job.id, &job.spec, delivery.attempt, &job.submitted_by, jobs_dir),
    }
}

/// The end that a delivery tells of. `record` is the attempt's; none when it was never started. `log` is the end of its log,
/// in bytes.
pub(super) fn outcome_view(job: &Job, delivery: &Delivery, record: Option<&AttemptRecord>, log: &[u8]) -> OutcomeView {
    // Since then the job may have begun another attempt; without a record of its own this one can only be the last.
    let last = record.is_none() && job.attempt == delivery.attempt;
    let exit = record.map(|record| record.exit).unwrap_or_default();
    let failure = record.and_then(|record| record.failure.as_ref()).or(job.failure.as_ref().filter(|_| last));
    let finished_at = record.and_then(|record| record.finished_at).or(job.finished_at.filter(|_| last));
    OutcomeView {
        end: match delivery.end {
            State::Completed => End::Completed,
            State::Cancelled => End::Cancelled,
            _ => End::Failed,
        },
        will_retry: delivery.will_retry,
        exit_code: exit.code,
        signal: exit.signal,
        failure: failure.filter(|_| delivery.end == State::Failed).map(|failure| failure.class.as_str().to_owned()),
        started_at_ms: record.and_then(|record| record.started_at).map(milliseconds),
        finished_at_ms: milliseconds(finished_at.unwrap_or(delivery.created_at)),
        log_tail: tail_text(log),
        details: as_the_api_answers(job),
    }
}

fn milliseconds(time: taxiway_job::Time) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(0)
}

fn as_the_api_answers(job: &Job) -> Value {
    let standing = Standing::default();
    serde_json::to_value(wire::Job::new(job, &standing)).unwrap_or_else(|error| {
        tracing::error!(job = %job.id, %error, "a job cannot be written as JSON");
        Value::Null
    })
}

/// The end of a log as text: whole characters, at most [`LOG_TAIL_BYTES`] of them.
fn tail_text(log: &[u8]) -> String {
    // The cut may have gone through a character, of which up to three bytes are left.
    let whole = log.iter().take(3).take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count();
    let text = String::from_utf8_lossy(&log[whole..]);
    // What is not UTF-8 became longer.
    let excess = text.len().saturating_sub(LOG_TAIL_BYTES);
    let start = (excess..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[start..].to_owned()
}

/// The end of an attempt's log, in bytes; empty when there is none.
pub(super) async fn log_tail(jobs_dir: &Path, job: &Job, record: &AttemptRecord) -> Vec<u8> {
    let path = taxiway_launcher::log::path(jobs_dir, job.id, record.launch);
    let read = tokio::task::spawn_blocking({
        let path = path.clone();
        move || taxiway_launcher::log::tail(&path, LOG_TAIL_BYTES)
    });
    match read.await {
        Ok(Ok(tail)) => tail,
        Ok(Err(error)) => {
            // The end is told all the same: it matters more than the last lines of the log.
            tracing::debug!(path = %path.display(), %error, "the end of a log cannot be read");
            Vec::new()
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "reading the end of a log broke off");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_between_characters() {
        assert_eq!(tail_text("ü = 1\n".as_bytes()), "ü = 1\n");
        assert_eq!(tail_text(&"€ 5".as_bytes()[1..]), " 5");
        assert_eq!(tail_text(b""), "");
    }

    #[test]
    fn a_log_that_is_no_text_stays_within_its_bytes() {
        let text = tail_text(&[0xff; LOG_TAIL_BYTES]);
        assert!(text.len() <= LOG_TAIL_BYTES && text.len() > LOG_TAIL_BYTES - 3);
        assert!(text.chars().all(|c| c == char::REPLACEMENT_CHARACTER));
    }
}
