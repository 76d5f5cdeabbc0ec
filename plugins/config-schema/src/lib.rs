//! `config-schema`: refuses configurations that do not fit their profile's JSON Schema, with everything that is wrong.
//!
//! ```toml
//! bundled = "config-schema"
//!
//! [settings.schema]                    # for every job whose profile has none of its own
//! type = "object"
//!
//! [settings.profiles.lora]             # for jobs of the profile `lora`
//! required = ["model"]
//! properties.model = { type = "string" }
//!
//! [settings.profiles]
//! full = '{"required": ["dataset"]}'   # a schema may also be JSON text
//! ```

mod settings;
mod violation;

use taxiway_plugin::{Context, Job, Metadata, Problems, Validate, ValidateError, Value, export, json};

use settings::Settings;

struct ConfigSchema;

impl Validate for ConfigSchema {
    fn validate(job: &Job, _context: &Context) -> Result<Problems, ValidateError> {
        let settings: Settings = taxiway_plugin::settings()?;
        let Some(schema) = settings.schema_for(job.profile())? else { return Ok(Problems::new()) };
        let validator = settings::compile(&schema)?;
        let mut problems = Problems::new();
        for error in validator.iter_errors(job.raw_config()) {
            violation::describe(&schema, &error, &mut problems);
        }
        Ok(problems)
    }
}

impl Metadata for ConfigSchema {
    fn settings_schema() -> Option<Value> {
        let schema = json!({"type": ["object", "boolean", "string"], "description": "a JSON Schema, or its JSON text"});
        Some(json!({
            "type": "object",
            "properties": {
                "schema": schema,
                "profiles": {"type": "object", "additionalProperties": schema},
            },
            "additionalProperties": false,
        }))
    }

    fn check_settings(settings: &Value) -> Problems {
        settings::check(settings)
    }
}

export!(ConfigSchema: Validate + Metadata);

#[cfg(test)]
mod tests;
