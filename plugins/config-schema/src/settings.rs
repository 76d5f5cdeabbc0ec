//! Which schema a job is judged by.

use std::{borrow::Cow, collections::BTreeMap};

use jsonschema::Validator;
use serde::Deserialize;
use taxiway_plugin::{HookError, Problems, Value, pointer, read_settings};

/// The plugin's `[settings]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// For jobs whose profile has none of its own.
    schema: Option<Value>,
    /// By profile name.
    #[serde(default)]
    profiles: BTreeMap<String, Value>,
}

impl Settings {
    /// The schema for a profile's jobs, or `None` when nothing is asked of them.
    pub fn schema_for(&self, profile: Option<&str>) -> Result<Option<Cow<'_, Value>>, HookError> {
        let own = profile.and_then(|name| self.profiles.get(name));
        own.or(self.schema.as_ref()).map(|value| parse(value).map_err(broken)).transpose()
    }
}

/// A schema that is written as text is its JSON.
fn parse(value: &Value) -> Result<Cow<'_, Value>, String> {
    match value {
        Value::String(text) => {
            serde_json::from_str(text).map(Cow::Owned).map_err(|error| format!("it is no JSON: {error}"))
        }
        value => Ok(Cow::Borrowed(value)),
    }
}

/// Compiles a schema. References to other documents are refused: a verdict must not hang on the network.
pub fn compile(schema: &Value) -> Result<Validator, HookError> {
    build(schema).map_err(|(_, reason)| broken(reason))
}

/// The error is the place in the schema and what is wrong there.
fn build(schema: &Value) -> Result<Validator, (String, String)> {
    jsonschema::options()
        .offline()
        .should_validate_formats(true)
        .build(schema)
        .map_err(|error| (error.instance_path().to_string(), error.to_string()))
}

fn broken(reason: String) -> HookError {
    HookError::permanent("broken-schema", format!("a schema in the settings is broken: {reason}"))
}

/// Compiles every schema and names the broken ones.
pub fn check(value: &Value) -> Problems {
    let mut problems = Problems::new();
    let settings: Settings = match read_settings(value) {
        Ok(settings) => settings,
        Err(error) => {
            problems
                .error(&error.path, error.code(), &error.message)
                .help("`schema` is for all jobs, [settings.profiles.NAME] for those of one profile");
            return problems;
        }
    };
    if let Some(schema) = &settings.schema {
        check_schema("/schema", schema, &mut problems);
    }
    for (name, schema) in &settings.profiles {
        check_schema(&pointer::join("/profiles", name), schema, &mut problems);
    }
    if settings.schema.is_none() && settings.profiles.is_empty() {
        problems
            .warning("", "no-schema", "there is no schema, so every configuration is accepted")
            .help("add [settings.schema], or [settings.profiles.NAME] for the jobs of one profile");
    }
    problems
}

fn check_schema(path: &str, value: &Value, problems: &mut Problems) {
    let schema = match parse(value) {
        Ok(schema) => schema,
        Err(reason) => {
            problems.error(path, "broken-schema", reason).help("write the schema as a table, or as JSON text");
            return;
        }
    };
    if let Err((place, reason)) = build(&schema) {
        // Text has no places inside it that the settings could name.
        let place = if value.is_string() { path.to_owned() } else { format!("{path}{place}") };
        problems
            .error(place, "broken-schema", reason)
            .help("references must stay within the schema: put shared parts under `$defs`");
    }
}
