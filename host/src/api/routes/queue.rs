//! `GET /api/v1/queue`, `POST /api/v1/queue/pause · resume · drain`

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::{Api, State, wire};

pub(super) async fn summary(api: State) -> Result<Response, Refused> {
    answer(&api).await
}

pub(super) async fn pause(api: State, caller: Caller) -> Result<Response, Refused> {
    api.service.queue.pause(&caller.name).await?;
    answer(&api).await
}

pub(super) async fn resume(api: State, caller: Caller) -> Result<Response, Refused> {
    api.service.queue.resume(&caller.name).await?;
    answer(&api).await
}

pub(super) async fn drain(api: State, caller: Caller) -> Result<Response, Refused> {
    api.service.queue.drain(&caller.name).await?;
    answer(&api).await
}

async fn answer(api: &Api) -> Result<Response, Refused> {
    let summary = api.service.queue.summary().await?;
    let standings = api.service.queue.standing(summary.running.clone()).await;
    let jobs = try_join_all(summary.running.iter().map(|id| api.service.store.job(*id))).await?;
    let running = jobs
        .iter()
        .zip(&standings)
        .filter_map(|(job, standing)| Some(wire::Job::new(job.as_ref()?, standing)))
        .collect();
    let queue = wire::QueueSummary { mode: summary.mode, running, queued: summary.queued, held: summary.held };
    Ok(Json(queue).into_response())
}
