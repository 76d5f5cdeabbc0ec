//! A job as the API answers it (DESIGN §8).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use taxiway_job::{
    ArrayId, ConfigFormat, EnvValue, Exit, Failure, Handover, JobId, Problem, Progress, Reason, Retries, Rewrite,
    State, Time, Usage,
};

use crate::queue::Standing;

/// A job. Fields that do not apply are null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job<'a> {
    /// Its id.
    pub id: JobId,
    /// For people and filters.
    pub name: Cow<'a, str>,
    /// Where it is in its life.
    pub state: State,
    /// Its place in the line, from 1; null for what is not queued.
    pub position: Option<usize>,
    /// The present attempt.
    pub attempt: u32,
    /// The profile it was submitted under.
    pub profile: Option<Cow<'a, str>>,
    /// The argument vector, placeholders not yet substituted.
    pub command: Cow<'a, [String]>,
    /// Working directory.
    pub cwd: Option<Cow<'a, str>>,
    /// Environment variables; a secret reads `{"secret": null}`.
    pub env: Env<'a>,
    /// For people and filters.
    pub labels: Cow<'a, BTreeMap<String, String>>,
    /// GPUs it holds while it runs.
    pub gpus: u32,
    /// Only GPUs with that much memory in all, in bytes.
    pub gpu_memory: Option<u64>,
    /// Higher starts first.
    pub priority: i16,
    /// The jobs that must have completed before it starts.
    pub after: Cow<'a, [JobId]>,
    /// The jobs that must have ended before it starts.
    pub after_any: Cow<'a, [JobId]>,
    /// Its earliest start.
    pub not_before: Option<Time>,
    /// How often it is tried again when it fails, and when.
    pub retries: Cow<'a, Retries>,
    /// The earliest start of the next attempt, after one that failed.
    pub retry_at: Option<Time>,
    /// Longest time it may run, in seconds.
    #[serde(with = "taxiway_job::duration::option")]
    pub time_limit: Option<Duration>,
    /// Seconds between SIGTERM and SIGKILL.
    #[serde(with = "taxiway_job::duration")]
    pub grace: Duration,
    /// The submitter's own id.
    pub external_id: Option<Cow<'a, str>>,
    /// The array that it is a member of.
    pub array_id: Option<ArrayId>,
    /// Its number there, from 0.
    pub array_index: Option<u32>,
    /// The values that make it this member, by their keys.
    pub array_params: Option<Cow<'a, Map<String, Value>>>,
    /// How many members may run at a time; null for any number.
    pub array_max_parallel: Option<u32>,
    /// Language of the configuration file.
    pub config_format: ConfigFormat,
    /// The configuration it runs with.
    pub config: Cow<'a, Map<String, Value>>,
    /// The configuration as submitted.
    pub submitted_config: Cow<'a, Map<String, Value>>,
    /// What each rewriter changed, in order.
    pub rewrites: Cow<'a, [Rewrite]>,
    /// Problems that did not refuse it.
    pub warnings: Cow<'a, [Problem]>,
    /// Why it is where it is.
    pub reason: Option<Cow<'a, Reason>>,
    /// When it was accepted.
    pub submitted_at: Time,
    /// When it last entered the line.
    pub queued_at: Time,
    /// When its process was started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// Name of the token, or the user of the unix socket.
    pub submitted_by: Cow<'a, str>,
    /// How its process ended.
    pub exit: Exit,
    /// Why it failed.
    pub failure: Option<Cow<'a, Failure>>,
    /// How far it is.
    pub progress: Option<Cow<'a, Progress>>,
    /// The only GPUs that it may have, as asked for; empty for any.
    #[serde(default)]
    pub requested_gpu_uuids: Cow<'a, [String]>,
    /// The GPUs it has or had; before it has any, those it asked for.
    pub gpu_uuids: Cow<'a, [String]>,
    /// What it used.
    pub usage: Option<Cow<'a, Usage>>,
    /// The hand-over to it.
    pub handover: Option<Cow<'a, Handover>>,
}

impl<'a> Job<'a> {
    /// `job` as it stands in the line.
    #[must_use]
    pub fn new(job: &'a taxiway_job::Job, standing: &'a Standing) -> Self {
        let spec = &job.spec;
        Self {
            id: job.id,
            name: Cow::Borrowed(&spec.name),
            state: job.state,
            position: standing.position,
            attempt: job.attempt,
            profile: spec.profile.as_deref().map(Cow::Borrowed),
            command: Cow::Borrowed(&spec.command),
            cwd: spec.cwd.as_deref().map(Cow::Borrowed),
            env: Env::Model(&spec.env),
            labels: Cow::Borrowed(&spec.labels),
            gpus: spec.gpus,
            gpu_memory: spec.terms.gpu_memory,
            priority: spec.priority,
            after: Cow::Borrowed(&spec.terms.after),
            after_any: Cow::Borrowed(&spec.terms.after_any),
            not_before: spec.terms.not_before,
            retries: Cow::Borrowed(&spec.terms.retries),
            retry_at: job.retry_at,
            time_limit: spec.time_limit,
            grace: spec.grace,
            external_id: spec.external_id.as_deref().map(Cow::Borrowed),
            array_id: spec.array.as_ref().map(|member| member.id),
            array_index: spec.array.as_ref().map(|member| member.index),
            array_params: spec.array.as_ref().map(|member| Cow::Borrowed(&member.params)),
            array_max_parallel: spec.terms.array.map(|limit| limit.max_parallel.get()),
            config_format: spec.config_format,
            config: Cow::Borrowed(&job.config),
            submitted_config: Cow::Borrowed(job.submitted_config.as_ref().unwrap_or(&job.config)),
            rewrites: Cow::Borrowed(&job.rewrites),
            warnings: Cow::Borrowed(&job.warnings),
            reason: standing.reason_of(job),
            submitted_at: job.submitted_at,
            queued_at: job.queued_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            submitted_by: Cow::Borrowed(&job.submitted_by),
            exit: job.exit,
            failure: job.failure.as_ref().map(Cow::Borrowed),
            progress: standing.progress.as_ref().or(job.progress.as_ref()).map(Cow::Borrowed),
            requested_gpu_uuids: Cow::Borrowed(&spec.terms.gpu_uuids),
            gpu_uuids: Cow::Borrowed(if job.gpu_uuids.is_empty() { &spec.terms.gpu_uuids } else { &job.gpu_uuids }),
            usage: job.usage.as_ref().map(Cow::Borrowed),
            handover: job.handover.as_ref().map(Cow::Borrowed),
        }
    }
}

