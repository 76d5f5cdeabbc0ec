//! Between the generated records and the types that plugins see. Only [`export!`](macro@crate::export) calls these.

use std::time::Duration;

use serde_json::Value;

use crate::{
    Complete, Context, Delivery, End, Gpu, HookError, Job, Metadata, Outcome, Problem, Problems, Rewrite, Severity,
    Validate, ValidateError,
    bindings::{
        complete::exports::taxiway::plugin::complete as wit_complete,
        metadata::exports::taxiway::plugin::metadata as wit_metadata,
        rewrite::exports::taxiway::plugin::rewrite as wit_rewrite, types as wit,
    },
    host::parse_settings,
};

/// The metadata of a plugin that has no settings to check.
pub struct NoSettings;

impl Metadata for NoSettings {}

/// Calls a validator.
pub fn validate<P: Validate>(job: wit::Job, context: wit::Context) -> Result<Vec<wit::Problem>, wit::HookError> {
    let verdict = P::validate(&read_job(job)?, &read_context(context)?);
    match verdict {
        Ok(problems) | Err(ValidateError::Refused(problems)) => Ok(write_problems(problems)),
        Err(ValidateError::Failed(error)) => Err(error.into()),
    }
}

/// Calls a rewriter.
pub fn rewrite<P: Rewrite>(
    job: wit::Job,
    context: wit::Context,
) -> Result<Option<wit_rewrite::Change>, wit::HookError> {
    let change = P::rewrite(&read_job(job)?, &read_context(context)?)?;
    Ok(change.map(|change| wit_rewrite::Change {
        config: change.config.map(|config| config.to_string()),
        env: change
            .env
            .into_iter()
            .map(|variable| wit_rewrite::Variable {
                name: variable.name,
                value: variable.value,
                secret: variable.secret,
            })
            .collect(),
        labels: change.labels,
    }))
}

/// Calls a completion hook.
pub fn completed<P: Complete>(
    job: wit::Job,
    outcome: wit_complete::Outcome,
    delivery: wit_complete::Delivery,
) -> Result<(), wit::HookError> {
    let outcome = Outcome {
        end: match outcome.end {
            wit_complete::End::Completed => End::Completed,
            wit_complete::End::Failed => End::Failed,
            wit_complete::End::Cancelled => End::Cancelled,
        },
        will_retry: outcome.will_retry,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        failure: outcome.failure,
        started_at_ms: outcome.started_at_ms,
        finished_at_ms: outcome.finished_at_ms,
        log_tail: outcome.log_tail,
        details: parse("outcome.details", &outcome.details)?,
    };
    let delivery = Delivery { id: delivery.id, attempt: delivery.attempt };
    Ok(P::completed(&read_job(job)?, &outcome, &delivery)?)
}

/// Says who the plugin is.
pub fn describe<M: Metadata>(name: &str, version: &str, summary: &str) -> wit_metadata::Description {
    wit_metadata::Description {
        name: name.to_owned(),
        version: version.to_owned(),
        summary: summary.to_owned(),
        settings_schema: M::settings_schema().map(|schema| schema.to_string()).unwrap_or_default(),
        details: "{}".to_owned(),
    }
}

/// Judges settings.
pub fn check_settings<M: Metadata>(settings: &str) -> Vec<wit::Problem> {
    write_problems(match parse_settings(settings) {
        Ok(settings) => M::check_settings(&settings),
        Err(error) => {
            let mut problems = Problems::new();
            problems.error("", "settings-unreadable", error.to_string());
            problems
        }
    })
}

fn read_job(job: wit::Job) -> Result<Job, HookError> {
    Ok(Job {
        config: parse("job.config", &job.config)?,
        details: parse("job.details", &job.details)?,
        id: job.id,
        name: job.name,
        attempt: job.attempt,
    })
}

fn read_context(context: wit::Context) -> Result<Context, HookError> {
    let gpus: Result<Vec<Gpu>, HookError> = context
        .gpus
        .into_iter()
        .map(|gpu| {
            Ok(Gpu {
                index: gpu.index,
                uuid: gpu.uuid,
                name: gpu.name,
                memory_total_bytes: gpu.memory_total,
                memory_free_bytes: gpu.memory_free,
                compute_capability: gpu.compute_capability,
                details: parse("gpu.details", &gpu.details)?,
            })
        })
        .collect();
    Ok(Context {
        stage: context.stage,
        dry_run: context.dry_run,
        gpus: gpus?,
        details: parse("context.details", &context.details)?,
    })
}

/// An absent document is empty text.
fn parse(what: &str, text: &str) -> Result<Value, HookError> {
    if text.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_str(text).map_err(|error| {
        HookError::permanent("malformed-input", format!("the server sent {what} that is no JSON: {error}"))
    })
}

fn write_problems(problems: Problems) -> Vec<wit::Problem> {
    problems.into_shown().into_iter().map(wit::Problem::from).collect()
}

impl From<Problem> for wit::Problem {
    fn from(problem: Problem) -> Self {
        Self {
            severity: match problem.severity {
                Severity::Error => wit::Severity::Error,
                Severity::Warning => wit::Severity::Warning,
                Severity::Info => wit::Severity::Info,
            },
            code: problem.code,
            path: problem.path,
            message: problem.message,
            help: problem.help,
        }
    }
}

impl From<HookError> for wit::HookError {
    fn from(error: HookError) -> Self {
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self { code: error.code, message: error.message, retry_after_ms: error.retry_after.map(millis) }
    }
}
