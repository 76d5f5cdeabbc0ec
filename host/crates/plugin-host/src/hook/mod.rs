//! One function a hook: what goes in is translated, what comes out is checked.

mod complete;
pub(crate) mod metadata;
mod rewrite;
mod validate;

use crate::FailureKind;
use crate::bindings::types;
use crate::call::Failure;
use crate::view::{Context, Hook, JobView};

fn job_for_guest(job: &JobView) -> types::Job {
    types::Job {
        id: job.id.clone(),
        name: job.name.clone(),
        attempt: job.attempt,
        config: job.config.to_string(),
        details: job.details.to_string(),
    }
}

fn context_for_guest(context: &Context) -> types::Context {
    types::Context {
        stage: context.stage.as_str().to_owned(),
        dry_run: context.dry_run,
        gpus: context
            .gpus
            .iter()
            .map(|gpu| types::Gpu {
                index: gpu.index,
                uuid: gpu.uuid.clone(),
                name: gpu.name.clone(),
                memory_total: gpu.memory_total,
                memory_free: gpu.memory_free,
                compute_capability: gpu.compute_capability,
                details: gpu.details.to_string(),
            })
            .collect(),
        details: context.details.to_string(),
    }
}

/// The service asked a plugin for a hook that it does not have.
fn no_such_hook(hook: Hook) -> Failure {
    Failure::new(FailureKind::NotLoaded, format!("it has no {hook} hook"))
}
