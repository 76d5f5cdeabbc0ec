//! Answers: JSON, and refusals as problem+json (RFC 9457).

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use taxiway_job::{Problem, Severity};
use taxiway_plugin_host::FailureKind;

use super::wire::ProblemDocument;
use crate::admission::Refusal;
use crate::queue::QueueError;
use crate::store::StoreError;

/// What a job without much of a configuration takes as JSON, in bytes.
const BYTES_OF_A_JOB: usize = 1500;

/// A 200 with as many jobs in it.
pub(super) fn with_jobs<T: Serialize>(jobs: usize, value: &T) -> Response {
    with_room(jobs * BYTES_OF_A_JOB, value)
}

/// A 200 with room for so many bytes. It is written into memory that is large enough from the start, which a thousand jobs would be
/// moved about in ten times otherwise.
pub(super) fn with_room<T: Serialize>(bytes: usize, value: &T) -> Response {
    let mut text = Vec::with_capacity(256 + bytes);
    match serde_json::to_writer(&mut text, value) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], Body::from(text)).into_response(),
        // Made of jobs, which JSON can write.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A request that is not carried out. It is answered as problem+json.
#[derive(Debug)]
pub(super) struct Refused(Box<ProblemDocument>);

impl Refused {
    /// A refusal with this status, code (kebab-case, stable) and sentence.
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let mut title = code.replace('-', " ");
        title[..1].make_ascii_uppercase();
        Self(Box::new(ProblemDocument {
            kind: format!("urn:taxiway:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            ..ProblemDocument::default()
        }))
    }

    /// No such thing.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The query, path or headers say something that is not understood.
    pub(super) fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", detail)
    }

    /// The submission is refused for these problems.
    pub(super) fn problems(code: &str, problems: Vec<Problem>) -> Self {
        let errors: Vec<&Problem> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
        let detail = match errors.as_slice() {
            [only] => only.message.clone(),
            several => format!("the job has {} problems", several.len()),
        };
        let mut refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
        refused.0.problems = problems;
        refused
    }

    /// The same with another sentence.
    pub(super) fn with_detail(mut self, detail: String) -> Self {
        self.0.detail = detail;
        self
    }

    /// The same with what became of each part of the request.
    pub(super) fn with_items<T: Serialize>(mut self, items: &[T]) -> Self {
        // Made of jobs and documents, which JSON can write.
        self.0.items = serde_json::to_value(items).ok();
        self
    }

    /// The document.
    pub(super) fn document(&self) -> &ProblemDocument {
        &self.0
    }

    /// The document, to be kept.
    pub(super) fn into_document(self) -> Box<ProblemDocument> {
        self.0
    }

    pub(super) fn status(&self) -> StatusCode {
        // Made from a StatusCode in `new`.
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(&*self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DuplicateExternalId => {
                Self::new(StatusCode::CONFLICT, "duplicate-external-id", "another job has this external_id")
            }
            // Looked at again by whoever sends a key; nobody else meets it.
            StoreError::KeyTaken => Self::new(StatusCode::CONFLICT, "idempotency-key-reused", error.to_string()),
            StoreError::Full => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "disk-full",
                "the disk that holds the database is full, so nothing was stored; free some space and try again",
            ),
            StoreError::Unavailable(_) => {
                tracing::error!(%error, "a request could not be carried out");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", error.to_string())
            }
            StoreError::Conflict(_) => {
                tracing::error!(%error, "a request could not be carried out");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "Taxiway made a mistake and changed nothing; its log says more",
                )
            }
            StoreError::Unreadable(_) => {
                tracing::error!(%error, "a request could not be carried out");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", error.to_string())
            }
            StoreError::Stopped => stopping(),
        }
    }
}

impl From<QueueError> for Refused {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::NotFound(_) => Self::not_found(error.to_string()),
            QueueError::Illegal { state, .. } => {
                let mut refused = Self::new(StatusCode::CONFLICT, "illegal-state", error.to_string());
                refused.0.state = Some(state);
                refused
            }
            QueueError::TimeIsUp(_) => {
                let mut refused = Self::new(StatusCode::CONFLICT, "time-is-up", error.to_string());
                refused.0.state = Some(taxiway_job::State::Running);
                refused
            }
            QueueError::Changed(_) => Self::new(StatusCode::PRECONDITION_FAILED, "changed", error.to_string()),
            QueueError::NotInLine(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not-in-line", error.to_string()),
            QueueError::Circle(_) => Self::problems("rejected", vec![problem("", "circle", error.to_string())]),
            QueueError::TooManyGpus { .. } => {
                Self::problems("rejected", vec![problem("", "too-many-gpus", error.to_string())])
            }
            QueueError::Unresponsive { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shim-unresponsive", error.to_string())
            }
            QueueError::UnknownGpu(_) => Self::not_found(error.to_string()),
            QueueError::Unkillable(_) => Self::new(StatusCode::CONFLICT, "unkillable", error.to_string()),
            QueueError::Store(error) => error.into(),
            QueueError::Stopping => stopping(),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Problems { problems, .. } => Self::problems("rejected", problems),
            Refusal::PluginFailed(failure) => {
                let code = if failure.kind == FailureKind::Busy { "plugin-busy" } else { "plugin-failed" };
                let mut refused = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, failure.to_string());
                refused.0.plugin = Some(failure.plugin);
                refused.0.limit = failure.limit;
                refused
            }
        }
    }
}

/// A problem that the service itself finds.
pub(super) fn problem(path: &str, code: &str, message: impl Into<String>) -> Problem {
    Problem {
        plugin: "taxiway".to_owned(),
        severity: Severity::Error,
        path: path.to_owned(),
        code: code.to_owned(),
        message: message.into(),
        help: None,
    }
}

fn stopping() -> Refused {
    Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "stopping",
        "the service is stopping; the same request will work when it is back",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_a_stable_type_and_a_code() {
        let refused = Refused::not_found("there is no job x");
        assert_eq!(refused.document().kind, "urn:taxiway:problem:not-found");
        assert_eq!(refused.document().title, "Not found");
        let response = refused.into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn a_gpu_that_a_job_does_not_come_off_cannot_be_released() {
        let refused = Refused::from(QueueError::Unkillable("GPU 0 is in quarantine: job 1 has processes".into()));
        assert_eq!(refused.status(), StatusCode::CONFLICT);
        assert_eq!(refused.document().kind, "urn:taxiway:problem:unkillable");
    }

    #[test]
    fn a_full_disk_is_507_and_a_missing_token_names_its_scheme() {
        assert_eq!(Refused::from(StoreError::Full).status(), StatusCode::INSUFFICIENT_STORAGE);
        let response = Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", "no").into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    }
}
