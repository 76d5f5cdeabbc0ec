//! `GET /openapi.json`: the API as OpenAPI 3.1, made from the table of routes, so that no route is left out.

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use taxiway_job::{FailureClass, State};

use super::routes::{ROUTES, Route};

pub(super) async fn document() -> Response {
    let mut response = Json(describe()).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn describe() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Taxiway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Lines up GPU jobs, checks each one before it takes off, and launches them one after another.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .chain(route.query.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})))
        .collect();
    if route.is_submission() {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255},
            "description": "The same key with the same request is answered with what it came to the first time",
        }));
        parameters.push(json!({
            "name": "Prefer", "in": "header", "schema": {"type": "string"},
            "description": "return=minimal (RFC 7240): of each job the answer has its id, state and position only, and the header Preference-Applied says so",
        }));
    }
    if route.takes_if_match() {
        parameters.push(json!({
            "name": "If-Match", "in": "header", "schema": {"type": "string"},
            "description": "The ETag of the job as it was read: 412 when it was changed since",
        }));
    }
    let (status, content) = match (route.path, route.answer) {
        ("/api/v1/jobs", Some(name)) if route.method == "post" => ("201", either_content(name, "SubmittedArray")),
        (_, Some(name)) => ("200", schema_content(name)),
        ("/api/v1/jobs/{id}/log", None) => ("200", json!({"text/plain": {}, "text/event-stream": {}})),
        (_, None) if route.method == "delete" => ("204", json!({})),
        ("/metrics", None) => ("200", json!({"text/plain": {}})),
        ("/api/v1/events", None) => ("200", json!({"text/event-stream": {}})),
        _ => ("200", json!({"application/json": {}})),
    };
    let mut responses = Map::new();
    responses.insert(status.to_owned(), json!({"description": route.summary, "content": content}));
    responses.insert(
        "default".to_owned(),
        json!({
            "description": "A problem (RFC 9457)",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }),
    );
    let mut operation = json!({"summary": route.summary, "parameters": parameters, "responses": responses});
    let optional_body = route.path == "/api/v1/jobs/{id}/requeue";
    let body = match route.path {
        "/api/v1/jobs/{id}/requeue" => Some("Requeue"),
        "/api/v1/jobs/{id}/move" => Some("Move"),
        "/api/v1/jobs" if route.method == "post" => Some("Submission"),
        "/api/v1/jobs/{id}" if route.method == "patch" => Some("Submission"),
        "/api/v1/jobs/batch" => Some("SubmissionBatch"),
        "/api/v1/jobs/cancel" => Some("CancelMany"),
        "/api/training/execute" => Some("Execute"),
        _ => None,
    };
    if let Some(body) = body {
        operation["requestBody"] = json!({"required": !optional_body, "content": schema_content(body)});
    }
    if route.method == "patch" {
        operation["requestBody"]["content"]["application/merge-patch+json"] =
            operation["requestBody"]["content"]["application/json"].clone();
    } else if body == Some("Submission") {
        operation["responses"]["200"] =
            json!({"description": "The verdict of a dry run", "content": either_content("Verdict", "ArrayVerdict")});
    }
    if let Some(scope) = route.scope {
        operation["security"] = json!([{"token": []}]);
        operation["x-scope"] = json!(scope);
    }
    operation
}

fn schema_content(name: &str) -> Value {
    json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}})
}

/// The answer for one job, or for an array.
fn either_content(one: &str, several: &str) -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    json!({"application/json": {"schema": {"oneOf": [reference(one), reference(several)]}}})
}

