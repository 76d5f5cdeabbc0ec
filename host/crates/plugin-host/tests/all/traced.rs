//! What a call leaves in the service's log.

use crate::bench::{Bench, job, submission};
use crate::guest::Guest;
use std::fs;
use std::sync::Arc;
use tracing::instrument::WithSubscriber;

#[tokio::test]
async fn a_calls_span_says_who_was_called_for_what_how_it_ended_and_what_it_took() {
    for (guest, ended, said) in [
        (Guest::harmless().pages(2), "answered", "plugin answered"),
        (Guest::validating("unreachable").pages(3), "trap", "plugin failed: "),
    ] {
        let bench = Bench::with("traced.wasm", guest.build());
        let (_host, plugin) = bench.plugin().await;
        let log = bench.cache.path().join("log");
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(Arc::new(fs::File::create(&log).unwrap()));
        let called = plugin.validate(&job(), &submission()).with_subscriber(subscriber.finish()).await;
        assert!(called.peak_memory_bytes > 65536, "{called:?}");
        let span = format!(
            r#"plugin_call{{plugin="traced" version={:?} hook="validate" job="job-1" dry_run=false outcome="{ended}" duration_us={} peak_memory_bytes={}}}"#,
            plugin.version(),
            called.duration.as_micros(),
            called.peak_memory_bytes,
        );
        let log = fs::read_to_string(log).unwrap();
        assert!(log.lines().any(|line| line.contains(&span) && line.contains(said)), "{span}: {log}");
    }
}
