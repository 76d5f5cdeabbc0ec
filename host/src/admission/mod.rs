//! Admission: from what somebody asked for to a job that may stand in line, or to everything that is wrong with it.
//!
//! A [`Draft`] takes this path, in one call of [`Admission::judge`]:
//!
//! 1. [`resolve`] fills in its profile and the defaults, and finds what Taxiway itself can tell is wrong;
//! 2. the rewriters change its configuration one after another ([`rewrite`]), each from the result of the one before;
//! 3. the validators judge the result, all at once ([`validate`]);
//! 4. the verdict: any error refuses it, with all problems together; what remains are its warnings.
//!
//! What every plugin said and changed is kept with the job ([`taxiway_job::Verdict`]). A plugin that fails is nobody's
//! mistake but its own: its manifest says whether the job is then refused, held, or goes on without it ([`course`]).
//!
//! Nothing is stored here, and nothing is locked while a plugin thinks.

mod command;
mod course;
mod details;
mod hooks;
mod launch;
mod plugin_host;
mod resolve;
mod rewrite;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use taxiway_job::{
    ArrayMember, Beside, ConfigFormat, EnvValue, Exit, Job, JobId, JobSpec, Problem, Reason, Rewrite, State, Terms,
    Time, Verdict,
};
use taxiway_plugin_host::{Context, FailureKind, Hook, JobView, Stage};

use crate::config::Profile;
use crate::gpu::Inventory;
use course::Course;
pub use details::job_details;
pub use hooks::{Guest, Hooks};
pub use launch::LaunchJudgement;

/// A submission as it was sent, parsed. What is none takes the profile's default, then the service's.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The id that the job will have; in a dry run one that is not used.
    pub id: JobId,
    /// A `[profiles.NAME]` of the configuration.
    pub profile: Option<String>,
    /// The argument vector; needed unless there is a profile.
    pub command: Option<Vec<String>>,
    /// The configuration that plugins see.
    pub config: Map<String, Value>,
    /// For people and filters.
    pub name: Option<String>,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Environment variables, over those of the profile.
    pub env: BTreeMap<String, EnvValue>,
    /// GPUs to hold.
    pub gpus: Option<u32>,
    /// What it asks of the queue beside its slots.
    pub terms: Terms,
    /// Which member of an array it is.
    pub array: Option<ArrayMember>,
    /// Higher starts first.
    pub priority: Option<i16>,
    /// Longest time it may run.
    pub time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Option<Duration>,
    /// The submitter's own id.
    pub external_id: Option<String>,
    /// Start in `held`.
    pub hold: bool,
    /// How the configuration file is written.
    pub config_format: Option<ConfigFormat>,
    /// What is known to be wrong with it already; told with everything else.
    pub problems: Vec<Problem>,
}

impl Draft {
    /// A draft that asks for nothing yet.
    #[must_use]
    pub fn new(id: JobId) -> Self {
        Self {
            id,
            profile: None,
            command: None,
            config: Map::new(),
            name: None,
            labels: BTreeMap::new(),
            cwd: None,
            env: BTreeMap::new(),
            gpus: None,
            terms: Terms::default(),
            array: None,
            priority: None,
            time_limit: None,
            grace: None,
            external_id: None,
            hold: false,
            config_format: None,
            problems: Vec::new(),
        }
    }
}

/// A job that may stand in line.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The job, `queued` or `held`, with its rewrites, warnings and verdicts. It is stored nowhere yet.
    pub job: Job,
}

/// A job that may not.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// It has errors. They and all other problems, those of Taxiway first, then by plugin in the order of their calls.
    Problems {
        /// At least one of them is an error.
        problems: Vec<Problem>,
        /// The configuration that was judged.
        config: Map<String, Value>,
        /// What rewriters had changed in it.
        rewrites: Vec<Rewrite>,
        /// What each plugin said.
        verdicts: Vec<Verdict>,
    },
    /// A plugin could not do its work, and its manifest wants the job refused then. It is worth trying again later.
    PluginFailed(PluginFailure),
}

/// How a plugin failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin `{plugin}` {}: {message}", .kind.what_happened())]
pub struct PluginFailure {
    /// The plugin's name.
    pub plugin: String,
    /// A sentence for a person, safe to show.
    pub message: String,
    /// The limit that was hit, for people: `timeout of 2 s`.
    pub limit: Option<String>,
    /// The kind, for scripts.
    pub kind: FailureKind,
}

