//! From the bytes of a submission to a draft that admission can judge, with everything that is wrong said at once.

use std::fmt;

use axum::http::StatusCode;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use taxiway_job::{
    EnvValue, JobId, LONGEST_ARGUMENT, LONGEST_ARGUMENTS, MOST_LEVELS, OutOfRange, Problem, Terms, is_too_deep,
};

use super::answer::{Refused, problem};
use super::array;
use super::wire::Submission;
use super::wrong_type::{self, pointer};
use crate::admission::Draft;
use crate::config::{keys_of, nearest};

/// Labels of one job; each is a filter that somebody may use.
const MOST_LABELS: usize = 64;
/// Jobs that one comes after: those of the largest array.
const MOST_PREDECESSORS: usize = 1000;

/// The submission that `body` holds.
///
/// # Errors
/// 400 when it is not JSON; 422 with all that is wrong when its fields are.
pub(super) fn parse(body: &[u8]) -> Result<Submission, Refused> {
    parse_one(body, None)
}

/// The same of one that may be in a batch.
pub(super) fn parse_one(body: &[u8], batch: Batch<'_>) -> Result<Submission, Refused> {
    is_object(body)?;
    let submission: Submission = serde_json::from_slice(body).map_err(|error| diagnose(body, &error))?;
    unaltered(body)?;
    checked(submission, batch)
}

/// Refuses a body with numbers that would not arrive as they were sent. Call it with what is JSON.
///
/// # Errors
/// 422 with each of them.
pub(super) fn unaltered(body: &[u8]) -> Result<(), Refused> {
    let altered: Vec<Problem> = taxiway_job::out_of_range(body).iter().map(number_out_of_range).collect();
    if altered.is_empty() { Ok(()) } else { Err(Refused::problems("invalid-submission", altered)) }
}

/// The problem of one such number.
pub(super) fn number_out_of_range(found: &OutOfRange) -> Problem {
    problem(&found.path, "number-out-of-range", found.to_string())
}

/// The ids that the jobs of its batch will have, in their order; none outside of a batch.
pub(super) type Batch<'a> = Option<&'a [JobId]>;

fn checked(mut submission: Submission, batch: Batch<'_>) -> Result<Submission, Refused> {
    let problems = check(&mut submission, batch);
    if problems.is_empty() { Ok(submission) } else { Err(Refused::problems("invalid-submission", problems)) }
}

/// A submission that is an object; serde would take a list for one, its values in the order of the fields.
pub(super) struct Whole(Submission);

