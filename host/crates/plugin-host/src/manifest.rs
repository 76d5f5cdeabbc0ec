//! `NAME.toml` beside a component: when the plugin is called, what it is granted, and its settings.

use crate::folder;
use crate::grant::{address::Network, host::AllowedHost, variable::AllowedVariable};
use crate::quantity;
use crate::view::{Mode, OnError, Stage};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A manifest as written. Every key is optional; the defaults are those of a component without one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// False: known, shown, never called.
    pub enabled: bool,
    /// Rewriters run in this order, lower first, then by name.
    pub order: i64,
    /// When a validator judges.
    pub stages: Vec<Stage>,
    /// The profiles whose jobs it sees; none: all jobs, also those without a profile.
    pub profiles: Option<Vec<String>>,
    /// Whether its verdicts count.
    pub mode: Mode,
    /// What its failure means for the job.
    pub on_error: OnError,
    /// Wall-clock time of a call, instead of the service's default.
    #[serde(deserialize_with = "optional_duration")]
    pub timeout: Option<Duration>,
    /// Bytes of linear memory of a call, instead of the service's default.
    #[serde(deserialize_with = "optional_memory")]
    pub memory: Option<u64>,
    /// The component must have this digest, in hexadecimal.
    pub sha256: Option<Digest>,
    /// Another file of the same folder.
    pub component: Option<FileName>,
    /// A component that is part of the service.
    pub bundled: Option<String>,
    /// Handed to the plugin as JSON.
    pub settings: toml::Table,
    /// Hosts that it may ask over HTTP.
    pub http: Vec<AllowedHost>,
    /// Networks that count as public for it.
    pub allow_private: Vec<Network>,
    /// Directories that it may read.
    pub read: Vec<AbsolutePath>,
    /// Environment variables that it may set as a rewriter.
    pub env: Vec<AllowedVariable>,
    /// Where its secrets come from.
    pub secrets: BTreeMap<String, SecretSource>,
}

impl Default for Manifest {
    fn default() -> Self {
        Manifest {
            enabled: true,
            order: 0,
            stages: vec![Stage::Submit],
            profiles: None,
            mode: Mode::default(),
            on_error: OnError::default(),
            timeout: None,
            memory: None,
            sha256: None,
            component: None,
            bundled: None,
            settings: toml::Table::new(),
            http: Vec::new(),
            allow_private: Vec::new(),
            read: Vec::new(),
            env: Vec::new(),
            secrets: BTreeMap::new(),
        }
    }
}

/// Where a secret is read from when the plugin is loaded: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSecretSource")]
pub enum SecretSource {
    /// A variable of the service's own environment.
    Env(String),
    /// A file; one newline at its end does not count.
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecretSource {
    env: Option<String>,
    file: Option<AbsolutePath>,
}

impl TryFrom<RawSecretSource> for SecretSource {
    type Error = &'static str;

    fn try_from(raw: RawSecretSource) -> Result<Self, Self::Error> {
        match (raw.env, raw.file) {
            (Some(name), None) => Ok(SecretSource::Env(name)),
            (None, Some(path)) => Ok(SecretSource::File(path.0)),
            _ => Err("a secret is { env = \"NAME\" } or { file = \"/path\" }"),
        }
    }
}

/// A SHA-256 digest, kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(pub String);

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Digest(text.to_ascii_lowercase()))
        } else {
            Err("sha256 is 64 hexadecimal digits, as `sha256sum FILE` prints them")
        }
    }
}

/// The name of a component's file in the plugins folder, never a path out of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FileName(pub String);

impl FileName {
    /// The name without its `.wasm`.
    pub fn stem(&self) -> &str {
        self.0.strip_suffix(".wasm").unwrap_or(&self.0)
    }
}

