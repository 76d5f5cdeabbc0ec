//! Every route: one table, from which the router and `/openapi.json` are made.

mod array;
mod batch;
mod cancel;
mod dataset;
mod edit;
mod ended;
mod events;
mod execute;
mod explain;
mod gpus;
mod history;
mod jobs;
mod log;
mod metrics;
mod operate;
mod plugins;
mod probes;
mod prometheus;
mod prometheus_plugins;
mod queue;
mod submit;
mod training;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post};

use super::answer::Refused;
use super::gate::{self, Gate};
use super::{Api, openapi};
use crate::store::Scope;
pub(super) use dataset::settle_incoming;

/// One method of one path.
pub(super) struct Route {
    /// `get`, `post`, `patch` or `delete`.
    pub(super) method: &'static str,
    /// With `{parameters}` as axum and OpenAPI spell them.
    pub(super) path: &'static str,
    /// What the caller must be allowed to do; none: open to everybody.
    pub(super) scope: Option<Scope>,
    /// What it does, in a line.
    pub(super) summary: &'static str,
    /// Names of the query's parameters.
    pub(super) query: &'static [&'static str],
    /// Name of the schema of the answer in `/openapi.json`; none when it is not JSON of ours.
    pub(super) answer: Option<&'static str>,
    handler: fn() -> MethodRouter<Arc<Api>>,
}

impl Route {
    /// Whether it takes submissions: a request to it may carry an Idempotency-Key, and say how much of each job it prefers to read.
    pub(super) fn is_submission(&self) -> bool {
        self.method == "post" && matches!(self.path, "/api/v1/jobs" | "/api/v1/jobs/batch")
    }

    /// Whether it changes one job, and may say at which revision.
    pub(super) fn takes_if_match(&self) -> bool {
        self.method != "get" && self.path.starts_with("/api/v1/jobs/{id}")
    }

    /// Probes know the service by its address alone.
    fn any_host(&self) -> bool {
        matches!(self.path, "/healthz" | "/readyz")
    }
}

const READ: Option<Scope> = Some(Scope::Read);
const SUBMIT: Option<Scope> = Some(Scope::Submit);
const OPERATE: Option<Scope> = Some(Scope::Operate);
const ADMIN: Option<Scope> = Some(Scope::Admin);

macro_rules! route {
    ($method:ident $path:literal, $scope:expr, $handler:path, [$($query:literal)*] -> $answer:expr, $summary:literal) => {
        Route {
            method: stringify!($method),
            path: $path,
            scope: $scope,
            summary: $summary,
            query: &[$($query),*],
            answer: $answer,
            handler: || $method($handler),
        }
    };
}

