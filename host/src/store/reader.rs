//! What can be asked.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};
use taxiway_job::{Job, JobId, Progress, State, StopTarget, Terms, Time};
use tokio::sync::Semaphore;

use super::row::{JOB, job, json, parsed, required, time, whole_job};
use super::{BodyHash, Delivery, DeliveryId, DeliveryStatus, Event, Scope, Store, StoreError, schema};

/// Connections that read. Queries take well under a millisecond, so a few serve many clients.
pub(super) const READERS: usize = 4;

pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
    path: PathBuf,
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize) -> rusqlite::Result<Self> {
        let idle = (0..count).map(|_| connect(path)).collect::<Result<_, _>>()?;
        Ok(Self { idle: Mutex::new(idle), free: Arc::new(Semaphore::new(count)), path: path.to_owned() })
    }
}

fn one_job(
    db: &Connection,
    id: JobId,
    of_row: fn(&Row<'_>) -> rusqlite::Result<Job>,
) -> Result<Option<Job>, StoreError> {
    let mut statement = db.prepare_cached(&format!("SELECT {JOB} FROM jobs WHERE id = ?1"))?;
    Ok(statement.query_row(params![id.as_bytes()], of_row).optional()?)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    schema::configure(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// A job that has not ended, as the queue needs it.
#[derive(Debug, Clone)]
pub struct QueuedJob {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: State,
    /// Its priority.
    pub priority: i16,
    /// Its rank.
    pub rank: i64,
    /// GPUs it needs.
    pub gpus: u32,
    /// Its attempt.
    pub attempt: u32,
    /// Where a stop that was ordered leads.
    pub stop_target: Option<StopTarget>,
    /// Its profile.
    pub profile: Option<String>,
    /// What it asks of the queue beside its slots; none for nothing.
    pub terms: Option<Terms>,
    /// Grows with every edit.
    pub revision: u32,
    /// Automatic retries since somebody last asked for it to run.
    pub retries_done: u32,
    /// The next attempt comes no earlier than this.
    pub retry_at: Option<Time>,
}

/// What a forecast needs of a job.
#[derive(Debug, Clone)]
pub struct Course {
    /// Which.
    pub id: JobId,
    /// Jobs of the same kind take about as long: those of the same profile, else of the same name.
    pub kind: Kind,
    /// When its process was started.
    pub started_at: Option<Time>,
    /// The last it said of how far it is.
    pub progress: Option<Progress>,
}

/// Jobs that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Of this profile.
    Profile(String),
    /// Without a profile, of this name.
    Name(String),
}

/// Ended jobs that a forecast looks at: recent ones tell more than old ones.
const RECENT: usize = 2000;

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
}

impl Store {
    /// Runs a query on a connection of its own, off the runtime's threads.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_with(self.readers.clone(), query).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        readers: Arc<Readers>,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let work = async move {
            // The semaphore is never closed.
            let permit = readers.free.clone().acquire_owned().await.map_err(|_| StoreError::Stopped)?;
            let connection = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let readers = readers.clone();
            tokio::task::spawn_blocking(move || {
                let connection = match connection {
                    Some(connection) => connection,
                    None => connect(&readers.path)?,
                };
                let result = query(&connection);
                readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                // Held to here also when the asker has gone away: there are never more connections than permits.
                drop(permit);
                result
            })
            .await
            .map_err(|error| StoreError::Unavailable(format!("a query did not finish: {error}")))?
        };
        work.await
    }

    /// The job with this id. What of it cannot be read is empty, and a warning of the job says so: here and wherever jobs are
    /// read, so that one does not hide the others.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(move |db| one_job(db, id, job)).await
    }

    /// The same, for whoever needs all that makes the job what it is.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] when part of that cannot be read; else when the database cannot be.
    pub async fn whole_job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(move |db| one_job(db, id, whole_job)).await
    }

    /// The same for the queue, which is about to start it: lists of a million jobs that take every other connection hold nothing up.
    ///
    /// # Errors
    /// As [`Store::whole_job`].
    pub async fn job_to_start(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read_with(self.starting.clone(), move |db| one_job(db, id, whole_job)).await
    }

    /// Those of these jobs that there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn jobs_by_id(&self, ids: Vec<JobId>) -> Result<HashMap<JobId, Job>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!("SELECT {JOB} FROM jobs WHERE id = ?1"))?;
            let mut found = HashMap::with_capacity(ids.len());
            for id in ids {
                if let Some(job) = statement.query_row(params![id.as_bytes()], job).optional()? {
                    found.insert(id, job);
                }
            }
            Ok(found)
        })
        .await
    }

    /// The job with this external id, and the hash of the request that submitted it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_by_external_id(&self, external_id: &str) -> Result<Option<(Job, BodyHash)>, StoreError> {
        let external_id = external_id.to_owned();
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!("SELECT {JOB}, body FROM jobs WHERE external_id = ?1"))?;
            Ok(statement
                .query_row(params![external_id], |row| Ok((job(row)?, BodyHash(row.get("body")?))))
                .optional()?)
        })
        .await
    }

    /// Those of these external ids that jobs have already.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn taken_external_ids(&self, external_ids: Vec<String>) -> Result<HashSet<String>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM jobs WHERE external_id = ?1")?;
            let mut taken = HashSet::new();
            for id in external_ids {
                if statement.exists(params![id])? {
                    taken.insert(id);
                }
            }
            Ok(taken)
        })
        .await
    }

    /// Every job that has not ended, in the order of submission.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn unended_jobs(&self) -> Result<Vec<QueuedJob>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, state, priority, rank, gpus, attempt, stop_target, profile, terms, revision, retries_done,
                    retry_at FROM jobs
                 WHERE state IN ('held', 'queued', 'pending', 'running', 'cancelling')",
            )?;
            let jobs = statement.query_map([], |row| {
                let stop_target = row.get::<_, Option<String>>("stop_target")?;
                Ok(QueuedJob {
                    id: JobId::from_bytes(row.get("id")?),
                    state: parsed(row, "state")?,
                    priority: row.get("priority")?,
                    rank: row.get("rank")?,
                    gpus: row.get("gpus")?,
                    attempt: row.get("attempt")?,
                    stop_target: match stop_target.as_deref() {
                        Some("cancelled") => Some(StopTarget::Cancelled),
                        Some("queued") => Some(StopTarget::Queued),
                        Some("held") => Some(StopTarget::Held),
                        _ => None,
                    },
                    profile: row.get("profile")?,
                    terms: json(row, "terms")?,
                    revision: row.get("revision")?,
                    retries_done: row.get("retries_done")?,
                    retry_at: time(row, "retry_at")?,
                })
            })?;
            Ok(jobs.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The states of these jobs; one that is not there has none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn states(&self, ids: Vec<JobId>) -> Result<HashMap<JobId, State>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT state FROM jobs WHERE id = ?1")?;
            let mut states = HashMap::new();
            for id in ids {
                let state = statement.query_row(params![id.as_bytes()], |row| parsed(row, "state")).optional()?;
                states.extend(state.map(|state| (id, state)));
            }
            Ok(states)
        })
        .await
    }

    /// What a forecast needs of these jobs; those that are not there are left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn courses(&self, ids: Vec<JobId>) -> Result<Vec<Course>, StoreError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT profile, name, started_at, progress FROM jobs WHERE id = ?1")?;
            let mut courses = Vec::with_capacity(ids.len());
            for id in ids {
                let course = statement.query_row(params![id.as_bytes()], |row| {
                    Ok(Course {
                        id,
                        kind: kind(row)?,
                        started_at: time(row, "started_at")?,
                        // Without one that can be read it is foretold like a job that says nothing.
                        progress: json(row, "progress").unwrap_or_default(),
                    })
                });
                courses.extend(course.optional()?);
            }
            Ok(courses)
        })
        .await
    }

    /// The median time from start to end of the jobs of each kind that ended lately.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn median_durations(&self) -> Result<HashMap<Kind, Duration>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT profile, name, finished_at - started_at AS duration FROM jobs
                 WHERE finished_at IS NOT NULL AND started_at IS NOT NULL ORDER BY finished_at DESC LIMIT ?1",
            )?;
            let mut rows = statement.query(params![RECENT as i64])?;
            let mut durations: HashMap<Kind, Vec<u64>> = HashMap::new();
            while let Some(row) = rows.next()? {
                let duration = u64::try_from(row.get::<_, i64>("duration")?).unwrap_or(0);
                durations.entry(kind(row)?).or_default().push(duration);
            }
            let median = |mut all: Vec<u64>| {
                let middle = all.len() / 2;
                Duration::from_millis(*all.select_nth_unstable(middle).1)
            };
            Ok(durations.into_iter().map(|(kind, all)| (kind, median(all))).collect())
        })
        .await
    }

    /// The highest rank ever given out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn highest_rank(&self) -> Result<i64, StoreError> {
        // The last submission has the highest rank, unless a later requeue took a higher one; those are few and not ended.
        self.read(|db| {
            Ok(db.query_row(
                "SELECT max(coalesce((SELECT rank FROM jobs ORDER BY seq DESC LIMIT 1), 0),
                    coalesce((SELECT max(rank) FROM jobs
                        WHERE state IN ('held', 'queued', 'pending', 'running', 'cancelling')), 0))",
                [],
                |row| row.get(0),
            )?)
        })
        .await
    }

    /// What an attempt of a job reported over time, in order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn samples(&self, id: JobId, attempt: u32) -> Result<Vec<(Time, Map<String, Value>)>, StoreError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT at, data FROM samples WHERE job = ?1 AND attempt = ?2 ORDER BY at")?;
            let samples = statement.query_map(params![id.as_bytes(), attempt], |row| {
                Ok((Time::from_millis(row.get("at")?), required(row, "data")?))
            })?;
            Ok(samples.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Every GPU in quarantine: its UUID, what is wrong with it, and the boot of the machine in which that was found.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn quarantined_gpus(&self) -> Result<Vec<(String, crate::gpu::Trouble, String)>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT uuid, trouble, boot_id FROM gpu_quarantine ORDER BY uuid")?;
            let gpus = statement
                .query_map([], |row| Ok((row.get("uuid")?, required(row, "trouble")?, row.get("boot_id")?)))?;
            Ok(gpus.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Events with a higher id than this one, in order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn events_after(&self, id: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT id, at, kind, job, data FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let events = statement.query_map(params![id as i64, limit as i64], |row| {
                let id = row.get::<_, i64>("id")? as u64;
                // That it happened is told all the same, and what came after it.
                let data = json::<Map<String, Value>>(row, "data").unwrap_or_else(|error| {
                    tracing::warn!(id, %error, "the members of an event cannot be read: it is told without them");
                    None
                });
                Ok(Event {
                    id,
                    at: Time::from_millis(row.get("at")?),
                    kind: row.get("kind")?,
                    job: row.get::<_, Option<[u8; 16]>>("job")?.map(JobId::from_bytes),
                    data: data.unwrap_or_default(),
                })
            })?;
            Ok(events.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The id of the last event; 0 when there was none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn last_event_id(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            Ok(db.query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get::<_, i64>(0))? as u64)
        })
        .await
    }

    /// Deliveries whose next try is due, the longest due first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn due_deliveries(&self, now: Time, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        self.deliveries_where("status = 'waiting' AND next_at <= ?1 ORDER BY next_at", now.as_millis().into(), limit)
            .await
    }

    /// Deliveries of one job, in the order of their making.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn deliveries_of(&self, id: JobId) -> Result<Vec<Delivery>, StoreError> {
        self.deliveries_where("job = ?1 ORDER BY created_at", id.as_bytes().to_vec().into(), 1000).await
    }

    async fn deliveries_where(
        &self,
        condition: &'static str,
        value: Sql,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT {DELIVERY} FROM deliveries WHERE {condition} LIMIT ?2"))?;
            let deliveries = statement.query_map(params![value, limit as i64], delivery)?;
            Ok(deliveries.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// When the next delivery is due; none when none waits.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn next_delivery_at(&self) -> Result<Option<Time>, StoreError> {
        self.read(|db| {
            Ok(db
                .query_row("SELECT min(next_at) FROM deliveries WHERE status = 'waiting'", [], |row| {
                    row.get::<_, Option<i64>>(0)
                })?
                .map(Time::from_millis))
        })
        .await
    }

    /// The token with this hash.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn token_by_hash(&self, sha256: [u8; 32]) -> Result<Option<Token>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT name, scope FROM tokens WHERE sha256 = ?1")?;
            Ok(statement
                .query_row(params![sha256], |row| {
                    let scope = match row.get::<_, String>("scope")?.as_str() {
                        "admin" => Scope::Admin,
                        "operate" => Scope::Operate,
                        "submit" => Scope::Submit,
                        _ => Scope::Read,
                    };
                    Ok(Token { name: row.get("name")?, scope })
                })
                .optional()?)
        })
        .await
    }

    /// The value of a setting that the service keeps over restarts.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn setting(&self, key: &'static str) -> Result<Option<String>, StoreError> {
        self.read(move |db| {
            Ok(db.query_row("SELECT value FROM settings WHERE key = ?1", params![key], |row| row.get(0)).optional()?)
        })
        .await
    }
}

fn kind(row: &Row<'_>) -> rusqlite::Result<Kind> {
    Ok(match row.get("profile")? {
        Some(profile) => Kind::Profile(profile),
        None => Kind::Name(row.get("name")?),
    })
}

pub(super) const DELIVERY: &str =
    "id, plugin, job, attempt, end_state, will_retry, status, tries, next_at, last_error, created_at";

pub(super) fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: DeliveryId(uuid::Uuid::from_bytes(row.get("id")?)),
        plugin: row.get("plugin")?,
        job: JobId::from_bytes(row.get("job")?),
        attempt: row.get("attempt")?,
        end: parsed(row, "end_state")?,
        will_retry: row.get("will_retry")?,
        tries: row.get("tries")?,
        next_at: Time::from_millis(row.get("next_at")?),
        status: match row.get::<_, String>("status")?.as_str() {
            "waiting" => DeliveryStatus::Waiting,
            "delivered" => DeliveryStatus::Delivered,
            _ => DeliveryStatus::Dead,
        },
        last_error: row.get("last_error")?,
        created_at: Time::from_millis(row.get("created_at")?),
    })
}
