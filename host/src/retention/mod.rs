//! Retention: jobs that ended long ago, their logs and their events go, so that a service that runs for years fits its disk.
//!
//! Logs go before their jobs, the first to end first: by their age, and when all of them together are larger than they may be.
//! Jobs, events, the audit trail and the keys of requests go by age alone. Everything is done in small units between which
//! others get their turn.
//!
//! That a job is removed, by its age or by a person, is durable before the first of its files goes, and what names its files is kept
//! until all of them have gone. So a crash in between leaves neither a job without its files nor files that nobody knows of: the
//! next start goes on. A directory that was made for a launch that no row names, because the service was killed just then, goes with
//! its job. The logs of jobs that ended long ago go before that all the same: a disk that is full has to get space first.
//!
//! A job stays until every completion hook was told of its end, or was given up.
//!
//! What a job has written into its own directory is its user's: only what the service has made goes.
//!
//! The worker sleeps until something that is there is old enough; a job that ends wakes it at most once an hour, to look at the
//! size of the logs. A service at rest is not woken.

mod files;

use std::path::PathBuf;
use std::time::Duration;

use taxiway_job::{JobId, Time};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::config::Retention as Limits;
use crate::store::{Change, EndedJob, RemovedJob, Store, StoreError};

/// How long the key of a request is remembered: a client that sends it again after a week means something new.
pub const KEYS: Duration = Duration::from_secs(7 * 24 * 3600);

/// From one look to the next, at least: what is over the limit by a job or two can wait.
const BETWEEN: Duration = Duration::from_secs(3600);

/// How long to leave the store alone after it failed.
const AFTER_FAILURE: Duration = Duration::from_secs(3600);

/// Jobs looked at or removed in one go.
const AT_A_TIME: usize = 250;

/// The setting that says up to which end logs have gone.
const LOGS_GONE: &str = "logs_gone_until";

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Removed {
    /// Jobs that ended long ago, with all that was kept of them.
    pub jobs: u64,
    /// Logs.
    pub logs: u64,
    /// Bytes of those logs.
    pub log_bytes: u64,
}

/// A handle to the worker. Clones share it; the worker ends with the last of them.
#[derive(Clone)]
pub struct Retention {
    asked: mpsc::Sender<oneshot::Sender<Result<Removed, StoreError>>>,
}

impl Retention {
    /// Starts the worker, which sleeps by this alarm.
    #[must_use]
    pub fn spawn(store: Store, jobs_dir: PathBuf, limits: Limits, alarm: Alarm) -> Self {
        let (asked, asking) = mpsc::channel(4);
        tokio::spawn(Worker { store, jobs_dir, limits }.run(asking, alarm));
        Self { asked }
    }

    /// Removes now what may go.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn collect(&self) -> Result<Removed, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.asked.send(reply).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

struct Worker {
    store: Store,
    jobs_dir: PathBuf,
    limits: Limits,
}

impl Worker {
    async fn run(self, mut asking: mpsc::Receiver<oneshot::Sender<Result<Removed, StoreError>>>, mut alarm: Alarm) {
        if let Err(error) = self.finish_removals().await {
            tracing::warn!(%error, "the files of jobs that were removed before could not be");
        }
        let mut next = Some(Instant::now() + self.until_due().await);
        loop {
            let due = async {
                match next {
                    Some(next) => alarm.after(next - Instant::now()).await,
                    None => std::future::pending().await,
                }
            };
            let reply = tokio::select! {
                reply = asking.recv() => match reply {
                    Some(reply) => Some(reply),
                    None => return,
                },
                () = due => None,
                // Not sooner than what is due anyway.
                () = self.store.job_ended().notified(), if next.is_none_or(|next| next > Instant::now() + BETWEEN) => {
                    next = Some(Instant::now() + BETWEEN);
                    continue;
                }
            };
            let removed = self.collect().await;
            match &removed {
                Ok(removed) if *removed != Removed::default() => {
                    tracing::info!(
                        jobs = removed.jobs,
                        logs = removed.logs,
                        log_bytes = removed.log_bytes,
                        "removed what was kept long enough"
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "what was kept long enough could not be removed"),
            }
            if let Some(reply) = reply {
                // An error means that the asker has gone away.
                let _ = reply.send(removed);
            }
            next = Some(Instant::now() + self.until_due().await).filter(|next| *next < Instant::now() + 100 * BETWEEN);
        }
    }

    /// How long nothing gets old enough to go.
    async fn until_due(&self) -> Duration {
        let look = async { self.store.oldest(self.logs_gone(Time::now()).await?).await };
        let oldest = match look.await {
            Ok(oldest) => oldest,
            Err(error) => {
                tracing::warn!(%error, "the oldest jobs cannot be read");
                return AFTER_FAILURE;
            }
        };
        let now = Time::now();
        let due = [(oldest.job, self.limits.jobs), (oldest.logs, self.limits.logs), (oldest.event, self.limits.jobs)]
            .into_iter()
            .filter_map(|(time, age)| Some(time?.plus(age).as_millis() - now.as_millis()));
        // Never: the far future.
        let wait = due.min().unwrap_or(i64::MAX / 2);
        // A clock that was set back must not keep everything for as long as it was wrong.
        Duration::from_millis(wait.try_into().unwrap_or(0)).clamp(BETWEEN, 1000 * BETWEEN)
    }

    /// Up to which end logs have gone. One that lies ahead was written by a clock that was: all are looked at again.
    async fn logs_gone(&self, now: Time) -> Result<Time, StoreError> {
        let gone = self.store.setting(LOGS_GONE).await?.and_then(|text| text.parse().ok());
        Ok(Time::from_millis(gone.filter(|gone| *gone <= now.as_millis()).unwrap_or(i64::MIN)))
    }

    async fn collect(&self) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let now = Time::now();
        self.remove_logs(now, &mut removed).await?;
        let too_old = now.minus(self.limits.jobs);
        loop {
            let jobs = self.store.forgettable(too_old, AT_A_TIME).await?;
            if jobs.is_empty() {
                break;
            }
            let ids = jobs.iter().map(|job| job.id).collect();
            let count = jobs.len() as u64;
            let dir = self.jobs_dir.clone();
            let (logs, bytes) = off_the_runtime(move || files::remove_logs(&dir, &jobs)).await?;
            removed.logs += logs;
            removed.log_bytes += bytes;
            self.store.commit(vec![Change::Forget { jobs: ids }]).await?;
            removed.jobs += count;
            self.finish_removals().await?;
        }
        self.finish_removals().await?;
        while self.store.oldest(now).await?.event.is_some_and(|at| at < too_old) {
            self.store.commit(vec![Change::ForgetEvents { before: too_old, keys_before: now.minus(KEYS) }]).await?;
        }
        self.store.commit(vec![Change::ForgetEvents { before: too_old, keys_before: now.minus(KEYS) }]).await?;
        Ok(removed)
    }

