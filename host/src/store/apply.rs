//! The rows that each change becomes, and the events and the audit trail with them.

use rusqlite::{Connection, OptionalExtension, Statement, params};
use serde_json::{Map, Value, json};
use taxiway_job::{Job, JobId, Reason, Shift, State, Time};

use super::submit::Inserts;
use super::texts::{json_list, json_text, unwritable};
use super::{Change, End, Event, JobTexts, NewDelivery, NextAttempt, Scope, StoreError, history, keys};

/// What a transaction did besides its rows, to be told once it is durable.
#[derive(Default)]
pub(super) struct Told {
    pub(super) events: Vec<Event>,
    pub(super) deliveries: bool,
    pub(super) ended: bool,
}

/// Writes a change, within the transaction that is open.
///
/// # Errors
/// When it does not fit what is stored, or the disk refuses it.
pub(super) fn apply(db: &Connection, change: &Change, told: &mut Told) -> Result<(), StoreError> {
    match change {
        Change::Submit(new) => Inserts::new(db)?.submit(db, new, told),
        Change::Move { job, from, to, reason, at, by, action, deliveries } => {
            let ended = to.has_ended().then_some(at.as_millis());
            one(
                db.prepare_cached(
                    "UPDATE jobs SET state = ?3, reason = ?4, finished_at = ?5, queued_at = coalesce(?6, queued_at)
                     WHERE id = ?1 AND state = ?2",
                )?
                .execute(params![
                    job.as_bytes(),
                    from.as_str(),
                    to.as_str(),
                    json_text(reason)?,
                    ended,
                    (*to == State::Queued).then_some(at.as_millis()),
                ])?,
                "move",
                *job,
            )?;
            event(db, told, *at, &format!("job.{to}"), Some(*job), Map::new())?;
            audit(db, *at, by, action, Some(*job))?;
            add_deliveries(db, told, *job, &ToldOf::of(*to), *at, deliveries)
        }
        Change::Retry { job, from, priority, rank, at, by, action } => {
            one(
                db.prepare_cached(&format!(
                    "UPDATE jobs SET state = 'queued', {NOTHING_HAPPENED}, reason = NULL, attempt = attempt + 1, revision = revision + 1, retries_done = 0,
                        retry_at = NULL, queued_at = ?3, priority = ?4, rank = ?5, spec = json_set(spec, '$.priority', ?4)
                     WHERE id = ?1 AND state = ?2"
                ))?
                .execute(params![job.as_bytes(), from.as_str(), at.as_millis(), priority, rank])?,
                "retry",
                *job,
            )?;
            event(db, told, *at, "job.queued", Some(*job), Map::new())?;
            audit(db, *at, by, action, Some(*job))
        }
        Change::Rerank { job, shifts, at, by, action } => {
            for Shift { from, to } in shifts {
                db.prepare_cached(
                    "UPDATE jobs SET priority = ?4, rank = ?5, revision = revision + (priority != ?4),
                        spec = iif(priority = ?4, spec, json_set(spec, '$.priority', ?4))
                     WHERE id = ?1 AND priority = ?2 AND rank = ?3",
                )?
                .execute(params![
                    from.job().as_bytes(),
                    from.priority(),
                    from.rank(),
                    to.priority(),
                    to.rank()
                ])?;
            }
            event(db, told, *at, "job.moved", Some(*job), Map::new())?;
            action.map_or(Ok(()), |action| audit(db, *at, by, action, Some(*job)))
        }
        Change::Edit { job, at, by } => edit(db, job, *at, by, told),
        Change::TimeLimit { job, limit, at, by } => {
            one(
                db.prepare_cached(
                    "UPDATE jobs SET spec = json_set(spec, '$.time_limit', ?2), revision = revision + 1
                     WHERE id = ?1 AND state IN ('pending', 'running')",
                )?
                .execute(params![job.as_bytes(), limit.map(|limit| limit.as_secs_f64())])?,
                "time limit",
                *job,
            )?;
            event(db, told, *at, "job.edited", Some(*job), Map::new())?;
            audit(db, *at, by, "edit", Some(*job))
        }
        Change::LaunchVerdicts { job, verdicts } => {
            db.prepare_cached("UPDATE jobs SET launch_verdicts = ?2 WHERE id = ?1")?
                .execute(params![job.as_bytes(), json_list(verdicts)?])?;
            Ok(())
        }
        Change::Arm { job, attempt, launch, boot_id } => {
            db.prepare_cached(
                "INSERT INTO attempts (launch, job, attempt, phase, boot_id) VALUES (?1, ?2, ?3, 'armed', ?4)",
            )?
            .execute(params![launch.as_bytes(), job.as_bytes(), attempt, boot_id])?;
            Ok(())
        }
        Change::Disarm { job, launch } => {
            db.prepare_cached("DELETE FROM attempts WHERE job = ?1 AND launch = ?2 AND phase IN ('armed', 'pending')")?
                .execute(params![job.as_bytes(), launch.as_bytes()])?;
            Ok(())
        }
        Change::Go { job, launch, gpu_uuids, at } => {
            let uuids = json_text(&Some(gpu_uuids))?;
            one(db.prepare_cached("UPDATE jobs SET state = 'pending', gpu_uuids = ?2, reason = NULL, retry_at = NULL WHERE id = ?1 AND state = 'queued'")?
                .execute(params![job.as_bytes(), uuids])?, "go", *job)?;
            one(
                db.prepare_cached(
                    "UPDATE attempts SET phase = 'pending', gpu_uuids = ?3 WHERE job = ?1 AND launch = ?2 AND phase = 'armed'",
                )?
                .execute(params![job.as_bytes(), launch.as_bytes(), uuids])?,
                "go",
                *job,
            )?;
            event(db, told, *at, "job.pending", Some(*job), Map::new())
        }
        Change::Running { job, launch, pid, start_time, at, handover } => {
            let handover = json_text(handover)?;
            one(db.prepare_cached(
                // Told again after an adoption, with the same facts.
                "UPDATE attempts SET phase = 'running', pid = ?3, start_time = ?4, started_at = ?5, handover = coalesce(?6, handover)
                 WHERE job = ?1 AND launch = ?2 AND phase IN ('pending', 'running')")?
                .execute(params![job.as_bytes(), launch.as_bytes(), pid, *start_time as i64, at.as_millis(), handover])?, "running", *job)?;
            db.prepare_cached("UPDATE jobs SET started_at = ?2, handover = coalesce(?3, handover) WHERE id = ?1")?
                .execute(params![job.as_bytes(), at.as_millis(), handover])?;
            // A job that is being stopped stays `cancelling`.
            let changed = db
                .prepare_cached("UPDATE jobs SET state = 'running' WHERE id = ?1 AND state = 'pending'")?
                .execute(params![job.as_bytes()])?;
            if changed == 1 {
                event(db, told, *at, "job.running", Some(*job), Map::new())?;
            }
            Ok(())
        }
        Change::Stop { job, target, at, by, action } => {
            let target = State::from(*target).as_str();
            let stopped = db
                .prepare_cached(
                    "UPDATE jobs SET state = 'cancelling', stop_target = ?2 WHERE id = ?1 AND state IN ('pending', 'running')",
                )?
                .execute(params![job.as_bytes(), target])?;
            if stopped == 1 {
                event(db, told, *at, "job.cancelling", Some(*job), Map::new())?;
            } else {
                // It is being stopped already, and is to go somewhere else then.
                one(
                    db.prepare_cached("UPDATE jobs SET stop_target = ?2 WHERE id = ?1 AND state = 'cancelling'")?
                        .execute(params![job.as_bytes(), target])?,
                    "stop",
                    *job,
                )?;
            }
            audit(db, *at, by, action, Some(*job))
        }
        Change::End(end) => finish(db, end, told),
        Change::NotStarted { job, launch, from, to, rank, reason, at } => {
            let queued = (*to == State::Queued && rank.is_some()).then_some(at.as_millis());
            one(
                db.prepare_cached(
                    "UPDATE jobs SET state = ?3, rank = coalesce(?4, rank), reason = ?5, queued_at = coalesce(?6, queued_at),
                        gpu_uuids = NULL, stop_target = NULL
                     WHERE id = ?1 AND state = ?2",
                )?
                .execute(params![job.as_bytes(), from.as_str(), to.as_str(), rank, json_text(reason)?, queued])?,
                "not started",
                *job,
            )?;
            db.prepare_cached("DELETE FROM attempts WHERE job = ?1 AND launch = ?2")?
                .execute(params![job.as_bytes(), launch.as_bytes()])?;
            event(db, told, *at, &format!("job.{to}"), Some(*job), Map::new())
        }
        Change::Progress { job, progress, at, sample } => {
            history::progressed(db, *job, progress, *at, sample.as_ref(), told)
        }
        Change::Mode { mode, at, by } => {
            setting(db, "mode", mode.as_str())?;
            event(db, told, *at, &format!("queue.{mode}"), None, Map::new())?;
            let action = match mode {
                crate::queue::Mode::Run => "queue resume",
                crate::queue::Mode::Paused => "queue pause",
                crate::queue::Mode::Draining => "queue drain",
            };
            audit(db, *at, by, action, None)
        }
        Change::Quarantine { uuid, trouble, boot_id, reason, at } => {
            db.prepare_cached(
                "INSERT INTO gpu_quarantine (uuid, trouble, boot_id, at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (uuid) DO UPDATE SET trouble = ?2, boot_id = ?3, at = ?4",
            )?
            .execute(params![uuid, json_text(&Some(trouble))?, boot_id, at.as_millis()])?;
            gpu_event(db, told, *at, "gpu.quarantined", uuid, Some(reason))
        }
        Change::Mended { uuid, at, by } => {
            db.prepare_cached("DELETE FROM gpu_quarantine WHERE uuid = ?1")?.execute(params![uuid])?;
            if let Some(by) = by {
                audit(db, *at, by, &format!("gpu release {uuid}"), None)?;
            }
            gpu_event(db, told, *at, "gpu.returned", uuid, None)
        }
        Change::GpuNews { uuid, kind, reason, at } => gpu_event(db, told, *at, kind, uuid, reason.as_ref()),
        Change::Delivered { delivery, at } => {
            db.prepare_cached("UPDATE deliveries SET status = 'delivered', tries = tries + 1, finished_at = ?2, last_error = NULL WHERE id = ?1")?
                .execute(params![delivery.0.as_bytes(), at.as_millis()])?;
            delivery_event(db, told, *at, "delivery.delivered", delivery.0, None)
        }
        Change::DeliveryRetry { delivery, next_at, error, at } => {
            db.prepare_cached("UPDATE deliveries SET tries = tries + 1, next_at = ?2, last_error = ?3 WHERE id = ?1")?
                .execute(params![delivery.0.as_bytes(), next_at.as_millis(), error])?;
            delivery_event(db, told, *at, "delivery.retry", delivery.0, Some(error))
        }
        Change::DeliveryDead { delivery, error, at } => {
            db.prepare_cached("UPDATE deliveries SET status = 'dead', tries = tries + 1, finished_at = ?2, last_error = ?3 WHERE id = ?1")?
                .execute(params![delivery.0.as_bytes(), at.as_millis(), error])?;
            delivery_event(db, told, *at, "delivery.dead", delivery.0, Some(error))
        }
        Change::Plugin { kind, data, at } => event(db, told, *at, kind, None, data.clone()),
        Change::Remove { job, revisions, at, by } => history::remove(db, *job, revisions.as_deref(), *at, by, told),
        Change::Forget { jobs } => history::forget(db, jobs).map(drop),
        Change::FilesGone { jobs } => history::files_gone(db, jobs),
        Change::Collected { at, by } => audit(db, *at, by, "gc", None),
        Change::ForgetEvents { before, keys_before } => history::forget_events(db, *before, *keys_before),
        Change::Setting { key, value } => setting(db, key, value),
        Change::Redeliver { delivery, at, by } => history::redeliver(db, *delivery, *at, by, told),
        Change::Remember(key) => keys::remember(db, key),
        Change::Token(token) => {
            // The token file is the truth for the token that the first start made: a new file replaces it.
            db.prepare_cached(
                "INSERT INTO tokens (sha256, name, scope, created_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET sha256 = ?1, scope = ?3, created_at = ?4",
            )?
            .execute(params![token.sha256, token.name, scope_text(token.scope), token.at.as_millis()])?;
            audit(db, token.at, &token.name, "token", None)
        }
    }
}

/// Writes several changes, in their order, as [`apply`] does each.
///
/// # Errors
/// When one does not fit what is stored, or the disk refuses it.
pub(super) fn apply_all<'a>(
    db: &Connection,
    changes: impl Iterator<Item = &'a Change>,
    told: &mut Told,
) -> Result<(), StoreError> {
    let mut changes = changes.peekable();
    while let Some(change) = changes.next() {
        let Change::Submit(first) = change else {
            apply(db, change, told)?;
            continue;
        };
        // Jobs that come together, a thousand of a batch, share their statements.
        let mut inserts = Inserts::new(db)?;
        inserts.submit(db, first, told)?;
        while let Some(Change::Submit(new)) = changes.next_if(|change| matches!(change, Change::Submit(_))) {
            inserts.submit(db, new, told)?;
        }
    }
    Ok(())
}

