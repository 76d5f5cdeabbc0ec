//! The service is killed at random moments under load, and nothing that it acknowledged is lost or done twice.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use serde_json::json;
use taxiway_tests::{Client, Events, Place, Random};

/// How many times it is killed; `TAXIWAY_TEST_KILLS` asks for more.
const KILLS: u64 = 15;
/// `TAXIWAY_TEST_SEED` repeats the moments of another run, as far as moments can be repeated.
const SEED: u64 = 20_260_131;
/// How many clients submit at a time.
const CLIENTS: usize = 4;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Submits jobs that write down their own id, one after another, until the service is gone.
async fn submit_until_it_is_gone(client: Client, ran: String, acknowledged: Arc<Mutex<Vec<String>>>) {
    let body = json!({"command": ["/bin/sh", "-c", format!("echo $TAXIWAY_JOB_ID >> '{ran}'")], "gpus": 0, "time_limit": "10m"});
    let Ok(mut connection) = client.connect().await else { return };
    loop {
        let request = client.request(Method::POST, "/api/v1/jobs").json(&body);
        let Ok(answer) = connection.send(request).await else { return };
        let job = answer.expect(201).job();
        acknowledged.lock().expect("nobody panics with it").push(job.id().to_owned());
    }
}

/// Lets the service live for a random number of events, and a random moment more.
async fn live_for_a_while(events: &mut Events, random: &mut Random) {
    for _ in 0..random.below(150) {
        events.next().await.expect("the service lives");
    }
    // Otherwise it would always die just after a commit. What is waited for here is nothing: the moment is the test.
    tokio::time::sleep(Duration::from_micros(random.below(5_000))).await;
}

#[tokio::test]
async fn a_service_killed_at_any_moment_loses_no_acknowledged_job_and_runs_none_twice() {
    let kills = number("TAXIWAY_TEST_KILLS", KILLS);
    let seed = number("TAXIWAY_TEST_SEED", SEED);
    eprintln!("{kills} kills with TAXIWAY_TEST_SEED={seed}");
    let mut random = Random::of_seed(seed);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut server = Place::new().config("[queue]\ncpu_slots = 2\n").start().await;
    let ran = server.place().path().join("ran");
    let mut events = server.events().await;
    for _ in 0..kills {
        let submitters: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (client, ran) = (server.client().clone(), ran.to_str().expect("a path").to_owned());
                tokio::spawn(submit_until_it_is_gone(client, ran, acknowledged.clone()))
            })
            .collect();
        live_for_a_while(&mut events, &mut random).await;
        let place = server.kill().await;
        for submitter in submitters {
            submitter.await.expect("it only stops");
        }
        server = place.start().await;
        events.resume(&server).await;
    }

    // What was stored without an answer counts too: it runs like any other.
    let all: HashSet<String> = server.jobs().await.iter().map(|job| job.id().to_owned()).collect();
    let acknowledged = std::mem::take(&mut *acknowledged.lock().expect("nobody panics with it"));
    eprintln!("{} jobs acknowledged, {} stored", acknowledged.len(), all.len());
    assert!(acknowledged.len() as u64 > kills, "there was a load: {} jobs", acknowledged.len());
    let lost: Vec<_> = acknowledged.iter().filter(|id| !all.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged jobs are lost: {lost:?}", lost.len(), acknowledged.len());
    for id in &all {
        let end = events.end_of(id).await;
        assert_eq!(end, "completed", "{}", server.job(id).await.json);
        let story = events.story(id);
        assert_eq!(story, ["queued", "pending", "running", "completed"], "{id}");
    }

    let text = std::fs::read_to_string(&ran).expect("they ran");
    let mut times: HashMap<&str, usize> = HashMap::new();
    for id in text.lines() {
        *times.entry(id).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "these ran more than once: {twice:?}");
    let never: Vec<_> = all.iter().filter(|id| !times.contains_key(id.as_str())).collect();
    assert!(never.is_empty(), "these are completed and never ran: {never:?}");
    assert_eq!(times.len(), all.len());

    let place = server.kill().await;
    let database = rusqlite::Connection::open(place.data_dir().join("taxiway.db")).expect("a database");
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(verdict, "ok");
}
