//! A shim whose job was over at once serves the next one, which gets nothing of the one before.

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use taxiway_launcher::{ExitRecord, Launcher, Settlement, Status, Stop};

use support::{Bench, gone, kill, parent, patiently, sh};

/// Longer than this nobody tries to get two jobs into one shim: a machine that is too slow for that serves no short jobs.
const TRIES_SECONDS: u64 = 120;

impl Bench {
    /// Runs a script to its end; gives the pid of its shim, too.
    async fn run_in_shim(&mut self, script: &str) -> (i32, ExitRecord) {
        let (start, record) = self.run_to_end(sh(&format!("echo $PPID; {script}"))).await;
        let shim = self.log(start).lines().next().and_then(|line| line.parse().ok()).expect("a pid");
        (shim, record)
    }
}

#[tokio::test]
async fn two_short_jobs_share_a_shim_and_nothing_else() {
    let mut bench = Bench::new();
    let begun = Instant::now();
    loop {
        let (first, ended) = bench.run_in_shim("exit 0").await;
        let (second, failed) = bench.run_in_shim("exit 7").await;
        assert_eq!((ended.status, failed.status), (Status::Exited(0), Status::Exited(7)));
        if first == second {
            // It has nothing more to do.
            gone(second).await;
            return;
        }
        assert!(begun.elapsed().as_secs() < TRIES_SECONDS, "no shim has served two jobs");
    }
}

#[tokio::test]
async fn a_shim_that_is_killed_in_its_second_job_loses_that_one() {
    let mut bench = Bench::new();
    let begun = Instant::now();
    loop {
        let (first, _) = bench.run_in_shim("exit 0").await;
        let (start, process) = bench.run(sh("sleep 1000")).await;
        let shim = parent(process.pid);
        let is_the_same = shim == first;
        kill(shim, libc::SIGKILL);
        match bench.settlement(start).await {
            Settlement::Lost { .. } => {}
            other => panic!("{other:?}"),
        }
        bench.launcher.confirm(start.launch);
        if is_the_same {
            return;
        }
        assert!(begun.elapsed().as_secs() < TRIES_SECONDS, "no shim has served two jobs");
    }
}

#[tokio::test]
async fn a_shim_that_had_to_end_what_its_job_left_serves_no_other() {
    let mut bench = Bench::new();
    let mut used = HashSet::new();
    for _ in 0..10 {
        let (shim, record) = bench.run_in_shim("sleep 1000 >/dev/null 2>&1 & exit 0").await;
        assert_eq!(record.clean.as_ref().map(|clean| clean.leftovers), Some(1));
        patiently(gone(shim)).await;
        used.insert(shim);
        let (next, _) = bench.run_in_shim("exit 0").await;
        assert!(!used.contains(&next));
    }
}

#[tokio::test]
async fn shims_that_serve_nothing_go_with_their_spawner() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        let (start, process) = bench.run(sh("sleep 1000")).await;
        let spawner = parent(parent(process.pid));
        bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
        bench.end(start).await;
        bench.launcher.confirm(start.launch);
        bench.run_in_shim("exit 0").await;
        kill(spawner, libc::SIGKILL);
        gone(spawner).await;
    }
    let begun = Instant::now();
    while let Some(shim) = children().into_iter().find(|pid| name_of(*pid) == "taxiway-shim") {
        assert!(begun.elapsed().as_secs() < TRIES_SECONDS, "{shim} is left");
        // No event tells that it is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The children of this process.
fn children() -> Vec<i32> {
    let me = std::process::id();
    let tasks = std::fs::read_dir(format!("/proc/{me}/task")).expect("/proc").flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}