fn setting(db: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(params![key, value])?;
    Ok(())
}

/// What an attempt leaves in its job's row, taken out for the next one.
const NOTHING_HAPPENED: &str = "exit_code = NULL, exit_signal = NULL, failure = NULL, usage = NULL, started_at = NULL,
    finished_at = NULL, stop_target = NULL, progress = NULL, gpu_uuids = NULL, handover = NULL";

fn edit(db: &Connection, job: &Job, at: Time, by: &str, told: &mut Told) -> Result<(), StoreError> {
    let texts = JobTexts::of(job)?;
    one(
        db.prepare_cached(
            "UPDATE jobs SET priority = ?2, gpus = ?3, name = ?4, external_id = ?5, spec = ?6, config = ?7, submitted_config = ?8,
                submitted_beside = ?9, rewrites = ?10, verdicts = ?11, warnings = ?12, terms = ?13, revision = revision + 1
             WHERE id = ?1 AND state IN ('queued', 'held')",
        )?
        .execute(params![
            job.id.as_bytes(),
            job.spec.priority,
            job.spec.gpus,
            job.spec.name,
            job.spec.external_id,
            texts.spec,
            texts.config,
            texts.submitted_config,
            texts.submitted_beside,
            texts.rewrites,
            texts.verdicts,
            texts.warnings,
            texts.terms,
        ])?,
        "edit",
        job.id,
    )?;
    event(db, told, at, "job.edited", Some(job.id), Map::new())?;
    audit(db, at, by, "edit", Some(job.id))
}

