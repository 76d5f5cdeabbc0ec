//! `POST /api/v1/jobs/batch`: many submissions in one request and one transaction, each with a result of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use taxiway_job::{Job, JobId};

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::idempotency::{self, Begun, Claim, ItemOutcome, Outcome};
use super::super::{Api, State, body, submission, wire};
use super::submit;
use crate::queue::{self, QueueError, Standing};
use crate::store::{BodyHash, StoreError};

/// Submissions in a batch (DESIGN §8): a transaction of more would hold others up.
const MOST: usize = 1000;

/// Submissions of a batch that plugins judge at a time: others have calls to make, too.
const JUDGED_AT_A_TIME: usize = 8;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    atomic: bool,
}

/// The body: a list of submissions, or an object with that list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<T> {
    #[serde(alias = "items")]
    jobs: Vec<T>,
}

pub(super) async fn submit(
    api: State,
    caller: Caller,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let parameters: Parameters = submission::parameters(query.as_deref())?;
    let bytes = body::json(&headers, body).await?;
    loop {
        let claim = match idempotency::begin(&api, &caller, &headers, &uri, &bytes).await? {
            Begun::Before(outcome) => return submit::replay(&api, outcome).await,
            Begun::First(claim) => Some(claim),
            Begun::Unkeyed => None,
        };
        let judged = judge(&api, &caller, &bytes).await?;
        let hash = BodyHash(Sha256::digest(&bytes).into());
        match store(&api, judged, parameters.atomic, hash, claim.as_ref()).await {
            Err(QueueError::Store(StoreError::KeyTaken)) => {}
            Err(error) => return Err(error.into()),
            Ok(mut items) => {
                for (job, _) in items.iter_mut().flatten() {
                    *job = submit::as_stored(&api, job.clone()).await?;
                }
                return Ok(answer(&items, parameters.atomic));
            }
        }
    }
}

/// What one submission comes to: a job that may stand in line, or why it may not.
type Judged = Result<Arc<Job>, Refused>;

/// What it came to: a job that stands in line.
type Stored = Result<(Arc<Job>, Standing), Refused>;

/// Reads and judges every submission.
async fn judge(api: &Api, caller: &Caller, bytes: &[u8]) -> Result<Vec<Judged>, Refused> {
    let judged = stream::iter(read(bytes)?).map(|submission| async move {
        let mut draft = submission::draft(JobId::new(), submission?);
        submit::may_submit(caller, &draft)?;
        draft.problems = submit::unknown_predecessors(api, &draft.terms).await?;
        submit::judge(api, caller, draft).await
    });
    Ok(judged.buffered(JUDGED_AT_A_TIME).collect().await)
}

fn read(bytes: &[u8]) -> Result<Vec<Result<wire::Submission, Refused>>, Refused> {
    // What is right is read in one go; only what is not is looked at one by one.
    let submissions = match list_of::<submission::Whole>(bytes) {
        Ok(submissions) => submissions.into_iter().map(submission::Whole::checked).collect(),
        Err(_) => {
            let values = list_of::<Value>(bytes).map_err(|error| {
                if error.is_data() {
                    let detail = "a batch is a list of submissions, or an object with the list `jobs`";
                    Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-submission", detail)
                } else {
                    submission::malformed(&error)
                }
            })?;
            let parsed = values.into_iter().map(|value| submission::parse(value.to_string().as_bytes()));
            parsed.collect::<Vec<_>>()
        }
    };
    if submissions.is_empty() || submissions.len() > MOST {
        let detail = format!("a batch has 1 to {MOST} submissions, and this one has {}", submissions.len());
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-submission", detail));
    }
    Ok(submissions)
}

fn list_of<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<Vec<T>, serde_json::Error> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice::<Batch<T>>(bytes).map(|batch| batch.jobs),
        _ => serde_json::from_slice(bytes),
    }
}

