//! Each way to fail, for real: the class, a sentence, and the line that shows it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use taxiway_tests::processes::shim_of;
use taxiway_tests::{Bell, Gate, Place, Server, sh};

/// Runs a job that fails and answers its class and its evidence.
async fn failure(server: &Server, submission: Value) -> (String, String) {
    let mut events = server.events().await;
    let job = server.submit(submission).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    let failed = server.job(job.id()).await;
    let failure = &failed.json["failure"];
    assert!(failure["message"].as_str().is_some_and(|message| message.len() > 10), "{failure}");
    let evidence = failure["evidence"].as_str().unwrap_or_default().to_owned();
    assert!(!evidence.is_empty(), "{failure}");
    (failed.failure_class().expect("a class").to_owned(), evidence)
}

#[tokio::test]
async fn every_class_that_needs_no_hardware_is_told_with_its_evidence() {
    let server = Place::new().start().await;
    let python = |script: &str| json!({"command": ["python3", "-c", script]});
    // What PyTorch 2.9 raises, word for word.
    let cuda_oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of \
                    79.25 GiB of which 18.75 GiB is free.";
    let raises = format!(
        "class OutOfMemoryError(RuntimeError): pass\nOutOfMemoryError.__module__ = 'torch'\n\
                          raise OutOfMemoryError({:?})",
        cuda_oom.trim_start_matches("torch.OutOfMemoryError: ")
    );
    let cases = [
        ("exit", sh("echo warming up; echo 'bad data in row 7' >&2; exit 3"), "bad data in row 7"),
        ("exit", sh("exit 3"), "exit status 3, and nothing in its log"),
        ("signal", sh("echo almost; kill -SEGV $$"), "almost"),
        ("signal", sh("kill -KILL $$"), "signal 9 (SIGKILL), and nothing in its log"),
        ("cuda_oom", python(&raises), cuda_oom),
        (
            "disk_full",
            python("with open('/dev/full', 'w') as out: out.write('x')"),
            "OSError: [Errno 28] No space left on device",
        ),
        ("disk_full", sh("cat /etc/passwd > /dev/full; exit 1"), "No space left on device"),
        ("host_oom", python("bytearray(1 << 60)"), "MemoryError"),
        ("nan_loss", sh("echo 'epoch 3: loss nan, stopping'; exit 1"), "epoch 3: loss nan, stopping"),
        (
            "launch_error",
            json!({"command": ["no-such-program", "--fast"]}),
            "errno 2: [\"no-such-program\", \"--fast\"]",
        ),
        ("launch_error", json!({"command": ["/etc/passwd"]}), "errno 13: [\"/etc/passwd\"]"),
        ("launch_error", json!({"command": ["true"], "cwd": "/no/such/place"}), "errno 2: [\"true\"]"),
    ];
    for (class, submission, evidence) in cases {
        let found = failure(&server, submission.clone()).await;
        assert_eq!(found.0, class, "{submission}: {}", found.1);
        assert!(found.1.contains(evidence), "{submission}: {}", found.1);
    }
}

#[tokio::test]
async fn a_job_whose_time_runs_out_has_timed_out_also_when_it_ends_well_then() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let scripts = [
        ("exec sleep 1000", "nothing in its log"),
        ("trap 'exit 0' TERM; while :; do sleep 1000 & wait; done", "nothing in its log"),
        (
            "trap 'echo checkpoint saved; exit 0' TERM; while :; do sleep 1000 & wait; done",
            "last in its log: checkpoint saved",
        ),
    ];
    for (script, said) in scripts {
        let mut submission = sh(script);
        submission["time_limit"] = json!("300ms");
        let job = server.submit(submission).await;
        assert_eq!(events.end_of(job.id()).await, "failed");
        let late = server.job(job.id()).await;
        assert_eq!(late.failure_class(), Some("timeout"));
        let evidence = late.json["failure"]["evidence"].as_str().expect("evidence");
        assert!(evidence.starts_with("time limit of 0.3 s: ran ") && evidence.contains(said), "{evidence}");
    }
}