fn finish(db: &Connection, end: &End, told: &mut Told) -> Result<(), StoreError> {
    let (failure, usage) = (json_text(&end.failure)?, json_text(&end.usage)?);
    let (started, finished) = (end.started_at.map(Time::as_millis), end.finished_at.as_millis());
    let (job, from, to, reason) = (end.job.as_bytes(), end.from.as_str(), end.to.as_str(), json_text(&end.reason)?);
    let changed = match end.next {
        None => db
            .prepare_cached(
                "UPDATE jobs SET state = ?3, exit_code = ?4, exit_signal = ?5, failure = ?6, usage = ?7, reason = ?8,
                    started_at = coalesce(?9, started_at), finished_at = ?10, stop_target = NULL
                 WHERE id = ?1 AND state = ?2",
            )?
            .execute(params![job, from, to, end.exit.code, end.exit.signal, failure, usage, reason, started, finished])?,
        Some(next) => db
            .prepare_cached(&format!(
                "UPDATE jobs SET state = ?3, {NOTHING_HAPPENED}, reason = ?4, attempt = attempt + 1, rank = ?5, retries_done = ?6,
                    retry_at = ?7, queued_at = iif(?3 = 'queued', ?8, queued_at)
                 WHERE id = ?1 AND state = ?2"
            ))?
            .execute(params![
                job,
                from,
                to,
                reason,
                next.rank,
                next.retries_done,
                next.retry_at.map(Time::as_millis),
                finished
            ])?,
    };
    one(changed, "end", end.job)?;
    let told_of = match end.next {
        Some(NextAttempt { retry_at: Some(_), .. }) => ToldOf { end: State::Failed, will_retry: true },
        _ => ToldOf::of(end.to),
    };
    if let Some(launch) = end.launch {
        // An attempt that failed before its launch was armed has no row yet, and was armed in no boot. The job's number may be one
        // further already.
        db.prepare_cached(
            "INSERT INTO attempts (job, launch, attempt, phase, boot_id, end_state, exit_code, exit_signal, failure, usage, started_at,
                finished_at)
             VALUES (?1, ?2, (SELECT attempt FROM jobs WHERE id = ?1) - ?10, 'ended', '', ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (job, launch) DO UPDATE SET phase = 'ended', end_state = ?3, exit_code = ?4, exit_signal = ?5,
                failure = ?6, usage = ?7, started_at = coalesce(?8, started_at), finished_at = ?9",
        )?
        .execute(params![
            job,
            launch.as_bytes(),
            told_of.end.as_str(),
            end.exit.code,
            end.exit.signal,
            failure,
            usage,
            started,
            finished,
            end.next.is_some()
        ])?;
    }
    history::no_more_progress(db, end.job)?;
    event(db, told, end.finished_at, &format!("job.{}", end.to), Some(end.job), Map::new())?;
    add_deliveries(db, told, end.job, &told_of, end.finished_at, &end.deliveries)
}

