//! `GET /api/v1/gpus`, `GET /api/v1/gpus/{uuid}/metrics`, `POST /api/v1/gpus/{uuid}/release`

use std::collections::HashMap;

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::{Api, State, wire};

pub(super) async fn list(api: State) -> Result<Response, Refused> {
    Ok(Json(wire::Page { items: shown(&api).await?, next_cursor: None }).into_response())
}

pub(super) async fn metrics(api: State, Path(uuid): Path<String>) -> Result<Response, Refused> {
    let samples = api.service.gpus.recent(&uuid).ok_or_else(|| unknown(&uuid))?;
    Ok(Json(wire::GpuSeries { uuid, samples }).into_response())
}

pub(super) async fn release(api: State, caller: Caller, Path(uuid): Path<String>) -> Result<Response, Refused> {
    api.service.queue.mend(&uuid, &caller.name).await?;
    let gpus = shown(&api).await?;
    let gpu = gpus.into_iter().find(|gpu| gpu.uuid.as_ref() == Some(&uuid));
    Ok(Json(gpu.ok_or_else(|| unknown(&uuid))?).into_response())
}

fn unknown(uuid: &str) -> Refused {
    Refused::not_found(format!("the queue has no GPU {uuid}; GET /api/v1/gpus lists those it has"))
}

async fn shown(api: &Api) -> Result<Vec<wire::Gpu>, Refused> {
    let read = api.service.gpus.status().await;
    let mut read: HashMap<String, _> = read.into_iter().map(|(gpu, read)| (gpu.uuid.clone(), (gpu, read))).collect();
    let slots = api.service.queue.slots().await?;
    let with_reading = |slot: crate::queue::SlotStanding| {
        let read = slot.uuid.as_ref().and_then(|uuid| read.remove(uuid));
        wire::Gpu::new(slot, read)
    };
    Ok(slots.into_iter().map(with_reading).collect())
}
