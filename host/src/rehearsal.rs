//! A plugin tried out for its author: it takes the place of all plugins, and a job goes the way that submissions go, through
//! the same admission and under the same limits. Nothing is stored, and nothing is put in force.
//!
//! Each call is kept with what it said, logged and cost, because that is what an author wants to see; and what the rewriter
//! made is rewritten once more, because a second time must change nothing. Unless the rehearsal is live, every call is a
//! dry run, and completions, which know no dry run, are left out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Map, Value};
use taxiway_job::{Exit, Failure, FailureClass, Job, Problem, Rewrite, State, Time};
use taxiway_plugin_host::{
    Called, Context, Delivery, End, Hook, JobView, LogLine, Mode, OnError, OutcomeView, Plugin, Rewritten, Stage,
};

use crate::admission::{self, Admission, Draft, Guest, Hooks, Refusal, job_details};
use crate::api::wire;
use crate::config::Profile;
use crate::gpu::Inventory;
use crate::queue::{LaunchVerdict, Standing};

/// Who submits in a rehearsal.
const SUBMITTER: &str = "rehearsal";

/// What a rehearsal takes from the service's configuration.
#[derive(Clone)]
pub struct Setting {
    /// The GPUs that the plugin is told of.
    pub gpus: Inventory,
    /// `[profiles.NAME]`
    pub profiles: BTreeMap<String, Profile>,
    /// `launcher.grace`
    pub grace: Duration,
    /// Where the jobs' directories would be.
    pub jobs_dir: PathBuf,
}

/// What is rehearsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Nothing may be changed outside the plugin.
    DryRun,
    /// As for a real job, which then ends in this way.
    Live(State),
}

/// One call as it went.
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    /// What was asked.
    pub hook: Hook,
    /// At which stage; none for completions.
    pub stage: Option<Stage>,
    /// Seconds from the request to the answer.
    pub duration_seconds: f64,
    /// Bytes of linear memory at the peak.
    pub peak_memory_bytes: u64,
    /// What the plugin logged and printed.
    pub log: Vec<LogLine>,
    /// How it failed, if it did.
    pub failure: Option<CallFailure>,
}

/// How a call failed.
#[derive(Debug, Clone, Serialize)]
pub struct CallFailure {
    /// Its stable name: `timeout`, `trap` …
    pub kind: &'static str,
    /// The limit that was hit, for people.
    pub limit: Option<String>,
    /// A sentence for a person.
    pub message: String,
}

/// What became of the job.
#[derive(Debug, Clone, Serialize)]
pub struct Rehearsed {
    /// Every call, in order.
    pub calls: Vec<Call>,
    /// Whether the submission would be accepted.
    pub accepted: bool,
    /// All that was found, by Taxiway too.
    pub problems: Vec<Problem>,
    /// What the rewriter changed.
    pub rewrites: Vec<Rewrite>,
    /// The configuration that would run.
    pub config: Map<String, Value>,
    /// What rewriting the result once more changes (RFC 6902): nothing, as it should be. None without a rewriter, and when
    /// it failed.
    pub changed_again: Option<Value>,
    /// Why the job would not start at the launch stage.
    pub at_launch: Option<String>,
    /// Why the job would be held, if it is not its submitter who wants that.
    pub held: Option<String>,
}

impl Rehearsed {
    /// Whether the plugin did its work, whatever it thinks of the job: every call was answered, and rewriting twice changes
    /// nothing more.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let changed_again =
            self.changed_again.as_ref().and_then(Value::as_array).is_some_and(|patch| !patch.is_empty());
        !changed_again && self.calls.iter().all(|call| call.failure.is_none())
    }
}

/// The plugin never sees such a job.
#[derive(Debug, thiserror::Error)]
#[error(
    "plugin `{plugin}` sees jobs of the profiles {profiles} only: name one of them with --profile, or take `profiles` out of its manifest"
)]
pub struct NotConcerned {
    /// The plugin.
    pub plugin: String,
    /// The profiles that its manifest names.
    pub profiles: String,
}

