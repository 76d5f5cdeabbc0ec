//! Write Taxiway plugins in Rust.
//!
//! A plugin is a WebAssembly component that has one or more *hooks*: it may judge a job ([`Validate`]), change its
//! configuration ([`Rewrite`]), or act when it has ended ([`Complete`]). Implement the traits of the hooks you need,
//! and name them in [`export!`]:
//!
//! ```
//! use taxiway_plugin::{Context, Job, Problems, Validate, ValidateError, export};
//!
//! struct BatchLimit;
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     batch_size: u32,
//! }
//!
//! impl Validate for BatchLimit {
//!     fn validate(job: &Job, _context: &Context) -> Result<Problems, ValidateError> {
//!         let config: Config = job.config()?;
//!         let mut problems = Problems::new();
//!         if config.batch_size > 512 {
//!             problems
//!                 .error("/batch_size", "batch-too-large", format!("{} is more than 512", config.batch_size))
//!                 .help("use gradient accumulation for larger effective batches");
//!         }
//!         Ok(problems)
//!     }
//! }
//!
//! export!(BatchLimit: Validate);
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2` as a `cdylib`, and copy the `.wasm` file into the
//! server's plugins directory. Name, version and summary are those of your `Cargo.toml`.
//!
//! # What a plugin can reach
//!
//! Its [settings](settings()), the [secrets](secret) and hosts ([`http`]) that its manifest grants, the clock, random
//! bytes and the [log](macro@info). Each call gets a fresh instance: nothing in memory outlives a call, and a call that
//! takes too long or too much memory is ended.
//!
//! # Testing
//!
//! Everything here also builds natively. [`testing::Host`] stands in for the server, so a plugin's logic is tested with
//! plain `cargo test`.

#![deny(missing_docs)]

#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod glue;

mod error;
mod export;
mod hooks;
mod host;
pub mod http;
mod job;
pub mod pointer;
mod problems;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use error::{Document, HookError, ReadError, ValidateError};
pub use hooks::{Change, Complete, Delivery, End, Metadata, Outcome, Rewrite, Validate};
pub use host::{Level, log, read_settings, secret, settings};
pub use job::{Context, Gpu, Job};
pub use problems::{Problem, Problems, Severity};
#[doc(hidden)]
pub use serde_json;
pub use serde_json::{Value, json};
