//! One call of one hook, under every limit: a place, a fresh store, a deadline, and an account of what happened.

use crate::apart::{self, Lost};
use crate::egress::Egress;
use crate::limits::Limits;
use crate::places::Place;
use crate::plugin::{Body, Loaded, Plugin};
use crate::quantity::{show_duration, show_size};
use crate::secret::Secrets;
use crate::state::{State, Trace};
use crate::stats::{LastFailure, Spent};
use crate::text;
use crate::turn::{Turn, Turns};
use crate::view::{CallError, Called, FailureKind, Hook, LogLine};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use tracing::field::Empty;
use wasmtime::component::ResourceTableError;
use wasmtime::{Store, Trap, UpdateDeadline};

/// The longest message of a failure, in bytes.
const MESSAGE_LIMIT: usize = 1024;

/// How a call failed, before the plugin's name and wishes are put to it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    pub limit: Option<String>,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, limit: None, message: message.into(), retry_after: None }
    }

    pub fn malformed(message: impl Into<String>) -> Failure {
        Failure::new(FailureKind::MalformedOutput, message)
    }

    fn limited(kind: FailureKind, limit: String) -> Failure {
        Failure { message: format!("it went over its limit: {limit}"), limit: Some(limit), kind, retry_after: None }
    }
}

/// One call under way.
pub(crate) struct Call<'a> {
    plugin: &'a Plugin,
    /// None for `metadata`, which is not among a plugin's calls for jobs.
    hook: Option<Hook>,
    started: Instant,
    trace: Option<Arc<Trace>>,
    dry_run: bool,
    span: tracing::Span,
}

