//! From a row to what it holds.
//!
//! What cannot be read of one row, because it is deeper than a reader goes or a disk has damaged it, concerns that row alone.

use rusqlite::Row;
use serde::de::DeserializeOwned;
use taxiway_job::{Exit, Job, JobId, Problem, Severity, Time};

/// The columns that [`job`] reads, and the key of pages.
pub(super) const JOB: &str = "seq, id, state, attempt, spec, config, submitted_config, rewrites, verdicts, warnings, reason, submitted_at,
    queued_at, started_at, finished_at, submitted_by, exit_code, exit_signal, failure, gpu_uuids, usage, handover, progress,
    revision, retries_done, retry_at, submitted_beside, launch_verdicts";

/// Columns without which a job is not what somebody asked for: it neither starts nor is edited.
const VITAL: [&str; 3] = ["config", "submitted_config", "submitted_beside"];

/// A job as far as it can be read: what cannot is empty, and its warnings name it.
pub(super) fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let (mut job, lost) = as_far_as_it_can_be_read(row)?;
    job.warnings.extend(lost.into_iter().map(|Lost { column, why }| {
        let message = format!("its `{column}` cannot be read from the database and is shown empty: {why}");
        let (plugin, code) = ("taxiway".to_owned(), "unreadable".to_owned());
        Problem { plugin, severity: Severity::Warning, path: String::new(), code, message, help: None }
    }));
    Ok(job)
}

/// The same, unless that leaves out part of what it is.
pub(super) fn whole_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let (job, lost) = as_far_as_it_can_be_read(row)?;
    match lost.into_iter().find(|lost| VITAL.contains(&lost.column)) {
        None => Ok(job),
        Some(lost) => Err(unreadable(lost)),
    }
}

/// A column that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("its `{column}`: {why}")]
struct Lost {
    column: &'static str,
    why: String,
}

fn as_far_as_it_can_be_read(row: &Row<'_>) -> rusqlite::Result<(Job, Vec<Lost>)> {
    let mut lost = Vec::new();
    let job = Job {
        id: JobId::from_bytes(row.get("id")?),
        spec: required(row, "spec")?,
        config: or_empty(row, "config", &mut lost),
        submitted_config: or_empty(row, "submitted_config", &mut lost),
        submitted_beside: or_empty(row, "submitted_beside", &mut lost),
        rewrites: or_empty(row, "rewrites", &mut lost),
        verdicts: or_empty(row, "verdicts", &mut lost),
        launch_verdicts: or_empty(row, "launch_verdicts", &mut lost),
        warnings: or_empty(row, "warnings", &mut lost),
        state: parsed(row, "state")?,
        attempt: row.get("attempt")?,
        revision: row.get("revision")?,
        retries_done: row.get("retries_done")?,
        retry_at: time(row, "retry_at")?,
        reason: or_empty(row, "reason", &mut lost),
        submitted_at: Time::from_millis(row.get("submitted_at")?),
        queued_at: Time::from_millis(row.get("queued_at")?),
        started_at: time(row, "started_at")?,
        finished_at: time(row, "finished_at")?,
        submitted_by: row.get("submitted_by")?,
        exit: Exit { code: row.get("exit_code")?, signal: row.get("exit_signal")? },
        failure: or_empty(row, "failure", &mut lost),
        progress: or_empty(row, "progress", &mut lost),
        gpu_uuids: or_empty(row, "gpu_uuids", &mut lost),
        usage: or_empty(row, "usage", &mut lost),
        handover: or_empty(row, "handover", &mut lost),
    };
    Ok((job, lost))
}

/// What a column of JSON holds; what is empty when it holds nothing or cannot be read.
fn or_empty<T: DeserializeOwned + Default>(row: &Row<'_>, column: &'static str, lost: &mut Vec<Lost>) -> T {
    match json(row, column) {
        Ok(value) => value.unwrap_or_default(),
        Err(error) => {
            let why = match error {
                rusqlite::Error::FromSqlConversionFailure(_, _, source) => source.to_string(),
                other => other.to_string(),
            };
            lost.push(Lost { column, why });
            T::default()
        }
    }
}

pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Time>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Time::from_millis))
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    row.get::<_, Option<String>>(column)?.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

pub(super) fn required<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(unreadable)
}

pub(super) fn parsed<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?.parse().map_err(unreadable)
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}
