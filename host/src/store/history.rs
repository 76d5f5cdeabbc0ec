//! What is kept of the past: hand-overs, deliveries, the audit trail; and letting go of it.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};
use taxiway_job::{Handover, JobId, LaunchId, Progress, Time};

use super::apply::{Told, audit, event};
use super::texts::{json_text, unwritable};
use super::{Delivery, DeliveryId, DeliveryStatus, Page, Store, StoreError, reader, row};

/// Rows of each table that one unit removes: few enough for nobody to notice the wait.
const AT_A_TIME: usize = 500;

/// A hand-over, and to which job.
#[derive(Debug, Clone)]
pub struct HandoverRecord {
    /// The job that started.
    pub job: JobId,
    /// Its attempt.
    pub attempt: u32,
    /// When its process was started.
    pub at: Time,
    /// The hand-over.
    pub handover: Handover,
}

/// Who did what.
#[derive(Debug, Clone)]
pub struct AuditRecord {
    /// Grows with every row.
    pub id: i64,
    /// When.
    pub at: Time,
    /// Name of the token, or the user of the unix socket.
    pub actor: String,
    /// What.
    pub action: String,
    /// The job concerned.
    pub job: Option<JobId>,
}

/// Which deliveries a list holds.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// That stand like this.
    pub status: Option<DeliveryStatus>,
    /// Of this job.
    pub job: Option<JobId>,
    /// Made before this one: the last of the page before.
    pub before: Option<(Time, DeliveryId)>,
    /// The most.
    pub limit: usize,
}

/// A job that has ended, with what there is on disk of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedJob {
    /// Which.
    pub id: JobId,
    /// When it ended.
    pub finished_at: Time,
    /// Its starts.
    pub launches: Vec<LaunchId>,
}

/// A job that was removed, with what there may still be of it on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedJob {
    /// Which.
    pub id: JobId,
    /// Its starts.
    pub launches: Vec<LaunchId>,
}

/// What has ended and when, as far as the next look at it depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oldest {
    /// The end of the job that ended first.
    pub job: Option<Time>,
    /// The end of the first job whose logs are still there.
    pub logs: Option<Time>,
    /// The first event that may be forgotten: the last never is.
    pub event: Option<Time>,
}