fn schemas() -> Value {
    let states: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
    let text = || json!({"type": "string"});
    let may_be_text = || json!({"type": ["string", "null"]});
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let duration = || json!({"type": ["string", "number", "null"], "description": "\"2h30m\", or seconds"});
    let ids = |what: &str| json!({"type": ["array", "null"], "items": {"type": "string"}, "description": what});
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let submission = json!({
        "command": {"type": ["array", "null"], "items": {"type": "string"}, "description": "argv; required unless there is a profile"},
        "profile": may_be_text(),
        "config": {"type": ["object", "null"], "description": "the training configuration that plugins see and rewrite: at most 64 levels of lists and objects"},
        "config_format": {"enum": ["json", "yaml", "toml", null]},
        "name": may_be_text(),
        "labels": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        "cwd": may_be_text(),
        "env": {"type": ["object", "null"], "description": "values are texts or {\"secret\": \"…\"}"},
        "gpus": {"type": ["integer", "null"], "minimum": 0},
        "gpu_memory": {"type": ["string", "integer", "null"], "description": "only GPUs with that much memory in all: \"24GiB\", or bytes"},
        "gpu_uuids": {"type": ["array", "null"], "items": {"type": "string"}, "description": "only these GPUs"},
        "priority": {"type": ["integer", "null"], "minimum": -100, "maximum": 100},
        "time_limit": duration(),
        "grace": duration(),
        "external_id": {"type": ["string", "null"], "maxLength": 128},
        "after": ids("ids of the jobs that must have completed before it starts; in a batch also \"#k\", its k-th job, from 0. One that was removed since is not waited for any more"),
        "after_any": ids("the same of jobs that must have ended"),
        "not_before": time(),
        "retries": {"oneOf": [reference("Retries"), {"type": "null"}]},
        "array": {"oneOf": [reference("Array"), {"type": "null"}]},
        "hold": {"type": ["boolean", "null"]},
    });
    let mut job = json!({
        "id": {"type": "string", "format": "uuid"},
        "name": text(),
        "state": {"enum": states},
        "position": {"type": ["integer", "null"], "minimum": 1},
        "attempt": {"type": "integer", "minimum": 1},
        "profile": may_be_text(),
        "command": texts(),
        "cwd": may_be_text(),
        "env": {"type": "object"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "gpus": {"type": "integer"},
        "gpu_memory": {"type": ["integer", "null"], "description": "bytes"},
        "priority": {"type": "integer"},
        "after": texts(),
        "after_any": texts(),
        "not_before": time(),
        "retries": reference("Retries"),
        "retry_at": time(),
        "time_limit": {"type": ["number", "null"], "description": "seconds"},
        "grace": {"type": "number", "description": "seconds"},
        "external_id": may_be_text(),
        "config_format": {"enum": ["json", "yaml", "toml"]},
        "config": {"type": "object"},
        "submitted_config": {"type": "object"},
        "rewrites": {"type": "array", "items": {"type": "object"}},
        "warnings": {"type": "array", "items": {"$ref": "#/components/schemas/Finding"}},
        "reason": {"type": ["object", "null"], "properties": {"code": text(), "message": text()}},
        "submitted_at": time(),
        "queued_at": time(),
        "started_at": time(),
        "finished_at": time(),
        "submitted_by": text(),
        "exit": {"type": "object", "properties": {"code": {"type": ["integer", "null"]}, "signal": {"type": ["integer", "null"]}}},
        "failure": {"type": ["object", "null"]},
        "progress": {"type": ["object", "null"]},
        "gpu_uuids": texts(),
        "usage": {"type": ["object", "null"]},
        "handover": {"type": ["object", "null"]},
    });
    // By themselves, as below.
    let gpu_uuids = |what: &str| json!({"type": "array", "items": {"type": "string"}, "description": what});
    job["gpu_uuids"] = gpu_uuids("those it has or had; before it has any, those it asked for");
    job["requested_gpu_uuids"] = gpu_uuids("the only ones it may have, as asked for; empty for any");
    job["array_id"] = json!({"type": ["string", "null"], "format": "uuid"});
    job["array_index"] = json!({"type": ["integer", "null"], "minimum": 0});
    job["array_params"] = json!({"type": ["object", "null"]});
    job["array_max_parallel"] = json!({"type": ["integer", "null"], "minimum": 1});
    let mut schemas = json!({
        "Explanation": {"type": "object", "properties": {
            "reason": {"type": ["object", "null"], "properties": {"code": text(), "message": text()}},
            "position": {"type": ["integer", "null"], "minimum": 1},
            "expected_start_at": time(),
            "verdicts": {"type": "array", "items": {"type": "object"}},
            "failure": {"type": ["object", "null"]},
        }},
        "Requeue": {"type": "object", "additionalProperties": false, "properties": {
            "hold": {"type": "boolean", "description": "out of the line, until it is released"},
        }},
        "Move": {"type": "object", "additionalProperties": false, "required": ["to"], "properties": {
            "to": {"oneOf": [
                {"enum": ["front", "back"]},
                {"type": "object", "required": ["before"], "properties": {"before": {"type": "string", "format": "uuid"}}},
                {"type": "object", "required": ["position"], "properties": {"position": {"type": "integer", "minimum": 1, "description": "one beyond the last is the last"}}},
            ]},
        }},
        "Retries": {"type": "object", "additionalProperties": false, "properties": {
            "max": {"type": "integer", "minimum": 0, "maximum": 1000},
            "backoff": duration(),
            "on": {"type": "array", "items": {"enum": FailureClass::ALL}},
        }},
        "Submission": {"type": "object", "additionalProperties": false, "properties": submission},
        "Job": {"type": "object", "properties": job},
        "Page": {"type": "object", "properties": {"items": {"type": "array"}, "next_cursor": may_be_text()}},
        "JobMetrics": {"type": "object", "properties": {
            "job_id": {"type": "string", "format": "uuid"},
            "attempt": {"type": "integer", "minimum": 1},
            "started_at": time(),
            "items": {"type": "array", "items": {"type": "object", "properties": {
                "name": text(),
                "points": {"type": "array", "items": {"type": "array", "prefixItems": [
                    {"type": "number", "description": "seconds since the start"},
                    {"type": "number", "description": "the value"},
                ]}},
            }}},
            "gpus": {"type": "array", "items": reference("GpuSeries")},
            "next_cursor": may_be_text(),
        }},
        "SubmissionBatch": {"type": "array", "items": reference("Submission"), "minItems": 1, "maxItems": 1000},
        "Batch": {"type": "object", "properties": {"items": {"type": "array", "items": {
            "type": "object",
            "properties": {"status": {"type": "integer"}, "job": reference("Job"), "problem": reference("Problem")},
        }}}},
        "CancelMany": {"type": "object", "additionalProperties": false, "properties": {
            "ids": texts(),
            "filter": {"type": "object", "additionalProperties": false, "properties": {
                "state": {"type": "array", "items": text(), "minItems": 1},
                "label": {"type": "array", "items": text(), "minItems": 1},
                "name": text(), "profile": text(),
                "array_id": {"type": "string", "format": "uuid"},
            }},
        }},
        "CancelledMany": {"type": "object", "properties": {
            "items": {"type": "array", "items": {"type": "object", "properties": {
                "id": text(), "status": {"type": "integer"}, "state": {"enum": states}, "problem": reference("Problem"),
            }}},
            "more": {"type": "boolean"},
        }},
        "Queue": {"type": "object", "properties": {
            "mode": {"enum": ["run", "paused", "draining"]},
            "running": {"type": "array", "items": reference("Job")},
            "queued": {"type": "integer"},
            "held": {"type": "integer"},
        }},
        "Verdict": {"type": "object", "properties": {
            "accepted": {"type": "boolean"},
            "problems": {"type": "array", "items": reference("Finding")},
            "config": {"type": "object"},
            "rewrites": {"type": "array", "items": {"type": "object"}},
        }},
        "Finding": {"type": "object", "properties": {
            "plugin": text(),
            "severity": {"enum": ["error", "warning", "info"]},
            "path": {"type": "string", "format": "json-pointer"},
            "code": text(),
            "message": text(),
            "help": may_be_text(),
        }},
        "Problem": {"type": "object", "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": text(),
            "status": {"type": "integer"},
            "detail": text(),
            "code": text(),
            "problems": {"type": "array", "items": reference("Finding")},
            "plugin": text(),
            "limit": text(),
            "state": {"enum": states},
            "items": {"type": "array"},
        }},
        "Delivery": {"type": "object", "properties": {
            "id": text(), "plugin": text(), "job_id": text(), "attempt": {"type": "integer"}, "end_state": {"enum": states},
            "will_retry": {"type": "boolean"}, "status": {"enum": ["waiting", "delivered", "dead"]},
            "tries": {"type": "integer"}, "next_at": time(), "last_error": may_be_text(), "created_at": time(),
        }},
        "Removed": {"type": "object", "properties": {
            "jobs": {"type": "integer"}, "logs": {"type": "integer"}, "log_bytes": {"type": "integer"},
        }},
        "Health": {"type": "object", "properties": {"status": text(), "version": text()}},
        "Execute": {"type": "object", "required": ["config"], "properties": {
            "config": {"type": "object"},
            "execution_id": may_be_text(),
            "user_id": {"type": ["string", "number", "null"]},
            "name": may_be_text(),
            "dataset_path": may_be_text(),
            "dataset_content": may_be_text(),
        }},
        "Executed": {"type": "object", "properties": {"job_id": text(), "status": text(), "message": text()}},
    });
    // By themselves: the macro takes so much at a time only.
    schemas["Gpu"] = json!({"type": "object", "properties": {
        "label": text(),
        "index": {"type": ["integer", "null"]},
        "instance": {"type": ["integer", "null"]},
        "uuid": may_be_text(),
        "name": may_be_text(),
        "state": {"enum": ["free", "held", "blocked", "quarantined"]},
        "reason": {"type": ["object", "null"], "properties": {"code": text(), "message": text()}},
        "job_id": may_be_text(),
        "memory_total_bytes": {"type": ["integer", "null"]},
        "memory_free_bytes": {"type": ["integer", "null"]},
        "utilization": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "power_watts": {"type": ["number", "null"]},
        "temperature_celsius": {"type": ["integer", "null"]},
        "compute_capability": may_be_text(),
        "driver_version": may_be_text(),
        "pci_bus_id": may_be_text(),
        "processes": {"type": "array", "items": {"type": "object", "properties": {
            "pid": {"type": "integer"},
            "program": may_be_text(),
            "memory_bytes": {"type": ["integer", "null"]},
            "ours": {"type": "boolean"},
        }}},
        "error": may_be_text(),
    }});
    schemas["Array"] = json!({"type": "object", "additionalProperties": false, "required": ["params"], "properties": {
        "params": {
            "type": "object", "additionalProperties": {"type": "array", "minItems": 1},
            "description": "lists of values, of whose product (at most 1,000) each combination is a job. A key that begins with / is a JSON Pointer into `config`, any other a key of it",
        },
        "max_parallel": {"type": ["integer", "null"], "minimum": 1, "description": "how many of the jobs may run at a time"},
    }});
    schemas["SubmittedArray"] = json!({"type": "object", "properties": {
        "array_id": {"type": "string", "format": "uuid"},
        "items": {"type": "array", "items": reference("Job")},
    }});
    schemas["ArrayVerdict"] = json!({"type": "object", "properties": {
        "accepted": {"type": "boolean"},
        "items": {"type": "array", "items": {"type": "object", "properties": {
            "array_index": {"type": "integer"},
            "array_params": {"type": "object"},
            "accepted": {"type": "boolean"},
            "problems": {"type": "array", "items": reference("Finding")},
            "config": {"type": "object"},
            "rewrites": {"type": "array", "items": {"type": "object"}},
        }}},
    }});
    schemas["Plugins"] = json!({"type": "object", "properties": {
        "items": {"type": "array", "items": reference("Plugin")},
        "next_cursor": may_be_text(),
    }});
    schemas["Plugin"] = plugin();
    schemas["GpuSeries"] = json!({"type": "object", "properties": {
        "uuid": text(),
        "samples": {"type": "array", "items": {"type": "object", "properties": {
            "at": time(),
            "utilization": {"type": ["number", "null"]},
            "memory_used_bytes": {"type": ["integer", "null"]},
            "power_watts": {"type": ["number", "null"]},
            "temperature_celsius": {"type": ["number", "null"]},
        }}},
    }});
    schemas
}

