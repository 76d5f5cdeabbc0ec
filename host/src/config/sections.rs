//! The sections of `taxiway.toml`, each key with its default and the reason for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use taxiway_job::{
    ConfigFormat, EnvValue, LONGEST_ARGUMENT, LONGEST_ARGUMENTS, Limit, ProcessSpec, Resource, Signal,
    bytes_of_arguments,
};
use taxiway_plugin_host::Limits;

/// A smaller limit of memory is a slip of the pen: `64` for `64GiB`.
const MEMORY_MIN: u64 = 1 << 20;

/// The whole of `taxiway.toml`. `Default` is what an absent file means.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How clients reach the service.
    pub server: ServerSection,
    /// What starts next.
    pub queue: QueueSection,
    /// Which GPUs the queue may use.
    pub gpu: GpuSection,
    /// How commands are started and stopped.
    pub launcher: LauncherSection,
    /// Where plugins lie and what they may use up.
    pub plugins: PluginsSection,
    /// Ready-made commands, by name.
    pub profiles: BTreeMap<String, Profile>,
}

/// `[server]`: how clients reach the service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    /// Address of the TCP listener (`127.0.0.1:8294`); port 0 takes a free one.
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    /// Path of the unix socket (`taxiway.sock` in the data directory).
    pub socket: Option<PathBuf>,
    /// Permissions of the unix socket (`0600`). Whoever may connect and is neither the service's user nor root still
    /// needs a token.
    #[serde(deserialize_with = "read_mode", serialize_with = "write_mode")]
    pub socket_mode: u32,
    /// A TLS-terminating proxy stands in front: the condition for listening on other than loopback (false).
    pub behind_proxy: bool,
    /// Further names that a request's `Host` may have; the machine's own names always may.
    pub allowed_hosts: Vec<String>,
    /// The URL under which people reach the service, when it is not the listener's.
    pub public_url: Option<String>,
    /// Whether tokens of scope `submit` may submit commands of their own, and not only under profiles (false): a command can do
    /// whatever the service's user can.
    pub allow_commands: bool,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8294)),
            socket: None,
            socket_mode: 0o600,
            behind_proxy: false,
            allowed_hosts: Vec::new(),
            public_url: None,
            allow_commands: false,
        }
    }
}

/// `[queue]`: what starts next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSection {
    /// The queue's mode after a start of the service (`last`).
    pub startup: Startup,
    /// Jobs without GPUs that run at a time (half the cores: the other half feeds the GPUs).
    pub cpu_slots: u32,
    /// How long what has ended is kept.
    pub retention: Retention,
}

/// `queue.retention`: how long what has ended is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Ended jobs, events and the audit trail (90 days: a quarter's work can be looked up).
    #[serde(with = "taxiway_job::duration")]
    pub jobs: Duration,
    /// Logs of ended jobs (30 days).
    #[serde(with = "taxiway_job::duration")]
    pub logs: Duration,
    /// Bytes of all logs of ended jobs together (20 GiB); the first to end go first.
    #[serde(deserialize_with = "taxiway_job::size::deserialize")]
    pub logs_size: u64,
}

impl Default for Retention {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { jobs: 90 * day, logs: 30 * day, logs_size: 20 << 30 }
    }
}

impl Default for QueueSection {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            startup: Startup::Last,
            cpu_slots: u32::try_from(cores / 2).unwrap_or(u32::MAX).max(1),
            retention: Retention::default(),
        }
    }
}

/// The queue's mode after a start of the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Startup {
    /// Start jobs.
    Run,
    /// Start none until somebody resumes the queue.
    Paused,
    /// As it was when the service stopped.
    #[default]
    Last,
}

/// `[gpu]`: which GPUs the queue may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuSection {
    /// Virtual slots of a machine without NVML (1).
    pub slots: Option<u32>,
    /// The GPUs that the queue may use, by UUID or index (empty: all of them).
    #[serde(rename = "use")]
    pub use_: Vec<String>,
    /// Bytes that must be free on a GPU before a job starts there (0).
    #[serde(deserialize_with = "taxiway_job::size::deserialize")]
    pub min_free_memory: u64,
    /// Programs that may use a GPU beside a job, by the name of their file (none): a display server, say.
    pub ignore: Vec<String>,
}

