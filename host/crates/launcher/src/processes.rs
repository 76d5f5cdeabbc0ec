//! Finding processes in `/proc`, and ending them so that none gets away.
//!
//! A pid alone names nothing: it may be used again at any moment. A process is known by pid *and* start time, and a signal goes
//! through a pidfd whose start time was compared after it was opened.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// How often one pass looks again for processes that were forked while it stopped the others. A fork bomb needs a handful; a
/// process that is never caught must not keep the pass from killing those that were.
const LOOKS_MAX: usize = 64;

/// How long a process may survive SIGKILL before it is reported, in nanoseconds (DESIGN §5, step 6).
pub(crate) const UNKILLABLE_NS: u64 = 60_000_000_000;

/// More than `/proc/PID/stat` ever has: 52 fields, of which a number has 20 digits at most and the name 64 bytes.
const STAT_BYTES: usize = 2048;

/// What `/proc/PID/stat` says of a process (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) threads: u32,
    pub(crate) start_time: u64,
}

impl Stat {
    /// Whether it has not ended. One whose first thread has is shown as a zombie, although others may go on.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X') || self.threads > 1
    }
}

/// Reads `/proc/PID/stat`; none when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let mut text = [0; STAT_BYTES];
    // The kernel makes the whole line at the first read.
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = loop {
        match file.read(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read.ok()?,
        }
    };
    let text = &text[..length];
    // The name in parentheses may hold anything, parentheses and newlines included: the last one ends it.
    let after_name = text.iter().rposition(|byte| *byte == b')')? + 2;
    let rest = std::str::from_utf8(text.get(after_name..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Fields 7 to 19 lie between the session (6) and the number of threads (20), one before the start time (22).
    let threads = fields.nth(13)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, parent, group, session, threads, start_time })
}

/// Every process of the machine that can be seen.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// The children of all threads of a process, or none when it is gone.
pub(crate) fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("children");
        match fs::read_to_string(&path) {
            Ok(text) => found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // A thread may end while it is looked at; a kernel without CONFIG_PROC_CHILDREN has the file for none.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(|task| task.exists()) =>
            {
                return Err(error);
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

/// All descendants of `root`, without those in `except` and without what is below them.
pub(crate) fn descendants(root: i32, except: &HashSet<i32>) -> Vec<i32> {
    if children(root).is_err() {
        return descendants_by_scan(root, except);
    }
    let mut found = Vec::new();
    let mut known: HashSet<i32> = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in children(parent).unwrap_or_default() {
            if !except.contains(&child) && known.insert(child) {
                found.push(child);
                next.push(child);
            }
        }
    }
    found
}

/// The same for a kernel that does not list children: by the parents of every process there is.
fn descendants_by_scan(root: i32, except: &HashSet<i32>) -> Vec<i32> {
    let mut by_parent: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all().unwrap_or_default() {
        if let Some(stat) = stat(pid) {
            by_parent.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in by_parent.remove(&parent).unwrap_or_default() {
            if !except.contains(&child) {
                found.push(child);
                next.push(child);
            }
        }
    }
    found
}

/// A handle that keeps meaning the same process when its pid is used again.
struct Handle {
    start_time: u64,
    fd: OwnedFd,
}

impl Handle {
    /// Opens a process that is alive; none when it is gone, a zombie, or not the one with this start time. An error is no proof of
    /// either: too many files are open, say.
    fn open(pid: i32, start_time: Option<u64>) -> io::Result<Option<Self>> {
        let fd = match pidfd_open(pid) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = stat(pid);
        // The stat that was read is that of the pidfd's process only if this one has not been reaped in between.
        if send_signal(fd.as_fd(), 0).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH)) {
            return Ok(None);
        }
        let Some(stat) = found else { return Err(io::Error::other(format!("cannot read /proc/{pid}/stat"))) };
        let is_the_same = start_time.is_none_or(|expected| expected == stat.start_time);
        Ok((stat.lives() && is_the_same).then_some(Self { start_time: stat.start_time, fd }))
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        send_signal(self.fd.as_fd(), signal)
    }
}

