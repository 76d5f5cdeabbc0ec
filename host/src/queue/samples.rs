//! What of a job's progress is kept as a series: often at first, more rarely as it goes on.

use std::time::Duration;

use serde_json::{Map, Number, Value};
use taxiway_job::{Progress, Time};

/// Two samples are at least this share of the time apart that the attempt has run: a chart of the whole is never coarser than
/// that, and an attempt of a year leaves some 6,000 samples (500 until the first one is thinned, then 500 for each factor of e).
const SHARE: u32 = 500;
/// Names in one sample: what a chart has room for, and more.
const NAMES_MAX: usize = 64;
/// Characters of a name.
const NAME_CHARACTERS: usize = 128;

/// Decides what is kept of one attempt.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    last: Option<Time>,
}

impl Sampler {
    /// The sample of this progress, when one is due. `started` is when the attempt's process began.
    pub(super) fn take(&mut self, progress: &Progress, started: Option<Time>, now: Time) -> Option<Map<String, Value>> {
        if let Some(last) = self.last {
            let run = elapsed(started.unwrap_or(last), now);
            // Two in one millisecond would be one row.
            if now <= last || elapsed(last, now) < run / SHARE {
                return None;
            }
        }
        let sample = numbers(progress);
        if sample.is_empty() {
            return None;
        }
        self.last = Some(now);
        Some(sample)
    }
}

/// What of a progress can be drawn: numbers, by name.
fn numbers(progress: &Progress) -> Map<String, Value> {
    let float = |value: f64| Number::from_f64(value).map(Value::Number);
    let own = [
        ("progress", progress.fraction.and_then(float)),
        ("step", progress.step.map(Value::from)),
        ("epoch", progress.epoch.and_then(float)),
    ];
    let mut sample: Map<String, Value> =
        own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    for (name, value) in &progress.metrics {
        if sample.len() >= NAMES_MAX {
            break;
        }
        if value.is_number() && name.chars().count() <= NAME_CHARACTERS && !sample.contains_key(name) {
            sample.insert(name.clone(), value.clone());
        }
    }
    sample
}

/// The same progress with an estimate of when it ends, where the job gives none: it goes on as fast as it has so far.
pub(super) fn estimated(mut progress: Progress, started: Option<Time>, now: Time) -> Progress {
    if progress.eta_seconds.is_none()
        && let (Some(fraction), Some(started)) = (progress.fraction.filter(|fraction| *fraction > 0.0), started)
    {
        let eta = elapsed(started, now).as_secs_f64() * (1.0 - fraction) / fraction;
        // Tenths: more would pretend to know.
        progress.eta_seconds = Some((eta * 10.0).round() / 10.0).filter(|eta| eta.is_finite());
    }
    progress
}

fn elapsed(from: Time, to: Time) -> Duration {
    Duration::from_millis(u64::try_from(to.as_millis() - from.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(fraction: f64) -> Progress {
        Progress { fraction: Some(fraction), ..Progress::default() }
    }

    #[test]
    fn an_attempt_that_reports_three_times_a_second_for_a_month_leaves_a_bounded_number_of_samples() {
        let start = Time::from_millis(1_700_000_000_000);
        let mut sampler = Sampler::default();
        let mut kept = 0;
        let mut now = start;
        let end = start.plus(Duration::from_secs(30 * 86_400));
        while now < end {
            now = now.plus(Duration::from_millis(333));
            kept += u32::from(sampler.take(&progress(0.5), Some(start), now).is_some());
        }
        assert!((2_000..6_000).contains(&kept), "{kept} samples");
    }

    #[test]
    fn a_short_attempt_keeps_every_sample() {
        let start = Time::from_millis(1_700_000_000_000);
        let mut sampler = Sampler::default();
        let times = (1..=300).map(|n| start.plus(Duration::from_millis(333 * n)));
        assert!(times.into_iter().all(|now| sampler.take(&progress(0.5), Some(start), now).is_some()));
    }

    #[test]
    fn only_numbers_are_kept_and_not_too_many() {
        let mut said = progress(0.25);
        said.step = Some(7);
        said.metrics.insert("loss".into(), 1.5.into());
        said.metrics.insert("gpu".into(), "A100".into());
        said.metrics.insert("progress".into(), 99.into());
        said.metrics.insert("n".repeat(200), 1.into());
        let sample = Sampler::default().take(&said, None, Time::now()).expect("the first is kept");
        assert_eq!(serde_json::Value::Object(sample), serde_json::json!({"progress": 0.25, "step": 7, "loss": 1.5}));
        said.metrics = (0..1000).map(|n| (format!("m{n}"), Value::from(n))).collect();
        assert_eq!(Sampler::default().take(&said, None, Time::now()).expect("a sample").len(), NAMES_MAX);
    }

    #[test]
    fn an_end_is_estimated_only_where_the_job_does_not_say_it() {
        let start = Time::from_millis(1_700_000_000_000);
        let now = start.plus(Duration::from_secs(30));
        assert_eq!(estimated(progress(0.25), Some(start), now).eta_seconds, Some(90.0));
        assert_eq!(estimated(progress(1.0), Some(start), now).eta_seconds, Some(0.0));
        assert_eq!(estimated(progress(0.0), Some(start), now).eta_seconds, None);
        assert_eq!(estimated(progress(0.5), None, now).eta_seconds, None);
        let said = Progress { eta_seconds: Some(7.0), ..progress(0.5) };
        assert_eq!(estimated(said, Some(start), now).eta_seconds, Some(7.0));
    }
}
