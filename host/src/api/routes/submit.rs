//! `POST /api/v1/jobs`

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use taxiway_job::{Job, JobId, Problem, Terms};

use super::super::answer::{Refused, problem};
use super::super::gate::Caller;
use super::super::{Api, State, body, submission, wire};
use crate::admission::{Draft, Refusal};
use crate::queue::Standing;
use crate::store::{BodyHash, Scope};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Parameters {
    dry_run: bool,
}

pub(super) async fn submit(
    api: State,
    caller: Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let parameters: Parameters = match &query {
        Some(_) => submission::parameters(query.as_deref())?,
        None => Parameters::default(),
    };
    let bytes = body::json(&headers, body).await?;
    let mut draft = submission::draft(JobId::new(), submission::parse(&bytes)?);
    may_submit(&caller, &draft)?;
    draft.problems = unknown_predecessors(&api, &draft.terms).await?;
    if parameters.dry_run {
        return dry_run(&api, &caller, draft).await;
    }
    let hash = BodyHash(Sha256::digest(&bytes).into());
    drop(bytes);
    let (job, standing) = accept(&api, &caller, draft, hash).await?;
    let mut response = (StatusCode::CREATED, Json(wire::Job::new(&job, &standing))).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// With the scope `submit` only what an administrator has written down may run.
fn may_submit(caller: &Caller, draft: &Draft) -> Result<(), Refused> {
    if caller.scope >= Scope::Operate || (draft.command.is_none() && draft.profile.is_some()) {
        return Ok(());
    }
    let detail =
        format!("`{}` has the scope `submit`, which submits under a profile and without a command", caller.name);
    Err(Refused::new(StatusCode::FORBIDDEN, "command-not-allowed", detail))
}

/// A problem for each job that a submission comes after and that does not exist.
pub(super) async fn unknown_predecessors(api: &Api, terms: &Terms) -> Result<Vec<Problem>, Refused> {
    let named: Vec<JobId> = terms.predecessors().map(|(job, _)| job).collect();
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let known = api.service.store.states(named.clone()).await?;
    let unknown = named.into_iter().filter(|job| !known.contains_key(job));
    Ok(unknown.map(|job| problem("", "unknown-job", format!("it comes after job {job}, which there is not"))).collect())
}

/// Judges a draft and puts the job into the line. It is durable when this returns.
pub(super) async fn accept(
    api: &Api,
    caller: &Caller,
    draft: Draft,
    hash: BodyHash,
) -> Result<(Arc<Job>, Standing), Refused> {
    let job = Arc::new(api.service.admission.judge(draft, &caller.name, false).await?.job);
    let standing = api.service.queue.submit(job.clone(), hash).await?;
    if job.spec.terms.after.is_empty() {
        return Ok((job, standing));
    }
    // One that comes after a job that has failed is cancelled at once.
    let stored = api.service.store.job(job.id).await?;
    Ok((stored.map_or(job, Arc::new), standing))
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
