//! A plugin has what its manifest grants, and nothing else.

use crate::bench::{Bench, PATIENCE, job, submission, until};
use crate::guest::Guest;
use taxiway_plugin_host::{FailureKind, PluginState};

/// WASI interfaces that Python and JavaScript components import whether they use them or not.
const ALL_OF_WASI: &str = r#"
  (import "wasi:cli/environment@0.2.3" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))
    (export "get-arguments" (func (result (list string))))))
  (import "wasi:io/error@0.2.3" (instance $io-error (export "error" (type (sub resource)))))
  (import "wasi:filesystem/types@0.2.3" (instance $files (export "descriptor" (type $descriptor (sub resource)))))
  (alias export $files "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.3" (instance $preopens
    (alias outer 1 $descriptor (type $d')) (export "descriptor" (type $d (eq $d')))
    (export "get-directories" (func (result (list (tuple (own $d) string)))))))
  (import "wasi:random/random@0.2.3" (instance $random (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (import "wasi:sockets/network@0.2.3" (instance $network (export "network" (type $network-r (sub resource)))))
  (import "wasi:clocks/wall-clock@0.2.3" (instance $wall))
  (import "wasi:http/types@0.2.3" (instance $http
    (export "fields" (type $fields (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))))
  (import "wasi:http/outgoing-handler@0.2.3" (instance $outgoing))"#;

#[tokio::test]
async fn a_component_that_imports_all_of_wasi_loads_without_a_grant_and_finds_nothing() {
    // Lists of variables, arguments and directories must be empty: their lengths are at the address plus four.
    let guest = Guest::validating(
        "(call $variables (i32.const 4096)) (call $arguments (i32.const 4104)) (call $directories (i32.const 4112))
         (if (i32.load (i32.const 4100)) (then unreachable))
         (if (i32.load (i32.const 4108)) (then unreachable))
         (if (i32.load (i32.const 4116)) (then unreachable))
         i32.const 1024",
    )
    .importing(ALL_OF_WASI)
    .calling("variables", "environment", "get-environment", "(param i32)")
    .calling("arguments", "environment", "get-arguments", "(param i32)")
    .calling("directories", "preopens", "get-directories", "(param i32)");
    let bench = Bench::with("python.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
}

/// What real components import, whether they use it or not: of a validator that componentize-py 0.25 made of Python, and
/// of a rewriter that componentize-js 0.23 made of JavaScript.
const PYTHON: &str = include_str!("../imports/python.wat");
const JAVASCRIPT: &str = include_str!("../imports/javascript.wat");

#[tokio::test]
async fn components_with_the_imports_of_python_and_javascript_load_without_a_grant() {
    assert!(PYTHON.contains("wasi:sockets/tcp@") && PYTHON.contains("wasi:filesystem/types@"));
    assert!(JAVASCRIPT.contains("wasi:http/outgoing-handler@"));
    for imports in [PYTHON, JAVASCRIPT] {
        let bench = Bench::with("other.wasm", Guest::harmless().importing(imports).build());
        let (_host, plugin) = bench.plugin().await;
        assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn a_granted_directory_is_there_and_no_other() {
    let guest = Guest::validating(
        "(call $directories (i32.const 4112))
         (if (i32.ne (i32.load (i32.const 4116)) (i32.const 1)) (then unreachable))
         i32.const 1024",
    )
    .importing(ALL_OF_WASI)
    .calling("directories", "preopens", "get-directories", "(param i32)");
    let bench = Bench::with("reader.wasm", guest.build());
    bench.put("reader.toml", format!("read = [{:?}]", bench.cache.path()));
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
}

#[tokio::test]
async fn more_random_bytes_than_the_limit_are_a_failure() {
    let guest = Guest::validating("(call $bytes (i64.const 1000000) (i32.const 4096)) i32.const 1024")
        .importing(ALL_OF_WASI)
        .calling("bytes", "random", "get-random-bytes", "(param i64 i32)");
    let bench = Bench::with("random.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    let error = plugin.validate(&job(), &submission()).await.result.unwrap_err();
    assert_eq!(error.kind, FailureKind::Resources, "{error}");
    assert!(error.limit.unwrap().contains("64 KiB"));
}

#[tokio::test]
async fn more_resources_than_the_limit_are_a_failure() {
    let guest = Guest::validating("(loop $more (drop (call $fields)) (br $more)) unreachable")
        .importing(ALL_OF_WASI)
        .calling("fields", "http", "[constructor]fields", "(result i32)");
    let bench = Bench::with("hoarder.wasm", guest.build());
    let (_host, plugin) = bench.plugin().await;
    let error = plugin.validate(&job(), &submission()).await.result.unwrap_err();
    assert_eq!(error.kind, FailureKind::Resources, "{error}");
    assert!(error.limit.unwrap().contains("1000"));
}

/// A guest that asks for the secret KEY, logs it, and puts it into its problem's message.
fn gossip() -> Guest {
    Guest::validating(
        "(call $secret (i32.const 2048) (i32.const 3) (i32.const 4096))
         (if (i32.eqz (i32.load8_u (i32.const 4096))) (then unreachable))
         (call $log (i32.const 2) (i32.load (i32.const 4100)) (i32.load (i32.const 4104)))
         (i32.store (i32.const 1032) (i32.const 5000)) (i32.store (i32.const 1036) (i32.const 1))
         (i32.store (i32.const 5004) (i32.const 2048)) (i32.store (i32.const 5008) (i32.const 3))
         (i32.store (i32.const 5020) (i32.load (i32.const 4100))) (i32.store (i32.const 5024) (i32.load (i32.const 4104)))
         i32.const 1024",
    )
    .text(2048, "KEY")
}

#[tokio::test]
async fn a_secret_is_given_and_never_comes_out() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    let secret = bench.cache.path().join("secret");
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    bench.put("gossip.toml", format!("[secrets]\nKEY = {{ file = {secret:?} }}"));
    let (host, plugin) = bench.plugin().await;
    let called = plugin.validate(&job(), &submission()).await;
    assert_eq!(called.log[0].text, "[redacted]");
    assert_eq!(called.result.unwrap()[0].message, "[redacted]");
    let shown = serde_json::to_string(&host.plugins()).unwrap();
    assert!(shown.contains("\"secrets\":[\"KEY\"]") && !shown.contains("horse"), "{shown}");
}

#[tokio::test]
async fn a_secret_that_is_not_granted_is_not_there() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.result.unwrap_err().kind, FailureKind::Trap);
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_keeps_the_plugin_from_loading() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    bench.put("gossip.toml", "[secrets]\nKEY = { env = \"TAXIWAY_TEST_NO_SUCH_VARIABLE\" }");
    let error = bench.host().await.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("KEY") && error.advice.contains("environment"), "{error:?}");
}

#[tokio::test]
async fn a_secret_that_is_too_short_to_be_hidden_is_not_taken() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    let secret = bench.cache.path().join("secret");
    bench.put("gossip.toml", format!("[secrets]\nKEY = {{ file = {secret:?} }}"));
    std::fs::write(&secret, "pin\n").unwrap();
    let host = bench.host().await;
    let status = host.plugins().remove(0);
    let error = status.error.unwrap();
    assert_eq!(status.state, PluginState::Failed);
    assert_eq!(error.message, "the secret KEY is shorter than 4 bytes");
    assert!(error.advice.contains("a longer one"), "{error:?}");

    std::fs::write(&secret, "pins\n").unwrap();
    until(&host, "gossip", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    let plugin = host.plugin("gossip").unwrap();
    assert_eq!(plugin.validate(&job(), &submission()).await.log[0].text, "[redacted]");
}

#[tokio::test]
async fn a_secret_that_is_written_later_or_changed_is_read_again() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    let secret = bench.cache.path().join("secret");
    bench.put("gossip.toml", format!("[secrets]\nKEY = {{ file = {secret:?} }}"));
    let host = bench.host().await;
    assert_eq!(host.plugins()[0].state, PluginState::Failed);
    std::fs::write(&secret, "correct horse").unwrap();
    until(&host, "gossip", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    let mut changes = host.changes();
    changes.borrow_and_update();
    std::fs::write(&secret, "battery staple").unwrap();
    tokio::time::timeout(PATIENCE, changes.changed()).await.expect("it is loaded again").unwrap();
    let plugin = host.plugin("gossip").unwrap();
    assert_eq!(plugin.validate(&job(), &submission()).await.log[0].text, "[redacted]");
}

#[tokio::test]
async fn what_a_manifest_says_is_shown_without_control_characters() {
    let bench = Bench::with("gossip.wasm", gossip().build());
    bench.put("gossip.toml", "[secrets]\n\"K\\u001b[2J\" = { env = \"TAXIWAY_\\u001b[31mNONE\" }");
    let error = bench.host().await.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("[2J") && !error.message.contains('\x1b'), "{error:?}");
}

#[tokio::test]
async fn settings_reach_the_plugin_as_json() {
    let guest = Guest::validating(
        "(call $settings (i32.const 4096)) (call $log (i32.const 2) (i32.load (i32.const 4096)) (i32.load (i32.const 4100)))
         i32.const 1024",
    );
    let bench = Bench::with("set.wasm", guest.build());
    bench.put("set.toml", "[settings]\nlimit = 3\nnames = [\"a\"]");
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.log[0].text, r#"{"limit":3,"names":["a"]}"#);
}
