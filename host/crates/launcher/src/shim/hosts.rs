//! What hosts say and hear: the one that started this shim, and those that adopt it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::renameat;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::fstat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::LEFT;
use super::attend::GUESTS_MAX;
use super::connection::{Connection, Received};
use super::end::{CONFIRM_NS, RETRY_NS};
use super::state::{Kill, Leftovers, Listener, Running, Shim, State, Stay, Stopping, milliseconds};
use crate::clock::boottime_ns;
use crate::record::{ExitRecord, StoppedBy};
use crate::wire::{Phase, Report, Request, VERSION, file};

impl Shim {
    /// Takes messages from the host.
    pub(super) fn hear_host(&mut self) -> Stay {
        let Some(host) = &mut self.host else { return Stay::Yes };
        let received = host.take();
        while let Some(request) = self.host.as_mut().and_then(Connection::next::<Request>) {
            if let Stay::No(status) = self.obey(request) {
                return Stay::No(status);
            }
        }
        if received == Received::Closed {
            self.host = None;
            match &mut self.state {
                // Nothing was started.
                State::Armed(_) => return Stay::No(LEFT),
                // Nobody is left to confirm.
                State::Ended(ended) => ended.sync_at = 0,
                _ => self.await_hosts(),
            }
        }
        Stay::Yes
    }

    /// Makes the socket by which the next host finds this shim, if it is not there. While the disk has no room for it, it is
    /// tried again and again, and the next host waits for it. In a directory that was removed there never is one; the next host
    /// finds the directory missing, and ends the job.
    pub(super) fn await_hosts(&mut self) {
        if matches!(self.listener, Listener::Open(_)) {
            return;
        }
        self.listener = match listen_in(&self.directory) {
            Ok(listener) => Listener::Open(listener),
            Err(_) if is_removed(&self.directory) => Listener::NotNeeded,
            Err(_) => Listener::Missing { retry_at: boottime_ns() + RETRY_NS },
        };
    }

    fn obey(&mut self, request: Request) -> Stay {
        self.is_plain &= !request.is_answered();
        match request {
            Request::Go { gpu_uuids } => return self.go(&gpu_uuids),
            Request::Stop { grace_ms, signal } => {
                let grace = grace_ms.map_or(self.limits.grace_ns, milliseconds);
                self.stop(StoppedBy::Host, signal.unwrap_or(self.limits.stop_signal), grace);
                self.tell(&Report::Here);
            }
            Request::Extend { time_limit_ms } => {
                let in_time = !self.time_is_up();
                if in_time {
                    self.limits.time_limit_ns = time_limit_ms.map(milliseconds);
                }
                self.tell(&Report::Extended { time_limit_ms, in_time });
            }
            Request::Ask => self.tell(&Report::Here),
            Request::Confirm => {
                if let State::Ended(ended) = &mut self.state {
                    ended.confirmed = true;
                    return Stay::No(LEFT);
                }
            }
            // A plan comes once, before; a hello only from a guest.
            Request::Plan(_) | Request::Hello { .. } => {}
        }
        Stay::Yes
    }

    /// Whether the time limit has struck. One that has run out in this very turn has not.
    fn time_is_up(&self) -> bool {
        let by = match &self.state {
            State::Running(running) => running.stopping.as_ref().map(|stopping| stopping.by),
            State::Leftovers(Leftovers { record, .. }) => record.stopped_by,
            State::Ended(ended) => ended.record.stopped_by,
            State::Armed(_) | State::Changing => None,
        };
        by == Some(StoppedBy::TimeLimit)
    }

    pub(super) fn tell(&self, report: &Report) {
        if let Some(host) = &self.host {
            host.send(report);
        }
    }

    /// Tells of several things at once.
    pub(super) fn tell_all(&self, reports: impl IntoIterator<Item = Report>) -> bool {
        self.host.as_ref().is_none_or(|host| host.send_all(reports))
    }

