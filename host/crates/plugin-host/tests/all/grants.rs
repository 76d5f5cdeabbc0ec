//! A plugin has what its manifest grants, and nothing else.

use crate::bench::{Bench, PATIENCE, job, submission, until};
use crate::guest::Guest;
use taxiway_plugin_host::{FailureKind, PluginState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
async fn no_grant_gives_a_socket_or_a_name_looked_up() {
    const SOCKETS: &str = "wasi:sockets";
    // Each answers with an error: which one is in the fifth byte.
    let refused = |at: u32, code: u32| {
        format!(
            "(if (i32.ne (i32.load8_u (i32.const {at})) (i32.const 1)) (then unreachable))
             (if (i32.ne (i32.load8_u (i32.const {})) (i32.const {code})) (then unreachable))",
            at + 4
        )
    };
    let (access_denied, permanent_failure) = (1, 20);
    let guest = Guest::validating(&format!(
        "(call $tcp (i32.const 0) (i32.const 4096)) {}
         (call $udp (i32.const 0) (i32.const 4104)) {}
         (call $resolve (call $network) (i32.const 2048) (i32.const 9) (i32.const 4112)) {}
         (call $resolve (call $network) (i32.const 2064) (i32.const 15) (i32.const 4120)) {}
         i32.const 1024",
        refused(4096, access_denied),
        refused(4104, access_denied),
        refused(4112, permanent_failure),
        refused(4120, permanent_failure),
    ))
    .text(2048, "localhost")
    .text(2064, "169.254.169.254")
    .importing(PYTHON)
    .calling("tcp", &format!("{SOCKETS}/tcp-create-socket@0.2.9"), "create-tcp-socket", "(param i32 i32)")
    .calling("udp", &format!("{SOCKETS}/udp-create-socket@0.2.9"), "create-udp-socket", "(param i32 i32)")
    .calling("network", &format!("{SOCKETS}/instance-network@0.2.9"), "instance-network", "(result i32)")
    .calling(
        "resolve",
        &format!("{SOCKETS}/ip-name-lookup@0.2.9"),
        "resolve-addresses",
        "(param i32 i32 i32 i32)",
    );
    let bench = Bench::with("caller.wasm", guest.build());
    bench.put("caller.toml", "http = [\"http://localhost\"]\nallow_private = [\"127.0.0.0/8\", \"169.254.0.0/16\"]");
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
}

/// A guest that asks this host for its first page by `wasi:http` and must get an answer, or else be told that it was refused.
fn asking(authority: &str, answered: bool) -> Guest {
    // Where `get` writes: whether it is there, whether the future was used before, whether it failed, and with what.
    let outcome = if answered {
        "(if (i32.load8_u (i32.const 4112)) (then unreachable))"
    } else {
        // HTTP-request-denied.
        "(if (i32.ne (i32.load8_u (i32.const 4112)) (i32.const 1)) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.const 4120)) (i32.const 15)) (then unreachable))"
    };
    Guest::validating(&format!(
        "(local $request i32) (local $answer i32)
         (local.set $request (call $new (call $fields)))
         (if (call $scheme (local.get $request) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)) (then unreachable))
         (if (call $authority (local.get $request) (i32.const 1) (i32.const 2048) (i32.const {})) (then unreachable))
         (if (call $path (local.get $request) (i32.const 1) (i32.const 2040) (i32.const 1)) (then unreachable))
         (call $handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 4096))
         (if (i32.load8_u (i32.const 4096)) (then unreachable))
         (local.set $answer (i32.load (i32.const 4104)))
         (call $block (call $subscribe (local.get $answer)))
         (call $get (local.get $answer) (i32.const 4096))
         (if (i32.ne (i32.load8_u (i32.const 4096)) (i32.const 1)) (then unreachable))
         (if (i32.load8_u (i32.const 4104)) (then unreachable))
         {outcome}
         i32.const 1024",
        authority.len(),
    ))
    .text(2048, authority)
    .text(2040, "/")
    .importing(JAVASCRIPT)
    .calling("fields", HTTP, "[constructor]fields", "(result i32)")
    .calling("new", HTTP, "[constructor]outgoing-request", "(param i32) (result i32)")
    .calling("scheme", HTTP, "[method]outgoing-request.set-scheme", "(param i32 i32 i32 i32 i32) (result i32)")
    .calling("authority", HTTP, "[method]outgoing-request.set-authority", "(param i32 i32 i32 i32) (result i32)")
    .calling("path", HTTP, "[method]outgoing-request.set-path-with-query", "(param i32 i32 i32 i32) (result i32)")
    .calling("handle", "wasi:http/outgoing-handler@0.2.10", "handle", "(param i32 i32 i32 i32)")
    .calling("subscribe", HTTP, "[method]future-incoming-response.subscribe", "(param i32) (result i32)")
    .calling("get", HTTP, "[method]future-incoming-response.get", "(param i32 i32)")
    .calling("block", "wasi:io/poll@0.2.12", "[method]pollable.block", "(param i32)")
}

const HTTP: &str = "wasi:http/types@0.2.10";

#[tokio::test]
async fn a_guest_reaches_the_host_that_it_is_granted_and_nothing_inside() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // All of the request: dropping a connection with something unread resets it, and the answer may be lost.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "{head:?}");
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        listener
    });
    let (here, by_name) = (format!("127.0.0.1:{port}"), format!("localhost:{port}"));
    let metadata = "169.254.169.254";
    let mut bench = Bench::new();
    bench.limits.timeout = PATIENCE;
    for (name, asked, granted, private, answered) in [
        ("granted", &*here, &*here, "\"127.0.0.1\"", true),
        ("nothing", &here, "", "\"127.0.0.1\"", false),
        ("another", metadata, &here, "\"127.0.0.1\"", false),
        ("address", &here, &here, "", false),
        ("name", &by_name, &by_name, "", false),
        ("metadata", metadata, metadata, "\"127.0.0.0/8\"", false),
    ] {
        bench.put(&format!("{name}.wasm"), asking(asked, answered).build());
        let granted = if granted.is_empty() { String::new() } else { format!("\"http://{granted}\"") };
        bench.put(&format!("{name}.toml"), format!("http = [{granted}]\nallow_private = [{private}]"));
    }
    let host = bench.host().await;
    for name in ["granted", "nothing", "another", "address", "name", "metadata"] {
        let plugin = host.plugin(name).unwrap_or_else(|| panic!("{name}: {:?}", host.plugins()));
        let called = plugin.validate(&job(), &submission()).await;
        assert_eq!(called.result, Ok(Vec::new()), "{name}");
    }
    let listener = server.await.unwrap();
    let more = futures_util::FutureExt::now_or_never(listener.accept());
    assert!(more.is_none(), "one that was refused came through");
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
