//! `webhook`: tells a URL how a job ended, signed as [Standard Webhooks] asks.
//!
//! ```toml
//! bundled = "webhook"
//! http = ["https://example.org"]
//!
//! [settings]
//! url = "https://example.org/hooks/training"
//!
//! [secrets]
//! signing_key = { env = "TRAINING_WEBHOOK_KEY" }
//! ```
//!
//! The receiver gets a POST with `webhook-id` (the same for every try of a delivery), `webhook-timestamp` and
//! `webhook-signature`. Any answer from 200 to 299 settles the delivery; 410 ends it for good; after every other one,
//! and after none at all, it is tried again.
//!
//! [Standard Webhooks]: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

mod answer;
mod payload;
mod settings;
mod signature;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taxiway_plugin::{
    Complete, Delivery, End, HookError, Job, Metadata, Outcome, Problems, Value, debug, export, http, secret,
};

use settings::{HeaderValue, SIGNING_KEY, Settings};
use signature::Key;

/// An answer's body is only quoted in a message.
const ANSWER_LIMIT_BYTES: usize = 512;

struct Webhook;

impl Complete for Webhook {
    fn completed(job: &Job, outcome: &Outcome, delivery: &Delivery) -> Result<(), HookError> {
        let settings: Settings = taxiway_plugin::settings()?;
        if let Some(reason) = unwanted(&settings, outcome) {
            debug!("no webhook for job {}: {reason}", job.id);
            return Ok(());
        }

        let body = payload::of(job, outcome, settings.include_log_tail).to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let request = sign(request(&settings)?, &settings, &delivery.id, now, &body)?.body(body);
        answer::judge(&request.send()?, now)
    }
}

/// Why the settings do not ask for this outcome; `None` when they do.
fn unwanted(settings: &Settings, outcome: &Outcome) -> Option<&'static str> {
    if outcome.will_retry && !settings.retries {
        return Some("another attempt follows, and `retries` is off");
    }
    let never_started = outcome.end == End::Cancelled && outcome.started_at_ms.is_none();
    if never_started && !settings.cancelled_while_queued {
        return Some("it was cancelled before it started, and `cancelled_while_queued` is off");
    }
    if !settings.wants(outcome.end) {
        return Some("`events` leaves it out");
    }
    None
}

fn request(settings: &Settings) -> Result<http::Request, HookError> {
    let mut request = http::post(&settings.url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("Taxiway-Webhook/", env!("CARGO_PKG_VERSION")))
        .timeout(Duration::from_secs(settings.timeout_seconds))
        .response_limit(ANSWER_LIMIT_BYTES);
    for (name, value) in &settings.headers {
        let value = match value {
            HeaderValue::Text(text) => text.clone(),
            HeaderValue::Secret { secret: granted } => secret(granted).ok_or_else(|| {
                HookError::permanent(
                    "secret-missing",
                    format!("the header {name} needs the secret `{granted}`, which the manifest does not grant"),
                )
            })?,
        };
        request = request.header(name, value.trim());
    }
    Ok(request)
}

fn sign(
    request: http::Request,
    settings: &Settings,
    id: &str,
    timestamp: u64,
    body: &str,
) -> Result<http::Request, HookError> {
    let request = request.header("webhook-id", id).header("webhook-timestamp", timestamp.to_string());
    if settings.unsigned {
        return Ok(request);
    }
    let key = secret(SIGNING_KEY).ok_or_else(|| {
        HookError::permanent(
            "signing-key-missing",
            format!("the manifest grants no secret `{SIGNING_KEY}`: add it under [secrets]"),
        )
    })?;
    let key = Key::parse(&key).map_err(|error| HookError::permanent("signing-key-malformed", error.to_string()))?;
    Ok(request.header("webhook-signature", key.sign(id, timestamp, body)))
}

impl Metadata for Webhook {
    fn settings_schema() -> Option<Value> {
        Some(settings::schema())
    }

    fn check_settings(settings: &Value) -> Problems {
        settings::check(settings)
    }
}

export!(Webhook: Complete + Metadata);

#[cfg(test)]
mod tests;
