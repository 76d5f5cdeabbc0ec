//! What the server gives a plugin.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ReadError,
    error::{Document, read},
};

#[cfg(target_family = "wasm")]
use crate::bindings::imports::taxiway::plugin::host as server;
#[cfg(not(target_family = "wasm"))]
use crate::testing::server;

/// How important a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every step.
    Trace,
    /// For the plugin's author.
    Debug,
    /// Worth a line.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something failed.
    Error,
}

/// This plugin's `[settings]` as your type.
///
/// # Errors
///
/// [`ReadError`] names the place that does not fit. Check settings when the plugin is loaded
/// ([`Metadata::check_settings`](crate::Metadata::check_settings)), and this cannot happen in a hook.
pub fn settings<T: DeserializeOwned>() -> Result<T, ReadError> {
    read_settings(&parse_settings(&server::settings())?)
}

/// The same for settings that are at hand, as in [`Metadata::check_settings`](crate::Metadata::check_settings).
///
/// # Errors
///
/// [`ReadError`] names the place that does not fit.
pub fn read_settings<T: DeserializeOwned>(settings: &Value) -> Result<T, ReadError> {
    read(Document::Settings, settings)
}

/// A plugin without a `[settings]` table has an empty one.
pub(crate) fn parse_settings(text: &str) -> Result<Value, ReadError> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_str(text).map_err(|error| ReadError {
        document: Document::Settings,
        path: String::new(),
        message: error.to_string(),
    })
}

/// A secret that the manifest grants by this name; `None` when it does not.
pub fn secret(name: &str) -> Option<String> {
    server::secret(name)
}

/// Writes a line to the server's log, under this plugin's name. The macros [`info!`](crate::info!) and its siblings
/// format for you.
pub fn log(level: Level, message: &str) {
    let level = match level {
        Level::Trace => server::Level::Trace,
        Level::Debug => server::Level::Debug,
        Level::Info => server::Level::Info,
        Level::Warn => server::Level::Warn,
        Level::Error => server::Level::Error,
    };
    server::log(level, message);
}

/// Logs at [`Level::Trace`]; takes what `format!` takes.
#[macro_export]
macro_rules! trace {
    ($($text:tt)+) => { $crate::log($crate::Level::Trace, &::std::format!($($text)+)) };
}

/// Logs at [`Level::Debug`]; takes what `format!` takes.
#[macro_export]
macro_rules! debug {
    ($($text:tt)+) => { $crate::log($crate::Level::Debug, &::std::format!($($text)+)) };
}

/// Logs at [`Level::Info`]; takes what `format!` takes.
///
/// ```
/// # taxiway_plugin::testing::Host::new().run(|| {
/// taxiway_plugin::info!("sent {} bytes", 3);
/// # });
/// ```
#[macro_export]
macro_rules! info {
    ($($text:tt)+) => { $crate::log($crate::Level::Info, &::std::format!($($text)+)) };
}

/// Logs at [`Level::Warn`]; takes what `format!` takes.
#[macro_export]
macro_rules! warn {
    ($($text:tt)+) => { $crate::log($crate::Level::Warn, &::std::format!($($text)+)) };
}

/// Logs at [`Level::Error`]; takes what `format!` takes.
#[macro_export]
macro_rules! error {
    ($($text:tt)+) => { $crate::log($crate::Level::Error, &::std::format!($($text)+)) };
}
