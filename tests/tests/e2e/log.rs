//! A job's log: whole, in part, and as it grows.

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Bell, Gate, Place, sh};

#[tokio::test]
async fn output_and_errors_are_in_the_log_in_their_order() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done")).await;
    events.job(job.id(), "completed").await;
    let expected: String = (1..=5).map(|i| format!("out {i}\nerr {i}\n")).collect();
    let answer = server.get(&format!("/jobs/{}/log", job.id())).await.expect(200);
    assert_eq!(answer.text(), expected);
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn a_range_of_the_log_is_answered_alone() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("printf 0123456789")).await;
    events.job(job.id(), "completed").await;
    let path = format!("/api/v1/jobs/{}/log", job.id());
    for (range, body, content_range) in
        [("bytes=2-4", "234", "bytes 2-4/10"), ("bytes=7-", "789", "bytes 7-9/10"), ("bytes=-2", "89", "bytes 8-9/10")]
    {
        let answer = server.request(Method::GET, &path).header("range", range).send().await.expect(206);
        assert_eq!((answer.text().as_str(), answer.header("content-range")), (body, content_range));
    }
    let beyond = server.request(Method::GET, &path).header("range", "bytes=10-").send().await.expect(416);
    assert_eq!(beyond.header("content-range"), "bytes */10");
}

#[tokio::test]
async fn a_follower_reads_the_log_as_it_is_written_and_stops_at_its_end() {
    let server = Place::new().start().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let wait = gate.wait();
    // It follows from before the start on.
    let before = Gate::new(server.place().path(), "before");
    let mut first = before;
    let blocker = server.submit(sh(&first.wait())).await;
    let job = server.submit(sh(&format!("echo one; {wait}; printf two; {wait}; echo ' three'"))).await;
    let request = server.request(Method::GET, &format!("/api/v1/jobs/{}/log?follow=true", job.id()));
    let mut stream = request.stream().await;
    assert_eq!(stream.status, 200);
    first.open();
    let mut text = String::new();
    for expected in ["one\n", "one\ntwo"] {
        while text != expected {
            let piece = stream.piece().await.expect("the connection holds").expect("it is not over");
            text.push_str(std::str::from_utf8(&piece).expect("UTF-8"));
            assert!(expected.starts_with(&text), "{text:?}");
        }
        // What it wrote may be here before the word that it runs.
        assert!(matches!(server.job(job.id()).await.state(), "pending" | "running"));
        gate.open();
    }
    while let Some(piece) = stream.piece().await.expect("the connection holds") {
        text.push_str(std::str::from_utf8(&piece).expect("UTF-8"));
    }
    assert_eq!(text, "one\ntwo three\n");
    assert_eq!(server.job(job.id()).await.state(), "completed", "the stream ends with the job, not before");
    assert_eq!(server.job(blocker.id()).await.state(), "completed");
}

#[tokio::test]
async fn a_browser_follows_the_log_as_events_and_resumes_at_a_byte() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("printf 'gr\\303\\274n\\nrot\\r10%%\\n'")).await;
    events.job(job.id(), "completed").await;
    let path = format!("/api/v1/jobs/{}/log", job.id());
    let text_of = |body: &str| -> String {
        let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
        data.filter_map(|data| serde_json::from_str::<Value>(data.trim()).ok()?["text"].as_str().map(str::to_owned))
            .collect()
    };
    let whole = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.expect(200);
    assert_eq!(text_of(&whole.text()), "grün\nrot\r10%\n");
    assert!(whole.text().contains("event: end") || whole.text().contains("event:end"), "{}", whole.text());
    let rest = server.request(Method::GET, &path).header("accept", "text/event-stream").header("last-event-id", "6");
    assert_eq!(text_of(&rest.send().await.expect(200).text()), "rot\r10%\n");
}

#[tokio::test]
async fn a_follower_is_not_cut_off_by_a_restart_of_the_service_for_good() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let job = server.submit(sh(&format!("echo one; {}; echo two", gate.wait()))).await;
    events.job(job.id(), "running").await;
    let server = server.kill().await.start().await;
    let request = server.request(Method::GET, &format!("/api/v1/jobs/{}/log?follow=true", job.id()));
    let mut stream = request.stream().await;
    let first = stream.piece().await.expect("the connection holds").expect("it is not over");
    assert_eq!(&first[..], b"one\n");
    gate.open();
    let rest = stream.whole().await.expect("the connection holds");
    assert_eq!(rest.text(), "two\n");
}

