//! `POST /api/v1/jobs`

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use taxiway_job::{Job, JobId, Problem, Terms};

use super::super::answer::{Refused, problem};
use super::super::gate::Caller;
use super::super::idempotency::{self, Begun, Outcome};
use super::super::prefer::Prefer;
use super::super::{Api, State, body, submission, wire};
use super::{array, batch};
use crate::admission::{Draft, Refusal};
use crate::queue::{self, QueueError, Standing};
use crate::store::{BodyHash, Scope, StoreError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Parameters {
    dry_run: bool,
}

pub(super) async fn submit(
    api: State,
    caller: Caller,
    prefer: Prefer,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let parameters: Parameters = match &query {
        Some(_) => submission::parameters(query.as_deref())?,
        None => Parameters::default(),
    };
    let bytes = body::json(&headers, body).await?;
    if parameters.dry_run {
        let mut submission = submission::parse(&bytes)?;
        if let Some(asked) = submission.array.take() {
            return array::dry_run(&api, &caller, &asked, submission, bytes.len()).await;
        }
        let mut draft = submission::draft(JobId::new(), submission);
        may_submit(&api, &caller, &draft)?;
        draft.problems = unknown_predecessors(&api, &draft.terms).await?;
        return dry_run(&api, &caller, draft).await;
    }
    // A second look finds what another service process or a lost claim has stored since the first.
    loop {
        let begun = idempotency::begin(&api, &caller, &headers, &uri, &bytes).await?;
        let claim = match begun {
            Begun::Before(outcome) => return replay(&api, outcome, prefer).await,
            Begun::First(claim) => Some(claim),
            Begun::Unkeyed => None,
        };
        let mut submission = submission::parse(&bytes)?;
        if let Some(asked) = submission.array.take() {
            match array::submit(&api, &caller, &asked, submission, &bytes, claim.as_ref(), prefer).await? {
                Some(response) => return Ok(response),
                None => continue,
            }
        }
        let mut draft = submission::draft(JobId::new(), submission);
        may_submit(&api, &caller, &draft)?;
        draft.problems = unknown_predecessors(&api, &draft.terms).await?;
        let job = judge(&api, &caller, draft).await?;
        let key = claim.as_ref().map(|claim| claim.key(&Outcome::Job(job.id)));
        let body = BodyHash(Sha256::digest(&bytes).into());
        let submission = queue::Submission { jobs: vec![job.clone()], body, key };
        match api.service.queue.submit_all(submission).await {
            Ok(standings) => {
                let job = as_stored(&api, job).await?;
                return Ok(created(&job, standings.first().unwrap_or(&Standing::default()), prefer));
            }
            Err(QueueError::Store(StoreError::KeyTaken)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn created(job: &Job, standing: &Standing, prefer: Prefer) -> Response {
    let mut response = super::jobs::tagged(job, prefer.answer(1, &prefer.shown(job, standing)));
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The answer to a request that was carried out before: what it came to, as that is now.
pub(super) async fn replay(api: &Api, outcome: Outcome, prefer: Prefer) -> Result<Response, Refused> {
    let mut response = match outcome {
        Outcome::Job(id) => {
            let job = api.service.store.job(id).await?.ok_or_else(|| idempotency::removed(id))?;
            created(&job, &super::jobs::standing_of(api, id).await, prefer)
        }
        Outcome::Batch(items) => batch::again(api, items, prefer).await?,
        Outcome::Array(id, jobs) => array::again(api, id, jobs, prefer).await?,
    };
    idempotency::mark_replayed(&mut response);
    Ok(response)
}

/// With the scope `submit` only what an administrator has written down may run, unless `server.allow_commands` is set.
pub(super) fn may_submit(api: &Api, caller: &Caller, draft: &Draft) -> Result<(), Refused> {
    if may_run_commands(api, caller) || (draft.command.is_none() && draft.profile.is_some()) {
        return Ok(());
    }
    let detail = format!(
        "`{}` has the scope `submit`, which submits under a profile and without a command; server.allow_commands lets it run its own",
        caller.name
    );
    Err(Refused::new(StatusCode::FORBIDDEN, "command-not-allowed", detail))
}

/// Whether a command of this caller's may run.
pub(super) fn may_run_commands(api: &Api, caller: &Caller) -> bool {
    caller.scope >= Scope::Operate || api.service.settings.config.server.allow_commands
}

/// A problem for each job that a submission comes after and that does not exist.
pub(super) async fn unknown_predecessors(api: &Api, terms: &Terms) -> Result<Vec<Problem>, Refused> {
    unknown_jobs(api, terms.predecessors().map(|(job, _)| job).collect()).await
}

/// The same of these jobs.
pub(super) async fn unknown_jobs(api: &Api, named: Vec<JobId>) -> Result<Vec<Problem>, Refused> {
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let known = api.service.store.states(named.clone()).await?;
    let unknown = named.into_iter().filter(|job| !known.contains_key(job));
    Ok(unknown.map(|job| problem("", "unknown-job", format!("it comes after job {job}, which there is not"))).collect())
}

/// Has a draft judged. What comes of it may stand in line.
pub(super) async fn judge(api: &Api, caller: &Caller, draft: Draft) -> Result<Arc<Job>, Refused> {
    Ok(Arc::new(api.service.admission.judge(draft, &caller.name, false).await?.job))
}

/// A job just after its submission: one that comes after a job that has failed is cancelled at once.
pub(super) async fn as_stored(api: &Api, job: Arc<Job>) -> Result<Arc<Job>, Refused> {
    if job.spec.terms.after.is_empty() {
        return Ok(job);
    }
    let stored = api.service.store.job(job.id).await?;
    Ok(stored.map_or(job, Arc::new))
}

async fn dry_run(api: &Api, caller: &Caller, draft: Draft) -> Result<Response, Refused> {
    let verdict = match api.service.admission.judge(draft, &caller.name, true).await {
        Ok(admitted) => wire::Verdict {
            accepted: true,
            problems: Cow::Owned(admitted.job.warnings),
            config: Cow::Owned(admitted.job.config),
            rewrites: Cow::Owned(admitted.job.rewrites),
        },
        Err(Refusal::Problems { problems, config, rewrites, .. }) => wire::Verdict {
            accepted: false,
            problems: Cow::Owned(problems),
            config: Cow::Owned(config),
            rewrites: Cow::Owned(rewrites),
        },
        Err(failed @ Refusal::PluginFailed(_)) => return Err(failed.into()),
    };
    Ok(Json(verdict).into_response())
}
