//! Stopping a job: the signal, the grace, the kill, and what is due when.

use std::collections::HashSet;
use std::sync::Arc;

use super::end::RETRY_NS;
use super::start::make_durable;
use super::state::{Kill, Killing, Limits, Listener, Running, Shim, State, Stay, Stopping};
use super::{GAVE_UP, LEFT};
use crate::cgroup::Group;
use crate::clock::boottime_ns;
use crate::processes::{self, Ending};
use crate::record::StoppedBy;
use crate::wire::Report;

impl Shim {
    /// Asks the job to stop. A second stop with the same signal only shortens the grace.
    pub(super) fn stop(&mut self, by: StoppedBy, signal: i32, grace_ns: u64) {
        let State::Running(running) = &mut self.state else { return };
        let kill_at = boottime_ns().saturating_add(grace_ns);
        let (first, kill_at) = match &running.stopping {
            None => ((by, true), kill_at),
            Some(Stopping { kill: Kill::Sent(_), .. }) => return,
            Some(Stopping { by, signal: sent, kill: Kill::At(at) }) => ((*by, *sent != signal), kill_at.min(*at)),
        };
        let (by, send) = first;
        running.stopping = Some(Stopping { by, signal, kill: Kill::At(kill_at) });
        if send && grace_ns > 0 {
            // SAFETY: the group is that of a child that has not been waited for, so its number is in use by nobody else. A
            // stopped job has to be continued to get its signal.
            unsafe {
                libc::kill(-running.process.pid, signal);
                libc::kill(-running.process.pid, libc::SIGCONT);
            }
        }
    }

    /// Does what is due.
    pub(super) fn keep_time(&mut self) -> Stay {
        let now = boottime_ns();
        if let State::Running(running) = &self.state
            && running.stopping.is_none()
            && self.limits.deadline(running).is_some_and(|at| at <= now)
        {
            self.stop(StoppedBy::TimeLimit, self.limits.stop_signal, self.limits.grace_ns);
        }
        self.warn(now);
        if matches!(self.listener, Listener::Missing { retry_at } if retry_at <= now) {
            self.await_hosts();
        }
        if let State::Running(running) = &mut self.state
            && running.tell_at.is_some_and(|at| at <= now)
        {
            running.tell_at = None;
            let started = Report::Started(running.process.clone());
            self.tell(&started);
        }
        let mut unkillable = None;
        let (unkillable_ns, group) = (self.limits.unkillable_ns, self.group.as_ref());
        match &mut self.state {
            State::Running(running) => {
                if let Some((at, _)) = running.mark
                    && at <= now
                    && let Some((_, mark)) = running.mark.take()
                {
                    self.is_plain = false;
                    make_durable(mark, Arc::clone(&self.directories));
                }
                if let Some(stopping) = &mut running.stopping {
                    if matches!(stopping.kill, Kill::At(at) if at <= now) {
                        let mut killing = Killing::new(now.saturating_add(unkillable_ns));
                        killing.pass(group);
                        stopping.kill = Kill::Sent(killing);
                    }
                    if let Kill::Sent(killing) = &mut stopping.kill {
                        unkillable = killing.survivors(now, group);
                    }
                }
            }
            State::Leftovers(leftovers) => unkillable = leftovers.killing.survivors(now, group),
            State::Ended(ended) if ended.sync_at <= now => {
                let saved = Self::save(&self.record, ended, &self.directories);
                if saved.is_ok() {
                    return Stay::No(if ended.untold { GAVE_UP } else { LEFT });
                }
                // A full disk: the record lives in this process and its answers until there is room.
                ended.sync_at = now + RETRY_NS;
                if self.host.is_none() {
                    self.await_hosts();
                }
            }
            _ => {}
        }
        if let Some(pids) = unkillable {
            self.tell(&Report::Unkillable { pids });
        }
        Stay::Yes
    }
}

impl Shim {
    /// Warns the job of its time limit when that is due.
    fn warn(&mut self, now: u64) {
        let State::Running(running) = &mut self.state else { return };
        let (Some((signal, _)), Some(at)) = (self.limits.warning, self.limits.warn_at(running)) else { return };
        if at <= now {
            running.warned_of = self.limits.deadline(running);
            // SAFETY: the group is that of a child that has not been waited for, so its number is in use by nobody else.
            unsafe { libc::kill(-running.process.pid, signal) };
        }
    }
}

impl Limits {
    /// What of the time limit is due next: the warning, then the limit.
    pub(super) fn next(&self, running: &Running) -> Option<u64> {
        self.warn_at(running).into_iter().chain(self.deadline(running)).min()
    }

    /// When the job is to be warned; none when it was, is being stopped, or its limit is too short for a warning. An extension
    /// moves the warning with the limit.
    fn warn_at(&self, running: &Running) -> Option<u64> {
        let ((_, before), limit, deadline) = (self.warning?, self.time_limit_ns?, self.deadline(running)?);
        let is_due = running.stopping.is_none() && running.warned_of != Some(deadline) && before < limit;
        is_due.then(|| deadline.saturating_sub(before))
    }

    /// The limit by which a command was stopped, in milliseconds, if it was one.
    pub(super) fn time_limit_ms(&self, stopped_by: Option<StoppedBy>) -> Option<u64> {
        self.time_limit_ns.filter(|_| stopped_by == Some(StoppedBy::TimeLimit)).map(|limit| limit / 1_000_000)
    }

    /// When the time limit strikes.
    pub(super) fn deadline(&self, running: &Running) -> Option<u64> {
        self.time_limit_ns.map(|limit| running.process.at.boottime_ns.saturating_add(limit))
    }
}

impl Killing {
    pub(super) fn new(report_at: u64) -> Self {
        Self { ending: Ending::default(), report_at: Some(report_at) }
    }

    /// Kills every process of the job: all in its control group at once, and every descendant of this process.
    pub(super) fn pass(&mut self, group: Option<&Group>) {
        if let Some(group) = group {
            self.ending.note(&group.pids());
            group.kill();
        }
        // SAFETY: getpid has no precondition.
        let me = unsafe { libc::getpid() };
        self.ending.pass(|| processes::descendants(me, &HashSet::new()));
    }

    /// What survives SIGKILL, once, when it has for long enough. It is killed again before, since a pass may have found nothing
    /// where there was something (no descriptor was left, say).
    pub(super) fn survivors(&mut self, now: u64, group: Option<&Group>) -> Option<Vec<i32>> {
        if self.report_at.is_none_or(|at| now < at) {
            return None;
        }
        self.report_at = None;
        self.pass(group);
        // SAFETY: getpid has no precondition.
        let me = unsafe { libc::getpid() };
        Some(processes::descendants(me, &HashSet::new()))
    }
}
