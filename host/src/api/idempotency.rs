//! `Idempotency-Key`: a request that is sent again, because its answer was lost, is answered and not carried out again.
//!
//! A key is its sender's: the same key of another token is another key. It stands for one whole request; with another request
//! it is refused. What the request came to is stored in one transaction with the jobs, so that a crash cannot leave one
//! without the other. Requests that were refused and dry runs are not kept: sent again, they are judged again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use taxiway_job::{ArrayId, JobId, Time};
use tokio::sync::OwnedMutexGuard;

use super::Api;
use super::answer::Refused;
use super::gate::Caller;
use super::wire::ProblemDocument;
use crate::store::NewKey;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Marks the answer to a request that was carried out before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Bytes of a key: a few UUIDs.
const LONGEST: usize = 255;

/// What a request came to, as it is kept beside its key. Jobs are kept by their ids: a replay answers them as they are then.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// A job.
    Job(JobId),
    /// Several, each with a result of its own.
    Batch(Vec<ItemOutcome>),
    /// An array and its jobs.
    Array(ArrayId, Vec<JobId>),
}

/// What one submission of a batch came to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ItemOutcome {
    /// A job.
    Job(JobId),
    /// It was refused.
    Problem(Box<ProblemDocument>),
}

/// The key of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    owner: Arc<str>,
    key: String,
}

/// The keys of requests that are being carried out.
#[derive(Default)]
pub(super) struct Keys(Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>);

/// How to go on with a request.
pub(super) enum Begun {
    /// It has no key.
    Unkeyed,
    /// Nobody has carried it out yet, and nobody else does until the claim is dropped.
    First(Claim),
    /// It was carried out before.
    Before(Outcome),
}

/// The right to carry out the request of a key.
pub(super) struct Claim {
    api: Arc<Api>,
    name: Name,
    request: [u8; 32],
    turn: Option<OwnedMutexGuard<()>>,
}

impl Claim {
    /// What is to be stored with the jobs.
    pub(super) fn key(&self, outcome: &Outcome) -> NewKey {
        NewKey {
            owner: self.name.owner.to_string(),
            key: self.name.key.clone(),
            request: self.request,
            // Ids and problem documents: nothing in them that JSON cannot write.
            answer: serde_json::to_string(outcome).unwrap_or_default(),
            at: Time::now(),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.turn.take();
        let mut keys = self.api.keys.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Others that wait for their turn hold it too.
        if keys.get(&self.name).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            keys.remove(&self.name);
        }
    }
}

/// Looks at a request's key. Another request with the same key that is under way is waited for first.
///
/// # Errors
/// When the key is none, or stands for another request.
pub(super) async fn begin(
    api: &Arc<Api>,
    caller: &Caller,
    headers: &HeaderMap,
    uri: &Uri,
    body: &[u8],
) -> Result<Begun, Refused> {
    let Some(key) = key(headers)? else { return Ok(Begun::Unkeyed) };
    let name = Name { owner: caller.name.clone(), key };
    let request = fingerprint(uri, body);
    let turn = api.keys.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default().clone();
    let mut claim = Claim { api: api.clone(), name, request, turn: None };
    claim.turn = Some(turn.lock_owned().await);
    match api.service.store.request_of_key(&claim.name.owner, &claim.name.key).await? {
        None => Ok(Begun::First(claim)),
        Some(known) if known.request != request => Err(Refused::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "this Idempotency-Key was used with another request: a new request needs a new key",
        )),
        Some(known) => serde_json::from_str(&known.answer).map(Begun::Before).map_err(|error| {
            tracing::error!(%error, "what was kept of a request is not understood");
            Refused::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "what was kept of this request is not understood",
            )
        }),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if values.next().is_some() || key.is_empty() || key.len() > LONGEST {
        let detail = format!("Idempotency-Key is one text of 1 to {LONGEST} printable ASCII characters");
        return Err(Refused::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", detail));
    }
    Ok(Some(key.to_owned()))
}

/// SHA-256 of where the request went and what it said. All keyed requests are POSTs of JSON.
fn fingerprint(uri: &Uri, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(uri.path());
    hash.update(b"?");
    hash.update(uri.query().unwrap_or_default());
    // No URI holds a NUL, so nothing of one can pass for the other.
    hash.update(b"\0");
    hash.update(body);
    hash.finalize().into()
}

/// Marks an answer as that of a request that was carried out before.
pub(super) fn mark_replayed(response: &mut Response) {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
}

/// The job that a key stands for was removed since.
pub(super) fn removed(id: JobId) -> Refused {
    let detail = format!("this Idempotency-Key was used before; its job {id} has ended and was removed since");
    Refused::new(StatusCode::GONE, "job-removed", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_short_printable_text() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_str(value).expect("a header"));
            }
            key(&headers)
        };
        assert_eq!(with(&[]).expect("no key"), None);
        assert_eq!(with(&["a-1"]).expect("a key"), Some("a-1".to_owned()));
        for wrong in [&["a", "b"][..], &[""], &["ü"], &["x".repeat(256).as_str()]] {
            assert_eq!(with(wrong).expect_err("refused").status(), StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }

    #[test]
    fn a_request_is_another_when_its_path_query_or_body_is() {
        let print = |uri: &'static str, body: &str| fingerprint(&Uri::from_static(uri), body.as_bytes());
        assert_eq!(print("/api/v1/jobs", "{}"), print("/api/v1/jobs", "{}"));
        let others = [("/api/v1/jobs", "{ }"), ("/api/v1/jobs/batch", "{}"), ("/api/v1/jobs?atomic=true", "{}")];
        for (uri, body) in others {
            assert_ne!(print(uri, body), print("/api/v1/jobs", "{}"), "{uri} {body}");
        }
    }
}
