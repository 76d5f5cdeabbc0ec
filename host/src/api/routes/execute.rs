//! `POST /api/training/execute`: a submission in the words of `training_server.py`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};
use taxiway_job::{Job, JobId};

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::wire::training::{self, Execute, Executed};
use super::super::wrong_type::{self, Unread};
use super::super::{Api, State, body, submission};
use super::dataset::{Dataset, Sent};
use super::{jobs, submit};
use crate::admission::Draft;
use crate::queue::{QueueError, Standing};
use crate::store::BodyHash;

/// The profile that these jobs run under.
const PROFILE: &str = "training";

pub(super) async fn execute(api: State, caller: Caller, headers: HeaderMap, body: Body) -> Response {
    match run(&api, &caller, &headers, body).await {
        Ok(executed) => Json(executed).into_response(),
        Err(refused) => refusal(&refused),
    }
}

/// A refusal in the words of these routes: 400 for what is wrong with the request, else the status as it is.
pub(super) fn refusal(refused: &Refused) -> Response {
    let document = refused.document();
    let status = match refused.status() {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    };
    let detail = Cow::Borrowed(document.detail.as_str());
    let body = training::Refusal {
        error: detail.clone(),
        message: detail.clone(),
        detail,
        code: Cow::Borrowed(&document.code),
        problems: Cow::Borrowed(&document.problems),
    };
    (status, Json(body)).into_response()
}

async fn run(api: &Api, caller: &Caller, headers: &HeaderMap, body: Body) -> Result<Executed, Refused> {
    if !api.service.settings.config.profiles.contains_key(PROFILE) {
        let detail = "this service runs no training jobs: its configuration has no section [profiles.training] with their command";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "no-training-profile", detail));
    }
    let bytes = body::large_json(api, headers, body).await?;
    let hash = BodyHash(Sha256::digest(&bytes).into());
    submission::is_object(&bytes)?;
    let request: Execute<'_> = wrong_type::read(&bytes).map_err(|error| match error {
        Unread::NotJson(error) => submission::malformed(&error),
        Unread::Wrong(what) => {
            let detail = format!("the request is not understood: {what}");
            Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-submission", detail)
        }
    })?;
    submission::unaltered(&bytes)?;
    if let Some(execution_id) = &request.execution_id
        && let Some(executed) = earlier(api, execution_id, hash).await?
    {
        return Ok(executed);
    }
    let id = JobId::new();
    let dataset = match request.dataset_content.as_deref() {
        Some(content) => Some(Dataset::store(&api.service.settings.jobs_dir(), id, content)?),
        None => None,
    };
    let execution_id = request.execution_id.clone();
    let draft = draft(id, request, dataset.as_ref().map(Dataset::file));
    drop(bytes);
    let job = submit::judge(api, caller, draft).await?;
    match submitted(api, job, hash, dataset.map(Dataset::sent)).await {
        Ok((job, standing)) => Ok(executed(&job, standing.position)),
        // Another request with this id was faster.
        Err(refused) if refused.status() == StatusCode::CONFLICT => {
            let found = earlier(api, execution_id.as_deref().unwrap_or_default(), hash).await?;
            found.ok_or(refused)
        }
        Err(refused) => Err(refused),
    }
}

/// Puts the job into the line. It is durable when this returns.
async fn submitted(
    api: &Api,
    job: Arc<Job>,
    hash: BodyHash,
    dataset: Option<Sent>,
) -> Result<(Arc<Job>, Standing), Refused> {
    let (queue, store) = (api.service.queue.clone(), api.service.store.clone());
    // A task of its own: the job may be stored although its client has gone, and then needs its dataset.
    let submitting = tokio::spawn(async move {
        let result = queue.submit(job.clone(), hash).await;
        match dataset {
            Some(dataset) if result.is_ok() => dataset.keep(),
            Some(dataset) => dataset.settle(&store).await,
            None => {}
        }
        result.map(|standing| (job, standing))
    });
    // It does not panic, and ends early only with the runtime.
    Ok(submitting.await.unwrap_or(Err(QueueError::Stopping))?)
}

/// The answer for a job that was submitted before with the same id and body. The same id with another body is refused.
async fn earlier(api: &Api, execution_id: &str, hash: BodyHash) -> Result<Option<Executed>, Refused> {
    let Some((job, stored)) = api.service.store.job_by_external_id(execution_id).await? else { return Ok(None) };
    if stored != hash {
        let detail = format!("there is a job `{execution_id}` already, and it was submitted with another request");
        return Err(Refused::new(StatusCode::CONFLICT, "duplicate-external-id", detail));
    }
    let position = jobs::standing_of(api, job.id).await.position;
    Ok(Some(executed(&job, position)))
}

fn executed(job: &Job, position: Option<usize>) -> Executed {
    let job_id = super::training::public_id(job);
    // Clients read the position from the end of the message; 0: not in the line (any more).
    let message = format!("Training job {job_id} accepted (position: {})", position.unwrap_or(0));
    Executed { job_id, status: Cow::Borrowed(training::status(job.state)), message }
}

fn draft(id: JobId, request: Execute<'_>, dataset: Option<&Path>) -> Draft {
    let mut config = request.config;
    let path = dataset.map(|path| path.display().to_string()).or(request.dataset_path);
    if let Some(path) = path {
        config.insert("dataset_path".to_owned(), Value::String(path));
    }
    let user = match request.user_id {
        Some(Value::String(user)) => Some(user),
        Some(Value::Number(user)) => Some(user.to_string()),
        _ => None,
    };
    Draft {
        profile: Some(PROFILE.to_owned()),
        config,
        name: request.name.filter(|name| !name.is_empty()),
        labels: BTreeMap::from_iter(user.map(|user| ("user_id".to_owned(), user))),
        external_id: request.execution_id,
        ..Draft::new(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_a_job_of_the_profile_training() {
        let body = r#"{"config": {"lr": 0.1}, "execution_id": "run-1", "user_id": 7, "name": "", "dataset_path": "/data/d.jsonl", "x": 1}"#;
        let draft = draft(JobId::new(), serde_json::from_str(body).expect("a request"), None);
        assert_eq!(draft.profile.as_deref(), Some("training"));
        assert_eq!(draft.external_id.as_deref(), Some("run-1"));
        assert_eq!(draft.labels["user_id"], "7");
        assert_eq!(draft.config["dataset_path"], "/data/d.jsonl");
        assert_eq!(draft.name, None);
    }

    #[tokio::test]
    async fn a_refusal_says_the_same_in_all_three_places_and_is_400_for_a_rejected_job() {
        let refused = Refused::problems(
            "rejected",
            vec![super::super::super::answer::problem("/lr", "too-high", "lr is too high")],
        );
        let response = refusal(&refused);
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("a body");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        for key in ["detail", "error", "message"] {
            assert_eq!(body[key], "lr is too high");
        }
        assert_eq!(body["problems"][0]["path"], "/lr");
    }
}