impl<'a> Call<'a> {
    pub fn begin(plugin: &'a Plugin, hook: Hook, job: &str, dry_run: bool) -> Call<'a> {
        let span = tracing::info_span!(
            "plugin_call",
            plugin = plugin.name(),
            version = plugin.version(),
            hook = hook.as_str(),
            job,
            dry_run,
            outcome = Empty,
            duration_us = Empty,
            peak_memory_bytes = Empty
        );
        Call { plugin, hook: Some(hook), started: Instant::now(), trace: None, dry_run, span }
    }

    /// A call of `metadata`, which belongs to no job.
    pub fn begin_metadata(plugin: &'a Plugin) -> Call<'a> {
        let span = tracing::info_span!(
            "plugin_call",
            plugin = plugin.name(),
            hook = "metadata",
            outcome = Empty,
            duration_us = Empty,
            peak_memory_bytes = Empty
        );
        Call { plugin, hook: None, started: Instant::now(), trace: None, dry_run: true, span }
    }

    /// The loaded component, or the failure that stands in its place.
    pub fn loaded(&self) -> Result<&'a Loaded, Failure> {
        match &self.plugin.0.body {
            Body::Loaded(loaded) => Ok(loaded),
            Body::Broken(why) => Err(Failure::new(
                FailureKind::NotLoaded,
                format!("it was in force and cannot be loaded any more: {why}"),
            )),
        }
    }

    /// Waits for a place, then runs `enter` on a fresh store, within `timeout`.
    pub async fn run<T, F>(&mut self, timeout: Duration, enter: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: for<'s> FnOnce(&'s mut Store<State>) -> BoxFuture<'s, wasmtime::Result<T>> + Send + 'static,
    {
        let span = self.span.clone();
        self.run_in_span(timeout, enter).instrument(span).await
    }

    async fn run_in_span<T, F>(&mut self, timeout: Duration, enter: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: for<'s> FnOnce(&'s mut Store<State>) -> BoxFuture<'s, wasmtime::Result<T>> + Send + 'static,
    {
        let loaded = self.loaded()?;
        let runtime = &loaded.runtime;
        let mut patience = Instant::now() + runtime.limits.wait;
        let mut place = timeout_at(patience, loaded.places.take()).await.map_err(|_| no_place(&runtime.limits))?;
        // What it waited for a place is not its time.
        self.started = Instant::now();
        let trace = Arc::new(Trace::new(&runtime.limits));
        self.trace = Some(trace.clone());
        let mut state = fresh_state(loaded, self.dry_run, trace.clone());
        if !loaded.read.is_empty() {
            let opened = timeout_at(self.started + timeout, opened(state, loaded.read.clone(), place)).await;
            match opened {
                Ok(Ok(opened)) => (state, place) = opened,
                Ok(Err(error)) => return Err(classify(&error, loaded, &trace)),
                Err(_) => return Err(timed_out(timeout)),
            }
            // What that took is its time, and so not part of its wait.
            patience += self.started.elapsed();
        }
        if !loaded.steps.are_short() {
            let waits = Instant::now();
            let making = timeout_at(patience, loaded.places.turn_to_make_instances()).await;
            state.turn.makes_instances_by(making.map_err(|_| no_place(&runtime.limits))?);
            // Nor is what it waited for others of its plugin.
            self.started += waits.elapsed();
        }
        let deadline = self.started + timeout;
        let ticking = runtime.ticker.live();
        let engine = runtime.engine.clone();
        let limits = runtime.limits.clone();
        let guest = async move {
            // Given back when the store is gone, also when that is after the caller was answered.
            let under_way = (place, ticking);
            let mut store = Store::new(&engine, state);
            store.limiter_async(|state| &mut state.limiter);
            store.set_hostcall_fuel(usize::try_from(limits.transfer).unwrap_or(usize::MAX));
            store.set_max_component_handles(limits.resources);
            store.set_epoch_deadline(1);
            // The epoch only sends a guest to the host: what happens there is up to the turn.
            store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Continue(1)));
            store.call_hook_async(Turns);
            let answer = enter(&mut store).await;
            store.data_mut().turn.instances_are_made();
            (answer, (store, under_way))
        };
        let running =
            AssertUnwindSafe(apart::run(guest.boxed(), &trace.busy, &loaded.steps, &runtime.waiting)).catch_unwind();
        let lost = match timeout_at(deadline, running).await {
            Ok(Ok(Ok(Ok(answer)))) => return Ok(answer),
            Ok(Ok(Ok(Err(error)))) => return Err(classify(&error, loaded, &trace)),
            Ok(Ok(Err(lost))) => lost,
            Ok(Err(_)) => Lost::Panicked,
            Err(_) => return Err(timed_out(timeout)),
        };
        tracing::error!("the service failed in a plugin's call: {lost}");
        Err(Failure::new(FailureKind::HostPanic, "the service itself failed in this call; its log says more"))
    }

    /// Closes the account: counts, logs, and names the plugin in the failure.
    pub fn end<T>(self, result: Result<T, Failure>) -> Called<T> {
        let _entered = self.span.enter();
        let duration = self.started.elapsed();
        let counted = |count: fn(&Trace) -> &AtomicU64| {
            self.trace.as_deref().map_or(0, |trace| count(trace).load(Ordering::Relaxed))
        };
        let spent = Spent {
            duration,
            peak_memory_bytes: counted(|trace| &trace.peak_memory),
            requests: counted(|trace| &trace.requests),
            refused_requests: counted(|trace| &trace.refused_requests),
        };
        let log = self.log();
        for line in &log {
            match line.source {
                "error" => tracing::error!(target: "taxiway::plugin", "{}", line.text),
                "warn" => tracing::warn!(target: "taxiway::plugin", "{}", line.text),
                "debug" => tracing::debug!(target: "taxiway::plugin", "{}", line.text),
                "trace" => tracing::trace!(target: "taxiway::plugin", "{}", line.text),
                source => tracing::info!(target: "taxiway::plugin", source, "{}", line.text),
            }
        }
        self.span.record("outcome", result.as_ref().map_or_else(|failure| failure.kind.as_str(), |_| "answered"));
        self.span.record("duration_us", u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        self.span.record("peak_memory_bytes", spent.peak_memory_bytes);
        let result = result.map_err(|failure| self.failed(failure));
        let stats = &self.plugin.0.stats;
        match (&result, self.hook) {
            (Ok(_), hook) => {
                tracing::debug!("plugin answered");
                hook.inspect(|hook| stats.record(*hook, &spent));
            }
            // It was not called: that is not its failure, and no call of its.
            (Err(error), _) if error.kind == FailureKind::Busy => {
                tracing::warn!("plugin {}: {}", error.kind.what_happened(), error.message)
            }
            (Err(error), Some(hook)) => {
                let kind = error.kind.as_str();
                tracing::warn!(kind, limit = error.limit, "plugin {}: {}", error.kind.what_happened(), error.message);
                stats.record_failure(&spent, last_failure(hook, error));
            }
            // The loader says it.
            (Err(error), None) => tracing::debug!("plugin failed: {}", error.message),
        }
        Called { result, duration, peak_memory_bytes: spent.peak_memory_bytes, log }
    }

    fn log(&self) -> Vec<LogLine> {
        match (&self.trace, self.secrets()) {
            (Some(trace), Some(secrets)) => trace.output.lines(secrets),
            _ => Vec::new(),
        }
    }

    fn failed(&self, failure: Failure) -> CallError {
        let message = match self.secrets() {
            Some(secrets) => secrets.safe(&failure.message, MESSAGE_LIMIT),
            None => text::clean(&failure.message, MESSAGE_LIMIT),
        };
        CallError {
            plugin: self.plugin.name().to_owned(),
            version: self.plugin.version().to_owned(),
            kind: failure.kind,
            limit: failure.limit,
            message,
            on_error: self.plugin.on_error(),
            retry_after: failure.retry_after,
        }
    }

    fn secrets(&self) -> Option<&'a Secrets> {
        match &self.plugin.0.body {
            Body::Loaded(loaded) => Some(&loaded.secrets),
            Body::Broken(_) => None,
        }
    }

    /// What the guest failed with by its own account.
    pub fn hook_error(&self, error: &crate::bindings::types::HookError) -> Failure {
        let code = match self.secrets() {
            Some(secrets) => secrets.safe_code(&error.code),
            None => text::clean_code(&error.code),
        };
        let mut message = format!("{code}: {}", error.message);
        if let Some(denied) = self.trace.as_ref().and_then(|trace| trace.denied()) {
            message.push_str(&format!(" (the service had refused {denied})"));
        }
        Failure {
            kind: FailureKind::HookError { code },
            limit: None,
            message,
            retry_after: error.retry_after_ms.map(Duration::from_millis),
        }
    }
}

