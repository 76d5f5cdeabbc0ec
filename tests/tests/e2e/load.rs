//! Many submissions at once, and a power switch.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Client, Place, Server};
use tokio::sync::Notify;

const SUBMISSIONS: usize = 2_000;
const CONNECTIONS: usize = 32;

/// Counts what was acknowledged, and says when it is enough.
struct Progress {
    acknowledged: AtomicUsize,
    enough: usize,
    reached: Notify,
}

/// Sends `share` submissions over one connection; answers the ids of those that were acknowledged before it broke.
async fn submit(client: Client, share: usize, progress: Arc<Progress>) -> Vec<String> {
    let body: Value = json!({"command": ["true"], "config": {"lr": 0.1}, "name": "load", "time_limit": "10m"});
    let mut ids = Vec::new();
    let Ok(mut connection) = client.connect().await else { return ids };
    for _ in 0..share {
        let request = client.request(Method::POST, "/api/v1/jobs").json(&body);
        let Ok(answer) = connection.send(request).await else { break };
        ids.push(answer.expect(201).job().id().to_owned());
        if progress.acknowledged.fetch_add(1, Ordering::Relaxed) + 1 == progress.enough {
            progress.reached.notify_one();
        }
    }
    ids
}

/// Submits from all connections, kills the service as soon as `enough` were acknowledged, and answers all that were.
async fn submit_and_kill(server: Server, enough: usize) -> (Place, Vec<String>) {
    let progress = Arc::new(Progress { acknowledged: AtomicUsize::new(0), enough, reached: Notify::new() });
    let share = SUBMISSIONS.div_ceil(CONNECTIONS);
    let submitters: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let share = share.min(SUBMISSIONS.saturating_sub(number * share));
            tokio::spawn(submit(server.client().clone(), share, progress.clone()))
        })
        .collect();
    taxiway_tests::patiently("enough acknowledgements", progress.reached.notified()).await;
    let place = server.kill().await;
    let mut ids = Vec::new();
    for submitter in submitters {
        ids.extend(submitter.await.expect("it only stops"));
    }
    assert!(ids.len() >= enough);
    (place, ids)
}

async fn assert_all_are_there(server: &Server, ids: &[String]) {
    let stored: HashSet<String> = server.jobs().await.iter().map(|job| job.id().to_owned()).collect();
    let lost = ids.iter().filter(|id| !stored.contains(*id)).count();
    assert_eq!(lost, 0, "of {} acknowledged jobs, {lost} are lost", ids.len());
    assert!(stored.len() <= SUBMISSIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_submissions_from_32_connections_are_all_there_after_a_kill() {
    let server = Place::new().start().await;
    // So that what is measured is submission; the other test has jobs run meanwhile.
    server.post_nothing("/queue/pause").await.expect(200);
    let (place, ids) = submit_and_kill(server, SUBMISSIONS).await;
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), SUBMISSIONS, "each has an id of its own");
    let server = place.start().await;
    assert_all_are_there(&server, &ids).await;
    let queue = server.get("/queue").await.expect(200).json();
    assert_eq!(queue["queued"], SUBMISSIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_kill_in_the_middle_of_the_load_is_there() {
    let server = Place::new().start().await;
    let (place, ids) = submit_and_kill(server, SUBMISSIONS / 2).await;
    let server = place.start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    assert_all_are_there(&server, &ids).await;
}
