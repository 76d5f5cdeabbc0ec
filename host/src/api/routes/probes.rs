//! `GET /healthz`, `/readyz` and `/health`

use std::borrow::Cow;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::super::State;
use super::super::wire;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Alive: the runtime answers.
pub(super) async fn healthz() -> Response {
    Json(wire::Health { status: Cow::Borrowed("ok"), version: Cow::Borrowed(VERSION) }).into_response()
}

/// Ready: what is submitted now can be judged and stored.
pub(super) async fn readyz(api: State) -> Response {
    let (code, status) = if !api.service.store.is_committing() {
        (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be written just now")
    } else if !api.service.plugins.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "plugins are being loaded, and submissions wait for them")
    } else {
        (StatusCode::OK, "ok")
    };
    (code, Json(wire::Health { status: Cow::Borrowed(status), version: Cow::Borrowed(VERSION) })).into_response()
}

/// What clients of `training_server.py` ask before anything else.
pub(super) async fn health(api: State) -> Response {
    let gpus = api.service.gpus.gpus();
    let gpu_info = gpus
        .iter()
        .map(|gpu| serde_json::json!({"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "memory_total": gpu.memory_total_bytes}))
        .collect();
    let health = wire::training::Health {
        status: "healthy",
        service: "taxiway",
        version: VERSION,
        gpu_available: !gpus.is_empty(),
        gpu_info,
    };
    Json(health).into_response()
}
