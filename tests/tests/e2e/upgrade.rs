//! Upgrade: the program is replaced and the service restarted, and a job that runs does not notice.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use taxiway_tests::processes::Process;
use taxiway_tests::{Bell, Gate, Place, program, sh};

/// Puts a new copy of the program there, with an inode of its own, as a package manager does.
fn install(path: &Path) -> u64 {
    let new = path.with_extension("new");
    std::fs::copy(program(), &new).expect("it can be copied");
    std::fs::rename(&new, path).expect("it can be replaced");
    std::fs::metadata(path).expect("it is there").ino()
}

fn program_of(pid: i32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).expect("it runs").ino()
}

#[tokio::test]
async fn a_job_goes_on_under_a_new_program_with_its_log_its_process_and_its_progress() {
    let place = Place::new();
    let path = place.path().join("taxiway-installed");
    let old = install(&path);
    let server = place.program(path.clone()).start().await;
    assert_eq!(program_of(server.pid()), old);
    let mut events = server.events().await;
    let directory = server.place().path().to_owned();
    let (mut gate, mut bell) = (Gate::new(&directory, "gate"), Bell::new(&directory, "bell"));
    // It writes all the time; only its first line and its end are waited for.
    let script = format!(
        "{}; i=0; while [ ! -e enough ]; do i=$((i+1)); echo line $i; \
         echo \"{{\\\"step\\\": $i, \\\"total_steps\\\": 1000000}}\" > \"$TAXIWAY_PROGRESS_FILE\"; sleep 0.01; done; \
         echo last $i; {}",
        bell.ring("$$"),
        gate.wait()
    );
    let job = server.submit(sh(&script)).await;
    let process = Process::find(bell.pid().await).expect("it runs");
    let shim = process.parent().expect("its shim");
    let step = |event: &taxiway_tests::Event| event.json["progress"]["step"].as_u64().unwrap_or(0);
    let before = events.wait_for(|event| event.kind == "job.progress").await;

    let new = install(&path);
    assert_ne!(new, old);
    let (place, status) = server.stop().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(process.is_alive() && shim.is_alive());
    let server = place.start().await;
    events.resume(&server).await;
    assert_eq!(program_of(server.pid()), new, "the new program runs");
    assert_eq!(program_of(shim.pid), old, "the job's shim is the old one");
    let running = server.job(job.id()).await;
    assert_eq!((running.state(), &running.json["attempt"]), ("running", &1.into()));
    let reached = step(&before);
    events.wait_for(|event| event.kind == "job.progress" && step(event) > reached + 10).await;
    assert!(process.is_alive(), "the same process");

    std::fs::write(server.place().jobs_dir().join(job.id()).join("enough"), "").expect("a file");
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
    let log = server.log(job.id()).await;
    let lines: Vec<&str> = log.lines().collect();
    let (last, numbered) = lines.split_last().expect("it wrote");
    assert_eq!(*last, format!("last {}", numbered.len()));
    for (index, line) in numbered.iter().enumerate() {
        assert_eq!(*line, format!("line {}", index + 1), "the log has no gap and nothing twice");
    }
    assert_eq!(events.story(job.id()), ["queued", "pending", "running", "completed"]);

    // What is started from now on is started by the new program.
    let (mut gate, mut bell) = (Gate::new(&directory, "gate-2"), Bell::new(&directory, "bell-2"));
    let next = server.submit(sh(&format!("{}; {}", bell.ring("$$"), gate.wait()))).await;
    let shim = Process::find(bell.pid().await).and_then(Process::parent).expect("its shim");
    assert_eq!(program_of(shim.pid), new);
    gate.open();
    assert_eq!(events.end_of(next.id()).await, "completed");
}

#[tokio::test]
async fn a_spawner_that_is_lost_after_the_program_was_replaced_is_started_again_from_the_running_one() {
    let place = Place::new();
    let path = place.path().join("taxiway-installed");
    let old = install(&path);
    let server = place.program(path.clone()).start().await;
    let mut events = server.events().await;
    let directory = server.place().path().to_owned();
    let first = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(first.id()).await, "completed");
    // Not even a program is there any more: it is removed, as some upgrades do for a moment.
    std::fs::remove_file(&path).expect("it was there");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).expect("/proc");
    for child in children.split_ascii_whitespace() {
        let child = Process::find(child.parse().expect("a pid")).expect("a child of the service");
        let name = std::fs::read_to_string(format!("/proc/{}/comm", child.pid)).expect("/proc");
        if name.trim() == "taxiway-spawner" {
            child.kill();
        }
    }
    let (mut gate, mut bell) = (Gate::new(&directory, "gate"), Bell::new(&directory, "bell"));
    let job = server.submit(sh(&format!("{}; {}", bell.ring("$$"), gate.wait()))).await;
    let shim = Process::find(bell.pid().await).and_then(Process::parent).expect("its shim");
    assert_eq!(program_of(shim.pid), old);
    gate.open();
    assert_eq!(events.end_of(job.id()).await, "completed");
}
