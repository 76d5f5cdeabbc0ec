//! The life of a plugin: begun, built, tried out, dropped in, replaced and lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use taxiway_tests::{Place, Receiver, Server, guest, patiently, program, sh};
use tokio::process::Command;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the repository")
}

/// The command line with a home of its own, and no service anywhere.
async fn alone(home: &Path, arguments: &[&str]) -> Output {
    alone_with(home, arguments, &[]).await
}

/// The same with further variables.
async fn alone_with(home: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("TAXIWAY_NVML_LIBRARY", "").envs(environment.iter().copied()).current_dir(home);
    patiently("the command to end", command.output()).await.expect("the program can be executed")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Builds a plugin as its author would, with the versions of this repository and beside the bundled plugins' files, so that
/// what they share is built once.
async fn build(folder: &Path) -> PathBuf {
    fs::copy(repository().join("plugins/Cargo.lock"), folder.join("Cargo.lock")).expect("the versions");
    let test = std::env::current_exe().expect("a test knows its file");
    // TARGET/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).expect("a target directory").join("plugins");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--offline"]).current_dir(folder);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // What the host's own build and its companions set is not for guests (host/build.rs).
        if (text.starts_with("CARGO") && text != "CARGO_HOME") || text.starts_with("RUST") && text.ends_with("FLAGS") {
            cargo.env_remove(&name);
        }
    }
    cargo.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER").env("CARGO_TARGET_DIR", &target);
    let output = cargo.output().await.expect("cargo can be executed");
    assert!(output.status.success(), "{}", said(&output));
    target.join("wasm32-wasip2/release").join("budget.wasm")
}

#[tokio::test]
async fn a_plugin_with_two_hooks_is_begun_built_checked_tried_out_and_dropped_in() {
    let mut receiver = Receiver::start(|_| (204, None)).await;
    let place = Place::new();
    let home = place.path().to_owned();
    let sdk = repository().join("plugins/sdk");
    let new = ["plugin", "new", "budget", "--hooks", "validate,complete", "--sdk", sdk.to_str().expect("UTF-8")];
    let begun = alone(&home, &new).await;
    assert!(begun.status.success() && said(&begun).contains("cargo build --release"), "{}", said(&begun));
    assert!(!alone(&home, &new).await.status.success(), "nothing is overwritten");
    let component = build(&home.join("budget")).await;
    let manifest = format!(
        "http = [\"{url}\"]\nallow_private = [\"127.0.0.1/32\"]\n[settings]\nrequired = [\"model\"]\nurl = \"{url}/jobs\"\n",
        url = receiver.url()
    );
    fs::write(home.join("budget.toml"), &manifest).expect("a manifest");
    fs::copy(&component, home.join("budget.wasm")).expect("the component");

    let checked = alone(&home, &["plugin", "check", "budget.wasm"]).await;
    assert!(checked.status.success() && said(&checked).contains("validate, complete"), "{}", said(&checked));
    let tried = alone(&home, &["plugin", "test", "budget.wasm", "--config", "{}"]).await;
    assert!(tried.status.success(), "that it refuses the job is its work: {}", said(&tried));
    for part in ["missing-key", "validate at submit", "MiB", "complete was not called", "would be refused"] {
        assert!(said(&tried).contains(part), "{part}: {}", said(&tried));
    }
    let tried =
        alone(&home, &["--json", "plugin", "test", "budget.toml", "--config", "{\"model\": 1}", "--live", "failed"])
            .await;
    let result: Value =
        serde_json::from_slice(&tried.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&tried)));
    assert_eq!((&result["sound"], &result["rehearsal"]["accepted"]), (&json!(true), &json!(true)), "{result}");
    assert_eq!(result["rehearsal"]["calls"].as_array().map(Vec::len), Some(2), "{result}");
    assert_eq!(receiver.webhook().await.json()["end"], "failed");

    let server =
        place.manifest("budget", &manifest).component("budget", &fs::read(component).expect("it")).start().await;
    server.plugin("budget", |plugin| plugin["state"] == "in_force").await;
    let mut events = server.events().await;
    let refusal = server.post("/jobs", &sh("exit 0")).await.expect(422).problem();
    assert_eq!(refusal["problems"][0]["path"], "/model", "{refusal}");
    let mut submission = sh("exit 0");
    submission["config"] = json!({"model": "llama"});
    let job = server.submit(submission).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let told = receiver.webhook().await.json();
    assert_eq!((&told["job"], &told["end"]), (&json!(job.id()), &json!("completed")));

    let shown = server.plugin("budget", |plugin| plugin["calls"].as_u64() >= Some(3)).await;
    assert_eq!(shown["hooks"], json!(["validate", "complete"]));
    assert_eq!((&shown["version"], &shown["component"]), (&json!("0.1.0"), &json!("budget.wasm")));
    assert_eq!(shown["grants"]["http"], json!([receiver.url()]));
    assert!(shown["p50_seconds"].is_f64() && shown["p99_seconds"].is_f64() && shown["sha256"].is_string(), "{shown}");
    let listed = server.cli(&["plugin", "list"]).await;
    assert!(said(&listed).contains("validate, complete") && said(&listed).contains("in_force"), "{}", said(&listed));
    let listed = server.cli(&["plugin", "list", "--long"]).await;
    assert!(said(&listed).contains(shown["sha256"].as_str().expect("a digest")), "{}", said(&listed));
}

