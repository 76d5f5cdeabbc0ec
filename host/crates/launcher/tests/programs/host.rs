//! The program that the integration tests start: the spawner of their launchers, and a host that can be killed.
//!
//! `host JOBS_DIR JOB LAUNCH PHASE COMMAND…` takes one launch to a phase, prints a line, and then waits to be killed. The line is
//! the job's pid where it has one.
//!
//! `leaderless` is a job that ignores SIGTERM and whose first thread has ended.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use taxiway_job::ProcessSpec;
use taxiway_launcher::{Event, LaunchPlan, Launcher, LocalLauncher, Options};
use tokio::sync::mpsc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(status) = taxiway_launcher::dispatch_spawner(&args) {
        return status;
    }
    if args.get(1).is_some_and(|argument| argument == "leaderless") {
        leaderless();
    }
    let args: Vec<String> = args.into_iter().map(|arg| arg.into_string().expect("UTF-8")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(host(&args[2..]));
    ExitCode::SUCCESS
}

/// Ends the thread that it is called in, and not the process.
fn leaderless() -> ! {
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    std::thread::spawn(|| {
        // No event tells of it.
        while !std::fs::read_to_string("/proc/self/stat").expect("/proc").contains(") Z ") {
            std::thread::yield_now();
        }
        println!("up");
        loop {
            std::thread::park();
        }
    });
    loop {
        // SAFETY: nothing of this thread's is in use elsewhere. The call does not return.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

async fn host(args: &[String]) {
    let (jobs_dir, phase) = (&args[0], args[3].as_str());
    let launch = args[2].parse().expect("a launch id");
    let (sender, mut events) = mpsc::channel(16);
    let program = std::env::current_exe().expect("this program");
    let options = Options::new(jobs_dir.into(), program, 1 << 20);
    let launcher = LocalLauncher::start(options, sender).expect("a launcher");
    launcher.prepare(LaunchPlan {
        job: args[1].parse().expect("a job id"),
        launch,
        attempt: 1,
        command: args[4..].to_vec(),
        external_id: None,
        cwd: None,
        env: Vec::new(),
        hide_gpus: false,
        config: None,
        time_limit: None,
        grace: Duration::from_secs(30),
        process: ProcessSpec::default(),
    });
    while let Some(event) = events.recv().await {
        let reached = match event {
            Event::Prepared { .. } if phase == "prepared" => "prepared".to_owned(),
            Event::Prepared { .. } => {
                launcher.arm(launch);
                continue;
            }
            Event::Ready { .. } if phase == "armed" => "armed".to_owned(),
            Event::Ready { .. } => {
                launcher.go(launch, &[]).expect("it is ready");
                if phase != "going" {
                    continue;
                }
                "going".to_owned()
            }
            Event::Started { process, .. } if phase == "running" => process.pid.to_string(),
            Event::Ended { .. } if phase == "ended" => "ended".to_owned(),
            _ => continue,
        };
        println!("{reached}");
        std::io::stdout().flush().expect("somebody reads");
        std::future::pending::<()>().await;
    }
}
