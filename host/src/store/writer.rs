//! The thread that writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;
use serde_json::{Map, Value, json};
use taxiway_job::{Job, JobId, Reason, Shift, State, Time};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::counters::Counters;
use super::{Change, End, Event, NewDelivery, NewJob, NextAttempt, StoreError, history, keys};

/// With how many changes a transaction takes no more units: bounds how long the first of them waits for its answer. It is about
/// what the largest batch has, so that one of several batches is answered while the next is being written.
const GROUP: usize = 1024;

/// How long the writer waits before it tries again to write facts that the disk refused: a compromise between noticing free
/// space soon and leaving a broken disk alone.
const RETRY: Duration = Duration::from_millis(250);

/// How long a unit that can wait is kept for others, so that they share a commit: longer than a short job and the hand-over to the
/// next, whose end is written then; too short for anybody to notice.
const PATIENCE: Duration = Duration::from_millis(2);

/// Changes that become durable together.
pub(super) struct Unit {
    /// What changes.
    pub(super) changes: Vec<Change>,
    /// It has happened already: the disk's refusal only delays it.
    pub(super) fact: bool,
    /// Nobody waits for it: it may be written with what comes next.
    pub(super) can_wait: bool,
    /// Where the answer goes.
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Unit {
    /// How much of a group it is.
    fn weight(&self) -> usize {
        self.changes.len().max(1)
    }
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) events: broadcast::Sender<Arc<Event>>,
    pub(super) deliveries_added: Arc<Notify>,
    pub(super) job_ended: Arc<Notify>,
    pub(super) counters: Arc<Counters>,
    pub(super) health: watch::Sender<bool>,
}

/// What a transaction did besides its rows, to be told once it is durable.
#[derive(Default)]
pub(super) struct Told {
    pub(super) events: Vec<Event>,
    pub(super) deliveries: bool,
    pub(super) ended: bool,
}

impl Writer {
    /// Writes until every sender is gone and everything sent is written.
    pub(super) fn run(mut self, mut units: mpsc::Receiver<Unit>) {
        let mut group: VecDeque<Unit> = VecDeque::new();
        loop {
            if group.is_empty() {
                match units.blocking_recv() {
                    Some(unit) => group.push_back(unit),
                    None => return,
                }
            }
            let mut changes: usize = group.iter().map(Unit::weight).sum();
            let patient_until = Instant::now() + PATIENCE;
            loop {
                while changes < GROUP
                    && let Ok(unit) = units.try_recv()
                {
                    changes += unit.weight();
                    group.push_back(unit);
                }
                if changes >= GROUP || group.iter().any(|unit| !unit.can_wait) {
                    break;
                }
                match receive_until(&mut units, patient_until) {
                    Some(unit) => {
                        changes += unit.weight();
                        group.push_back(unit);
                    }
                    None => break,
                }
            }
            let began = Instant::now();
            match self.commit(&group) {
                Ok((results, told)) => {
                    self.counters.committed(group.len(), began.elapsed());
                    self.health.send_if_modified(|healthy| !std::mem::replace(healthy, true));
                    self.tell(told);
                    for (unit, result) in group.drain(..).zip(results) {
                        answer(unit, result);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, units = group.len(), "could not commit");
                    self.counters.commit_failed();
                    self.health.send_if_modified(|healthy| std::mem::replace(healthy, false));
                    // Requests hear of it at once; facts stay, in order.
                    let (facts, requests): (VecDeque<Unit>, VecDeque<Unit>) =
                        group.drain(..).partition(|unit| unit.fact);
                    for unit in requests {
                        answer(unit, Err(error.clone()));
                    }
                    group = facts;
                    if group.is_empty() && error.is_the_disk_s() {
                        // Nothing is owed to the disk. Something small is, from now on, so that whoever asks is told the truth
                        // until the disk takes it.
                        group.push_back(probe());
                    }
                    if group.is_empty() {
                        self.health.send_if_modified(|healthy| !std::mem::replace(healthy, true));
                    } else {
                        // No event tells that a disk takes writes again, so this is a wait on time.
                        std::thread::sleep(RETRY);
                    }
                }
            }
        }
    }

