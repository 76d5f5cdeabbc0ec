//! `DELETE /api/v1/jobs/{id}` and `GET /api/v1/jobs/{id}/attempts`

use axum::Json;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use taxiway_job::Time;

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::{Api, State, wire};
use super::{jobs, operate};
use crate::queue::QueueError;
use crate::retention;
use crate::store::{Change, DeliveryStatus, StoreError};

/// Removes a job that has ended, with its history and its logs. What it wrote into its own directory stays.
pub(super) async fn remove(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = jobs::parse_id(&id)?;
    operate::may_change(&api, &caller, id).await?;
    let store = &api.service.store;
    let expected = operate::if_match(&headers);
    removable(&api, id, expected.as_deref()).await?;
    let (at, by) = (Time::now(), caller.name.to_string());
    match store.commit(vec![Change::Remove { job: id, revisions: expected.clone(), at, by }]).await {
        Ok(()) => {}
        // It was removed, retried or changed in this very moment: the second look says which.
        Err(error @ StoreError::Conflict(_)) => {
            removable(&api, id, expected.as_deref()).await?;
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    }
    let (store, jobs_dir) = (store.clone(), api.service.settings.jobs_dir());
    // A task of its own: it goes on when the client has gone.
    let files = tokio::spawn(async move { retention::remove_files(&store, jobs_dir, id).await });
    match files.await {
        Ok(Ok(())) => {}
        // The job is removed all the same.
        Ok(Err(error)) => tracing::warn!(%error, job = %id, "files of a removed job are left for the next start"),
        Err(error) => tracing::error!(%error, job = %id, "files of a removed job are left for the next start"),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whether nothing keeps the job from being removed.
async fn removable(api: &Api, id: taxiway_job::JobId, expected: Option<&[u32]>) -> Result<(), Refused> {
    let (job, _) = jobs::find(api, id).await?;
    if expected.is_some_and(|revisions| !revisions.contains(&job.revision)) {
        return Err(QueueError::Changed(id).into());
    }
    if !job.state.has_ended() {
        return Err(QueueError::Illegal { id, state: job.state, verb: "remove" }.into());
    }
    let deliveries = api.service.store.deliveries_of(id).await?;
    match deliveries.iter().find(|delivery| delivery.status == DeliveryStatus::Waiting) {
        None => Ok(()),
        Some(waiting) => {
            let detail = format!(
                "the plugin `{}` is yet to be told that job {id} is {}: the job can be removed once that is done or given up \
                 (GET /api/v1/deliveries?job_id={id})",
                waiting.plugin, waiting.end
            );
            Err(Refused::new(StatusCode::CONFLICT, "delivery-waiting", detail))
        }
    }
}

pub(super) async fn attempts(api: State, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = jobs::parse_id(&id)?;
    jobs::find(&api, id).await?;
    let items = api.service.store.attempts(id).await?.into_iter().map(wire::Attempt::from).collect();
    Ok(Json(wire::Page { items, next_cursor: None }).into_response())
}