/// A job in an answer of which its sender prefers the least (`Prefer: return=minimal`).
#[derive(Debug, Clone, Serialize)]
pub struct BriefJob {
    /// Its id.
    pub id: JobId,
    /// Where it is in its life.
    pub state: State,
    /// Its place in the line, from 1; null for what is not queued.
    pub position: Option<usize>,
}

/// A job as much of it as was asked for. It is made as it is written: a thousand of them would be moved about in memory otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The job.
    pub job: &'a taxiway_job::Job,
    /// Where it stands.
    pub standing: &'a Standing,
    /// No more of it than [`BriefJob`] has.
    pub brief: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { job, standing, brief } = *self;
        if brief {
            BriefJob { id: job.id, state: job.state, position: standing.position }.serialize(serializer)
        } else {
            Job::new(job, standing).serialize(serializer)
        }
    }
}

/// Environment variables without their secrets.
#[derive(Debug, Clone)]
pub enum Env<'a> {
    /// The model's, from which secrets are taken out as they are written.
    Model(&'a BTreeMap<String, EnvValue>),
    /// As a client reads them: null for a secret.
    Read(BTreeMap<String, Option<String>>),
}

/// What is written in a secret's place.
#[derive(Serialize)]
struct Hidden {
    secret: Option<()>,
}

impl Serialize for Env<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut entry = |name: &String, plain: Option<&str>| match plain {
            Some(value) => map.serialize_entry(name, value),
            None => map.serialize_entry(name, &Hidden { secret: None }),
        };
        match self {
            Self::Model(env) => env.iter().try_for_each(|(name, value)| match value {
                EnvValue::Plain(value) => entry(name, Some(value)),
                EnvValue::Secret { .. } => entry(name, None),
            })?,
            Self::Read(env) => env.iter().try_for_each(|(name, value)| entry(name, value.as_deref()))?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Env<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = BTreeMap::<String, Value>::deserialize(deserializer)?;
        Ok(Self::Read(written.into_iter().map(|(name, value)| (name, value.as_str().map(str::to_owned))).collect()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;
    use taxiway_job::{JobSpec, ProcessSpec};

    use super::*;

    /// A job as it is just after its submission.
    pub(crate) fn queued_job() -> taxiway_job::Job {
        let now = Time::from_millis(1_700_000_000_000);
        taxiway_job::Job {
            id: JobId::new(),
            spec: JobSpec {
                name: "lora".into(),
                profile: None,
                command: vec!["python3".into(), "train.py".into()],
                cwd: None,
                env: BTreeMap::from([
                    ("MODE".to_owned(), EnvValue::Plain("fast".into())),
                    ("TOKEN".to_owned(), EnvValue::Secret { secret: "hunter2".into() }),
                ]),
                labels: BTreeMap::new(),
                gpus: 1,
                priority: 0,
                time_limit: Some(Duration::from_secs(9000)),
                grace: Duration::from_secs(30),
                external_id: None,
                config_format: ConfigFormat::Json,
                terms: taxiway_job::Terms::default(),
                array: None,
                process: ProcessSpec::default(),
            },
            config: Map::from_iter([("lr".to_owned(), json!(0.1))]),
            submitted_config: None,
            submitted_beside: None,
            rewrites: Vec::new(),
            verdicts: Vec::new(),
            launch_verdicts: Vec::new(),
            warnings: Vec::new(),
            state: State::Queued,
            attempt: 1,
            revision: 1,
            retries_done: 0,
            retry_at: None,
            reason: None,
            submitted_at: now,
            queued_at: now,
            started_at: None,
            finished_at: None,
            submitted_by: "admin".into(),
            exit: Exit::default(),
            failure: None,
            progress: None,
            gpu_uuids: Vec::new(),
            usage: None,
            handover: None,
        }
    }

    #[test]
    fn secrets_do_not_leave_and_durations_are_seconds() {
        let job = queued_job();
        let standing = Standing { position: Some(3), ..Standing::default() };
        let text = serde_json::to_string(&Job::new(&job, &standing)).expect("JSON");
        assert!(!text.contains("hunter2"), "{text}");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["env"], json!({"MODE": "fast", "TOKEN": {"secret": null}}));
        assert_eq!(value["time_limit"], json!(9000));
        assert_eq!(value["position"], json!(3));
        assert_eq!(value["exit"], json!({"code": null, "signal": null}));
        assert_eq!(value["started_at"], Value::Null);
        assert_eq!(value["submitted_config"], json!({"lr": 0.1}));
    }

    #[test]
    fn a_client_reads_what_the_service_writes() {
        let job = queued_job();
        let text = serde_json::to_string(&Job::new(&job, &Standing::default())).expect("JSON");
        let read: Job<'static> = serde_json::from_str(&text).expect("a job");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
    }
}
