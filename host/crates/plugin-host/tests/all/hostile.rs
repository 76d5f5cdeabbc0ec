//! Guests that mean harm: every call ends within its limit, names it, and leaves the service as it was.

use crate::bench::{Bench, PATIENCE, job, submission};
use crate::guest::Guest;
use std::time::Duration;
use taxiway_plugin_host::{CallError, FailureKind, PluginHost, Problem, Severity};

async fn fails(guest: Guest) -> CallError {
    let bench = Bench::with("bad.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    println!("ended after {:?}, with a timeout of {:?}", called.duration, bench.limits.timeout);
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
async fn a_growth_over_what_a_module_says_of_itself_counts_for_no_limit() {
    let memory = "(loop $no (br_if $no (i32.ne (i32.const -1) (memory.grow $small (i32.const 1000)))))".repeat(4);
    let table =
        "(loop $no (br_if $no (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 100000)))))".repeat(4);
    let guest = Guest::validating(&format!("{memory} {table} unreachable"))
        .fields("(memory $small 1 10) (table $t 1 10 funcref)");
    let error = fails(guest).await;
    assert_eq!((error.kind.clone(), error.limit), (FailureKind::Trap, None), "{}", error.message);
}

#[tokio::test]
async fn too_many_instances_are_refused() {
    let many: String = (0..250).map(|_| "(core instance (instantiate $empty))").collect();
    let error = fails(Guest::harmless().parts(&format!("(core module $empty) {many}"))).await;
    assert_eq!(error.kind, FailureKind::Resources, "{error}");
}

#[tokio::test]
async fn fewer_instances_of_a_large_module_are_refused() {
    let globals = "(global i64 (i64.const 0))".repeat(100_000);
    let many = "(core instance (instantiate $large))".repeat(100);
    let guest = Guest::harmless().parts(&format!("(core module $large {globals}) {many}"));
    let mut bench = Bench::with("large.wasm", guest.build());
    bench.limits.timeout = PATIENCE;
    let (_host, plugin) = bench.plugin().await;
    let error = plugin.validate(&job(), &submission()).await.result.unwrap_err();
    assert_eq!(error.kind, FailureKind::Resources, "{error}");
    assert_eq!(error.limit.as_deref(), Some("83 core instances"));
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
async fn a_guest_that_calls_the_host_without_a_loop_ends_at_its_deadline() {
    // With as much memory as a guest may have without a thread to itself.
    let line = "(call $log (i32.const 2) (i32.const 0) (i32.const 3900000))\n";
    let logging = Guest::validating(&format!("{} i32.const 1024", line.repeat(10_000))).pages(60);
    for guest in [logging, Guest::talking("i32.const 1024")] {
        assert_eq!(fails(guest).await.kind, FailureKind::Timeout);
    }
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
async fn a_flood_on_standard_output_is_swallowed_and_no_failure() {
    let bench = Bench::with("loud.wasm", Guest::flooding().build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert_eq!(called.result, Ok(Vec::new()));
    let kept: usize = called.log.iter().map(|line| line.text.len()).sum();
    assert!(kept <= 17 << 10, "{kept}");
    assert_eq!((called.log[0].source, called.log[0].text.as_str()), ("stdout", "all work and no play"));
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
    let bench = Bench::with("asleep.wasm", Guest::asleep().build());
    let (_host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert_eq!(called.result.unwrap_err().kind, FailureKind::Timeout);
}

// One thread: a guest that kept it would keep it from the other calls, and they would end after it.
#[tokio::test(flavor = "current_thread")]
async fn busy_guests_do_not_hold_the_thread_that_other_calls_need() {
    let mut bench = Bench::with("busy.wasm", Guest::validating(&format!("{FOREVER} unreachable")).build());
    bench.put("asleep.wasm", Guest::asleep().build());
    bench.put("fills.wasm", Guest::filling().build());
    bench.put("talks.wasm", Guest::talking("unreachable").build());
    bench.put("good.wasm", Guest::harmless().build());
    bench.limits.timeout = Duration::from_secs(600);
    let host = bench.host().await;
    let good = host.plugin("good").unwrap();
    let mut hostile = tokio::task::JoinSet::new();
    // Those that fill have 100 MiB each.
    for (name, times) in [("busy", 8), ("asleep", 8), ("talks", 8), ("fills", 2)] {
        let plugin = host.plugin(name).unwrap();
        for _ in 0..times {
            let plugin = plugin.clone();
            hostile.spawn(async move { plugin.validate(&job(), &submission()).await });
        }
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let called = good.validate(&job(), &submission()).await;
        called.result.unwrap();
        slowest = slowest.max(called.duration);
        // The turn of all the others.
        tokio::task::yield_now().await;
    }
    println!("the slowest of 200 calls beside them took {slowest:?}");
    assert!(hostile.try_join_next().is_none(), "they are still at it");
}

// One thread, as above.
#[tokio::test(flavor = "current_thread")]
async fn a_guest_whose_instances_take_long_to_make_does_not_hold_the_thread_that_other_calls_need() {
    let guest = Guest::linking(5_000, 190);
    let mut bench = Bench::with("good.wasm", Guest::harmless().build());
    bench.put("links.wasm", guest.build());
    // Two that pause before they make them.
    bench.put("grows.wasm", guest.clone().pages(81).build());
    bench.put("reads.wasm", guest.clone().build());
    bench.put("reads.toml", format!("read = [{:?}]", bench.cache.path()));
    bench.put("fails.wasm", guest.failing_at_random().build());
    bench.limits.timeout = Duration::from_secs(600);
    let host = bench.host().await;
    for name in ["links", "grows", "reads"] {
        // Whatever the first call has shown.
        for _ in 0..2 {
            let (ended, answered) = beside(&host, name).await;
            assert_eq!(ended, Ok(Vec::new()));
            assert!(answered > 2, "{name}: others were answered {answered} times meanwhile");
        }
    }
    // Whatever one has shown that failed before it came to them.
    let mut failed = false;
    for _ in 0..100 {
        let (ended, answered) = beside(&host, "fails").await;
        match ended {
            Err(error) => {
                assert_eq!(error.kind, FailureKind::Trap);
                failed = true;
            }
            Ok(_) => {
                assert!(answered > 2, "others were answered {answered} times meanwhile");
                if failed {
                    return;
                }
            }
        }
    }
    panic!("it never answered after it had failed");
}

/// How a call of this plugin ends, and how often another one answers meanwhile.
async fn beside(host: &PluginHost, name: &str) -> (Result<Vec<Problem>, CallError>, usize) {
    let (plugin, good) = (host.plugin(name).unwrap(), host.plugin("good").unwrap());
    let mut hostile = tokio::task::JoinSet::new();
    hostile.spawn(async move { plugin.validate(&job(), &submission()).await.result });
    let mut answered = 0;
    loop {
        if let Some(ended) = hostile.try_join_next() {
            return (ended.unwrap(), answered);
        }
        assert_eq!(good.validate(&job(), &submission()).await.result, Ok(Vec::new()));
        answered += 1;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hostile_guests_took_is_given_back_and_their_failures_are_counted_and_told() {
    let table = "(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 4096))))) unreachable";
    let memory = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 256))))) unreachable";
    let answer =
        "(i32.store (i32.const 1032) (i32.const 0)) (i32.store (i32.const 1036) (i32.const 800000)) i32.const 1024";
    let log = "(call $log (i32.const 2) (i32.const 0) (i32.const 33554432)) i32.const 1024";
    let deep = Guest::validating("(call $deeper) i32.const 1024").fields("(func $deeper (call $deeper))");
    let many: String = (0..250).map(|_| "(core instance (instantiate $empty))").collect();
    let guests = [
        ("loops", Guest::validating(&format!("{FOREVER} unreachable")), "timeout", Some("timeout of 200 ms")),
        ("starts", Guest::harmless().starting(FOREVER), "timeout", Some("timeout of 200 ms")),
        ("sleeps", Guest::asleep(), "timeout", Some("timeout of 200 ms")),
        ("fills", Guest::filling(), "timeout", Some("timeout of 200 ms")),
        ("recurses", deep, "trap", Some("call stack")),
        ("grows", Guest::validating(memory), "memory", Some("memory of 128 MiB")),
        ("two", Guest::harmless().pages(1100).fields("(memory $second 1100)"), "memory", Some("memory of 128 MiB")),
        ("tables", Guest::validating(table).fields("(table $t 1 funcref)"), "resources", Some("131072 table elements")),
        (
            "many",
            Guest::harmless().parts(&format!("(core module $empty) {many}")),
            "resources",
            Some("200 core instances"),
        ),
        ("answers", Guest::validating(answer).pages(1024), "transfer", Some("4 MiB")),
        ("logs", Guest::validating(log).pages(1024), "transfer", Some("4 MiB")),
        ("panics", Guest::validating("unreachable"), "trap", None),
        ("strays", Guest::validating("i32.const -8"), "trap", None),
    ];
    let mut bench = Bench::new();
    bench.limits.timeout = Duration::from_millis(200);
    for (name, guest, ..) in &guests {
        bench.put(&format!("{name}.wasm"), guest.build());
    }
    let host = bench.host().await;
    let mut resident = Vec::new();
    for round in 1..=4u64 {
        for (name, _, kind, limit) in &guests {
            let plugin = host.plugin(name).unwrap_or_else(|| panic!("{name}: {:?}", host.plugins()));
            let error = plugin.validate(&job(), &submission()).await.result.unwrap_err();
            assert_eq!((error.plugin.as_str(), error.kind.as_str()), (*name, *kind), "{error}");
            let told = error.limit.as_deref().unwrap_or_default();
            assert!(limit.is_none_or(|limit| told.contains(limit)), "{name}: {told}");
            let status = host.plugins().into_iter().find(|status| status.name == *name).unwrap();
            assert_eq!((status.calls, status.failures), (round, round));
            assert_eq!(status.last_failure.unwrap().kind, *kind);
        }
        resident.push(resident_bytes());
    }
    println!("resident after each round: {resident:?}");
    // The first round fills caches of the allocator and of wasmtime. A guest of 128 MiB that stayed would be seen. What a guest had that
    // was cut off is given back after the answer, one guest at a time, and nothing tells of it: so it is looked again.
    let began = std::time::Instant::now();
    while resident_bytes() >= resident[0] + (48 << 20) {
        assert!(began.elapsed() < Duration::from_secs(60), "{resident:?}, and {} in the end", resident_bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let loops = host.metrics().into_iter().find(|metrics| metrics.plugin == "loops").unwrap();
    assert_eq!(loops.hooks[0].failures, [("timeout", 4)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_that_cannot_be_interrupted_each_end_and_give_back_what_they_held() {
    let mut bench = Bench::with("fills.wasm", Guest::filling().build());
    bench.put("good.wasm", Guest::harmless().build());
    bench.put("fills.toml", "timeout = \"100ms\"");
    bench.limits.timeout = Duration::from_secs(600);
    bench.limits.wait = Duration::from_secs(600);
    let host = bench.host().await;
    let (fills, good) = (host.plugin("fills").unwrap(), host.plugin("good").unwrap());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let fills = fills.clone();
        calls.spawn(async move { fills.validate(&job(), &submission()).await.result.unwrap_err().kind });
    }
    while let Some(kind) = calls.join_next().await {
        assert_eq!(kind.unwrap(), FailureKind::Timeout);
        assert_eq!(good.validate(&job(), &submission()).await.result, Ok(Vec::new()));
    }
    let status = host.plugins().into_iter().find(|status| status.name == "fills").unwrap();
    assert_eq!((status.calls, status.failures), (32, 32));
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
    // It is given back after the answer, and nothing tells of it: so it is looked again.
    let began = std::time::Instant::now();
    while resident_bytes() >= before + (32 << 20) {
        assert!(began.elapsed() < Duration::from_secs(60), "{before} → {}", resident_bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
