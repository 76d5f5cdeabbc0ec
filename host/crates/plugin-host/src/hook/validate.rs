//! `validate`: may this job run?

use super::{context_for_guest, job_for_guest, no_such_hook};
use crate::call::{Call, Failure};
use crate::plugin::Plugin;
use crate::problem;
use crate::view::{Called, Context, Hook, JobView, Problem};
use futures_util::FutureExt;

impl Plugin {
    /// Asks the plugin for its problems with this job. None is a yes; only an `error` among them is a no.
    ///
    /// Cancel-safe: dropping the future ends the call.
    pub async fn validate(&self, job: &JobView, context: &Context) -> Called<Vec<Problem>> {
        let mut call = Call::begin(self, Hook::Validate, &job.id, context.dry_run);
        let result = self.validated(&mut call, job, context).await;
        call.end(result)
    }

    async fn validated(&self, call: &mut Call<'_>, job: &JobView, context: &Context) -> Result<Vec<Problem>, Failure> {
        let loaded = call.loaded()?;
        let hook = loaded.hooks.validate.clone().ok_or_else(|| no_such_hook(Hook::Validate))?;
        let (for_guest, context) = (job_for_guest(job), context_for_guest(context));
        let answer = call
            .run(loaded.timeout.answer, move |store| {
                async move {
                    let instance = hook.instantiate_async(&mut *store).await?;
                    store.data_mut().turn.instances_are_made();
                    instance.taxiway_plugin_validate().call_validate(&mut *store, &for_guest, &context).await
                }
                .boxed()
            })
            .await?;
        match answer {
            Ok(problems) => Ok(problem::clean_problems(self.name(), &loaded.secrets, &job.config, problems)),
            Err(error) => Err(call.hook_error(&error)),
        }
    }
}
