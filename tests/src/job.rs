//! A job as the API answers it.

use serde_json::{Value, json};

/// A job. The whole answer is in `json`; what tests ask all the time has a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The whole answer.
    pub json: Value,
}

impl Job {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.json["id"].as_str().expect("a job has an id")
    }

    /// `queued`, `running` …
    #[must_use]
    pub fn state(&self) -> &str {
        self.json["state"].as_str().expect("a job has a state")
    }

    /// Its place in the line, from 1.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        self.json["position"].as_u64()
    }

    /// The exit code of its command.
    #[must_use]
    pub fn exit_code(&self) -> Option<i64> {
        self.json["exit"]["code"].as_i64()
    }

    /// The signal that ended its command.
    #[must_use]
    pub fn exit_signal(&self) -> Option<i64> {
        self.json["exit"]["signal"].as_i64()
    }

    /// Its failure class.
    #[must_use]
    pub fn failure_class(&self) -> Option<&str> {
        self.json["failure"]["class"].as_str()
    }

    /// The code of the reason for its being where it is.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.json["reason"]["code"].as_str()
    }
}

/// A submission of a shell script.
#[must_use]
pub fn sh(script: &str) -> Value {
    json!({"command": ["/bin/sh", "-c", script]})
}