/// What admission is made of.
pub struct Options {
    /// The plugins.
    pub hooks: Arc<dyn Hooks>,
    /// The GPUs.
    pub gpus: Inventory,
    /// `[profiles.NAME]`
    pub profiles: BTreeMap<String, Profile>,
    /// `launcher.grace`
    pub grace: Duration,
    /// Where the jobs' directories are.
    pub jobs_dir: PathBuf,
}

/// Judges submissions. Clones share one.
#[derive(Clone)]
pub struct Admission(Arc<Options>);

impl Admission {
    /// An admission that asks these plugins.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self(Arc::new(options))
    }

    /// Judges a draft. Waits until the plugins have been looked at for the first time, so that none is passed by.
    ///
    /// # Errors
    /// When the job may not stand in line: everything that is wrong with it.
    pub async fn judge(&self, draft: Draft, submitter: &str, dry_run: bool) -> Result<Admitted, Refusal> {
        self.0.hooks.ready().await;
        let resolved = resolve::resolve(draft, &self.0.profiles, self.0.grace, &self.0.gpus);
        let resolve::Resolved { id, mut spec, config, hold, is_judged, problems } = resolved;
        let mut course = Course::new(Stage::Submit, problems);
        let as_submitted = Beside { labels: spec.labels.clone(), env: spec.env.clone() };
        let (config, submitted_config) = if is_judged {
            self.ask_plugins(&mut course, id, &mut spec, config, submitter, dry_run).await
        } else {
            (config, None)
        };
        course.problems.extend(resolve::unwritable(&config, spec.config_format));
        course.problems.extend(resolve::too_long(&spec));
        if course.is_refused() {
            return Err(course.refusal(config));
        }
        let changed = spec.labels != as_submitted.labels || spec.env != as_submitted.env;
        let submitted_beside = changed.then_some(as_submitted);
        let reason = if hold { Some(held_by_its_submitter()) } else { course.hold };
        let now = Time::now();
        Ok(Admitted {
            job: Job {
                id,
                spec,
                config,
                submitted_config,
                submitted_beside,
                rewrites: course.rewrites,
                verdicts: course.verdicts,
                launch_verdicts: Vec::new(),
                warnings: course.problems,
                state: if reason.is_some() { State::Held } else { State::Queued },
                attempt: 1,
                revision: 1,
                retries_done: 0,
                retry_at: None,
                reason,
                submitted_at: now,
                queued_at: now,
                started_at: None,
                finished_at: None,
                submitted_by: submitter.to_owned(),
                exit: Exit::default(),
                failure: None,
                progress: None,
                gpu_uuids: Vec::new(),
                usage: None,
                handover: None,
            },
        })
    }

    /// Has the plugins in force change and judge a job. Gives its configuration, and the submitted one if that is another.
    async fn ask_plugins(
        &self,
        course: &mut Course,
        id: JobId,
        spec: &mut JobSpec,
        config: Map<String, Value>,
        submitter: &str,
        dry_run: bool,
    ) -> (Map<String, Value>, Option<Map<String, Value>>) {
        let profile = spec.profile.as_deref();
        let rewriters = self.0.hooks.in_force(Hook::Rewrite, Stage::Submit, profile);
        let validators = self.0.hooks.in_force(Hook::Validate, Stage::Submit, profile);
        if rewriters.is_empty() && validators.is_empty() {
            return (config, None);
        }
        let context = Context {
            stage: Stage::Submit,
            dry_run,
            gpus: self.0.gpus.views_at_submit().await.to_vec(),
            details: details::context_details(),
        };
        let details = |spec: &JobSpec| job_details(id, spec, 1, submitter, &self.0.jobs_dir);
        let mut job = JobView {
            id: id.to_string(),
            name: spec.name.clone(),
            attempt: 1,
            config: Value::Object(config),
            details: details(spec),
        };
        let submitted = rewrite::run(course, &rewriters, &mut job, spec, &context, details).await;
        if !course.has_failed() {
            validate::run(course, &validators, &job, &context).await;
        }
        (object(job.config), submitted.map(object))
    }
}

fn held_by_its_submitter() -> Reason {
    Reason::new("held", "submitted with `hold`: it waits until somebody releases it")
}

/// A configuration starts as an object, and [`rewrite`] takes nothing else from a plugin.
fn object(config: Value) -> Map<String, Value> {
    match config {
        Value::Object(config) => config,
        other => unreachable!("a configuration that is no object was let through: {other}"),
    }
}

#[cfg(test)]
mod tests;
