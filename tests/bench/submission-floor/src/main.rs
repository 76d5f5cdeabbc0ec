//! What a submission costs at least: HTTP, JSON, and three rows in SQLite behind one fsync, without anything that a job needs.
//!
//! `POST /api/v1/jobs` and `POST /api/v1/jobs/batch` store what they are sent, a job, an event and an audit row each, and answer
//! after the commit. One thread writes and commits everything that waits (group commit), as the service does; there is no token,
//! nothing is validated, and nothing ever starts. `make bench` shows the service's submissions beside these.

use std::path::PathBuf;

use anyhow::Context;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::routing::post;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// The most submissions in one transaction.
const GROUP: usize = 1024;

const TABLES: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE jobs (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, name TEXT, spec TEXT NOT NULL);
    CREATE TABLE events (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, job BLOB NOT NULL);
    CREATE TABLE audit (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, job BLOB NOT NULL);
";

#[derive(Serialize, Deserialize)]
struct Submission {
    name: Option<String>,
    command: Vec<String>,
    config: Map<String, Value>,
}

#[derive(Serialize)]
struct Job {
    id: Uuid,
    #[serde(flatten)]
    submission: Submission,
}

/// Jobs that are stored together.
struct Unit {
    jobs: Vec<(Uuid, Option<String>, String)>,
    stored: oneshot::Sender<()>,
}

#[derive(Clone)]
struct Writer(mpsc::Sender<Unit>);

impl Writer {
    async fn store(&self, jobs: &[Job]) -> Result<(), StatusCode> {
        let failed = StatusCode::INTERNAL_SERVER_ERROR;
        let jobs =
            jobs.iter().map(|job| Ok((job.id, job.submission.name.clone(), serde_json::to_string(&job.submission)?)));
        let jobs = jobs.collect::<serde_json::Result<_>>().map_err(|_| failed)?;
        let (stored, answer) = oneshot::channel();
        self.0.send(Unit { jobs, stored }).await.map_err(|_| failed)?;
        answer.await.map_err(|_| failed)
    }
}

async fn submit(
    State(writer): State<Writer>,
    Json(submission): Json<Submission>,
) -> Result<(StatusCode, Json<Job>), StatusCode> {
    let job = Job { id: Uuid::now_v7(), submission };
    writer.store(std::slice::from_ref(&job)).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

async fn submit_batch(
    State(writer): State<Writer>,
    Json(submissions): Json<Vec<Submission>>,
) -> Result<(StatusCode, Json<Vec<Job>>), StatusCode> {
    let jobs: Vec<Job> = submissions.into_iter().map(|submission| Job { id: Uuid::now_v7(), submission }).collect();
    writer.store(&jobs).await?;
    Ok((StatusCode::CREATED, Json(jobs)))
}

/// Stores what comes until every sender is gone.
fn write(mut connection: Connection, mut units: mpsc::Receiver<Unit>) -> rusqlite::Result<()> {
    while let Some(first) = units.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(unit) = units.try_recv()
        {
            group.push(unit);
        }
        let transaction = connection.transaction()?;
        {
            let mut job =
                transaction.prepare_cached("INSERT INTO jobs (id, state, name, spec) VALUES (?1, 'queued', ?2, ?3)")?;
            let mut event =
                transaction.prepare_cached("INSERT INTO events (at, kind, job) VALUES (?1, 'job.queued', ?2)")?;
            let mut audit = transaction
                .prepare_cached("INSERT INTO audit (at, actor, action, job) VALUES (?1, 'admin', 'submit', ?2)")?;
            for (id, name, spec) in group.iter().flat_map(|unit| &unit.jobs) {
                // Milliseconds since the epoch are the first 48 bits of a version 7 id.
                let at = (id.as_u128() >> 80) as i64;
                job.execute(params![id.as_bytes(), name, spec])?;
                event.execute(params![at, id.as_bytes()])?;
                audit.execute(params![at, id.as_bytes()])?;
            }
        }
        transaction.commit()?;
        for unit in group {
            // Whoever asked may have gone.
            let _ = unit.stored.send(());
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let file = PathBuf::from(std::env::args_os().nth(1).context("usage: taxiway-submission-floor DATABASE")?);
    let connection = Connection::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
    connection.execute_batch(TABLES)?;
    let (sender, units) = mpsc::channel(4 * GROUP);
    std::thread::spawn(move || {
        if let Err(error) = write(connection, units) {
            eprintln!("cannot store: {error}");
            std::process::exit(1);
        }
    });
    let router = axum::Router::new()
        .route("/api/v1/jobs", post(submit))
        .route("/api/v1/jobs/batch", post(submit_batch))
        .with_state(Writer(sender));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}
