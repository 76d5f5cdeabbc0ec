//! The spawner: a small process that lives beside the host and forks shims.
//!
//! Starting a shim costs a fork of something small and single-threaded, not an exec, nor a copy of the host's address space. Even
//! that is a good part of what a job costs that is over at once: a shim of such a job, of which nothing is left, waits a moment for
//! another launch, and has given back everything of the one before by then but some memory.
//!
//! Requests come one at a time, each with the launch's control socket and directory; the spawner closes both before it takes the
//! next, so that no shim ever holds another launch's socket and the end of one always means what it says.
//!
//! The spawner is also the subreaper above its shims. When one dies, the processes that it leaves behind become the spawner's
//! children; every child that is no shim is such an orphan, so no guess is needed to find them. It ends them, and only then
//! reports the shim as gone. It outlives its host, or its replacement by another spawner, for as long as it has shims.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use taxiway_job::LaunchId;

use crate::assignment::{self, Assignment, Heard, Home};
use crate::clock::boottime_ns;
use crate::processes::{self, Ending, UNKILLABLE_NS};
use crate::wire::{SPAWNER_ARGUMENT, SPAWNER_NAME, SpawnerReport, encode};

/// How many shims wait for another launch at most: those of the job that has just ended and of the five that are armed behind it in a
/// line of jobs that are over at once.
const FREE_MOST: usize = 6;

/// How long one waits: much longer than from one short job to the next.
const FREE_NS: u64 = 20_000_000;

/// Becomes the spawner when the program was called as one; to be called before anything else in `main`, since shims are copies
/// of the process as it is here.
#[must_use]
pub fn dispatch_spawner(args: &[OsString]) -> Option<ExitCode> {
    if args.len() != 2 || args[1] != SPAWNER_ARGUMENT {
        return None;
    }
    Some(match Spawner::set_up() {
        Ok(spawner) => spawner.attend(),
        Err(error) => {
            eprintln!("{SPAWNER_ARGUMENT} is started by the service itself: {error}");
            ExitCode::FAILURE
        }
    })
}

struct Spawner {
    host: OwnedFd,
    /// False once the host has gone, or asks another spawner. It may still hear what becomes of the shims that there are.
    is_asked: bool,
    signals: OwnedFd,
    shims: HashMap<i32, Shim>,
    /// Launches whose shims are gone and whose orphans may not be.
    lost: Vec<Lost>,
    ending: Ending,
}

/// A shim, by its pid, until it was waited for.
struct Shim {
    serves: Serves,
    /// The way to it; none once it will get no other launch.
    home: Option<OwnedFd>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    Launch(LaunchId),
    /// Nothing, since then.
    Nothing {
        since: u64,
    },
}

impl Shim {
    /// Takes in what it has said.
    fn hear(&mut self) {
        let Some(home) = &self.home else { return };
        match assignment::hear(home) {
            Heard::Nothing => {}
            Heard::IsFree => self.serves = Serves::Nothing { since: boottime_ns() },
            Heard::Closed => self.home = None,
        }
    }

    /// Since when it waits for another launch, if it does.
    fn free_since(&self) -> Option<u64> {
        match self.serves {
            Serves::Nothing { since } if self.home.is_some() => Some(since),
            _ => None,
        }
    }
}

struct Lost {
    launch: LaunchId,
    reason: String,
    /// When to report orphans that survive SIGKILL; none once that was done.
    report_at: Option<u64>,
}

impl Spawner {
    fn set_up() -> io::Result<Self> {
        let host = take_standard_input()?;
        // The terminal of a service in the foreground must not interrupt the spawner with it.
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_name(SPAWNER_NAME)?;
        ignore_nothing();
        Ok(Self {
            host,
            is_asked: true,
            signals: child_signals()?,
            shims: HashMap::new(),
            lost: Vec::new(),
            ending: Ending::default(),
        })
    }

    fn attend(mut self) -> ExitCode {
        loop {
            let (host_ready, signals_ready) = {
                let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
                if self.is_asked {
                    fds.push(PollFd::new(self.host.as_fd(), PollFlags::POLLIN));
                } else if self.shims.is_empty() && self.lost.is_empty() {
                    return ExitCode::SUCCESS;
                }
                let homes = self.shims.values().filter_map(|shim| shim.home.as_ref());
                fds.extend(homes.map(|home| PollFd::new(home.as_fd(), PollFlags::POLLIN)));
                if poll(&mut fds, self.timeout()).is_err() {
                    continue;
                }
                let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
                (self.is_asked && fds.get(1).is_some_and(ready), ready(&fds[0]))
            };
            // Before a request, which one that has become free may serve.
            self.shims.values_mut().for_each(Shim::hear);
            if signals_ready {
                self.reap();
            }
            self.report_survivors();
            if host_ready {
                self.take_request();
            }
            self.dismiss();
        }
    }

    /// Gives the launch that the host asks a shim for to one that is free, or forks one.
    fn take_request(&mut self) {
        // One that speaks another language is none.
        let Ok(Some(asked)) = Assignment::receive(self.host.as_raw_fd()) else {
            self.is_asked = false;
            return;
        };
        while let Some(shim) = self.last_free() {
            // One that has gone meanwhile takes nothing.
            if shim.home.as_ref().is_some_and(|home| asked.send(home.as_raw_fd()).is_ok()) {
                shim.serves = Serves::Launch(asked.launch);
                return;
            }
            shim.home = None;
        }
        let launch = asked.launch;
        if let Err(error) = self.fork(asked) {
            self.report(&SpawnerReport::Gone { launch, reason: format!("cannot fork a shim: {error}") });
        }
    }

