//! `GET /api/training/queue`, `status`, `logs`, `POST /api/training/cancel`, `pause`, `resume`, `force-start`: jobs of the
//! profile `training` in the words of `training_server.py`.

use std::io;

use axum::Json;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use taxiway_job::{Job, Progress, State as JobState, Time};

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::wire::training::{self, Cancelled, Forced, Logs, Queue, Running, Status, Switched, Waiting};
use super::super::{Api, State, lines, submission};
use super::execute::refusal;
use super::{edit, jobs, operate};
use crate::queue::{Mode, QueueError, Standing};
use crate::store::JobFilter;

/// The id that these routes call a job by: the client's own, when it gave one.
pub(super) fn public_id(job: &Job) -> String {
    job.spec.external_id.clone().unwrap_or_else(|| job.id.to_string())
}

/// The job with this id, be it the client's or ours.
async fn find(api: &Api, id: &str) -> Result<(Job, Standing), Refused> {
    if let Some((job, _)) = api.service.store.job_by_external_id(id).await? {
        let standing = jobs::standing_of(api, job.id).await;
        return Ok((job, standing));
    }
    match id.parse() {
        Ok(id) => jobs::find(api, id).await,
        Err(_) => Err(Refused::not_found(format!("there is no job {id}"))),
    }
}

pub(super) async fn queue(api: State) -> Response {
    read_queue(&api).await.map_or_else(|refused| refusal(&refused), |queue| Json(queue).into_response())
}

async fn read_queue(api: &Api) -> Result<Queue, Refused> {
    let summary = api.service.queue.summary().await?;
    let states = vec![JobState::Queued, JobState::Pending, JobState::Running, JobState::Cancelling];
    // Clients of these routes show a list; the first 1,000 of it are more than anybody reads.
    let filter = JobFilter { states, limit: 1000, ..JobFilter::default() };
    let page = api.service.store.jobs(filter).await?;
    let standings = api.service.queue.standing(page.items.iter().map(|job| job.id).collect()).await;
    let mut running_jobs = Vec::new();
    let mut queued_jobs = Vec::new();
    for (job, standing) in page.items.iter().zip(&standings) {
        if let Some(position) = standing.position {
            queued_jobs.push(Waiting {
                job_id: public_id(job),
                name: job.spec.name.clone(),
                position,
                status: "queued",
            });
        } else if job.state.is_live() {
            let progress = standing.progress.as_ref().or(job.progress.as_ref());
            running_jobs.push(Running {
                job_id: public_id(job),
                name: job.spec.name.clone(),
                progress: percent(progress),
                current_epoch: training::epochs(progress.and_then(|progress| progress.epoch)),
                total_epochs: training::epochs(progress.and_then(|progress| progress.total_epochs)),
            });
        }
    }
    queued_jobs.sort_by_key(|job| job.position);
    Ok(Queue {
        running_count: running_jobs.len(),
        queued_count: summary.queued,
        running_jobs,
        queued_jobs,
        queue_active: summary.mode == Mode::Run,
    })
}

fn percent(progress: Option<&Progress>) -> f64 {
    progress.and_then(|progress| progress.fraction).unwrap_or(0.0) * 100.0
}

pub(super) async fn status(api: State, Path(id): Path<String>) -> Response {
    read_status(&api, &id).await.map_or_else(|refused| refusal(&refused), |status| Json(status).into_response())
}