#[tokio::test]
async fn a_job_whose_shim_is_lost_says_what_was_and_was_not_found() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let gate = Gate::new(server.place().path(), "gate");
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    shim_of(&server.place().jobs_dir(), job.id()).await.kill();
    assert_eq!(events.end_of(job.id()).await, "failed");
    let lost = server.job(job.id()).await;
    assert_eq!(lost.failure_class(), Some("host_lost"));
    let evidence = lost.json["failure"]["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("its mark says that the command was started"), "{evidence}");
}

#[tokio::test]
async fn a_job_that_ran_before_a_reboot_is_lost_with_the_machine() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let gate = Gate::new(server.place().path(), "gate");
    let job = server.submit(sh(&gate.wait())).await;
    events.job(job.id(), "running").await;
    let shim = shim_of(&server.place().jobs_dir(), job.id()).await;
    let place = server.kill().await;
    shim.kill();
    // What a restart of the machine leaves: the same files, and a store that was written under another boot.
    let database = rusqlite::Connection::open(place.data_dir().join("taxiway.db")).expect("a database");
    let changed = database.execute("UPDATE attempts SET boot_id = 'another boot' WHERE phase != 'ended'", []);
    assert_eq!(changed.expect("it can be written"), 1);
    drop(database);
    let server = place.start().await;
    events.resume(&server).await;
    assert_eq!(events.end_of(job.id()).await, "failed");
    let lost = server.job(job.id()).await;
    assert_eq!(lost.failure_class(), Some("host_lost"));
    let evidence = lost.json["failure"]["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("the machine was restarted"), "{evidence}");
}

/// A memory control group of version 1 with a limit: what is in it is ended by the kernel when it wants more.
struct SmallMemory(PathBuf);

impl SmallMemory {
    fn new() -> Option<Self> {
        let path = Path::new("/sys/fs/cgroup/memory").join(format!("taxiway-test-{}", std::process::id()));
        let made = std::fs::create_dir(&path)
            .and_then(|()| std::fs::write(path.join("memory.limit_in_bytes"), "64M"))
            .and_then(|()| std::fs::File::open("/dev/kmsg").map(drop));
        match made {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                eprintln!("SKIPPED: the kernel cannot be made to end a job for want of memory here: {error}");
                None
            }
        }
    }

    /// A script that puts itself there and takes more than there is.
    fn script(&self) -> String {
        format!("echo $$ > '{}/cgroup.procs'; exec python3 -c 'x = bytearray(512 << 20)'", self.0.display())
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_job_that_the_kernel_ends_for_want_of_memory_is_told_by_the_kernels_own_words() {
    let Some(memory) = SmallMemory::new() else { return };
    let server = Place::new().start().await;
    let (class, evidence) = failure(&server, sh(&memory.script())).await;
    assert_eq!(class, "host_oom", "{evidence}");
    assert!(evidence.contains("out of memory: Killed process"), "{evidence}");
    // A script around it passes on what a shell makes of the signal.
    let inner = memory.script().replace('\'', "'\\''");
    let (class, evidence) = failure(&server, sh(&format!("sh -c '{inner}'; exit $?"))).await;
    assert_eq!(class, "host_oom", "{evidence}");
}

#[tokio::test]
async fn usage_tells_wall_time_processor_time_and_the_largest_process() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let mut bell = Bell::new(server.place().path(), "bell");
    let script = format!(
        "import time; x = bytearray(64 << 20); end = time.process_time() + 0.3\n\
         while time.process_time() < end: pass\nopen({:?}, 'w').write('done\\n')",
        bell.path()
    );
    let job = server.submit(json!({"command": ["python3", "-c", script]})).await;
    bell.heard().await;
    assert_eq!(events.end_of(job.id()).await, "completed");
    let usage = server.job(job.id()).await.json["usage"].clone();
    let number = |name: &str| usage[name].as_f64().unwrap_or_else(|| panic!("{name} in {usage}"));
    assert!(number("cpu_seconds") >= 0.3 && number("wall_seconds") >= 0.3, "{usage}");
    assert!(number("peak_rss_bytes") >= f64::from(64 << 20), "{usage}");
}
