//! `metadata`: who the plugin is, and whether its settings are right. Called once, when it is loaded.

use super::rewrite::holds_secret;
use crate::bindings::metadata::exports::taxiway::plugin::metadata as wit;
use crate::bindings::types::Severity;
use crate::call::{Call, Failure};
use crate::plugin::Plugin;
use crate::secret::Secrets;
use crate::view::CallError;
use futures_util::FutureExt;
use serde_json::Value;

/// What a plugin says of itself, made safe to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    pub version: String,
    pub summary: String,
    /// JSON Schema of its settings; what is no JSON object counts as none.
    pub settings_schema: Option<Value>,
    /// What is wrong with the settings, one sentence each; the first list keeps the plugin from loading.
    pub setting_errors: Vec<String>,
    pub setting_warnings: Vec<String>,
}

/// The longest schema that is shown, in bytes: it is part of every list of plugins.
const SCHEMA_LIMIT: usize = 16 << 10;

fn settings_schema(text: &str, secrets: &Secrets) -> Option<Value> {
    let text = Some(text).filter(|text| text.len() <= SCHEMA_LIMIT)?;
    let schema = serde_json::from_str(&secrets.redact(text)).ok().filter(Value::is_object)?;
    // JSON has more than one way to write a string: what is one of its secrets when it is read is not shown.
    (!holds_secret(&schema, secrets)).then_some(schema)
}

impl Plugin {
    /// Its description; none when it has no `metadata`.
    pub(crate) async fn describe(&self) -> Result<Option<Description>, CallError> {
        let mut call = Call::begin_metadata(self);
        let result = self.described(&mut call).await;
        call.end(result).result
    }

    async fn described(&self, call: &mut Call<'_>) -> Result<Option<Description>, Failure> {
        let loaded = call.loaded()?;
        let Some(hook) = loaded.hooks.metadata.clone() else { return Ok(None) };
        let settings = loaded.settings.as_ref().to_owned();
        let (description, problems) = call
            .run(loaded.timeout.answer, move |store| {
                async move {
                    let instance = hook.instantiate_async(&mut *store).await?;
                    store.data_mut().turn.instances_are_made();
                    let metadata = instance.taxiway_plugin_metadata();
                    let description: wit::Description = metadata.call_describe(&mut *store).await?;
                    let problems = metadata.call_check_settings(&mut *store, &settings).await?;
                    Ok((description, problems))
                }
                .boxed()
            })
            .await?;
        let safe = |text: &str, limit| loaded.secrets.safe(text, limit);
        let mut described = Description {
            version: safe(&description.version, 64),
            summary: safe(&description.summary, 300),
            settings_schema: settings_schema(&description.settings_schema, &loaded.secrets),
            ..Description::default()
        };
        // As many as a person reads.
        for problem in problems.iter().take(100) {
            let place = if problem.path.is_empty() {
                "settings".to_owned()
            } else {
                format!("settings{}", safe(&problem.path, 192))
            };
            let help = problem.help.as_deref().map_or_else(String::new, |help| format!(" ({})", safe(help, 256)));
            let sentence = format!("{place}: {}{help}", safe(&problem.message, 512));
            match problem.severity {
                Severity::Error => described.setting_errors.push(sentence),
                Severity::Warning | Severity::Info => described.setting_warnings.push(sentence),
            }
        }
        Ok(Some(described))
    }
}
