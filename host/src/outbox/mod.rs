//! The outbox: completion hooks hear of every end, though plugins fail, receivers are down and the service restarts.
//!
//! The end of a job and one row for each hook that hears of it are stored in one transaction ([`deliveries_for`] says which).
//! From then on the row is this room's: a worker takes the rows that are due, calls the hooks beside each other, and writes
//! down what came of it. Nothing here is on a job's path.
//!
//! A delivery is made *at least once*: a crash between a hook's answer and its commit has it told again, under the same id,
//! by which the receiver knows. A try that fails is made again later and later ([`back_off`]), until the last one leaves a
//! dead letter. The worker sleeps until a row is added, a try ends, or the next one is due.

mod back_off;
mod hooks;
mod outcome;
mod tell;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taxiway_job::Time;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarm;
use crate::store::{DeliveryId, Store};
pub use back_off::MAX_ATTEMPTS;
pub use hooks::{CompletionHooks, deliveries_for};

/// Deliveries under way at a time. They wait for receivers most of their time; the plugin host has 32 places for all calls,
/// and half of them stay free for submissions.
const UNDER_WAY: usize = 16;

/// Deliveries of one plugin under way at a time, so that a receiver that lets everybody wait holds up only its own.
const UNDER_WAY_OF_ONE_PLUGIN: usize = 4;

/// Rows looked at in one go: more than one plugin's backlog of a bad minute, so that others are seen behind it.
const ROWS_AT_A_TIME: usize = 1000;

/// Longest sleep: a clock that was set back must not have a delivery wait for as long as it was wrong.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How long to leave a database alone that cannot be read.
const PAUSE_OF_THE_STORE: Duration = Duration::from_secs(5);

/// What an outbox is made of.
pub struct Options {
    /// Where the deliveries are.
    pub store: Store,
    /// The plugins.
    pub hooks: Arc<dyn CompletionHooks>,
    /// Where the jobs' directories are: the ends of their logs are told.
    pub jobs_dir: PathBuf,
    /// Tries until a delivery is a dead letter ([`MAX_ATTEMPTS`]).
    pub max_attempts: u32,
}

/// The worker's handle. Dropped, the worker ends at once; what was under way is told again by the next one.
pub struct Outbox {
    stop: CancellationToken,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Outbox {
    /// Starts the worker, which sleeps by this alarm. What an earlier one left is due again.
    #[must_use]
    pub fn spawn(options: Options, alarm: Alarm) -> Self {
        let stop = CancellationToken::new();
        let worker =
            Worker { options: Arc::new(options), stop: stop.clone(), under_way: HashMap::new(), tries: JoinSet::new() };
        Self { stop, worker: Mutex::new(Some(tokio::spawn(worker.run(alarm)))) }
    }

    /// Begins no more tries and waits for those under way, at most for `patience`. Those that take longer are cut off and
    /// made again after the next start.
    pub async fn stop(&self, patience: Duration) {
        self.stop.cancel();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut worker) = worker else { return };
        if tokio::time::timeout(patience, &mut worker).await.is_err() {
            tracing::info!(
                "deliveries that took longer than {} s were cut off; they are made again",
                patience.as_secs_f32()
            );
            worker.abort();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            worker.abort();
        }
    }
}

struct Worker {
    options: Arc<Options>,
    stop: CancellationToken,
    /// Deliveries that are being tried, with their plugins: they are still due in the store.
    under_way: HashMap<DeliveryId, String>,
    tries: JoinSet<DeliveryId>,
}

impl Worker {
    async fn run(mut self, mut alarm: Alarm) {
        let options = self.options.clone();
        // A plugin that has not been loaded yet is not one that was removed.
        tokio::select! {
            () = options.hooks.ready() => {}
            () = self.stop.cancelled() => return,
        }
        while !self.stop.is_cancelled() {
            // Registered before the rows are read, so that none that is added meanwhile goes unseen.
            let mut added = pin!(options.store.deliveries_added().notified());
            added.as_mut().enable();
            let sleep = self.start_what_is_due().await;
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = &mut added => {}
                Some(ended) = self.tries.join_next_with_id() => self.forget(ended),
                () = alarm.after(sleep) => {}
            }
        }
        while let Some(ended) = self.tries.join_next_with_id().await {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(tokio::task::Id, DeliveryId), tokio::task::JoinError>) {
        match ended {
            Ok((_, delivery)) => {
                self.under_way.remove(&delivery);
            }
            // A panic of Taxiway's own: which delivery it was is lost, so all that are not running are due again.
            Err(error) => {
                tracing::error!(%error, "a delivery broke off");
                if self.tries.is_empty() {
                    self.under_way.clear();
                }
            }
        }
    }

    /// Begins as many tries as may be under way. Gives the time until another may be due without an event telling of it.
    async fn start_what_is_due(&mut self) -> Duration {
        if self.under_way.len() >= UNDER_WAY {
            return LONGEST_SLEEP;
        }
        // Also the rows that are not due yet: the first of them says how long to sleep.
        let rows = match self.options.store.due_deliveries(Time::from_millis(i64::MAX), ROWS_AT_A_TIME).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the deliveries that are due cannot be read");
                return PAUSE_OF_THE_STORE;
            }
        };
        let now = Time::now();
        for row in rows {
            if self.under_way.contains_key(&row.id) {
                continue;
            }
            if row.next_at > now {
                return until(row.next_at, now).min(LONGEST_SLEEP);
            }
            if self.under_way.len() >= UNDER_WAY {
                break;
            }
            if self.under_way.values().filter(|plugin| **plugin == row.plugin).count() >= UNDER_WAY_OF_ONE_PLUGIN {
                continue;
            }
            self.under_way.insert(row.id, row.plugin.clone());
            self.tries.spawn(tell::tell(self.options.clone(), row));
        }
        LONGEST_SLEEP
    }
}

fn until(then: Time, now: Time) -> Duration {
    Duration::from_millis(then.as_millis().saturating_sub(now.as_millis()).try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests;