#[tokio::test]
async fn a_plugin_that_cannot_be_used_is_told_so_before_it_is_dropped_in() {
    let place = Place::new();
    let home = place.path().to_owned();
    fs::write(home.join("module.wasm"), b"\0asm\x01\0\0\0").expect("a file");
    let checked = alone(&home, &["plugin", "check", "module.wasm"]).await;
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        said(&checked).contains("core WebAssembly module") && said(&checked).contains("wasm32-wasip2"),
        "{}",
        said(&checked)
    );

    fs::write(home.join("trap.wasm"), guest::trap()).expect("a file");
    let tried = alone(&home, &["plugin", "test", "trap.wasm"]).await;
    assert_eq!(tried.status.code(), Some(1), "{}", said(&tried));
    assert!(said(&tried).contains("the plugin failed:") && said(&tried).contains("(trap)"), "{}", said(&tried));
    assert!(said(&tried).contains("refused with 503"), "{}", said(&tried));
    for (manifest, verdict) in [
        ("on_error = \"hold\"\n", "accepted and held: plugin `trap` failed"),
        ("on_error = \"ignore\"\n", "accepted all the same"),
        ("mode = \"observe\"\n", "If it did not only observe: the job would be refused"),
    ] {
        fs::write(home.join("trap.toml"), manifest).expect("a manifest");
        let tried = alone(&home, &["plugin", "test", "trap.wasm"]).await;
        assert!(tried.status.code() == Some(1) && said(&tried).contains(verdict), "{verdict}: {}", said(&tried));
    }
    for (manifest, why) in [("timeout = 0\n", "longer than nothing"), ("memory = 0\n", "64 KiB")] {
        fs::write(home.join("trap.toml"), manifest).expect("a manifest");
        let checked = alone(&home, &["plugin", "check", "trap.wasm"]).await;
        assert!(!checked.status.success() && said(&checked).contains(why), "{why}: {}", said(&checked));
    }
    let manifest = "profiles = [\"lora\"]\n";
    fs::write(home.join("trap.toml"), manifest).expect("a manifest");
    let tried = alone(&home, &["plugin", "test", "trap.wasm"]).await;
    assert!(!tried.status.success() && said(&tried).contains("profiles lora only"), "{}", said(&tried));
}

