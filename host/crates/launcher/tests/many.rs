//! A long line of short jobs.

mod support;

use support::{Bench, Start};
use taxiway_launcher::{Event, Launcher, Status};

/// What the host holds: open files, threads aside, and children.
fn held() -> (usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).expect("/proc").count();
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).expect("/proc");
    (count("/proc/self/fd"), children.split_ascii_whitespace().count())
}

#[tokio::test]
async fn a_thousand_short_jobs_leave_no_file_and_no_process_open() {
    let mut bench = Bench::new();
    let mut before = None;
    for index in 0..1000 {
        let plan = bench.plan(Start::new(), vec!["/bin/true".to_owned()]);
        let start = bench.ready(plan).await;
        bench.launcher.go(start.launch, &[]).expect("it is ready");
        assert!(matches!(bench.event().await, Event::Started { .. }));
        assert_eq!(bench.end(start).await.status, Status::Exited(0));
        bench.launcher.confirm(start.launch);
        if index == 10 {
            before = Some(held());
        }
    }
    let (files, children) = before.expect("it ran");
    let (files_after, children_after) = held();
    // The last job's shim may be leaving while it is counted.
    assert!(files_after <= files + 2, "{files} files before, {files_after} after");
    assert!(children_after <= children + 1, "{children} children before, {children_after} after");
}
