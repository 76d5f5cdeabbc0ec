//! The outside world hears of every end: at least once, signed, under one id however often it takes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::json;
use taxiway_tests::{Place, Receiver, Webhook, sh};

const KEY: &[u8] = b"a key of thirty-two bytes or so!";

/// A place whose webhooks go to the receiver.
fn place(receiver: &Receiver) -> Place {
    use base64::Engine;
    let place = Place::new();
    let key_file = place.path().join("signing-key");
    let encoded = base64::engine::general_purpose::STANDARD.encode(KEY);
    std::fs::write(&key_file, format!("whsec_{encoded}\n")).expect("a key");
    std::fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    let manifest = format!(
        "bundled = \"webhook\"\nhttp = [\"{url}\"]\nallow_private = [\"127.0.0.1/32\"]\n\
         [settings]\nurl = \"{url}/hook\"\n[secrets]\nsigning_key = {{ file = \"{}\" }}\n",
        key_file.display(),
        url = receiver.url(),
    );
    place.manifest("notify", &manifest)
}

fn check(webhook: &Webhook) {
    assert!(webhook.is_signed_with(KEY), "{:?}", webhook.headers);
    assert!(!webhook.is_signed_with(b"another key"));
    let sent: u64 = webhook.header("webhook-timestamp").parse().expect("seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    assert!(now.saturating_sub(Duration::from_secs(sent)) < Duration::from_secs(300));
}

// One service for three stories, because compiling the plugin takes seconds.
#[tokio::test]
async fn every_end_is_told_once_under_one_id_over_refusals_and_restarts() {
    // The first try of each delivery is refused, whatever comes after it is taken.
    let mut tried = HashSet::new();
    let mut receiver =
        Receiver::start(
            move |webhook| {
                if tried.insert(webhook.id().to_owned()) { (500, Some(1)) } else { (204, None) }
            },
        )
        .await;
    let server = place(&receiver).start().await;
    // Without it a job might end before anybody is there to hear of it.
    server.plugin("notify", |plugin| plugin["state"] == "in_force").await;
    let mut submission = sh("echo the last word; exit 3");
    submission["name"] = json!("told");
    let failing = server.submit(submission).await;
    let succeeding = server.submit(sh("exit 0")).await;

    let mut told: HashMap<String, Vec<Webhook>> = HashMap::new();
    for _ in 0..4 {
        let webhook = receiver.webhook().await;
        check(&webhook);
        told.entry(webhook.job_id()).or_default().push(webhook);
    }
    for job in [&failing, &succeeding] {
        let of_job = &told[job.id()];
        assert_eq!(of_job.iter().map(|webhook| webhook.answered).collect::<Vec<_>>(), [500, 204]);
        assert_eq!(of_job[0].id(), of_job[1].id(), "every try of a delivery has its id");
        assert_eq!(of_job[0].json(), of_job[1].json());
    }
    assert_ne!(told[failing.id()][0].id(), told[succeeding.id()][0].id());
    let body = told[failing.id()][1].json();
    assert_eq!(body["type"], "job.failed");
    assert_eq!((&body["data"]["job"]["name"], &body["data"]["job"]["attempt"]), (&json!("told"), &json!(1)));
    let outcome = &body["data"]["outcome"];
    assert_eq!((&outcome["state"], &outcome["exit"]["code"]), (&json!("failed"), &json!(3)));
    assert_eq!(
        (&outcome["failure"]["class"], &outcome["failure"]["evidence"]),
        (&json!("exit"), &json!("the last word"))
    );
    assert_eq!(told[succeeding.id()][1].json()["type"], "job.completed");

    // The service is killed between the refused try and the next one.
    let job = server.submit(sh("exit 0")).await;
    let first = receiver.webhook().await;
    assert_eq!((first.job_id().as_str(), first.answered), (job.id(), 500));
    let server = server.kill().await.start().await;
    let second = receiver.webhook().await;
    check(&second);
    assert_eq!((second.id(), second.job_id().as_str(), second.answered), (first.id(), job.id(), 204));

    // A job that was cancelled while it waited is nobody's news, unless the settings say so.
    server.post_nothing("/queue/pause").await.expect(200);
    let cancelled = server.submit(sh("exit 0")).await;
    server.operate(cancelled.id(), "cancel").await.expect(200);
    server.post_nothing("/queue/resume").await.expect(200);
    let last = server.submit(sh("exit 0")).await;
    for _ in 0..2 {
        assert_eq!(receiver.webhook().await.job_id(), last.id());
    }
    let rest = receiver.rest();
    assert!(rest.is_empty(), "nothing is told again: {rest:?}");
}

#[tokio::test]
async fn a_receiver_that_was_not_granted_is_never_asked() {
    let mut receiver = Receiver::start(|_| (204, None)).await;
    let place = place(&receiver);
    let manifest = std::fs::read_to_string(place.plugins_dir().join("notify.toml")).expect("a manifest");
    // The host is granted and its private address is not.
    let place = place.manifest("notify", &manifest.replace("allow_private = [\"127.0.0.1/32\"]\n", ""));
    let server = place.start().await;
    server.plugin("notify", |plugin| plugin["state"] == "in_force").await;
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    server.plugin("notify", |plugin| plugin["failures"].as_u64() > Some(0)).await;
    assert!(receiver.rest().is_empty());
}

#[tokio::test]
async fn a_job_whose_end_is_yet_to_be_told_is_not_removed() {
    let mut receiver = Receiver::start(|_| (503, Some(3600))).await;
    let server = place(&receiver).start().await;
    server.plugin("notify", |plugin| plugin["state"] == "in_force").await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(receiver.webhook().await.job_id(), job.id());
    let path = format!("/api/v1/jobs/{}", job.id());
    let refused = server.request(Method::DELETE, &path).send().await.expect(409);
    assert_eq!(refused.problem()["code"], "delivery-waiting");
    server.get(&format!("/jobs/{}", job.id())).await.expect(200);
}