impl TryFrom<String> for FileName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.strip_suffix(".wasm").is_some_and(folder::is_plugin_name) {
            Ok(FileName(text))
        } else {
            Err(
                "component is the name of a .wasm file in the plugins folder, without a path: letters, digits, `-`, `_` and `.`, at most 64 before .wasm",
            )
        }
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(pub PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = &'static str;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        if path.is_absolute() { Ok(AbsolutePath(path)) } else { Err("the path must be absolute") }
    }
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    quantity::time_to_work(input).map(Some)
}

fn optional_memory<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    quantity::memory(input).map(Some)
}

/// Why a manifest cannot be used, with the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ManifestError {
    /// From 1.
    pub line: usize,
    /// What is wrong there, with the nearest known key when one is unknown.
    pub message: String,
}

impl Manifest {
    /// Parses the text of a manifest.
    ///
    /// # Errors
    /// The first mistake, with its line; an unknown key names the nearest known one.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| located(text, &error))?;
        let here =
            |key: &str, message: &str| ManifestError { line: line_of_key(text, key), message: message.to_owned() };
        if manifest.component.is_some() && manifest.bundled.is_some() {
            return Err(here("bundled", "`component` and `bundled` exclude each other: a plugin has one component"));
        }
        if manifest.stages.is_empty() {
            return Err(here("stages", "`stages` is empty; to switch a plugin off write enabled = false"));
        }
        if let Some(name) = manifest.secrets.keys().find(|name| name.is_empty() || name.len() > 100) {
            return Err(here("secrets", &format!("`{name}` is no name for a secret: 1 to 100 bytes")));
        }
        Ok(manifest)
    }
}