/// `[launcher]`: how commands are started and stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LauncherSection {
    /// Time between SIGTERM and SIGKILL, where the job does not say (30 s: enough to write a checkpoint).
    #[serde(with = "taxiway_job::duration")]
    pub grace: Duration,
    /// Bytes of one log that are kept: the first ones, a marker, the last 64 KiB (1 GiB).
    #[serde(deserialize_with = "taxiway_job::size::deserialize")]
    pub log_max_size: u64,
    /// Free bytes in the data directory's filesystem below which nothing is started (1 GiB).
    #[serde(deserialize_with = "taxiway_job::size::deserialize")]
    pub min_free_disk: u64,
    /// A cgroup2 directory below which each job gets a control group of its own (the one that systemd has delegated to the
    /// service, if it has).
    pub cgroup: Option<PathBuf>,
}

impl Default for LauncherSection {
    fn default() -> Self {
        Self { grace: Duration::from_secs(30), log_max_size: 1 << 30, min_free_disk: 1 << 30, cgroup: None }
    }
}

/// `[plugins]`: where plugins lie and what they may use up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginsSection {
    /// The watched folder (`plugins` in the data directory).
    pub dir: Option<PathBuf>,
    /// PEM file with the certificate authorities for plugins' HTTPS requests (the platform's).
    pub ca_file: Option<PathBuf>,
    /// What every call and load may use up.
    pub limits: Limits,
}

/// `[profiles.NAME]`: a ready-made command.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// The argument vector, with placeholders.
    pub command: Vec<String>,
    /// Working directory (the submission's, else the job's own directory).
    pub cwd: Option<String>,
    /// Environment variables; a submission's win over them.
    #[serde(serialize_with = "write_env_without_secrets")]
    pub env: BTreeMap<String, EnvValue>,
    /// Language of the configuration file (`json`).
    pub config_format: ConfigFormat,
    /// The signal that asks a job to stop (`SIGTERM`).
    pub stop_signal: Option<Signal>,
    /// The signal that warns a job before its time limit, so that it can write a checkpoint (none).
    pub warn_signal: Option<Signal>,
    /// How long before the time limit it is sent. A job whose limit is shorter than that gets no warning.
    #[serde(with = "taxiway_job::duration::option")]
    pub warn_before: Option<Duration>,
    /// Bytes of memory that a job's processes may have together. Needs a control group that systemd has delegated.
    #[serde(with = "taxiway_job::size::option")]
    pub memory: Option<u64>,
    /// Resource limits of each process (getrlimit(2)): `{ nofile = 65536, core = 0, memlock = "unlimited" }`.
    pub rlimits: BTreeMap<Resource, Limit>,
    /// File mode creation mask (the service's): `"0027"`.
    #[serde(deserialize_with = "read_optional_mode", serialize_with = "write_optional_mode")]
    pub umask: Option<u32>,
    /// What a submission gets that does not say otherwise.
    pub defaults: ProfileDefaults,
}

/// `[profiles.NAME.defaults]`: what a submission gets that does not say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileDefaults {
    /// GPUs.
    pub gpus: Option<u32>,
    /// −100 to 100.
    pub priority: Option<i16>,
    /// Longest time it may run.
    #[serde(with = "taxiway_job::duration::option")]
    pub time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    #[serde(with = "taxiway_job::duration::option")]
    pub grace: Option<Duration>,
    /// Labels; a submission's win over them.
    pub labels: BTreeMap<String, String>,
}

impl Profile {
    /// How a job's process is set up and asked to stop.
    #[must_use]
    pub fn process(&self) -> ProcessSpec {
        ProcessSpec {
            stop_signal: self.stop_signal,
            warn_signal: self.warn_signal,
            warn_before: self.warn_before,
            memory: self.memory,
            rlimits: self.rlimits.clone(),
            umask: self.umask,
        }
    }
}

