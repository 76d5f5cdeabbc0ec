//! The rows that a submission becomes.

use rusqlite::{CachedStatement, Connection, params};
use serde_json::Map;

use super::apply::{INSERT_AUDIT, INSERT_EVENT, Told, audit_by, event_by};
use super::{NewJob, StoreError};

const INSERT_JOB: &str = "
    INSERT INTO jobs (id, state, priority, rank, gpus, attempt, name, profile, external_id, body, spec, config,
        submitted_config, rewrites, verdicts, warnings, reason, submitted_at, queued_at, submitted_by, terms, submitted_beside,
        array_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)";

/// The statements that a submission takes.
pub(super) struct Inserts<'a> {
    job: CachedStatement<'a>,
    event: CachedStatement<'a>,
    audit: CachedStatement<'a>,
}

impl<'a> Inserts<'a> {
    pub(super) fn new(db: &'a Connection) -> Result<Self, StoreError> {
        Ok(Self {
            job: db.prepare_cached(INSERT_JOB)?,
            event: db.prepare_cached(INSERT_EVENT)?,
            audit: db.prepare_cached(INSERT_AUDIT)?,
        })
    }

    /// Writes the job's row, its event and its line of the audit trail.
    pub(super) fn submit(&mut self, db: &Connection, new: &NewJob, told: &mut Told) -> Result<(), StoreError> {
        let NewJob { job, texts, rank, body } = new;
        self.job.execute(params![
            job.id.as_bytes(),
            job.state.as_str(),
            job.spec.priority,
            rank,
            job.spec.gpus,
            job.attempt,
            job.spec.name,
            job.spec.profile,
            job.spec.external_id,
            body.0,
            texts.spec,
            texts.config,
            texts.submitted_config,
            texts.rewrites,
            texts.verdicts,
            texts.warnings,
            texts.reason,
            job.submitted_at.as_millis(),
            job.queued_at.as_millis(),
            job.submitted_by,
            texts.terms,
            texts.submitted_beside,
            job.spec.array.as_ref().map(|member| member.id.as_bytes()),
        ])?;
        let kind = format!("job.{}", job.state);
        event_by(&mut self.event, db, told, job.submitted_at, kind, Some(job.id), Map::new())?;
        audit_by(&mut self.audit, job.submitted_at, &job.submitted_by, "submit", Some(job.id))
    }
}