impl Whole {
    /// The submission, when nothing of it is too much.
    ///
    /// # Errors
    /// 422 with all that is.
    pub(super) fn checked(self, batch: Batch<'_>) -> Result<Submission, Refused> {
        checked(self.0, batch)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a submission, which is a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Whole, A::Error> {
                Submission::deserialize(MapAccessDeserializer::new(map)).map(Whole)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// What admission judges. Call it with a submission that [`parse`] has let through; of an array it is what all members have in
/// common.
pub(super) fn draft(id: JobId, submission: Submission) -> Draft {
    Draft {
        id,
        profile: submission.profile,
        command: submission.command,
        config: submission.config.unwrap_or_default(),
        name: submission.name,
        labels: submission.labels.unwrap_or_default(),
        cwd: submission.cwd,
        env: submission.env.unwrap_or_default(),
        gpus: submission.gpus,
        terms: Terms {
            gpu_memory: submission.gpu_memory,
            gpu_uuids: submission.gpu_uuids.unwrap_or_default(),
            after: ids(submission.after),
            after_any: ids(submission.after_any),
            not_before: submission.not_before,
            array: None,
            retries: submission.retries.unwrap_or_default(),
        },
        array: None,
        priority: submission.priority,
        time_limit: submission.time_limit,
        grace: submission.grace,
        external_id: submission.external_id,
        hold: submission.hold.unwrap_or_default(),
        config_format: submission.config_format,
        problems: Vec::new(),
    }
}

/// The ids of a list that [`check`] has let through, each once.
fn ids(texts: Option<Vec<String>>) -> Vec<JobId> {
    let mut ids: Vec<JobId> = Vec::new();
    for id in texts.into_iter().flatten().filter_map(|text| text.parse().ok()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// The refusal of a body that is not JSON, or JSON but not what is asked for at one place.
pub(super) fn malformed(error: &serde_json::Error) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "malformed-json", format!("the body is not JSON: {error}"))
}

/// A body must be an object: serde would take a list for one, its values in the order of the fields.
pub(super) fn is_object(body: &[u8]) -> Result<(), Refused> {
    if body.trim_ascii_start().first() == Some(&b'{') {
        return Ok(());
    }
    serde_json::from_slice::<IgnoredAny>(body).map_err(|error| malformed(&error))?;
    Err(Refused::problems("invalid-submission", vec![problem("", "wrong-type", "a submission is a JSON object")]))
}

/// Says what is wrong with a body that could not be read, field by field.
fn diagnose(body: &[u8], error: &serde_json::Error) -> Refused {
    if !error.is_data() {
        return malformed(error);
    }
    let fields = match serde_json::from_slice::<Map<String, Value>>(body) {
        Ok(fields) => fields,
        Err(error) => return malformed(&error),
    };
    let known = keys_of::<Submission>();
    let mut problems = Vec::new();
    for (name, value) in fields {
        let path = pointer([name.as_str()]);
        if !known.contains(&name.as_str()) {
            problems.push(unknown_field(&path, &name, known));
            continue;
        }
        let field = Value::Object(Map::from_iter([(name.clone(), value)]));
        if let Err(error) = serde_path_to_error::deserialize::<_, Submission>(&field) {
            problems.push(wrong_type(&name, &field, &error));
        }
    }
    if problems.is_empty() {
        // What only the first pass sees: a field that is there twice.
        problems.push(problem("", "malformed", error.to_string()));
    }
    Refused::problems("invalid-submission", problems)
}

fn unknown_field(path: &str, name: &str, known: &[&str]) -> Problem {
    let mut found = problem(path, "unknown-field", format!("a submission has no field `{name}`"));
    found.help = Some(match nearest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known fields are {}", known.join(", ")),
    });
    found
}

fn wrong_type(name: &str, field: &Value, error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = wrong_type::pointer_of(error.path());
    let value = field.pointer(&path).unwrap_or(field);
    // Where serde cannot say what is wanted: of a value that may have several forms, or is to be written in some way.
    let whole = error.path().iter().count() == 1;
    let wanted = match name {
        "command" if whole => Some("a list of arguments like [\"python3\", \"train.py\"], which no shell reads"),
        "gpus" => Some("a whole number, 0 or more"),
        "priority" => Some("a whole number from -100 to 100"),
        "env" if whole => Some("an object of variables and their values"),
        "env" => Some("a text or {\"secret\": \"text\"}"),
        "gpu_memory" => Some("a size: a text like \"24GiB\", or a number of bytes"),
        "time_limit" | "grace" => Some("a duration: a text like \"2h30m\", or a number of seconds"),
        "not_before" => Some("a time: a text like \"2026-01-31T12:00:00Z\""),
        "config" => Some("an object"),
        "after" | "after_any" | "gpu_uuids" if whole => Some("a list of texts"),
        "config_format" => Some("\"json\", \"yaml\" or \"toml\""),
        _ => None,
    };
    let text = error.inner().to_string();
    problem(&path, "wrong-type", wrong_type::sentence(&wrong_type::name_of(error.path()), value, &text, wanted))
}

/// What is too much for one job, whatever it says. What is wrong with it otherwise, admission finds, together with what
/// plugins find. Jobs of the same batch that it comes after are named by their ids afterwards.
fn check(submission: &mut Submission, batch: Batch<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if submission.config.as_ref().is_some_and(is_too_deep) {
        let message = format!("`config` has more than {MOST_LEVELS} levels of lists and objects");
        problems.push(problem("/config", "too-deep", message));
    }
    if submission.labels.as_ref().is_some_and(|labels| labels.len() > MOST_LABELS) {
        problems.push(problem("/labels", "too-many", format!("a job has at most {MOST_LABELS} labels")));
    }
    for (field, texts) in [("after", &mut submission.after), ("after_any", &mut submission.after_any)] {
        let texts = texts.as_deref_mut().unwrap_or_default();
        if texts.len() > MOST_PREDECESSORS {
            let message = format!("a job comes after at most {MOST_PREDECESSORS} others");
            problems.push(problem(&pointer([field]), "too-many", message));
            continue;
        }
        for (index, text) in texts.iter_mut().enumerate() {
            match predecessor(text, batch) {
                Ok(id) => *text = id.to_string(),
                Err((code, message)) => {
                    problems.push(problem(&pointer([field, &index.to_string()]), code, message));
                }
            }
        }
    }
    if let Some(asked) = &submission.array {
        array::check(asked, submission, batch.is_some(), &mut problems);
    }
    let arguments = submission.command.iter().flatten();
    for (index, _) in arguments.clone().enumerate().filter(|(_, argument)| argument.len() >= LONGEST_ARGUMENT) {
        let message = "an argument has at most 128 KiB: put the rest into the configuration";
        problems.push(problem(&pointer(["command", &index.to_string()]), "too-long", message));
    }
    let variables = submission.env.iter().flatten();
    let is_too_long = |(name, value): &(&String, &EnvValue)| name.len() + 1 + value.expose().len() >= LONGEST_ARGUMENT;
    for (name, _) in variables.clone().filter(is_too_long) {
        let message = "a variable has at most 128 KiB with its name: put the rest into the configuration or a file";
        problems.push(problem(&pointer(["env", name]), "too-long", message));
    }
    let bytes = arguments.map(|argument| argument.len() + 1).sum::<usize>()
        + variables.map(|(name, value)| name.len() + value.expose().len() + 2).sum::<usize>();
    if bytes > LONGEST_ARGUMENTS {
        let message = "arguments and variables have at most 1 MiB together: put the rest into the configuration";
        problems.push(problem("/command", "too-long", message));
    }
    problems
}

/// The job that a text of `after` means: an id, or `#k`, the k-th of the same batch. Else the code and the sentence of what is
/// wrong.
fn predecessor(text: &str, batch: Batch<'_>) -> Result<JobId, (&'static str, String)> {
    let Some(number) = text.strip_prefix('#') else {
        return text.parse().map_err(|error: taxiway_job::IdError| ("wrong-type", error.to_string()));
    };
    let Some(batch) = batch else {
        let message = format!("`{text}` is a job of the same batch, and this submission is in none: give the job's id");
        return Err(("wrong-type", message));
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("`{text}` is no job of a batch: its first is `#0`, its second `#1`");
        return Err(("wrong-type", message));
    }
    let named = number.parse().ok().and_then(|at: usize| batch.get(at));
    named.copied().ok_or_else(|| {
        let last = batch.len().saturating_sub(1);
        ("unknown-job", format!("there is no `{text}` in this batch: its last job is `#{last}`"))
    })
}

/// One object of named parameters, every name known.
pub(super) fn parameters<T: for<'de> Deserialize<'de>>(query: Option<&str>) -> Result<T, Refused> {
    let uri = format!("/?{}", query.unwrap_or_default());
    let parsed = uri.parse::<axum::http::Uri>().map_err(|error| Refused::invalid_request(error.to_string()))?;
    axum::extract::Query::try_from_uri(&parsed).map(|axum::extract::Query(value)| value).map_err(|error| {
        let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Refused::invalid_request(format!("the query is not understood: {text}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(body: &str) -> Vec<(String, String, Option<String>)> {
        let refused = parse(body.as_bytes()).expect_err("refused");
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        refused.document().problems.iter().map(|p| (p.path.clone(), p.code.clone(), p.help.clone())).collect()
    }

    #[test]
    fn a_whole_submission_is_read() {
        let body = r#"{"command": ["python3", "t.py"], "config": {"lr": 0.1}, "env": {"A": "b", "T": {"secret": "s"}},
            "gpus": 2, "gpu_memory": "24GiB", "gpu_uuids": ["GPU-1"], "priority": -5, "time_limit": "2h30m", "grace": 10,
            "after": ["01937c3e-8f00-7abc-8def-0123456789ab"], "after_any": [], "not_before": "2030-01-01T00:00:00Z",
            "retries": {"max": 3, "backoff": "1m", "on": ["exit", "cuda_oom"]}, "labels": {"team": "nlp"}, "hold": true,
            "external_id": "run-1", "name": "a", "cwd": "/data", "config_format": "yaml", "profile": null}"#;
        let draft = draft(JobId::new(), parse(body.as_bytes()).expect("valid"));
        assert_eq!(draft.gpus, Some(2));
        assert_eq!((draft.terms.gpu_memory, draft.terms.gpu_uuids), (Some(24 << 30), vec!["GPU-1".to_owned()]));
        assert_eq!(draft.priority, Some(-5));
        assert_eq!(draft.time_limit, Some(std::time::Duration::from_secs(9000)));
        assert_eq!((draft.terms.after.len(), draft.terms.retries.max), (1, 3));
        assert_eq!(draft.terms.not_before.map(|at| at.to_string()).as_deref(), Some("2030-01-01T00:00:00.000Z"));
        assert!(draft.hold);
        assert_eq!(draft.env["T"].expose(), "s");
    }

    #[test]
    fn unknown_fields_are_refused_with_the_nearest_known_one_all_at_once() {
        let found = problems(r#"{"comand": ["x"], "gpu": 1}"#);
        assert_eq!(
            found,
            [
                ("/comand".into(), "unknown-field".into(), Some("did you mean `command`?".into())),
                ("/gpu".into(), "unknown-field".into(), Some("did you mean `gpus`?".into())),
            ]
        );
    }

    #[test]
    fn wrong_types_are_refused_where_they_stand_all_at_once() {
        let found = problems(
            r#"{"command": ["x", 1], "gpus": "two", "env": {"A": 1}, "time_limit": "soon", "labels": {"a": []}, "config": []}"#,
        );
        let paths: Vec<&str> = found.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["/command/1", "/gpus", "/env/A", "/time_limit", "/labels/a", "/config"]);
        assert!(found.iter().all(|(_, code, _)| code == "wrong-type"), "{found:?}");
    }

    #[test]
    fn a_number_that_would_be_altered_is_refused_where_it_stands() {
        let found = problems(r#"{"command": ["a"], "config": {"seed": 36893488147419103232, "lr": 1e30}}"#);
        assert_eq!(found, [("/config/seed".into(), "number-out-of-range".into(), None)]);
    }

    #[test]
    fn a_configuration_that_is_too_deep_is_refused() {
        let of_levels = |levels: usize| {
            let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
            format!(r#"{{"command": ["a"], "config": {{"a": {open}{close}}}}}"#)
        };
        assert!(parse(of_levels(MOST_LEVELS).as_bytes()).is_ok());
        for levels in [MOST_LEVELS + 1, 126] {
            assert_eq!(problems(&of_levels(levels)), [("/config".into(), "too-deep".into(), None)], "{levels}");
        }
    }

    #[test]
    fn a_wrong_type_is_told_with_the_field_what_came_and_what_is_wanted() {
        for (body, message) in [
            (r#"{"name": 7}"#, "`name` is the number 7; it should be a text"),
            (r#"{"hold": "yes"}"#, "`hold` is the text \"yes\"; it should be true or false"),
            (r#"{"labels": {"team": null}}"#, "`labels.team` is null; it should be a text"),
            (r#"{"gpus": -1}"#, "`gpus` is the number -1; it should be a whole number, 0 or more"),
            (r#"{"config": []}"#, "`config` is a list; it should be an object"),
            (r#"{"command": ["a", 1]}"#, "`command[1]` is the number 1; it should be a text"),
            (
                r#"{"time_limit": []}"#,
                "`time_limit` is a list; it should be a duration: a text like \"2h30m\", or a number of seconds",
            ),
        ] {
            let refused = parse(body.as_bytes()).expect_err("refused");
            assert_eq!(refused.document().problems[0].message, message, "{body}");
        }
    }

    #[test]
    fn what_is_out_of_range_or_too_much_is_refused_all_at_once() {
        let found = problems(r#"{"gpus": -1, "priority": 100000, "grace": -1}"#);
        let paths: Vec<&str> = found.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["/gpus", "/priority", "/grace"]);
        let found = problems(
            r#"{"after": ["soon"], "not_before": "soon", "retries": {"on": ["bad luck"]}, "gpu_memory": "much"}"#,
        );
        let paths: Vec<&str> = found.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["/not_before", "/retries/on/0", "/gpu_memory"]);
        assert_eq!(problems(r#"{"after": ["soon"]}"#)[0].0, "/after/0");
        let long = "x".repeat(LONGEST_ARGUMENT);
        let found = problems(&format!(r#"{{"command": ["a", "{long}"], "env": {{"A": "{}"}}}}"#, long.repeat(8)));
        let paths: Vec<&str> = found.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["/command/1", "/env/A", "/command"]);
    }

    #[test]
    fn a_variable_that_no_program_can_be_given_is_refused_where_it_stands() {
        let submission = |name: &str, value: &str| {
            let (plain, secret) = (format!(r#""{value}""#), format!(r#"{{"secret": "{value}"}}"#));
            [plain, secret].map(|value| format!(r#"{{"command": ["a"], "env": {{"{name}": {value}, "B": "b"}}}}"#))
        };
        // `A/B=`, the value and a NUL.
        let longest = "x".repeat(LONGEST_ARGUMENT - 5);
        for body in submission("A/B", &longest) {
            assert!(parse(body.as_bytes()).is_ok());
        }
        for body in submission("A/B", &format!("{longest}x")) {
            assert_eq!(problems(&body), [("/env/A~1B".into(), "too-long".into(), None)]);
        }
    }

    #[test]
    fn what_is_not_json_or_nested_without_end_is_a_bad_request() {
        for body in ["", "{", "nonsense", &format!("{{\"config\": {{\"a\": {}", "[".repeat(100_000))] {
            let refused = parse(body.as_bytes()).expect_err("refused");
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{:.60}", body);
            assert_eq!(refused.document().code, "malformed-json");
        }
        assert_eq!(problems("[]")[0].1, "wrong-type");
        assert_eq!(problems(r##"{"after": ["#0"]}"##)[0].0, "/after/0");
        assert_eq!(problems(r#"{"name": "a", "name": "b"}"#)[0].1, "malformed");
    }
}
