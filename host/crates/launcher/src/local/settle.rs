//! What became of a launch whose shim is gone, found under its lock (DESIGN §5, step 4), and the search for its processes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use taxiway_job::LaunchId;

use super::orphans::{Orphans, wait_gone};
use crate::cgroup::{Delegated, Group};
use crate::launch::Settlement;
use crate::lock::{self, Lock};
use crate::log;
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
    orphans: Orphans,
    unkillable: &dyn Fn(Vec<i32>),
) -> io::Result<Settled> {
    let lock =
        match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join(file::LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whoever removed the directory took the evidence with it.
                end_processes(launch, group_of(directory, launch, groups).as_ref(), orphans, unkillable)?;
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
        end_processes(launch, group.as_ref(), orphans, unkillable)?;
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
    match log::open(&directory.join(file::EXIT)) {
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

/// Ends every process that carries the launch's id in its environment or has come to this one, and all that are their descendants
/// or in their sessions, until two looks in a row find none (DESIGN §5, steps 5 and 6). A look that fails is an error: it is no
/// proof that there is none.
fn end_processes(
    launch: LaunchId,
    group: Option<&Group>,
    orphans: Orphans,
    unkillable: &dyn Fn(Vec<i32>),
) -> io::Result<()> {
    let mut ending = Ending::default();
    let mut quiet = 0;
    while quiet < 2 {
        let mut failed = None;
        let found = ending.pass(|| {
            find(launch, group, orphans).unwrap_or_else(|error| {
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
    let noted = log::open(&directory.join(file::GROUP)).ok().and_then(|note| {
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
fn find(launch: LaunchId, group: Option<&Group>, orphans: Orphans) -> io::Result<Vec<i32>> {
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
    let stats: Vec<_> = all.iter().filter_map(|pid| processes::stat(*pid).map(|stat| (*pid, stat))).collect();
    found.extend(orphans.among(&stats));
    if found.is_empty() {
        return Ok(Vec::new());
    }
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
