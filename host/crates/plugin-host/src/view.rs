//! What goes into a call and what comes out of it, in the words of the service: nothing of wasmtime.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// A point in a job's life at which plugins are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// May this job run?
    Validate,
    /// What does its configuration become?
    Rewrite,
    /// What happens now that it has ended?
    Complete,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Hook; 3] = [Hook::Validate, Hook::Rewrite, Hook::Complete];

    /// The hook's name in JSON, manifests and WIT.
    pub fn as_str(self) -> &'static str {
        match self {
            Hook::Validate => "validate",
            Hook::Rewrite => "rewrite",
            Hook::Complete => "complete",
        }
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When validators judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// At submission and at each edit.
    Submit,
    /// Just before the start, with the GPUs that the job is about to get.
    Launch,
}

impl Stage {
    /// The stage's name in JSON, manifests and WIT.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Submit => "submit",
            Stage::Launch => "launch",
        }
    }
}

/// Whether a plugin's verdicts count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They do.
    #[default]
    Enforce,
    /// They are recorded only.
    Observe,
}

/// What a plugin's failure means for the job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The job is refused.
    #[default]
    Reject,
    /// As if the plugin were not there.
    Ignore,
    /// The job is accepted and held.
    Hold,
}

/// The job as a plugin sees it. Secrets must already be taken out.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The job's id; in a dry run one that will not be used.
    pub id: String,
    /// The job's name.
    pub name: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The training configuration, as submitted or as the previous rewriter left it.
    pub config: Value,
    /// The rest of the submission as in the HTTP API.
    pub details: Value,
}

/// Where in the job's life, and on what machine, the hook is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Submission or launch.
    pub stage: Stage,
    /// True when nothing will run: only GET and HEAD requests leave the machine.
    pub dry_run: bool,
    /// The machine's GPUs; at launch those the job is about to get.
    pub gpus: Vec<GpuView>,
    /// Further facts, free in form.
    pub details: Value,
}

/// A GPU as a plugin sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuView {
    /// NVML's index.
    pub index: u32,
    /// NVML's UUID.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes; what the service's own jobs hold counts as free.
    pub memory_free: u64,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Driver, MIG, temperature … as in the HTTP API.
    pub details: Value,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// With success.
    Completed,
    /// With a failure class.
    Failed,
    /// By a user, or because what it waited for cannot come.
    Cancelled,
}

/// A job's end as a completion hook sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct OutcomeView {
    /// How it ended.
    pub end: End,
    /// True when another attempt will follow.
    pub will_retry: bool,
    /// The exit status, if it exited.
    pub exit_code: Option<i32>,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// The failure class, if it failed.
    pub failure: Option<String>,
    /// Milliseconds since the Unix epoch; none when it never started.
    pub started_at_ms: Option<u64>,
    /// Milliseconds since the Unix epoch.
    pub finished_at_ms: u64,
    /// The end of its log, at most 8 KiB.
    pub log_tail: String,
    /// The whole job as the HTTP API answers it.
    pub details: Value,
}

/// One try of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The same for every try: what makes the receiver's side idempotent.
    pub id: String,
    /// 1 for the first try.
    pub attempt: u32,
}

/// What a rewriter made of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewritten {
    /// The whole new configuration; none when it stays as it is.
    pub config: Option<Value>,
    /// Environment variables to set, each granted by the manifest.
    pub env: Vec<Variable>,
    /// Labels to set.
    pub labels: Vec<(String, String)>,
    /// RFC 6902: from the configuration that went in to the one that came out; empty when it stays as it is.
    pub patch: Value,
}

/// An environment variable that a rewriter sets.
#[derive(Clone, PartialEq, Eq)]
pub struct Variable {
    /// `[A-Za-z_][A-Za-z0-9_]*`, granted by the manifest.
    pub name: String,
    /// Free of NUL bytes.
    pub value: String,
    /// Never shown or logged. Also true when the value holds one of the plugin's secrets.
    pub secret: bool,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.secret { "(secret)" } else { &self.value };
        f.debug_struct("Variable")
            .field("name", &self.name)
            .field("value", &value)
            .field("secret", &self.secret)
            .finish()
    }
}