#[tokio::test]
async fn a_log_over_its_size_keeps_its_beginning_and_its_end() {
    let server = Place::new().config("[launcher]\nlog_max_size = \"256KiB\"\n").start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("echo first; head -c 2000000 /dev/zero | tr '\\0' x; echo; echo last")).await;
    events.job(job.id(), "completed").await;
    let log = server.log(job.id()).await;
    assert!(log.starts_with("first\n") && log.ends_with("last\n"));
    assert!(log.len() < 400_000, "{} bytes", log.len());
    assert_eq!(server.job(job.id()).await.exit_code(), Some(0), "the job never notices");
}

#[tokio::test]
async fn a_job_that_has_not_run_has_an_empty_log() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let job = server.submit(sh("echo hello")).await;
    assert_eq!(server.log(job.id()).await, "");
    server.operate(job.id(), "cancel").await.expect(200);
    let followed = server.get(&format!("/jobs/{}/log?follow=true", job.id())).await.expect(200);
    assert_eq!(followed.text(), "");
}

#[tokio::test]
async fn a_follower_of_a_log_that_was_removed_waits_for_the_end_of_the_job() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let mut bell = Bell::new(server.place().path(), "bell");
    let script = format!("rm \"${{TAXIWAY_PROGRESS_FILE%/*}}/log\"; {}; {}", bell.ring("removed"), gate.wait());
    let job = server.submit(sh(&script)).await;
    bell.heard().await;
    events.job(job.id(), "running").await;
    let path = format!("/api/v1/jobs/{}/log?follow=true", job.id());
    let stream = server.request(Method::GET, &path).stream().await;
    assert_eq!(stream.status, 200);
    // Whoever follows on the command line gets the status of the job.
    let arguments = ["logs", "-f", job.id()];
    let (output, ()) = tokio::join!(server.cli(&arguments), async {
        assert_eq!(server.job(job.id()).await.state(), "running");
        gate.open();
        assert_eq!(stream.whole().await.expect("the connection holds, and it ends").text(), "");
    });
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn an_attempt_is_followed_from_before_its_beginning_and_no_other_in_its_place() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut gate = Gate::new(server.place().path(), "gate");
    let script = format!("echo attempt $TAXIWAY_ATTEMPT; {}; test $TAXIWAY_ATTEMPT = 2", gate.wait());
    let mut submission = sh(&script);
    submission["retries"] = json!({"max": 1, "backoff": 0});
    let job = server.submit(submission).await;
    let path = format!("/api/v1/jobs/{}/log", job.id());
    let log = |query: &str| server.request(Method::GET, &format!("{path}?{query}"));
    events.job(job.id(), "running").await;
    log("attempt=2").send().await.expect(404);
    let (first, second) = (log("attempt=1&follow=true").stream().await, log("attempt=2&follow=true").stream().await);
    let third = log("attempt=3&follow=true").stream().await;
    for stream in [&first, &second, &third] {
        assert_eq!(stream.status, 200, "its retries may come to that");
    }
    gate.open();
    assert_eq!(first.whole().await.expect("the connection holds").text(), "attempt 1\n");
    gate.open();
    assert_eq!(second.whole().await.expect("the connection holds").text(), "attempt 2\n");
    assert_eq!(third.whole().await.expect("the connection holds").text(), "");
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(log("attempt=1&follow=true").send().await.expect(200).text(), "attempt 1\n");
    log("attempt=3&follow=true").send().await.expect(404);
}

#[tokio::test]
async fn a_browser_gets_a_log_to_its_last_byte_also_when_that_ends_within_a_character() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let job = server.submit(sh("printf 'gr\\303'")).await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let request = server.request(Method::GET, &format!("/api/v1/jobs/{}/log", job.id()));
    let text = request.header("accept", "text/event-stream").send().await.expect(200).text();
    assert!(text.contains('\u{FFFD}') && text.contains("id: 3"), "{text}");
}

#[tokio::test]
async fn a_job_that_puts_pipes_in_the_place_of_its_files_keeps_nobody_waiting() {
    let server = Place::new().config("[profiles.training]\ncommand = [\"false\"]\n").start().await;
    let mut events = server.events().await;
    // Long enough for its progress to be looked at.
    let script = "cd \"${TAXIWAY_PROGRESS_FILE%/*}\" && rm log exit.json && mkfifo log exit.json progress.json && sleep 1; exit 3";
    let job = server.submit(sh(script)).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    assert_eq!(server.job(job.id()).await.exit_code(), Some(3));
    let answer = server.get(&format!("/jobs/{}/log", job.id())).await.expect(500);
    assert!(answer.text().contains("no regular file"), "{}", answer.text());
    let next = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(next.id()).await, "completed", "the line goes on");
}
