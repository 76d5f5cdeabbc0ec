//! Files come, change, break and go; the service says what it made of them.

use crate::bench::{Bench, PATIENCE, job, submission, until, validators};
use crate::guest::{Guest, MISSING_EXPORT, UNKNOWN_IMPORT, WRONG_TYPES};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use taxiway_plugin_host::{FailureKind, OnError, OpenError, PluginHost, PluginState, StartError, open};

pub fn harmless() -> Vec<u8> {
    Guest::harmless().build()
}

fn loud(message: &str) -> Vec<u8> {
    Guest::saying(1, 0, "", message).build()
}

async fn verdict(host: &PluginHost) -> String {
    let plugins = validators(host);
    assert_eq!(plugins.len(), 1);
    plugins[0].validate(&job(), &submission()).await.result.unwrap()[0].message.clone()
}

#[tokio::test]
async fn a_plugin_is_dropped_in_replaced_broken_and_removed_without_a_restart() {
    let bench = Bench::new();
    let host = bench.host().await;
    assert!(host.plugins().is_empty());

    let started = Instant::now();
    bench.put("guard.wasm", loud("one"));
    until(&host, "guard", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    println!(
        "active {:?} after it was dropped in, of which compiling took {:?} s",
        started.elapsed(),
        host.plugins()[0].compile_seconds
    );
    assert_eq!(verdict(&host).await, "one");

    let generation = host.generation();
    let old = validators(&host).remove(0);
    bench.put("guard.wasm", loud("two"));
    until(&host, "guard", |status| status.is_some_and(|status| status.sha256.as_deref() != Some(old.sha256()))).await;
    assert_eq!(verdict(&host).await, "two");
    assert_ne!(host.generation(), generation);
    assert_eq!(
        old.validate(&job(), &submission()).await.result.unwrap()[0].message,
        "one",
        "calls in flight finish on the old one"
    );

    bench.put("guard.wasm", "garbage");
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    let status = host.plugins().remove(0);
    assert_eq!(status.state, PluginState::InForce);
    let error = status.error.unwrap();
    assert!(error.message.contains("not WebAssembly") && error.advice.contains("copied whole"), "{error:?}");
    assert_eq!(verdict(&host).await, "two");

    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
    assert!(validators(&host).is_empty());
}

#[tokio::test]
async fn a_plugin_that_was_in_force_and_is_broken_after_a_restart_still_rejects() {
    let bench = Bench::with("guard.wasm", harmless());
    bench.put("guard.toml", "on_error = \"hold\"");
    drop(bench.host().await);
    bench.put("guard.wasm", "garbage");

    let host = bench.host().await;
    assert_eq!(host.plugins()[0].state, PluginState::Failed);
    let error = validators(&host)[0].validate(&job(), &submission()).await.result.unwrap_err();
    assert_eq!((error.kind, error.on_error), (FailureKind::NotLoaded, OnError::Hold));

    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    std::fs::remove_file(bench.path("guard.toml")).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
    drop(host);
    bench.put("guard.wasm", "garbage");
    assert!(validators(&bench.host().await).is_empty(), "what was removed is forgotten");
}

#[tokio::test]
async fn a_plugin_that_never_loaded_is_not_in_force() {
    let host = Bench::with("bad.wasm", "garbage").host().await;
    assert_eq!(host.plugins()[0].state, PluginState::Failed);
    assert!(validators(&host).is_empty());
}

#[tokio::test]
async fn every_unusable_file_gets_its_own_advice() {
    let whole = harmless();
    for (name, content, message, advice) in [
        ("module", wat::parse_str("(module)").unwrap(), "core WebAssembly module", "wasm32-wasip2"),
        ("garbage", b"hello".to_vec(), "not WebAssembly", "copied whole"),
        ("empty", Vec::new(), "empty", "copied whole"),
        ("elf", b"\x7fELF123456".to_vec(), "compiled code", "the .wasm component"),
        ("truncated", whole[..whole.len() / 2].to_vec(), "compiling failed", "copy it again"),
        ("hookless", wat::parse_str("(component)").unwrap(), "exports none of", "Export taxiway:plugin/validate"),
        ("typed", wat::parse_str(WRONG_TYPES).unwrap(), "does not have the types", "unchanged"),
        ("missing", wat::parse_str(MISSING_EXPORT).unwrap(), "does not have the types", "unchanged"),
        ("stranger", wat::parse_str(UNKNOWN_IMPORT).unwrap(), "imports `acme:tools/magic@1.0.0`", "nothing else"),
        (
            "newer",
            wat::parse_str(WRONG_TYPES.replace("@0.1.0", "@0.2.0")).unwrap(),
            "built for taxiway:plugin@0.2.0, this server speaks taxiway:plugin@0.1.0",
            "Rebuild",
        ),
        (
            "hungry",
            wat::parse_str(r#"(component (import "taxiway:plugin/host@0.1.9" (instance (export "fly" (func)))))"#)
                .unwrap(),
            "built for taxiway:plugin@0.1.9, this server speaks taxiway:plugin@0.1.0",
            "Rebuild",
        ),
    ] {
        let bench = Bench::with(&format!("{name}.wasm"), content);
        let error = bench.host().await.plugins().remove(0).error.unwrap_or_else(|| panic!("{name} loads"));
        assert!(error.message.contains(message), "{name}: {error:?}");
        assert!(error.advice.contains(advice), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_component_of_the_same_track_loads() {
    let text = Guest::harmless().wat().replace("@0.1.0", "@0.1.7");
    let bench = Bench::with("later.wasm", wat::parse_str(text).unwrap());
    let (_host, plugin) = bench.plugin().await;
    assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
}

#[tokio::test]
async fn a_file_over_the_limit_is_not_read() {
    let bench = Bench::new();
    let file = std::fs::File::create(bench.path("huge.wasm")).unwrap();
    file.set_len(200 << 20).unwrap();
    let error = bench.host().await.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("209715200 bytes"), "{error:?}");
}

#[tokio::test]
async fn a_component_that_takes_too_long_to_compile_is_given_up() {
    let body: String = (0..60_000)
        .map(|i| format!("(local.set $x (i64.add (i64.mul (local.get $x) (i64.const {i})) (local.get $x)))"))
        .collect();
    let mut bench =
        Bench::with("slow.wasm", Guest::harmless().fields(&format!("(func (local $x i64) {body})")).build());
    bench.limits.compile_timeout = Duration::from_millis(20);
    let error = bench.host().await.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("longer than 20 ms"), "{error:?}");
    assert!(error.advice.contains("compile_timeout"), "{error:?}");
}

#[tokio::test]
async fn a_component_that_needs_more_memory_to_compile_than_there_may_be_is_given_up() {
    let mut bench = Bench::with("large.wasm", Guest::slow_to_compile().build());
    bench.limits.compile_memory = 256 << 20;
    let host = bench.host().await;
    let error = host.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("the compiler ended with") && error.message.contains("256 MiB"), "{error:?}");
    assert!(error.advice.contains("compile_memory"), "{error:?}");
}

#[tokio::test]
async fn a_component_that_swells_when_it_is_compiled_is_refused() {
    let bench = Bench::with("swells.wasm", Guest::linking(20_000, 150).build());
    let host = bench.host().await;
    let error = host.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("over the 4 MiB that a component of its size may come to"), "{error:?}");
    assert!(error.advice.contains("fewer instances"), "{error:?}");
}

#[tokio::test]
async fn calls_go_on_while_a_function_that_takes_minutes_is_being_compiled() {
    let bench = Bench::with("good.wasm", harmless());
    let host = bench.host().await;
    bench.put("slow.wasm", Guest::slow_to_compile().build());
    until(&host, "slow", |status| status.is_some_and(|status| status.state == PluginState::Compiling)).await;
    for _ in 0..100 {
        validators(&host)[0].validate(&job(), &submission()).await.result.unwrap();
    }
    let state = host.plugins().into_iter().find(|status| status.name == "slow").unwrap().state;
    assert_eq!(state, PluginState::Compiling, "it is still being compiled");
    // Taken away again, it takes its compiler with it.
    std::fs::remove_file(bench.path("slow.wasm")).unwrap();
    until(&host, "slow", |status| status.is_none()).await;
    bench.put("next.wasm", loud("the next one has its turn"));
    until(&host, "next", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
}

#[tokio::test]
async fn a_folder_that_another_takes_the_place_of_is_watched_on() {
    let bench = Bench::with("guard.wasm", loud("old"));
    let host = bench.host().await;
    let (folder, aside) = (bench.folder.path().to_owned(), bench.cache.path().join("old-folder"));
    std::fs::rename(&folder, &aside).unwrap();
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    let error = host.plugins().remove(0).error.unwrap();
    assert!(error.advice.contains("Put the folder back"), "{error:?}");
    assert_eq!(verdict(&host).await, "old", "a missing folder removes no plugin");

    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
    bench.put("guard.wasm", loud("new"));
    until(&host, "guard", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    assert_eq!(verdict(&host).await, "new");
}

#[tokio::test]
async fn a_folder_that_others_may_write_meanwhile_keeps_what_is_in_force() {
    let bench = Bench::with("guard.wasm", loud("mine"));
    let host = bench.host().await;
    std::fs::set_permissions(bench.folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    bench.put("guard.wasm", loud("theirs"));
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    assert!(host.plugins()[0].error.as_ref().unwrap().message.contains("chmod go-w"));
    assert_eq!(verdict(&host).await, "mine");
}

#[tokio::test]
async fn what_a_load_took_is_shown() {
    let bench = Bench::with("guard.wasm", harmless());
    let host = bench.host().await;
    let status = host.plugins().remove(0);
    println!("loaded in {:?} s, of which compiling took {:?} s", status.load_seconds, status.compile_seconds);
    assert!(status.load_seconds.unwrap() >= status.compile_seconds.unwrap());
    assert_eq!((status.component.as_deref(), status.bundled), (Some("guard.wasm"), None));
    assert_eq!((status.timeout_seconds, status.memory_bytes), (Some(0.5), Some(128 << 20)));
    drop(host);
    assert_eq!(bench.host().await.plugins()[0].compile_seconds, None, "the code came from the cache");
}

#[tokio::test]
async fn a_manifest_decides_order_stage_profile_and_mode() {
    let bench = Bench::with("a.wasm", harmless());
    bench.put("b.wasm", harmless());
    bench.put("b.toml", "order = -1\nmode = \"observe\"\nstages = [\"submit\", \"launch\"]");
    bench.put("c.toml", "component = \"a.wasm\"\nprofiles = [\"training\"]");
    bench.put("d.toml", "component = \"a.wasm\"\nenabled = false");
    let host = bench.host().await;
    let names = |stage, profile| {
        let plugins = host.in_force(taxiway_plugin_host::Hook::Validate, Some(stage), profile);
        plugins.iter().map(|plugin| plugin.name().to_owned()).collect::<Vec<_>>()
    };
    use taxiway_plugin_host::Stage;
    assert_eq!(names(Stage::Submit, None), ["b"], "a serves c and d and is no plugin of its own");
    assert_eq!(names(Stage::Submit, Some("training")), ["b", "c"]);
    assert_eq!(names(Stage::Launch, Some("training")), ["b"]);
    let states: Vec<_> = host.plugins().iter().map(|status| (status.name.clone(), status.state)).collect();
    assert!(states.contains(&("d".into(), PluginState::Disabled)), "{states:?}");
}

#[tokio::test]
async fn a_broken_manifest_keeps_the_old_version_and_names_the_line() {
    let bench = Bench::with("guard.wasm", harmless());
    let host = bench.host().await;
    bench.put("guard.toml", "enabled = true\ntimeot = \"1s\"\n");
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    let error = host.plugins().remove(0).error.unwrap();
    assert_eq!(error.message, "guard.toml, line 2: unknown key `timeot`; did you mean `timeout`?");
    assert_eq!(validators(&host).len(), 1);
}

#[tokio::test]
async fn a_component_without_metadata_is_named_by_its_digest_and_one_with_it_by_its_version() {
    let bench = Bench::with("mute.wasm", harmless());
    bench.put("told.wasm", Guest::harmless().describing("3.2.1").build());
    let host = bench.host().await;
    let versions: Vec<_> = host.plugins().into_iter().map(|status| (status.version, status.sha256)).collect();
    let digest = versions[0].1.clone().unwrap();
    assert_eq!(versions[0].0.as_deref(), Some(&digest[..12]));
    assert_eq!(versions[1].0.as_deref(), Some("3.2.1"));
    for plugin in validators(&host) {
        assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn a_pinned_digest_must_match() {
    let bench = Bench::with("guard.wasm", harmless());
    bench.put("guard.toml", format!("sha256 = \"{}\"", "0".repeat(64)));
    let error = bench.host().await.plugins().remove(0).error.unwrap();
    assert!(error.message.contains("SHA-256"), "{error:?}");
}

#[tokio::test]
async fn a_folder_that_others_can_write_is_refused_with_the_command_that_mends_it() {
    let bench = Bench::new();
    std::fs::set_permissions(bench.folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = PluginHost::start(bench.options()).await.err().expect("refused");
    assert!(matches!(error, StartError::Folder(_)) && error.to_string().contains("chmod go-w"), "{error}");
}

#[tokio::test]
async fn compiled_code_is_taken_from_the_cache() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    let mut options = bench.options();
    options.compiler = "/nonexistent/compiler".into();
    let host = PluginHost::start(options).await.unwrap();
    tokio::time::timeout(PATIENCE, host.ready()).await.unwrap();
    assert_eq!(host.plugins()[0].state, PluginState::InForce, "{:?}", host.plugins());
}

#[tokio::test]
async fn a_cache_that_is_deleted_while_the_service_runs_is_made_anew() {
    let bench = Bench::with("guard.wasm", harmless());
    let host = bench.host().await;
    std::fs::remove_dir_all(bench.options().cache_dir).unwrap();
    let new = loud("compiled without it");
    bench.put("guard.wasm", &new);
    until(&host, "guard", |status| status.is_some_and(|s| s.sha256.as_deref() == Some(&digest(&new)))).await;
    assert_eq!(verdict(&host).await, "compiled without it");
    let mode = std::fs::metadata(bench.options().cache_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn fifty_plugins_load_from_a_warm_cache() {
    let bench = Bench::new();
    for i in 0..50 {
        bench.put(&format!("p{i:02}.wasm"), harmless());
    }
    drop(bench.host().await);
    let started = Instant::now();
    let host = bench.host().await;
    println!("50 plugins from a warm cache: {:?}", started.elapsed());
    assert!(host.plugins().iter().all(|status| status.state == PluginState::InForce));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_a_plugin_under_load_fails_no_call() {
    let bench = Bench::with("guard.wasm", loud("a"));
    let host = bench.host().await;
    let versions = [loud("a"), loud("b")];
    bench.put("guard.wasm", &versions[1]);
    until(&host, "guard", |status| status.is_some_and(|s| s.sha256.as_deref() == Some(&digest(&versions[1])))).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let caller = tokio::spawn({
        let (host, stop) = (host.clone(), stop.clone());
        async move {
            let mut calls = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let plugins = validators(&host);
                assert_eq!(plugins.len(), 1);
                plugins[0].validate(&job(), &submission()).await.result.unwrap();
                calls += 1;
            }
            calls
        }
    });
    for i in 0..10 {
        let version = &versions[i % 2];
        bench.put("guard.wasm", version);
        until(&host, "guard", |status| status.is_some_and(|s| s.sha256.as_deref() == Some(&digest(version)))).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(caller.await.unwrap() > 10);
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn a_component_outside_the_folder_opens_through_the_same_path() {
    let bench = Bench::new();
    let file = bench.cache.path().join("mine.wasm");
    std::fs::write(&file, harmless()).unwrap();
    let (plugin, status) = open(bench.options(), &file, None).await.unwrap();
    assert_eq!((plugin.name(), status.state), ("mine", PluginState::InForce));
    assert_eq!(plugin.validate(&job(), &submission()).await.result, Ok(Vec::new()));
    std::fs::write(&file, "garbage").unwrap();
    let Err(OpenError::Load(error)) = open(bench.options(), &file, None).await else { panic!("opens") };
    assert!(error.advice().contains("copied whole"));
    let file = bench.cache.path().join("my plugin.wasm");
    std::fs::write(&file, harmless()).unwrap();
    let Err(OpenError::Load(error)) = open(bench.options(), &file, None).await else { panic!("opens") };
    assert!(error.to_string().contains("`my plugin` is no name"), "the folder would pass it over: {error}");
    let manifest = bench.cache.path().join("off.toml");
    std::fs::write(&manifest, "enabled = false\ncomponent = \"good.wasm\"").unwrap();
    std::fs::write(bench.cache.path().join("good.wasm"), harmless()).unwrap();
    let (_, status) = open(bench.options(), &manifest, None).await.unwrap();
    assert!(status.warnings[0].contains("enabled = false"), "{status:?}");
}