/// Has one plugin judge, rewrite and follow one job.
///
/// # Errors
/// When its manifest keeps it from jobs of this profile.
pub async fn rehearse(plugin: &Plugin, setting: Setting, draft: Draft, mood: Mood) -> Result<Rehearsed, NotConcerned> {
    let profile = draft.profile.clone();
    let concerned = |hook, stage| plugin.concerns(hook, stage, profile.as_deref());
    if !plugin.hooks().iter().any(|hook| concerned(*hook, None)) {
        let profiles = plugin.profiles().unwrap_or_default().join(", ");
        return Err(NotConcerned { plugin: plugin.name().to_owned(), profiles });
    }
    let calls = Calls::default();
    let admission = |calls: &Calls| {
        let hooks = OnlyOne { plugin: plugin.clone(), calls: calls.clone(), dry_run: mood == Mood::DryRun };
        let Setting { gpus, profiles, grace, jobs_dir } = setting.clone();
        Admission::new(admission::Options { hooks: Arc::new(hooks), gpus, profiles, grace, jobs_dir })
    };
    let dry_run = mood == Mood::DryRun;
    let mut rehearsed = match admission(&calls).judge(draft.clone(), SUBMITTER, dry_run).await {
        Ok(admitted) => {
            let job = admitted.job;
            let mut rehearsed = rehearsed(true, job.warnings.clone(), job.rewrites.clone(), job.config.clone());
            rehearsed.held = job.reason.as_ref().filter(|_| !draft.hold).map(|reason| reason.message.clone());
            if concerned(Hook::Validate, Some(Stage::Launch)) {
                let gpus = setting.gpus.views_at_submit().await.to_vec();
                rehearsed.at_launch = match admission(&calls).judge_launch(&job, gpus).await.verdict {
                    LaunchVerdict::Accept => None,
                    LaunchVerdict::Reject(failure) => Some(failure.message),
                    LaunchVerdict::Hold(reason) | LaunchVerdict::Wait(reason) => Some(reason.message),
                };
            }
            if let Mood::Live(end) = mood
                && concerned(Hook::Complete, None)
            {
                complete(plugin, &setting, job, end, &calls).await;
            }
            rehearsed
        }
        Err(Refusal::Problems { problems, config, rewrites, .. }) => rehearsed(false, problems, rewrites, config),
        Err(Refusal::PluginFailed(_)) => rehearsed(false, Vec::new(), Vec::new(), draft.config.clone()),
    };
    if !rehearsed.rewrites.is_empty() {
        let again = Draft { config: rehearsed.config.clone(), ..draft };
        // These calls are none that a job would see.
        let rewrites = match admission(&Calls::default()).judge(again, SUBMITTER, true).await {
            Ok(admitted) => admitted.job.rewrites,
            Err(Refusal::Problems { rewrites, .. }) => rewrites,
            Err(Refusal::PluginFailed(_)) => Vec::new(),
        };
        rehearsed.changed_again = rewrites.into_iter().next().map(|rewrite| rewrite.patch);
    }
    rehearsed.calls = std::mem::take(&mut calls.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(rehearsed)
}

fn rehearsed(accepted: bool, problems: Vec<Problem>, rewrites: Vec<Rewrite>, config: Map<String, Value>) -> Rehearsed {
    Rehearsed {
        calls: Vec::new(),
        accepted,
        problems,
        rewrites,
        config,
        changed_again: None,
        at_launch: None,
        held: None,
    }
}

/// Tells the plugin of an end as the outbox would.
async fn complete(plugin: &Plugin, setting: &Setting, mut job: Job, end: State, calls: &Calls) {
    let now = Time::now();
    let (code, class) = match end {
        State::Completed => (Some(0), None),
        State::Failed => (Some(1), Some(FailureClass::Exit)),
        _ => (None, None),
    };
    job.state = end;
    job.started_at = Some(job.submitted_at);
    job.finished_at = Some(now);
    job.exit = Exit { code, signal: None };
    job.failure = class.map(|class| Failure {
        class,
        message: "the command ended with exit status 1".to_owned(),
        evidence: Some("this is a rehearsal".to_owned()),
    });
    let milliseconds = |time: Time| u64::try_from(time.as_millis()).unwrap_or(0);
    let standing = Standing::default();
    let view = JobView {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        attempt: job.attempt,
        config: Value::Object(job.config.clone()),
        details: job_details(job.id, &job.spec, job.attempt, SUBMITTER, &setting.jobs_dir),
    };
    let outcome = OutcomeView {
        end: match end {
            State::Completed => End::Completed,
            State::Failed => End::Failed,
            _ => End::Cancelled,
        },
        will_retry: false,
        exit_code: code,
        signal: None,
        failure: class.map(|class| class.as_str().to_owned()),
        started_at_ms: job.started_at.map(milliseconds),
        finished_at_ms: milliseconds(now),
        log_tail: "this is a rehearsal\n".to_owned(),
        // A data directory whose name is no UTF-8 has no JSON, and nothing else here.
        details: serde_json::to_value(wire::Job::new(&job, &standing)).unwrap_or_default(),
    };
    let delivery = Delivery { id: job.id.to_string(), attempt: 1 };
    let called = plugin.complete(&view, &outcome, &delivery).await;
    record(calls, Hook::Complete, None, &called);
}

type Calls = Arc<Mutex<Vec<Call>>>;

fn record<T>(calls: &Calls, hook: Hook, stage: Option<Stage>, called: &Called<T>) {
    let failure = called.result.as_ref().err().map(|error| CallFailure {
        kind: error.kind.as_str(),
        limit: error.limit.clone(),
        message: error.message.clone(),
    });
    calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call {
        hook,
        stage,
        duration_seconds: called.duration.as_secs_f64(),
        peak_memory_bytes: called.peak_memory_bytes,
        log: called.log.clone(),
        failure,
    });
}

