use std::{cell::RefCell, rc::Rc};

use taxiway_plugin::{http::Request, http::Response, json, testing::Host};

use super::*;

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A receiver that takes everything, and what it got.
struct Receiver {
    host: Host,
    got: Rc<RefCell<Vec<Request>>>,
}

impl Receiver {
    fn new(settings: Value) -> Self {
        let got = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&got);
        let host = Host::new().settings(settings).secret("signing_key", KEY).secret("token", "Bearer t\n").http(
            move |request| {
                kept.borrow_mut().push(request.clone());
                Ok(Response { status: 204, ..Response::default() })
            },
        );
        Self { host, got }
    }

    fn tell(&self, outcome: &Outcome) -> Result<(), HookError> {
        let delivery = Delivery { id: "msg_1".to_owned(), attempt: 1 };
        self.host.run(|| Webhook::completed(&job(), outcome, &delivery))
    }

    fn got(&self) -> Vec<Request> {
        self.got.borrow().clone()
    }
}

fn job() -> Job {
    let details = json!({"profile": "lora", "labels": {"team": "vision"}, "external_id": "exec-7"});
    Job::new("0193", json!({"lr": 0.1})).named("iris").with_details(details)
}

fn outcome(end: End) -> Outcome {
    Outcome {
        end,
        will_retry: false,
        exit_code: Some(i32::from(end == End::Failed)),
        signal: None,
        failure: (end == End::Failed).then(|| "cuda_oom".to_owned()),
        started_at_ms: Some(1_700_000_000_000),
        finished_at_ms: 1_700_000_012_345,
        log_tail: "bye".to_owned(),
        details: json!({"usage": {"gpu_seconds": 12.3}, "env": {"TOKEN": "x"}}),
    }
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[test]
fn the_receiver_can_verify_the_request() {
    let receiver = Receiver::new(json!({"url": "https://example.org/hook"}));
    assert_eq!(receiver.tell(&outcome(End::Completed)), Ok(()));
    let [request] = &receiver.got()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.url.as_str()), ("POST", "https://example.org/hook"));
    assert_eq!(header(request, "webhook-id"), Some("msg_1"));
    let timestamp = header(request, "webhook-timestamp").and_then(|text| text.parse().ok()).expect("seconds");
    let body = std::str::from_utf8(&request.body).expect("text");
    let signature = Key::parse(KEY).expect("a key").sign("msg_1", timestamp, body);
    assert_eq!(header(request, "webhook-signature"), Some(signature.as_str()));
}

#[test]
fn the_payload_tells_who_the_job_is_and_how_it_ended() {
    let receiver = Receiver::new(json!({"url": "https://example.org"}));
    assert_eq!(receiver.tell(&outcome(End::Failed)), Ok(()));
    let payload: Value = serde_json::from_slice(&receiver.got()[0].body).expect("JSON");
    assert_eq!(payload["type"], "job.failed");
    assert_eq!(payload["timestamp"], "2023-11-14T22:13:32.345Z");
    let (job, end) = (&payload["data"]["job"], &payload["data"]["outcome"]);
    assert_eq!(job["id"], "0193");
    assert_eq!(job["external_id"], "exec-7");
    assert_eq!(job["labels"]["team"], "vision");
    assert_eq!(end["state"], "failed");
    assert_eq!(end["exit"], json!({"code": 1, "signal": null}));
    assert_eq!(end["failure"]["class"], "cuda_oom");
    assert_eq!(end["started_at"], "2023-11-14T22:13:20.000Z");
    assert_eq!(end["wall_seconds"], 12.345);
    assert_eq!(end["usage"]["gpu_seconds"], 12.3);
    assert!(end.get("log_tail").is_none());
    assert!(!payload.to_string().contains("TOKEN"), "the environment stays on the machine");
}

#[test]
fn the_log_tail_is_sent_when_asked_for() {
    let receiver = Receiver::new(json!({"url": "https://example.org", "include_log_tail": true}));
    assert_eq!(receiver.tell(&outcome(End::Completed)), Ok(()));
    let payload: Value = serde_json::from_slice(&receiver.got()[0].body).expect("JSON");
    assert_eq!(payload["data"]["outcome"]["log_tail"], "bye");
}

