//! From `go` to the running command.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::linkat;

use super::state::{Running, Shim, State, Stay};
use super::{Directories, GAVE_UP, failed, open};
use crate::clock::Instant;
use crate::launch::Started;
use crate::processes;
use crate::record::{ExitRecord, LaunchError, Status};
use crate::wire::{Report, file};

/// How long after the exec the mark `started` is made durable. A job that is over and confirmed before needs no mark, and the
/// disk is left to the store in the moment in which it commits this start.
pub(super) const MARK_NS: u64 = 10_000_000;

/// How long after the exec the host is told of it: a job that is over sooner is told of once, and no other process wakes up in the
/// moment in which the command starts.
const TELL_NS: u64 = 1_000_000;

impl Shim {
    /// Leaves the mark, forks and executes. Once the mark is there this launch never starts anything again.
    pub(super) fn go(&mut self, gpu_uuids: &[String]) -> Stay {
        let go_at = Instant::now();
        // A second `go` starts nothing.
        if !matches!(self.state, State::Armed(_)) {
            return Stay::Yes;
        }
        let State::Armed(command) = mem::replace(&mut self.state, State::Changing) else { return Stay::Yes };
        let mark = match self.leave_mark() {
            Ok(mark) => mark,
            Err(error) => {
                self.tell(&Report::Failed { message: failed("create", file::STARTED, error) });
                return Stay::No(GAVE_UP);
            }
        };
        match command.start(gpu_uuids, self.group.as_ref()) {
            Ok(pid) => {
                let at = Instant::now();
                // The process is a zombie at worst: it was not waited for, so its stat can be read.
                let start_time = processes::stat(pid).map_or(0, |stat| stat.start_time);
                let process = Started { pid, start_time, at, go_at, gpu_uuids: gpu_uuids.to_vec() };
                let mark = Some((at.boottime_ns + MARK_NS, mark));
                let tell_at = Some(at.boottime_ns + TELL_NS);
                self.state = State::Running(Running { process, stopping: None, warned_of: None, mark, tell_at });
            }
            Err(error) => self.not_executed(error),
        }
        Stay::Yes
    }

    /// Gives the exit record the second name `started`, and returns what has to be synced with the directory for the mark to be
    /// durable. A name costs the filesystem less than a file: an inode may take a millisecond to be found on a disk on which much
    /// was deleted lately, and this lies between two jobs.
    fn leave_mark(&self) -> io::Result<File> {
        match linkat(&self.directory, file::EXIT, &self.directory, file::STARTED, AtFlags::empty()) {
            Ok(()) => self.record.try_clone(),
            // What filesystems without hard links say (link(2)), or at the end of their number.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
                open(&self.directory, file::STARTED, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn not_executed(&mut self, error: LaunchError) {
        let record = ExitRecord {
            launch: self.launch,
            status: Status::LaunchError(error),
            process: None,
            ended: Instant::now(),
            stopped_by: None,
            time_limit_ms: None,
            clean: None,
        };
        let (second_at, written) = self.write_first(&record);
        self.end(record, second_at, written, 0, true);
    }
}

/// Makes the mark durable without keeping the shim from its duties: on a busy disk that takes a while, and a job may end in it.
pub(super) fn make_durable(mark: File, directories: Arc<Directories>) {
    // Without a thread it is done here and now.
    let work = move || {
        // The mark is the name's being there. A power loss is the only thing that it guards against, and a disk that cannot
        // write cannot be helped.
        let _ = mark.sync_all().and_then(|()| directories.sync());
    };
    drop(std::thread::Builder::new().stack_size(64 << 10).spawn(work));
}
