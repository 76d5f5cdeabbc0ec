//! What `GET /api/v1/plugins`, `taxiway plugin list` and the dashboard show of a plugin.

use crate::grant::Grants;
use crate::load::LoadError;
use crate::stats::LastFailure;
use crate::text;
use crate::view::{Hook, Mode, OnError, Stage};
use serde::Serialize;
use serde_json::Value;

/// Where a plugin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    /// It is being read, linked and asked for its metadata.
    Loading,
    /// Its component is being compiled.
    Compiling,
    /// It is called. With an error beside it: an older version is, because the newest does not load.
    InForce,
    /// It does not load. If it was in force before a restart, its calls fail by `on_error`.
    Failed,
    /// Its manifest says `enabled = false`.
    Disabled,
}

/// Why the newest version is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginError {
    /// What is wrong.
    pub message: String,
    /// What can be done about it.
    pub advice: String,
}

/// The longest sentence about an error, in bytes. Manifests and components choose some of its words.
const SENTENCE_LIMIT: usize = 2048;

impl PluginError {
    /// With both sentences made safe to show.
    pub(crate) fn new(message: &str, advice: &str) -> PluginError {
        PluginError { message: text::clean(message, SENTENCE_LIMIT), advice: text::clean(advice, SENTENCE_LIMIT) }
    }
}

impl From<&LoadError> for PluginError {
    fn from(error: &LoadError) -> PluginError {
        PluginError::new(&error.to_string(), &error.advice())
    }
}

/// One plugin, in force or not.
#[derive(Debug, Clone, Serialize)]
pub struct PluginStatus {
    /// The name of its manifest, or else of its file.
    pub name: String,
    /// The file of its component; none when it is a bundled one.
    pub component: Option<String>,
    /// The bundled component that it is.
    pub bundled: Option<String>,
    /// Where it stands.
    pub state: PluginState,
    /// The hooks of the version in force.
    pub hooks: Vec<Hook>,
    /// The version in force.
    pub version: Option<String>,
    /// The SHA-256 of the version in force, in hexadecimal.
    pub sha256: Option<String>,
    /// One line by its author.
    pub summary: String,
    /// What it is granted.
    pub grants: Grants,
    /// Whether its verdicts count.
    pub mode: Mode,
    /// Rewriters run in this order, lower first, then by name.
    pub order: i64,
    /// When its validator judges.
    pub stages: Vec<Stage>,
    /// The profiles whose jobs it sees; none: all.
    pub profiles: Option<Vec<String>>,
    /// What its failure means for the job.
    pub on_error: OnError,
    /// Wall-clock seconds of a `validate` or `rewrite` call; none while nothing is loaded.
    pub timeout_seconds: Option<f64>,
    /// Bytes of linear memory of a call; none while nothing is loaded.
    pub memory_bytes: Option<u64>,
    /// JSON Schema of its settings, by its author.
    pub settings_schema: Option<Value>,
    /// Seconds it took to read, check and compile the version in force and to ask it who it is.
    pub load_seconds: Option<f64>,
    /// Seconds of these that compiling took; none when the code came from the cache.
    pub compile_seconds: Option<f64>,
    /// Why the newest version is not in force.
    pub error: Option<PluginError>,
    /// What its metadata finds odd in its settings.
    pub warnings: Vec<String>,
    /// Calls since the service's start, over all versions.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// The last one that failed.
    pub last_failure: Option<LastFailure>,
    /// The time of all calls together, in seconds.
    pub seconds: f64,
    /// The time in seconds that half of the calls took at most; none before the first.
    pub p50_seconds: Option<f64>,
    /// The time in seconds that 99 of 100 calls took at most; none before the first.
    pub p99_seconds: Option<f64>,
}
