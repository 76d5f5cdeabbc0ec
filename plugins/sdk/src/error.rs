//! What can go wrong in a hook, and what the server makes of it.

use std::{fmt, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Problems, http, pointer};

/// The plugin could not do its work. This is no verdict on the job: the server treats it as the plugin's failure.
///
/// ```
/// use std::time::Duration;
/// use taxiway_plugin::HookError;
///
/// let error = HookError::transient("quota-unreachable", "the quota service did not answer")
///     .retry_after(Duration::from_secs(30));
/// assert!(error.retry_after.is_some());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct HookError {
    /// Stable and machine-readable, kebab-case.
    pub code: String,
    /// For a person: what was tried, and what to do.
    pub message: String,
    /// Worth trying again after this long at the earliest; `None` when it never will be. Only completions are tried
    /// again.
    pub retry_after: Option<Duration>,
}

impl HookError {
    /// The wait that [`transient`](Self::transient) asks for: the server's own back-off grows from there.
    pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

    /// A failure that trying again will not mend.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retry_after: None }
    }

    /// A failure that may pass.
    pub fn transient(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retry_after: Some(Self::DEFAULT_RETRY_AFTER) }
    }

    /// Says how long to wait before the next try.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

/// Which document a [`ReadError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// A job's configuration: its author's mistake.
    Config,
    /// The plugin's settings: its operator's mistake.
    Settings,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "configuration",
            Self::Settings => "settings",
        })
    }
}

/// A document does not have the shape that the plugin's type asks for; `path` names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the {document}{}: {message}", self.place())]
pub struct ReadError {
    /// The document that was read.
    pub document: Document,
    /// JSON Pointer (RFC 6901) to the place; a missing key is named by where it should be. Empty for the whole.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl ReadError {
    /// `missing-key`, `unknown-key` or `wrong-type`.
    pub fn code(&self) -> &'static str {
        if missing_key(&self.message).is_some() {
            "missing-key"
        } else if self.message.starts_with(UNKNOWN_KEY) {
            "unknown-key"
        } else {
            "wrong-type"
        }
    }

    fn place(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!(" at {}", self.path) }
    }
}

/// Reads a value into a type, and names the place where that fails.
pub(crate) fn read<T: DeserializeOwned>(document: Document, value: &Value) -> Result<T, ReadError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut path = String::new();
        for segment in error.path() {
            use serde_path_to_error::Segment;
            let next = match segment {
                Segment::Seq { index } => pointer::join(&path, &index.to_string()),
                Segment::Map { key } => pointer::join(&path, key),
                Segment::Enum { variant } => pointer::join(&path, variant),
                Segment::Unknown => break,
            };
            // An enum's variant need not be a key of the document, and the host accepts real places only.
            if value.pointer(&next).is_none() {
                break;
            }
            path = next;
        }
        let message = error.into_inner().to_string();
        if let Some(key) = missing_key(&message) {
            path = pointer::join(&path, key);
        }
        ReadError { document, path, message }
    })
}

/// The one wording that serde has for a key it does not know (`serde::de::Error::unknown_field`).
const UNKNOWN_KEY: &str = "unknown field `";

/// The key that serde misses, from the one wording it has for that (`serde::de::Error::missing_field`).
fn missing_key(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

impl From<ReadError> for HookError {
    fn from(error: ReadError) -> Self {
        let code = match error.document {
            Document::Config => "config-unreadable",
            Document::Settings => "settings-unreadable",
        };
        Self::permanent(code, error.to_string())
    }
}

impl From<http::Error> for HookError {
    fn from(error: http::Error) -> Self {
        if error.is_transient() {
            Self::transient(error.code(), error.to_string())
        } else {
            Self::permanent(error.code(), error.to_string())
        }
    }
}

/// Why a validator ends early: the job is refused, or the plugin could not judge it.
///
/// `?` makes the right one of each: a configuration that does not fit the plugin's type refuses the job, everything
/// else is the plugin's failure.
#[derive(Debug, Clone, PartialEq)]
pub enum ValidateError {
    /// A verdict: the job may not run.
    Refused(Problems),
    /// No verdict: the plugin failed.
    Failed(HookError),
}

impl From<ReadError> for ValidateError {
    fn from(error: ReadError) -> Self {
        match error.document {
            Document::Config => {
                let mut problems = Problems::new();
                problems.error(&error.path, error.code(), &error.message);
                Self::Refused(problems)
            }
            Document::Settings => Self::Failed(error.into()),
        }
    }
}

impl From<HookError> for ValidateError {
    fn from(error: HookError) -> Self {
        Self::Failed(error)
    }
}

impl From<http::Error> for ValidateError {
    fn from(error: http::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Problems> for ValidateError {
    fn from(problems: Problems) -> Self {
        Self::Refused(problems)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, Debug)]
    struct Config {
        #[allow(dead_code, reason = "read for its shape only")]
        train: Train,
    }

    #[derive(Deserialize, Debug)]
    struct Train {
        #[allow(dead_code, reason = "read for its shape only")]
        batch_size: u32,
    }

    fn failure(value: Value) -> ReadError {
        read::<Config>(Document::Config, &value).expect_err("it does not fit")
    }

    #[test]
    fn a_wrong_type_is_named_by_its_place() {
        let error = failure(json!({"train": {"batch_size": "many"}}));
        assert_eq!((error.path.as_str(), error.code()), ("/train/batch_size", "wrong-type"));
        assert!(error.to_string().contains("at /train/batch_size"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named_by_where_it_should_be() {
        let error = failure(json!({"train": {}}));
        assert_eq!((error.path.as_str(), error.code()), ("/train/batch_size", "missing-key"));
    }

    #[test]
    fn an_unreadable_configuration_refuses_the_job_and_unreadable_settings_fail_the_plugin() {
        let config = failure(json!({}));
        assert!(matches!(ValidateError::from(config.clone()), ValidateError::Refused(_)));
        let settings = ReadError { document: Document::Settings, ..config };
        assert!(matches!(ValidateError::from(settings), ValidateError::Failed(_)));
    }
}
