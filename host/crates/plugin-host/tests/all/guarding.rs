//! A door that a plugin guards stays shut until a person opens it: not by a mistake in a file, and not by a restart.

use crate::bench::{Bench, PATIENCE, job, submission, until, validators};
use crate::folder::harmless;
use crate::guest::Guest;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, symlink};
use taxiway_plugin_host::{FailureKind, Mode, OnError, Options, PluginHost, PluginState};

fn names(host: &PluginHost) -> Vec<String> {
    validators(host).iter().map(|plugin| plugin.name().to_owned()).collect()
}

/// What the one validator in force fails with.
async fn refusal(host: &PluginHost) -> (FailureKind, OnError) {
    let plugins = validators(host);
    assert_eq!(plugins.len(), 1, "{:?}", host.plugins());
    let error = plugins[0].validate(&job(), &submission()).await.result.unwrap_err();
    (error.kind, error.on_error)
}

#[tokio::test]
async fn a_component_behind_a_link_that_leads_nowhere_is_broken_and_not_gone() {
    let bench = Bench::new();
    let target = bench.cache.path().join("real.wasm");
    std::fs::write(&target, harmless()).unwrap();
    symlink(&target, bench.path("guard.wasm")).unwrap();
    let host = bench.host().await;
    assert_eq!(names(&host), ["guard"]);

    std::fs::remove_file(&target).unwrap();
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    assert_eq!(host.plugins()[0].state, PluginState::InForce, "the old version stays in force");
    drop(host);
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Reject));

    // Where the link leads is watched too.
    std::fs::write(&target, harmless()).unwrap();
    until(&host, "guard", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
}

#[tokio::test]
async fn a_manifest_behind_a_link_that_leads_nowhere_is_broken_and_not_gone() {
    let bench = Bench::with("guard.wasm", harmless());
    let target = bench.cache.path().join("real.toml");
    std::fs::write(&target, "on_error = \"hold\"").unwrap();
    symlink(&target, bench.path("guard.toml")).unwrap();
    let host = bench.host().await;
    std::fs::remove_file(&target).unwrap();
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    drop(host);
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Hold), "it does not run with defaults");
}

