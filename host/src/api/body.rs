//! Reading bodies: JSON only, and only so much.

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::Refused;
use super::wrong_type::{self, Unread};
use super::{Api, submission};

/// Bytes of a body (16 MiB). Configurations are kilobytes; one with its dataset's index inside was seen to have 3 MiB.
pub(super) const LIMIT: usize = 16 << 20;

/// Bytes of a body that may carry a dataset (1 GiB, DESIGN §8).
pub(super) const LARGE_LIMIT: usize = 1 << 30;

/// The whole body, which must be declared as JSON.
pub(super) async fn json(headers: &HeaderMap, body: Body) -> Result<Bytes, Refused> {
    is_json(headers)?;
    read(body, LIMIT).await
}

/// A merge patch of an object: JSON, declared as such or as `application/merge-patch+json` (RFC 7396).
pub(super) async fn merge_patch(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Refused> {
    if declared(headers).is_none_or(|essence| !essence.eq_ignore_ascii_case("application/merge-patch+json")) {
        is_json(headers)?;
    }
    let bytes = read(body, LIMIT).await?;
    let patch = serde_json::from_slice(&bytes).map_err(|error| {
        let detail = if error.is_data() {
            "a change of a job is a JSON object of the fields to change".to_owned()
        } else {
            format!("the body is not JSON: {error}")
        };
        Refused::new(StatusCode::BAD_REQUEST, "malformed-json", detail)
    })?;
    submission::unaltered(&bytes)?;
    Ok(patch)
}

/// What a body says, if there is one: then it must be declared as JSON.
pub(super) async fn optional<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<Option<T>, Refused> {
    let bytes = read(body, LIMIT).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    is_json(headers)?;
    wrong_type::read(&bytes).map(Some).map_err(|error| match error {
        Unread::NotJson(error) => {
            Refused::new(StatusCode::BAD_REQUEST, "malformed-json", format!("the body is not JSON: {error}"))
        }
        Unread::Wrong(what) => {
            let detail = format!("the body is not understood: {what}");
            Refused::new(StatusCode::BAD_REQUEST, "invalid-request", detail)
        }
    })
}

/// The same with the limit for datasets. One such body at a time is in memory; others wait before they are read.
pub(super) async fn large_json(api: &Api, headers: &HeaderMap, body: Body) -> Result<Bytes, Refused> {
    is_json(headers)?;
    if declared_length(headers).is_some_and(|length| length <= LIMIT) {
        return read(body, LIMIT).await;
    }
    // Closed never, so this only waits.
    let _turn = api.large_bodies.acquire().await;
    read(body, LARGE_LIMIT).await
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Refused> {
    to_bytes(body, limit).await.map_err(|error| {
        if std::error::Error::source(&error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            let detail = format!("the body has more than {} MiB", limit >> 20);
            return Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail);
        }
        Refused::invalid_request(format!("the body did not arrive whole: {error}"))
    })
}

/// The declared media type, without its parameters.
fn declared(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Bodies must be declared as JSON: a page of another site can send other types without asking.
fn is_json(headers: &HeaderMap) -> Result<(), Refused> {
    let declared = declared(headers).unwrap_or_default();
    if declared.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = if declared.is_empty() {
        "the body's type is missing: send `Content-Type: application/json`".to_owned()
    } else {
        format!("the body is declared as `{declared}`: send `Content-Type: application/json`")
    };
    Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail))
}
