//! `PATCH /api/v1/jobs/{id}`: a job is changed while it waits, as if it had been submitted so; of one that runs, its time limit.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value};
use taxiway_job::{Job, State as JobState};

use super::super::answer::{Refused, problem};
use super::super::gate::Caller;
use super::super::wire::Submission;
use super::super::{Api, State, body, submission};
use super::{jobs, operate, submit};
use crate::queue::QueueError;

/// How often an edit without `If-Match` begins again when somebody else was faster.
const TRIES: usize = 5;

/// Fields of a submission that say how a job came to be, or that have operations of their own.
const NOT_EDITABLE: [(&str, &str); 3] = [
    ("profile", "submit a new job under the other profile"),
    ("hold", "use /hold and /release"),
    ("array", "a job stays the member of an array that it is: submit a new array"),
];

pub(super) async fn edit(
    api: State,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let id = operate::own_job(&api, &caller, &id).await?;
    let patch = body::merge_patch(&headers, body).await?;
    check(&api, &caller, &patch)?;
    change(&api, &caller, id, &patch, operate::if_match(&headers).as_deref()).await?;
    operate::job_now(&api, id).await
}

/// Changes a job that waits, or the time limit of one that runs. It is durable when this returns.
pub(super) async fn change(
    api: &Api,
    caller: &Caller,
    id: taxiway_job::JobId,
    patch: &Map<String, Value>,
    expected: Option<&[u32]>,
) -> Result<(), Refused> {
    for _ in 0..TRIES {
        let found = api.service.store.whole_job(id).await?;
        let job = found.ok_or_else(|| jobs::none(id))?;
        if expected.is_some_and(|revisions| !revisions.contains(&job.revision)) {
            return Err(QueueError::Changed(id).into());
        }
        match apply(api, caller, job, patch).await {
            Err(Failed::Queue(QueueError::Changed(_))) if expected.is_none() => {}
            Err(Failed::Queue(error)) => return Err(error.into()),
            Err(Failed::Refused(refused)) => return Err(refused),
            Ok(()) => return Ok(()),
        }
    }
    Err(QueueError::Changed(id).into())
}

enum Failed {
    Queue(QueueError),
    Refused(Refused),
}

impl From<QueueError> for Failed {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

fn check(api: &Api, caller: &Caller, patch: &Map<String, Value>) -> Result<(), Refused> {
    let wrong: Vec<_> = NOT_EDITABLE
        .into_iter()
        .filter(|(field, _)| patch.contains_key(*field))
        .map(|(field, instead)| {
            let mut problem = problem(&format!("/{field}"), "not-editable", format!("`{field}` cannot be changed"));
            problem.help = Some(instead.to_owned());
            problem
        })
        .collect();
    if !wrong.is_empty() {
        return Err(Refused::problems("invalid-submission", wrong));
    }
    if patch.contains_key("command") && !submit::may_run_commands(api, caller) {
        let detail = format!(
            "`{}` has the scope `submit`, which does not change commands unless server.allow_commands is set",
            caller.name
        );
        return Err(Refused::new(StatusCode::FORBIDDEN, "command-not-allowed", detail));
    }
    Ok(())
}

async fn apply(api: &Api, caller: &Caller, job: Job, patch: &Map<String, Value>) -> Result<(), Failed> {
    let id = job.id;
    match job.state {
        JobState::Queued | JobState::Held => {}
        JobState::Pending | JobState::Running if patch.keys().all(|field| field == "time_limit") => {
            let limit = patched(&job, patch)?.time_limit;
            if limit.is_some_and(|limit| limit.is_zero()) {
                let problem = problem("", "no-time", "`time_limit` is 0; null takes the limit away");
                return Err(Refused::problems("rejected", vec![problem]).into());
            }
            // From the limit that was read, and from no other.
            let at = [job.revision];
            api.service.queue.at(Some(&at)).set_time_limit(id, job.spec.time_limit, limit, &caller.name).await?;
            return Ok(());
        }
        state => return Err(QueueError::Illegal { id, state, verb: "edit" }.into()),
    }
    let mut draft = submission::draft(id, patched(&job, patch)?);
    // One that it came after already may have been removed since: that is no fault of this change.
    let before: Vec<_> = job.spec.terms.predecessors().map(|(job, _)| job).collect();
    let new = draft.terms.predecessors().map(|(job, _)| job).filter(|job| !before.contains(job)).collect();
    draft.problems = submit::unknown_jobs(api, new).await?;
    (draft.array, draft.terms.array) = (job.spec.array.clone(), job.spec.terms.array);
    let admitted = api.service.admission.judge(draft, &job.submitted_by, false).await.map_err(Refused::from)?.job;
    // A plugin failed that wants jobs held then.
    let hold = admitted.reason.filter(|_| admitted.state == JobState::Held);
    let edited = Job {
        spec: admitted.spec,
        config: admitted.config,
        submitted_config: admitted.submitted_config,
        submitted_beside: admitted.submitted_beside,
        rewrites: admitted.rewrites,
        verdicts: admitted.verdicts,
        warnings: admitted.warnings,
        ..job
    };
    api.service.queue.edit(Arc::new(edited), hold, &caller.name).await?;
    Ok(())
}

/// The submission of a job, changed by a merge patch (RFC 7396): a null takes a field back to its default.
fn patched(job: &Job, patch: &Map<String, Value>) -> Result<Submission, Refused> {
    let unwritable = |error: serde_json::Error| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("the job cannot be written: {error}"))
    };
    let mut document = serde_json::to_value(as_submitted(job)).map_err(unwritable)?;
    merge(&mut document, &Value::Object(patch.clone()));
    submission::parse(&serde_json::to_vec(&document).map_err(unwritable)?)
}

