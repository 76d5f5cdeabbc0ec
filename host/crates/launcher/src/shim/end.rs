//! From the end of the command's process to a record that is safe.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use taxiway_job::Usage;

use super::state::{Ended, Kill, Killing, Leftovers, Shim, State, Stopping};
use super::{Directories, write_at};
use crate::cgroup::Group;
use crate::clock::{Instant, boottime_ns};
use crate::processes::Ending;
use crate::record::{Clean, ExitRecord, Status};
use crate::wire::Report;

/// How long the host may take to confirm an end before the shim makes its record durable itself (DESIGN §5, step 3).
pub(super) const CONFIRM_NS: u64 = 50_000_000;
/// How often a record is tried again when the disk is full.
pub(super) const RETRY_NS: u64 = 1_000_000_000;

impl Shim {
    /// Waits for every child that has ended.
    pub(super) fn reap(&mut self) {
        let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer has the size of one siginfo, which is what a signalfd gives at least. One SIGCHLD may stand for
        // many children, so its content is of no use.
        unsafe { libc::read(self.signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
        loop {
            let mut status = 0;
            // SAFETY: a zeroed rusage is valid to be written to, and `status` is, too.
            let (pid, used) = unsafe {
                let mut used: libc::rusage = mem::zeroed();
                (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut used), used)
            };
            if pid > 0 {
                self.used.add(&used);
                self.reaped(pid, status);
                continue;
            }
            let none_left = pid < 0;
            match mem::replace(&mut self.state, State::Changing) {
                State::Leftovers(leftovers) if none_left => {
                    let count = leftovers.killing.ending.count();
                    self.end(leftovers.record, leftovers.second_at, leftovers.written, count, leftovers.start_told);
                }
                State::Leftovers(mut leftovers) => {
                    if !mem::replace(&mut leftovers.start_told, true)
                        && let Some(process) = leftovers.record.process.clone()
                    {
                        self.tell(&Report::Started(process));
                    }
                    leftovers.killing.pass(self.group.as_ref());
                    self.state = State::Leftovers(leftovers);
                }
                State::Running(mut running) => {
                    // What was killed had children, which came to this process.
                    if let Some(Stopping { kill: Kill::Sent(killing), .. }) = &mut running.stopping {
                        killing.pass(self.group.as_ref());
                    }
                    self.state = State::Running(running);
                }
                state => self.state = state,
            }
            return;
        }
    }

    fn reaped(&mut self, pid: i32, status: i32) {
        let is_the_command = matches!(&self.state, State::Running(running) if running.process.pid == pid);
        if !is_the_command {
            return;
        }
        let State::Running(running) = mem::replace(&mut self.state, State::Changing) else { return };
        let status = if libc::WIFSIGNALED(status) {
            Status::Signaled(libc::WTERMSIG(status))
        } else {
            Status::Exited(libc::WEXITSTATUS(status))
        };
        let stopped_by = running.stopping.as_ref().map(|stopping| stopping.by);
        let record = ExitRecord {
            launch: self.launch,
            status,
            process: Some(running.process),
            ended: Instant::now(),
            stopped_by,
            time_limit_ms: self.limits.time_limit_ms(stopped_by),
            clean: None,
        };
        let (second_at, written) = self.write_first(&record);
        // A process that SIGKILL has hit is no leftover, and the 60 seconds of those that survive it go on.
        let killing = match running.stopping {
            Some(Stopping { kill: Kill::Sent(killing), .. }) => Killing { ending: Ending::default(), ..killing },
            _ => Killing::new(boottime_ns().saturating_add(self.limits.unkillable_ns)),
        };
        let start_told = running.tell_at.is_none();
        self.state = State::Leftovers(Leftovers { record, second_at, written, killing, start_told });
    }

    pub(super) fn write_first(&self, record: &ExitRecord) -> (u64, bool) {
        let (bytes, second_at) = record.first_bytes();
        (second_at, write_at(&self.record, &bytes, 0).is_ok())
    }

    /// Every process is gone: completes log and record and tells the host, of the start too if it does not know of it.
    pub(super) fn end(
        &mut self,
        mut record: ExitRecord,
        second_at: u64,
        written: bool,
        leftovers: u32,
        start_told: bool,
    ) {
        self.output.copy_rest();
        let log_dropped_bytes = self.output.finish();
        let usage = Usage { wall_seconds: record.wall_seconds(), ..self.used.usage() };
        let oom_kills = self.group.as_ref().map_or(0, Group::oom_kills);
        record.clean = Some(Clean { leftovers, at: Instant::now(), usage, log_dropped_bytes, oom_kills });
        let mut ended =
            Ended { record, second_at, written, sync_at: boottime_ns() + CONFIRM_NS, untold: false, confirmed: false };
        ended.written = self.write_ended(&ended).is_ok();
        if self.host.is_none() {
            ended.sync_at = 0;
        }
        let started = ended.record.process.clone().filter(|_| !start_told).map(Report::Started);
        let reports = started.into_iter().chain([Report::Ended(Box::new(ended.record.clone()))]);
        if !self.tell_all(reports) {
            // A record with the longest command does not fit into the socket. Leaving with an error has the host read it.
            (ended.untold, ended.sync_at) = (true, 0);
        }
        self.state = State::Ended(ended);
    }

    /// Writes what of the record is missing in the file.
    fn write_ended(&self, ended: &Ended) -> io::Result<()> {
        if !ended.written {
            write_at(&self.record, &ended.record.first_bytes().0, 0)?;
        }
        let Some(clean) = &ended.record.clean else { return Ok(()) };
        write_at(&self.record, &ExitRecord::clean_bytes(clean), ended.second_at)
    }

    /// Makes the record durable.
    pub(super) fn save(record: &File, ended: &mut Ended, directories: &Directories) -> io::Result<()> {
        if !ended.written {
            write_at(record, &ended.record.first_bytes().0, 0)?;
            if let Some(clean) = &ended.record.clean {
                write_at(record, &ExitRecord::clean_bytes(clean), ended.second_at)?;
            }
            ended.written = true;
        }
        record.sync_all()?;
        directories.sync()
    }
}

/// What children that were waited for have used, and those that they had waited for (wait4(2)).
#[derive(Default)]
pub(super) struct Used {
    cpu_seconds: f64,
    peak_rss_bytes: u64,
}

impl Used {
    fn add(&mut self, used: &libc::rusage) {
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        self.cpu_seconds += seconds(used.ru_utime) + seconds(used.ru_stime);
        let peak = u64::try_from(used.ru_maxrss).unwrap_or(0).saturating_mul(1024);
        self.peak_rss_bytes = self.peak_rss_bytes.max(peak);
    }

    pub(super) fn usage(&self) -> Usage {
        let (cpu_seconds, peak_rss_bytes) = (Some(self.cpu_seconds), Some(self.peak_rss_bytes));
        Usage { cpu_seconds, peak_rss_bytes, ..Usage::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_add_up_and_the_largest_counts() {
        let child = |seconds, microseconds, kibibytes| {
            // SAFETY: integers only, for which zero is valid.
            let mut used: libc::rusage = unsafe { mem::zeroed() };
            used.ru_utime.tv_sec = seconds;
            used.ru_stime.tv_usec = microseconds;
            used.ru_maxrss = kibibytes;
            used
        };
        let mut used = Used::default();
        used.add(&child(2, 250_000, 3000));
        used.add(&child(1, 500_000, 2000));
        let usage = used.usage();
        assert_eq!((usage.cpu_seconds, usage.peak_rss_bytes), (Some(3.75), Some(3000 << 10)));
        assert_eq!(Used::default().usage().cpu_seconds, Some(0.0));
    }
}
