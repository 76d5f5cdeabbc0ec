//! What became of a launch whose shim is gone, found under its lock (DESIGN §5, step 4), and the search for its processes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use taxiway_job::LaunchId;

use crate::cgroup::{Delegated, Group};
use crate::launch::Settlement;
use crate::lock::{self, Lock};
use crate::log::open_regular;
use crate::processes::{self, Ending, UNKILLABLE_NS, pidfd_open};
use crate::record::ExitRecord;
use crate::rules::{Known, nothing_ran};
use crate::wire::file;

/// More than this is no exit record: a few hundred bytes, and the argv of a command that could not be executed.
const RECORD_MAX_BYTES: u64 = 16 << 20;
/// The longest path there is (PATH_MAX).
const PATH_MAX_BYTES: u64 = 4096;

/// Whether the lock could be had.
pub(super) enum Settled {
    /// It was, and this is what the evidence says. No process of the launch is left.
    Yes(Settlement),
    /// A shim has it; 0 when the kernel did not name it.
    LockHeldBy(i32),
}

/// Takes the lock and settles the launch. Blocks until every process that was found is gone; those that survive SIGKILL for too
/// long are reported by `unkillable`, and waited for all the same.
pub(super) fn settle(
    directory: &Path,
    launch: LaunchId,
    known: Known,
    groups: Option<&Delegated>,
    unkillable: &dyn Fn(Vec<i32>),
) -> io::Result<Settled> {
    let lock =
        match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join(file::LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whoever removed the directory took the evidence with it.
                end_processes(launch, group_of(directory, launch, groups).as_ref(), unkillable)?;
                let evidence = format!("the launch's directory {} is missing", directory.display());
                return Ok(Settled::Yes(Settlement::Lost { evidence }));
            }
            Err(error) => return Err(error),
        };
    if let Lock::HeldBy(holder) = lock::take(&lock)? {
        return Ok(Settled::LockHeldBy(holder));
    }
    // Only now is the record final: a shim may have written it after somebody else had looked.
    let record = read_record(directory)?.filter(|record| record.launch == launch);
    let group = group_of(directory, launch, groups);
    if record.as_ref().is_none_or(|record| record.clean.is_none()) {
        if let Some(group) = &group {
            group.kill();
        }
        end_processes(launch, group.as_ref(), unkillable)?;
    }
    if let Some(group) = group {
        group.remove();
    }
    let started = directory.join(file::STARTED).try_exists()?;
    drop::<File>(lock);
    Ok(Settled::Yes(conclude(record, started, known)))
}

/// The rule of DESIGN §5, step 4.
fn conclude(record: Option<ExitRecord>, started: bool, known: Known) -> Settlement {
    if let Some(record) = record {
        return Settlement::Record(Box::new(record));
    }
    if nothing_ran(started, known) {
        return Settlement::NotStarted { reason: None };
    }
    let evidence = match (known.same_boot, started) {
        (false, _) => "the machine was restarted while the job ran, and no exit record was left".to_owned(),
        (true, true) => {
            "the job's shim is gone, its mark says that the command was started, and no exit record was left".to_owned()
        }
        (true, false) => {
            "the job's shim is gone, the job had been seen running, and no exit record was left".to_owned()
        }
    };
    Settlement::Lost { evidence }
}

