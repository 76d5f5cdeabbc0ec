//! The alarm: when something is to be done that waits for a time of the clock.
//!
//! `not_before`, the end of a retry's pause, the next try of a delivery and the age of a log are times of the clock on the wall, so the
//! alarm goes by that clock. The runtime's timers go by CLOCK_MONOTONIC, which stands still while the machine is suspended and knows
//! nothing of a clock that is set. A timer of the kernel on CLOCK_REALTIME counts the one and follows the other (timerfd_create(2)),
//! and wakes nobody before.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use taxiway_job::Time;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One time at which to be woken.
pub struct Alarm {
    timer: AsyncFd<Timer>,
    /// None once it has rung.
    at: Option<Time>,
}

impl Alarm {
    /// One that does not ring yet.
    ///
    /// # Errors
    /// When the process has no descriptor left for it.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: the descriptor is owned by the AsyncFd and gives the same number as long as that lives.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self { timer: timer.map_err(io::Error::from)?, at: None })
    }

    /// From now on it rings at this time; none: never.
    pub fn set(&mut self, at: Option<Time>) {
        if at == self.at {
            return;
        }
        self.at = at;
        let timer = &self.timer.get_ref().0;
        let result = match at {
            Some(at) => timer.set(Expiration::OneShot(since_the_epoch(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME),
            None => timer.unset(),
        };
        if let Err(error) = result {
            // The kernel has no reason to.
            tracing::error!(%error, ?at, "the alarm cannot be set: what waits for that time waits longer");
        }
    }

    /// Waits for so long, however much of it the machine is suspended. A clock that is set back meanwhile makes it no longer.
    pub async fn after(&mut self, wait: Duration) {
        self.set(Some(Time::now().plus(wait)));
        tokio::select! {
            () = self.rung() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Waits until the time has come. It has to be set again after that.
    pub async fn rung(&mut self) {
        if self.at.is_none() {
            return pending().await;
        }
        loop {
            // An error means that the runtime is being shut down.
            let Ok(mut ready) = self.timer.readable().await else { return pending().await };
            match ready.try_io(|timer| Ok(timer.get_ref().0.wait()?)) {
                Ok(result) => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the alarm cannot be read");
                    }
                    self.at = None;
                    return;
                }
                // It was set to another time meanwhile.
                Err(_would_block) => {}
            }
        }
    }
}

/// For the runtime, which wants the number.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A time as the kernel counts it. Nothing turns a timer off by mistake (timerfd_settime(2)).
fn since_the_epoch(at: Time) -> TimeSpec {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0);
    TimeSpec::from(Duration::from_millis(millis).max(Duration::from_nanos(1)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_wait_ends_by_either_clock() {
        let mut alarm = Alarm::new().expect("an alarm");
        let (before, wait) = (Time::now(), Duration::from_secs(3600));
        assert!(alarm.after(wait).now_or_never().is_none(), "an hour early");
        let at = alarm.at.expect("it is set by the one");
        assert!(before.plus(wait) <= at && at <= Time::now().plus(wait));
        alarm.after(Duration::from_millis(20)).await;
    }

    #[tokio::test]
    async fn it_rings_at_the_time_that_it_was_last_set_to_and_once() {
        let mut alarm = Alarm::new().expect("an alarm");
        assert!(alarm.rung().now_or_never().is_none(), "it is not set");
        let now = Time::now();
        alarm.set(Some(now.plus(Duration::from_secs(3600))));
        assert!(alarm.rung().now_or_never().is_none(), "an hour early");
        let soon = now.plus(Duration::from_millis(20));
        alarm.set(Some(soon));
        alarm.rung().await;
        assert!(Time::now() >= soon);
        assert!(alarm.rung().now_or_never().is_none(), "it has rung");
        for past in [soon, Time::from_millis(0), Time::from_millis(-1)] {
            alarm.set(Some(past));
            alarm.rung().await;
        }
        alarm.set(Some(Time::from_millis(1)));
        alarm.set(None);
        assert!(alarm.rung().now_or_never().is_none(), "it was taken back");
        alarm.set(Some(Time::from_millis(i64::MAX)));
        assert!(alarm.rung().now_or_never().is_none(), "not in a lifetime");
    }
}
