//! `GET /api/v1/plugins`

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::super::State;
use super::super::wire;

pub(super) async fn list(api: State) -> Response {
    Json(wire::Page { items: api.service.plugins.plugins(), next_cursor: None }).into_response()
}