impl Store {
    /// The last hand-overs, the latest first. Those of jobs that were removed are not there, though what names their files may be.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn handovers(&self, limit: usize) -> Result<Vec<HandoverRecord>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT job, attempt, started_at, handover FROM attempts WHERE handover IS NOT NULL AND started_at IS NOT NULL
                   AND job NOT IN (SELECT job FROM removed_jobs)
                 ORDER BY started_at DESC LIMIT ?1",
            )?;
            let rows = statement.query_map(params![limit as i64], |row| {
                Ok(HandoverRecord {
                    job: JobId::from_bytes(row.get("job")?),
                    attempt: row.get("attempt")?,
                    at: Time::from_millis(row.get("started_at")?),
                    handover: row::required(row, "handover")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Deliveries, the latest first, and whether there are more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn deliveries(&self, filter: DeliveryFilter) -> Result<(Vec<Delivery>, bool), StoreError> {
        self.read(move |db| {
            let (at, id) = match filter.before {
                Some((at, DeliveryId(id))) => (at.as_millis(), id.into_bytes().to_vec()),
                None => (i64::MAX, Vec::new()),
            };
            let mut statement = db.prepare_cached(&format!(
                "SELECT {} FROM deliveries
                 WHERE (created_at, id) < (?1, ?2) AND (?3 IS NULL OR status = ?3) AND (?4 IS NULL OR job = ?4)
                 ORDER BY created_at DESC, id DESC LIMIT ?5",
                reader::DELIVERY
            ))?;
            let job = filter.job.map(|job| job.as_bytes().to_vec());
            let status = filter.status.map(DeliveryStatus::as_str);
            let rows = statement.query_map(params![at, id, status, job, filter.limit as i64 + 1], reader::delivery)?;
            let mut found = rows.collect::<Result<Vec<_>, _>>()?;
            let more = found.len() > filter.limit;
            found.truncate(filter.limit);
            Ok((found, more))
        })
        .await
    }

    /// One delivery.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, StoreError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT {} FROM deliveries WHERE id = ?1", reader::DELIVERY))?;
            Ok(statement.query_row(params![id.0.as_bytes()], reader::delivery).optional()?)
        })
        .await
    }

    /// The audit trail, the latest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn audit(&self, before: Option<i64>, limit: usize) -> Result<Page<AuditRecord>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT id, at, actor, action, job FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let rows = statement.query_map(params![before.unwrap_or(i64::MAX), limit as i64 + 1], |row| {
                Ok(AuditRecord {
                    id: row.get("id")?,
                    at: Time::from_millis(row.get("at")?),
                    actor: row.get("actor")?,
                    action: row.get("action")?,
                    job: row.get::<_, Option<[u8; 16]>>("job")?.map(JobId::from_bytes),
                })
            })?;
            let mut items = rows.collect::<Result<Vec<_>, _>>()?;
            let more = items.len() > limit;
            items.truncate(limit);
            let next = items.last().filter(|_| more).map(|last| super::Cursor(last.id));
            Ok(Page { items, next })
        })
        .await
    }

    /// How many jobs are in each state that any job is in.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn jobs_by_state(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.count_by("SELECT state, count(*) FROM jobs GROUP BY state").await
    }

    /// The same of deliveries and how they stand.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn deliveries_by_status(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.count_by("SELECT status, count(*) FROM deliveries GROUP BY status").await
    }

    async fn count_by(&self, query: &'static str) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(query)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Jobs that ended up to some moment and of which nothing is owed to anybody, the first to end first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn forgettable(&self, until: Time, limit: usize) -> Result<Vec<EndedJob>, StoreError> {
        let condition = "finished_at > ?1 AND finished_at <= ?2
            AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND status = 'waiting')
            ORDER BY finished_at, seq";
        self.ended(condition, Time::from_millis(i64::MIN), until, limit).await
    }

    /// Jobs that ended after one moment and not after another, the first to end first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ended_between(&self, after: Time, until: Time, limit: usize) -> Result<Vec<EndedJob>, StoreError> {
        self.ended("finished_at > ?1 AND finished_at <= ?2 ORDER BY finished_at, seq", after, until, limit).await
    }

    /// Jobs that ended after one moment and before another, the last to end first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ended_before(&self, after: Time, before: Time, limit: usize) -> Result<Vec<EndedJob>, StoreError> {
        self.ended("finished_at > ?1 AND finished_at < ?2 ORDER BY finished_at DESC, seq DESC", after, before, limit)
            .await
    }

    async fn ended(
        &self,
        condition: &'static str,
        from: Time,
        to: Time,
        limit: usize,
    ) -> Result<Vec<EndedJob>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT id, finished_at FROM jobs WHERE finished_at IS NOT NULL AND {condition} LIMIT ?3"
            ))?;
            let mut rows = statement.query(params![from.as_millis(), to.as_millis(), limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id = JobId::from_bytes(row.get("id")?);
                let finished_at = Time::from_millis(row.get("finished_at")?);
                found.push(EndedJob { id, finished_at, launches: launches(db, id)? });
            }
            Ok(found)
        })
        .await
    }

    /// Jobs that were removed and whose files are yet to go, in the order of their ids; those after one of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn removed(&self, after: Option<JobId>, limit: usize) -> Result<Vec<RemovedJob>, StoreError> {
        self.read(move |db| {
            let mut removed = db.prepare_cached("SELECT job FROM removed_jobs WHERE job > ?1 ORDER BY job LIMIT ?2")?;
            let after = after.map_or(Vec::new(), |job| job.as_bytes().to_vec());
            let ids: Vec<JobId> = removed
                .query_map(params![after, limit as i64], |row| Ok(JobId::from_bytes(row.get("job")?)))?
                .collect::<Result<_, _>>()?;
            ids.into_iter().map(|id| Ok(RemovedJob { id, launches: launches(db, id)? })).collect()
        })
        .await
    }

    /// What there may be on disk of this job, whether it is there or was removed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn launches(&self, job: JobId) -> Result<Vec<LaunchId>, StoreError> {
        self.read(move |db| launches(db, job)).await
    }

    /// What there is that may have to go, where logs of jobs that ended up to `logs` have gone.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn oldest(&self, logs: Time) -> Result<Oldest, StoreError> {
        self.read(move |db| {
            let time = |sql: &str, value: i64| -> Result<Option<Time>, StoreError> {
                let mut statement = db.prepare_cached(sql)?;
                Ok(statement.query_row(params![value], |row| row.get(0)).optional()?.map(Time::from_millis))
            };
            let first = "SELECT finished_at FROM jobs WHERE finished_at IS NOT NULL AND finished_at > ?1 ORDER BY finished_at LIMIT 1";
            Ok(Oldest {
                job: time(first, i64::MIN)?,
                logs: time(first, logs.as_millis())?,
                event: time("SELECT at FROM events WHERE id > ?1 AND id < (SELECT max(id) FROM events) ORDER BY id LIMIT 1", i64::MIN)?,
            })
        })
        .await
    }
}

