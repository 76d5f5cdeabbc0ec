//! `GET /api/v1/jobs/{id}/metrics`: what a job reported over time, as series for charts.

use std::io;

use axum::Json;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use taxiway_job::{JobId, LaunchId, Time};

use super::super::answer::Refused;
use super::super::{Api, State, submission, wire};
use super::jobs;

/// Points of one series, unless the query says otherwise, and at most: more than a chart has pixels.
const POINTS: usize = 500;
const MOST: usize = 1000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    attempt: Option<u32>,
    points: Option<usize>,
}

pub(super) async fn metrics(
    api: State,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let Parameters { attempt, points } = submission::parameters(query.as_deref())?;
    let points = points.unwrap_or(POINTS);
    if !(2..=MOST).contains(&points) {
        return Err(Refused::invalid_request(format!("points is {points}: it goes from 2 to {MOST}")));
    }
    let id = jobs::parse_id(&id)?;
    let (job, _) = jobs::find(&api, id).await?;
    let attempts = api.service.store.attempts(id).await?;
    let latest = || attempts.iter().rfind(|record| record.armed).map(|record| record.attempt);
    let attempt = attempt.or_else(latest).unwrap_or(job.attempt);
    let samples = api.service.store.samples(id, attempt).await?;
    // An attempt that is under way, or the launch that became it: the last one with its number.
    let record = attempts.iter().rfind(|record| record.attempt == attempt);
    let gpus = match record {
        Some(record) => gpus(&api, id, record.launch, points).await?,
        None => Vec::new(),
    };
    let started_at = record.and_then(|record| record.started_at).or_else(|| samples.first().map(|(at, _)| *at));
    let items = started_at.map_or_else(Vec::new, |started_at| series(&thinned(samples, points), started_at));
    Ok(Json(wire::JobMetrics { job_id: id, attempt, started_at, items, gpus, next_cursor: None }).into_response())
}

/// What the launch's GPUs measured. The samples of one that has ended are in a file.
async fn gpus(api: &Api, job: JobId, launch: LaunchId, points: usize) -> Result<Vec<wire::GpuSeries>, Refused> {
    let inventory = api.service.gpus.clone();
    let read = tokio::task::spawn_blocking(move || inventory.series(job, launch)).await;
    let series = read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(|error| {
        let detail = format!("the samples of its GPUs cannot be read: {error}");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "samples-unreadable", detail)
    })?;
    Ok(series.into_iter().map(|(uuid, samples)| wire::GpuSeries { uuid, samples: thinned(samples, points) }).collect())
}

/// At most so many of these, evenly spread, the first and the last among them.
fn thinned<T>(samples: Vec<T>, points: usize) -> Vec<T> {
    let count = samples.len();
    if count <= points {
        return samples;
    }
    let mut kept = 0;
    samples
        .into_iter()
        .enumerate()
        .filter(|(index, _)| {
            // The `kept`-th of the points stands here.
            let keep = *index == kept * (count - 1) / (points - 1);
            kept += usize::from(keep);
            keep
        })
        .map(|(_, sample)| sample)
        .collect()
}

/// One series for each name, in the order in which the names appeared.
fn series(samples: &[(Time, Map<String, Value>)], started_at: Time) -> Vec<wire::Series> {
    let mut items: Vec<wire::Series> = Vec::new();
    for (at, sample) in samples {
        let seconds = (at.as_millis() - started_at.as_millis()) as f64 / 1000.0;
        for (name, value) in sample.iter().filter_map(|(name, value)| Some((name, value.as_f64()?))) {
            match items.iter_mut().find(|series| series.name == *name) {
                Some(series) => series.points.push((seconds, value)),
                None => items.push(wire::Series { name: name.clone(), points: vec![(seconds, value)] }),
            }
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_spread_evenly_from_the_first_to_the_last() {
        assert_eq!(thinned((0..=100).collect(), 5), [0, 25, 50, 75, 100]);
        assert_eq!(thinned((0..10).collect(), 2), [0, 9]);
        assert_eq!(thinned(vec![1, 2, 3], 3), [1, 2, 3]);
        let many: Vec<u32> = thinned((0..100_003).collect(), 1000);
        assert_eq!((many.len(), many[0], many[999]), (1000, 0, 100_002));
        assert!(thinned(Vec::<u32>::new(), 5).is_empty());
    }

    #[test]
    fn a_metric_that_appears_later_is_a_series_of_its_own() {
        let start = Time::from_millis(1_000_000);
        let sample = |seconds: i64, text: &str| {
            let map: Map<String, Value> = serde_json::from_str(text).expect("an object");
            (Time::from_millis(1_000_000 + seconds * 1000), map)
        };
        let samples = [sample(1, r#"{"progress": 0.1}"#), sample(2, r#"{"progress": 0.2, "loss": 3}"#)];
        let items = series(&samples, start);
        assert_eq!((items[0].name.as_str(), &items[0].points[..]), ("progress", &[(1.0, 0.1), (2.0, 0.2)][..]));
        assert_eq!((items[1].name.as_str(), &items[1].points[..]), ("loss", &[(2.0, 3.0)][..]));
    }
}