/// A process of this boot that is known by its pid and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
}

impl Identity {
    /// The process that has this pid now; none when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let start_time = stat(pid).filter(|_| pid > 0)?.start_time;
        Some(Self { pid, start_time })
    }

    /// Sends it a signal; false when it is gone, whoever has its pid now.
    pub(crate) fn signal(self, signal: i32) -> io::Result<bool> {
        match Handle::open(self.pid, Some(self.start_time))? {
            Some(handle) => handle.signal(signal).map(|()| true),
            None => Ok(false),
        }
    }
}

/// Sends a signal to the process of a pidfd (pidfd_send_signal(2)).
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open, a null siginfo asks for the default, and the flags are zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A pidfd (pidfd_open(2)): readable when the process has ended.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends a set of processes that may fork while it is being ended: stops all it can find until a look finds no new one, then
/// kills them. What a caught process had forked in between is found by the next pass.
#[derive(Default)]
pub(crate) struct Ending {
    /// Every process that was killed, for the count.
    killed: HashSet<(i32, u64)>,
    /// Why a process could not be looked at, if so.
    failed: Option<io::Error>,
}

impl Ending {
    /// How many processes were killed so far.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.killed.len()).unwrap_or(u32::MAX)
    }

    /// Why what was found since this was last asked cannot be relied on, if so.
    pub(crate) fn failed(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Counts processes that are about to be killed otherwise.
    pub(crate) fn note(&mut self, pids: &[i32]) {
        self.killed.extend(pids.iter().filter_map(|pid| Some((*pid, stat(*pid)?.start_time))));
    }

    /// One pass over what `look` finds. Returns all that were found alive, also those that an earlier pass has killed and that
    /// have not gone yet. No descriptor is kept per process: a fork bomb has more processes than a program may have of those.
    pub(crate) fn pass(&mut self, mut look: impl FnMut() -> Vec<i32>) -> Vec<(i32, u64)> {
        let mut caught: HashMap<i32, u64> = HashMap::new();
        for _ in 0..LOOKS_MAX {
            let mut new = 0;
            for pid in look() {
                if caught.contains_key(&pid) {
                    continue;
                }
                let Some(handle) = self.open(pid, None) else { continue };
                // What may not be signalled (a set-user-id program) cannot be ended: it counts as found, and as unkillable.
                let _ = handle.signal(libc::SIGSTOP);
                caught.insert(pid, handle.start_time);
                new += 1;
            }
            if new == 0 {
                break;
            }
        }
        for (pid, start_time) in &caught {
            if self.open(*pid, Some(*start_time)).is_some_and(|handle| handle.signal(libc::SIGKILL).is_ok()) {
                self.killed.insert((*pid, *start_time));
            }
        }
        caught.into_iter().collect()
    }

    fn open(&mut self, pid: i32, start_time: Option<u64>) -> Option<Handle> {
        Handle::open(pid, start_time).unwrap_or_else(|error| {
            self.failed = Some(error);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_pid_and_start_time() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        let stat = stat(me).expect("this process runs");
        let is_found = |start_time| Handle::open(me, Some(start_time)).expect("it can be looked at").is_some();
        assert!(is_found(stat.start_time));
        assert!(!is_found(stat.start_time + 1), "another process under the same pid");
    }

    #[test]
    fn both_ways_of_listing_descendants_agree() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let me = i32::try_from(std::process::id()).expect("a pid");
        assert!(descendants(me, &HashSet::new()).contains(&pid));
        assert!(descendants_by_scan(me, &HashSet::new()).contains(&pid));
        assert!(!descendants(me, &HashSet::from([pid])).contains(&pid));
        child.kill().expect("it was running");
        child.wait().expect("it was a child");
    }
}
