//! `POST /api/v1/jobs` with `array`: a job for each combination of values, all of them stored or none.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use taxiway_job::{ArrayId, ArrayLimit, ArrayMember, Job, JobId, Problem};

use super::super::answer::{Refused, problem};
use super::super::gate::Caller;
use super::super::idempotency::{self, Claim, Outcome};
use super::super::prefer::Prefer;
use super::super::{Api, array, submission, wire};
use super::submit::{may_submit, unknown_predecessors};
use crate::admission::{Admitted, Draft, Refusal};
use crate::queue::{self, QueueError, Standing};
use crate::store::{BodyHash, StoreError};

/// Bytes of an array written out, each member with everything that the request says: they are in memory together.
const MOST_BYTES: usize = 128 << 20;

/// Members that plugins judge at a time, as of a batch.
const JUDGED_AT_A_TIME: usize = 8;

/// Refused members, and different problems, that an answer tells of: a thousand times the same helps nobody.
const MOST_TOLD: usize = 100;

/// What admission says of one member.
struct Judged {
    member: ArrayMember,
    verdict: Result<Box<Admitted>, Refusal>,
}

/// Stores the jobs of an array. None when another request with the same key was stored meanwhile.
pub(super) async fn submit(
    api: &Api,
    caller: &Caller,
    asked: &wire::Array,
    submission: wire::Submission,
    bytes: &[u8],
    claim: Option<&Claim>,
    prefer: Prefer,
) -> Result<Option<Response>, Refused> {
    let id = ArrayId::new();
    let judged = judge(api, caller, id, drafts(api, caller, id, asked, submission, bytes.len()).await?, false).await?;
    let refused: Vec<(&ArrayMember, &[Problem])> = judged.iter().filter_map(problems_of).collect();
    if !refused.is_empty() {
        return Err(refuse(&refused, judged.len()));
    }
    let admitted = judged.into_iter().filter_map(|judged| judged.verdict.ok());
    let jobs: Vec<Arc<Job>> = admitted.map(|admitted| Arc::new(admitted.job)).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let key = claim.map(|claim| claim.key(&Outcome::Array(id, ids.clone())));
    let body = BodyHash(Sha256::digest(bytes).into());
    match api.service.queue.submit_all(queue::Submission { jobs: jobs.clone(), body, key }).await {
        // One that comes after a job that has failed is cancelled at once.
        Ok(_) if jobs.iter().any(|job| !job.spec.terms.after.is_empty()) => {
            Ok(Some(again(api, id, ids, prefer).await?))
        }
        Ok(standings) => {
            let items = jobs.iter().zip(&standings).map(|(job, standing)| prefer.shown(job, standing)).collect();
            Ok(Some(created(id, items, prefer)))
        }
        Err(QueueError::Store(StoreError::KeyTaken)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Says what would become of each member.
pub(super) async fn dry_run(
    api: &Api,
    caller: &Caller,
    asked: &wire::Array,
    submission: wire::Submission,
    request_bytes: usize,
) -> Result<Response, Refused> {
    let id = ArrayId::new();
    let judged = judge(api, caller, id, drafts(api, caller, id, asked, submission, request_bytes).await?, true).await?;
    let items: Vec<wire::MemberVerdict<'_>> = judged
        .iter()
        .map(|Judged { member, verdict }| {
            let (accepted, problems, config, rewrites) = match verdict {
                Ok(admitted) => {
                    let job = &admitted.job;
                    (true, job.warnings.as_slice(), &job.config, job.rewrites.as_slice())
                }
                Err(Refusal::Problems { problems, config, rewrites, .. }) => {
                    (false, problems.as_slice(), config, rewrites.as_slice())
                }
                // `judge` answers with it.
                Err(Refusal::PluginFailed(_)) => (false, [].as_slice(), &member.params, [].as_slice()),
            };
            wire::MemberVerdict {
                array_index: member.index,
                array_params: Cow::Borrowed(&member.params),
                accepted,
                problems: Cow::Borrowed(problems),
                config: Cow::Borrowed(config),
                rewrites: Cow::Borrowed(rewrites),
            }
        })
        .collect();
    let accepted = items.iter().all(|item| item.accepted);
    Ok(Json(wire::ArrayVerdict { accepted, items }).into_response())
}

/// The answer for an array that was stored, with its jobs as they are now. One that was removed since is left out.
pub(super) async fn again(api: &Api, id: ArrayId, ids: Vec<JobId>, prefer: Prefer) -> Result<Response, Refused> {
    let jobs = api.service.store.jobs_by_id(ids.clone()).await?;
    if let (true, Some(first)) = (jobs.is_empty(), ids.first()) {
        return Err(idempotency::removed(*first));
    }
    let standings: Vec<Standing> = api.service.queue.standing(ids.clone()).await;
    let there = ids.iter().zip(&standings).filter_map(|(id, standing)| Some((jobs.get(id)?, standing)));
    Ok(created(id, there.map(|(job, standing)| prefer.shown(job, standing)).collect(), prefer))
}

fn created(id: ArrayId, items: Vec<wire::Shown<'_>>, prefer: Prefer) -> Response {
    let mut response = prefer.answer(items.len(), &wire::SubmittedArray { array_id: id, items });
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/jobs?array_id={id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A draft for each member, in their order.
async fn drafts(
    api: &Api,
    caller: &Caller,
    id: ArrayId,
    asked: &wire::Array,
    submission: wire::Submission,
    request_bytes: usize,
) -> Result<Vec<Draft>, Refused> {
    let count = array::count(asked);
    if request_bytes.saturating_mul(count) > MOST_BYTES {
        let mut found = problem(
            "/array",
            "too-large",
            format!("{count} jobs of {request_bytes} bytes each are more than the {MOST_BYTES} that an array may have"),
        );
        found.help = Some("keep in a file what is the same for all, or send fewer combinations at a time".to_owned());
        return Err(Refused::problems("invalid-submission", vec![found]));
    }
    let mut common = submission::draft(JobId::new(), submission);
    may_submit(api, caller, &common)?;
    common.problems = unknown_predecessors(api, &common.terms).await?;
    let limit = |max_parallel| ArrayLimit { array: id, max_parallel };
    common.terms.array = asked.max_parallel.and_then(NonZeroU32::new).map(limit);
    let config = std::mem::take(&mut common.config);
    let member = |(index, one): (u32, array::Combination)| Draft {
        id: JobId::new(),
        config: one.config,
        array: Some(ArrayMember { id, index, params: one.params }),
        ..common.clone()
    };
    Ok((0..).zip(array::combinations(asked, &config)).map(member).collect())
}

/// Has every member judged.
///
/// # Errors
/// When a plugin could not do its work.
async fn judge(
    api: &Api,
    caller: &Caller,
    id: ArrayId,
    drafts: Vec<Draft>,
    dry_run: bool,
) -> Result<Vec<Judged>, Refused> {
    let judged = stream::iter(drafts).map(|draft| async move {
        let member = draft.array.clone().unwrap_or(ArrayMember { id, index: 0, params: Map::new() });
        let verdict = api.service.admission.judge(draft, &caller.name, dry_run).await.map(Box::new);
        match verdict {
            Err(failed @ Refusal::PluginFailed(_)) => Err(Refused::from(failed)),
            verdict => Ok(Judged { member, verdict }),
        }
    });
    let mut judged = judged.buffered(JUDGED_AT_A_TIME);
    let mut all = Vec::new();
    while let Some(one) = judged.next().await {
        all.push(one?);
    }
    Ok(all)
}

fn problems_of(judged: &Judged) -> Option<(&ArrayMember, &[Problem])> {
    match &judged.verdict {
        Err(Refusal::Problems { problems, .. }) => Some((&judged.member, problems)),
        _ => None,
    }
}

/// None was stored: all that is wrong, each problem once, and the members that have some.
fn refuse(refused: &[(&ArrayMember, &[Problem])], of: usize) -> Refused {
    let mut different: Vec<Problem> = Vec::new();
    for problem in refused.iter().flat_map(|(_, problems)| *problems) {
        if different.len() < MOST_TOLD && !different.contains(problem) {
            different.push(problem.clone());
        }
    }
    let (count, first) = (refused.len(), refused.first().map(|(member, _)| told(&member.params)).unwrap_or_default());
    let items: Vec<wire::RefusedMember<'_>> = refused
        .iter()
        .take(MOST_TOLD)
        .map(|(member, problems)| wire::RefusedMember {
            array_index: member.index,
            array_params: Cow::Borrowed(&member.params),
            problems: Cow::Borrowed(problems),
        })
        .collect();
    let detail = format!(
        "{count} of {of} jobs of the array were refused, so that none was stored; the first is the one with {first}"
    );
    Refused::problems("array-refused", different).with_detail(detail).with_items(&items)
}

/// Values for people: `lr=0.1, seed=1`.
fn told(params: &Map<String, Value>) -> String {
    params.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}