/// The end that a delivery tells of.
struct ToldOf {
    end: State,
    /// Another attempt follows: the job's number is one further already.
    will_retry: bool,
}

impl ToldOf {
    fn of(end: State) -> Self {
        Self { end, will_retry: false }
    }
}

fn add_deliveries(
    db: &Connection,
    told: &mut Told,
    job: JobId,
    told_of: &ToldOf,
    at: Time,
    deliveries: &[NewDelivery],
) -> Result<(), StoreError> {
    for delivery in deliveries {
        db.prepare_cached(
            "INSERT INTO deliveries (id, plugin, job, attempt, end_state, will_retry, status, tries, next_at, created_at)
             VALUES (?1, ?2, ?3, (SELECT attempt FROM jobs WHERE id = ?3) - ?5, ?4, ?5, 'waiting', 0, ?6, ?6)",
        )?
        .execute(params![
            delivery.id.0.as_bytes(),
            delivery.plugin,
            job.as_bytes(),
            told_of.end.as_str(),
            told_of.will_retry,
            at.as_millis()
        ])?;
        told.deliveries = true;
    }
    Ok(())
}

pub(super) const INSERT_EVENT: &str = "INSERT INTO events (at, kind, job, data) VALUES (?1, ?2, ?3, ?4)";
pub(super) const INSERT_AUDIT: &str = "INSERT INTO audit (at, actor, action, job) VALUES (?1, ?2, ?3, ?4)";

