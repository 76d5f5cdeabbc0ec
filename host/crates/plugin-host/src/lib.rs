//! The plugin host: guests that judge, rewrite and follow jobs, and cannot do anything else.
//!
//! # Theory of operation
//!
//! A plugin is a WebAssembly component in a folder. The `loader` is the one task that decides what is in force:
//! it watches the folder, and for each new file reads, checks and compiles it (`load`, `compile`: in a child process
//! that is bounded in time and memory), asks for its metadata, and then swaps it in. If any step fails, what was in force
//! stays, and the error is shown with advice. The set in force is remembered over restarts, so that a damaged file
//! never opens a door that a plugin was guarding, and that only what guarded one keeps submissions waiting.
//!
//! Everybody else reads the `registry`: [`PluginHost::in_force`] hands out [`Plugin`]s, each one loaded version, and a
//! caller holds its plugin as long as it likes: a swap does not disturb it. Nothing here holds a lock over a call.
//!
//! A call waits for one of the `places`, of which each plugin has one that no other can take, gets a fresh store, and never
//! leaves anything behind. The `ticker` ends each `turn` of a guest after a millisecond, whether it computes or calls the host,
//! and one that needs several turns or much memory goes on `apart`, on a thread of its own, as do the first calls of a version,
//! whose steps nobody knows yet; a wall-clock deadline ends it wherever it is, and the [limits](Limits) bound what it may use.
//! What comes out is checked by the `hook` that asked: JSON must be JSON, a path must point at something, text is cleaned of
//! control characters and secrets.
//!
//! The only way out is HTTP through the two gates of `egress`. Everything else of WASI is linked, because Python and
//! JavaScript import it, over an empty context.
//!
//! # What is not here
//!
//! Which plugin is called when, and what follows from a verdict, is the service's `admission`; deliveries and their
//! retries are its `outbox`. This crate knows no queue, no HTTP server and no SQL, and shows nothing of wasmtime.

mod apart;
mod bindings;
mod call;
mod compile;
mod digest;
mod egress;
mod folder;
pub mod grant;
mod hook;
mod host;
mod limits;
mod load;
mod loader;
mod manifest;
mod memory;
mod output;
mod patch;
mod places;
mod plugin;
mod problem;
mod quantity;
mod registry;
mod remembered;
mod runtime;
mod secret;
mod state;
mod stats;
mod status;
mod text;
mod ticker;
mod tls;
mod turn;
mod view;
mod watch;

pub use compile::{CacheError, dispatch_compiler};
pub use folder::{FileError, FolderError};
pub use host::{Bundled, OpenError, Options, PluginHost, StartError, open};
pub use limits::Limits;
pub use load::LoadError;
pub use manifest::{Manifest, ManifestError};
pub use plugin::Plugin;
pub use runtime::RuntimeError;
pub use stats::{HookMetrics, LastFailure, PluginMetrics};
pub use status::{PluginError, PluginState, PluginStatus};
pub use text::clean;
pub use tls::CaFileError;
pub use view::{
    CallError, Called, Context, Delivery, End, FailureKind, GpuView, Hook, JobView, LogLine, Mode, OnError,
    OutcomeView, Problem, Rewritten, Severity, Stage, Variable,
};

#[cfg(test)]
mod compatibility;
#[cfg(test)]
mod fuzz;