impl Config {
    /// What no type can say: each fault with the path of the key that it is about.
    pub(super) fn faults(&self) -> Vec<(Vec<&str>, String)> {
        let mut faults = Vec::new();
        if self.gpu.slots == Some(0) {
            faults.push((vec!["gpu", "slots"], "a machine without GPUs needs at least 1 slot".to_owned()));
        }
        if self.server.socket_mode > 0o777 {
            faults.push((vec!["server", "socket_mode"], "is not a mode: write it like \"0660\"".to_owned()));
        }
        for (name, profile) in &self.profiles {
            let path = |key: &'static str| vec!["profiles", name.as_str(), key];
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                let message = "a profile's name is made of letters, digits, `-`, `_` and `.`".to_owned();
                faults.push((vec!["profiles", name.as_str()], message));
            }
            if profile.command.first().is_none_or(String::is_empty) {
                faults.push((
                    path("command"),
                    format!(
                        "profile `{name}` has no command: set it like [\"python3\", \"train.py\", \"{{config_file}}\"]"
                    ),
                ));
            }
            if profile.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/')) {
                faults.push((path("cwd"), "must be an absolute path".to_owned()));
            }
            if profile.command.iter().any(|argument| argument.len() >= LONGEST_ARGUMENT) {
                let message = "an argument has at most 128 KiB (execve(2)): put the rest into a file and name that";
                faults.push((path("command"), message.to_owned()));
            }
            for (variable, value) in &profile.env {
                if let Some(message) = variable_fault(variable, value) {
                    faults.push((vec!["profiles", name, "env", variable], message));
                }
            }
            if bytes_of_arguments(&profile.command, &profile.env) > LONGEST_ARGUMENTS {
                let message = "its command and variables have at most 1 MiB together (execve(2)): put the rest into a file and name that";
                faults.push((path("env"), message.to_owned()));
            }
            if let Some(signal) =
                profile.stop_signal.filter(|signal| ["SIGKILL", "SIGSTOP"].contains(&&*signal.to_string()))
            {
                faults.push((path("stop_signal"), format!("a job cannot heed {signal}: name one that it can catch")));
            }
            if profile.warn_signal.is_some() != profile.warn_before.is_some() {
                let missing = if profile.warn_signal.is_some() { "warn_before" } else { "warn_signal" };
                let there = if profile.warn_signal.is_some() { "warn_signal" } else { "warn_before" };
                faults.push((path(there), format!("does nothing without `{missing}`: set both")));
            }
            if profile.memory.is_some_and(|memory| memory < MEMORY_MIN) {
                faults.push((path("memory"), "no program runs in less than 1 MiB".to_owned()));
            }
            if profile.umask.is_some_and(|umask| umask > 0o777) {
                faults.push((path("umask"), "is not a mask: write it like \"0027\"".to_owned()));
            }
            if profile.defaults.priority.is_some_and(|priority| !(-100..=100).contains(&priority)) {
                faults.push((path("defaults"), "priority goes from -100 to 100".to_owned()));
            }
        }
        faults
    }
}

/// Why no job could be given this variable. Its value, which may be secret, is not told.
fn variable_fault(name: &str, value: &EnvValue) -> Option<String> {
    let value = value.expose();
    if !is_variable_name(name) {
        return Some(format!("`{name}` is not a name of an environment variable"));
    }
    if name.starts_with("TAXIWAY_") {
        return Some(format!("`{name}` cannot be set here: `TAXIWAY_*` is set by Taxiway"));
    }
    if value.contains('\0') {
        return Some(format!("the value of `{name}` has a NUL byte, which no program can be given: leave it out"));
    }
    (name.len() + 1 + value.len() >= LONGEST_ARGUMENT).then(|| {
        format!("`{name}` has more than the 128 KiB that a variable can have with its name (execve(2)): put its value into a file and name that")
    })
}

/// Whether `name` can name an environment variable: `[A-Za-z_][A-Za-z0-9_]*` (POSIX.1-2017, 8.1, plus lower case).
fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn listen_address<'de, D: Deserializer<'de>>(input: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(input)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!("`{text}` is not an address with a port: write it like \"127.0.0.1:8294\""))
    })
}

fn read_optional_mode<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    read_mode(input).map(Some)
}

fn write_optional_mode<S: Serializer>(mode: &Option<u32>, output: S) -> Result<S::Ok, S::Error> {
    match mode {
        Some(mode) => write_mode(mode, output),
        None => output.serialize_none(),
    }
}

/// A file mode: `"0660"` as text is octal, as chmod(1) has it; a TOML number is taken as it is (`0o660`).
fn read_mode<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a mode like \"0660\"")]
    enum Written {
        Number(u32),
        Text(String),
    }
    match Written::deserialize(input)? {
        Written::Number(mode) => Ok(mode),
        Written::Text(text) => u32::from_str_radix(text.trim_start_matches("0o"), 8)
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is not a mode: write it like \"0660\""))),
    }
}

fn write_mode<S: Serializer>(mode: &u32, output: S) -> Result<S::Ok, S::Error> {
    output.collect_str(&format_args!("{mode:04o}"))
}

fn write_env_without_secrets<S: Serializer>(env: &BTreeMap<String, EnvValue>, output: S) -> Result<S::Ok, S::Error> {
    output.collect_map(env.iter().map(|(name, value)| match value {
        EnvValue::Plain(_) => (name, value.clone()),
        EnvValue::Secret { .. } => (name, EnvValue::Secret { secret: "(hidden)".to_owned() }),
    }))
}
