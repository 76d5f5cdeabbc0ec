//! The loop: wait for something to happen, deal with it, see what is due.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::Connection;
use super::start::MARK_NS;
use super::state::{Kill, Listener, Shim, State, Stay, Stopping};
use super::{End, LEFT};
use crate::clock::boottime_ns;
use crate::wire::file;

/// Connections that have not said hello yet. A host says it at once, so of more than these the oldest is none.
pub(super) const GUESTS_MAX: usize = 8;

impl Shim {
    /// Lives until the launch is over.
    pub(super) fn attend(mut self, control: Connection) -> End {
        self.host = Some(control);
        let status = loop {
            if let Stay::No(status) = self.turn() {
                break status;
            }
        };
        if let Some(group) = &self.group {
            group.remove();
        }
        if matches!(self.listener, Listener::Open(_)) {
            // Nobody finds a shim there any more; if it stays, a connection to it is refused.
            let _ = nix::unistd::unlinkat(&self.directory, file::SOCKET, nix::unistd::UnlinkatFlags::NoRemoveDir);
        }
        if status == LEFT && self.is_as_it_was() { End::IsFree } else { End::Leaves(status) }
    }

    /// Whether nothing of the launch is left in this process once its files are closed, as after nearly every job that is over
    /// at once. Whoever deals with a shim that does not answer has not begun to by then.
    fn is_as_it_was(&self) -> bool {
        let State::Ended(ended) = &self.state else { return false };
        let over_at = ended.record.process.as_ref().map(|process| process.go_at.boottime_ns + MARK_NS);
        let was_short = over_at.is_some_and(|at| ended.record.ended.boottime_ns <= at) && boottime_ns() < ended.sync_at;
        let killed_none = ended.record.clean.as_ref().is_some_and(|clean| clean.leftovers == 0);
        let met_nobody = matches!(self.listener, Listener::NotNeeded) && self.guests.is_empty();
        ended.confirmed && was_short && killed_none && met_nobody && ended.record.stopped_by.is_none() && self.is_plain
    }

    /// Waits for something to happen and deals with it.
    fn turn(&mut self) -> Stay {
        self.set_timer();
        let armed = matches!(self.state, State::Armed(_));
        let ready = {
            // A negative descriptor is passed over by poll(2).
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.push(PollFd::new(self.timer.as_fd(), PollFlags::POLLIN));
            let output = self.output.fd().filter(|_| !armed).map(|fd| fds_push(&mut fds, fd));
            let host = self.host.as_ref().map(|host| fds_push(&mut fds, host.fd()));
            let listener = self.listener.fd().map(|fd| fds_push(&mut fds, fd));
            let guests = fds.len();
            for guest in &self.guests {
                fds_push(&mut fds, guest.fd());
            }
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                return Stay::Yes;
            }
            let is = |index: usize| fds[index].any().unwrap_or(true);
            Ready {
                signals: is(0),
                output: output.is_some_and(is),
                host: host.is_some_and(is),
                listener: listener.is_some_and(is),
                guests: (guests..fds.len()).map(is).collect(),
            }
        };
        if ready.signals {
            self.reap();
        }
        if ready.host
            && let Stay::No(status) = self.hear_host()
        {
            return Stay::No(status);
        }
        if ready.output {
            self.output.copy_some();
        }
        self.hear_guests(&ready.guests);
        if ready.listener {
            self.accept();
        }
        self.keep_time()
    }

    /// Sets the timer to whatever is due next.
    fn set_timer(&self) {
        let next = match &self.state {
            State::Armed(_) | State::Changing => None,
            State::Running(running) => {
                let stop = match &running.stopping {
                    None => self.limits.next(running),
                    Some(Stopping { kill: Kill::At(at), .. }) => Some(*at),
                    Some(Stopping { kill: Kill::Sent(killing), .. }) => killing.report_at,
                };
                let mark = running.mark.as_ref().map(|(at, _)| *at);
                stop.into_iter().chain(mark).chain(running.tell_at).min()
            }
            State::Leftovers(leftovers) => leftovers.killing.report_at,
            State::Ended(ended) => Some(ended.sync_at),
        };
        let next = match self.listener {
            Listener::Missing { retry_at } => next.into_iter().chain([retry_at]).min(),
            Listener::NotNeeded | Listener::Open(_) => next,
        };
        // Zero would disarm it.
        let next = next.map_or(0, |at| at.max(1));
        let value = libc::timespec {
            tv_sec: i64::try_from(next / 1_000_000_000).unwrap_or(i64::MAX),
            // Less than a second's nanoseconds.
            tv_nsec: (next % 1_000_000_000) as i64,
        };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the descriptor is a timerfd and `spec` is valid; the old value is not asked for. Setting a timer also takes
        // back that it has expired.
        unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const spec,
                std::ptr::null_mut(),
            )
        };
    }
}

struct Ready {
    signals: bool,
    output: bool,
    host: bool,
    listener: bool,
    guests: Vec<bool>,
}

fn fds_push<'a>(fds: &mut Vec<PollFd<'a>>, fd: BorrowedFd<'a>) -> usize {
    fds.push(PollFd::new(fd, PollFlags::POLLIN));
    fds.len() - 1
}
