//! What one `validate` costs with every limit on, beside the same component in a bare wasmtime loop: a fresh store and
//! instance for each call, the same engine settings, the same runtime.
//!
//! `cargo bench -p taxiway-plugin-host --bench call -- COMPONENT.wasm MANIFEST.toml [CALLS]`
//!
//! The component is one that judges `batch_size`, such as `plugins/examples/batch-limit`; the program prints one line of
//! JSON with times in microseconds.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use taxiway_plugin_host::{Context, JobView, Limits, Options, Stage, dispatch_compiler, open};
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        inline: "package taxiway:bench; world bench {
            import taxiway:plugin/host@0.1.0;
            export taxiway:plugin/validate@0.1.0;
        }",
        world: "taxiway:bench/bench",
        exports: { default: async },
    });
}

use bindings::taxiway::plugin::{host, types};

struct Bare {
    wasi: WasiCtx,
    table: ResourceTable,
    settings: String,
}

impl WasiView for Bare {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl host::Host for Bare {
    fn log(&mut self, _: host::Level, _: String) {}

    fn settings(&mut self) -> String {
        self.settings.clone()
    }

    fn secret(&mut self, _: String) -> Option<String> {
        None
    }
}

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

async fn measure(component: PathBuf, manifest: PathBuf, calls: usize) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let options = Options {
        plugins_dir: aside.path().join("plugins"),
        cache_dir: aside.path().join("cache"),
        ca_file: None,
        limits: Limits::default(),
        bundled: &[],
        compiler: std::env::current_exe().expect("its own path"),
    };
    let (plugin, _) = open(options, &component, Some(&manifest)).await.expect("the component loads");
    let job = JobView { id: "0193".into(), name: "bench".into(), attempt: 1, config: config(), details: json!({}) };
    let context = Context { stage: Stage::Submit, dry_run: false, gpus: Vec::new(), details: json!({}) };

    let engine = Engine::new(Config::new().epoch_interruption(true)).expect("an engine");
    let compiled = Component::from_file(&engine, &component).expect("it compiles");
    let mut linker: Linker<Bare> = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("WASI links");
    host::add_to_linker::<Bare, HasSelf<Bare>>(&mut linker, |state| state).expect("the host links");
    let bare = bindings::BenchPre::new(linker.instantiate_pre(&compiled).expect("it links")).expect("it validates");
    let settings = json!({"max_batch_size": 256}).to_string();

    let (mut hosted, mut floor) = (Vec::with_capacity(calls), Vec::with_capacity(calls));
    // In turns, so that both meet the same machine; the first tenth warms up.
    for turn in 0..calls + calls / 10 {
        let began = Instant::now();
        plugin.validate(&job, &context).await.result.expect("it answers");
        let ours = began.elapsed();
        let began = Instant::now();
        bare_call(&engine, &bare, &settings, &job).await;
        let theirs = began.elapsed();
        if turn >= calls / 10 {
            hosted.push(ours);
            floor.push(theirs);
        }
    }
    let (ours, theirs) = (percentile(&mut hosted, 50), percentile(&mut floor, 50));
    json!({
        "calls": calls,
        "host_p50_us": ours, "host_p99_us": percentile(&mut hosted, 99),
        "bare_p50_us": theirs, "bare_p99_us": percentile(&mut floor, 99),
        "ratio_p50": ours / theirs,
    })
}

async fn bare_call(engine: &Engine, pre: &bindings::BenchPre<Bare>, settings: &str, job: &JobView) {
    let state = Bare { wasi: WasiCtx::builder().build(), table: ResourceTable::new(), settings: settings.to_owned() };
    let mut store = Store::new(engine, state);
    store.set_epoch_deadline(u64::MAX / 2);
    let job = types::Job {
        id: job.id.clone(),
        name: job.name.clone(),
        attempt: job.attempt,
        config: job.config.to_string(),
        details: job.details.to_string(),
    };
    let context = types::Context { stage: "submit".into(), dry_run: false, gpus: Vec::new(), details: "{}".into() };
    let instance = pre.instantiate_async(&mut store).await.expect("it starts");
    let answer = instance.taxiway_plugin_validate().call_validate(&mut store, &job, &context).await.expect("it runs");
    answer.expect("it answers");
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