/// All of them.
#[rustfmt::skip]
pub(super) static ROUTES: &[Route] = &[
    route!(post "/api/v1/jobs", SUBMIT, submit::submit, ["dry_run"] -> Some("Job"), "Submit a job, or ask what would become of it"),
    route!(post "/api/v1/jobs/batch", SUBMIT, batch::submit, ["atomic"] -> Some("Batch"), "Submit up to 1,000 jobs, with a result for each"),
    route!(post "/api/v1/jobs/cancel", SUBMIT, cancel::cancel, [] -> Some("CancelledMany"), "Cancel many jobs, by their ids or by a filter"),
    route!(get "/api/v1/jobs", READ, jobs::list, ["state" "label" "name" "profile" "external_id" "array_id" "id" "sort" "limit" "cursor"] -> Some("Page"), "List jobs"),
    route!(get "/api/v1/jobs/{id}", READ, jobs::one, [] -> Some("Job"), "One job"),
    route!(patch "/api/v1/jobs/{id}", SUBMIT, edit::edit, [] -> Some("Job"), "Change a job that waits, or the time limit of one that runs"),
    route!(get "/api/v1/jobs/{id}/explain", READ, explain::explain, [] -> Some("Explanation"), "Why it waits or failed, and what plugins said of it"),
    route!(delete "/api/v1/jobs/{id}", SUBMIT, ended::remove, [] -> None, "Remove a job that has ended, with its history and logs"),
    route!(get "/api/v1/jobs/{id}/attempts", READ, ended::attempts, [] -> Some("Page"), "Its attempts that came to a start or failed before it, the first to the last"),
    route!(get "/api/v1/jobs/{id}/log", READ, log::log, ["follow" "attempt"] -> None, "The log: whole, a range of it, or as it grows; with `attempt` of that one, followed also before it has begun"),
    route!(get "/api/v1/jobs/{id}/metrics", READ, metrics::metrics, ["attempt" "points"] -> Some("JobMetrics"), "What it reported over time, as series"),
    route!(post "/api/v1/jobs/{id}/cancel", SUBMIT, operate::cancel, [] -> Some("Job"), "Cancel a job"),
    route!(post "/api/v1/jobs/{id}/hold", SUBMIT, operate::hold, [] -> Some("Job"), "Take a queued job out of the line"),
    route!(post "/api/v1/jobs/{id}/release", SUBMIT, operate::release, [] -> Some("Job"), "Put a held job back into the line"),
    route!(post "/api/v1/jobs/{id}/retry", SUBMIT, operate::retry, [] -> Some("Job"), "Have an ended job make another attempt"),
    route!(post "/api/v1/jobs/{id}/requeue", SUBMIT, operate::requeue, [] -> Some("Job"), "Stop a job gracefully and put it back into the line"),
    route!(post "/api/v1/jobs/{id}/move", SUBMIT, operate::move_to, [] -> Some("Job"), "Move a queued job in the line"),
    route!(get "/api/v1/queue", READ, queue::summary, [] -> Some("Queue"), "The queue in a few numbers, and what runs"),
    route!(post "/api/v1/queue/pause", OPERATE, queue::pause, [] -> Some("Queue"), "Start nothing more; what runs goes on"),
    route!(post "/api/v1/queue/resume", OPERATE, queue::resume, [] -> Some("Queue"), "Start jobs again"),
    route!(post "/api/v1/queue/drain", OPERATE, queue::drain, [] -> Some("Queue"), "Start nothing more, and end the service when nothing runs any more"),
    route!(get "/api/v1/gpus", READ, gpus::list, [] -> Some("Page"), "The GPUs, who holds each, and how they are"),
    route!(get "/api/v1/gpus/{uuid}/metrics", READ, gpus::metrics, [] -> Some("GpuSeries"), "The latest samples of a GPU, taken while jobs held it"),
    route!(post "/api/v1/gpus/{uuid}/release", OPERATE, gpus::release, [] -> Some("Gpu"), "A GPU in quarantine is mended: jobs may have it again"),
    route!(get "/api/v1/plugins", READ, plugins::list, [] -> Some("Plugins"), "The plugins and how they stand"),
    route!(get "/api/v1/events", READ, events::events, ["job_id"] -> None, "Every change as it happens (server-sent events)"),
    route!(get "/api/v1/handovers", READ, history::handovers, ["limit"] -> Some("Page"), "The last hand-overs, with their parts"),
    route!(get "/api/v1/profiles", READ, history::profiles, [] -> Some("Page"), "The profiles that jobs can be submitted under"),
    route!(get "/api/v1/deliveries", READ, history::deliveries, ["status" "job_id" "limit" "cursor"] -> Some("Page"), "What completion hooks were told, or are yet to be told"),
    route!(post "/api/v1/deliveries/{id}/redeliver", OPERATE, history::redeliver, [] -> Some("Delivery"), "Make a delivery once more"),
    route!(get "/api/v1/audit", ADMIN, history::audit, ["limit" "cursor"] -> Some("Page"), "Who did what, the latest first"),
    route!(post "/api/v1/gc", OPERATE, history::collect, [] -> Some("Removed"), "Remove now what was kept long enough"),
    route!(get "/metrics", READ, prometheus::metrics, [] -> None, "What Prometheus reads"),
    route!(post "/api/training/execute", SUBMIT, execute::execute, [] -> Some("Executed"), "Compatibility: submit under the profile `training`"),
    route!(get "/api/training/queue", READ, training::queue, [] -> None, "Compatibility: what runs and what waits"),
    route!(get "/api/training/status/{job_id}", READ, training::status, [] -> None, "Compatibility: one job"),
    route!(get "/api/training/logs/{job_id}", READ, training::logs, ["limit" "offset"] -> None, "Compatibility: lines of its log"),
    route!(post "/api/training/cancel/{job_id}", SUBMIT, training::cancel, [] -> None, "Compatibility: cancel it"),
    route!(post "/api/training/pause/{job_id}", SUBMIT, training::pause, [] -> None, "Compatibility: stop it gracefully and hold it"),
    route!(post "/api/training/resume/{job_id}", SUBMIT, training::resume, ["checkpoint_path"] -> None, "Compatibility: release it"),
    route!(post "/api/training/{job_id}/force-start", SUBMIT, training::force_start, [] -> None, "Compatibility: put it at the front of the line"),
    route!(get "/health", None, probes::health, [] -> None, "Compatibility: whether the service and its GPUs are there"),
    route!(get "/healthz", None, probes::healthz, [] -> Some("Health"), "Whether the service is alive"),
    route!(get "/readyz", None, probes::readyz, [] -> Some("Health"), "Whether the service takes jobs"),
    route!(get "/openapi.json", None, openapi::document, [] -> None, "This description"),
];

/// The router with every route behind its gate.
pub(super) fn router(api: &Arc<Api>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let gate = Gate { api: api.clone(), scope: route.scope, any_host: route.any_host() };
        router = router.route(route.path, (route.handler)().route_layer(from_fn_with_state(gate, gate::pass)));
    }
    router
        .fallback(|| async { Refused::not_found("there is nothing at this path; /openapi.json lists what there is") })
        .method_not_allowed_fallback(|| async {
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not take this method")
        })
        .with_state(api.clone())
}
