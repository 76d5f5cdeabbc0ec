//! `POST /api/v1/jobs/batch`: many submissions in one request and one transaction, each with a result of its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use taxiway_job::{Job, JobId, OutOfRange, Problem};

use super::super::answer::{Refused, problem};
use super::super::gate::Caller;
use super::super::idempotency::{self, Begun, Claim, ItemOutcome, Outcome};
use super::super::prefer::Prefer;
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
    prefer: Prefer,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let parameters: Parameters = submission::parameters(query.as_deref())?;
    let bytes = body::json(&headers, body).await?;
    loop {
        let claim = match idempotency::begin(&api, &caller, &headers, &uri, &bytes).await? {
            Begun::Before(outcome) => return submit::replay(&api, outcome, prefer).await,
            Begun::First(claim) => Some(claim),
            Begun::Unkeyed => None,
        };
        let (ids, judged) = judge(&api, &caller, &bytes).await?;
        let hash = BodyHash(Sha256::digest(&bytes).into());
        match store(&api, &ids, judged, parameters.atomic, hash, claim.as_ref()).await {
            Err(QueueError::Store(StoreError::KeyTaken)) => {}
            Err(error) => return Err(error.into()),
            Ok(mut items) => {
                for (job, _) in items.iter_mut().flatten() {
                    *job = submit::as_stored(&api, job.clone()).await?;
                }
                return Ok(answer(&items, parameters.atomic, prefer));
            }
        }
    }
}

/// What one submission comes to: a job that may stand in line, or why it may not.
type Judged = Result<Arc<Job>, Refused>;

/// What it came to: a job that stands in line.
type Stored = Result<(Arc<Job>, Standing), Refused>;

/// Reads and judges every submission. Each has the id that its job has if it comes to one.
async fn judge(api: &Api, caller: &Caller, bytes: &[u8]) -> Result<(Vec<JobId>, Vec<Judged>), Refused> {
    let (ids, submissions): (Vec<JobId>, Vec<_>) = read(bytes)?.into_iter().unzip();
    let own = ids.as_slice();
    let mut submissions = own.iter().copied().zip(submissions);
    let mut judged: Vec<Judged> = Vec::with_capacity(own.len());
    let mut waiting = FuturesOrdered::new();
    loop {
        while waiting.len() < JUDGED_AT_A_TIME
            && let Some((id, submission)) = submissions.next()
        {
            // A thousand at a time would keep a thread from everybody else.
            tokio::task::consume_budget().await;
            let mut one = judge_one(api, caller, own, id, submission).boxed();
            // Before the first that waits, for a plugin or the store, each is done when it is begun: nothing is gained by a place
            // among those that wait.
            match waiting.is_empty().then(|| one.as_mut().now_or_never()).flatten() {
                Some(it) => judged.push(it),
                None => waiting.push_back(one),
            }
        }
        match waiting.next().await {
            Some(it) => judged.push(it),
            None => break,
        }
    }
    drop(waiting);
    Ok((ids, judged))
}

async fn judge_one(
    api: &Api,
    caller: &Caller,
    own: &[JobId],
    id: JobId,
    submission: Result<wire::Submission, Refused>,
) -> Judged {
    let mut draft = submission::draft(id, submission?);
    submit::may_submit(api, caller, &draft)?;
    let named = draft.terms.predecessors().map(|(job, _)| job);
    let others = named.filter(|job| place(own, *job).is_none()).collect();
    draft.problems = submit::unknown_jobs(api, others).await?;
    submit::judge(api, caller, draft).await
}

/// The place of a job in a batch with these ids, which ascend as they were made.
fn place(ids: &[JobId], job: JobId) -> Option<usize> {
    ids.binary_search(&job).ok()
}

/// A submission that may be wrong, and the id that its job would have.
type Read = (JobId, Result<wire::Submission, Refused>);

