//! What to fill in, for whom.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Map;
use taxiway_plugin::{Problems, Value, json, pointer, read_settings};

use crate::output_dir::{self, PLACEHOLDERS};

/// Where the output directory goes unless the settings say otherwise.
const OUTPUT_KEY: &str = "/output_dir";

/// The plugin's `[settings]`: for all jobs, and beside that by profile.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    defaults: Option<Map<String, Value>>,
    output_dir: Option<Choice>,
    output_key: Option<String>,
    output_overwrite: Option<bool>,
    seed_key: Option<Choice>,
    #[serde(default)]
    profiles: BTreeMap<String, Profile>,
}

/// What a profile says goes before what is said for all jobs.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Profile {
    defaults: Option<Map<String, Value>>,
    output_dir: Option<Choice>,
    output_key: Option<String>,
    output_overwrite: Option<bool>,
    seed_key: Option<Choice>,
}

/// A text, or `false` to switch off for one profile what is on for all.
#[derive(Deserialize, Clone)]
#[serde(try_from = "Value")]
enum Choice {
    Off,
    To(String),
}

impl TryFrom<Value> for Choice {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value {
            Value::Bool(false) => Ok(Self::Off),
            Value::String(text) => Ok(Self::To(text)),
            _ => Err("must be a text, or false to switch it off"),
        }
    }
}

/// What is to be done for one job.
pub struct Plan<'a> {
    /// The more special ones first.
    pub defaults: Vec<&'a Map<String, Value>>,
    pub output_dir: Option<&'a str>,
    pub output_key: &'a str,
    pub output_overwrite: bool,
    pub seed_key: Option<&'a str>,
}

impl Settings {
    /// What is to be done for a job of this profile.
    pub fn plan_for(&self, profile: Option<&str>) -> Plan<'_> {
        let own = profile.and_then(|name| self.profiles.get(name));
        Plan {
            defaults: own.and_then(|own| own.defaults.as_ref()).into_iter().chain(&self.defaults).collect(),
            output_dir: chosen(own.and_then(|own| own.output_dir.as_ref()), self.output_dir.as_ref()),
            output_key: own
                .and_then(|own| own.output_key.as_deref())
                .or(self.output_key.as_deref())
                .unwrap_or(OUTPUT_KEY),
            output_overwrite: own.and_then(|own| own.output_overwrite).or(self.output_overwrite).unwrap_or(false),
            seed_key: chosen(own.and_then(|own| own.seed_key.as_ref()), self.seed_key.as_ref()),
        }
    }
}

fn chosen<'a>(own: Option<&'a Choice>, all: Option<&'a Choice>) -> Option<&'a str> {
    match own.or(all)? {
        Choice::Off => None,
        Choice::To(text) => Some(text),
    }
}

/// The JSON Schema of the settings.
pub fn schema() -> Value {
    let place = "a JSON Pointer into the configuration";
    let keys = json!({
        "defaults": {"type": "object", "description": "merged into the configuration where keys are missing"},
        "output_dir": {
            "type": ["string", "boolean"],
            "description": "the job's output directory; {job_id}, {name}, {profile}, {external_id} and {job_dir} are \
                            filled in; false for none",
        },
        "output_key": {"type": "string", "description": place, "default": OUTPUT_KEY},
        "output_overwrite": {
            "type": "boolean", "default": false, "description": "also where the configuration names a directory",
        },
        "seed_key": {"type": ["string", "boolean"], "description": format!("{place} for a seed; false for none")},
    });
    let mut all = keys.clone();
    all["profiles"] = json!({
        "type": "object",
        "additionalProperties": {"type": "object", "properties": keys, "additionalProperties": false},
    });
    json!({"type": "object", "properties": all, "additionalProperties": false})
}

/// Says what is wrong with the settings.
pub fn check(value: &Value) -> Problems {
    let mut problems = Problems::new();
    let settings: Settings = match read_settings(value) {
        Ok(settings) => settings,
        Err(error) => {
            problems.error(&error.path, error.code(), &error.message).help(
                "the settings are `defaults`, `output_dir`, `output_key`, `output_overwrite`, `seed_key`, and the same \
                 under [settings.profiles.NAME]",
            );
            return problems;
        }
    };
    let mut check = |at: &str, output_dir: &Option<Choice>, output_key: &Option<String>, seed_key: &Option<Choice>| {
        if let Some(Choice::To(template)) = output_dir {
            check_template(&format!("{at}/output_dir"), template, &mut problems);
        }
        if let Some(place) = output_key {
            check_pointer(&format!("{at}/output_key"), place, &mut problems);
        }
        if let Some(Choice::To(place)) = seed_key {
            check_pointer(&format!("{at}/seed_key"), place, &mut problems);
        }
    };
    check("", &settings.output_dir, &settings.output_key, &settings.seed_key);
    for (name, profile) in &settings.profiles {
        let at = pointer::join("/profiles", name);
        check(&at, &profile.output_dir, &profile.output_key, &profile.seed_key);
    }
    problems
}

fn check_template(path: &str, template: &str, problems: &mut Problems) {
    for name in output_dir::unknown(template) {
        let nearest = PLACEHOLDERS
            .into_iter()
            .max_by(|one, other| strsim::jaro_winkler(name, one).total_cmp(&strsim::jaro_winkler(name, other)))
            .filter(|candidate| strsim::jaro_winkler(name, candidate) > 0.8);
        let problem = problems.error(path, "unknown-placeholder", format!("{{{name}}} does not exist"));
        problem.help(match nearest {
            Some(nearest) => format!("did you mean {{{nearest}}}?"),
            None => "there are {job_id}, {name}, {profile}, {external_id} and {job_dir}".to_owned(),
        });
    }
}

fn check_pointer(path: &str, place: &str, problems: &mut Problems) {
    if pointer::keys(place).is_none_or(|keys| keys.is_empty()) {
        problems
            .error(path, "no-pointer", format!("`{place}` is no JSON Pointer to a key"))
            .help(format!("write it as `/{}`", place.trim_matches('/').replace('.', "/")));
    }
}