async fn read_status(api: &Api, id: &str) -> Result<Value, Refused> {
    let (job, standing) = find(api, id).await?;
    let progress = standing.progress.as_ref().or(job.progress.as_ref());
    let pid = if job.state.is_live() {
        api.service.store.attempts(job.id).await?.last().and_then(|attempt| attempt.pid)
    } else {
        None
    };
    let status = Status {
        job_id: public_id(&job),
        status: training::status(job.state),
        name: job.spec.name.clone(),
        progress: if job.state == JobState::Completed { 100.0 } else { percent(progress) },
        current_epoch: training::epochs(progress.and_then(|progress| progress.epoch)),
        total_epochs: training::epochs(progress.and_then(|progress| progress.total_epochs)),
        current_step: progress.and_then(|progress| progress.step).unwrap_or(0),
        total_steps: progress.and_then(|progress| progress.total_steps).unwrap_or(0),
        queue_position: standing.position,
        error_message: job.failure.as_ref().map(|failure| failure.message.clone()),
        started_at: job.started_at,
        completed_at: job.finished_at,
        updated_at: job.finished_at.or(job.started_at).unwrap_or(job.queued_at),
        process_pid: pid,
    };
    let mut answer = serde_json::to_value(status).map_err(|error| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("the status cannot be written: {error}"))
    })?;
    // What the job reports beyond the fields above is passed through; a few keys are always there.
    for key in ["loss", "eval_loss", "learning_rate"] {
        answer[key] = Value::Null;
    }
    for (key, value) in progress.into_iter().flat_map(|progress| &progress.metrics) {
        let taken = answer.get(key).is_some_and(|value| !value.is_null());
        if !taken {
            answer[key] = value.clone();
        }
    }
    Ok(answer)
}

/// Lines answered, unless the query says otherwise.
const LINES: usize = 100;

#[derive(Deserialize)]
#[serde(default)]
struct Window {
    limit: usize,
    offset: i64,
}

impl Default for Window {
    fn default() -> Self {
        Self { limit: LINES, offset: 0 }
    }
}

pub(super) async fn logs(api: State, Path(id): Path<String>, RawQuery(query): RawQuery) -> Response {
    read_logs(&api, &id, query.as_deref())
        .await
        .map_or_else(|refused| refusal(&refused), |logs| Json(logs).into_response())
}

async fn read_logs(api: &Api, id: &str, query: Option<&str>) -> Result<Logs, Refused> {
    let window: Window = submission::parameters(query)?;
    let (job, _) = find(api, id).await?;
    let limit = window.limit.min(lines::MOST_LINES);
    let found = match api.service.store.latest_launch(job.id).await? {
        Some(launch) => {
            let path = taxiway_launcher::log::path(&api.service.settings.jobs_dir(), job.id, launch);
            let read = tokio::task::spawn_blocking(move || lines::read(&path, window.offset, limit)).await;
            read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(|error| {
                let detail = format!("the log cannot be read: {error}");
                Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "log-unreadable", detail)
            })?
        }
        None => lines::Lines { lines: Vec::new(), total: 0 },
    };
    let (job_id, offset) = (public_id(&job), window.offset);
    Ok(Logs { job_id, logs: found.lines, total_lines: found.total, offset, limit })
}

pub(super) async fn cancel(api: State, caller: Caller, Path(id): Path<String>) -> Response {
    let (job, _) = match find(&api, &id).await {
        Ok(found) => found,
        Err(refused) if refused.status() == StatusCode::NOT_FOUND => {
            return refused_operation(id, None, refused.document().detail.clone());
        }
        Err(refused) => return refusal(&refused),
    };
    let previous_status = training::status(job.state);
    if let Err(refused) = operate::may_change(&api, &caller, job.id).await {
        return refusal(&refused);
    }
    if job.state.has_ended() {
        return refused_operation(id, Some(previous_status), format!("Job has already {previous_status}"));
    }
    match api.service.queue.cancel(job.id, &caller.name).await.map_err(Refused::from) {
        Ok(_) => {
            let message = "Job is cancelled".to_owned();
            Json(Cancelled { success: true, job_id: id, previous_status: Some(previous_status), message })
                .into_response()
        }
        Err(refused) if refused.status() == StatusCode::CONFLICT => {
            refused_operation(id, Some(previous_status), refused.document().detail.clone())
        }
        Err(refused) => refusal(&refused),
    }
}

