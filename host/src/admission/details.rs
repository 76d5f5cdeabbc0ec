//! What plugins are told of a job beside its configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use taxiway_job::{ArrayId, ConfigFormat, EnvValue, JobId, JobSpec, Retries, Time};

/// The names and forms are those of a job in the HTTP API.
#[derive(Serialize)]
struct Details<'a> {
    id: JobId,
    name: &'a str,
    attempt: u32,
    profile: Option<&'a str>,
    command: &'a [String],
    cwd: Option<&'a str>,
    env: Map<String, Value>,
    labels: &'a BTreeMap<String, String>,
    gpus: u32,
    gpu_memory: Option<u64>,
    gpu_uuids: &'a [String],
    priority: i16,
    after: &'a [JobId],
    after_any: &'a [JobId],
    not_before: Option<Time>,
    retries: &'a Retries,
    #[serde(with = "taxiway_job::duration::option")]
    time_limit: Option<Duration>,
    #[serde(with = "taxiway_job::duration")]
    grace: Duration,
    external_id: Option<&'a str>,
    array_id: Option<ArrayId>,
    array_index: Option<u32>,
    array_params: Option<&'a Map<String, Value>>,
    config_format: ConfigFormat,
    submitted_by: &'a str,
    /// Not in the API: where a rewriter has the job write to.
    job_dir: PathBuf,
}

/// The submission as in the HTTP API, without secrets, and `job_dir`, the directory that the job keeps across attempts.
#[must_use]
pub fn job_details(id: JobId, spec: &JobSpec, attempt: u32, submitted_by: &str, jobs_dir: &Path) -> Value {
    let details = Details {
        id,
        name: &spec.name,
        attempt,
        profile: spec.profile.as_deref(),
        command: &spec.command,
        cwd: spec.cwd.as_deref(),
        env: env_without_secrets(spec),
        labels: &spec.labels,
        gpus: spec.gpus,
        gpu_memory: spec.terms.gpu_memory,
        gpu_uuids: &spec.terms.gpu_uuids,
        priority: spec.priority,
        after: &spec.terms.after,
        after_any: &spec.terms.after_any,
        not_before: spec.terms.not_before,
        retries: &spec.terms.retries,
        time_limit: spec.time_limit,
        grace: spec.grace,
        external_id: spec.external_id.as_deref(),
        array_id: spec.array.as_ref().map(|member| member.id),
        array_index: spec.array.as_ref().map(|member| member.index),
        array_params: spec.array.as_ref().map(|member| &member.params),
        config_format: spec.config_format,
        submitted_by,
        job_dir: jobs_dir.join(id.to_string()),
    };
    serde_json::to_value(details).unwrap_or_else(|error| {
        // A data directory whose name is no UTF-8, and nothing else here.
        tracing::error!(%error, "plugins cannot be told the details of a job");
        Value::Null
    })
}

fn env_without_secrets(spec: &JobSpec) -> Map<String, Value> {
    let shown = |value: &EnvValue| match value {
        EnvValue::Plain(value) => Value::from(value.as_str()),
        EnvValue::Secret { .. } => json!({"secret": null}),
    };
    spec.env.iter().map(|(name, value)| (name.clone(), shown(value))).collect()
}

/// What plugins are told of the service.
pub(super) fn context_details() -> Value {
    json!({"taxiway_version": env!("CARGO_PKG_VERSION")})
}
