//! What a hook gets to see.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    ReadError,
    error::{Document, read},
};

/// The job that a hook is called for.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id, a UUID of version 7.
    pub id: String,
    /// Its name; empty when it has none.
    pub name: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    pub(crate) config: Value,
    pub(crate) details: Value,
}

impl Job {
    /// A job as a test wants it.
    ///
    /// ```
    /// use taxiway_plugin::{Job, json};
    ///
    /// let job = Job::new("0193", json!({"lr": 0.1})).named("iris").with_details(json!({"profile": "lora"}));
    /// assert_eq!(job.profile(), Some("lora"));
    /// ```
    pub fn new(id: impl Into<String>, config: Value) -> Self {
        Self { id: id.into(), name: String::new(), attempt: 1, config, details: json!({}) }
    }

    /// The same with a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same with these facts, named as in the HTTP API.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// The configuration as your type.
    ///
    /// # Errors
    ///
    /// [`ReadError`] names the place that does not fit. In a validator, `?` makes it a refusal of the job.
    ///
    /// ```
    /// use taxiway_plugin::{Job, json};
    ///
    /// #[derive(serde::Deserialize, Debug)]
    /// struct Config {
    ///     epochs: u32,
    /// }
    ///
    /// let error = Job::new("0193", json!({"epochs": "ten"})).config::<Config>().unwrap_err();
    /// assert_eq!(error.path, "/epochs");
    /// ```
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ReadError> {
        read(Document::Config, &self.config)
    }

    /// The configuration as it is.
    pub fn raw_config(&self) -> &Value {
        &self.config
    }

    /// The rest of the submission, named as in the HTTP API (`command`, `labels`, `gpus`, `priority` …).
    pub fn details(&self) -> &Value {
        &self.details
    }

    /// One of the details; `None` when it is absent or null.
    pub fn detail(&self, name: &str) -> Option<&Value> {
        self.details.get(name).filter(|value| !value.is_null())
    }

    /// The profile that it was submitted under.
    pub fn profile(&self) -> Option<&str> {
        self.detail("profile")?.as_str()
    }

    /// The submitter's own id.
    pub fn external_id(&self) -> Option<&str> {
        self.detail("external_id")?.as_str()
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let labels = self.detail("labels").and_then(Value::as_object);
        labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
    }
}

/// One GPU of the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// As NVML counts.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// All of its memory, in bytes.
    pub memory_total_bytes: u64,
    /// What is free as of this call, in bytes; what the service's own jobs hold counts as free.
    pub memory_free_bytes: u64,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Driver, MIG, temperature … as in `GET /api/v1/gpus`.
    pub details: Value,
}

/// Where in a job's life a hook is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// `submit`, or `launch` just before it starts; more may come.
    pub stage: String,
    /// True when nothing will run, and nothing may be changed outside the plugin.
    pub dry_run: bool,
    /// The GPUs of this machine; at launch, those the job is about to get.
    pub gpus: Vec<Gpu>,
    /// Further facts.
    pub details: Value,
}

impl Context {
    /// A submission on a machine without GPUs, for tests.
    pub fn submission() -> Self {
        Self { stage: "submit".to_owned(), dry_run: false, gpus: Vec::new(), details: json!({}) }
    }

    /// True just before the job starts.
    pub fn is_launch(&self) -> bool {
        self.stage == "launch"
    }
}
