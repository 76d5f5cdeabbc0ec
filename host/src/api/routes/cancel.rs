//! `POST /api/v1/jobs/cancel`: many jobs at once, by their ids or by what they have in common.

use std::borrow::Cow;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use taxiway_job::{JobId, State as JobState};

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::wire::{CancelFilter, CancelMany, CancelledItem, CancelledMany};
use super::super::wrong_type::{self, Unread};
use super::super::{Api, State, body, submission};
use super::{jobs, operate};
use crate::store::{JobFilter, Scope};

/// Jobs in one request: a bound for the answer. `more` says that there are others.
const MOST: usize = 10_000;

/// Cancels under way at a time: what fits into one transaction of the store is written together.
const AT_A_TIME: usize = 256;

pub(super) async fn cancel(api: State, caller: Caller, headers: HeaderMap, body: Body) -> Result<Response, Refused> {
    let bytes = body::json(&headers, body).await?;
    let asked: CancelMany = wrong_type::read(&bytes).map_err(|error| match error {
        Unread::NotJson(error) => submission::malformed(&error),
        Unread::Wrong(what) => not_understood(&what),
    })?;
    let (ids, more) = match (asked.ids, asked.filter) {
        (Some(ids), None) if ids.len() <= MOST => (ids, false),
        (Some(_), None) => return Err(not_understood(&format!("`ids` has at most {MOST} ids"))),
        (None, Some(filter)) => all_of(&api, &caller, filter).await?,
        _ => return Err(not_understood("give either `ids` or `filter`; {\"filter\": {}} means every job")),
    };
    let cancel = |id: String| {
        let (api, caller) = (&api, &caller);
        async move {
            match one(api, caller, &id).await {
                Ok((id, state)) => CancelledItem::done(id, state),
                Err(refused) => CancelledItem {
                    id: Cow::Owned(id),
                    status: refused.status().as_u16(),
                    state: None,
                    problem: Some(Cow::Owned(refused.document().clone())),
                },
            }
        }
    };
    let items = stream::iter(ids).map(cancel).buffered(AT_A_TIME).collect().await;
    Ok(Json(CancelledMany { items, more }).into_response())
}

async fn one(api: &Api, caller: &Caller, id: &str) -> Result<(JobId, JobState), Refused> {
    let id = jobs::parse_id(id)?;
    operate::may_change(api, caller, id).await?;
    Ok((id, api.service.queue.cancel(id, &caller.name).await?))
}

/// The jobs that fit the filter, have not ended and are the caller's to cancel; and whether there are more.
async fn all_of(api: &Api, caller: &Caller, filter: CancelFilter) -> Result<(Vec<String>, bool), Refused> {
    let mut wanted = JobFilter {
        name: filter.name,
        profile: filter.profile,
        submitted_by: (caller.scope < Scope::Operate).then(|| caller.name.to_string()),
        limit: MOST,
        // The last in line first, so that none of them starts meanwhile in the place of another.
        newest_first: true,
        ..JobFilter::default()
    };
    for text in &filter.state {
        jobs::states(text, &mut wanted.states)?;
    }
    if let Some(text) = &filter.array_id {
        wanted.array = Some(jobs::array_id(text)?);
    }
    for text in &filter.label {
        wanted.labels.push(jobs::label(text)?);
    }
    if wanted.states.is_empty() {
        wanted.states.extend(JobState::ALL);
    }
    wanted.states.retain(|state| !state.has_ended() && *state != JobState::Cancelling);
    if wanted.states.is_empty() {
        // No states would mean any.
        return Ok((Vec::new(), false));
    }
    let page = api.service.store.job_ids(wanted).await?;
    Ok((page.items.iter().map(JobId::to_string).collect(), page.next.is_some()))
}

fn not_understood(detail: &str) -> Refused {
    Refused::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid-request",
        format!("the request is not understood: {detail}"),
    )
}
