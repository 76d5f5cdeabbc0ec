//! What a plugin may use up. Every number has its reason beside it; each can be set in `taxiway.toml`.

use crate::quantity;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The limits of every call and every load. `Default` gives the documented defaults; a manifest may set `timeout` and
/// `memory` for its plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Wall-clock time of a `validate`, `rewrite` or `metadata` call, instantiation included (2 s). A user waits for it
    /// with a submission in hand; plugins that compute need a millisecond, those that ask a web service a few hundred.
    #[serde(deserialize_with = "quantity::time_to_work", serialize_with = "quantity::as_seconds")]
    pub timeout: Duration,
    /// Wall-clock time of a `complete` call (30 s). Nobody waits for it, and receivers of webhooks are slow.
    #[serde(deserialize_with = "quantity::time_to_work", serialize_with = "quantity::as_seconds")]
    pub complete_timeout: Duration,
    /// Linear memory of one call in bytes, summed over all memories (128 MiB). Small plugins were measured at 1 MiB in
    /// Rust, 9 in JavaScript and 13 in Python: ten times the largest.
    #[serde(deserialize_with = "quantity::memory")]
    pub memory: u64,
    /// Table elements of one call, summed over all tables (131,072, at 8 bytes 1 MiB). Python's interpreter needs about
    /// ten thousand.
    pub table_elements: u64,
    /// Core instances of one call (200). A Python component links about thirty modules. Fewer, where those of the component's
    /// largest module would take more than 128 MiB together.
    pub instances: usize,
    /// Core memories and tables of one call, each (100). Components have one memory and a table for each module.
    pub memories: usize,
    /// Bytes that one host call, or the answer of a hook, may carry out of the guest (4 MiB). A configuration is some
    /// kilobytes; parsed JSON takes up to ten times its text, so this bounds what an answer costs the service.
    #[serde(deserialize_with = "quantity::size")]
    pub transfer: u64,
    /// Resources (streams, requests, pollables) alive at once in one call (1,000). A request needs about ten.
    pub resources: usize,
    /// Bytes of one request for random numbers (64 KiB). Seeds and keys are below a hundred.
    #[serde(deserialize_with = "quantity::size")]
    pub random: u64,
    /// Bytes of log, standard output and standard error kept of one call (16 KiB): some hundred lines, enough for a
    /// stack trace. The rest is swallowed.
    #[serde(deserialize_with = "quantity::size")]
    pub output: u64,
    /// Calls of one plugin at a time (8). At most as many memories of it exist; the next call waits.
    #[serde(deserialize_with = "quantity::one_or_more")]
    pub parallel: usize,
    /// Calls of all plugins at a time, beside one that each plugin always may have (32): with every one at the default memory
    /// limit, 4 GiB.
    #[serde(deserialize_with = "quantity::one_or_more")]
    pub parallel_total: usize,
    /// Time that a call waits for its place (10 s), which does not count as the plugin's. Five rounds of calls that all end at
    /// the default timeout; a user waits for it with a submission in hand.
    #[serde(deserialize_with = "quantity::duration", serialize_with = "quantity::as_seconds")]
    pub wait: Duration,
    /// HTTP requests of one call (16). A validator asks one service, a notifier posts to one receiver.
    pub http_requests: u32,
    /// Time to look up, connect and shake hands, of one HTTP request (5 s): what a far host needs with one lost packet.
    #[serde(deserialize_with = "quantity::time_to_work", serialize_with = "quantity::as_seconds")]
    pub http_connect_timeout: Duration,
    /// Time of one HTTP request from its start to the end of the answer's body (30 s): the longest call there is.
    #[serde(deserialize_with = "quantity::time_to_work", serialize_with = "quantity::as_seconds")]
    pub http_timeout: Duration,
    /// Bytes of the headers of a request or answer (32 KiB); servers accept 8 to 16 KiB.
    #[serde(deserialize_with = "quantity::size")]
    pub http_headers: u64,
    /// Bytes of a request's body (1 MiB). A job as JSON is some kilobytes.
    #[serde(deserialize_with = "quantity::size")]
    pub http_request_body: u64,
    /// Bytes of an answer's body (4 MiB): a policy document or an index of models.
    #[serde(deserialize_with = "quantity::size")]
    pub http_response_body: u64,
    /// Bytes of a component file (64 MiB). Python and JavaScript components measure 10 to 40 MiB.
    #[serde(deserialize_with = "quantity::size")]
    pub component: u64,
    /// Bytes of a manifest (256 KiB). A long allow-list is some kilobytes.
    #[serde(deserialize_with = "quantity::size")]
    pub manifest: u64,
    /// Time to compile one component (5 min). 20 MiB of code took one minute on two busy cores.
    #[serde(deserialize_with = "quantity::time_to_work", serialize_with = "quantity::as_seconds")]
    pub compile_timeout: Duration,
    /// Address space of the compiling process in bytes (4 GiB). 20 MiB of code took 0.15 GiB of memory; what threads and
    /// allocators only reserve counts too.
    #[serde(deserialize_with = "quantity::size")]
    pub compile_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            timeout: Duration::from_secs(2),
            complete_timeout: Duration::from_secs(30),
            memory: 128 << 20,
            table_elements: 1 << 17,
            instances: 200,
            memories: 100,
            transfer: 4 << 20,
            resources: 1_000,
            random: 64 << 10,
            output: 16 << 10,
            parallel: 8,
            parallel_total: 32,
            wait: Duration::from_secs(10),
            http_requests: 16,
            http_connect_timeout: Duration::from_secs(5),
            http_timeout: Duration::from_secs(30),
            http_headers: 32 << 10,
            http_request_body: 1 << 20,
            http_response_body: 4 << 20,
            component: 64 << 20,
            manifest: 256 << 10,
            compile_timeout: Duration::from_secs(300),
            compile_memory: 4 << 30,
        }
    }
}
