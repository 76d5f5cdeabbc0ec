//! Many calls at a time: who waits, for whom, and that nobody is blamed for waiting.

use crate::bench::{Bench, job, submission, until};
use crate::guest::Guest;
use std::time::Duration;
use taxiway_plugin_host::{FailureKind, Limits, Plugin, PluginHost, PluginState};
use tokio::task::JoinSet;

fn endless() -> Guest {
    Guest::validating("(loop $forever (br $forever)) unreachable")
}

/// Places are taken when a call is first polled: on one thread, all of these have theirs, or wait for one, when this returns.
async fn called_at_once(plugin: &Plugin, times: usize) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    for _ in 0..times {
        let plugin = plugin.clone();
        calls.spawn(async move {
            plugin.validate(&job(), &submission()).await;
        });
    }
    tokio::task::yield_now().await;
    calls
}

fn bench(parallel: usize, parallel_total: usize) -> Bench {
    let mut bench = Bench::with("endless.wasm", endless().build());
    bench.limits = Limits { parallel, parallel_total, timeout: Duration::from_secs(600), ..bench.limits };
    bench
}

fn status(host: &PluginHost, name: &str) -> taxiway_plugin_host::PluginStatus {
    host.plugins().into_iter().find(|status| status.name == name).unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn a_plugin_answers_while_others_hold_every_place_with_calls_that_never_end() {
    let bench = bench(8, 4);
    bench.put("another.wasm", endless().fields("(func)").build());
    bench.put("good.wasm", Guest::harmless().build());
    let host = bench.host().await;
    let plugin = |name| host.plugin(name).unwrap();
    let one = called_at_once(&plugin("endless"), 8).await;
    let other = called_at_once(&plugin("another"), 8).await;
    for _ in 0..20 {
        assert_eq!(plugin("good").validate(&job(), &submission()).await.result, Ok(Vec::new()));
    }
    let good = status(&host, "good");
    assert_eq!((good.calls, good.failures), (20, 0));
    assert_eq!((one.len(), other.len()), (8, 8), "they are still at it");
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_that_found_no_place_is_no_call_and_no_failure_of_its_plugin() {
    let mut bench = bench(1, 1);
    bench.limits.wait = Duration::from_millis(20);
    let host = bench.host().await;
    let plugin = host.plugin("endless").unwrap();
    let _first = called_at_once(&plugin, 1).await;
    let called = plugin.validate(&job(), &submission()).await;
    let error = called.result.unwrap_err();
    assert_eq!((error.kind.clone(), error.limit.as_deref()), (FailureKind::Busy, Some("wait of 20 ms")));
    assert!(error.to_string().contains("could not be asked"), "{error}");
    let status = status(&host, "endless");
    assert_eq!((status.calls, status.failures, status.last_failure), (0, 0, None));
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_call_waited_for_its_place_is_not_its_time() {
    let mut bench = bench(1, 1);
    bench.limits.timeout = Duration::from_millis(200);
    let host = bench.host().await;
    let plugin = host.plugin("endless").unwrap();
    // The second begins when the first is over. If the wait counted, it would have ended with it.
    let mut calls = called_at_once(&plugin, 2).await;
    while calls.join_next().await.is_some() {}
    let status = status(&host, "endless");
    assert_eq!((status.calls, status.failures), (2, 2));
    assert_eq!(host.metrics()[0].hooks[0].failures, [("timeout", 2)]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_version_comes_into_force_while_the_old_one_holds_every_place() {
    let bench = bench(1, 1);
    let host = bench.host().await;
    let _calls = called_at_once(&host.plugin("endless").unwrap(), 4).await;
    bench.put("endless.wasm", Guest::harmless().describing("2.0.0").build());
    until(&host, "endless", |status| {
        status.is_some_and(|status| status.version.as_deref() == Some("2.0.0") && status.state == PluginState::InForce)
    })
    .await;
}
