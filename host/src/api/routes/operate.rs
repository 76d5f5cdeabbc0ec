//! `POST /api/v1/jobs/{id}/cancel · hold · release`: each answers the job as it is then.

use axum::extract::Path;
use axum::response::Response;
use taxiway_job::JobId;

use super::super::answer::Refused;
use super::super::gate::{self, Caller};
use super::super::{Api, State};
use super::jobs;
use crate::store::Scope;

pub(super) async fn cancel(api: State, caller: Caller, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.cancel(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn hold(api: State, caller: Caller, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.hold(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn release(api: State, caller: Caller, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.release(id, &caller.name).await?;
    job_now(&api, id).await
}

/// The id in the path, when the caller may change that job: `submit` changes its own, `operate` any.
async fn own_job(api: &Api, caller: &Caller, id: &str) -> Result<JobId, Refused> {
    let id = jobs::parse_id(id)?;
    may_change(api, caller, id).await?;
    Ok(id)
}

pub(super) async fn may_change(api: &Api, caller: &Caller, id: JobId) -> Result<(), Refused> {
    if caller.scope >= Scope::Operate {
        return Ok(());
    }
    let (job, _) = jobs::find(api, id).await?;
    if job.submitted_by == *caller.name { Ok(()) } else { Err(gate::forbidden(caller, Scope::Operate)) }
}

async fn job_now(api: &Api, id: JobId) -> Result<Response, Refused> {
    let (job, standing) = jobs::find(api, id).await?;
    Ok(jobs::answer(&job, &standing))
}
