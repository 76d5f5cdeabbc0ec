//! The gap between the end of one job's process and the exec of the next, without queue and store: what the launcher alone costs.
//!
//! `handover [JOBS]`, in a directory of its own under the temporary directory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use taxiway_job::{JobId, LaunchId, ProcessSpec};
use taxiway_launcher::{Event, LaunchPlan, Launcher, LocalLauncher, Options};
use tokio::sync::mpsc;

/// How many launches are ready ahead of the one that runs.
const AHEAD: usize = 2;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(status) = taxiway_launcher::dispatch_spawner(&args) {
        return status;
    }
    let jobs = args.get(1).and_then(|jobs| jobs.to_str()?.parse().ok()).unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut gaps = runtime.block_on(run(jobs));
    gaps.sort_by(|a, b| a[0].total_cmp(&b[0]));
    println!("{} hand-overs; milliseconds: gap = end to told, told to go, go to exec", gaps.len());
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let [gap, told, asked, executed] = gaps[(gaps.len() as f64 * share) as usize];
        println!("{name} {gap:.3} = {told:.3} + {asked:.3} + {executed:.3}");
    }
    ExitCode::SUCCESS
}

async fn run(jobs: usize) -> Vec<[f64; 4]> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (sender, mut events) = mpsc::channel(64);
    let program = std::env::current_exe().expect("this program");
    let options = Options::new(directory.path().to_owned(), program, 1 << 20);
    let launcher = LocalLauncher::start(options, sender).expect("a launcher");
    let prepare = || {
        launcher.prepare(LaunchPlan {
            job: JobId::new(),
            launch: LaunchId::random(),
            attempt: 1,
            command: vec!["/bin/true".to_owned()],
            external_id: None,
            cwd: None,
            env: Vec::new(),
            hide_gpus: false,
            config: None,
            time_limit: None,
            grace: Duration::from_secs(30),
            process: ProcessSpec::default(),
        });
    };
    let mut to_prepare = jobs;
    for _ in 0..AHEAD.min(jobs) {
        prepare();
        to_prepare -= 1;
    }
    let mut ready: VecDeque<LaunchId> = VecDeque::new();
    let mut running = false;
    let mut ended = None;
    let mut gaps = Vec::new();
    let mut left = jobs;
    while left > 0 {
        match events.recv().await.expect("the launcher lives") {
            Event::Prepared { launch } => launcher.arm(launch),
            Event::Ready { launch } => ready.push_back(launch),
            Event::Started { process, .. } => {
                if let Some((at, told)) = ended.take() {
                    let milliseconds = |from: u64, to: u64| (to as f64 - from as f64) / 1e6;
                    gaps.push([
                        milliseconds(at, process.at.monotonic_ns),
                        milliseconds(at, told),
                        milliseconds(told, process.go_at.monotonic_ns),
                        milliseconds(process.go_at.monotonic_ns, process.at.monotonic_ns),
                    ]);
                }
                if to_prepare > 0 {
                    to_prepare -= 1;
                    prepare();
                }
            }
            Event::Ended { launch, record } => {
                ended = Some((record.ended.monotonic_ns, taxiway_launcher::Instant::now().monotonic_ns));
                running = false;
                left -= 1;
                if let Some(next) = ready.pop_front() {
                    running = launcher.go(next, &[]).is_ok();
                }
                launcher.confirm(launch);
            }
            _ => {}
        }
        if !running && let Some(next) = ready.pop_front() {
            running = launcher.go(next, &[]).is_ok();
        }
    }
    gaps
}
