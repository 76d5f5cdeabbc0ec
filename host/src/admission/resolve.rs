//! From a draft to a complete specification, and what is wrong with it whatever plugins may say.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use taxiway_job::{
    ConfigFormat, EnvValue, JobId, JobSpec, LONGEST_ARGUMENTS, MOST_LEVELS, Problem, Retries, Severity,
    bytes_of_arguments, is_too_deep,
};

use super::{Draft, command};
use crate::config::Profile;
use crate::gpu::Inventory;

/// Who the problems of this file are from.
const TAXIWAY: &str = "taxiway";

/// DESIGN §3: an external id has at most this many characters.
const EXTERNAL_ID_CHARACTERS: usize = 128;

/// Longest name, and longest name and value of a label, in characters: a line of a table, with room to spare.
const NAME_CHARACTERS: usize = 256;

/// A job that takes longer than this to end once it is told to has no way to be ended.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// More attempts than that are no accident of the weather.
const MOST_RETRIES: u32 = 1000;

/// Names of known profiles that a message lists.
const PROFILES_NAMED: usize = 10;

/// Places of values that do not fit a language that are told one by one.
const UNWRITABLE_NAMED: usize = 20;

/// A draft with every default filled in.
pub(super) struct Resolved {
    pub(super) id: JobId,
    pub(super) spec: JobSpec,
    pub(super) config: Map<String, Value>,
    pub(super) hold: bool,
    /// Whether plugins see it: not when it names a profile that there is not, because which of them do is a matter of that, nor
    /// when its configuration is deeper than they could read.
    pub(super) is_judged: bool,
    pub(super) problems: Vec<Problem>,
}

/// Fills in the profile and the defaults. What the submission says wins over its profile, and that over the service.
pub(super) fn resolve(
    draft: Draft,
    profiles: &BTreeMap<String, Profile>,
    grace: Duration,
    gpus: &Inventory,
) -> Resolved {
    let mut problems = draft.problems;
    let profile = draft.profile.as_deref().and_then(|name| profiles.get(name));
    let known_profile = draft.profile.is_none() || profile.is_some();
    if let Some(name) = draft.profile.as_deref().filter(|_| !known_profile) {
        problems.push(unknown_profile(name, profiles));
    }
    let command = draft.command.or_else(|| profile.map(|profile| profile.command.clone())).unwrap_or_default();
    if known_profile {
        check_command(&command, &mut problems);
    }
    let defaults = profile.map(|profile| &profile.defaults);
    let spec = JobSpec {
        name: draft.name.or_else(|| draft.profile.clone()).unwrap_or_else(|| name_of(&command)),
        command,
        cwd: draft.cwd.or_else(|| profile.and_then(|profile| profile.cwd.clone())),
        env: over(profile.map(|profile| &profile.env), draft.env),
        labels: over(defaults.map(|defaults| &defaults.labels), draft.labels),
        gpus: draft.gpus.or_else(|| defaults.and_then(|defaults| defaults.gpus)).unwrap_or(1),
        priority: draft.priority.or_else(|| defaults.and_then(|defaults| defaults.priority)).unwrap_or(0),
        time_limit: draft.time_limit.or_else(|| defaults.and_then(|defaults| defaults.time_limit)),
        grace: draft.grace.or_else(|| defaults.and_then(|defaults| defaults.grace)).unwrap_or(grace),
        external_id: draft.external_id,
        config_format: draft.config_format.or_else(|| profile.map(|profile| profile.config_format)).unwrap_or_default(),
        process: profile.map(Profile::process).unwrap_or_default(),
        profile: draft.profile,
        terms: draft.terms,
        array: draft.array,
    };
    check_gpus(&spec, gpus, &mut problems);
    check_spec(&spec, &mut problems);
    let mut config = draft.config;
    let too_deep = is_too_deep(&config);
    if too_deep {
        problems.push(error(
            "too-deep",
            format!("the configuration has more than {MOST_LEVELS} levels of lists and objects"),
        ));
        // Whoever is told what was judged could not read it.
        config.clear();
    }
    Resolved { id: draft.id, spec, config, hold: draft.hold, is_judged: known_profile && !too_deep, problems }
}

/// `upper` over `lower`.
fn over<V: Clone>(lower: Option<&BTreeMap<String, V>>, upper: BTreeMap<String, V>) -> BTreeMap<String, V> {
    match lower {
        Some(lower) if !lower.is_empty() => {
            let mut both = lower.clone();
            both.extend(upper);
            both
        }
        _ => upper,
    }
}

/// What people would call it: the script of an interpreter, else the program.
fn name_of(command: &[String]) -> String {
    let file_name = |path: &String| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    let program = command.first().and_then(file_name).unwrap_or_default();
    let interprets = ["python", "bash", "sh", "node", "perl", "ruby", "julia", "Rscript"]
        .iter()
        .any(|name| program.starts_with(name));
    let script = command.get(1).filter(|argument| interprets && !argument.starts_with('-')).and_then(file_name);
    let mut name = script.unwrap_or(program);
    if let Some((end, _)) = name.char_indices().nth(NAME_CHARACTERS) {
        name.truncate(end);
    }
    name
}