/// What somebody would have submitted to get this job, before any rewriter.
fn as_submitted(job: &Job) -> Submission {
    let spec = &job.spec;
    let (labels, env) = match &job.submitted_beside {
        Some(beside) => (&beside.labels, &beside.env),
        None => (&spec.labels, &spec.env),
    };
    let texts = |ids: &[taxiway_job::JobId]| Some(ids.iter().map(ToString::to_string).collect());
    Submission {
        command: Some(spec.command.clone()),
        profile: spec.profile.clone(),
        config: Some(job.submitted_config.as_ref().unwrap_or(&job.config).clone()),
        config_format: Some(spec.config_format),
        name: Some(spec.name.clone()),
        labels: Some(labels.clone()),
        cwd: spec.cwd.clone(),
        env: Some(env.clone()),
        gpus: Some(spec.gpus),
        gpu_memory: spec.terms.gpu_memory,
        gpu_uuids: Some(spec.terms.gpu_uuids.clone()),
        priority: Some(spec.priority),
        time_limit: spec.time_limit,
        grace: Some(spec.grace),
        external_id: spec.external_id.clone(),
        after: texts(&spec.terms.after),
        after_any: texts(&spec.terms.after_any),
        not_before: spec.terms.not_before,
        retries: Some(spec.terms.retries.clone()),
        array: None,
        hold: None,
    }
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *target = patch.clone() };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::wire::job_tests::queued_job;
    use super::*;

    fn patch(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_patch_changes_what_it_names_and_null_takes_a_field_back() {
        let mut job = queued_job();
        job.submitted_config = Some(patch(json!({"lr": 0.1, "deep": {"a": 1, "b": 2}})));
        let wanted =
            patch(json!({"config": {"deep": {"b": null, "c": 3}}, "time_limit": null, "env": {"MODE": "slow"}}));
        let submission = patched(&job, &wanted).expect("valid");
        assert_eq!(submission.config.map(Value::Object), Some(json!({"lr": 0.1, "deep": {"a": 1, "c": 3}})));
        assert_eq!(submission.time_limit, None);
        let env = submission.env.expect("there is one");
        assert_eq!((env["MODE"].expose(), env["TOKEN"].expose()), ("slow", "hunter2"));
    }

    #[test]
    fn a_patch_with_unknown_fields_or_wrong_types_is_refused() {
        let refused = patched(&queued_job(), &patch(json!({"gpu": 1, "priority": "high"}))).expect_err("refused");
        let paths: Vec<&str> = refused.document().problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["/priority", "/gpu"]);
    }
}
