//! A host that can be killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::{Bench, PROGRAM, Start, sh};

/// A host in a process of its own that has taken a launch to a phase, and what it printed then.
pub struct Host {
    child: Child,
    line: String,
}

impl Host {
    pub fn start(bench: &Bench, start: Start, phase: &str, script: &str) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg("host")
            .arg(bench.jobs_dir())
            .args([start.job.to_string(), start.launch.to_string(), phase.to_owned()])
            .args(sh(script))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the host starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it reaches the phase");
        Self { child, line: line.trim().to_owned() }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was a child");
    }

    pub fn job_pid(&self) -> i32 {
        self.line.parse().expect("the pid of the job")
    }
}

/// A script that waits until it is let go, and a function that lets it.
pub fn gated(bench: &Bench, then: &str) -> (String, impl Fn() + use<>) {
    let gate = bench.directory.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    (format!("read line < {}; {then}", gate.display()), move || {
        std::fs::write(&gate, "go\n").expect("the job reads");
    })
}