/// The starts of a job.
fn launches(db: &Connection, job: JobId) -> Result<Vec<LaunchId>, StoreError> {
    let mut launches = db.prepare_cached("SELECT launch FROM attempts WHERE job = ?1")?;
    let launch = |row: &Row<'_>| Ok(LaunchId::from_bytes(row.get("launch")?));
    Ok(launches.query_map(params![job.as_bytes()], launch)?.collect::<Result<_, _>>()?)
}

/// A completion hook is still to be told of the job's end, for which the job is needed.
const IS_TO_BE_TOLD: &str = "EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND status = 'waiting')";

/// Removes everything that is kept of these jobs but their events and what names their files, as far as they have ended and every
/// completion hook was told. Gives how many went.
pub(super) fn forget(db: &Connection, jobs: &[JobId]) -> Result<usize, StoreError> {
    let mut gone = 0;
    for job in jobs {
        let removed = db
            .prepare_cached(&format!(
                "DELETE FROM jobs WHERE id = ?1 AND state IN ('completed', 'failed', 'cancelled') AND NOT {IS_TO_BE_TOLD}"
            ))?
            .execute(params![job.as_bytes()])?;
        if removed == 1 {
            db.prepare_cached("INSERT INTO removed_jobs (job) VALUES (?1)")?.execute(params![job.as_bytes()])?;
            db.prepare_cached("DELETE FROM deliveries WHERE job = ?1")?.execute(params![job.as_bytes()])?;
            db.prepare_cached("DELETE FROM samples WHERE job = ?1")?.execute(params![job.as_bytes()])?;
        }
        gone += removed;
    }
    Ok(gone)
}

/// The files of these jobs, which were removed, are gone: so is what names them.
pub(super) fn files_gone(db: &Connection, jobs: &[JobId]) -> Result<(), StoreError> {
    for job in jobs {
        db.prepare_cached("DELETE FROM attempts WHERE job = (SELECT job FROM removed_jobs WHERE job = ?1)")?
            .execute(params![job.as_bytes()])?;
        db.prepare_cached("DELETE FROM removed_jobs WHERE job = ?1")?.execute(params![job.as_bytes()])?;
    }
    Ok(())
}

/// A person removes one job, if it is at one of these revisions; none: at any.
pub(super) fn remove(
    db: &Connection,
    job: JobId,
    revisions: Option<&[u32]>,
    at: Time,
    by: &str,
    told: &mut Told,
) -> Result<(), StoreError> {
    if let Some(revisions) = revisions {
        let revision: Option<u32> = db
            .prepare_cached("SELECT revision FROM jobs WHERE id = ?1")?
            .query_row(params![job.as_bytes()], |row| row.get("revision"))
            .optional()?;
        if revision.is_some_and(|revision| !revisions.contains(&revision)) {
            return Err(StoreError::Conflict(format!("job {job} was changed since it was read")));
        }
    }
    if forget(db, &[job])? == 0 {
        return Err(StoreError::Conflict(format!(
            "job {job} cannot be removed: it is not there, has not ended, or its end is yet to be told"
        )));
    }
    event(db, told, at, "job.removed", Some(job), serde_json::Map::new())?;
    audit(db, at, by, "remove", Some(job))
}

