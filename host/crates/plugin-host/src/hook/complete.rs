//! `complete`: what should happen now that the job has ended?

use super::{job_for_guest, no_such_hook};
use crate::bindings::complete::exports::taxiway::plugin::complete as wit;
use crate::call::{Call, Failure};
use crate::plugin::Plugin;
use crate::view::{Called, Delivery, End, Hook, JobView, OutcomeView};
use futures_util::FutureExt;

impl Plugin {
    /// Tells the plugin of a job's end. A failure with `retry_after`, or of any kind but a hook-error, is worth another
    /// try of the same delivery.
    ///
    /// Cancel-safe: dropping the future ends the call.
    pub async fn complete(&self, job: &JobView, outcome: &OutcomeView, delivery: &Delivery) -> Called<()> {
        let mut call = Call::begin(self, Hook::Complete, &job.id, false);
        let result = completed(&mut call, job, outcome, delivery).await;
        call.end(result)
    }
}

async fn completed(
    call: &mut Call<'_>,
    job: &JobView,
    outcome: &OutcomeView,
    delivery: &Delivery,
) -> Result<(), Failure> {
    let loaded = call.loaded()?;
    let hook = loaded.hooks.complete.clone().ok_or_else(|| no_such_hook(Hook::Complete))?;
    let job = job_for_guest(job);
    let outcome = wit::Outcome {
        end: match outcome.end {
            End::Completed => wit::End::Completed,
            End::Failed => wit::End::Failed,
            End::Cancelled => wit::End::Cancelled,
        },
        will_retry: outcome.will_retry,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        failure: outcome.failure.clone(),
        started_at_ms: outcome.started_at_ms,
        finished_at_ms: outcome.finished_at_ms,
        log_tail: outcome.log_tail.clone(),
        details: outcome.details.to_string(),
    };
    let delivery = wit::Delivery { id: delivery.id.clone(), attempt: delivery.attempt };
    let answer = call
        .run(loaded.timeout.complete, move |store| {
            async move {
                let instance = hook.instantiate_async(&mut *store).await?;
                store.data_mut().turn.instances_are_made();
                instance.taxiway_plugin_complete().call_completed(&mut *store, &job, &outcome, &delivery).await
            }
            .boxed()
        })
        .await?;
    answer.map_err(|error| call.hook_error(&error))
}