fn read(bytes: &[u8]) -> Result<Vec<Read>, Refused> {
    let new_ids = |count: usize| std::iter::repeat_with(JobId::new).take(count).collect::<Vec<JobId>>();
    // What is right is read in one go; only what is not is looked at one by one.
    let (ids, mut submissions) = match list_of::<submission::Whole>(bytes) {
        Ok(submissions) => {
            let ids = new_ids(submissions.len());
            let checked: Vec<_> = submissions.into_iter().map(|whole| whole.checked(Some(&ids))).collect();
            (ids, checked)
        }
        Err(_) => {
            let values = list_of::<Value>(bytes).map_err(|error| {
                if error.is_data() {
                    let detail = "a batch is a list of submissions, or an object with the list `jobs`";
                    Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-submission", detail)
                } else {
                    submission::malformed(&error)
                }
            })?;
            let ids = new_ids(values.len());
            let one = |value: Value| submission::parse_one(value.to_string().as_bytes(), Some(&ids));
            let parsed = values.into_iter().map(one).collect();
            (ids, parsed)
        }
    };
    if submissions.is_empty() || submissions.len() > MOST {
        let detail = format!("a batch has 1 to {MOST} submissions, and this one has {}", submissions.len());
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-submission", detail));
    }
    refuse_altered(bytes, &mut submissions)?;
    Ok(ids.into_iter().zip(submissions).collect())
}