fn error(code: &str, message: impl Into<String>) -> Problem {
    Problem {
        plugin: TAXIWAY.to_owned(),
        severity: Severity::Error,
        path: String::new(),
        code: code.to_owned(),
        message: message.into(),
        help: None,
    }
}

fn with_help(problem: Problem, help: impl Into<String>) -> Problem {
    Problem { help: Some(help.into()), ..problem }
}

fn unknown_profile(name: &str, profiles: &BTreeMap<String, Profile>) -> Problem {
    let mut known: Vec<&str> = profiles.keys().map(String::as_str).collect();
    // Stable: equally near names stay in the order of the alphabet.
    known.sort_by_key(|known| strsim::damerau_levenshtein(known, name));
    let help = match known.len() {
        0 => format!("this server has no profiles: add [profiles.{name}] to its configuration, or submit a command"),
        count if count > PROFILES_NAMED => {
            format!("there are {count} profiles, the nearest are {}", known[..PROFILES_NAMED].join(", "))
        }
        _ => format!("the profiles are {}", known.join(", ")),
    };
    with_help(error("unknown-profile", format!("there is no profile `{name}`")), help)
}

fn check_command(arguments: &[String], problems: &mut Vec<Problem>) {
    let Some(program) = arguments.first() else {
        let problem = error("no-command", "the job has no command");
        problems.push(with_help(problem, "give `command` as a list of arguments, or a `profile` that has one"));
        return;
    };
    if program.is_empty() {
        problems.push(error("no-command", "the first argument of `command`, the program, is empty"));
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        problems.push(error("nul-byte", "an argument of `command` contains a NUL byte, which no program can be given"));
    }
    for (name, likely) in arguments.iter().flat_map(|argument| command::unknown(argument)) {
        let problem = error("unknown-placeholder", format!("`{{{name}}}` in `command` is no placeholder"));
        problems.push(match likely {
            Some(likely) => with_help(problem, format!("did you mean `{{{likely}}}`?")),
            // Many programs have patterns of their own.
            None => with_help(
                Problem { severity: Severity::Warning, ..problem },
                format!("it is passed on as it is; the placeholders are {{{}}}", command::PLACEHOLDERS.join("}, {")),
            ),
        });
    }
}

fn check_gpus(spec: &JobSpec, gpus: &Inventory, problems: &mut Vec<Problem>) {
    let (slots, are_counted) = (gpus.slot_count(), gpus.are_counted());
    // While GPUs cannot be counted, what there may be decides; the job waits until they can. None: nobody can tell what is too much.
    if gpus.most_slots().is_some_and(|most| spec.gpus > most) {
        let has = match slots {
            0 => "none".to_owned(),
            slots => slots.to_string(),
        };
        let has = if are_counted { has } else { format!("{has} beside those that cannot be read now") };
        let problem = error("too-many-gpus", format!("the job asks for {} GPUs and this server has {has}", spec.gpus));
        problems.push(with_help(problem, format!("ask for at most {slots}; `gpus: 0` is a job without GPUs")));
    }
    let terms = &spec.terms;
    if !terms.choose_gpus() {
        return;
    }
    if spec.gpus == 0 {
        let problem = error("no-gpus", "the job asks for no GPU (`gpus` is 0) and says which GPUs it may run on");
        problems.push(with_help(problem, "leave out `gpu_memory` and `gpu_uuids`, or set `gpus`"));
        return;
    }
    if !are_counted {
        // Those that are named may be among the missing.
        return;
    }
    let gpus = gpus.gpus();
    let there = || match &gpus[..] {
        [] => "this server has no GPUs, only virtual slots".to_owned(),
        gpus => format!("this server has {}", gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>().join(", ")),
    };
    let is_unknown = |uuid: &&String| !gpus.iter().any(|gpu| gpu.uuid == **uuid);
    let unknown: Vec<&str> = terms.gpu_uuids.iter().filter(is_unknown).map(String::as_str).collect();
    if !unknown.is_empty() {
        let message = format!("`gpu_uuids` names {}, which the queue does not have", unknown.join(", "));
        problems.push(with_help(error("unknown-gpu", message), there()));
        return;
    }
    let fit = gpus.iter().filter(|gpu| terms.allow_gpu(&gpu.uuid, gpu.memory_total_bytes)).count();
    if fit < spec.gpus as usize && spec.gpus <= slots {
        let message = format!(
            "the job asks for {} GPUs and {fit} of this server fit its `gpu_memory` and `gpu_uuids`",
            spec.gpus
        );
        problems.push(with_help(error("too-many-gpus", message), there()));
    }
}