#[test]
fn only_what_the_settings_ask_for_is_sent() {
    let cancelled_early = Outcome { started_at_ms: None, ..outcome(End::Cancelled) };
    let retried = Outcome { will_retry: true, ..outcome(End::Failed) };
    let url = "https://example.org";
    for (settings, outcome, sent) in [
        (json!({"url": url}), &cancelled_early, 0),
        (json!({"url": url, "cancelled_while_queued": true}), &cancelled_early, 1),
        (json!({"url": url}), &outcome(End::Cancelled), 1),
        (json!({"url": url}), &retried, 0),
        (json!({"url": url, "retries": true}), &retried, 1),
        (json!({"url": url, "events": ["job.failed"]}), &outcome(End::Completed), 0),
        (json!({"url": url, "events": ["job.failed"]}), &outcome(End::Failed), 1),
        (json!({"url": url}), &Outcome { started_at_ms: None, ..outcome(End::Failed) }, 1),
    ] {
        let receiver = Receiver::new(settings.clone());
        assert_eq!(receiver.tell(outcome), Ok(()));
        assert_eq!(receiver.got().len(), sent, "{settings}");
    }
}

#[test]
fn headers_come_from_settings_and_secrets() {
    let headers = json!({"x-site": "lab", "authorization": {"secret": "token"}});
    let receiver = Receiver::new(json!({"url": "https://example.org", "headers": headers}));
    assert_eq!(receiver.tell(&outcome(End::Completed)), Ok(()));
    let got = receiver.got();
    assert_eq!(header(&got[0], "x-site"), Some("lab"));
    assert_eq!(header(&got[0], "authorization"), Some("Bearer t"));
}

#[test]
fn without_a_key_nothing_is_sent_unless_unsigned_is_set() {
    let completed = |settings: Value| {
        let host = Host::new().settings(settings).http(|_| Ok(Response { status: 200, ..Response::default() }));
        let delivery = Delivery { id: "1".to_owned(), attempt: 1 };
        host.run(|| Webhook::completed(&job(), &outcome(End::Completed), &delivery))
    };
    let error = completed(json!({"url": "https://example.org"})).expect_err("no key");
    assert_eq!((error.code.as_str(), error.retry_after), ("signing-key-missing", None));
    assert_eq!(completed(json!({"url": "https://example.org", "unsigned": true})), Ok(()));
}

#[test]
fn a_denied_request_is_not_tried_again_and_names_the_manifest() {
    let host = Host::new().settings(json!({"url": "https://example.org"})).secret("signing_key", KEY);
    let delivery = Delivery { id: "1".to_owned(), attempt: 1 };
    let error = host.run(|| Webhook::completed(&job(), &outcome(End::Completed), &delivery)).expect_err("denied");
    assert_eq!((error.code.as_str(), error.retry_after), ("http-denied", None));
    assert!(error.message.contains("manifest"), "{error}");
}

#[test]
fn wrong_settings_are_named() {
    let host = Host::new().secret("signing_key", KEY);
    for (settings, path, code) in [
        (json!({}), "/url", "missing-key"),
        (json!({"url": "https://e.org", "event": []}), "/event", "unknown-key"),
        (json!({"url": "example.org"}), "/url", "url-malformed"),
        (json!({"url": "https://"}), "/url", "url-malformed"),
        (json!({"url": "https://u:p@example.org"}), "/url", "url-malformed"),
        (json!({"url": "https://e.org", "events": ["job.done"]}), "/events/0", "wrong-type"),
        (json!({"url": "https://e.org", "events": []}), "/events", "no-events"),
        (json!({"url": "https://e.org", "headers": {"Webhook-Id": "1"}}), "/headers/Webhook-Id", "header-reserved"),
        (json!({"url": "https://e.org", "headers": {"a b": "1"}}), "/headers/a b", "header-malformed"),
        (json!({"url": "https://e.org", "headers": {"a": {"secret": "no"}}}), "/headers/a", "secret-missing"),
    ] {
        let problems = host.run(|| Webhook::check_settings(&settings));
        let found: Vec<_> = problems.iter().map(|problem| (problem.path.as_str(), problem.code.as_str())).collect();
        assert_eq!(found, [(path, code)], "{settings}");
    }
    assert!(host.run(|| Webhook::check_settings(&json!({"url": "https://example.org"}))).is_empty());
}

#[test]
fn a_missing_or_malformed_key_keeps_it_from_loading() {
    let settings = json!({"url": "https://example.org"});
    for host in [Host::new(), Host::new().secret("signing_key", "whsec_%")] {
        assert!(host.run(|| Webhook::check_settings(&settings)).refuses());
    }
    assert!(!Webhook::check_settings(&json!({"url": "https://example.org", "unsigned": true})).refuses());
}
