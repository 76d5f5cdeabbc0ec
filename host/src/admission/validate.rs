//! The validators, all at once.

use futures_util::future::join_all;
use taxiway_job::{Problem, Severity};
use taxiway_plugin_host::{Called, Context, Hook, JobView, Mode};

use super::course::Course;
use super::hooks::Guest;

/// Has every validator judge `job`. Their problems are kept in the order of `validators`, whoever was the fastest.
pub(super) async fn run(course: &mut Course, validators: &[Box<dyn Guest>], job: &JobView, context: &Context) {
    let calls = join_all(validators.iter().map(|validator| validator.validate(job, context))).await;
    for (validator, Called { result, duration, .. }) in validators.iter().zip(calls) {
        let guest = validator.as_ref();
        match result {
            Ok(problems) => {
                let problems: Vec<Problem> = problems.into_iter().map(in_the_model).collect();
                let rejects = problems.iter().any(|problem| problem.severity == Severity::Error);
                if guest.mode() == Mode::Enforce {
                    course.problems.extend_from_slice(&problems);
                }
                let outcome = if rejects { "rejected" } else { "accepted" };
                course.record(guest, Hook::Validate, outcome, problems, None, duration);
            }
            Err(error) => course.fail(guest, Hook::Validate, error, duration),
        }
    }
}

fn in_the_model(problem: taxiway_plugin_host::Problem) -> Problem {
    let taxiway_plugin_host::Problem { plugin, severity, path, code, message, help } = problem;
    let severity = match severity {
        taxiway_plugin_host::Severity::Error => Severity::Error,
        taxiway_plugin_host::Severity::Warning => Severity::Warning,
        taxiway_plugin_host::Severity::Info => Severity::Info,
    };
    Problem { plugin, severity, path, code, message, help }
}
