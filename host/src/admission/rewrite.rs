//! The rewriters, one after another.

use serde_json::Value;
use taxiway_job::{EnvValue, JobSpec, Problem, Rewrite, Severity, is_too_deep};
use taxiway_plugin_host::{CallError, Called, Context, FailureKind, Hook, JobView, Mode, Rewritten, clean};

use super::course::Course;
use super::hooks::Guest;

/// The longest remark about a label or variable, in bytes: as long as a problem's message.
const REMARK_LIMIT: usize = 512;

/// Has each rewriter change `job` and `spec`, seeing what the one before it made of them. Ends at the first whose failure
/// refuses the job. Gives the configuration as it was before the first change; none when nothing was changed.
pub(super) async fn run(
    course: &mut Course,
    rewriters: &[Box<dyn Guest>],
    job: &mut JobView,
    spec: &mut JobSpec,
    context: &Context,
    details: impl Fn(&JobSpec) -> Value,
) -> Option<Value> {
    let mut submitted = None;
    for rewriter in rewriters {
        let guest = rewriter.as_ref();
        let Called { result, duration, .. } = guest.rewrite(job, context).await;
        let result = match result {
            Ok(rewritten) => match rewritten.as_ref().and_then(|rewritten| what_is_malformed(rewritten)) {
                None => Ok(rewritten),
                Some(what) => Err(malformed(guest, what)),
            },
            Err(error) => Err(error),
        };
        let rewritten = match result {
            Ok(rewritten) => rewritten,
            Err(error) => {
                course.fail(guest, Hook::Rewrite, error, duration);
                if course.has_failed() {
                    break;
                }
                continue;
            }
        };
        let patch = rewritten.as_ref().map_or_else(|| Value::Array(Vec::new()), |rewritten| rewritten.patch.clone());
        let beside = rewritten.as_ref().map(|rewritten| beside_the_configuration(guest, rewritten)).unwrap_or_default();
        let unchanged = beside.is_empty() && patch.as_array().is_some_and(Vec::is_empty);
        let outcome = if unchanged { "unchanged" } else { "changed" };
        course.record(guest, Hook::Rewrite, outcome, beside, Some(patch.clone()), duration);
        if guest.mode() == Mode::Observe {
            continue;
        }
        course.rewrites.push(Rewrite {
            plugin: guest.name().to_owned(),
            version: guest.version().to_owned(),
            sha256: guest.sha256().to_owned(),
            patch,
            duration_seconds: duration.as_secs_f64(),
        });
        if let Some(rewritten) = rewritten
            && !unchanged
        {
            let before = apply(rewritten, job, spec);
            submitted = submitted.or(before);
            job.details = details(spec);
        }
    }
    submitted
}

/// Applies what a rewriter wants. Gives the configuration that it replaced.
fn apply(rewritten: Rewritten, job: &mut JobView, spec: &mut JobSpec) -> Option<Value> {
    spec.labels.extend(rewritten.labels);
    spec.env.extend(rewritten.env.into_iter().map(|variable| {
        let value = match variable.secret {
            true => EnvValue::Secret { secret: variable.value },
            false => EnvValue::Plain(variable.value),
        };
        (variable.name, value)
    }));
    let changed = rewritten.config.filter(|config| *config != job.config)?;
    Some(std::mem::replace(&mut job.config, changed))
}

/// What it makes of the configuration that the interface does not ask for, or that nobody could read afterwards.
fn what_is_malformed(rewritten: &Rewritten) -> Option<&'static str> {
    match rewritten.config.as_ref()? {
        Value::Object(config) if is_too_deep(config) => Some("it made the configuration deeper than one may be"),
        Value::Object(_) => None,
        _ => Some("it made the configuration something else than a JSON object"),
    }
}

fn malformed(guest: &dyn Guest, what: &str) -> CallError {
    CallError {
        plugin: guest.name().to_owned(),
        version: guest.version().to_owned(),
        kind: FailureKind::MalformedOutput,
        limit: None,
        message: what.to_owned(),
        on_error: guest.on_error(),
        retry_after: None,
    }
}

/// Labels and variables are not part of the diff, so that they are told as remarks.
fn beside_the_configuration(guest: &dyn Guest, rewritten: &Rewritten) -> Vec<Problem> {
    let remark = |code: &str, message: String| Problem {
        plugin: guest.name().to_owned(),
        severity: Severity::Info,
        path: String::new(),
        code: code.to_owned(),
        // Its names and values are the plugin's own text.
        message: clean(&message, REMARK_LIMIT),
        help: None,
    };
    let labels = rewritten
        .labels
        .iter()
        .map(|(name, value)| remark("label-set", format!("set the label `{name}` to `{value}`")));
    let env = rewritten.env.iter().map(|variable| {
        let message = match variable.secret {
            true => format!("set the variable `{}` to a secret", variable.name),
            false => format!("set the variable `{}` to `{}`", variable.name, variable.value),
        };
        remark("variable-set", message)
    });
    labels.chain(env).collect()
}