/// As `taxiway_plugin_host::PluginStatus` is written.
fn plugin() -> Value {
    let text = || json!({"type": "string"});
    let may_be_text = || json!({"type": ["string", "null"]});
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let seconds = || json!({"type": ["number", "null"], "minimum": 0});
    let hook = || json!({"enum": ["validate", "rewrite", "complete"]});
    json!({"type": "object", "properties": {
        "name": text(),
        "component": {"type": ["string", "null"], "description": "its file; null when it is a bundled one"},
        "bundled": may_be_text(),
        "state": {
            "enum": ["loading", "compiling", "in_force", "failed", "disabled"],
            "description": "in_force with an error beside it: an older version is, since the newest does not load",
        },
        "hooks": {"type": "array", "items": hook()},
        "version": may_be_text(),
        "sha256": may_be_text(),
        "summary": text(),
        "grants": {"type": "object", "properties": {
            "http": texts(), "allow_private": texts(), "read": texts(), "env": texts(), "secrets": texts(),
        }},
        "mode": {"enum": ["enforce", "observe"]},
        "order": {"type": "integer"},
        "stages": {"type": "array", "items": {"enum": ["submit", "launch"]}},
        "profiles": {"type": ["array", "null"], "items": {"type": "string"}, "description": "whose jobs it sees; null: all"},
        "on_error": {"enum": ["reject", "ignore", "hold"]},
        "timeout_seconds": seconds(),
        "memory_bytes": {"type": ["integer", "null"]},
        "settings_schema": {"type": ["object", "null"], "description": "JSON Schema of its settings"},
        "load_seconds": seconds(),
        "compile_seconds": {"type": ["number", "null"], "description": "null when its code was in the cache"},
        "error": {"type": ["object", "null"], "properties": {"message": text(), "advice": text()}},
        "warnings": texts(),
        "calls": {"type": "integer"},
        "failures": {"type": "integer"},
        "last_failure": {"type": ["object", "null"], "properties": {
            "at": {"type": "string", "format": "date-time"}, "hook": hook(), "kind": text(), "limit": may_be_text(), "message": text(),
        }},
        "seconds": {"type": "number", "description": "of all calls together"},
        "p50_seconds": seconds(),
        "p99_seconds": seconds(),
    }})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use taxiway_plugin_host::grant::Grants;
    use taxiway_plugin_host::{Hook, LastFailure, Mode, OnError, PluginError, PluginState, PluginStatus, Stage};

    use super::super::wire::{Job, Submission, job_tests};
    use super::*;
    use crate::config::keys_of;
    use crate::queue::Standing;
    use crate::store::Scope;

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = describe();
        for route in ROUTES {
            assert!(document["paths"][route.path][route.method].is_object(), "{} {}", route.method, route.path);
            if let Some(name) = route.answer {
                assert!(document["components"]["schemas"][name].is_object(), "{name}");
            }
        }
    }

    #[test]
    fn only_probes_and_this_description_are_open_to_everybody() {
        let open: Vec<&str> = ROUTES.iter().filter(|route| route.scope.is_none()).map(|route| route.path).collect();
        assert_eq!(open, ["/health", "/healthz", "/readyz", "/openapi.json"]);
        assert!(ROUTES.iter().all(|route| route.method == "get" || route.scope >= Some(Scope::Submit)));
    }

    #[test]
    fn the_schemas_have_every_field_of_a_submission_and_of_a_job() {
        let schemas = schemas();
        let described = |name: &str| -> BTreeSet<String> {
            let fields = schemas[name]["properties"].as_object().expect("an object");
            fields.keys().cloned().collect()
        };
        let fields: BTreeSet<String> = keys_of::<Submission>().iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(described("Submission"), fields);
        let job = job_tests::queued_job();
        let written = serde_json::to_value(Job::new(&job, &Standing::default())).expect("JSON");
        let fields: BTreeSet<String> = written.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(described("Job"), fields);
    }

    #[test]
    fn the_schema_of_a_plugin_has_every_field_of_its_status() {
        let failure =
            LastFailure { at: String::new(), hook: Hook::Validate, kind: "trap", limit: None, message: String::new() };
        let status = PluginStatus {
            name: "guard".into(),
            component: None,
            bundled: None,
            state: PluginState::InForce,
            hooks: vec![Hook::Validate],
            version: None,
            sha256: None,
            summary: String::new(),
            grants: Grants::default(),
            mode: Mode::Enforce,
            order: 0,
            stages: vec![Stage::Submit],
            profiles: None,
            on_error: OnError::Reject,
            timeout_seconds: None,
            memory_bytes: None,
            settings_schema: None,
            load_seconds: None,
            compile_seconds: None,
            error: Some(PluginError { message: String::new(), advice: String::new() }),
            warnings: Vec::new(),
            calls: 0,
            failures: 0,
            last_failure: Some(failure),
            seconds: 0.0,
            p50_seconds: None,
            p99_seconds: None,
        };
        let written = serde_json::to_value(status).expect("JSON");
        let schema = schemas()["Plugin"].clone();
        for (written, schema) in [
            (&written, &schema),
            (&written["grants"], &schema["properties"]["grants"]),
            (&written["error"], &schema["properties"]["error"]),
            (&written["last_failure"], &schema["properties"]["last_failure"]),
        ] {
            let keys =
                |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<String>>();
            assert_eq!(keys(&schema["properties"]), keys(written));
        }
    }
}
