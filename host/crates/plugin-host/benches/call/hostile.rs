//! Guests that mean harm: how late each call ends, what others feel of it, and what memory stays.

use crate::beside::{Others, given_back, resident_bytes};
use crate::guest::Guest;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use taxiway_plugin_host::{Context, Hook, JobView, Limits, Options, Plugin, PluginHost};

const TIMEOUT: Duration = Duration::from_millis(500);
/// Calls of one guest at a time: as many as there are places for one plugin.
const AT_A_TIME: usize = 8;

const FOREVER: &str = "(loop $forever (br $forever))";

/// Some milliseconds.
const A_WHILE: &str = "(local $i i32) (loop $next (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $next (i32.lt_u (local.get $i) (i32.const 10000000))))";

fn guests() -> Vec<(&'static str, Guest)> {
    let table = "(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 4096))))) unreachable";
    let memory = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (memory.fill (i32.const 32768) (i32.const 1) (i32.const 90000000)) unreachable";
    let full =
        "(drop (memory.grow (i32.const 1600))) (memory.fill (i32.const 32768) (i32.const 1) (i32.const 100000000))";
    let answer =
        "(i32.store (i32.const 1032) (i32.const 0)) (i32.store (i32.const 1036) (i32.const 800000)) i32.const 1024";
    let log = "(call $log (i32.const 2) (i32.const 0) (i32.const 33554432)) i32.const 1024";
    let many: String = (0..250).map(|_| "(core instance (instantiate $empty))").collect();
    let linking = Guest::linking(20_000, 90);
    vec![
        ("endless loop", Guest::validating(&format!("{FOREVER} unreachable"))),
        ("endless loop at start", Guest::harmless().starting(FOREVER)),
        ("recursion", Guest::validating("(call $deep) i32.const 1024").fields("(func $deep (call $deep))")),
        ("memory bomb", Guest::validating(memory)),
        // Each time one instruction, which nothing can interrupt.
        ("100 MiB at once", Guest::filling()),
        ("100 MiB, then an answer", Guest::validating(&format!("{full} {}", Guest::no_problems()))),
        ("two memories", Guest::harmless().pages(1100).fields("(memory $second 1100)")),
        ("table bomb", Guest::validating(table).fields("(table $t 1 funcref)")),
        ("many instances", Guest::harmless().parts(&format!("(core module $empty) {many}"))),
        ("long to link", linking.clone()),
        // What makes a call pause before its instances are made, and what keeps it from showing how long that takes.
        ("long to link, 5 MiB", linking.clone().pages(81)),
        (READS, linking.clone()),
        ("long to link after a while", linking.clone().starting(A_WHILE)),
        ("long to link, or it fails", linking.failing_at_random()),
        ("huge answer", Guest::validating(answer).pages(1024)),
        ("huge log message", Guest::validating(log).pages(1024)),
        ("flood on standard output", Guest::flooding()),
        ("host calls in a row", Guest::talking("unreachable")),
        ("sleep in a host call", Guest::asleep()),
        ("10,000 problems", Guest::saying(10_000, 0, "/train/lr", "too high")),
        ("pointer to nowhere", Guest::saying(1, 1, "/no/such/place", "m")),
        ("control characters", Guest::saying(1, 1, "", "a\x1b[2Jb\nc\u{202e}")),
        ("invalid JSON", Guest::rewriting_to("{\"a\":")),
        ("panic", Guest::validating("unreachable")),
    ]
}

/// The one with a directory to read.
const READS: &str = "long to link, a directory";

/// Four that each delay others by another way: by computing before the first tick of their hook, in one long step, by making
/// instances, and by calling the host.
const AT_ONCE: [&str; 4] =
    ["endless loop at start", "100 MiB at once", "long to link after a while", "host calls in a row"];