fn refused_operation(job_id: String, previous_status: Option<&'static str>, message: String) -> Response {
    #[derive(serde::Serialize)]
    struct Refusal {
        success: bool,
        job_id: String,
        previous_status: Option<&'static str>,
        message: String,
        detail: String,
        error: String,
    }
    let body =
        Refusal { success: false, job_id, previous_status, detail: message.clone(), error: message.clone(), message };
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

pub(super) async fn pause(api: State, caller: Caller, Path(id): Path<String>) -> Response {
    answered(&id, switch(&api, &caller, &id, Switch::Pause).await)
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Resume {
    checkpoint_path: Option<String>,
}

pub(super) async fn resume(api: State, caller: Caller, Path(id): Path<String>, RawQuery(query): RawQuery) -> Response {
    let Resume { checkpoint_path } = match submission::parameters(query.as_deref()) {
        Ok(parameters) => parameters,
        Err(refused) => return refusal(&refused),
    };
    answered(&id, switch(&api, &caller, &id, Switch::Resume { checkpoint_path }).await)
}

enum Switch {
    Pause,
    Resume { checkpoint_path: Option<String> },
}

/// Pausing is a graceful stop into `held`, resuming a release: of a job that is still being stopped, a stop that leads back
/// into the line.
async fn switch(api: &Api, caller: &Caller, id: &str, switch: Switch) -> Result<Switched, Refused> {
    let (job, _) = find(api, id).await?;
    operate::may_change(api, caller, job.id).await?;
    let queue = &api.service.queue;
    match switch {
        Switch::Pause => {
            queue.requeue(job.id, true, &caller.name).await?;
            let message = "Job is paused".to_owned();
            Ok(Switched { success: true, job_id: id.to_owned(), message, paused_at: Some(Time::now()) })
        }
        Switch::Resume { checkpoint_path: None } if job.state == JobState::Cancelling => {
            queue.requeue(job.id, false, &caller.name).await?;
            Ok(resumed(id))
        }
        Switch::Resume { checkpoint_path } => {
            if let Some(path) = checkpoint_path.filter(|path| !path.is_empty()) {
                if job.state != JobState::Held {
                    return Err(QueueError::Illegal { id: job.id, state: job.state, verb: "resume" }.into());
                }
                let config = json!({"config": {"resume_from_checkpoint": path}});
                let patch = config.as_object().cloned().unwrap_or_default();
                edit::change(api, caller, job.id, &patch, None).await?;
            }
            queue.release(job.id, &caller.name).await?;
            Ok(resumed(id))
        }
    }
}

fn resumed(id: &str) -> Switched {
    Switched { success: true, job_id: id.to_owned(), message: "Job is resumed".to_owned(), paused_at: None }
}

pub(super) async fn force_start(api: State, caller: Caller, Path(id): Path<String>) -> Response {
    answered(&id, force(&api, &caller, &id).await)
}

async fn force(api: &Api, caller: &Caller, id: &str) -> Result<Forced, Refused> {
    let (job, _) = find(api, id).await?;
    operate::may_change(api, caller, job.id).await?;
    api.service.queue.force_start(job.id, &caller.name).await?;
    let queue_position = jobs::standing_of(api, job.id).await.position;
    let message = match queue_position {
        Some(position) => format!("Job is at position {position} of the line"),
        None => "Job has left the line: it starts".to_owned(),
    };
    Ok(Forced { success: true, job_id: id.to_owned(), queue_position, message })
}

/// What a job's state forbids is 400 with `success: false` here.
fn answered<T: serde::Serialize>(id: &str, answer: Result<T, Refused>) -> Response {
    match answer {
        Ok(body) => Json(body).into_response(),
        Err(refused) if refused.status() == StatusCode::CONFLICT => {
            let previous_status = refused.document().state.map(training::status);
            refused_operation(id.to_owned(), previous_status, refused.document().detail.clone())
        }
        Err(refused) => refusal(&refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_progress_is_nothing_done() {
        assert!(percent(None).abs() < f64::EPSILON);
        let half = Progress { fraction: Some(0.5), ..Progress::default() };
        assert!((percent(Some(&half)) - 50.0).abs() < f64::EPSILON);
    }
}
