//! The shim: one small process that owns the processes of one launch, their output, their time limit and their end.
//!
//! It is forked by the [spawner](crate::spawner), has no runtime and one thread, and waits in `poll(2)`. Everything that can be
//! prepared before `go` is: then it makes a name and forks, nothing else.

mod attend;
mod command;
mod connection;
mod end;
mod fork;
mod hosts;
mod output;
mod pages;
mod rehearsal;
mod start;
mod state;
mod stop;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use taxiway_job::LaunchId;

pub(crate) use self::command::DEFAULT_PATH;
use self::connection::Connection;
use self::state::Shim;
use crate::assignment::{Assignment, Home};
use crate::wire::{Report, Request, VERSION, file};

/// The shim's exit status when nothing of its launch is left; with any other the spawner looks for orphans.
const LEFT: i32 = 0;
/// The exit status when it could not be set up or must give up.
const GAVE_UP: i32 = 70;

/// Runs the shim of a launch in this process, which was just forked for it, and then of others that come. Never returns.
pub(crate) fn run(first: Assignment, home: &Home) -> ! {
    let mut next = Some((first, Process::Forked));
    let mut status = LEFT;
    while let Some((Assignment { launch, control, directory }, process)) = next.take() {
        let mut control = Connection::new(control);
        let end = match Shim::set_up(launch, &mut control, directory, process) {
            Ok(Some(shim)) => shim.attend(control),
            // The socket closed before there was a plan: the launch was disarmed, or its host is gone.
            Ok(None) => End::Leaves(LEFT),
            Err(message) => {
                control.send(&Report::Failed { message });
                End::Leaves(GAVE_UP)
            }
        };
        match end {
            End::IsFree => match home.next() {
                Ok(another) => next = another.map(|assignment| (assignment, Process::HasServed)),
                // The spawner may count on it for a launch, and has to say that this is not so.
                Err(_) => status = GAVE_UP,
            },
            End::Leaves(with) => status = with,
        }
    }
    // SAFETY: _exit takes any status and does not return. The atexit handlers belong to the spawner, not to this process.
    unsafe { libc::_exit(status) }
}

/// Where the process of a shim comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Process {
    /// It is a copy of the spawner.
    Forked,
    /// It is a shim already, whose launch is over.
    HasServed,
}

/// How a launch left the process of its shim.
enum End {
    /// As it was before: it can serve another.
    IsFree,
    /// It leaves with this status.
    Leaves(i32),
}

impl Shim {
    /// Becomes a session leader and subreaper if it is none, takes the lock, opens everything, and reads the plan.
    fn set_up(
        launch: LaunchId,
        control: &mut Connection,
        directory: OwnedFd,
        process: Process,
    ) -> Result<Option<Self>, String> {
        if process == Process::Forked {
            become_shim().map_err(|error| format!("cannot set up the shim's process: {error}"))?;
        }
        let lock =
            open(&directory, file::LOCK, OFlag::O_RDWR | OFlag::O_CREAT).map_err(|e| failed("open", file::LOCK, e))?;
        if !take_lock(&lock).map_err(|error| failed("lock", file::LOCK, error))? {
            return Err(format!("another process holds `{}`: the launch is being settled", file::LOCK));
        }
        let record = open(&directory, file::EXIT, OFlag::O_RDWR).map_err(|error| failed("open", file::EXIT, error))?;
        let log = open(&directory, file::LOG, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND)
            .map_err(|error| failed("open", file::LOG, error))?;
        let directories = Directories::open(&directory)
            .map(Arc::new)
            .map_err(|error| format!("cannot open the directories above the launch's: {error}"))?;
        let signals = signal_fd().map_err(|error| format!("cannot make a signalfd: {error}"))?;
        let timer = timer_fd().map_err(|error| format!("cannot make a timerfd: {error}"))?;

        let plan = loop {
            match control.next() {
                Some(Request::Plan(plan)) => break plan,
                Some(_) => {}
                None if control.wait() => {}
                None => return Ok(None),
            }
        };
        let mut shim = Self::armed(launch, directory, directories, lock, record, log, signals, timer, *plan)?;
        // SAFETY: getpid has no precondition.
        let shim_pid = unsafe { libc::getpid() };
        control.send(&Report::Ready { version: VERSION, shim_pid });
        if process == Process::Forked {
            shim.rehearse();
        }
        Ok(Some(shim))
    }
}

fn failed(verb: &str, name: &str, error: io::Error) -> String {
    format!("cannot {verb} `{name}` in the launch's directory: {error}")
}

/// Leaves everything of the spawner and of the service behind: session, signals, standard streams.
fn become_shim() -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let name: &CStr = c"taxiway-shim";
    nix::sys::prctl::set_name(name)?;
    // SAFETY: the zeroed sigset is initialised by sigfillset before use, and the zeroed sigaction is valid: the default action,
    // an empty mask. Neither is kept by the kernel.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        // SA_NOCLDSTOP: a job that is stopped and continued is of no interest.
        action.sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
        let mut every: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut every);
        // A shim is not asked to go by signals: when a whole service is stopped by one, it stays to record how its job ended.
        libc::sigprocmask(libc::SIG_SETMASK, &raw const every, std::ptr::null_mut());
    }
    Ok(())
}

/// Opens a file of the launch's directory.
fn open(directory: impl AsFd, name: &str, flags: OFlag) -> io::Result<File> {
    let fd = openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o600))?;
    Ok(File::from(fd))
}

/// Takes the record lock; false when somebody else holds it. The file must not be opened a second time: closing any
/// descriptor of it gives the lock away (fcntl_locking(2)).
fn take_lock(lock: &File) -> io::Result<bool> {
    match crate::lock::take(lock)? {
        crate::lock::Lock::Taken => Ok(true),
        crate::lock::Lock::HeldBy(_) => Ok(false),
    }
}

fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use, -1 asks for a new descriptor, which nobody else knows.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn timer_fd() -> io::Result<OwnedFd> {
    // SAFETY: two integers go in, a new descriptor that nobody else knows comes out.
    unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Writes at a position without moving it, all or an error.
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// The directories whose entries lead to the launch's files: the launch's own, the job's and the jobs'. They are opened when the
/// shim is set up: a job may move or close them meanwhile.
struct Directories([File; 3]);

impl Directories {
    fn open(own: &OwnedFd) -> io::Result<Self> {
        let [job, jobs] = ["..", "../.."].map(|path| open(own, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY));
        Ok(Self([File::from(own.try_clone()?), job?, jobs?]))
    }

    /// Makes the names durable.
    fn sync(&self) -> io::Result<()> {
        self.0.iter().try_for_each(File::sync_all)
    }
}
