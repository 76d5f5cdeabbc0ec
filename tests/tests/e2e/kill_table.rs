//! Whatever a job does against its end, and however it comes to it: the state is truthful, and no process of it is left when it
//! reads ended. The launcher's own table (`host/crates/launcher/tests/kill_table.rs`) has the exact statuses.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::processes::of_job;
use taxiway_tests::{Bell, Events, Place, Server, sh};

/// What a job's processes do, and the part of its script that puts the others in place.
const RESISTANCES: [(&str, &str); 6] = [
    ("plain", "sleep 1000 &"),
    ("setsid", "setsid sleep 1000 & setsid sh -c 'setsid sleep 1000 & wait' &"),
    ("double fork", "(setsid sh -c '(sleep 1000 &) ; (setsid sleep 1000 &)' &); (sleep 1000 &);"),
    (
        "ignores SIGTERM",
        "trap '' TERM HUP INT; sleep 1000 & setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' &",
    ),
    (
        "stopped",
        "sh -c 'kill -STOP $$; sleep 1000' & a=$!; setsid sh -c 'kill -STOP $$; sleep 1000' & b=$!; \
         for pid in $a $b; do until grep -q '^State:.T' /proc/$pid/status; do sleep 0.01; done; done;",
    ),
    (
        "forks in a loop",
        "export HOP='setsid sh -c \"$HOP\" & exit'; setsid sh -c \"$HOP\" & (while :; do sleep 1000 & sleep 0.002; done) &",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cancel,
    TimeLimit,
    Requeue,
    Leftovers,
}

const WAYS: [Way; 4] = [Way::Cancel, Way::TimeLimit, Way::Requeue, Way::Leftovers];

/// Asks for the job's state again and again, until it is one of an end; what is alive was looked for *before* each question,
/// and nothing may be there once it reads ended.
async fn end(server: &Server, id: &str, case: &str, while_ending: &[&str]) -> String {
    loop {
        let job = server.job(id).await;
        let state = job.state().to_owned();
        if while_ending.contains(&state.as_str()) {
            continue;
        }
        let left = of_job(id);
        assert!(left.is_empty(), "{case}: it reads {state}, and these live: {left:?}");
        return state;
    }
}

async fn check(server: &Server, events: &mut Events, bell: &mut Bell, resistance: (&str, &str), way: Way) {
    let (name, others) = resistance;
    let case = format!("{name}, {way:?}");
    let rest = if way == Way::Leftovers { "exit 3" } else { "while :; do sleep 1000; done" };
    let mut submission = sh(&format!("{others} {}; {rest}", bell.ring("up")));
    submission["grace"] = json!("100ms");
    let job = server.submit(submission).await;
    let id = job.id();
    bell.heard().await;
    let (expected, while_ending): (_, &[&str]) = match way {
        Way::Cancel => {
            events.job(id, "running").await;
            // The answer is the job as it is by then: one that does not resist may be gone.
            let stopping = server.operate(id, "cancel").await.expect(200).job();
            assert!(matches!(stopping.state(), "cancelling" | "cancelled"), "{case}: {}", stopping.state());
            ("cancelled", &["cancelling"])
        }
        Way::Requeue => {
            events.job(id, "running").await;
            server.post(&format!("/jobs/{id}/requeue"), &json!({"hold": true})).await.expect(200);
            ("held", &["cancelling"])
        }
        Way::TimeLimit => {
            events.job(id, "running").await;
            // Cut short while it runs, so that everything is in place when it strikes.
            let cut = server.request(Method::PATCH, &format!("/api/v1/jobs/{id}")).json(&json!({"time_limit": "1ms"}));
            cut.send().await.expect(200);
            ("failed", &["running"])
        }
        Way::Leftovers => ("failed", &["queued", "pending", "running"]),
    };
    assert_eq!(end(server, id, &case, while_ending).await, expected, "{case}");
    let ended = server.job(id).await;
    let class = match way {
        Way::TimeLimit => Some("timeout"),
        Way::Leftovers => Some("exit"),
        Way::Cancel | Way::Requeue => None,
    };
    assert_eq!(ended.failure_class(), class, "{case}");
    if way == Way::Leftovers {
        assert_eq!(ended.exit_code(), Some(3), "{case}");
    }
    if way == Way::Requeue {
        assert_eq!(ended.json["attempt"], Value::from(2), "{case}: the next attempt waits");
        server.operate(id, "cancel").await.expect(200);
    }
}

#[tokio::test]
async fn no_job_leaves_a_process_behind_in_whatever_way_it_ends() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    for resistance in RESISTANCES {
        for way in WAYS {
            check(&server, &mut events, &mut bell, resistance, way).await;
        }
    }
}