/// How much a problem weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Refuses the job.
    Error,
    /// Shown to the user.
    Warning,
    /// Shown on request.
    Info,
}

/// One thing that a plugin has to say about a job, made safe to show: control characters are gone, secrets redacted,
/// and the whole is at most 1 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The plugin that says it.
    pub plugin: String,
    /// How much it weighs.
    pub severity: Severity,
    /// JSON Pointer (RFC 6901) into the configuration whose parent exists; empty for the job as a whole.
    pub path: String,
    /// Stable and machine-readable, kebab-case.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
    /// What the user can do about it.
    pub help: Option<String>,
}

/// A call that has ended, well or badly, with what it cost.
#[derive(Debug, Clone)]
pub struct Called<T> {
    /// The plugin's answer, or how it failed.
    pub result: Result<T, CallError>,
    /// From the begin of the call to the answer; waiting for a free place is not part of it.
    pub duration: Duration,
    /// Bytes of linear memory at the peak.
    pub peak_memory_bytes: u64,
    /// What the plugin logged and printed, redacted, at most 16 KiB.
    pub log: Vec<LogLine>,
}

/// A line that a plugin logged or printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// `trace` … `error`, or `stdout` and `stderr`.
    pub source: &'static str,
    /// The line, redacted, without control characters.
    pub text: String,
}

/// How a call failed. The names in JSON are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It ran past its wall-clock time.
    Timeout,
    /// It wanted more memory than it may have.
    Memory,
    /// It wanted more tables, instances, resources or random bytes than it may have.
    Resources,
    /// It moved more bytes in one call than it may.
    Transfer,
    /// It trapped: a panic, an unreachable instruction, a stack overflow.
    Trap,
    /// Its HTTP request was refused by the host. Seen when the plugin then failed; most handle it themselves.
    HttpDenied,
    /// Its answer is not what the interface asks for.
    MalformedOutput,
    /// It set an environment variable that its manifest does not grant.
    EnvDenied,
    /// It answered that it could not do its work.
    HookError {
        /// The plugin's own code, made safe to show.
        code: String,
    },
    /// It was not called: there was no place for the call, because of other calls. Not the plugin's failure.
    Busy,
    /// It was in force and cannot be loaded any more.
    NotLoaded,
    /// The host itself failed. A bug of Taxiway's.
    HostPanic,
}

impl FailureKind {
    /// The kind's stable name: a metric's label and part of the audit record.
    pub fn as_str(&self) -> &'static str {
        match self {
            FailureKind::Timeout => "timeout",
            FailureKind::Memory => "memory",
            FailureKind::Resources => "resources",
            FailureKind::Transfer => "transfer",
            FailureKind::Trap => "trap",
            FailureKind::HttpDenied => "http-denied",
            FailureKind::MalformedOutput => "malformed-output",
            FailureKind::EnvDenied => "env-denied",
            FailureKind::HookError { .. } => "hook-error",
            FailureKind::Busy => "busy",
            FailureKind::NotLoaded => "not-loaded",
            FailureKind::HostPanic => "host-panic",
        }
    }

    /// What the plugin did, for a sentence that begins with its name.
    pub fn what_happened(&self) -> &'static str {
        match self {
            FailureKind::Busy => "could not be asked",
            _ => "failed",
        }
    }
}

/// A plugin's failure: neither the host's nor the user's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin `{plugin}` {}: {message}", .kind.what_happened())]
pub struct CallError {
    /// The plugin's name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// How it failed.
    pub kind: FailureKind,
    /// The limit that was hit, for people: `timeout of 2 s`.
    pub limit: Option<String>,
    /// A sentence for a person, safe to show.
    pub message: String,
    /// What its manifest wants to happen then.
    pub on_error: OnError,
    /// For deliveries: when to try again, if the plugin said so. A [`FailureKind::HookError`] without it is for good.
    pub retry_after: Option<Duration>,
}
