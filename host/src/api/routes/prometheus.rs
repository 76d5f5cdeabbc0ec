//! `GET /metrics`: what Prometheus reads (its text format, version 0.0.4).

use std::fmt::Write;

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::super::State;
use super::super::answer::Refused;
use crate::store::{BOUNDS, Counted, Histogram};

pub(super) async fn metrics(api: State) -> Result<Response, Refused> {
    let service = &api.service;
    let summary = service.queue.summary().await?;
    let text = Text::default()
        .gauge("taxiway_up_since_seconds", "When the service started, in seconds since the Unix epoch.")
        .value("", service.started_at.as_millis() as f64 / 1e3)
        .gauge("taxiway_queue_mode", "1 for the mode that the queue is in.")
        .value(&label("mode", summary.mode.as_str()), 1.0)
        .gauge("taxiway_queue_length", "Jobs that are queued.")
        .value("", summary.queued as f64)
        .gauge("taxiway_running_jobs", "Jobs that are pending, running or cancelling.")
        .value("", summary.running.len() as f64)
        .gauge("taxiway_slots", "GPUs, or virtual slots, that the queue may use.")
        .value("", service.gpus.slot_count() as f64)
        .gauge("taxiway_jobs", "Jobs that are kept, by state.")
        .values("state", &service.store.jobs_by_state().await?)
        .gauge("taxiway_deliveries", "Deliveries that are kept, by status.")
        .values("status", &service.store.deliveries_by_status().await?)
        .counted(&service.store.counted())
        .plugins(&service.plugins.metrics())
        .0;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// The text as it grows. Writing to a string does not fail.
#[derive(Default)]
pub(super) struct Text(pub(super) String, &'static str);

impl Text {
    pub(super) fn gauge(self, name: &'static str, help: &str) -> Self {
        self.metric(name, "gauge", help)
    }

    pub(super) fn counter(self, name: &'static str, help: &str) -> Self {
        self.metric(name, "counter", help)
    }

    pub(super) fn metric(mut self, name: &'static str, kind: &str, help: &str) -> Self {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.1 = name;
        self
    }

    /// A sample of the metric that was begun last.
    pub(super) fn value(self, labels: &str, value: f64) -> Self {
        self.sample("", labels, value)
    }

    /// The same under a longer name: histograms have three.
    pub(super) fn sample(mut self, suffix: &str, labels: &str, value: f64) -> Self {
        let _ = writeln!(self.0, "{}{suffix}{labels} {value}", self.1);
        self
    }

    fn values(self, name: &str, values: &[(String, u64)]) -> Self {
        values.iter().fold(self, |text, (value, count)| text.value(&label(name, value), *count as f64))
    }

    fn counted(self, counted: &Counted) -> Self {
        let text = self
            .counter("taxiway_submissions_total", "Jobs that were accepted and stored since the start.")
            .value("", counted.submissions as f64)
            .counter("taxiway_store_units_total", "Units of changes that were made durable since the start.")
            .value("", counted.units as f64)
            .counter("taxiway_store_failed_commits_total", "Commits that the disk refused since the start.")
            .value("", counted.failed_commits as f64)
            .metric("taxiway_store_commit_seconds", "histogram", "How long commits took.")
            .histogram("", &counted.commits)
            .metric(
                "taxiway_handover_seconds",
                "histogram",
                "How long a slot was idle from the end of a job to the exec of the next.",
            )
            .histogram("", counted.handovers.get("all").unwrap_or(&Histogram::default()))
            .metric("taxiway_handover_part_seconds", "histogram", "The same, split into its parts.");
        let parts = counted.handovers.iter().filter(|(name, _)| *name != "all");
        parts.fold(text, |text, (name, histogram)| text.histogram(name, histogram))
    }

    /// The samples of a histogram, of one part of the whole where it has several.
    fn histogram(mut self, part: &str, histogram: &Histogram) -> Self {
        let part = if part.is_empty() { String::new() } else { format!("part=\"{part}\"") };
        let comma = if part.is_empty() { "" } else { "," };
        let name = self.1;
        let mut count = 0;
        for (index, bucket) in histogram.buckets.iter().enumerate() {
            count += bucket;
            let bound = BOUNDS.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let _ = writeln!(self.0, "{name}_bucket{{{part}{comma}le=\"{bound}\"}} {count}");
        }
        let labels = if part.is_empty() { part } else { format!("{{{part}}}") };
        let _ = writeln!(self.0, "{name}_sum{labels} {}\n{name}_count{labels} {count}", histogram.sum);
        self
    }
}

fn label(name: &str, value: &str) -> String {
    // States, modes and names of our own parts: nothing in them needs to be escaped.
    format!("{{{name}=\"{value}\"}}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_histogram_counts_up_to_all_of_its_samples() {
        let mut handover = Histogram::default();
        handover.buckets[3] = 2;
        handover.buckets[BOUNDS.len()] = 1;
        handover.sum = 12.5;
        let handovers = BTreeMap::from([("all".to_owned(), handover.clone()), ("end_to_go".to_owned(), handover)]);
        let text = Text::default().counted(&Counted { submissions: 3, handovers, ..Counted::default() }).0;
        for line in [
            "taxiway_submissions_total 3",
            "taxiway_handover_seconds_bucket{le=\"0.00075\"} 0",
            "taxiway_handover_seconds_bucket{le=\"0.001\"} 2",
            "taxiway_handover_seconds_bucket{le=\"+Inf\"} 3",
            "taxiway_handover_seconds_sum 12.5",
            "taxiway_handover_part_seconds_bucket{part=\"end_to_go\",le=\"10\"} 2",
            "taxiway_handover_part_seconds_count{part=\"end_to_go\"} 3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
