//! `rewrite`: what should the job's configuration become?

use super::{context_for_guest, job_for_guest, no_such_hook};
use crate::bindings::rewrite::exports::taxiway::plugin::rewrite as wit;
use crate::call::{Call, Failure};
use crate::grant::variable;
use crate::patch;
use crate::plugin::{Loaded, Plugin};
use crate::secret::Secrets;
use crate::text;
use crate::view::{Called, Context, FailureKind, Hook, JobView, Rewritten, Variable};
use futures_util::FutureExt;
use serde_json::Value;

/// Labels that one rewriter may set, and their sizes in bytes: what a person filters by, not a second configuration.
const MOST_LABELS: usize = 64;
const LABEL_NAME_LIMIT: usize = 128;
const LABEL_VALUE_LIMIT: usize = 1024;

/// Environment variables that one rewriter may set, and the size of a value. Linux takes 128 KiB for one variable.
const MOST_VARIABLES: usize = 256;
const VARIABLE_LIMIT: usize = 32 << 10;

/// From this size of the configuration on, as it was or as it becomes, parsing and comparing is left to a thread that may block: below, it takes
/// less than a millisecond.
const LARGE: usize = 64 << 10;

impl Plugin {
    /// Asks the plugin what the job's configuration becomes; none when it has nothing to change.
    ///
    /// Cancel-safe: dropping the future ends the call.
    pub async fn rewrite(&self, job: &JobView, context: &Context) -> Called<Option<Rewritten>> {
        let mut call = Call::begin(self, Hook::Rewrite, &job.id, context.dry_run);
        let result = rewritten(&mut call, job, context).await;
        call.end(result)
    }
}

async fn rewritten(call: &mut Call<'_>, job: &JobView, context: &Context) -> Result<Option<Rewritten>, Failure> {
    let loaded = call.loaded()?;
    let hook = loaded.hooks.rewrite.clone().ok_or_else(|| no_such_hook(Hook::Rewrite))?;
    let (for_guest, context) = (job_for_guest(job), context_for_guest(context));
    let given = for_guest.config.len();
    let answer = call
        .run(loaded.timeout.answer, move |store| {
            async move {
                let instance = hook.instantiate_async(&mut *store).await?;
                store.data_mut().turn.instances_are_made();
                instance.taxiway_plugin_rewrite().call_rewrite(&mut *store, &for_guest, &context).await
            }
            .boxed()
        })
        .await?;
    match answer {
        Ok(None) => Ok(None),
        Ok(Some(change)) => checked(loaded, job, given, change).await.map(Some),
        Err(error) => Err(call.hook_error(&error)),
    }
}

/// `given` is the size of the configuration as it was.
async fn checked(loaded: &Loaded, job: &JobView, given: usize, change: wit::Change) -> Result<Rewritten, Failure> {
    let env = checked_env(loaded, change.env)?;
    let labels = checked_labels(loaded, change.labels)?;
    let (config, patch) = match change.config {
        None => (None, Value::Array(Vec::new())),
        Some(text) => {
            if text.len().max(given) < LARGE {
                compare(&job.config, &text, &loaded.secrets)?
            } else {
                let (old, secrets) = (job.config.clone(), loaded.secrets.clone());
                tokio::task::spawn_blocking(move || compare(&old, &text, &secrets))
                    .await
                    .map_err(|_| Failure::new(FailureKind::HostPanic, "comparing the configurations failed"))??
            }
        }
    };
    Ok(Rewritten { config, env, labels, patch })
}

/// The new configuration, none when it is the old one, and the way from one to the other.
fn compare(old: &Value, text: &str, secrets: &Secrets) -> Result<(Option<Value>, Value), Failure> {
    let new: Value = serde_json::from_str(text)
        .map_err(|error| Failure::malformed(format!("its configuration is no JSON: {error}")))?;
    if !new.is_object() {
        return Err(Failure::malformed("its configuration is no JSON object"));
    }
    // As it is written, and as it is read: JSON has more than one way to write a string.
    if secrets.found_in(text) || holds_secret(&new, secrets) {
        return Err(Failure::malformed(
            "its configuration holds one of its secrets; a secret can be set as an environment variable with secret = true",
        ));
    }
    let patch = patch::between(old, &new);
    Ok(if new == *old { (None, patch) } else { (Some(new), patch) })
}