    /// One transaction for the whole group. A unit that is refused leaves nothing behind and does not disturb the others.
    fn commit(&mut self, group: &VecDeque<Unit>) -> Result<(Vec<Result<(), StoreError>>, Told), StoreError> {
        match self.commit_at_once(group) {
            Ok(told) => {
                for change in group.iter().flat_map(|unit| &unit.changes) {
                    self.counters.changed(change);
                }
                Ok((vec![Ok(()); group.len()], told))
            }
            Err(error) if error.is_the_disk_s() => Err(error),
            // One of them does not fit: which, and what is left of the rest, needs a look at each.
            Err(_) => self.commit_each(group),
        }
    }

    /// The same when every unit is right, as nearly always: without a savepoint for each, for which SQLite would copy every
    /// page that a unit touches.
    fn commit_at_once(&mut self, group: &VecDeque<Unit>) -> Result<Told, StoreError> {
        let transaction = Begun::new(&self.connection)?;
        let mut told = Told::default();
        for change in group.iter().flat_map(|unit| &unit.changes) {
            apply(&self.connection, change, &mut told)?;
        }
        transaction.commit()?;
        Ok(told)
    }

    fn commit_each(&mut self, group: &VecDeque<Unit>) -> Result<(Vec<Result<(), StoreError>>, Told), StoreError> {
        let mut transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut told = Told::default();
        let mut results = Vec::with_capacity(group.len());
        let mut applied: Vec<&Change> = Vec::new();
        for unit in group {
            // A request stands or falls as a whole. Facts have happened: one that does not fit takes no other with it.
            let parts = if unit.fact { 1 } else { unit.changes.len().max(1) };
            let mut result = Ok(());
            for part in unit.changes.chunks(parts) {
                let events_before = told.events.len();
                let savepoint = transaction.savepoint()?;
                match part.iter().try_for_each(|change| apply(&savepoint, change, &mut told)) {
                    Ok(()) => {
                        savepoint.commit()?;
                        applied.extend(part);
                    }
                    // The disk's refusal concerns the whole group.
                    Err(error) if error.is_the_disk_s() => return Err(error),
                    Err(error) => {
                        drop(savepoint);
                        told.events.truncate(events_before);
                        result = Err(error);
                    }
                }
            }
            results.push(result);
        }
        Transaction::commit(transaction)?;
        for change in applied {
            self.counters.changed(change);
        }
        Ok((results, told))
    }

    fn tell(&self, told: Told) {
        // Checked after the commit: who subscribes from now on finds these events in the store.
        if self.events.receiver_count() > 0 {
            for event in told.events {
                // An error means that the last subscriber has just left.
                let _ = self.events.send(Arc::new(event));
            }
        }
        if told.deliveries {
            self.deliveries_added.notify_one();
        }
        if told.ended {
            self.job_ended.notify_one();
        }
    }
}

/// A transaction that is rolled back unless it is committed. Its own statements are read by SQLite once, those of
/// [`rusqlite::Transaction`] every time.
struct Begun<'a>(&'a Connection);

impl<'a> Begun<'a> {
    fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // SQLite rolls back by itself after some errors, and a commit leaves nothing to be.
        if !self.0.is_autocommit()
            && let Err(error) = self.0.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }
}

/// The next unit; none when none has come until then, or none will come any more.
fn receive_until(units: &mut mpsc::Receiver<Unit>, deadline: Instant) -> Option<Unit> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(unit) = units.poll_recv(&mut Context::from_waker(&waker)) {
            return unit;
        }
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        std::thread::park_timeout(left);
    }
}

/// Wakes a thread that has parked.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A fact that finds out whether the disk takes writes again. As long as it does not, nothing starts and the service is not
/// ready.
fn probe() -> Unit {
    let value = Time::now().as_millis().to_string();
    // Nobody waits for the answer.
    let changes = vec![Change::Setting { key: "disk_failed_at", value }];
    Unit { changes, fact: true, can_wait: false, reply: oneshot::channel().0 }
}

fn answer(unit: Unit, result: Result<(), StoreError>) {
    if unit.fact
        && let Err(error) = &result
    {
        tracing::error!(%error, changes = ?unit.changes, "a fact does not fit what is stored and was left out");
    }
    // An error means that the asker has gone away; what it asked for is done all the same.
    let _ = unit.reply.send(result);
}