    /// Takes a connection that may be a restarted host's.
    pub(super) fn accept(&mut self) {
        let Listener::Open(listener) = &self.listener else { return };
        // SAFETY: the listener is a listening socket; no address is asked for; the new descriptor is known to nobody else.
        let fd = unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        if fd >= 0 {
            if self.guests.len() >= GUESTS_MAX {
                self.guests.remove(0);
            }
            // SAFETY: see above.
            self.guests.push(Connection::new(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }

    /// Listens to connections that have not said hello.
    pub(super) fn hear_guests(&mut self, ready: &[bool]) {
        let mut index = 0;
        for is_ready in ready {
            if !is_ready {
                index += 1;
                continue;
            }
            let guest = &mut self.guests[index];
            let received = guest.take();
            match guest.next::<Request>() {
                Some(Request::Hello { version: _, launch }) if launch == self.launch => {
                    let guest = self.guests.remove(index);
                    self.adopted_by(guest);
                }
                Some(_) => drop(self.guests.remove(index)),
                None if received == Received::Closed => drop(self.guests.remove(index)),
                None => index += 1,
            }
        }
    }

    /// From now on `host` gets the reports. The answer names this shim's version: the newer side speaks the older's language.
    fn adopted_by(&mut self, host: Connection) {
        let phase = match &mut self.state {
            State::Running(Running { process, tell_at, .. }) => {
                *tell_at = None;
                Phase::Running(process.clone())
            }
            State::Leftovers(Leftovers { record: ExitRecord { process: Some(process), .. }, .. }) => {
                Phase::Running(process.clone())
            }
            State::Ended(_) => Phase::Ended,
            // Leftovers without a process do not exist: nothing ran then.
            State::Leftovers(_) | State::Armed(_) | State::Changing => return,
        };
        // SAFETY: getpid has no precondition.
        let shim_pid = unsafe { libc::getpid() };
        host.send(&Report::Adopted { version: VERSION, launch: self.launch, shim_pid, phase });
        if let State::Ended(ended) = &mut self.state {
            host.send(&Report::Ended(Box::new(ended.record.clone())));
            ended.sync_at = boottime_ns() + CONFIRM_NS;
        }
        self.host = Some(host);
        self.tell_of_survivors_again();
        // It may have said more already.
        while let Some(request) = self.host.as_mut().and_then(Connection::next::<Request>) {
            if self.obey(request) != Stay::Yes {
                self.leave_soon();
            }
        }
    }

    /// What the last host was told of processes that survive SIGKILL, this one does not know.
    fn tell_of_survivors_again(&mut self) {
        let killing = match &mut self.state {
            State::Running(Running { stopping: Some(Stopping { kill: Kill::Sent(killing), .. }), .. })
            | State::Leftovers(Leftovers { killing, .. }) => killing,
            _ => return,
        };
        killing.report_at.get_or_insert(boottime_ns());
    }

    /// The end was confirmed in the same breath as the hello.
    fn leave_soon(&mut self) {
        if let State::Ended(ended) = &mut self.state {
            ended.sync_at = 0;
        }
    }
}

/// Whether the directory has no name any more, and can get none (rmdir(2)).
fn is_removed(directory: &OwnedFd) -> bool {
    fstat(directory).is_ok_and(|stat| stat.st_nlink == 0)
}

/// Listens on the socket in the directory. It is reached through /proc, since a socket's path may have 107 bytes only. A host that
/// waits for its name may connect as soon as it sees it.
fn listen_in(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let listener =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // There is one only after a try that came no further.
    let _ = unlinkat(directory, file::SOCKET_UNREADY, UnlinkatFlags::NoRemoveDir);
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), file::SOCKET_UNREADY);
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    listen(&listener, Backlog::new(8)?)?;
    renameat(directory, file::SOCKET_UNREADY, directory, file::SOCKET)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_removed_is_told_from_one_that_was_moved() {
        let place = tempfile::tempdir().expect("a directory");
        let (here, there) = (place.path().join("here"), place.path().join("there"));
        std::fs::create_dir(&here).expect("a directory");
        let directory = OwnedFd::from(std::fs::File::open(&here).expect("it opens"));
        std::fs::rename(&here, &there).expect("it can be moved");
        assert!(!is_removed(&directory));
        assert!(listen_in(&directory).is_ok());
        std::fs::remove_dir_all(&there).expect("it can be removed");
        assert!(listen_in(&directory).is_err());
        assert!(is_removed(&directory));
    }
}