/// Refuses those with numbers that would not arrive as they were sent.
fn refuse_altered(bytes: &[u8], submissions: &mut [Result<wire::Submission, Refused>]) -> Result<(), Refused> {
    let altered = taxiway_job::out_of_range(bytes);
    if altered.len() == OutOfRange::MOST {
        // There may be more than these, and nobody knows where.
        return submission::unaltered(bytes);
    }
    // A number's place in the batch: perhaps its list, the submission, and its place in that.
    let place = |found: &OutOfRange| {
        let mut steps = found.path.trim_start_matches('/').splitn(3, '/');
        let first = steps.next()?;
        let at = first.parse().ok().or_else(|| steps.next()?.parse().ok())?;
        let rest: Vec<&str> = steps.collect();
        Some((at, format!("/{}", rest.join("/"))))
    };
    let mut problems: BTreeMap<usize, Vec<Problem>> = BTreeMap::new();
    for found in &altered {
        if let Some((at, path)) = place(found) {
            problems.entry(at).or_default().push(Problem { path, ..submission::number_out_of_range(found) });
        }
    }
    for (at, problems) in problems {
        if let Some(submission) = submissions.get_mut(at).filter(|submission| submission.is_ok()) {
            *submission = Err(Refused::problems("invalid-submission", problems));
        }
    }
    Ok(())
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
    ids: &[JobId],
    mut judged: Vec<Judged>,
    atomic: bool,
    body: BodyHash,
    claim: Option<&Claim>,
) -> Result<Vec<Stored>, QueueError> {
    loop {
        refuse_taken_ids(api, &mut judged).await?;
        let followers = followers(ids, &judged);
        refuse_circles(&followers, &mut judged);
        refuse_followers(&followers, &mut judged);
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

/// For each job of a batch the places there of those that come after it.
fn followers(ids: &[JobId], judged: &[Judged]) -> Vec<Vec<usize>> {
    let mut followers = vec![Vec::new(); ids.len()];
    for (at, judged) in judged.iter().enumerate() {
        let predecessors = judged.iter().flat_map(|job| job.spec.terms.predecessors());
        for place in predecessors.filter_map(|(job, _)| place(ids, job)) {
            followers[place].push(at);
        }
    }
    followers
}

/// Refuses those that come after themselves, or after one of their batch that does: neither would ever start.
fn refuse_circles(followers: &[Vec<usize>], judged: &mut [Judged]) {
    // Kahn: who waits for none that is left is taken away, and those who are left in the end wait in a circle.
    let mut waits = vec![0usize; judged.len()];
    followers.iter().flatten().for_each(|at| waits[*at] += 1);
    let mut free: Vec<usize> = (0..judged.len()).filter(|at| waits[*at] == 0).collect();
    while let Some(at) = free.pop() {
        for follower in &followers[at] {
            waits[*follower] -= 1;
            if waits[*follower] == 0 {
                free.push(*follower);
            }
        }
    }
    for (judged, _) in judged.iter_mut().zip(&waits).filter(|(_, waits)| **waits > 0) {
        let message = "it would come after itself, or after a job of its batch that does: of the jobs in its `after` and `after_any`, \
                       one comes after it";
        *judged = Err(Refused::problems("rejected", vec![problem("", "circle", message)]));
    }
}

/// Refuses those that come after a refused one of their batch.
fn refuse_followers(followers: &[Vec<usize>], judged: &mut [Judged]) {
    let mut refused: Vec<usize> = (0..judged.len()).filter(|at| judged[*at].is_err()).collect();
    while let Some(first) = refused.pop() {
        for at in &followers[first] {
            if judged[*at].is_ok() {
                let detail = format!("it comes after `#{first}` of its batch, which was refused");
                judged[*at] = Err(Refused::new(StatusCode::FAILED_DEPENDENCY, "predecessor-refused", detail));
                refused.push(*at);
            }
        }
    }
}

fn outcome(judged: &Judged) -> ItemOutcome {
    match judged {
        Ok(job) => ItemOutcome::Job(job.id),
        Err(refused) => ItemOutcome::Problem(Box::new(refused.document().clone())),
    }
}

fn answer(stored: &[Stored], atomic: bool, prefer: Prefer) -> Response {
    let items = stored
        .iter()
        .map(|stored| match stored {
            Ok((job, standing)) => wire::BatchItem::accepted(prefer.shown(job, standing)),
            Err(refused) => wire::BatchItem::refused(refused.document()),
        })
        .collect();
    let batch = wire::Batch { items };
    // The first that was refused for its own sake says why none was stored.
    let own = |stored: &&Stored| stored.as_ref().is_err_and(|it| it.status() != StatusCode::FAILED_DEPENDENCY);
    match stored.iter().find(own) {
        Some(Err(first)) if atomic => refuse_all(first, stored, &batch),
        _ => prefer.answer(stored.len(), &batch),
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
pub(super) async fn again(api: &Api, items: Vec<ItemOutcome>, prefer: Prefer) -> Result<Response, Refused> {
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
                Some(job) => wire::BatchItem::accepted(prefer.shown(job, standings.get(id).unwrap_or(&none))),
                None => wire::BatchItem::refused(idempotency::removed(*id).document()),
            },
        })
        .collect();
    Ok(prefer.answer(ids.len(), &wire::Batch { items }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(body: &str) -> Vec<Option<String>> {
        let read = read(body.as_bytes()).expect("a batch");
        read.iter().map(|(_, item)| item.as_ref().err().map(|refused| refused.document().code.clone())).collect()
    }

    #[test]
    fn a_job_of_a_batch_comes_after_others_of_it() {
        let body = r##"[{"after": ["#2"]}, {"after": ["#0"], "after_any": ["#0"]}, {}]"##;
        let read = read(body.as_bytes()).expect("a batch");
        let after = |at: usize| read[at].1.as_ref().expect("it is right").after.clone();
        assert_eq!((after(0), after(1)), (Some(vec![read[2].0.to_string()]), Some(vec![read[0].0.to_string()])));
        assert_eq!(read[1].1.as_ref().expect("it is right").after_any, after(1));
        for named in ["#2", "#", "#-1", "#+0", "#x", "0"] {
            let body = format!(r##"[{{}}, {{"after": ["{named}"]}}]"##);
            assert_eq!(codes(&body), [None, Some("invalid-submission".to_owned())], "{named}");
        }
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
    fn a_number_that_would_be_altered_refuses_its_own_submission() {
        let wrong = r#"{"config": {"seed": 123456789012345678901, "deep": [{"a": 98765432109876543210987}]}}"#;
        for body in [format!("[{{}}, {wrong}]"), format!(r#"{{"jobs": [{{}}, {wrong}]}}"#)] {
            let read = read(body.as_bytes()).expect("a batch");
            assert!(read[0].1.is_ok(), "{body}");
            let refused = read[1].1.as_ref().expect_err("refused");
            let paths: Vec<&str> = refused.document().problems.iter().map(|problem| problem.path.as_str()).collect();
            assert_eq!(paths, ["/config/seed", "/config/deep/0/a"], "{body}");
        }
        let many = format!("[{{\"config\": {{\"a\": [{}]}}}}]", vec!["123456789012345678901"; 200].join(","));
        assert!(read(many.as_bytes()).is_err());
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
