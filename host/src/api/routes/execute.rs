//! `POST /api/training/execute`: a submission in the words of `training_server.py`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
use super::{jobs, submit};
use crate::admission::Draft;
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
        Some(content) => Some(Dataset::store(&api.service.settings.jobs_dir().join(id.to_string()), content)?),
        None => None,
    };
    let execution_id = request.execution_id.clone();
    let draft = draft(id, request, dataset.as_ref().map(|dataset| dataset.file.as_path()));
    drop(bytes);
    match submit::accept(api, caller, draft, hash).await {
        Ok((job, standing)) => {
            if let Some(dataset) = dataset {
                dataset.keep();
            }
            Ok(executed(&job, standing.position))
        }
        // Another request with this id was faster.
        Err(refused) if refused.status() == StatusCode::CONFLICT => {
            let found = earlier(api, execution_id.as_deref().unwrap_or_default(), hash).await?;
            found.ok_or(refused)
        }
        Err(refused) => Err(refused),
    }
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

/// A dataset in the job's directory. Unless it is kept, it goes again: its job was refused.
struct Dataset {
    file: PathBuf,
    kept: bool,
}

impl Dataset {
    /// Stores `content`, durably, because the job that will be acknowledged needs it. It takes a moment for large ones, in
    /// which this thread of the runtime does nothing else.
    fn store(job_dir: &Path, content: &str) -> Result<Self, Refused> {
        let write = || -> io::Result<Self> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(job_dir)?;
            let dataset = Self { file: job_dir.join(format!("dataset.{}", extension(content))), kept: false };
            let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&dataset.file)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            std::fs::File::open(job_dir)?.sync_all()?;
            if let Some(jobs_dir) = job_dir.parent() {
                std::fs::File::open(jobs_dir)?.sync_all()?;
            }
            Ok(dataset)
        };
        tokio::task::block_in_place(write).map_err(|error| {
            tracing::error!(%error, directory = %job_dir.display(), "a dataset could not be stored");
            let status = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            Refused::new(status, "dataset-not-stored", format!("the dataset could not be stored: {error}"))
        })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The directory goes with it when nothing else is in there.
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        if let Err(error) = std::fs::remove_file(&self.file).and_then(|()| std::fs::remove_dir(directory)) {
            tracing::warn!(%error, dataset = %self.file.display(), "a refused job's dataset could not be removed");
        }
    }
}

/// Trainers choose how to read a dataset by its name.
fn extension(content: &str) -> &'static str {
    match content.trim_start().as_bytes().first() {
        Some(b'[') => "json",
        Some(b'{') => "jsonl",
        _ => "txt",
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

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dataset_is_kept_with_its_job_and_goes_with_a_refusal() {
        let place = tempfile::tempdir().expect("a directory");
        let refused = Dataset::store(&place.path().join("refused"), "[1]").expect("stored");
        assert_eq!(std::fs::read_to_string(&refused.file).expect("a file"), "[1]");
        drop(refused);
        assert!(!place.path().join("refused").exists());
        let accepted = Dataset::store(&place.path().join("accepted"), "{\"a\": 1}\n").expect("stored");
        let file = accepted.file.clone();
        accepted.keep();
        assert!(file.ends_with("accepted/dataset.jsonl") && file.exists());
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
