//! Refuses jobs whose batch is larger than the settings allow. Copy this folder to begin a plugin of your own.
//!
//! ```toml
//! # plugins/batch-limit.toml, beside plugins/batch-limit.wasm
//! [settings]
//! max_batch_size = 256
//! ```

use serde::Deserialize;
use taxiway_plugin::{
    Context, Job, Metadata, Problems, Validate, ValidateError, Value, export, json, read_settings, settings,
};

struct BatchLimit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The largest batch that may run, in examples.
    max_batch_size: u64,
}

/// The part of a job's configuration that this plugin looks at.
#[derive(Deserialize)]
struct Config {
    batch_size: Option<u64>,
}

impl Validate for BatchLimit {
    fn validate(job: &Job, _context: &Context) -> Result<Problems, ValidateError> {
        let settings: Settings = settings()?;
        let config: Config = job.config()?;
        let mut problems = Problems::new();
        if let Some(batch_size) = config.batch_size
            && batch_size > settings.max_batch_size
        {
            let limit = settings.max_batch_size;
            problems
                .error(
                    "/batch_size",
                    "batch-too-large",
                    format!("a batch of {batch_size} is over the limit of {limit}"),
                )
                .help(format!("use at most {limit}, with gradient accumulation for the rest"));
        }
        Ok(problems)
    }
}

impl Metadata for BatchLimit {
    fn settings_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {"max_batch_size": {"type": "integer", "minimum": 1}},
            "required": ["max_batch_size"],
            "additionalProperties": false,
        }))
    }

    fn check_settings(settings: &Value) -> Problems {
        let mut problems = Problems::new();
        if let Err(error) = read_settings::<Settings>(settings) {
            problems.error(&error.path, error.code(), &error.message).help("set `max_batch_size` under [settings]");
        }
        problems
    }
}

export!(BatchLimit: Validate + Metadata);

#[cfg(test)]
mod tests {
    use taxiway_plugin::testing::Host;

    use super::*;

    fn judge(config: Value) -> Result<Problems, ValidateError> {
        let host = Host::new().settings(json!({"max_batch_size": 64}));
        host.run(|| BatchLimit::validate(&Job::new("1", config), &Context::submission()))
    }

    #[test]
    fn a_batch_over_the_limit_is_refused() {
        let problems = judge(json!({"batch_size": 65})).expect("it can judge");
        assert!(problems.refuses());
        assert_eq!(problems.iter().next().map(|problem| problem.path.as_str()), Some("/batch_size"));
    }

    #[test]
    fn a_batch_within_the_limit_and_no_batch_at_all_may_run() {
        assert_eq!(judge(json!({"batch_size": 64})), Ok(Problems::new()));
        assert_eq!(judge(json!({})), Ok(Problems::new()));
    }

    #[test]
    fn a_batch_that_is_no_number_is_refused() {
        assert!(matches!(judge(json!({"batch_size": "all"})), Err(ValidateError::Refused(_))));
    }

    #[test]
    fn settings_without_a_limit_keep_it_from_loading() {
        assert!(BatchLimit::check_settings(&json!({})).refuses());
    }
}