fn apply(db: &Connection, change: &Change, told: &mut Told) -> Result<(), StoreError> {
    match change {
        Change::Submit(new) => submit(db, new, told),
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

fn setting(db: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(params![key, value])?;
    Ok(())
}

fn submit(db: &Connection, new: &NewJob, told: &mut Told) -> Result<(), StoreError> {
    let job = &new.job;
    db.prepare_cached(
        "INSERT INTO jobs (id, state, priority, rank, gpus, attempt, name, profile, external_id, body, spec, config,
            submitted_config, rewrites, verdicts, warnings, reason, submitted_at, queued_at, submitted_by, terms, submitted_beside,
            array_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
    )?
    .execute(params![
        job.id.as_bytes(),
        job.state.as_str(),
        job.spec.priority,
        new.rank,
        job.spec.gpus,
        job.attempt,
        job.spec.name,
        job.spec.profile,
        job.spec.external_id,
        new.body.0,
        json_text(&Some(&job.spec))?,
        json_text(&Some(&job.config))?,
        json_text(&job.submitted_config)?,
        json_list(&job.rewrites)?,
        json_list(&job.verdicts)?,
        json_list(&job.warnings)?,
        json_text(&job.reason)?,
        job.submitted_at.as_millis(),
        job.queued_at.as_millis(),
        job.submitted_by,
        json_text(&(!job.spec.terms.are_none()).then_some(&job.spec.terms))?,
        json_text(&job.submitted_beside)?,
        job.spec.array.as_ref().map(|member| member.id.as_bytes()),
    ])?;
    event(db, told, job.submitted_at, &format!("job.{}", job.state), Some(job.id), Map::new())?;
    audit(db, job.submitted_at, &job.submitted_by, "submit", Some(job.id))
}

/// What an attempt leaves in its job's row, taken out for the next one.
const NOTHING_HAPPENED: &str = "exit_code = NULL, exit_signal = NULL, failure = NULL, usage = NULL, started_at = NULL,
    finished_at = NULL, stop_target = NULL, progress = NULL, gpu_uuids = NULL, handover = NULL";

fn edit(db: &Connection, job: &Job, at: Time, by: &str, told: &mut Told) -> Result<(), StoreError> {
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
            json_text(&Some(&job.spec))?,
            json_text(&Some(&job.config))?,
            json_text(&job.submitted_config)?,
            json_text(&job.submitted_beside)?,
            json_list(&job.rewrites)?,
            json_list(&job.verdicts)?,
            json_list(&job.warnings)?,
            json_text(&(!job.spec.terms.are_none()).then_some(&job.spec.terms))?,
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

pub(super) fn event(
    db: &Connection,
    told: &mut Told,
    at: Time,
    kind: &str,
    job: Option<JobId>,
    data: Map<String, Value>,
) -> Result<(), StoreError> {
    let text = if data.is_empty() { None } else { json_text(&Some(&data))? };
    db.prepare_cached("INSERT INTO events (at, kind, job, data) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        at.as_millis(),
        kind,
        job.as_ref().map(JobId::as_bytes),
        text
    ])?;
    let id = db.last_insert_rowid() as u64;
    told.ended |= matches!(kind, "job.completed" | "job.failed" | "job.cancelled");
    told.events.push(Event { id, at, kind: kind.to_owned(), job, data });
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
    db.prepare_cached("INSERT INTO audit (at, actor, action, job) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        at.as_millis(),
        actor,
        action,
        job.as_ref().map(JobId::as_bytes)
    ])?;
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

fn scope_text(scope: super::Scope) -> &'static str {
    match scope {
        super::Scope::Read => "read",
        super::Scope::Submit => "submit",
        super::Scope::Operate => "operate",
        super::Scope::Admin => "admin",
    }
}

pub(super) fn json_text<T: Serialize>(value: &Option<T>) -> Result<Option<String>, StoreError> {
    value.as_ref().map(|value| serde_json::to_string(value).map_err(unwritable)).transpose()
}

fn json_list<T: Serialize>(list: &[T]) -> Result<Option<String>, StoreError> {
    json_text(&(!list.is_empty()).then_some(list))
}

pub(super) fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Conflict(format!("could not be written as JSON: {error}"))
}
