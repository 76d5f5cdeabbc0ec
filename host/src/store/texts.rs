//! What rows have as JSON.

use std::fmt;

use serde::Serialize;
use taxiway_job::Job;

use super::StoreError;

/// What a job's row has as JSON. It is written out by whoever submits the job, in a task of theirs: one thread writes for all, and
/// does as little as it can for each.
#[derive(Clone)]
pub struct JobTexts {
    pub(super) spec: String,
    pub(super) config: String,
    pub(super) submitted_config: Option<String>,
    pub(super) submitted_beside: Option<String>,
    pub(super) rewrites: Option<String>,
    pub(super) verdicts: Option<String>,
    pub(super) warnings: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) terms: Option<String>,
}

impl fmt::Debug for JobTexts {
    /// The specification has the secrets of the job's environment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobTexts").finish_non_exhaustive()
    }
}

impl JobTexts {
    /// Those of this job.
    ///
    /// # Errors
    /// When JSON cannot say what it has, which nothing that came as JSON has.
    pub fn of(job: &Job) -> Result<Self, StoreError> {
        Ok(Self {
            spec: serde_json::to_string(&job.spec).map_err(unwritable)?,
            config: serde_json::to_string(&job.config).map_err(unwritable)?,
            submitted_config: json_text(&job.submitted_config)?,
            submitted_beside: json_text(&job.submitted_beside)?,
            rewrites: json_list(&job.rewrites)?,
            verdicts: json_list(&job.verdicts)?,
            warnings: json_list(&job.warnings)?,
            reason: json_text(&job.reason)?,
            terms: json_text(&(!job.spec.terms.are_none()).then_some(&job.spec.terms))?,
        })
    }
}

pub(super) fn json_text<T: Serialize>(value: &Option<T>) -> Result<Option<String>, StoreError> {
    value.as_ref().map(|value| serde_json::to_string(value).map_err(unwritable)).transpose()
}

pub(super) fn json_list<T: Serialize>(list: &[T]) -> Result<Option<String>, StoreError> {
    json_text(&(!list.is_empty()).then_some(list))
}

pub(super) fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Conflict(format!("could not be written as JSON: {error}"))
}