fn last_failure(hook: Hook, error: &CallError) -> LastFailure {
    LastFailure {
        at: format!("{:.3}", jiff::Timestamp::now()),
        hook,
        kind: error.kind.as_str(),
        limit: error.limit.clone(),
        message: error.message.clone(),
    }
}

fn timed_out(timeout: Duration) -> Failure {
    Failure::limited(FailureKind::Timeout, format!("timeout of {}", show_duration(timeout)))
}

fn no_place(limits: &Limits) -> Failure {
    let wait = show_duration(limits.wait);
    let message = format!("there was no place for its call within {wait}: others were under way; try again later");
    Failure { limit: Some(format!("wait of {wait}")), ..Failure::new(FailureKind::Busy, message) }
}

/// The state with the granted directories opened. A file system that does not answer keeps the place of the call.
async fn opened(mut state: State, read: Vec<PathBuf>, place: Place) -> wasmtime::Result<(State, Place)> {
    let opening = move || state.open_directories(&read).map(|()| (state, place));
    tokio::task::spawn_blocking(opening).await?
}

fn fresh_state(loaded: &Loaded, dry_run: bool, trace: Arc<Trace>) -> State {
    let egress = Egress::new(loaded.policy.clone(), dry_run, trace.clone());
    let turn = Turn::first(loaded.runtime.ticker.ticks());
    State::new(
        &loaded.runtime.limits,
        loaded.room,
        loaded.settings.clone(),
        loaded.secrets.clone(),
        egress,
        turn,
        trace,
    )
}

/// Names what the guest died of.
fn classify(error: &wasmtime::Error, loaded: &Loaded, trace: &Trace) -> Failure {
    let limits = &loaded.runtime.limits;
    if trace.out_of_memory.load(Ordering::Relaxed) {
        return Failure::limited(FailureKind::Memory, format!("memory of {}", show_size(loaded.room.memory)));
    }
    if trace.out_of_tables.load(Ordering::Relaxed) {
        return Failure::limited(FailureKind::Resources, format!("{} table elements", limits.table_elements));
    }
    if matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full)) {
        return Failure::limited(FailureKind::Resources, format!("{} resources", limits.resources));
    }
    // The rest of wasmtime's limits have no types, only texts; a changed text costs the name of the limit, and a test
    // for each notices.
    let whole = format!("{error:#}");
    if whole.contains("fuel allocated for hostcalls") {
        return Failure::limited(
            FailureKind::Transfer,
            format!("{} in one call between plugin and service", show_size(limits.transfer)),
        );
    }
    for (what, limit) in [
        ("instance", format!("{} core instances", loaded.room.instances)),
        ("memory", format!("{} core memories", limits.memories)),
        ("table", format!("{} core tables", limits.memories)),
    ] {
        if whole.contains(&format!("{what} count too high")) {
            return Failure::limited(FailureKind::Resources, limit);
        }
    }
    if whole.contains("resource limit exceeded") || whole.contains("handle") && whole.contains("limit") {
        let limit = text::clean(&error.root_cause().to_string(), 200);
        return Failure::limited(FailureKind::Resources, limit);
    }
    if whole.contains("requested len") && whole.contains("exceeds limit") {
        return Failure::limited(
            FailureKind::Resources,
            format!("{} of random bytes at a time", show_size(limits.random)),
        );
    }
    if let Some(denied) = trace.denied() {
        return Failure::new(FailureKind::HttpDenied, format!("it failed after the service had refused {denied}"));
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => Failure {
            limit: Some("call stack".to_owned()),
            ..Failure::new(FailureKind::Trap, "its call stack is exhausted")
        },
        Some(Trap::UnreachableCodeReached) => Failure::new(
            FailureKind::Trap,
            format!("it panicked or aborted ({}){}", Trap::UnreachableCodeReached, last_words(loaded, trace)),
        ),
        Some(trap) => Failure::new(FailureKind::Trap, format!("it trapped: {trap}")),
        None => Failure::new(FailureKind::Trap, format!("it broke off: {}", error.root_cause())),
    }
}

/// The last line on standard error, where Rust, Python and JavaScript say what went wrong.
fn last_words(loaded: &Loaded, trace: &Trace) -> String {
    let lines = trace.output.lines(&loaded.secrets);
    lines
        .iter()
        .rfind(|line| line.source == "stderr" && !line.text.is_empty())
        .map_or_else(String::new, |line| format!(": {}", line.text))
}

#[cfg(test)]
mod tests;
