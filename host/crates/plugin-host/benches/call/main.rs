//! What plugins cost, as one line of JSON with times in microseconds unless a name says otherwise:
//!
//! - one `validate` with a configuration of 1 KiB and every limit on, beside the same component in a bare wasmtime loop
//!   with the same allocators ([`bare`]), in turns, so that both meet the same machine;
//! - the same check as a Python subprocess and as an HTTP service on loopback ([`others`]);
//! - loading fifty plugins from a warm cache;
//! - what hostile guests do to others when they are called ([`hostile`]), and files that never come into force when they are loaded
//!   ([`refused`]).
//!
//! `cargo bench -p taxiway-plugin-host --bench call -- COMPONENT.wasm MANIFEST.toml [CALLS]`
//!
//! The component is one that judges `batch_size`, such as `plugins/examples/batch-limit`.

mod bare;
mod beside;
#[path = "../../tests/all/guest.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod guest;
mod hostile;
#[path = "../../src/memory.rs"]
#[allow(dead_code, unused_imports, reason = "its tests run elsewhere")]
mod memory;
mod others;
mod refused;

use bare::Bare;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use taxiway_plugin_host::{Context, JobView, Limits, Options, PluginHost, PluginState, Stage, dispatch_compiler, open};

/// Plugins that are loaded at once.
const PLUGINS: usize = 50;
/// Loads of all of them.
const LOADS: usize = 11;

fn main() -> std::process::ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(status) = dispatch_compiler(&args) {
        return status;
    }
    // Cargo adds `--bench`.
    let mut given = args.iter().skip(1).filter(|arg| !arg.to_string_lossy().starts_with("--")).map(PathBuf::from);
    let (Some(component), Some(manifest)) = (given.next(), given.next()) else {
        eprintln!("no component given: nothing measured");
        return std::process::ExitCode::SUCCESS;
    };
    let calls = given.next().and_then(|calls| calls.to_str()?.parse().ok()).unwrap_or(5_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // On a worker, as the service's calls are.
    let measured =
        runtime.block_on(async { tokio::spawn(measure(component, manifest, calls)).await.expect("no panic") });
    println!("{measured}");
    std::process::ExitCode::SUCCESS
}

fn options(aside: &Path) -> Options {
    Options {
        plugins_dir: aside.join("plugins"),
        state_dir: aside.to_owned(),
        cache_dir: aside.join("cache"),
        ca_file: None,
        limits: Limits::default(),
        bundled: &[],
        compiler: std::env::current_exe().expect("its own path"),
    }
}

async fn measure(component: PathBuf, manifest: PathBuf, calls: usize) -> Value {
    let job = JobView { id: "0193".into(), name: "bench".into(), attempt: 1, config: config(), details: json!({}) };
    let context = Context { stage: Stage::Submit, dry_run: false, gpus: Vec::new(), details: json!({}) };
    json!({
        "call": call(&component, &manifest, &job, &context, calls).await,
        "load": load(&component, &manifest).await,
        "hostile": hostile::measure(std::env::current_exe().expect("its own path"), &job, &context).await,
        "refused": refused::measure(std::env::current_exe().expect("its own path"), &job, &context).await,
    })
}

async fn call(component: &Path, manifest: &Path, job: &JobView, context: &Context, calls: usize) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let (plugin, _) = open(options(aside.path()), component, Some(manifest)).await.expect("the component loads");
    let bare = Bare::new(component);
    let (mut hosted, mut floor) = (Vec::with_capacity(calls), Vec::with_capacity(calls));
    // The first tenth warms up.
    for turn in 0..calls + calls / 10 {
        let began = Instant::now();
        plugin.validate(job, context).await.result.expect("it answers");
        let ours = began.elapsed();
        let began = Instant::now();
        bare.call(job).await;
        let theirs = began.elapsed();
        if turn >= calls / 10 {
            hosted.push(ours);
            floor.push(theirs);
        }
    }
    let mut service = others::Service::start().await;
    let mut over_http = Vec::with_capacity(calls);
    for _ in 0..calls {
        let began = Instant::now();
        service.ask(&job.config).await;
        over_http.push(began.elapsed());
    }
    let mut python = Vec::new();
    for _ in 0..calls.min(100) {
        let began = Instant::now();
        others::python(&job.config).await;
        python.push(began.elapsed());
    }
    let (ours, theirs, subprocess) =
        (percentile(&mut hosted, 50), percentile(&mut floor, 50), percentile(&mut python, 50));
    json!({
        "calls": calls,
        "config_bytes": job.config.to_string().len(),
        "host_p50_us": ours, "host_p99_us": percentile(&mut hosted, 99),
        "bare_p50_us": theirs, "bare_p99_us": percentile(&mut floor, 99),
        "http_p50_us": percentile(&mut over_http, 50), "http_p99_us": percentile(&mut over_http, 99),
        "python_p50_us": subprocess, "python_p99_us": percentile(&mut python, 99),
        "host_to_bare_p50": ours / theirs,
        "python_to_host_p50": subprocess / ours,
    })
}

/// Starts a host over a folder of many plugins whose code is in the cache, until all are in force.
async fn load(component: &Path, manifest: &Path) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let options = options(aside.path());
    std::fs::create_dir(&options.plugins_dir).expect("a folder");
    for number in 0..PLUGINS {
        let path = |extension: &str| options.plugins_dir.join(format!("plugin-{number:02}.{extension}"));
        std::fs::copy(component, path("wasm")).expect("a copy");
        std::fs::copy(manifest, path("toml")).expect("a copy");
    }
    let mut took = Vec::new();
    for turn in 0..=LOADS {
        let began = Instant::now();
        let host = PluginHost::start(options.clone()).await.expect("a host");
        host.ready().await;
        let ready = began.elapsed();
        let in_force = host.plugins().iter().filter(|status| status.state == PluginState::InForce).count();
        assert_eq!(in_force, PLUGINS);
        // The first one compiles.
        if turn > 0 {
            took.push(ready);
        }
    }
    json!({"plugins": PLUGINS, "p50_ms": percentile(&mut took, 50) / 1e3, "slowest_ms": percentile(&mut took, 100) / 1e3})
}

/// About 1 KiB of JSON.
fn config() -> Value {
    let mut config =
        json!({"batch_size": 64, "model": "meta-llama/Llama-3-8B", "lora": {"r": 16, "alpha": 32, "dropout": 0.05}});
    for i in 0..24 {
        config[format!("parameter_{i:02}")] = json!("a value of some length");
    }
    config
}

fn percentile(times: &mut [Duration], part: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6
}
