//! A log that grows fast, and one that grows without end.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Events, Place, Random, Server};

/// Lines of the fast log: 50,000 a second for three seconds.
const LINES: usize = 150_000;

/// Writes numbered lines at 50,000 a second, in ticks of 20 ms, with bytes that are no text between them, and says at last how
/// fast it was.
const WRITER: &str = r#"
import sys, time
out = sys.stdout.buffer
begun = time.monotonic()
for tick in range(150):
    out.write(b"".join(b"%06d \xff\x00\r\n" % number for number in range(tick * 1000, tick * 1000 + 1000)))
    out.flush()
    time.sleep(max(0, begun + (tick + 1) * 0.02 - time.monotonic()))
print(f"{150_000 / (time.monotonic() - begun):.0f} lines/s", file=sys.stderr)
"#;

fn expected() -> Vec<u8> {
    (0..LINES).flat_map(|number| [format!("{number:06} ").as_bytes(), b"\xff\x00\r\n"].concat()).collect()
}

async fn write_fast(server: &Server) -> (String, Events) {
    let mut events = server.events().await;
    let job = server.submit(json!({"command": ["python3", "-c", WRITER]})).await;
    events.job(job.id(), "pending").await;
    (job.id().to_owned(), events)
}

/// Compares all but the last line, which tells the writer's speed.
fn check(read: &[u8], what: &str) {
    let expected = expected();
    let end = read.len().min(expected.len());
    if let Some(at) = (0..end).find(|at| read[*at] != expected[*at]) {
        panic!("{what}: byte {at} of {} is another one", read.len());
    }
    let rest = String::from_utf8_lossy(&read[end..]);
    assert!(rest.ends_with(" lines/s\n"), "{what}: {} of {} bytes, then {rest:?}", read.len(), expected.len());
    println!("{what}: {}", rest.trim());
}

#[tokio::test]
async fn a_follower_gets_every_byte_once_and_in_order_while_50_000_lines_a_second_are_written() {
    let server = Place::new().start().await;
    let (id, _) = write_fast(&server).await;
    let request = server.request(Method::GET, &format!("/api/v1/jobs/{id}/log?follow=true"));
    let read = request.stream().await.whole().await.expect("the connection holds");
    check(&read.body, "in one go");
}

#[tokio::test]
async fn a_follower_that_comes_back_at_any_byte_goes_on_exactly_there() {
    let server = Place::new().start().await;
    let mut random = Random::of_seed(7);
    let (id, _) = write_fast(&server).await;
    let mut read: Vec<u8> = Vec::new();
    let mut connections = 0;
    loop {
        let request = server
            .request(Method::GET, &format!("/api/v1/jobs/{id}/log?follow=true"))
            .header("range", &format!("bytes={}-", read.len()));
        let mut stream = request.stream().await;
        connections += 1;
        let enough = read.len() + 1 + random.below(200_000) as usize;
        let ended = loop {
            match stream.piece().await.expect("the connection holds") {
                Some(piece) => read.extend_from_slice(&piece),
                None => break true,
            }
            if read.len() >= enough {
                // Not even at the end of a piece.
                read.truncate(enough);
                break false;
            }
        };
        if ended {
            break;
        }
    }
    assert!(connections > 5, "{connections}");
    check(&read, &format!("over {connections} connections"));
}

#[tokio::test]
async fn a_follower_of_events_resumes_at_the_byte_of_the_last_id() {
    let server = Place::new().start().await;
    let (id, _) = write_fast(&server).await;
    let (mut text, mut offset, mut connections) = (String::new(), 0_u64, 0);
    'connections: loop {
        let request = server
            .request(Method::GET, &format!("/api/v1/jobs/{id}/log"))
            .header("accept", "text/event-stream")
            .header("last-event-id", &offset.to_string());
        let mut stream = request.stream().await;
        connections += 1;
        let mut unread: Vec<u8> = Vec::new();
        for events in 0.. {
            let block = loop {
                if let Some(end) = unread.windows(2).position(|two| two == b"\n\n") {
                    break String::from_utf8(unread.drain(..end + 2).collect()).expect("UTF-8");
                }
                let piece = stream.piece().await.expect("the connection holds").expect("`end` comes first");
                unread.extend_from_slice(&piece);
            };
            let field = |name: &str| {
                block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_start)
            };
            if field("event") == Some("end") {
                break 'connections;
            }
            let Some(data) = field("data") else { continue };
            let data: Value = serde_json::from_str(data).expect("JSON");
            text.push_str(data["text"].as_str().expect("a text"));
            offset = field("id").expect("an id").parse().expect("a byte");
            if events == 7 && connections < 6 {
                continue 'connections;
            }
        }
    }
    let expected = String::from_utf8_lossy(&expected()).into_owned();
    assert!(text.starts_with(&expected), "not every character once and in order");
    assert!(text[expected.len()..].ends_with(" lines/s\n"));
}

#[tokio::test]
async fn a_job_that_prints_5_gigabytes_neither_fills_the_disk_nor_keeps_the_service_from_working() {
    let server = Place::new().config("[launcher]\nlog_max_size = \"1MiB\"\n").start().await;
    let mut events = server.events().await;
    let script = "echo first; head -c 5000000000 /dev/zero; echo; echo last";
    let flood = server.submit(json!({"command": ["/bin/sh", "-c", script]})).await;
    events.job(flood.id(), "running").await;
    // Others get their turn meanwhile, from the submission to the end.
    for _ in 0..20 {
        let other = server.submit(json!({"command": ["/bin/sh", "-c", "exit 0"], "gpus": 0})).await;
        assert_eq!(events.end_of(other.id()).await, "completed");
    }
    assert_eq!(events.end_of(flood.id()).await, "completed");
    let answer = server.get(&format!("/jobs/{}/log", flood.id())).await.expect(200);
    let log = &answer.body[..];
    assert!(log.len() <= 1 << 20, "{} bytes", log.len());
    assert!(log.starts_with(b"first\n\0\0") && log.ends_with(b"\0\nlast\n"));
    let marker = String::from_utf8_lossy(log);
    let dropped = marker.split("[taxiway: ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a marker");
    let written = 5_000_000_000 + "first\n".len() + "\nlast\n".len();
    let marked = marker.split("\n[taxiway: ").nth(1).and_then(|rest| rest.split_once("]\n")).expect("a marker").0.len();
    let kept = log.len() - marked - "\n[taxiway: ".len() - "]\n".len();
    assert_eq!(dropped.parse::<usize>().expect("a number"), written - kept, "the marker says what is missing");
}
