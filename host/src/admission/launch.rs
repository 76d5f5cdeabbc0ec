//! The last look at a job, just before its start.

use futures_util::FutureExt;
use serde_json::Value;
use taxiway_job::{Failure, FailureClass, Job, Problem, Reason, Severity, Verdict};
use taxiway_plugin_host::{Context, GpuView, Hook, JobView, Stage};

use super::course::{Course, PLUGIN_FAILED};
use super::{Admission, details, job_details, validate};
use crate::queue::LaunchVerdict;

/// What plugins say of a job that is about to start.
#[derive(Debug, Clone)]
pub struct LaunchJudgement {
    /// Whether it may.
    pub verdict: LaunchVerdict,
    /// What each plugin said.
    pub verdicts: Vec<Verdict>,
}

impl Admission {
    /// Whether any plugin judges jobs of this profile just before their start, or may: it is not known yet in the first moments
    /// of the service. Cheap.
    #[must_use]
    pub fn has_launch_stage(&self, profile: Option<&str>) -> bool {
        self.0.hooks.ready().now_or_never().is_none()
            || !self.0.hooks.in_force(Hook::Validate, Stage::Launch, profile).is_empty()
    }

    /// Has the validators of the launch stage judge the next in line. `gpus` are those that it is about to get.
    pub async fn judge_launch(&self, job: &Job, gpus: Vec<GpuView>) -> LaunchJudgement {
        self.0.hooks.ready().await;
        let validators = self.0.hooks.in_force(Hook::Validate, Stage::Launch, job.spec.profile.as_deref());
        if validators.is_empty() {
            return LaunchJudgement { verdict: LaunchVerdict::Accept, verdicts: Vec::new() };
        }
        let view = JobView {
            id: job.id.to_string(),
            name: job.spec.name.clone(),
            attempt: job.attempt,
            config: Value::Object(job.config.clone()),
            details: job_details(job.id, &job.spec, job.attempt, &job.submitted_by, &self.0.jobs_dir),
        };
        let context = Context { stage: Stage::Launch, dry_run: false, gpus, details: details::context_details() };
        let mut course = Course::new(Stage::Launch, Vec::new());
        validate::run(&mut course, &validators, &view, &context).await;
        let verdict = if let Some(failure) = errors_as_failure(&course.problems) {
            LaunchVerdict::Reject(failure)
        } else if let Some(failure) = course.take_failure() {
            let limit = failure.limit.as_deref().unwrap_or(failure.kind.as_str());
            LaunchVerdict::Reject(Failure {
                class: FailureClass::Preflight,
                message: format!("{failure}; it was asked just before the start"),
                evidence: Some(format!("{PLUGIN_FAILED}: {limit}")),
            })
        } else if let Some(unasked) = course.take_unasked() {
            // Nobody has said anything against the job yet: it is judged again.
            LaunchVerdict::Wait(Reason::new("plugin_busy", unasked.to_string()))
        } else {
            course.hold.map_or(LaunchVerdict::Accept, LaunchVerdict::Hold)
        };
        LaunchJudgement { verdict, verdicts: course.verdicts }
    }
}

/// One failure for all errors: the first in full, the number of the others.
fn errors_as_failure(problems: &[Problem]) -> Option<Failure> {
    let mut errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let first = errors.next()?;
    let others = match errors.count() {
        0 => String::new(),
        1 => "; 1 more problem was found".to_owned(),
        count => format!("; {count} more problems were found"),
    };
    Some(Failure {
        class: FailureClass::Preflight,
        message: format!("plugin `{}` refused the job just before its start: {}{others}", first.plugin, first.message),
        evidence: Some(match first.path.as_str() {
            "" => first.code.clone(),
            path => format!("{} at {path}", first.code),
        }),
    })
}
