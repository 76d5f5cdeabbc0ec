//! The engine and everything that all plugins share.

use crate::apart::Waiting;
use crate::limits::Limits;
use crate::memory::Memories;
use crate::places::Shared;
use crate::state::State;
use crate::ticker::Ticker;
use crate::tls::Tls;
use std::sync::Arc;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, WasmFeatures};

/// What all plugins share.
pub struct Runtime {
    pub engine: Engine,
    pub linker: Linker<State>,
    pub ticker: Ticker,
    pub limits: Arc<Limits>,
    pub tls: Arc<Tls>,
    /// Places for calls that all plugins share.
    pub places: Shared,
    /// Where guests wait that have threads of their own.
    pub waiting: Arc<Waiting>,
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime does not support this machine, or has no memory.
    #[error("cannot start the WebAssembly engine: {0}")]
    Engine(String),
    /// No threads.
    #[error("cannot start the threads for plugins: {0}; raise the limit of processes")]
    Threads(std::io::Error),
}

impl Runtime {
    pub fn start(limits: Limits, tls: Tls) -> Result<Runtime, RuntimeError> {
        let engine = engine().map_err(|error| RuntimeError::Engine(format!("{error:#}")))?;
        let linker = linker(&engine).map_err(|error| RuntimeError::Engine(format!("{error:#}")))?;
        Ok(Runtime {
            ticker: Ticker::start(engine.clone()).map_err(RuntimeError::Threads)?,
            waiting: Arc::new(Waiting::start().map_err(RuntimeError::Threads)?),
            places: Shared::new(&limits),
            limits: Arc::new(limits),
            tls: Arc::new(tls),
            engine,
            linker,
        })
    }
}

/// The engine of the service and of the compiling child: what one compiles the other loads.
pub fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        // Given back in pieces, for which others do not wait. What a memory begins with is so copied into it, not mapped.
        .with_host_memory(Arc::new(Memories))
        .memory_init_cow(false)
        // A memory that two threads share could not be counted.
        .wasm_features(WasmFeatures::THREADS, false)
        .shared_memory(false)
        // Names of functions in a trap's message are worth it; file names and lines are not looked up.
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    Engine::new(&config)
}

/// Everything that a component may import.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = linker_of_wasi(engine)?;
    crate::bindings::imports::taxiway::plugin::host::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| {
        state
    })?;
    Ok(linker)
}

/// What a component may import beside `host`, linked always: Python and JavaScript components import all of WASI whether they use it
/// or not.
pub fn linker_of_wasi(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}