/// The one plugin in force.
struct OnlyOne {
    plugin: Plugin,
    calls: Calls,
    dry_run: bool,
}

#[async_trait]
impl Hooks for OnlyOne {
    async fn ready(&self) {}

    fn in_force(&self, hook: Hook, stage: Stage, profile: Option<&str>) -> Vec<Box<dyn Guest>> {
        let stage = (hook == Hook::Validate).then_some(stage);
        if !self.plugin.concerns(hook, stage, profile) {
            return Vec::new();
        }
        vec![Box::new(Recorded { plugin: self.plugin.clone(), calls: self.calls.clone(), dry_run: self.dry_run })]
    }
}

/// A plugin whose calls are kept.
struct Recorded {
    plugin: Plugin,
    calls: Calls,
    dry_run: bool,
}

impl Recorded {
    /// The launch stage knows no dry run: nothing would be launched.
    fn context(&self, context: &Context) -> Context {
        Context { dry_run: self.dry_run, ..context.clone() }
    }
}

#[async_trait]
impl Guest for Recorded {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    fn version(&self) -> &str {
        self.plugin.version()
    }

    fn sha256(&self) -> &str {
        self.plugin.sha256()
    }

    fn mode(&self) -> Mode {
        // What an observing plugin says is to be seen here too.
        Mode::Enforce
    }

    fn on_error(&self) -> OnError {
        self.plugin.on_error()
    }

    async fn rewrite(&self, job: &JobView, context: &Context) -> Called<Option<Rewritten>> {
        let called = self.plugin.rewrite(job, &self.context(context)).await;
        record(&self.calls, Hook::Rewrite, Some(context.stage), &called);
        called
    }

    async fn validate(&self, job: &JobView, context: &Context) -> Called<Vec<taxiway_plugin_host::Problem>> {
        let called = self.plugin.validate(job, &self.context(context)).await;
        record(&self.calls, Hook::Validate, Some(context.stage), &called);
        called
    }
}
