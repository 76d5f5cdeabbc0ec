//! A thousand short jobs leave the service as they found it.

use taxiway_tests::{Place, Server, sh};

/// What a service holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    files: usize,
    children: usize,
    threads: usize,
    resident_kib: u64,
}

impl Held {
    fn of(server: &Server) -> Self {
        let pid = server.pid();
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("/proc").count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("/proc").flatten();
        let children = threads
            .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default())
            .map(|children| children.split_ascii_whitespace().count())
            .sum();
        Self {
            files: count("fd"),
            children,
            threads: count("task"),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
        }
    }
}

async fn run(server: &Server, jobs: usize) {
    let mut events = server.events().await;
    let mut last = None;
    for _ in 0..jobs {
        last = Some(server.submit(sh("exit 0")).await);
    }
    events.job(last.expect("some jobs").id(), "completed").await;
}

#[tokio::test]
async fn a_thousand_short_jobs_leave_no_file_no_process_and_no_memory_behind() {
    let server = Place::new().start().await;
    // What is opened once and stays: connections to the database, threads of the runtime, caches.
    run(&server, 200).await;
    let before = Held::of(&server);
    run(&server, 1000).await;
    let after = Held::of(&server);
    println!("before: {before:?}\nafter:  {after:?}");
    assert!(after.files <= before.files + 2, "{before:?} {after:?}");
    assert!(after.children <= before.children, "{before:?} {after:?}");
    // Threads that wait for the disk come and go with the load.
    assert!(after.threads <= before.threads + 8, "{before:?} {after:?}");
    // Of the database's caches, which are bounded; a thousand leaked launches would be more.
    assert!(after.resident_kib <= before.resident_kib + (16 << 10), "{before:?} {after:?}");
}