pub(super) fn event(
    db: &Connection,
    told: &mut Told,
    at: Time,
    kind: &str,
    job: Option<JobId>,
    data: Map<String, Value>,
) -> Result<(), StoreError> {
    event_by(&mut *db.prepare_cached(INSERT_EVENT)?, db, told, at, kind.to_owned(), job, data)
}

/// The same by [`INSERT_EVENT`].
pub(super) fn event_by(
    insert: &mut Statement<'_>,
    db: &Connection,
    told: &mut Told,
    at: Time,
    kind: String,
    job: Option<JobId>,
    data: Map<String, Value>,
) -> Result<(), StoreError> {
    let text = if data.is_empty() { None } else { json_text(&Some(&data))? };
    insert.execute(params![at.as_millis(), kind, job.as_ref().map(JobId::as_bytes), text])?;
    let id = db.last_insert_rowid() as u64;
    told.ended |= matches!(kind.as_str(), "job.completed" | "job.failed" | "job.cancelled");
    told.events.push(Event { id, at, kind, job, data });
    Ok(())
}

fn gpu_event(
    db: &Connection,
    told: &mut Told,
    at: Time,
    kind: &str,
    uuid: &str,
    reason: Option<&Reason>,
) -> Result<(), StoreError> {
    let mut data = Map::new();
    data.insert("uuid".into(), uuid.into());
    data.insert("reason".into(), serde_json::to_value(reason).map_err(unwritable)?);
    event(db, told, at, kind, None, data)
}

fn delivery_event(
    db: &Connection,
    told: &mut Told,
    at: Time,
    kind: &str,
    delivery: uuid::Uuid,
    error: Option<&str>,
) -> Result<(), StoreError> {
    let known = db
        .prepare_cached("SELECT job, plugin FROM deliveries WHERE id = ?1")?
        .query_row(params![delivery.as_bytes()], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    // Removed together with its job while it was being made.
    let Some((job, plugin)) = known else { return Ok(()) };
    let Value::Object(data) = json!({"delivery_id": delivery.to_string(), "plugin": plugin, "error": error}) else {
        return Ok(());
    };
    event(db, told, at, kind, Some(JobId::from_bytes(job)), data)
}

pub(super) fn audit(
    db: &Connection,
    at: Time,
    actor: &str,
    action: &str,
    job: Option<JobId>,
) -> Result<(), StoreError> {
    audit_by(&mut *db.prepare_cached(INSERT_AUDIT)?, at, actor, action, job)
}

/// The same by [`INSERT_AUDIT`].
pub(super) fn audit_by(
    insert: &mut Statement<'_>,
    at: Time,
    actor: &str,
    action: &str,
    job: Option<JobId>,
) -> Result<(), StoreError> {
    insert.execute(params![at.as_millis(), actor, action, job.as_ref().map(JobId::as_bytes)])?;
    Ok(())
}

/// A transition must find its job in the state it starts from; else the queue and the store disagree.
fn one(changed: usize, what: &str, job: JobId) -> Result<(), StoreError> {
    if changed == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict(format!("{what} of job {job} found it in another state")))
    }
}

fn scope_text(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Submit => "submit",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
    }
}
