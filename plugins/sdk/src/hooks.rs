//! One trait for each thing that a plugin can do.

use serde_json::Value;

use crate::{Context, HookError, Job, Problems, ValidateError};

/// May this job run?
pub trait Validate {
    /// Judges a job. Say everything that is wrong with it, not only the first thing.
    ///
    /// # Errors
    ///
    /// [`ValidateError`]: the job is refused, or the plugin could not judge it.
    fn validate(job: &Job, context: &Context) -> Result<Problems, ValidateError>;
}

/// What should a job's configuration become?
pub trait Rewrite {
    /// Changes a job. `None` when there is nothing to change. Rewriting twice must change nothing more: edits of a job
    /// begin again from what was submitted, but an author may submit what you returned.
    ///
    /// # Errors
    ///
    /// [`HookError`] when the plugin could not do its work.
    fn rewrite(job: &Job, context: &Context) -> Result<Option<Change>, HookError>;
}

/// What should happen now that a job has ended?
pub trait Complete {
    /// Acts on an outcome. Called at least once for each delivery: pass [`Delivery::id`] on, so that a receiver can
    /// tell a repetition from news.
    ///
    /// # Errors
    ///
    /// [`HookError`]; the server calls again later where it says that this is worth a try.
    fn completed(job: &Job, outcome: &Outcome, delivery: &Delivery) -> Result<(), HookError>;
}

/// Whether the plugin's settings are right. Optional; called when the plugin is loaded.
pub trait Metadata {
    /// A JSON Schema of the settings, for people and editors.
    fn settings_schema() -> Option<Value> {
        None
    }

    /// Judges the settings; an error keeps the plugin from loading. Paths are JSON Pointers into the settings.
    fn check_settings(settings: &Value) -> Problems {
        let _ = settings;
        Problems::new()
    }
}

/// What a rewriter changes.
///
/// ```
/// use taxiway_plugin::{Change, json};
///
/// let change = Change::new().config(json!({"lr": 0.1})).label("site", "lab-3").env("NCCL_DEBUG", "WARN");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use]
pub struct Change {
    pub(crate) config: Option<Value>,
    pub(crate) env: Vec<Variable>,
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) secret: bool,
}

impl Change {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the whole new configuration.
    pub fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Sets an environment variable, as far as the manifest grants it.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push(Variable { name: name.into(), value: value.into(), secret: false });
        self
    }

    /// Sets an environment variable that is never shown or logged.
    pub fn secret_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push(Variable { name: name.into(), value: value.into(), secret: true });
        self
    }

    /// Sets a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// The new configuration, where there is one.
    pub fn new_config(&self) -> Option<&Value> {
        self.config.as_ref()
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With exit status 0.
    Completed,
    /// In any other way.
    Failed,
    /// Because somebody said so.
    Cancelled,
}

impl End {
    /// As in the HTTP API: `completed`, `failed` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a job, or one attempt of it, ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// True when another attempt will follow.
    pub will_retry: bool,
    /// Its exit code, if it had one.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Failure class when it failed: `cuda_oom`, `timeout` …
    pub failure: Option<String>,
    /// Milliseconds since the Unix epoch; `None` when it never started.
    pub started_at_ms: Option<u64>,
    /// Milliseconds since the Unix epoch.
    pub finished_at_ms: u64,
    /// The end of its log, at most 8 KiB.
    pub log_tail: String,
    /// The whole job, as `GET /api/v1/jobs/{id}` answers it.
    pub details: Value,
}

/// One delivery of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The same for every try of this delivery.
    pub id: String,
    /// 1 for the first try.
    pub attempt: u32,
}