fn located(text: &str, error: &toml::de::Error) -> ManifestError {
    let span = error.span().unwrap_or(0..0);
    let within = text.get(span.clone()).unwrap_or("");
    // For a list the span is the whole list: the entry is the one that the message quotes.
    let quoted = error.message().split('`').nth(1).filter(|quoted| !quoted.is_empty());
    let start = span.start + quoted.and_then(|quoted| within.find(quoted)).unwrap_or(0);
    let line = text.as_bytes()[..start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut message = error.message().trim().replace('\n', "; ");
    if let Some((what, given, known)) = unknown(&message) {
        message = match nearest(&given, &known) {
            Some(near) => format!("unknown {what} `{given}`; did you mean `{near}`?"),
            None => format!("unknown {what} `{given}`; known are {}", known.join(", ")),
        };
    }
    ManifestError { line, message }
}

/// Takes serde's ``unknown field `x`, expected one of `a`, `b` `` apart: what it is, what was given, and what is known.
fn unknown(message: &str) -> Option<(&'static str, String, Vec<String>)> {
    let of = |what, start| message.strip_prefix(start).map(|rest| (what, rest));
    let (what, rest) = of("key", "unknown field `").or_else(|| of("value", "unknown variant `"))?;
    let (given, expected) = rest.split_once("`, ")?;
    let known = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((what, given.to_owned(), known))
}

/// The known key that a mistyped one most likely means.
fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        // A third of the letters may be wrong; beyond that the guess would mislead.
        .filter(|(distance, candidate)| *distance <= candidate.len().max(key.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.as_str())
}

fn line_of_key(text: &str, key: &str) -> usize {
    let names = |line: &str| {
        line.trim_start()
            .trim_start_matches('[')
            .strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(names).map_or(1, |index| index + 1)
}

/// The settings as the JSON text that `host.settings` answers with. Dates become their TOML text.
pub fn settings_as_json(settings: &toml::Table) -> serde_json::Value {
    fn convert(value: &toml::Value) -> serde_json::Value {
        use serde_json::Value as Json;
        match value {
            toml::Value::String(text) => Json::String(text.clone()),
            toml::Value::Integer(number) => Json::from(*number),
            // JSON has no infinities; null is what JavaScript makes of them too.
            toml::Value::Float(number) => serde_json::Number::from_f64(*number).map_or(Json::Null, Json::Number),
            toml::Value::Boolean(truth) => Json::Bool(*truth),
            toml::Value::Datetime(when) => Json::String(when.to_string()),
            toml::Value::Array(items) => Json::Array(items.iter().map(convert).collect()),
            toml::Value::Table(table) => Json::Object(table.iter().map(|(k, v)| (k.clone(), convert(v))).collect()),
        }
    }
    serde_json::Value::Object(settings.iter().map(|(k, v)| (k.clone(), convert(v))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_manifest_grants_nothing() {
        let manifest = Manifest::parse("").unwrap();
        assert_eq!(manifest, Manifest::default());
        assert!(
            manifest.http.is_empty()
                && manifest.read.is_empty()
                && manifest.env.is_empty()
                && manifest.secrets.is_empty()
        );
        assert_eq!(manifest.stages, [Stage::Submit]);
        assert_eq!(manifest.on_error, OnError::Reject);
    }

    #[test]
    fn a_full_manifest_reads_as_documented() {
        let manifest = Manifest::parse(
            r#"
            enabled = true
            order = -5
            stages = ["submit", "launch"]
            profiles = ["training"]
            mode = "observe"
            on_error = "hold"
            timeout = "1.5s"
            memory = "64MiB"
            sha256 = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
            component = "shared.wasm"
            http = ["https://example.com", "http://localhost:9000"]
            allow_private = ["127.0.0.1/32"]
            read = ["/data"]
            env = ["NCCL_*", "CUDA_LAUNCH_BLOCKING"]

            [settings]
            limit = 3
            since = 2024-01-01

            [secrets]
            TOKEN = { env = "MY_TOKEN" }
            KEY = { file = "/run/key" }
            "#,
        )
        .unwrap();
        assert_eq!(manifest.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(manifest.memory, Some(64 << 20));
        assert_eq!(manifest.secrets["KEY"], SecretSource::File("/run/key".into()));
        assert_eq!(settings_as_json(&manifest.settings), serde_json::json!({"limit": 3, "since": "2024-01-01"}));
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_the_nearest_key() {
        for (text, line, want) in [
            ("enabled = true\ntimeot = \"2s\"\n", 2, "did you mean `timeout`?"),
            ("\n\nmode = \"obsrve\"", 3, "did you mean `observe`?"),
            ("stages = [\"lunch\"]", 1, "unknown value `lunch`; did you mean `launch`?"),
            ("stages = [\n  \"submit\",\n  \"whenever\",\n]", 3, "unknown value `whenever`; known are submit, launch"),
            ("[secrets]\nA = { enf = \"X\" }", 2, "did you mean `env`?"),
            ("wholly_unknown = 1", 1, "known are enabled"),
            ("http = [\n  \"https://a.example\",\n  \"https://*.example\",\n]", 3, "exact host"),
            ("timeout = \"soon\"", 1, "soon"),
            ("timeout = 0", 1, "longer than nothing"),
            ("timeout = \"1000000d\"", 1, "a year at most"),
            ("memory = \"1 hectare\"", 1, "hectare"),
            ("order = 1\nmemory = 0", 2, "64 KiB"),
            ("env = [\"LD_PRELOAD\"]", 1, "never granted"),
            ("order = 1\nenv = [\"NCCL_*\", \"CUDA_*\"]", 2, "name each variable in full"),
            ("order = \"first\"", 1, "expected i64"),
            ("enabled = ", 1, ""),
            ("sha256 = \"abc\"", 1, "64 hexadecimal"),
            ("component = \"../evil.wasm\"", 1, "without a path"),
            ("component = \"a.wasm\"\nbundled = \"webhook\"", 2, "exclude each other"),
            ("order = 1\nstages = []", 2, "enabled = false"),
            ("[secrets]\nA = { }", 2, "{ env ="),
            ("read = [\"data\"]", 1, "absolute"),
        ] {
            let error = Manifest::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.message.contains(want), "{text}: {error}");
        }
    }
}
