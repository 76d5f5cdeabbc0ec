//! One try of one delivery.

use std::sync::Arc;
use std::time::Duration;

use taxiway_job::Time;
use taxiway_plugin_host::{CallError, FailureKind};

use super::{Options, back_off, outcome};
use crate::store::{Change, Delivery, DeliveryId, StoreError};

/// Pauses between attempts to write down what came of a try: one second, doubling to a minute. After the last, some five
/// minutes later, the delivery counts as not tried, and is made again.
const COMMIT_PAUSES: u32 = 9;

/// How long to leave plugins alone that have no place for another call, beside the time that was waited for one.
const PAUSE_IN_A_CROWD: Duration = Duration::from_secs(1);

/// Makes a try and writes down what came of it.
pub(super) async fn tell(options: Arc<Options>, delivery: Delivery) -> DeliveryId {
    let id = delivery.id;
    let result = attempt(&options, &delivery).await;
    let tries = delivery.tries + 1;
    let at = Time::now();
    let change = match result {
        Ok(()) => {
            tracing::debug!(delivery = %id, plugin = delivery.plugin, job = %delivery.job, tries, "delivered");
            Change::Delivered { delivery: id, at }
        }
        // No try was made. The worker does not look again before this has returned.
        Err(Miss::Store(error)) => {
            tracing::warn!(delivery = %id, %error, "a delivery cannot be prepared");
            tokio::time::sleep(super::PAUSE_OF_THE_STORE).await;
            return id;
        }
        Err(Miss::Crowded(error)) => {
            tracing::info!(delivery = %id, error, "a delivery waits for a place");
            tokio::time::sleep(PAUSE_IN_A_CROWD).await;
            return id;
        }
        Err(Miss::Failed { error, for_good, retry_after }) => {
            let plugin = &delivery.plugin;
            if for_good || tries >= options.max_attempts {
                tracing::warn!(delivery = %id, plugin, job = %delivery.job, tries, error, "a delivery is given up");
                Change::DeliveryDead { delivery: id, error, at }
            } else {
                let pause = back_off::pause(id, tries, retry_after);
                tracing::info!(delivery = %id, plugin, job = %delivery.job, tries, error, "a delivery is tried again in {} s", pause.as_secs());
                Change::DeliveryRetry { delivery: id, next_at: at.plus(pause), error, at }
            }
        }
    };
    write_down(&options, change).await;
    id
}

/// Why a try came to nothing.
enum Miss {
    /// What is to be told cannot be read.
    Store(StoreError),
    /// The plugin was not called, because of other calls.
    Crowded(String),
    /// It was not taken.
    Failed { error: String, for_good: bool, retry_after: Option<Duration> },
}

impl From<StoreError> for Miss {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<CallError> for Miss {
    fn from(error: CallError) -> Self {
        if error.kind == FailureKind::Busy {
            return Self::Crowded(error.to_string());
        }
        // A plugin that says it failed and names no time to try again means it.
        let for_good = matches!(error.kind, FailureKind::HookError { .. }) && error.retry_after.is_none();
        Self::Failed { error: error.to_string(), for_good, retry_after: error.retry_after }
    }
}

async fn attempt(options: &Options, delivery: &Delivery) -> Result<(), Miss> {
    let Some(job) = options.store.job(delivery.job).await? else {
        let error = "the job was removed before its end could be told".to_owned();
        return Err(Miss::Failed { error, for_good: true, retry_after: None });
    };
    let record = options.store.end_of(delivery.job, delivery.attempt).await?;
    let log = match &record {
        Some(record) => outcome::log_tail(&options.jobs_dir, &job, record).await,
        None => Vec::new(),
    };
    let view = outcome::job_view(&job, delivery, &options.jobs_dir);
    let outcome = outcome::outcome_view(&job, delivery, record.as_ref(), &log);
    let this_try = taxiway_plugin_host::Delivery { id: delivery.id.to_string(), attempt: delivery.tries + 1 };
    let profile = job.spec.profile.as_deref();
    match options.hooks.complete(&delivery.plugin, profile, &view, &outcome, &this_try).await {
        Some(result) => Ok(result?),
        None => {
            let error = format!(
                "plugin `{}` is not in force for this job; its delivery waits for it: put it back into the plugins folder",
                delivery.plugin
            );
            Err(Miss::Failed { error, for_good: false, retry_after: None })
        }
    }
}

async fn write_down(options: &Options, change: Change) {
    for tries in 0..=COMMIT_PAUSES {
        match options.store.commit(vec![change.clone()]).await {
            Ok(()) | Err(StoreError::Stopped) => return,
            Err(StoreError::Full | StoreError::Unavailable(_)) if tries < COMMIT_PAUSES => {
                tokio::time::sleep(Duration::from_secs(1 << tries.min(6)).min(Duration::from_secs(60))).await;
            }
            Err(error) => {
                tracing::error!(%error, ?change, "what came of a delivery cannot be stored, so that it is made again");
                return;
            }
        }
    }
}