#[tokio::test]
async fn the_same_rules_apply_to_a_bundled_plugin_that_is_tried_out() {
    let place = Place::new();
    let home = place.path().to_owned();
    let manifest = "bundled = \"defaults\"\n[settings]\nseed_key = \"/seed\"\ndefaults.train = { epochs = 3 }\n";
    fs::write(home.join("fill.toml"), manifest).expect("a manifest");
    let tried = alone(&home, &["--json", "plugin", "test", "fill.toml", "--config", "{\"train\": {}}"]).await;
    let result: Value =
        serde_json::from_slice(&tried.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&tried)));
    let rehearsal = &result["rehearsal"];
    assert_eq!(rehearsal["config"]["train"]["epochs"], 3, "{result}");
    assert_eq!(rehearsal["changed_again"], json!([]), "rewriting twice changes nothing more");
    assert_eq!(rehearsal["rewrites"][0]["patch"].as_array().map(Vec::len), Some(2), "{result}");
}

#[tokio::test]
async fn a_granted_name_that_points_inside_is_not_reached_and_no_proxy_leads_around_the_gates() {
    let mut receiver = Receiver::start(|_| (204, None)).await;
    let place = Place::new();
    let home = place.path().to_owned();
    let port = receiver.url().rsplit(':').next().expect("a port").to_owned();
    let manifest = format!(
        "bundled = \"webhook\"\nhttp = [\"http://localhost:{port}\"]\n[settings]\nurl = \"http://localhost:{port}/hook\"\nunsigned = true\n"
    );
    fs::write(home.join("notify.toml"), &manifest).expect("a manifest");
    let proxy: Vec<(&str, &str)> =
        ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, receiver.url())).to_vec();
    let test = ["plugin", "test", "notify.toml", "--live"];
    let tried = alone_with(&home, &test, &proxy).await;
    assert_eq!(tried.status.code(), Some(1), "{}", said(&tried));
    for part in ["loopback", "allow_private", "complete"] {
        assert!(said(&tried).contains(part), "{part}: {}", said(&tried));
    }
    assert!(receiver.rest().is_empty(), "nothing left the gates");

    // Granted, it is reached, and still without a proxy: nobody listens there.
    let granted = manifest.replace("[settings]", "allow_private = [\"127.0.0.1\", \"::1\"]\n[settings]");
    fs::write(home.join("notify.toml"), granted).expect("a manifest");
    let tried = alone_with(&home, &test, &[("http_proxy", "http://127.0.0.1:1")]).await;
    assert!(tried.status.success(), "{}", said(&tried));
    assert_eq!(receiver.webhook().await.json()["type"], "job.completed");
}

#[tokio::test]
async fn what_an_observing_plugin_says_is_recorded_and_has_no_effect() {
    let place = Place::new().manifest("watch", "mode = \"observe\"\n").component("watch", &guest::trap());
    let server = place.start().await;
    server.plugin("watch", |plugin| plugin["state"] == "in_force").await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let explained = server.get(&format!("/jobs/{}/explain", job.id())).await.expect(200).json();
    let verdict = &explained["verdicts"][0];
    assert_eq!(
        (&verdict["plugin"], &verdict["stage"], &verdict["hook"], &verdict["outcome"]),
        (&json!("watch"), &json!("submit"), &json!("validate"), &json!("observed_failed")),
        "{explained}"
    );
    assert!(verdict["duration_seconds"].is_f64() && verdict["sha256"].is_string(), "{explained}");
    assert!(verdict["problems"][0]["message"].as_str().is_some_and(|text| text.contains("trap")), "{explained}");
    let metrics = server.request(http::Method::GET, "/metrics").send().await.expect(200).text();
    for line in [
        "taxiway_plugin_state{plugin=\"watch\",state=\"in_force\"} 1",
        "taxiway_plugin_loads_total{plugin=\"watch\",result=\"in_force\"} 1",
        "taxiway_plugin_calls_total{plugin=\"watch\",hook=\"validate\"} 1",
        "taxiway_plugin_call_failures_total{plugin=\"watch\",hook=\"validate\",kind=\"trap\"} 1",
        "taxiway_plugin_call_seconds_bucket{plugin=\"watch\",hook=\"validate\",le=\"+Inf\"} 1",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}: {metrics}");
    }
}

