//! Guests that mean harm: every call ends within its limit, names it, and leaves the service as it was.

use crate::bench::{Bench, job, submission};
use crate::guest::Guest;
use std::time::{Duration, Instant};
use taxiway_plugin_host::{CallError, FailureKind, Limits, Problem, Severity};

/// How long after its limit a call may end.
const LATE: Duration = Duration::from_millis(100);

async fn fails(guest: Guest) -> CallError {
    let bench = Bench::with("bad.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert!(called.duration <= bench.limits.timeout + LATE, "took {:?}", called.duration);
    let error = called.result.unwrap_err();
    assert_eq!(error.plugin, "bad");
    error
}

async fn problems(guest: Guest) -> Vec<Problem> {
    let bench = Bench::with("odd.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    plugin.validate(&job(), &submission()).await.result.unwrap()
}

const FOREVER: &str = "(loop $forever (br $forever))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_ends_at_its_timeout() {
    let error = fails(Guest::validating(&format!("{FOREVER} unreachable"))).await;
    assert_eq!(error.kind, FailureKind::Timeout);
    assert_eq!(error.limit.as_deref(), Some("timeout of 500 ms"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_in_the_start_function_ends_at_its_timeout() {
    let error = fails(Guest::harmless().starting(FOREVER)).await;
    assert_eq!(error.kind, FailureKind::Timeout);
}

#[tokio::test]
async fn unbounded_recursion_exhausts_its_own_stack() {
    let guest = Guest::validating("(call $deeper) i32.const 1024").fields("(func $deeper (call $deeper))");
    let error = fails(guest).await;
    assert_eq!(error.kind, FailureKind::Trap);
    assert!(error.message.contains("stack"), "{error}");
}

#[tokio::test]
async fn a_memory_bomb_is_refused_its_memory() {
    let error = fails(Guest::validating(
        "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 256))))) unreachable",
    ))
    .await;
    assert_eq!(error.kind, FailureKind::Memory);
    assert_eq!(error.limit.as_deref(), Some("memory of 128 MiB"));
}

#[tokio::test]
async fn a_memory_that_begins_over_the_limit_is_refused() {
    let error = fails(Guest::harmless().pages(2049)).await;
    assert_eq!(error.kind, FailureKind::Memory);
}

#[tokio::test]
async fn two_memories_each_under_the_limit_are_over_it_together() {
    let error = fails(Guest::harmless().pages(1100).fields("(memory $second 1100)")).await;
    assert_eq!(error.kind, FailureKind::Memory);
}

#[tokio::test]
async fn a_table_bomb_is_refused_its_elements() {
    let guest = Guest::validating(
        "(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 65536))))) unreachable",
    )
    .fields("(table $t 1 funcref)");
    let error = fails(guest).await;
    assert_eq!(error.kind, FailureKind::Resources);
    assert_eq!(error.limit.as_deref(), Some("131072 table elements"));
}

#[tokio::test]
async fn too_many_instances_are_refused() {
    let many: String = (0..250).map(|_| "(core instance (instantiate $empty))").collect();
    let error = fails(Guest::harmless().parts(&format!("(core module $empty) {many}"))).await;
    assert_eq!(error.kind, FailureKind::Resources, "{error}");
}

#[tokio::test]
async fn a_huge_answer_is_not_carried_out() {
    let guest = Guest::validating(
        "(i32.store (i32.const 1032) (i32.const 0)) (i32.store (i32.const 1036) (i32.const 800000)) i32.const 1024",
    )
    .pages(1024);
    let error = fails(guest).await;
    assert_eq!(error.kind, FailureKind::Transfer, "{error}");
    assert!(error.limit.unwrap().contains("4 MiB"));
}

#[tokio::test]
async fn a_huge_log_message_is_not_carried_out() {
    let guest =
        Guest::validating("(call $log (i32.const 2) (i32.const 0) (i32.const 33554432)) i32.const 1024").pages(1024);
    assert_eq!(fails(guest).await.kind, FailureKind::Transfer);
}

#[tokio::test]
async fn a_flood_of_log_lines_is_swallowed_and_no_failure() {
    let guest = Guest::validating(
        "(local $i i32)
         (loop $next
           (call $log (i32.const 2) (i32.const 2048) (i32.const 100))
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br_if $next (i32.lt_u (local.get $i) (i32.const 10000))))
         i32.const 1024",
    );
    let bench = Bench::with("loud.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert_eq!(called.result, Ok(Vec::new()));
    assert!(called.log.len() < 200, "{}", called.log.len());
    assert!(called.log.last().unwrap().text.contains("more than is kept"));
}

#[tokio::test]
async fn a_panic_is_a_trap() {
    let error = fails(Guest::validating("unreachable")).await;
    assert_eq!(error.kind, FailureKind::Trap);
    assert!(error.message.contains("panicked or aborted"), "{error}");
}

#[tokio::test]
async fn an_answer_outside_of_its_memory_is_a_failure() {
    assert_eq!(fails(Guest::validating("i32.const -8")).await.kind, FailureKind::Trap);
}

#[tokio::test]
async fn ten_thousand_problems_are_cut_to_a_hundred() {
    let said = problems(Guest::saying(10_000, 0, "/train/lr", "too high")).await;
    assert_eq!(said.len(), 100);
    assert_eq!(
        (said[0].severity, said[0].path.as_str(), said[0].message.as_str()),
        (Severity::Error, "/train/lr", "too high")
    );
}

#[tokio::test]
async fn a_pointer_to_nowhere_counts_for_the_whole_job() {
    assert_eq!(problems(Guest::saying(1, 1, "/no/such/place", "m")).await[0].path, "");
    assert_eq!(problems(Guest::saying(1, 1, "/train/missing", "m")).await[0].path, "/train/missing");
}

#[tokio::test]
async fn control_characters_do_not_come_out() {
    assert_eq!(problems(Guest::saying(1, 2, "", "a\x1b[2Jb\nc\u{202e}")).await[0].message, "a[2Jb c");
}

#[tokio::test]
async fn invalid_json_is_the_rewriters_failure() {
    for (config, want) in [("{\"a\":", "no JSON"), ("[1]", "no JSON object"), (&"[".repeat(1000), "no JSON")] {
        let bench = Bench::with("re.wasm", Guest::rewriting_to(config).build());
        let (_host, plugin) = bench.plugin().await;
        let error = plugin.rewrite(&job(), &submission()).await.result.unwrap_err();
        assert_eq!(error.kind, FailureKind::MalformedOutput);
        assert!(error.message.contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_rewriters_change_is_kept_as_a_patch() {
    let bench = Bench::with("re.wasm", Guest::rewriting_to(r#"{"train": {"lr": 0.2}, "seed": 1}"#).build());
    let (_host, plugin) = bench.plugin().await;
    let rewritten = plugin.rewrite(&job(), &submission()).await.result.unwrap().unwrap();
    assert_eq!(rewritten.config, Some(serde_json::json!({"train": {"lr": 0.2}, "seed": 1})));
    assert_eq!(rewritten.patch.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_guest_that_sleeps_in_the_host_is_ended_at_its_timeout() {
    let bench = Bench::with("asleep.wasm", asleep().build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert_eq!(called.result.unwrap_err().kind, FailureKind::Timeout);
    assert!(called.duration <= bench.limits.timeout + LATE, "took {:?}", called.duration);
}

/// A guest that waits for an hour on the monotonic clock.
fn asleep() -> Guest {
    Guest::validating("(call $wait (call $subscribe (i64.const 3600000000000))) i32.const 1024")
        .importing(
            r#"
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $p)) (export "pollable" (type $pp (eq $p)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pp))))))"#,
        )
        .calling("wait", "poll", "[method]pollable.block", "(param i32)")
        .calling("subscribe", "clock", "subscribe-duration", "(param i64) (result i32)")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_guests_do_not_delay_other_calls() {
    let bench = Bench::with("busy.wasm", Guest::validating(&format!("{FOREVER} unreachable")).build());
    bench.put("good.wasm", Guest::harmless().build());
    let host = bench.host().await;
    let (busy, good) = (host.plugin("busy").unwrap(), host.plugin("good").unwrap());
    let loops: Vec<_> = (0..8)
        .map(|_| {
            let busy = busy.clone();
            tokio::spawn(async move { busy.validate(&job(), &submission()).await })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let until = Instant::now() + bench.limits.timeout;
    while Instant::now() < until {
        let called = good.validate(&job(), &submission()).await;
        called.result.unwrap();
        slowest = slowest.max(called.duration);
    }
    println!("the slowest call beside eight busy guests took {slowest:?}");
    // 25 ms on a machine of its own; tests share theirs.
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    for called in loops {
        assert_eq!(called.await.unwrap().result.unwrap_err().kind, FailureKind::Timeout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_whose_places_are_taken_is_busy() {
    let mut bench = Bench::with("busy.wasm", Guest::validating(&format!("{FOREVER} unreachable")).build());
    bench.limits = Limits { parallel: 1, ..bench.limits };
    let (_host, plugin) = bench.plugin().await;
    let (job, context) = (job(), submission());
    let (first, second) = tokio::join!(plugin.validate(&job, &context), plugin.validate(&job, &context));
    let kinds = [first.result.unwrap_err().kind, second.result.unwrap_err().kind];
    assert!(kinds.contains(&FailureKind::Busy) || kinds == [FailureKind::Timeout, FailureKind::Timeout], "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_returns_after_many_memory_bombs() {
    let bench = Bench::with(
        "bomb.wasm",
        Guest::validating("(drop (memory.grow (i32.const 1500))) (memory.fill (i32.const 32768) (i32.const 1) (i32.const 90000000)) unreachable").build(),
    );
    let (_host, plugin) = bench.plugin().await;
    plugin.validate(&job(), &submission()).await.result.unwrap_err();
    let before = resident_bytes();
    for _ in 0..20 {
        plugin.validate(&job(), &submission()).await.result.unwrap_err();
    }
    let after = resident_bytes();
    assert!(after < before + (32 << 20), "{before} → {after}");
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
