//! What comes to this process, which is a subreaper, when a shim and the spawner above it have both died: what the job has left,
//! also what has cleared its environment and left its session. And waiting for processes that may be children of this one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::processes::{self, Identity, Stat, pidfd_open};
use crate::wire::{SPAWNER_ARGUMENT, SPAWNER_NAME};

/// Whether this process has no child yet and will get none but by what it starts itself. One that was executed by a program that
/// had children has theirs, and the first process of a container gets every orphan of it: there a child tells nothing.
#[must_use]
pub fn started_alone() -> bool {
    let me = own_pid();
    me != 1 && processes::children(me).is_ok_and(|children| children.is_empty())
}

fn own_pid() -> i32 {
    // SAFETY: getpid has no precondition.
    unsafe { libc::getpid() }
}

/// Where what a job has left may be, beside where it is found by its environment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orphans {
    /// Every child of this process that is none of its own making is of a job.
    pub(super) are_of_jobs: bool,
    /// The shim's spawner, if that is one of an earlier host. It ends them itself, unless it is stopped; nobody is told when.
    pub(super) spawner: Option<Identity>,
}

impl Orphans {
    /// Those that live, among all processes of the machine. The dead are waited for.
    ///
    /// A shim begins with a session of its own, which is left for another new one at most: what is in this process's session was
    /// started by itself. Spawners are known by their argument, and so are shims, which are forked of them and execute nothing.
    pub(super) fn among(self, all: &[(i32, Stat)]) -> Vec<i32> {
        let me = own_pid();
        let Some(own_session) = all.iter().find(|(pid, _)| *pid == me).map(|(_, stat)| stat.session) else {
            return Vec::new();
        };
        let spawner = self.spawner.filter(|spawner| Identity::of(spawner.pid) == Some(*spawner));
        let mut living = Vec::new();
        for (pid, stat) in all {
            let is_mine = stat.parent == me && stat.session != own_session;
            let is_of_a_job = is_mine && self.are_of_jobs || spawner.is_some_and(|spawner| stat.parent == spawner.pid);
            if is_mine && !stat.lives() {
                // An error means that it could not be waited for, and stays.
                let _ = wait_gone(*pid, stat.start_time, Some(Instant::now()));
            } else if is_of_a_job && stat.lives() && !is_spawner_or_shim(*pid) {
                living.push(*pid);
            }
        }
        living
    }
}

/// How long a child that is ending may take to: a shim whose socket has closed has nothing left to do.
pub(super) const ENDING: Duration = Duration::from_secs(1);

/// Waits for the children of this process that have come to it from a spawner that has died and that have ended or are just
/// ending: nobody else would.
pub(super) fn wait_for_the_dead() {
    let me = own_pid();
    let Some(own_session) = processes::stat(me).map(|stat| stat.session) else { return };
    for pid in processes::children(me).unwrap_or_default() {
        let Some(stat) = processes::stat(pid).filter(|stat| stat.session != own_session) else { continue };
        // A process that is ending has lost its arguments before it closes its files.
        if fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| arguments.is_empty()) {
            // An error means that it could not be waited for, and stays.
            let _ = wait_gone(pid, stat.start_time, Some(Instant::now() + ENDING));
        }
    }
}

/// The spawner that a shim is a child of; none when that has died.
pub(super) fn spawner_of(shim_pid: i32) -> Option<Identity> {
    let parent = processes::stat(shim_pid)?.parent;
    let name = fs::read(format!("/proc/{parent}/comm")).ok()?;
    (name.trim_ascii_end() == SPAWNER_NAME.to_bytes() && is_spawner_or_shim(parent)).then(|| Identity::of(parent))?
}

fn is_spawner_or_shim(pid: i32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(SPAWNER_ARGUMENT.as_bytes())
}

/// Waits until a killed process is gone; false when the deadline was first. A child of this process is waited for, so that it
/// does not stay as a zombie.
pub(super) fn wait_gone(pid: i32, start_time: u64, deadline: Option<Instant>) -> io::Result<bool> {
    let fd = match pidfd_open(pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(true),
        Err(error) => return Err(error),
    };
    if processes::stat(pid).is_none_or(|stat| stat.start_time != start_time) {
        return Ok(true);
    }
    // Rounded up, so that the deadline is over when the time is.
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    let gone = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) != Ok(0);
    if gone {
        reap(fd.as_raw_fd());
    }
    Ok(gone)
}

/// Waits for a process by its pidfd if it is a child of this one. Orphans come here when both their shim and the spawner died.
fn reap(pidfd: i32) {
    // SAFETY: a null siginfo is allowed; a pidfd that is no child of this process gives an error and nothing else happens.
    unsafe {
        libc::waitid(libc::P_PIDFD, pidfd.unsigned_abs(), std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG);
    }
}

/// Waits until a process is gone, for so long `at_most`, and takes its status if it is this process's child. For a shim whose spawner
/// died; none when it is not known.
pub(super) fn wait_for(process: Option<Identity>, at_most: Option<Duration>) {
    if let Some(Identity { pid, start_time }) = process {
        // An error means that it could not be waited for, and stays.
        let _ = wait_gone(pid, start_time, at_most.map(|at_most| Instant::now() + at_most));
    }
}
