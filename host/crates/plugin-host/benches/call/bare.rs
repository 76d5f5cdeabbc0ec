//! The floor: the same component in a bare wasmtime loop, with a fresh store and instance for each call. Instances and their memories
//! come from where the service has them: wasmtime's allocator on demand, and [`Memories`].

use crate::memory::Memories;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use taxiway_plugin_host::JobView;
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

struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    settings: String,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl host::Host for State {
    fn log(&mut self, _: host::Level, _: String) {}

    fn settings(&mut self) -> String {
        self.settings.clone()
    }

    fn secret(&mut self, _: String) -> Option<String> {
        None
    }
}

/// A component, compiled and linked, without any limit.
pub struct Bare {
    engine: Engine,
    hook: bindings::BenchPre<State>,
    settings: String,
}

impl Bare {
    pub fn new(component: &Path) -> Bare {
        let mut config = Config::new();
        config.epoch_interruption(true).with_host_memory(Arc::new(Memories)).memory_init_cow(false);
        let engine = Engine::new(&config).expect("an engine");
        let compiled = Component::from_file(&engine, component).expect("it compiles");
        let mut linker: Linker<State> = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("WASI links");
        host::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state).expect("the host links");
        let hook = bindings::BenchPre::new(linker.instantiate_pre(&compiled).expect("it links")).expect("it validates");
        Bare { engine, hook, settings: json!({"max_batch_size": 256}).to_string() }
    }

    pub async fn call(&self, job: &JobView) {
        let state =
            State { wasi: WasiCtx::builder().build(), table: ResourceTable::new(), settings: self.settings.clone() };
        let mut store = Store::new(&self.engine, state);
        store.set_epoch_deadline(u64::MAX / 2);
        let job = types::Job {
            id: job.id.clone(),
            name: job.name.clone(),
            attempt: job.attempt,
            config: job.config.to_string(),
            details: job.details.to_string(),
        };
        let context = types::Context { stage: "submit".into(), dry_run: false, gpus: Vec::new(), details: "{}".into() };
        let instance = self.hook.instantiate_async(&mut store).await.expect("it starts");
        let answer =
            instance.taxiway_plugin_validate().call_validate(&mut store, &job, &context).await.expect("it runs");
        answer.expect("it answers");
    }
}
