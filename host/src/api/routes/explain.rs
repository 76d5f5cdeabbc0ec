//! `GET /api/v1/jobs/{id}/explain`

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use taxiway_job::{JobId, State as JobState, Time, expected_wait};

use super::super::answer::Refused;
use super::super::wire::Explanation;
use super::super::{Api, State};
use super::jobs;
use crate::queue::{Holder, Outlook};
use crate::store::{Course, Kind};

pub(super) async fn explain(api: State, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = jobs::parse_id(&id)?;
    let (job, standing) = jobs::find(&api, id).await?;
    // A job that waits for a retry tells why its last attempt failed.
    let last_failure = match job.state {
        JobState::Queued | JobState::Held if job.attempt > 1 => {
            api.service.store.attempts(id).await?.pop().and_then(|attempt| attempt.failure)
        }
        _ => None,
    };
    let explanation = Explanation {
        reason: standing.reason_of(&job),
        position: standing.position,
        expected_start_at: expected_start(&api, id, Time::now()).await?,
        verdicts: job.verdicts.iter().chain(&job.launch_verdicts).map(Cow::Borrowed).collect(),
        failure: job.failure.as_ref().map(Cow::Borrowed).or(last_failure.map(Cow::Owned)),
    };
    Ok(Json(explanation).into_response())
}

/// When a queued job will start: what runs tells by its progress, and everything else by the median of its kind.
async fn expected_start(api: &Api, id: JobId, now: Time) -> Result<Option<Time>, Refused> {
    let Some(outlook) = api.service.queue.outlook(id).await? else { return Ok(None) };
    let running = outlook.running.iter().filter_map(|(holder, _)| Some(holder.as_ref()?.job));
    let ids = running.chain(outlook.ahead.iter().map(|(id, _)| *id)).collect();
    let courses = api.service.store.courses(ids).await?.into_iter().map(|course| (course.id, course)).collect();
    let medians = api.service.store.median_durations().await?;
    Ok(foretell(&outlook, &courses, &medians, now))
}

fn foretell(
    outlook: &Outlook,
    courses: &HashMap<JobId, Course>,
    medians: &HashMap<Kind, Duration>,
    now: Time,
) -> Option<Time> {
    let whole = |id: &JobId| medians.get(&courses.get(id)?.kind).copied();
    let rest = |holder: &Holder| -> Option<Duration> {
        let course = courses.get(&holder.job)?;
        let ran = course.started_at.map_or(Duration::ZERO, |started| since(started, now));
        let silent = holder.said_at.map_or(Duration::ZERO, |said| since(said, now));
        rest_by_progress(course, ran, silent).or_else(|| Some(whole(&holder.job)?.saturating_sub(ran)))
    };
    let running = outlook.running.iter().map(|(holder, slots)| (*slots, holder.as_ref().and_then(rest)));
    let running: Vec<_> = running.collect();
    let ahead: Vec<_> = outlook.ahead.iter().map(|(id, slots)| (*slots, whole(id))).collect();
    let start = now.plus(expected_wait(outlook.slots, &running, &ahead, outlook.needs)?);
    Some(outlook.not_before.map_or(start, |not_before| start.max(not_before)))
}

/// What is left of a job that ran so long and said how far it was so long ago.
fn rest_by_progress(course: &Course, ran: Duration, silent: Duration) -> Option<Duration> {
    let progress = course.progress.as_ref()?;
    if let Some(rest) = progress.eta_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        return Some(rest.saturating_sub(silent));
    }
    let fraction = progress.fraction.filter(|fraction| *fraction > 0.0 && *fraction <= 1.0)?;
    let ran = ran.saturating_sub(silent).as_secs_f64();
    Some(Duration::try_from_secs_f64(ran * (1.0 - fraction) / fraction).ok()?.saturating_sub(silent))
}

fn since(then: Time, now: Time) -> Duration {
    Duration::from_millis(u64::try_from(now.as_millis().saturating_sub(then.as_millis())).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use taxiway_job::Progress;

    use super::*;

    fn course(id: JobId, name: &str, progress: Option<Progress>) -> (JobId, Course) {
        (id, Course { id, kind: Kind::Name(name.into()), started_at: Some(Time::from_millis(0)), progress })
    }

    #[test]
    fn progress_tells_more_than_the_median_and_nothing_known_foretells_nothing() {
        let [running, ahead] = [JobId::new(), JobId::new()];
        let holder = |said_at: Option<Time>| Some(Holder { job: running, said_at });
        let now = Time::from_millis(60_000);
        let mut outlook =
            Outlook { slots: 1, needs: 1, running: vec![(holder(None), 1)], ahead: vec![(ahead, 1)], not_before: None };
        let a_quarter = Progress { fraction: Some(0.25), ..Progress::default() };
        let mut courses = HashMap::from([course(running, "a", Some(a_quarter)), course(ahead, "b", None)]);
        let medians = HashMap::from([
            (Kind::Name("a".into()), Duration::from_secs(100)),
            (Kind::Name("b".into()), Duration::from_secs(10)),
        ]);
        let at = |seconds: i64| Some(Time::from_millis(60_000 + 1000 * seconds));
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(180 + 10));
        // A quarter of 40 s, 20 s ago; and an estimate as old.
        outlook.running = vec![(holder(Some(Time::from_millis(40_000))), 1)];
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(100 + 10));
        let estimate = |seconds| Some(Progress { eta_seconds: Some(seconds), ..Progress::default() });
        courses.extend([course(running, "a", estimate(30.0))]);
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(10 + 10));
        courses.extend([course(running, "a", estimate(5.0))]);
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(10), "it is over any moment");
        outlook.running = vec![(holder(None), 1)];
        courses.extend([course(running, "a", None)]);
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(40 + 10));
        assert_eq!(foretell(&outlook, &courses, &HashMap::new(), now), None);
        outlook.running = vec![(None, 1)];
        assert_eq!(foretell(&outlook, &courses, &medians, now), None, "nobody knows when that slot is free");
        outlook.running = vec![(holder(None), 1)];
        outlook.not_before = at(1000);
        assert_eq!(foretell(&outlook, &courses, &medians, now), at(1000));
    }
}
