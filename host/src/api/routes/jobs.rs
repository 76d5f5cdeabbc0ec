//! `GET /api/v1/jobs` and `GET /api/v1/jobs/{id}`

use axum::extract::{Path, RawQuery};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use taxiway_job::{ArrayId, Job, JobId, State as JobState};

use super::super::answer::{Refused, with_jobs};
use super::super::prefer::Prefer;
use super::super::{Api, State, wire};
use crate::config::nearest;
use crate::queue::Standing;
use crate::store::{Cursor, JobFilter};

/// Jobs on a page, unless the query says otherwise, and at most (DESIGN §8).
pub(super) const LIMIT: usize = 100;
pub(super) const MOST: usize = 1000;

const PARAMETERS: [&str; 10] =
    ["state", "label", "name", "profile", "external_id", "array_id", "id", "sort", "limit", "cursor"];

pub(super) async fn list(api: State, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let filter = filter(query.as_deref().unwrap_or_default())?;
    let page = api.service.store.jobs(filter).await?;
    let standings = api.service.queue.standing(page.items.iter().map(|job| job.id).collect()).await;
    let shown = |(job, standing)| Prefer::Representation.shown(job, standing);
    let items = page.items.iter().zip(&standings).map(shown).collect();
    let next_cursor = page.next.map(|Cursor(seq)| seq.to_string());
    Ok(with_jobs(page.items.len(), &wire::Page { items, next_cursor }))
}

pub(super) async fn one(api: State, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = parse_id(&id)?;
    let (job, standing) = find(&api, id).await?;
    Ok(answer(&job, &standing))
}

/// The id in a path.
pub(super) fn parse_id(text: &str) -> Result<JobId, Refused> {
    text.parse().map_err(|error: taxiway_job::IdError| Refused::not_found(error.to_string()))
}

/// The job as it is stored and as it stands in the line.
pub(super) async fn find(api: &Api, id: JobId) -> Result<(Job, Standing), Refused> {
    let job = api.service.store.job(id).await?.ok_or_else(|| none(id))?;
    let standing = standing_of(api, id).await;
    Ok((job, standing))
}

/// There is no such job.
pub(super) fn none(id: JobId) -> Refused {
    Refused::not_found(format!("there is no job {id}"))
}

pub(super) async fn standing_of(api: &Api, id: JobId) -> Standing {
    api.service.queue.standing(vec![id]).await.pop().unwrap_or_default()
}

/// The job, with its revision as its `ETag`.
pub(super) fn answer(job: &Job, standing: &Standing) -> Response {
    tagged(job, with_jobs(1, &wire::Job::new(job, standing)))
}

/// The response, with this job's revision as its `ETag`: what `If-Match` of an operation compares.
pub(super) fn tagged(job: &Job, mut response: Response) -> Response {
    if let Ok(tag) = HeaderValue::try_from(etag(job)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub(super) fn etag(job: &Job) -> String {
    format!("\"{}\"", job.revision)
}

fn filter(query: &str) -> Result<JobFilter, Refused> {
    let uri = format!("/?{query}").parse().map_err(|error| Refused::invalid_request(format!("the query: {error}")))?;
    // Pairs, because `label` may be there several times.
    let axum::extract::Query(pairs) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Refused::invalid_request(format!("the query: {error}")))?;
    let mut filter = JobFilter { limit: LIMIT, newest_first: true, ..JobFilter::default() };
    for (name, value) in pairs {
        match name.as_str() {
            "state" => states(&value, &mut filter.states)?,
            "label" => filter.labels.push(label(&value)?),
            "name" => filter.name = Some(value),
            "profile" => filter.profile = Some(value),
            "external_id" => filter.external_id = Some(value),
            "array_id" => filter.array = Some(array_id(&value)?),
            "id" => {
                if !value.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
                    let detail = format!("id is `{value}`: give the first digits of a job's id");
                    return Err(Refused::invalid_request(detail));
                }
                filter.id_prefix = Some(value);
            }
            "sort" => {
                filter.newest_first = match value.as_str() {
                    "-submitted_at" => true,
                    "submitted_at" => false,
                    _ => {
                        let detail =
                            format!("sort is `{value}`: use submitted_at, or -submitted_at for the newest first");
                        return Err(Refused::invalid_request(detail));
                    }
                }
            }
            "limit" => {
                filter.limit =
                    value.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
                        Refused::invalid_request(format!("limit is `{value}`: it goes from 1 to {MOST}"))
                    })?;
            }
            "cursor" => {
                let seq = value.parse().map_err(|_| {
                    Refused::invalid_request(
                        "the cursor is not one of ours: send `next_cursor` of the page before".to_owned(),
                    )
                })?;
                filter.after = Some(Cursor(seq));
            }
            unknown => {
                let meant = nearest(unknown, PARAMETERS).map(|meant| format!("; did you mean `{meant}`?"));
                let detail = format!("there is no parameter `{unknown}`{}", meant.unwrap_or_default());
                return Err(Refused::invalid_request(detail));
            }
        }
    }
    Ok(filter)
}

/// The array that a text names.
pub(super) fn array_id(text: &str) -> Result<ArrayId, Refused> {
    text.parse().map_err(|error: taxiway_job::IdError| Refused::invalid_request(error.to_string()))
}

/// The states of a text like `queued,running`.
pub(super) fn states(text: &str, states: &mut Vec<JobState>) -> Result<(), Refused> {
    for state in text.split(',').filter(|state| !state.is_empty()) {
        let state = state.parse();
        states.push(state.map_err(|error: taxiway_job::UnknownState| Refused::invalid_request(error.to_string()))?);
    }
    Ok(())
}

/// The key and value of a text like `team=nlp`.
pub(super) fn label(text: &str) -> Result<(String, String), Refused> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Refused::invalid_request(format!("label is `{text}`: write it like label=team=nlp")))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_a_filter() {
        let found =
            filter("state=queued,running&label=team%3Dnlp&label=a=b&limit=1000&sort=submitted_at&cursor=7&id=0193")
                .expect("valid");
        assert_eq!(found.states, [JobState::Queued, JobState::Running]);
        assert_eq!(found.labels, [("team".into(), "nlp".into()), ("a".into(), "b".into())]);
        assert_eq!((found.limit, found.newest_first, found.after), (1000, false, Some(Cursor(7))));
    }

    #[test]
    fn a_query_that_is_not_understood_is_refused() {
        for (query, says) in [
            ("stat=queued", "did you mean `state`?"),
            ("state=done", "not a state"),
            ("limit=1001", "1 to 1000"),
            ("limit=0", "1 to 1000"),
            ("label=team", "label=team=nlp"),
            ("cursor=x", "next_cursor"),
            ("sort=name", "submitted_at"),
            ("id=xyz", "first digits"),
            ("array_id=0193", "not the id of an array"),
        ] {
            let refused = filter(query).expect_err(query);
            assert!(refused.document().detail.contains(says), "{query}: {}", refused.document().detail);
        }
    }
}
