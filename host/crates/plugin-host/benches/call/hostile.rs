//! Guests that mean harm: how late each call ends, what others feel of it, and what memory stays.

use crate::guest::Guest;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use taxiway_plugin_host::{Context, JobView, Limits, Options, Plugin, PluginHost};

const TIMEOUT: Duration = Duration::from_millis(500);
/// Calls of one guest at a time: as many as there are places for one plugin.
const AT_A_TIME: usize = 8;

const FOREVER: &str = "(loop $forever (br $forever))";

fn guests() -> Vec<(&'static str, Guest)> {
    let table = "(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 4096))))) unreachable";
    let memory = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (memory.fill (i32.const 32768) (i32.const 1) (i32.const 90000000)) unreachable";
    let full =
        "(drop (memory.grow (i32.const 1600))) (memory.fill (i32.const 32768) (i32.const 1) (i32.const 100000000))";
    // Each time one instruction, which nothing can interrupt.
    let fill = "(drop (memory.grow (i32.const 1600))) (loop $again (memory.fill (i32.const 32768) (i32.const 1) (i32.const 100000000)) (memory.copy (i32.const 32768) (i32.const 65536) (i32.const 100000000)) (br $again)) unreachable";
    let answer =
        "(i32.store (i32.const 1032) (i32.const 0)) (i32.store (i32.const 1036) (i32.const 800000)) i32.const 1024";
    let log = "(call $log (i32.const 2) (i32.const 0) (i32.const 33554432)) i32.const 1024";
    let many: String = (0..250).map(|_| "(core instance (instantiate $empty))").collect();
    vec![
        ("endless loop", Guest::validating(&format!("{FOREVER} unreachable"))),
        ("endless loop at start", Guest::harmless().starting(FOREVER)),
        ("recursion", Guest::validating("(call $deep) i32.const 1024").fields("(func $deep (call $deep))")),
        ("memory bomb", Guest::validating(memory)),
        ("100 MiB at once", Guest::validating(fill)),
        ("100 MiB, then an answer", Guest::validating(&format!("{full} {}", Guest::no_problems()))),
        ("two memories", Guest::harmless().pages(1100).fields("(memory $second 1100)")),
        ("table bomb", Guest::validating(table).fields("(table $t 1 funcref)")),
        ("many instances", Guest::harmless().parts(&format!("(core module $empty) {many}"))),
        ("long to link", Guest::linking(20_000, 90)),
        ("huge answer", Guest::validating(answer).pages(1024)),
        ("huge log message", Guest::validating(log).pages(1024)),
        ("host calls in a row", Guest::talking("unreachable")),
        ("10,000 problems", Guest::saying(10_000, 0, "/train/lr", "too high")),
        ("panic", Guest::validating("unreachable")),
    ]
}

/// One row for each guest, with eight of its calls at a time beside a plugin that is called again and again.
pub async fn measure(compiler: std::path::PathBuf, job: &JobView, context: &Context) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let plugins_dir = aside.path().join("plugins");
    std::fs::create_dir(&plugins_dir).expect("a folder");
    let guests = guests();
    let file = |name: &str| name.replace(' ', "-").replace(',', "");
    for (name, guest) in &guests {
        std::fs::write(plugins_dir.join(format!("{}.wasm", file(name))), guest.build()).expect("a file");
    }
    std::fs::write(plugins_dir.join("good.wasm"), Guest::harmless().build()).expect("a file");
    let host = PluginHost::start(Options {
        plugins_dir,
        state_dir: aside.path().to_owned(),
        cache_dir: aside.path().join("cache"),
        ca_file: None,
        limits: Limits { timeout: TIMEOUT, ..Limits::default() },
        bundled: &[],
        compiler,
    })
    .await
    .expect("a host");
    host.ready().await;
    let good = host.plugin("good").expect("it loads");
    let alone = slowest_beside(&good, job, context, tokio::time::sleep(TIMEOUT)).await;
    let mut rows = Vec::new();
    for (name, _) in &guests {
        let plugin = host.plugin(&file(name)).expect("it loads");
        // Once before, so that what is kept for the next time is not counted.
        let at_first = resident_bytes();
        plugin.validate(job, context).await;
        let before = given_back(at_first).await;
        let (mut longest, mut told) = (Duration::ZERO, String::new());
        let slowest = slowest_beside(&good, job, context, async {
            let calls: Vec<_> = (0..AT_A_TIME)
                .map(|_| {
                    let (plugin, job, context) = (plugin.clone(), job.clone(), context.clone());
                    tokio::spawn(async move { plugin.validate(&job, &context).await })
                })
                .collect();
            for call in calls {
                let called = call.await.expect("no panic");
                longest = longest.max(called.duration);
                told = match called.result {
                    Ok(_) => "answered".to_owned(),
                    Err(error) => error.limit.unwrap_or_else(|| error.kind.as_str().to_owned()),
                };
            }
        })
        .await;
        let kept = given_back(before).await as f64 - before as f64;
        rows.push(json!({
            "guest": name,
            "limit": told,
            "longest_ms": longest.as_secs_f64() * 1e3,
            "late_ms": longest.saturating_sub(TIMEOUT).as_secs_f64() * 1e3,
            "others_slowest_ms": slowest.as_secs_f64() * 1e3,
            "memory_kept_mib": kept / f64::from(1 << 20),
        }));
    }
    json!({"at_a_time": AT_A_TIME, "timeout_ms": TIMEOUT.as_millis(), "alone_slowest_ms": alone.as_secs_f64() * 1e3, "guests": rows})
}

/// The slowest call of a plugin for as long as `meanwhile` lasts.
async fn slowest_beside(
    good: &Plugin,
    job: &JobView,
    context: &Context,
    meanwhile: impl Future<Output = ()>,
) -> Duration {
    let ended = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (good, job, context, ended) = (good.clone(), job.clone(), context.clone(), ended.clone());
        async move {
            let mut slowest = Duration::ZERO;
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                good.validate(&job, &context).await.result.expect("it answers");
                slowest = slowest.max(begun.elapsed());
                tokio::task::yield_now().await;
            }
            slowest
        }
    });
    meanwhile.await;
    ended.store(true, Ordering::Relaxed);
    others.await.expect("no panic")
}

/// What is resident when that of calls that have ended is given back, which nothing tells of: it is done after their answers. What is
/// still there after a few seconds is kept.
async fn given_back(before: u64) -> u64 {
    const NEARLY: u64 = 4 << 20;
    let until = Instant::now() + Duration::from_secs(5);
    while resident_bytes() > before + NEARLY && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    resident_bytes()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