fn read_record(directory: &Path) -> io::Result<Option<ExitRecord>> {
    // A job may have put something else in its place: then there is no record.
    match open_regular(&directory.join(file::EXIT), libc::O_NOFOLLOW) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(RECORD_MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(ExitRecord::parse(&bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(libc::ELOOP) => {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends every process that carries the launch's id in its environment, and all that are their descendants or in their sessions,
/// until two looks in a row find none (DESIGN §5, step 6). A look that fails is an error: it is no proof that there is none.
fn end_processes(launch: LaunchId, group: Option<&Group>, unkillable: &dyn Fn(Vec<i32>)) -> io::Result<()> {
    let mut ending = Ending::default();
    let mut quiet = 0;
    while quiet < 2 {
        let mut failed = None;
        let found = ending.pass(|| {
            find(launch, group).unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            })
        });
        if let Some(error) = failed.or_else(|| ending.failed()) {
            return Err(error);
        }
        if found.is_empty() {
            quiet += 1;
            continue;
        }
        quiet = 0;
        let deadline = Instant::now() + Duration::from_nanos(UNKILLABLE_NS);
        let mut survivors: Vec<i32> = Vec::new();
        for (pid, start_time) in &found {
            if !wait_gone(*pid, *start_time, Some(deadline))? {
                survivors.push(*pid);
            }
        }
        if !survivors.is_empty() {
            unkillable(survivors);
            for (pid, start_time) in found {
                wait_gone(pid, start_time, None)?;
            }
        }
    }
    Ok(())
}

/// Waits until a killed process is gone; false when the deadline was first. A child of this process is waited for, so that it
/// does not stay as a zombie.
fn wait_gone(pid: i32, start_time: u64, deadline: Option<Instant>) -> io::Result<bool> {
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

/// Sends a signal to the shim that holds a launch's lock; nothing happens when that is another process by now. Not while this
/// process settles the launch: closing the file gives a lock of its own away.
pub(super) fn signal_holder(directory: &Path, pid: i32, signal: i32) -> io::Result<()> {
    let lock = File::options().write(true).open(directory.join(file::LOCK))?;
    let fd = pidfd_open(pid)?;
    // The lock goes with its holder: who has it now had it when the descriptor was made, so the two are one process.
    if lock::holder(&lock)? == Some(pid) {
        processes::send_signal(fd.as_fd(), signal)?;
    }
    Ok(())
}

/// The control group of a launch, if it is still there: where its shim has noted it, else where one would be made now. A job can
/// write to that note, so of the note only a group of this name counts.
fn group_of(directory: &Path, launch: LaunchId, groups: Option<&Delegated>) -> Option<Group> {
    let name = Group::name(launch);
    let noted = open_regular(&directory.join(file::GROUP), libc::O_NOFOLLOW).ok().and_then(|note| {
        let mut path = Vec::new();
        note.take(PATH_MAX_BYTES).read_to_end(&mut path).ok()?;
        Some(PathBuf::from(OsString::from_vec(path))).filter(|path| path.file_name() == Some(OsStr::new(&name)))
    });
    let usual = groups.map(|groups| groups.path().join(&name));
    noted.into_iter().chain(usual).find_map(|path| Group::open(path).ok())
}

/// Removes what a shim that was killed before it started anything has left outside its launch's directory.
pub(super) fn remove_group(directory: &Path, launch: LaunchId, groups: Option<&Delegated>) {
    if let Some(group) = group_of(directory, launch, groups) {
        group.remove();
    }
}

/// The processes of a launch that nobody is the parent of any more.
fn find(launch: LaunchId, group: Option<&Group>) -> io::Result<Vec<i32>> {
    let variable = format!("TAXIWAY_LAUNCH_ID={launch}").into_bytes();
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let all = processes::all()?;
    let mut found: HashSet<i32> = HashSet::new();
    for pid in all.iter().copied().filter(|pid| *pid != me) {
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(environ) if environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_slice()) => {
                found.insert(pid);
            }
            // Too many open files: whether this one is the launch's cannot be told.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                return Err(error);
            }
            // Another one's, or gone.
            Ok(_) | Err(_) => {}
        }
    }
    found.extend(group.map(Group::pids).unwrap_or_default());
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let stats: Vec<_> = all.iter().filter_map(|pid| processes::stat(*pid).map(|stat| (*pid, stat))).collect();
    let own_session = processes::stat(me).map(|stat| stat.session);
    loop {
        let sessions: HashSet<i32> = stats
            .iter()
            .filter(|(pid, stat)| found.contains(pid) && stat.session != 0 && Some(stat.session) != own_session)
            .map(|(_, stat)| stat.session)
            .collect();
        let before = found.len();
        for (pid, stat) in &stats {
            if *pid != me && *pid != 1 && (found.contains(&stat.parent) || sessions.contains(&stat.session)) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return Ok(found.into_iter().collect());
        }
    }
}

/// Waits until a process is gone, and takes its status if it is this process's child. For a shim whose spawner died.
pub(super) fn wait_for_shim(pid: i32) {
    // 0: it was never forked, as far as is known.
    if pid > 0
        && let Ok(fd) = pidfd_open(pid)
    {
        let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        reap(fd.as_raw_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::launch::StoredPhase;
    use crate::record::Status;

    #[test]
    fn a_record_wins_over_everything_else() {
        let record = ExitRecord {
            launch: LaunchId::random(),
            status: Status::Exited(3),
            process: None,
            ended: clock::Instant::now(),
            stopped_by: None,
            time_limit_ms: None,
            clean: None,
        };
        let known = Known { phase: StoredPhase::Armed, same_boot: false };
        assert!(matches!(conclude(Some(record.clone()), false, known), Settlement::Record(found) if *found == record));
    }
}
