//! What one store holds: the guest's view of the world, and the counters that bound it.

use crate::bindings::imports::taxiway::plugin::host;
use crate::egress::Egress;
use crate::limits::Limits;
use crate::output::{Output, Stream};
use crate::secret::Secrets;
use crate::turn::Turn;
use async_trait::async_trait;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::ResourceLimiterAsync;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Bytes of memory that a guest may have on the caller's thread. Filling or copying it all is one instruction that nothing can
/// interrupt: of so much it takes about a millisecond, as long as a turn. Plugins in Rust have a quarter of it.
const MEMORY_HERE: u64 = 4 << 20;

/// What a call of one plugin may have of what differs from plugin to plugin.
#[derive(Clone, Copy)]
pub struct Room {
    /// Bytes of linear memory.
    pub memory: u64,
    /// Core instances.
    pub instances: usize,
}

/// What outlives the store of one call: the store is gone when a call was cut off at its deadline.
pub struct Trace {
    /// What the guest logged and printed.
    pub output: Output,
    /// Bytes of linear memory at the peak.
    pub peak_memory: AtomicU64,
    /// The guest was refused memory.
    pub out_of_memory: AtomicBool,
    /// The guest was refused table elements.
    pub out_of_tables: AtomicBool,
    /// The guest computes for longer than a moment or has much memory: it belongs on a thread of its own.
    pub busy: AtomicBool,
    /// HTTP requests that the guest asked for.
    pub requests: AtomicU64,
    /// Those of them that the host refused.
    pub refused_requests: AtomicU64,
    /// The last request that the host refused, safe to show.
    denied: Mutex<Option<String>>,
}

impl Trace {
    pub fn new(limits: &Limits) -> Trace {
        Trace {
            output: Output::new(usize::try_from(limits.output).unwrap_or(usize::MAX)),
            peak_memory: AtomicU64::new(0),
            out_of_memory: AtomicBool::new(false),
            out_of_tables: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            refused_requests: AtomicU64::new(0),
            denied: Mutex::new(None),
        }
    }

    /// The call leaves the caller's thread at its next pause. Tells whether that is new.
    pub fn set_busy(&self) -> bool {
        !self.busy.swap(true, Ordering::Relaxed)
    }

    /// Whether it leaves, or has left.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Keeps that the host refused a request; `what` is safe to show.
    pub fn deny(&self, what: String) {
        self.refused_requests.fetch_add(1, Ordering::Relaxed);
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// The last request that the host refused.
    pub fn denied(&self) -> Option<String> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The data of a store. Fresh for every call.
pub struct State {
    /// Made at the guest's first use of WASI: most plugins never use it, and seeding its generators costs more than
    /// their whole call.
    wasi: Option<WasiCtx>,
    http: WasiHttpCtx,
    egress: Egress,
    table: ResourceTable,
    settings: Arc<str>,
    secrets: Arc<Secrets>,
    random_limit: u64,
    pub(crate) limiter: Limiter,
    pub(crate) turn: Turn,
    pub(crate) trace: Arc<Trace>,
}

impl State {
    pub fn new(
        limits: &Limits,
        room: Room,
        settings: Arc<str>,
        secrets: Arc<Secrets>,
        egress: Egress,
        turn: Turn,
        trace: Arc<Trace>,
    ) -> State {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.resources);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(usize::try_from(limits.http_headers).unwrap_or(usize::MAX));
        State {
            wasi: None,
            http,
            egress,
            table,
            settings,
            secrets,
            random_limit: limits.random,
            turn,
            limiter: Limiter {
                memory: 0,
                memory_limit: room.memory,
                table_elements: 0,
                table_limit: limits.table_elements,
                instances: room.instances,
                memories: limits.memories,
                trace: trace.clone(),
            },
            trace,
        }
    }

    /// Opens the granted directories, read-only, each under its own path. Blocks on slow file systems.
    pub fn open_directories(&mut self, directories: &[std::path::PathBuf]) -> wasmtime::Result<()> {
        let mut builder = self.wasi_builder();
        for directory in directories {
            builder.preopened_dir(directory, directory.to_string_lossy(), FsPerms::ReadOnly)?;
        }
        self.wasi = Some(builder.build());
        Ok(())
    }

    fn wasi_builder(&self) -> wasmtime_wasi::WasiCtxBuilder {
        wasi_builder(&self.trace.output, self.random_limit)
    }
}

/// The empty context: no directories, environment, arguments, sockets or look-ups.
fn wasi_builder(output: &Output, random_limit: u64) -> wasmtime_wasi::WasiCtxBuilder {
    let mut builder = WasiCtx::builder();
    builder
        .stdout(output.stream(Stream::Stdout))
        .stderr(output.stream(Stream::Stderr))
        .max_random_size(random_limit)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    builder
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let State { wasi, table, trace, random_limit, .. } = self;
        let ctx = wasi.get_or_insert_with(|| wasi_builder(&trace.output, *random_limit).build());
        WasiCtxView { ctx, table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.egress, table: &mut self.table, ctx: &mut self.http }
    }
}

impl host::Host for State {
    fn log(&mut self, level: host::Level, message: String) {
        let level = match level {
            host::Level::Trace => "trace",
            host::Level::Debug => "debug",
            host::Level::Info => "info",
            host::Level::Warn => "warn",
            host::Level::Error => "error",
        };
        self.trace.output.log(level, &message);
    }

    fn settings(&mut self) -> String {
        self.settings.as_ref().to_owned()
    }

    fn secret(&mut self, name: String) -> Option<String> {
        self.secrets.get(&name).map(str::to_owned)
    }
}

/// Counts memory and table elements over the whole store: two memories, each under the limit, are not.
pub struct Limiter {
    memory: u64,
    memory_limit: u64,
    table_elements: u64,
    table_limit: u64,
    instances: usize,
    memories: usize,
    trace: Arc<Trace>,
}

#[async_trait]
impl ResourceLimiterAsync for Limiter {
    async fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        if is_over_its_own(most, desired) {
            return Ok(false);
        }
        let growth = desired.saturating_sub(current) as u64;
        let Some(total) = self.memory.checked_add(growth).filter(|total| *total <= self.memory_limit) else {
            self.trace.out_of_memory.store(true, Ordering::Relaxed);
            return Ok(false);
        };
        self.memory = total;
        self.trace.peak_memory.fetch_max(total, Ordering::Relaxed);
        if total > MEMORY_HERE && self.trace.set_busy() {
            // Moves before it has the memory.
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    async fn table_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        if is_over_its_own(most, desired) {
            return Ok(false);
        }
        let growth = desired.saturating_sub(current) as u64;
        let Some(total) = self.table_elements.checked_add(growth).filter(|total| *total <= self.table_limit) else {
            self.trace.out_of_tables.store(true, Ordering::Relaxed);
            return Ok(false);
        };
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn tables(&self) -> usize {
        self.memories
    }

    fn memories(&self) -> usize {
        self.memories
    }
}

/// Whether a memory or table would be larger than its module says it may become. wasmtime refuses that too, but after it was permitted
/// and counted here; and what it tells of growths that came to nothing cannot be taken off again, since it tells of some for which it
/// never asked. One that the system has no memory for stays counted.
fn is_over_its_own(most: Option<usize>, desired: usize) -> bool {
    most.is_some_and(|most| desired > most)
}
