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
            // What the other clock cannot end: it may be set back.
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
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_wait_ends_when_the_clock_on_the_wall_says_so() {
        let mut alarm = Alarm::new().expect("an alarm");
        let before = Time::now();
        assert!(alarm.after(HOUR).now_or_never().is_none(), "an hour early");
        let at = alarm.at.expect("it is set");
        assert!(before.plus(HOUR) <= at && at <= Time::now().plus(HOUR));

        let timer = same_timer(&alarm);
        let mut wait = pin!(alarm.after(HOUR));
        assert!(wait.as_mut().now_or_never().is_none(), "an hour early");
        // The kernel does the same when the clock is set past that time.
        let now = Expiration::OneShot(since_the_epoch(before));
        timer.set(now, TimerSetTimeFlags::TFD_TIMER_ABSTIME).expect("it can be set");
        wait.await;
    }

    #[tokio::test]
    async fn a_wait_ends_after_its_time_whatever_the_clock_on_the_wall_says() {
        let mut alarm = Alarm::new().expect("an alarm");
        let timer = same_timer(&alarm);
        let mut wait = pin!(alarm.after(Duration::from_millis(50)));
        // On a machine that does something else meanwhile it may be over already.
        if wait.as_mut().now_or_never().is_none() {
            // As if the clock had been set back: this timer will not end it.
            timer.unset().expect("it can be unset");
            wait.await;
        }
    }

    /// The timer of an alarm, to set it as a change of the clock would.
    fn same_timer(alarm: &Alarm) -> TimerFd {
        let timer = alarm.timer.get_ref().0.as_fd().try_clone_to_owned().expect("a descriptor");
        // SAFETY: nobody else has this descriptor, and it is a timer's.
        unsafe { TimerFd::from_raw_fd(timer.into_raw_fd()) }
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