pub(super) fn holds_secret(value: &Value, secrets: &Secrets) -> bool {
    match value {
        Value::String(text) => secrets.found_in(text),
        // A secret may look like a number.
        Value::Number(number) => secrets.found_in(&number.to_string()),
        Value::Array(elements) => elements.iter().any(|element| holds_secret(element, secrets)),
        Value::Object(members) => {
            members.iter().any(|(name, value)| secrets.found_in(name) || holds_secret(value, secrets))
        }
        Value::Null | Value::Bool(_) => false,
    }
}

fn checked_env(loaded: &Loaded, env: Vec<wit::Variable>) -> Result<Vec<Variable>, Failure> {
    if env.len() > MOST_VARIABLES {
        return Err(Failure::malformed(format!("it sets more than {MOST_VARIABLES} environment variables")));
    }
    env.into_iter()
        .map(|set| {
            let shown = text::clean(&set.name, 100);
            if !variable::is_variable_name(&set.name) {
                return Err(Failure::malformed(format!("`{shown}` is no name for an environment variable")));
            }
            if loaded.secrets.found_in(&set.name) {
                return Err(Failure::malformed("the name of an environment variable that it sets holds one of its secrets"));
            }
            if !loaded.env.iter().any(|granted| granted.allows(&set.name)) {
                let message = format!("it sets the environment variable {shown}, which is not granted; the manifest can: env = [\"{shown}\"]");
                return Err(Failure::new(FailureKind::EnvDenied, message));
            }
            if set.value.contains('\0') || set.value.len() > VARIABLE_LIMIT {
                return Err(Failure::malformed(format!("the value of {shown} is over {} KiB or has a NUL", VARIABLE_LIMIT >> 10)));
            }
            let secret = set.secret || loaded.secrets.found_in(&set.value);
            Ok(Variable { name: set.name, value: set.value, secret })
        })
        .collect()
}

fn checked_labels(loaded: &Loaded, labels: Vec<(String, String)>) -> Result<Vec<(String, String)>, Failure> {
    if labels.len() > MOST_LABELS {
        return Err(Failure::malformed(format!("it sets more than {MOST_LABELS} labels")));
    }
    labels
        .into_iter()
        .map(|(name, value)| {
            let safe = text::clean(&name, LABEL_NAME_LIMIT);
            if name.is_empty() || safe != name {
                return Err(Failure::malformed(format!(
                    "`{safe}` is no name for a label: 1 to {LABEL_NAME_LIMIT} bytes without control characters"
                )));
            }
            if loaded.secrets.found_in(&name) {
                return Err(Failure::malformed("the name of a label holds one of its secrets"));
            }
            Ok((name, loaded.secrets.safe(&value, LABEL_VALUE_LIMIT)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_is_found_in_a_configuration_however_it_is_written() {
        let secrets =
            Secrets::new(vec![("KEY".into(), "hunter2-süß".into()), ("PIN".into(), "12345678".into())]).unwrap();
        for text in [
            r#"{"k": "my hunter2-süß"}"#,
            r#"{"k": ["\u0068unter2-süß"]}"#,
            r#"{"k": {"hunter2-s\u00fc\u00df": 1}}"#,
            r#"{"k": 1.2345678e7, "l": 12345678}"#,
        ] {
            assert!(compare(&json!({}), text, &secrets).is_err(), "{text}");
        }
        let harmless = compare(&json!({}), r#"{"k": "hunter2"}"#, &secrets);
        assert!(matches!(harmless, Ok((Some(_), _))));
    }
}