    fn fork(&mut self, first: Assignment) -> io::Result<()> {
        let (home, ours) = Home::new()?;
        // SAFETY: this process has one thread, so the child may do whatever it likes.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: both belong to this process alone and are not used again.
                unsafe {
                    libc::close(self.host.as_raw_fd());
                    libc::close(self.signals.as_raw_fd());
                }
                // The ways to other shims.
                self.shims.clear();
                drop(ours);
                crate::shim::run(first, &home)
            }
            pid if pid > 0 => {
                self.shims.insert(pid, Shim { serves: Serves::Launch(first.launch), home: Some(ours) });
                Ok(())
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The shim that became free last: most of what it needs is in the processor's caches still.
    fn last_free(&mut self) -> Option<&mut Shim> {
        self.shims.values_mut().filter(|shim| shim.free_since().is_some()).max_by_key(|shim| shim.free_since())
    }

    /// Lets those go that have waited for another launch for long enough, are too many, or wait for a host that is gone.
    fn dismiss(&mut self) {
        let now = boottime_ns();
        let mut free: Vec<(u64, &mut Shim)> =
            self.shims.values_mut().filter_map(|shim| Some((shim.free_since()?, shim))).collect();
        free.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        for (at, (since, shim)) in free.into_iter().enumerate() {
            if !self.is_asked || at >= FREE_MOST || since + FREE_NS <= now {
                // It waits for nothing else than this socket.
                shim.home = None;
            }
        }
    }

    /// Waits for every child that has ended, and ends what shims have left behind.
    fn reap(&mut self) {
        let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer has the size of one siginfo, which is what a signalfd gives at least.
        unsafe { libc::read(self.signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for writes.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            let Some(mut shim) = self.shims.remove(&pid) else { continue };
            // It may have become free in its last moment.
            shim.hear();
            let Serves::Launch(launch) = shim.serves else { continue };
            // A shim leaves with status 0 only when it has no child.
            if !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0) {
                let reason = if libc::WIFSIGNALED(status) {
                    format!("the shim (pid {pid}) was ended by signal {}", libc::WTERMSIG(status))
                } else {
                    format!("the shim (pid {pid}) gave up with status {}", libc::WEXITSTATUS(status))
                };
                let report_at = Some(boottime_ns() + UNKILLABLE_NS);
                self.lost.push(Lost { launch, reason, report_at });
            }
        }
        if self.lost.is_empty() {
            return;
        }
        // SAFETY: getpid has no precondition.
        let me = unsafe { libc::getpid() };
        let shims: HashSet<i32> = self.shims.keys().copied().collect();
        if self.ending.pass(|| processes::descendants(me, &shims)).is_empty() {
            for Lost { launch, reason, .. } in mem::take(&mut self.lost) {
                self.report(&SpawnerReport::Gone { launch, reason });
            }
        }
    }

    /// Until when to wait: until orphans have survived SIGKILL, or shims have waited for a launch, for too long.
    fn timeout(&self) -> PollTimeout {
        let lost = self.lost.iter().filter_map(|lost| lost.report_at);
        let free = self.shims.values().filter_map(Shim::free_since).map(|since| since + FREE_NS);
        let next = lost.chain(free).min();
        next.map_or(PollTimeout::NONE, |at| {
            let milliseconds = at.saturating_sub(boottime_ns()).div_ceil(1_000_000);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        })
    }

    fn report_survivors(&mut self) {
        let now = boottime_ns();
        let late = self.lost.iter_mut().filter(|lost| lost.report_at.is_some_and(|at| at <= now));
        let late: Vec<LaunchId> = late
            .map(|lost| {
                lost.report_at = None;
                lost.launch
            })
            .collect();
        for launch in late {
            // SAFETY: getpid has no precondition.
            let me = unsafe { libc::getpid() };
            let shims: HashSet<i32> = self.shims.keys().copied().collect();
            self.report(&SpawnerReport::Unkillable { launch, pids: processes::descendants(me, &shims) });
        }
    }

    fn report(&self, report: &SpawnerReport) {
        let message = encode(report);
        // SAFETY: the message is valid for reads of its whole length. A host that is gone needs no report.
        unsafe { libc::send(self.host.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
    }
}

/// Moves the host's socket away from descriptor 0 and fills 0, 1 and 2 with /dev/null: shims live longer than the service, and
/// must not hold its terminal or the pipe that somebody reads its messages from.
fn take_standard_input() -> io::Result<OwnedFd> {
    // SAFETY: descriptor 0 is duplicated, not taken; the new one is known to nobody else.
    let host = unsafe {
        let fd = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    nix::sys::socket::getsockopt(&host, nix::sys::socket::sockopt::SockType)?;
    // Whoever started the service may have left files open in it; a job gets none of them.
    // SAFETY: this process has just begun: it has opened nothing but `host`, which is between the two ranges. A kernel before
    // 5.9 does not know the call and closes nothing.
    unsafe {
        let host = host.as_raw_fd().unsigned_abs();
        libc::syscall(libc::SYS_close_range, 3_u32, host.saturating_sub(1), 0_u32);
        libc::syscall(libc::SYS_close_range, host + 1, u32::MAX, 0_u32);
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(host)
}

/// Gives every signal its default action. A job inherits those that are ignored: the Rust runtime of the program ignores SIGPIPE,
/// nohup(1) SIGHUP.
fn ignore_nothing() {
    // SAFETY: the zeroed sigaction is valid: the default action, an empty mask, no flags. Of numbers that are no signal or may not
    // be changed the call says so, and nothing happens.
    unsafe {
        let action: libc::sigaction = mem::zeroed();
        for signal in 1..=libc::SIGRTMAX() {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Blocks SIGCHLD and makes a descriptor of it.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use, -1 asks for a new descriptor, which nobody else knows.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}
