//! `POST /api/v1/jobs/{id}/cancel · hold · release · retry · requeue · move`: each answers the job as it is then.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use taxiway_job::{JobId, Target};

use super::super::answer::Refused;
use super::super::gate::{self, Caller};
use super::super::wire::{Move, MoveTo, Requeue};
use super::super::{Api, State, body};
use super::jobs;
use crate::store::Scope;

/// The revisions that an `If-Match` lets through (RFC 9110, section 13.1.1); none: any. A tag that is none of ours fits nothing.
pub(super) fn if_match(headers: &HeaderMap) -> Option<Vec<u32>> {
    let mut tags = Vec::new();
    for line in headers.get_all(header::IF_MATCH) {
        tags.extend(line.to_str().unwrap_or_default().split(',').map(str::trim));
    }
    if tags.is_empty() || tags.contains(&"*") {
        return None;
    }
    let revision = |tag: &str| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
    Some(tags.into_iter().filter_map(revision).collect())
}

pub(super) async fn cancel(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.at(if_match(&headers).as_deref()).cancel(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn hold(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.at(if_match(&headers).as_deref()).hold(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn release(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.at(if_match(&headers).as_deref()).release(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn retry(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    api.service.queue.at(if_match(&headers).as_deref()).retry(id, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn requeue(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    let Requeue { hold } = body::optional(&headers, body).await?.unwrap_or_default();
    api.service.queue.at(if_match(&headers).as_deref()).requeue(id, hold, &caller.name).await?;
    job_now(&api, id).await
}

pub(super) async fn move_to(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let id = own_job(&api, &caller, &id).await?;
    let target = match body::optional(&headers, body).await? {
        Some(Move { to }) => target(to)?,
        None => return Err(Refused::invalid_request(format!("say where to move it: {MOVES}"))),
    };
    api.service.queue.at(if_match(&headers).as_deref()).move_to(id, target, &caller.name).await?;
    job_now(&api, id).await
}

/// What `to` may be.
const MOVES: &str = r#"{"to": "front"}, {"to": "back"}, {"to": {"before": "ID"}} or {"to": {"position": 3}}"#;

fn target(to: MoveTo) -> Result<Target, Refused> {
    match to {
        MoveTo::Front => Ok(Target::Front),
        MoveTo::Back => Ok(Target::Back),
        MoveTo::Before(id) => id.parse().map(Target::Before).map_err(|error: taxiway_job::IdError| {
            Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "not-in-line", error.to_string())
        }),
        MoveTo::Position(position) => Ok(Target::Position(position.get())),
    }
}

/// The id in the path, when the caller may change that job: `submit` changes its own, `operate` any.
pub(super) async fn own_job(api: &Api, caller: &Caller, id: &str) -> Result<JobId, Refused> {
    let id = jobs::parse_id(id)?;
    may_change(api, caller, id).await?;
    Ok(id)
}

pub(super) async fn may_change(api: &Api, caller: &Caller, id: JobId) -> Result<(), Refused> {
    if caller.scope >= Scope::Operate {
        return Ok(());
    }
    let (job, _) = jobs::find(api, id).await?;
    if job.submitted_by == *caller.name { Ok(()) } else { Err(gate::forbidden(caller, Scope::Operate)) }
}

pub(super) async fn job_now(api: &Api, id: JobId) -> Result<Response, Refused> {
    let (job, standing) = jobs::find(api, id).await?;
    Ok(jobs::answer(&job, &standing))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_if_match_names_revisions_or_any() {
        let read = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::IF_MATCH, HeaderValue::from_static(line));
            }
            if_match(&headers)
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["*"]), None);
        assert_eq!(read(&["\"7\", \"1\""]), Some(vec![7, 1]));
        assert_eq!(read(&["\"7\"", "\"1\""]), Some(vec![7, 1]));
        // Weak tags and those of others fit nothing.
        assert_eq!(read(&["W/\"1\", \"x\", 1"]), Some(Vec::new()));
    }
}
