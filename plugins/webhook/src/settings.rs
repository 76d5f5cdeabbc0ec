//! Where to send what.

use std::collections::BTreeMap;

use serde::Deserialize;
use taxiway_plugin::{End, Problems, Value, json, pointer, read_settings, secret};

use crate::signature::Key;

/// The name of the secret that signs.
pub const SIGNING_KEY: &str = "signing_key";

/// Below the 30 s that the server gives a completion.
const TIMEOUT_SECONDS: u64 = 20;

/// Headers that the request has anyhow, or that belong to the connection (wasi:http forbids those).
const RESERVED_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// The plugin's `[settings]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The receiver.
    pub url: String,
    /// Further header lines.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderValue>,
    /// Which ends it is told of.
    #[serde(default = "all_events")]
    events: Vec<Event>,
    /// Also of jobs that were cancelled before they started.
    #[serde(default)]
    pub cancelled_while_queued: bool,
    /// Also of attempts after which another follows.
    #[serde(default)]
    pub retries: bool,
    /// Sends the end of the log too.
    #[serde(default)]
    pub include_log_tail: bool,
    /// Sends without a signature, to receivers that cannot check one.
    #[serde(default)]
    pub unsigned: bool,
    /// For connecting, for the first byte, and between two bytes.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
}

/// One kind of end.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum Event {
    #[serde(rename = "job.completed")]
    Completed,
    #[serde(rename = "job.failed")]
    Failed,
    #[serde(rename = "job.cancelled")]
    Cancelled,
}

/// A header's value, in clear or from a secret of the manifest.
#[derive(Deserialize)]
#[serde(try_from = "Value")]
pub enum HeaderValue {
    Text(String),
    Secret { secret: String },
}

impl TryFrom<Value> for HeaderValue {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Object(table) if table.len() == 1 => match table.get("secret") {
                Some(Value::String(secret)) => Ok(Self::Secret { secret: secret.clone() }),
                _ => Err("a header's table is { secret = \"NAME\" }"),
            },
            _ => Err("a header is a text, or { secret = \"NAME\" }"),
        }
    }
}

fn all_events() -> Vec<Event> {
    vec![Event::Completed, Event::Failed, Event::Cancelled]
}

fn timeout_seconds() -> u64 {
    TIMEOUT_SECONDS
}

impl Settings {
    /// True when the receiver is to be told of this end.
    pub fn wants(&self, end: End) -> bool {
        self.events.contains(&match end {
            End::Completed => Event::Completed,
            End::Failed => Event::Failed,
            End::Cancelled => Event::Cancelled,
        })
    }
}

/// The JSON Schema of the settings.
pub fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["url"],
        "properties": {
            "url": {"type": "string", "format": "uri", "description": "the receiver, http:// or https://"},
            "headers": {
                "type": "object",
                "description": "further header lines; a value may be { secret = \"NAME\" }",
                "additionalProperties": {"type": ["string", "object"]},
            },
            "events": {
                "type": "array",
                "items": {"enum": ["job.completed", "job.failed", "job.cancelled"]},
                "description": "which ends it is told of (all)",
            },
            "cancelled_while_queued": {
                "type": "boolean", "default": false, "description": "also jobs that were cancelled before they started",
            },
            "retries": {
                "type": "boolean", "default": false, "description": "also attempts after which another follows",
            },
            "include_log_tail": {"type": "boolean", "default": false, "description": "send the end of the log"},
            "unsigned": {
                "type": "boolean", "default": false, "description": "send without a signature, needs no signing_key",
            },
            "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": 600, "default": TIMEOUT_SECONDS},
        },
        "additionalProperties": false,
    })
}

/// Says what is wrong with the settings, and with the secrets that they need.
pub fn check(value: &Value) -> Problems {
    let mut problems = Problems::new();
    let settings: Settings = match read_settings(value) {
        Ok(settings) => settings,
        Err(error) => {
            let problem = problems.error(&error.path, error.code(), &error.message);
            if error.path == "/url" {
                problem.help("set `url` under [settings]: where the webhooks go");
            }
            return problems;
        }
    };
    check_url(&settings.url, &mut problems);
    if settings.events.is_empty() {
        problems
            .error("/events", "no-events", "an empty list asks for nothing")
            .help("leave it out for all, or set `enabled = false` in the manifest");
    }
    if !(1..=600).contains(&settings.timeout_seconds) {
        problems.error("/timeout_seconds", "timeout-out-of-range", "it must be between 1 and 600");
    }
    for (name, header) in &settings.headers {
        check_header(name, header, &mut problems);
    }
    if !settings.unsigned {
        check_key(&mut problems);
    }
    problems
}

fn check_url(url: &str, problems: &mut Problems) {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match authority {
        None => {
            problems.error("/url", "url-malformed", format!("`{url}` does not begin with https:// or http://"));
        }
        Some("") => {
            problems.error("/url", "url-malformed", format!("`{url}` names no host"));
        }
        Some(authority) if authority.contains('@') => {
            problems
                .error("/url", "url-malformed", "a user name or password in the URL is not sent")
                .help("use `headers` with a secret: authorization = { secret = \"NAME\" }");
        }
        Some(_) if url.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            problems.error("/url", "url-malformed", "there is white space in the URL");
        }
        Some(_) => {}
    }
}

fn check_header(name: &str, header: &HeaderValue, problems: &mut Problems) {
    let path = pointer::join("/headers", name);
    let lower = name.to_ascii_lowercase();
    // A token of RFC 9110, 5.6.2.
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        problems.error(path, "header-malformed", format!("`{name}` is no header name"));
    } else if RESERVED_HEADERS.contains(&lower.as_str()) || lower.starts_with("webhook-") {
        problems.error(path, "header-reserved", format!("`{name}` cannot be set: the request has its own"));
    } else {
        match header {
            HeaderValue::Secret { secret: granted } if secret(granted).is_none() => {
                problems
                    .error(path, "secret-missing", format!("the manifest grants no secret `{granted}`"))
                    .help(format!("add it under [secrets]: {granted} = {{ env = \"…\" }}"));
            }
            HeaderValue::Text(text) if text.chars().any(char::is_control) => {
                problems.error(path, "header-malformed", "its value has control characters");
            }
            _ => {}
        }
    }
}

fn check_key(problems: &mut Problems) {
    match secret(SIGNING_KEY).map(|key| Key::parse(&key)) {
        None => {
            problems
                .error("", "signing-key-missing", format!("the manifest grants no secret `{SIGNING_KEY}`"))
                .help(format!(
                    "add [secrets] {SIGNING_KEY} = {{ env = \"…\" }} or {{ file = \"…\" }}; for receivers that check no \
                     signature set `unsigned = true`"
                ));
        }
        Some(Err(error)) => {
            problems
                .error("", "signing-key-malformed", error.to_string())
                .help("make one with: echo whsec_$(openssl rand -base64 32)");
        }
        Some(Ok(_)) => {}
    }
}