#[tokio::test]
async fn a_component_is_no_plugin_of_its_own_while_a_manifest_that_may_name_it_cannot_be_read() {
    let bench = Bench::with("shared.wasm", harmless());
    let strict = "component = \"shared.wasm\"\non_error = \"hold\"\n";
    bench.put("strict.toml", strict);
    bench.put("own.wasm", harmless());
    let host = bench.host().await;
    assert_eq!(names(&host), ["own", "strict"]);
    bench.put("strict.toml", strict.replace("component", "compnent"));
    until(&host, "strict", |status| status.is_some_and(|status| status.error.is_some())).await;
    assert_eq!(names(&host), ["own", "strict"]);
    drop(host);

    let host = bench.host().await;
    assert_eq!(names(&host), ["own", "strict"], "what was in force by itself stays so");
    let status = host.plugins().into_iter().find(|status| status.name == "shared").unwrap();
    let error = status.error.unwrap();
    assert_eq!(status.state, PluginState::Failed);
    assert!(error.message.contains("strict.toml") && error.advice.contains("an empty one will do"), "{error:?}");
    bench.put("fresh.wasm", harmless());
    until(&host, "fresh", |status| status.is_some_and(|status| status.error.is_some())).await;
    bench.put("fresh.toml", "");
    until(&host, "fresh", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;

    bench.put("strict.toml", strict);
    until(&host, "strict", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    until(&host, "shared", |status| status.is_none()).await;
    assert_eq!(names(&host), ["fresh", "own", "strict"]);
}

#[tokio::test]
async fn a_component_comes_into_force_by_itself_when_the_manifest_that_might_have_named_it_is_mended() {
    let bench = Bench::with("alone.wasm", harmless());
    bench.put("odd.toml", "bundeled = \"x\"");
    let host = bench.host().await;
    assert_eq!(names(&host), Vec::<String>::new());
    std::fs::remove_file(bench.path("odd.toml")).unwrap();
    until(&host, "alone", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
}

#[tokio::test]
async fn the_first_start_waits_for_all_that_is_there_and_a_later_one_for_what_was_in_force() {
    let bench = Bench::with("slow.wasm", Guest::slow_to_compile().build());
    bench.put("guard.wasm", harmless());
    let remembered = bench.cache.path().join("plugins-in-force.json");
    let host = PluginHost::start(bench.options()).await.unwrap();
    until(&host, "slow", |status| status.is_some_and(|status| status.state == PluginState::Compiling)).await;
    assert!(!host.is_ready() && !remembered.exists(), "nobody knows yet what guards the queue");
    std::fs::remove_file(bench.path("slow.wasm")).unwrap();
    tokio::time::timeout(PATIENCE, host.ready()).await.expect("all that is left is in force");
    assert!(host.is_ready() && remembered.exists());
    assert_eq!(names(&host), ["guard"]);
    drop(host);

    bench.put("slow.wasm", Guest::slow_to_compile().build());
    let host = bench.host().await;
    assert_eq!(names(&host), ["guard"]);
    let slow = host.plugins().into_iter().find(|status| status.name == "slow").unwrap();
    assert!(matches!(slow.state, PluginState::Loading | PluginState::Compiling), "{slow:?}");
}

#[tokio::test]
async fn what_was_in_force_is_compiled_before_what_was_not_when_the_cache_is_gone() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    std::fs::remove_dir_all(bench.options().cache_dir).unwrap();
    for name in ["a.wasm", "z.wasm"] {
        bench.put(name, Guest::slow_to_compile().build());
    }
    let host = bench.host().await;
    let states: Vec<_> = host.plugins().into_iter().map(|status| (status.name, status.state)).collect();
    assert_eq!(states[1], ("guard".to_owned(), PluginState::InForce));
    assert!(states.iter().filter(|(_, state)| *state == PluginState::InForce).count() == 1, "{states:?}");
}

#[tokio::test]
async fn what_was_in_force_counts_from_the_first_moment_of_the_next_start() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    let host = PluginHost::start(bench.options()).await.unwrap();
    // The loader is a task of this thread, which has not given it a turn yet.
    assert_eq!(names(&host), ["guard"], "who asks now must not hear that nobody judges");
    assert_eq!((host.plugins()[0].state, host.is_ready()), (PluginState::Loading, false));
    tokio::time::timeout(PATIENCE, host.ready()).await.expect("it is loaded");
    assert_eq!(host.plugins()[0].state, PluginState::InForce);
}

#[tokio::test]
async fn a_folder_that_is_a_link_is_followed_where_it_is_turned_to() {
    let (bench, other) = (Bench::with("first.wasm", harmless()), Bench::with("second.wasm", harmless()));
    let link = bench.cache.path().join("plugins");
    symlink(bench.folder.path(), &link).unwrap();
    let options = Options { plugins_dir: link.clone(), ..bench.options() };
    let host = PluginHost::start(options).await.unwrap();
    tokio::time::timeout(PATIENCE, host.ready()).await.expect("it is loaded");
    assert_eq!(names(&host), ["first"]);
    let turned = bench.cache.path().join("turned");
    symlink(other.folder.path(), &turned).unwrap();
    std::fs::rename(&turned, &link).unwrap();
    until(&host, "second", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    assert_eq!(names(&host), ["second"]);
}

#[tokio::test]
async fn a_folder_that_is_missing_at_a_restart_is_not_made_anew_and_what_it_held_still_guards() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    std::fs::remove_dir_all(bench.folder.path()).unwrap();
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Reject));
    assert!(!bench.folder.path().exists());
    let error = host.plugins().remove(0).error.unwrap();
    assert!(error.advice.contains("Put the folder back") && error.advice.contains("An empty one"), "{error:?}");

    DirBuilder::new().mode(0o700).create(bench.folder.path()).unwrap();
    bench.put("guard.wasm", harmless());
    until(&host, "guard", |status| status.is_some_and(|status| status.state == PluginState::InForce)).await;
    drop(host);
    // Nothing guards from here on: a folder that is missing is made.
    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    drop(bench.host().await);
    std::fs::remove_dir(bench.folder.path()).unwrap();
    assert!(validators(&bench.host().await).is_empty() && bench.folder.path().exists());
}

#[tokio::test]
async fn what_was_in_force_is_remembered_without_the_cache_and_by_what_an_earlier_version_kept_there() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    let cache = bench.options().cache_dir;
    std::fs::remove_dir_all(&cache).unwrap();
    bench.put("guard.wasm", "garbage");
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Reject));
    drop(host);

    let (file, old) = (bench.cache.path().join("plugins-in-force.json"), cache.join("in-force.json"));
    std::fs::rename(&file, &old).unwrap();
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Reject));
    assert!(file.exists() && !old.exists(), "it has moved");
}

