//! Samples in the course of time, in as much memory as was agreed on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use taxiway_job::Time;

/// Points of a job's series: enough for a chart on any screen. A longer job's are further apart.
const POINTS: usize = 240;

/// Points of a GPU's latest series: an hour of them.
const RECENT_POINTS: usize = 1800;

/// A GPU at one moment, or on average around it. What could not be measured is null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When; the last moment of an average.
    pub at: Time,
    /// Share of the time in which it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use by whomever, in bytes; of an average, the most.
    pub memory_used_bytes: Option<u64>,
    /// Watts.
    pub power_watts: Option<f64>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<f64>,
}

/// A series over all of a job's time. When it is full, each two neighbours become one, and from then on twice as many samples
/// make a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Series {
    /// How many samples make a point.
    each: u32,
    points: Vec<Sample>,
    /// Samples of the point to come.
    gathered: Vec<Sample>,
}

impl Default for Series {
    fn default() -> Self {
        Self { each: 1, points: Vec::new(), gathered: Vec::new() }
    }
}

impl Series {
    pub(super) fn push(&mut self, sample: Sample) {
        self.gathered.push(sample);
        if self.gathered.len() < self.each as usize {
            return;
        }
        self.points.extend(mean(&self.gathered));
        self.gathered.clear();
        if self.points.len() == POINTS {
            self.points = self.points.chunks(2).filter_map(mean).collect();
            self.each *= 2;
        }
    }

    /// All of it, the first point first.
    pub(super) fn points(&self) -> Vec<Sample> {
        self.points.iter().copied().chain(mean(&self.gathered)).collect()
    }
}

/// The latest samples of a GPU.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Sample>);

impl Recent {
    pub(super) fn push(&mut self, sample: Sample) {
        if self.0.len() == RECENT_POINTS {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    pub(super) fn points(&self) -> Vec<Sample> {
        self.0.iter().copied().collect()
    }
}

/// None of none.
fn mean(samples: &[Sample]) -> Option<Sample> {
    let last = samples.last()?;
    let of = |value: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Some(Sample {
        at: last.at,
        utilization: of(|sample| sample.utilization),
        memory_used_bytes: samples.iter().filter_map(|sample| sample.memory_used_bytes).max(),
        power_watts: of(|sample| sample.power_watts),
        temperature_celsius: of(|sample| sample.temperature_celsius),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64) -> Sample {
        Sample {
            at: Time::from_millis(second * 1000),
            utilization: Some(second as f64),
            memory_used_bytes: Some(second as u64),
            power_watts: None,
            temperature_celsius: None,
        }
    }

    #[test]
    fn a_long_series_keeps_its_length_its_span_and_its_mean() {
        let mut series = Series::default();
        for second in 0..100_000 {
            series.push(sample(second));
        }
        let points = series.points();
        assert!((POINTS / 2..=POINTS).contains(&points.len()), "{}", points.len());
        assert!(points.is_sorted_by_key(|point| point.at));
        assert_eq!(points.last().expect("the last").at, Time::from_millis(99_999_000));
        assert_eq!(points.iter().filter_map(|point| point.memory_used_bytes).max(), Some(99_999));
        let whole = &points[..points.len() - 1];
        let mean = whole.iter().filter_map(|point| point.utilization).sum::<f64>() / whole.len() as f64;
        let exact = (whole.last().expect("one").at.as_millis() / 1000) as f64 / 2.0;
        assert!((mean - exact).abs() < 1.0, "{mean} and {exact}");
    }

    #[test]
    fn what_is_older_than_the_latest_points_is_forgotten() {
        let mut recent = Recent::default();
        for second in 0..RECENT_POINTS as i64 + 5 {
            recent.push(sample(second));
        }
        let points = recent.points();
        assert_eq!((points.len(), points[0].at), (RECENT_POINTS, Time::from_millis(5000)));
    }
}