    /// Removes the files of all jobs that were removed.
    async fn finish_removals(&self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let jobs = self.store.removed(after, AT_A_TIME).await?;
            let Some(last) = jobs.last() else { return Ok(()) };
            after = Some(last.id);
            finish(&self.store, self.jobs_dir.clone(), jobs).await?;
        }
    }

    /// Removes logs of jobs that ended up to some moment: long ago, or so that those of later ones fit.
    async fn remove_logs(&self, now: Time, removed: &mut Removed) -> Result<(), StoreError> {
        let mut gone = self.logs_gone(now).await?;
        let until = now.minus(self.limits.logs).max(self.first_that_does_not_fit(gone, now).await?.unwrap_or(gone));
        while gone < until {
            let jobs = self.store.ended_between(gone, until, AT_A_TIME).await?;
            // Others may have ended in the same millisecond as the last one: they are looked at again.
            let full = jobs.len() == AT_A_TIME;
            let last = match (jobs.first(), jobs.last()) {
                (Some(first), Some(last)) if full && first.finished_at < last.finished_at => {
                    last.finished_at.minus(Duration::from_millis(1))
                }
                (_, Some(last)) if full => last.finished_at,
                _ => until,
            };
            let dir = self.jobs_dir.clone();
            let (logs, bytes) = off_the_runtime(move || files::remove_logs(&dir, &jobs)).await?;
            removed.logs += logs;
            removed.log_bytes += bytes;
            self.store.commit(vec![Change::Setting { key: LOGS_GONE, value: last.as_millis().to_string() }]).await?;
            gone = last;
        }
        Ok(())
    }

    /// The end of the last job whose logs, together with those of all later ones, are larger than they may be.
    async fn first_that_does_not_fit(&self, after: Time, now: Time) -> Result<Option<Time>, StoreError> {
        // Whatever ended up to now, and a clock that is ahead of the jobs' by nothing.
        let mut before = now.plus(Duration::from_millis(1));
        let mut bytes = 0;
        loop {
            let jobs = self.store.ended_before(after, before, AT_A_TIME).await?;
            let Some(first) = jobs.last().map(|job| job.finished_at) else { return Ok(None) };
            let dir = self.jobs_dir.clone();
            let sizes: Vec<(Time, u64)> = off_the_runtime(move || {
                jobs.iter().map(|job: &EndedJob| (job.finished_at, files::log_bytes(&dir, job))).collect()
            })
            .await?;
            for (finished_at, size) in sizes {
                bytes += size;
                if bytes > self.limits.logs_size {
                    return Ok(Some(finished_at));
                }
            }
            before = first;
        }
    }
}

/// Removes the files of a job that was removed. What is not done of it, the next start does.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn remove_files(store: &Store, jobs_dir: PathBuf, job: JobId) -> Result<(), StoreError> {
    let launches = store.launches(job).await?;
    finish(store, jobs_dir, vec![RemovedJob { id: job, launches }]).await
}

async fn finish(store: &Store, jobs_dir: PathBuf, jobs: Vec<RemovedJob>) -> Result<(), StoreError> {
    let gone = off_the_runtime(move || files::remove_jobs(&jobs_dir, &jobs)).await?;
    if gone.is_empty() {
        return Ok(());
    }
    store.commit(vec![Change::FilesGone { jobs: gone }]).await
}

/// Files take as long as they take.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests;