/// Stores those that may stand in line, all in one transaction. With `atomic`, none when one may not.
async fn store(
    api: &Api,
    mut judged: Vec<Judged>,
    atomic: bool,
    body: BodyHash,
    claim: Option<&Claim>,
) -> Result<Vec<Stored>, QueueError> {
    loop {
        refuse_taken_ids(api, &mut judged).await?;
        let refused = judged.iter().filter(|judged| judged.is_err()).count();
        if refused == judged.len() || (atomic && refused > 0) {
            let unstored = |judged: Judged| match judged {
                Ok(_) => Err(Refused::new(
                    StatusCode::FAILED_DEPENDENCY,
                    "not-stored",
                    "nothing is wrong with this job: it was not stored because another one of its batch was refused",
                )),
                Err(refused) => Err(refused),
            };
            return Ok(judged.into_iter().map(unstored).collect());
        }
        let key = claim.map(|claim| claim.key(&Outcome::Batch(judged.iter().map(outcome).collect())));
        let jobs = judged.iter().filter_map(|judged| judged.as_ref().ok().cloned()).collect();
        match api.service.queue.submit_all(queue::Submission { jobs, body, key }).await {
            Ok(standings) => {
                let mut standings = standings.into_iter();
                let mut stored = |job| (job, standings.next().unwrap_or_default());
                return Ok(judged.into_iter().map(|judged| judged.map(&mut stored)).collect());
            }
            // Another request took one of these ids just now; the next look finds which.
            Err(QueueError::Store(StoreError::DuplicateExternalId)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Refuses those whose external id another job has, one of this batch or one that is stored.
async fn refuse_taken_ids(api: &Api, judged: &mut [Judged]) -> Result<(), StoreError> {
    let id_of = |judged: &Judged| judged.as_ref().ok().and_then(|job| job.spec.external_id.clone());
    let asked: Vec<String> = judged.iter().filter_map(id_of).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let mut taken: HashSet<String> = api.service.store.taken_external_ids(asked).await?;
    for judged in judged {
        if let Some(id) = id_of(judged)
            && !taken.insert(id)
        {
            *judged = Err(StoreError::DuplicateExternalId.into());
        }
    }
    Ok(())
}

fn outcome(judged: &Judged) -> ItemOutcome {
    match judged {
        Ok(job) => ItemOutcome::Job(job.id),
        Err(refused) => ItemOutcome::Problem(Box::new(refused.document().clone())),
    }
}

fn answer(stored: &[Stored], atomic: bool) -> Response {
    let items = stored
        .iter()
        .map(|stored| match stored {
            Ok((job, standing)) => wire::BatchItem::accepted(wire::Job::new(job, standing)),
            Err(refused) => wire::BatchItem::refused(refused.document()),
        })
        .collect();
    let batch = wire::Batch { items };
    // The first that was refused for its own sake says why none was stored.
    let own = |stored: &&Stored| stored.as_ref().is_err_and(|it| it.status() != StatusCode::FAILED_DEPENDENCY);
    match stored.iter().find(own) {
        Some(Err(first)) if atomic => refuse_all(first, stored, &batch),
        _ => Json(batch).into_response(),
    }
}

/// None was stored: a problem document like any other, with the results in it.
fn refuse_all(first: &Refused, stored: &[Stored], batch: &wire::Batch<'_>) -> Response {
    let refused = stored.iter().filter(|it| it.as_ref().is_err_and(|it| it.status() != StatusCode::FAILED_DEPENDENCY));
    let detail = format!(
        "{} of {} jobs were refused, so that none was stored; the first: {}",
        refused.count(),
        stored.len(),
        first.document().detail
    );
    Refused::new(first.status(), "batch-refused", detail).with_items(&batch.items).into_response()
}

/// The answer to a batch that was carried out before.
pub(super) async fn again(api: &Api, items: Vec<ItemOutcome>) -> Result<Response, Refused> {
    let ids: Vec<JobId> = items
        .iter()
        .filter_map(|item| match item {
            ItemOutcome::Job(id) => Some(*id),
            ItemOutcome::Problem(_) => None,
        })
        .collect();
    let jobs = api.service.store.jobs_by_id(ids.clone()).await?;
    let standings: HashMap<JobId, Standing> =
        ids.iter().copied().zip(api.service.queue.standing(ids.clone()).await).collect();
    let none = Standing::default();
    let items = items
        .iter()
        .map(|item| match item {
            ItemOutcome::Problem(document) => wire::BatchItem::refused(document),
            ItemOutcome::Job(id) => match jobs.get(id) {
                Some(job) => wire::BatchItem::accepted(wire::Job::new(job, standings.get(id).unwrap_or(&none))),
                None => wire::BatchItem::refused(idempotency::removed(*id).document()),
            },
        })
        .collect();
    Ok(Json(wire::Batch { items }).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(body: &str) -> Vec<Option<String>> {
        let read = read(body.as_bytes()).expect("a batch");
        read.iter().map(|item| item.as_ref().err().map(|refused| refused.document().code.clone())).collect()
    }

    #[test]
    fn a_batch_is_a_list_or_an_object_with_one() {
        for body in [r#"[{"command": ["a"]}, {}]"#, r#" {"jobs": [{"command": ["a"]}, {}]}"#] {
            assert_eq!(codes(body), [None, None], "{body}");
        }
    }

    #[test]
    fn what_is_wrong_with_one_is_said_of_that_one() {
        let wrong = Some("invalid-submission".to_owned());
        assert_eq!(codes(r#"[{"comand": ["a"]}, {"gpus": 1}, ["a"], 7]"#), [wrong.clone(), None, wrong.clone(), wrong]);
    }

    #[test]
    fn what_is_no_batch_is_refused_as_a_whole() {
        let many = format!("[{}]", vec!["{}"; MOST + 1].join(","));
        for (body, status) in [("", 400), ("[", 400), ("7", 422), ("{}", 422), ("[]", 422), (many.as_str(), 422)] {
            let refused = read(body.as_bytes()).expect_err("refused");
            assert_eq!(refused.status().as_u16(), status, "{body:.20}");
        }
    }
}