/// One row for each guest, with eight of its calls at a time beside a plugin that is called again and again, and one with eight calls
/// of each of several.
pub async fn measure(compiler: PathBuf, job: &JobView, context: &Context) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let plugins_dir = aside.path().join("plugins");
    std::fs::create_dir(&plugins_dir).expect("a folder");
    let guests = guests();
    let file = |name: &str| name.replace(' ', "-").replace(',', "");
    for (name, guest) in &guests {
        std::fs::write(plugins_dir.join(format!("{}.wasm", file(name))), guest.build()).expect("a file");
    }
    std::fs::write(plugins_dir.join(format!("{}.toml", file(READS))), format!("read = [{:?}]", aside.path()))
        .expect("a file");
    std::fs::write(plugins_dir.join("good.wasm"), Guest::harmless().build()).expect("a file");
    let host = host(aside.path(), compiler, Limits { timeout: TIMEOUT, ..Limits::default() }).await;
    let plugin = |name: &str| host.plugin(&file(name)).expect("it loads");
    let good = plugin("good");
    let others = Others::start(&good, job, context);
    // For as long as a guest is measured: there is nothing to wait for.
    tokio::time::sleep(TIMEOUT).await;
    let alone = others.slowest().await;
    let at_first = resident_bytes();
    let mut rows = Vec::new();
    for (name, _) in &guests {
        rows.push(row(name, &[plugin(name)], &good, job, context).await);
    }
    let at_once = row("four of them at once", &AT_ONCE.map(plugin), &good, job, context).await;
    let kept = given_back(at_first).await;
    json!({
        "at_a_time": AT_A_TIME,
        "timeout_ms": TIMEOUT.as_millis(),
        "alone_slowest_ms": alone.as_secs_f64() * 1e3,
        "guests": rows,
        "at_once": at_once,
        "at_once_calls": AT_A_TIME * AT_ONCE.len(),
        "memory_kept_mib": in_mib(at_first, kept),
    })
}

async fn row(name: &str, plugins: &[Plugin], good: &Plugin, job: &JobView, context: &Context) -> Value {
    // Once before, so that what is kept for the next time is not counted.
    let at_first = resident_bytes();
    for plugin in plugins {
        called(plugin, job, context).await;
    }
    let before = given_back(at_first).await;
    let (mut longest, mut told) = (Duration::ZERO, String::new());
    let others = Others::start(good, job, context);
    let calls: Vec<_> = (0..AT_A_TIME)
        .flat_map(|_| plugins)
        .map(|plugin| {
            let (plugin, job, context) = (plugin.clone(), job.clone(), context.clone());
            tokio::spawn(async move { called(&plugin, &job, &context).await })
        })
        .collect();
    for call in calls {
        let (took, ended) = call.await.expect("no panic");
        longest = longest.max(took);
        told = ended;
    }
    let slowest = others.slowest().await;
    json!({
        "guest": name,
        "limit": told,
        "longest_ms": longest.as_secs_f64() * 1e3,
        "late_ms": longest.saturating_sub(TIMEOUT).as_secs_f64() * 1e3,
        "others_slowest_ms": slowest.as_secs_f64() * 1e3,
        "memory_kept_mib": in_mib(before, given_back(before).await),
    })
}

/// How much more there is after than before.
pub fn in_mib(before: u64, after: u64) -> f64 {
    (after as f64 - before as f64) / f64::from(1 << 20)
}

/// A host over `aside/plugins` that has loaded what is there.
pub async fn host(aside: &Path, compiler: PathBuf, limits: Limits) -> PluginHost {
    let host = PluginHost::start(Options {
        plugins_dir: aside.join("plugins"),
        state_dir: aside.to_owned(),
        cache_dir: aside.join("cache"),
        ca_file: None,
        limits,
        bundled: &[],
        compiler,
    })
    .await
    .expect("a host");
    host.ready().await;
    host
}

/// How long a call of its one hook took, and what it ended with.
async fn called(plugin: &Plugin, job: &JobView, context: &Context) -> (Duration, String) {
    let (took, error) = if plugin.hooks() == [Hook::Rewrite] {
        let called = plugin.rewrite(job, context).await;
        (called.duration, called.result.err())
    } else {
        let called = plugin.validate(job, context).await;
        (called.duration, called.result.err())
    };
    let told = error
        .map_or_else(|| "answered".to_owned(), |error| error.limit.unwrap_or_else(|| error.kind.as_str().to_owned()));
    (took, told)
}
