//! The attempts of jobs, as they are stored.

use std::time::Duration;

use rusqlite::params;
use taxiway_job::{Exit, Failure, Handover, JobId, JobSpec, LaunchId, State, Time, Usage};

use super::row::{json, parsed, required, time};
use super::{Store, StoreError};

/// How far a launch had come when it was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its shim was about to be started.
    Armed,
    /// The shim had been told to start the command.
    Pending,
    /// The command ran.
    Running,
}

/// A launch of which no end is stored.
#[derive(Debug, Clone)]
pub struct UnsettledAttempt {
    /// Whose.
    pub job: JobId,
    /// The launch.
    pub launch: LaunchId,
    /// How far it had come.
    pub phase: Phase,
    /// The boot of the machine in which it was armed.
    pub boot_id: String,
    /// The GPUs it holds.
    pub gpu_uuids: Vec<String>,
    /// The job's time limit as it is now.
    pub time_limit: Option<Duration>,
}

/// One attempt of a job and how it ended.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// The launch.
    pub launch: LaunchId,
    /// Its number.
    pub attempt: u32,
    /// Whether its launch was armed; else it failed before, and has neither a directory nor a log.
    pub armed: bool,
    /// The exit status.
    pub exit: Exit,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What it used.
    pub usage: Option<Usage>,
    /// The state that it led to; none while it is under way.
    pub end_state: Option<State>,
    /// The hand-over to it.
    pub handover: Option<Handover>,
    /// The GPUs it had.
    pub gpu_uuids: Vec<String>,
    /// The process.
    pub pid: Option<i32>,
    /// When the process started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
}

impl Store {
    /// Every launch of which no end is stored: those that run in the order of their start, then the pending, then the armed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn unsettled_attempts(&self) -> Result<Vec<UnsettledAttempt>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT job, launch, phase, boot_id, attempts.gpu_uuids, spec FROM attempts JOIN jobs ON jobs.id = job
                 WHERE phase != 'ended' ORDER BY phase DESC, attempts.started_at",
            )?;
            let attempts = statement.query_map([], |row| {
                Ok(UnsettledAttempt {
                    job: JobId::from_bytes(row.get("job")?),
                    launch: LaunchId::from_bytes(row.get("launch")?),
                    phase: match row.get::<_, String>("phase")?.as_str() {
                        "armed" => Phase::Armed,
                        "pending" => Phase::Pending,
                        _ => Phase::Running,
                    },
                    boot_id: row.get("boot_id")?,
                    gpu_uuids: json(row, "gpu_uuids")?.unwrap_or_default(),
                    time_limit: required::<JobSpec>(row, "spec")?.time_limit,
                })
            })?;
            Ok(attempts.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The attempts of a job, first to last, without the one that is only armed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT launch, attempt, boot_id != '' AS armed, end_state, exit_code, exit_signal, failure, usage, handover, gpu_uuids, pid, started_at,
                    finished_at FROM attempts
                 WHERE job = ?1 AND phase != 'armed' ORDER BY attempt",
            )?;
            let attempts = statement.query_map(params![id.as_bytes()], |row| {
                Ok(AttemptRecord {
                    launch: LaunchId::from_bytes(row.get("launch")?),
                    attempt: row.get("attempt")?,
                    armed: row.get("armed")?,
                    exit: Exit { code: row.get("exit_code")?, signal: row.get("exit_signal")? },
                    failure: json(row, "failure")?,
                    usage: json(row, "usage")?,
                    end_state: match row.get::<_, Option<String>>("end_state")? {
                        Some(_) => Some(parsed(row, "end_state")?),
                        None => None,
                    },
                    handover: json(row, "handover")?,
                    gpu_uuids: json(row, "gpu_uuids")?.unwrap_or_default(),
                    pid: row.get("pid")?,
                    started_at: time(row, "started_at")?,
                    finished_at: time(row, "finished_at")?,
                })
            })?;
            Ok(attempts.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The launch whose log is the job's: its latest start.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn latest_launch(&self, id: JobId) -> Result<Option<LaunchId>, StoreError> {
        let attempts = self.attempts(id).await?;
        Ok(attempts.iter().rfind(|attempt| attempt.armed).map(|attempt| attempt.launch))
    }

    /// The attempt with this number and how it ended; none when it was cancelled before it came to anything.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn end_of(&self, id: JobId, attempt: u32) -> Result<Option<AttemptRecord>, StoreError> {
        Ok(self.attempts(id).await?.into_iter().find(|record| record.attempt == attempt))
    }
}
