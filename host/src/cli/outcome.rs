//! How a job ended, as an exit status; and a refusal, as people read it.

use taxiway_job::{FailureClass, Problem, Severity, State};

use super::exit;
use super::terminal::{Style, printable, stderr_style};
use crate::api::wire::{Job, ProblemDocument};

/// Its time ran out: what timeout(1) answers.
const TIMED_OUT: u8 = 124;
/// It ended without an exit status.
const NO_STATUS: u8 = 125;
/// It was cancelled: what a shell answers for a program that was interrupted.
const CANCELLED: u8 = 130;

/// The exit status that stands for the end of a job; none while it has not ended.
pub(super) fn exit_status(job: &Job<'_>) -> Option<u8> {
    let class = job.failure.as_ref().map(|failure| failure.class);
    match job.state {
        State::Completed => Some(0),
        State::Cancelled => Some(CANCELLED),
        State::Failed if class == Some(FailureClass::Timeout) => Some(TIMED_OUT),
        State::Failed => Some(match (job.exit.code, job.exit.signal) {
            // 0 would say that it had succeeded: it failed for what was seen beside its status.
            (Some(0), _) => exit::FAILED,
            (Some(code), _) => u8::try_from(code).unwrap_or(exit::FAILED),
            (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(NO_STATUS),
            (None, None) => NO_STATUS,
        }),
        State::Held | State::Queued | State::Pending | State::Running | State::Cancelling => None,
    }
}

/// How it ended, in one line.
pub(super) fn told(job: &Job<'_>) -> String {
    let name = printable(&job.name);
    match (&job.failure, job.state) {
        (Some(failure), State::Failed) => {
            format!("{name} failed ({}): {}", failure.class.as_str(), printable(&failure.message))
        }
        (_, state) => format!("{name} {state}"),
    }
}

/// The exit status of a refusal.
pub(super) fn status_of_refusal(document: &ProblemDocument) -> u8 {
    if document.status == 422 { exit::REFUSED } else { exit::FAILED }
}

/// Prints a refusal with all of its problems to standard error.
pub(super) fn print_refusal(document: &ProblemDocument) {
    let style = stderr_style();
    // One problem's message is the detail too.
    let detail =
        if document.problems.is_empty() { printable(&document.detail) } else { "the job was refused".to_owned() };
    eprintln!("{} {detail}", style.red("error:"));
    if let (Some(plugin), Some(limit)) = (&document.plugin, &document.limit) {
        eprintln!("  plugin {}, {}", printable(plugin), printable(limit));
    }
    for problem in &document.problems {
        eprint!("{}", problem_lines(problem, style));
    }
    if document.status == 401 {
        eprintln!(
            "Name the file that holds your token with --token-file; the service's own is `token` in its data directory."
        );
    }
    if document.code == "plugin-failed" {
        eprintln!("The plugin is at fault, not the job: try again, or tell the service's administrator.");
    }
    if document.code == "plugin-busy" {
        eprintln!("Other jobs are being judged, and neither this one nor the plugin is at fault: try again.");
    }
}

/// One problem: what, where, who says so, and what to do.
pub(super) fn problem_lines(problem: &Problem, style: Style) -> String {
    let severity = match problem.severity {
        Severity::Error => style.red("error"),
        Severity::Warning => style.yellow("warning"),
        Severity::Info => style.dim("info"),
    };
    let path =
        if problem.path.is_empty() { String::new() } else { format!(" {}", style.bold(&printable(&problem.path))) };
    let from = style.dim(&format!("({} {})", printable(&problem.plugin), printable(&problem.code)));
    let help = problem.help.as_deref().map(|help| format!("      {}\n", printable(help))).unwrap_or_default();
    format!("  {severity}{path}: {} {from}\n{help}", printable(&problem.message))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use taxiway_job::{Exit, Failure};

    use super::*;
    use crate::api::wire::job_tests::queued_job;
    use crate::queue::Standing;

    fn status(state: State, exit: Exit, class: Option<FailureClass>) -> Option<u8> {
        let model = queued_job();
        let standing = Standing::default();
        let mut job = Job::new(&model, &standing);
        job.state = state;
        job.exit = exit;
        job.failure = class.map(|class| Cow::Owned(Failure { class, message: String::new(), evidence: None }));
        exit_status(&job)
    }

    #[test]
    fn the_status_of_a_job_is_the_status_of_waiting_for_it() {
        let code = |code| Exit { code: Some(code), signal: None };
        let signal = |signal| Exit { code: None, signal: Some(signal) };
        assert_eq!(status(State::Running, Exit::default(), None), None);
        assert_eq!(status(State::Completed, code(0), None), Some(0));
        assert_eq!(status(State::Failed, code(7), Some(FailureClass::Exit)), Some(7));
        assert_eq!(status(State::Failed, signal(9), Some(FailureClass::Signal)), Some(137));
        assert_eq!(status(State::Failed, signal(15), Some(FailureClass::Timeout)), Some(124));
        assert_eq!(status(State::Failed, Exit::default(), Some(FailureClass::HostLost)), Some(125));
        assert_eq!(status(State::Cancelled, signal(15), None), Some(130));
    }

    #[test]
    fn a_problem_is_told_with_its_place_and_its_help() {
        let problem = Problem {
            plugin: "batch-limit".into(),
            severity: Severity::Error,
            path: "/train/batch_size".into(),
            code: "too-large".into(),
            message: "at most 64".into(),
            help: Some("use 64".into()),
        };
        let text = problem_lines(&problem, stderr_style());
        assert!(
            text.contains("/train/batch_size") && text.contains("batch-limit too-large") && text.contains("use 64"),
            "{text}"
        );
    }
}