#[tokio::test]
async fn a_plugin_whose_file_is_given_another_name_guards_until_that_is_in_force() {
    // It takes a moment to start, so that the moment in between is one that can be seen.
    let guest = Guest::harmless().describing("1.0.0").starting(
        "(local $i i32)
         (loop $next
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br_if $next (i32.lt_u (local.get $i) (i32.const 20000000))))",
    );
    let bench = Bench::with("guard.wasm", guest.build());
    let host = bench.host().await;
    let mut changes = host.changes();
    std::fs::rename(bench.path("guard.wasm"), bench.path("renamed.wasm")).unwrap();
    let renamed = async {
        while names(&host) != ["renamed"] {
            changes.changed().await.unwrap();
            assert!(!names(&host).is_empty(), "nothing guards: {:?}", host.plugins());
        }
    };
    tokio::time::timeout(PATIENCE, renamed).await.expect("the new name comes into force");
    drop(host);

    // The same while the service is down.
    std::fs::rename(bench.path("renamed.wasm"), bench.path("third.wasm")).unwrap();
    assert_eq!(names(&bench.host().await), ["third"]);
}

#[tokio::test]
async fn what_is_removed_goes_while_something_else_is_compiled() {
    let bench = Bench::with("guard.wasm", harmless());
    let host = bench.host().await;
    bench.put("slow.wasm", Guest::slow_to_compile().build());
    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
    let slow = host.plugins().remove(0);
    assert!(matches!(slow.state, PluginState::Loading | PluginState::Compiling), "{slow:?}");
}

#[tokio::test]
async fn a_broken_manifest_beside_its_own_component_keeps_no_other_from_loading() {
    let bench = Bench::with("own.wasm", harmless());
    bench.put("own.toml", "timeot = 1");
    bench.put("fresh.wasm", harmless());
    let host = bench.host().await;
    assert_eq!(names(&host), ["fresh"]);
}

#[tokio::test]
async fn a_start_without_any_plugin_is_remembered_as_one() {
    let bench = Bench::new();
    drop(bench.host().await);
    bench.put("slow.wasm", Guest::slow_to_compile().build());
    let host = bench.host().await;
    assert!(host.is_ready(), "it guarded nothing, and keeps nobody waiting");
}

#[tokio::test]
async fn the_manifest_of_a_plugin_that_is_broken_after_a_restart_can_be_edited() {
    let bench = Bench::with("guard.wasm", harmless());
    drop(bench.host().await);
    bench.put("guard.wasm", "garbage");
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Reject));
    bench.put("guard.toml", "on_error = \"hold\"\nmode = \"observe\"");
    until(&host, "guard", |status| status.is_some_and(|status| status.mode == Mode::Observe)).await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Hold));

    // One that cannot be read changes nothing.
    bench.put("guard.toml", "on_error = \"holt\"");
    until(&host, "guard", |status| {
        status.is_some_and(|s| s.error.as_ref().is_some_and(|e| e.message.contains("holt")))
    })
    .await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Hold));
    bench.put("guard.toml", "enabled = false");
    until(&host, "guard", |status| status.is_some_and(|status| status.state == PluginState::Disabled)).await;
    assert!(validators(&host).is_empty());
}

#[tokio::test]
async fn a_manifest_whose_component_is_missing_still_guards() {
    let bench = Bench::with("guard.wasm", harmless());
    bench.put("guard.toml", "on_error = \"hold\"");
    bench.put("never.toml", "");
    let host = bench.host().await;
    assert_eq!(names(&host), ["guard"], "one that was never in force is not");
    std::fs::remove_file(bench.path("guard.wasm")).unwrap();
    until(&host, "guard", |status| status.is_some_and(|status| status.error.is_some())).await;
    let status = host.plugins().remove(0);
    let error = status.error.unwrap();
    assert_eq!(status.state, PluginState::InForce);
    assert!(error.message.contains("no guard.wasm") && error.advice.contains("remove guard.toml too"), "{error:?}");
    drop(host);
    let host = bench.host().await;
    assert_eq!(refusal(&host).await, (FailureKind::NotLoaded, OnError::Hold));
    std::fs::remove_file(bench.path("guard.toml")).unwrap();
    until(&host, "guard", |status| status.is_none()).await;
    assert!(validators(&host).is_empty(), "both files gone, it is gone");
}