/// A submission that is refused because of a plugin.
async fn failed_by(server: &Server) -> Value {
    server.post("/jobs", &sh("exit 0")).await.expect(503).problem()
}

#[tokio::test]
async fn a_plugin_that_was_in_force_and_is_broken_after_a_restart_still_refuses_what_it_guarded() {
    let server = Place::new().component("guard", &guest::content()).start().await;
    server.plugin("guard", |plugin| plugin["state"] == "in_force").await;
    server.submit(sh("exit 0")).await;
    let place = server.kill().await;
    place.write_component("guard", b"damaged");
    let server = place.start().await;
    let problem = failed_by(&server).await;
    assert_eq!((&problem["code"], &problem["plugin"]), (&json!("plugin-failed"), &json!("guard")), "{problem}");
    let shown = server.plugin("guard", |plugin| plugin["state"] == "failed").await;
    assert!(shown["error"]["advice"].as_str().is_some_and(|advice| advice.contains("copied whole")), "{shown}");
    assert_eq!(shown["last_failure"]["kind"], "not-loaded");

    // Mended, it judges again; removed, it guards nothing.
    server.place().write_component("guard", &guest::content());
    server.plugin("guard", |plugin| plugin["state"] == "in_force").await;
    server.submit(sh("exit 0")).await;
}

#[tokio::test]
async fn two_hundred_replacements_under_load_fail_no_submission() {
    let versions = [guest::validator("(i32.const 16)"), guest::validator("(nop) (i32.const 16)")];
    let server = Place::new().component("guard", &versions[0]).start().await;
    let in_force = |plugins: &Value| plugins["items"][0]["sha256"].as_str().map(str::to_owned);
    let mut before = server.plugin("guard", |plugin| plugin["state"] == "in_force").await["sha256"].clone();
    let mut held = sh("exit 0");
    held["hold"] = json!(true);
    let (mut accepted, mut judged) = (0u32, 0u32);
    for replacement in 1..=200 {
        server.place().write_component("guard", &versions[replacement % 2]);
        server.post("/jobs", &held).await.expect(201);
        accepted += 1;
        patiently("the replacement", async {
            loop {
                // Asks the plugin as a submission does, and stores nothing.
                server.post("/jobs?dry_run=true", &held).await.expect(200);
                judged += 1;
                let now = in_force(&server.get("/plugins").await.expect(200).json());
                if now.as_deref() != before.as_str() {
                    before = json!(now);
                    break;
                }
            }
        })
        .await;
    }
    println!("{accepted} submissions and {judged} dry runs over 200 replacements");
    let shown = server.plugin("guard", |_| true).await;
    assert_eq!((&shown["failures"], &shown["error"]), (&json!(0), &Value::Null), "{shown}");
    assert_eq!(server.get("/queue").await.expect(200).json()["held"], json!(accepted));
}

#[tokio::test]
async fn what_becomes_of_a_plugin_is_told_as_events() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut next = async || {
        loop {
            let event = events.next().await.expect("the service runs");
            if event.kind.starts_with("plugin.") {
                break (event.kind, event.json["plugin"].clone(), event.json["error"]["message"].clone());
            }
        }
    };
    server.place().write_component("guard", &guest::content());
    assert_eq!(next().await, ("plugin.in_force".to_owned(), json!("guard"), Value::Null));
    server.place().write_component("guard", b"damaged");
    let (kind, name, message) = next().await;
    assert_eq!((kind.as_str(), name), ("plugin.failed", json!("guard")));
    assert!(message.as_str().is_some_and(|message| message.contains("not WebAssembly")), "{message}");
    server.place().remove_plugin("guard");
    assert_eq!(next().await, ("plugin.removed".to_owned(), json!("guard"), Value::Null));
}