/// What the writer's connection remembers while it is open: the last event of each job's progress.
pub(super) const REMEMBERED: &str = "CREATE TEMP TABLE last_progress (job BLOB PRIMARY KEY, event INTEGER NOT NULL)";

/// A job says how far it is. That is no transition, and it says so a few times a second for days: of its events only the last
/// stays.
pub(super) fn progressed(
    db: &Connection,
    job: JobId,
    progress: &Progress,
    at: Time,
    sample: Option<&(u32, Map<String, Value>)>,
    told: &mut Told,
) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE jobs SET progress = ?2 WHERE id = ?1")?
        .execute(params![job.as_bytes(), json_text(&Some(progress))?])?;
    if let Some((attempt, sample)) = sample {
        db.prepare_cached("INSERT OR REPLACE INTO samples (job, attempt, at, data) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![job.as_bytes(), attempt, at.as_millis(), json_text(&Some(sample))?])?;
    }
    let mut data = Map::new();
    data.insert("progress".into(), serde_json::to_value(progress).map_err(unwritable)?);
    event(db, told, at, "job.progress", Some(job), data)?;
    // After it: an id that was told is not given again.
    let this = db.last_insert_rowid();
    db.prepare_cached("DELETE FROM events WHERE id = (SELECT event FROM temp.last_progress WHERE job = ?1)")?
        .execute(params![job.as_bytes()])?;
    db.prepare_cached("INSERT OR REPLACE INTO temp.last_progress (job, event) VALUES (?1, ?2)")?
        .execute(params![job.as_bytes(), this])?;
    Ok(())
}

/// An attempt is over: its last event of progress stays.
pub(super) fn no_more_progress(db: &Connection, job: JobId) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM temp.last_progress WHERE job = ?1")?.execute(params![job.as_bytes()])?;
    Ok(())
}

/// Removes the first events, rows of the audit trail and keys of requests that are older than this, a few of each. The last event
/// stays, whatever its age: the next gets the id after it, so that a subscriber can go on from the last one it saw.
pub(super) fn forget_events(db: &Connection, before: Time, keys_before: Time) -> Result<(), StoreError> {
    for (table, but) in [("events", "AND id < (SELECT max(id) FROM events)"), ("audit", "")] {
        db.prepare_cached(&format!(
            "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT {AT_A_TIME}) AND at < ?1 {but}"
        ))?
        .execute(params![before.as_millis()])?;
    }
    db.prepare_cached(&format!(
        "DELETE FROM idempotency_keys WHERE (owner, key) IN
            (SELECT owner, key FROM idempotency_keys WHERE at < ?1 ORDER BY at LIMIT {AT_A_TIME})"
    ))?
    .execute(params![keys_before.as_millis()])?;
    Ok(())
}

/// Has a delivery made once more.
pub(super) fn redeliver(
    db: &Connection,
    delivery: DeliveryId,
    at: Time,
    by: &str,
    told: &mut Told,
) -> Result<(), StoreError> {
    let changed = db
        .prepare_cached(
            "UPDATE deliveries SET status = 'waiting', tries = 0, next_at = ?2, finished_at = NULL WHERE id = ?1
             RETURNING job",
        )?
        .query_row(params![delivery.0.as_bytes(), at.as_millis()], |row| Ok(JobId::from_bytes(row.get("job")?)))
        .optional()?;
    let Some(job) = changed else { return Err(StoreError::Conflict(format!("there is no delivery {delivery}"))) };
    told.deliveries = true;
    let data = serde_json::Map::from_iter([("delivery_id".to_owned(), delivery.to_string().into())]);
    event(db, told, at, "delivery.waiting", Some(job), data)?;
    audit(db, at, by, "redeliver", Some(job))
}
