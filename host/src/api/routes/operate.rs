//! `POST /api/v1/jobs/{id}/cancel · hold · release · retry · requeue · move`: each answers the job as it is then.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use taxiway_job::{JobId, Target};

use super::super::answer::Refused;
use super::super::gate::{self, Caller};
use super::super::wire::{Move, MoveTo, Requeue};
use super::super::{Api, State, body};
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

pub(super) async fn retry(api: State, caller: Caller, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.retry(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn requeue(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    let Requeue { hold } = body::optional(&headers, body).await?.unwrap_or_default();
    api.service.queue.requeue(id, hold, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn move_to(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    let target = match body::optional(&headers, body).await? {
        Some(Move { to }) => target(to)?,
        None => return Err(Refused::invalid_request(format!("say where to move it: {MOVES}"))),
    };
    api.service.queue.move_to(id, target, &caller.name).await?;
    job_now(&api, id).await
}

/// What `to` may be.
const MOVES: &str = r#"{"to": "front"}, {"to": "back"}, {"to": {"before": "ID"}} or {"to": {"position": 3}}"#;

fn target(to: MoveTo) -> Result<Target, Refused> {
    match to {
        MoveTo::Front => Ok(Target::Front),
        MoveTo::Back => Ok(Target::Back),
        MoveTo::Before(id) => id.parse().map(Target::Before).map_err(|error: taxiway_job::IdError| {
            Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "not-in-line", error.to_string())
        }),
        MoveTo::Position(0) => Err(Refused::invalid_request("positions start at 1")),
        MoveTo::Position(position) => Ok(Target::Position(position)),
    }
}

/// The id in the path, when the caller may change that job: `submit` changes its own, `operate` any.
pub(super) async fn own_job(api: &Api, caller: &Caller, id: &str) -> Result<JobId, Refused> {
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

pub(super) async fn job_now(api: &Api, id: JobId) -> Result<Response, Refused> {
    let (job, standing) = jobs::find(api, id).await?;
    Ok(jobs::answer(&job, &standing))
}
