//! A submission as clients write it (DESIGN §3).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taxiway_job::{ConfigFormat, EnvValue, Retries, Time};

use super::Array;

/// A submission. Every field may be absent or null, which mean the same.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Submission {
    /// The argument vector; required unless there is a profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// A `[profiles.NAME]` of the service's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The training configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Map<String, Value>>,
    /// Language of the configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_format: Option<ConfigFormat>,
    /// For people and filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people and filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Working directory, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment variables: text, or `{"secret": "text"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, EnvValue>>,
    /// GPUs; 0 is the CPU lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Only GPUs with that much memory in all: `"24GiB"` or bytes.
    #[serde(with = "taxiway_job::size::option", skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Only these GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_uuids: Option<Vec<String>>,
    /// −100 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Longest time it may run: `"2h30m"` or seconds.
    #[serde(with = "taxiway_job::duration::option", skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    #[serde(with = "taxiway_job::duration::option", skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
    /// The submitter's own id, unique among all jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// Ids of the jobs that must have completed before it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// Ids of the jobs that must have ended before it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_any: Option<Vec<String>>,
    /// Its earliest start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// How often it is tried again when it fails, and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// One job for each combination of values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// Start in `held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
}