fn check_spec(spec: &JobSpec, problems: &mut Vec<Problem>) {
    if !(-100..=100).contains(&spec.priority) {
        problems
            .push(error("priority-out-of-range", format!("`priority` is {} and goes from -100 to 100", spec.priority)));
    }
    let retries = &spec.terms.retries;
    if retries.max > MOST_RETRIES {
        problems
            .push(error("too-many-retries", format!("`retries.max` is {} and at most {MOST_RETRIES}", retries.max)));
    }
    if retries.backoff > Retries::LONGEST_BACKOFF {
        problems.push(error("backoff-out-of-range", "`retries.backoff` is longer than an hour, the longest pause"));
    }
    if spec.time_limit.is_some_and(|limit| limit.is_zero()) {
        problems.push(with_help(error("no-time", "`time_limit` is 0"), "leave it out for no limit"));
    }
    if spec.grace > LONGEST_GRACE {
        problems
            .push(error("grace-out-of-range", "`grace` is longer than a day, the longest between SIGTERM and SIGKILL"));
    }
    if let Some(cwd) = &spec.cwd {
        if !cwd.starts_with('/') {
            problems.push(error("relative-cwd", format!("`cwd` is `{cwd}` and must be an absolute path")));
        }
        if cwd.contains('\0') {
            problems.push(error("nul-byte", "`cwd` contains a NUL byte"));
        }
    }
    if let Some(external_id) = &spec.external_id {
        let characters = external_id.chars().count();
        if characters == 0 || characters > EXTERNAL_ID_CHARACTERS || external_id.chars().any(taxiway_job::is_unseen) {
            let message = format!(
                "`external_id` has {characters} characters; it has 1 to {EXTERNAL_ID_CHARACTERS}, and no control characters or marks that turn the direction of writing"
            );
            problems.push(error("bad-external-id", message));
        }
    }
    let too_long = |text: &str| text.chars().count() > NAME_CHARACTERS || text.chars().any(taxiway_job::is_unseen);
    if too_long(&spec.name) {
        let message = format!(
            "`name` has at most {NAME_CHARACTERS} characters, and no control characters or marks that turn the direction of writing"
        );
        problems.push(error("bad-name", message));
    }
    if let Some((name, _)) =
        spec.labels.iter().find(|(name, value)| name.is_empty() || too_long(name) || too_long(value))
    {
        let message = format!(
            "the label `{}` must have 1 to {NAME_CHARACTERS} characters, its value at most as many, and neither has control characters or marks that turn the direction of writing",
            name.escape_default()
        );
        problems.push(error("bad-label", message));
    }
    check_env(&spec.env, problems);
}

fn check_env(env: &BTreeMap<String, EnvValue>, problems: &mut Vec<Problem>) {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.expose().contains('\0') {
            let message = format!("`env` has a variable `{}` that no program can be given", name.escape_default());
            problems.push(with_help(
                error("bad-variable", message),
                "a name is not empty and has no `=`; neither has a NUL byte",
            ));
        } else if name.starts_with("TAXIWAY_") {
            let message = format!("`env` sets `{name}`, and `TAXIWAY_*` is set by Taxiway");
            problems.push(error("reserved-variable", message));
        }
    }
}

/// Whether no program could be given as much as the command and all variables: those of its profile, of the submission and of plugins.
pub(super) fn too_long(spec: &JobSpec) -> Option<Problem> {
    (bytes_of_arguments(&spec.command, &spec.env) > LONGEST_ARGUMENTS).then(|| {
        let message =
            "arguments and variables, those of the profile and of plugins among them, have more than 1 MiB together";
        with_help(error("too-long", message), "put some of it into the configuration or a file")
    })
}

/// What of a configuration cannot be written in its file's language: TOML has no null.
pub(super) fn unwritable(config: &Map<String, Value>, format: ConfigFormat) -> Vec<Problem> {
    let mut problems = Vec::new();
    if format == ConfigFormat::Toml {
        for (name, value) in config {
            find_nulls(value, &pointer("", name), &mut problems);
        }
    }
    problems
}

fn find_nulls(value: &Value, path: &str, problems: &mut Vec<Problem>) {
    if problems.len() >= UNWRITABLE_NAMED {
        return;
    }
    match value {
        Value::Null => problems.push(with_help(
            Problem { path: path.to_owned(), ..error("null-in-toml", "null cannot be written in TOML") },
            "leave the key out, or set config_format to json or yaml",
        )),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_nulls(item, &pointer(path, &index.to_string()), problems);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                find_nulls(member, &pointer(path, name), problems);
            }
        }
        _ => {}
    }
}

/// A JSON Pointer, one step further (RFC 6901, section 3).
fn pointer(path: &str, step: &str) -> String {
    format!("{path}/{}", step.replace('~', "~0").replace('/', "~1"))
}
