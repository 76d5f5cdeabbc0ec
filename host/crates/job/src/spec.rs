//! What somebody asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ArrayMember, ProcessSpec, Terms};

/// A job as it was asked for, with every default filled in: what is needed to start it, apart from its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// For people and filters.
    pub name: String,
    /// The profile it was submitted under.
    pub profile: Option<String>,
    /// The argument vector, placeholders not yet substituted. Never empty.
    pub command: Vec<String>,
    /// Working directory; the job's own directory when none is given.
    pub cwd: Option<String>,
    /// Environment variables of the profile and of the job.
    pub env: BTreeMap<String, EnvValue>,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// GPUs it holds while it runs; 0 is the CPU lane.
    pub gpus: u32,
    /// −100 to 100; higher starts first.
    pub priority: i16,
    /// Longest time it may run, counted from the exec.
    #[serde(with = "crate::units::duration::option")]
    pub time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when it is stopped.
    #[serde(with = "crate::units::duration")]
    pub grace: Duration,
    /// The submitter's own id, unique among all jobs.
    pub external_id: Option<String>,
    /// How the configuration file is written.
    pub config_format: ConfigFormat,
    /// What it asks of the queue beside its slots.
    #[serde(default, skip_serializing_if = "Terms::are_none")]
    pub terms: Terms,
    /// Which member of an array it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<ArrayMember>,
    /// How its process is set up and asked to stop, as its profile says.
    #[serde(default, skip_serializing_if = "ProcessSpec::is_default")]
    pub process: ProcessSpec,
}

/// The value of an environment variable.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvValue {
    /// Shown to everybody who may see the job.
    Plain(String),
    /// Never returned, logged or shown to plugins. Its own `Debug` hides it.
    Secret {
        /// The value.
        secret: String,
    },
}

impl EnvValue {
    /// The value as the process gets it. Do not show it to anybody.
    #[must_use]
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(value) => value,
            Self::Secret { secret } => secret,
        }
    }
}

impl std::fmt::Debug for EnvValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(value) => write!(f, "{value:?}"),
            Self::Secret { .. } => f.write_str("(secret)"),
        }
    }
}

/// The language of the configuration file that the job reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigFormat {
    /// `config.json`
    #[default]
    Json,
    /// `config.yaml`
    Yaml,
    /// `config.toml`
    Toml,
}

impl ConfigFormat {
    /// The file's name inside the launch's directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Json => "config.json",
            Self::Yaml => "config.yaml",
            Self::Toml => "config.toml",
        }
    }
}
