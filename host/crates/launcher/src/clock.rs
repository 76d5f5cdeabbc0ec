//! The clocks that a launch is measured by, and the identity of a boot.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use taxiway_job::Time;

/// One moment on three clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instant {
    /// `CLOCK_MONOTONIC` in nanoseconds, for the gap between two jobs: it is what other programs on the machine use.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds, for time limits: it also counts while the machine sleeps.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME` in milliseconds since the Unix epoch, for people.
    pub unix_ms: i64,
}

impl Instant {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        Self {
            monotonic_ns: read(libc::CLOCK_MONOTONIC),
            boottime_ns: read(libc::CLOCK_BOOTTIME),
            unix_ms: i64::try_from(read(libc::CLOCK_REALTIME) / 1_000_000).unwrap_or(i64::MAX),
        }
    }

    /// The moment for people.
    #[must_use]
    pub fn time(&self) -> Time {
        Time::from_millis(self.unix_ms)
    }

    /// What passed from `earlier` to this moment, sleep of the machine included; zero when `earlier` is later.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        Duration::from_nanos(self.boottime_ns.saturating_sub(earlier.boottime_ns))
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub(crate) fn boottime_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to. The three clocks exist on every kernel since 2.6.39, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The id of the kernel's present boot (`/proc/sys/kernel/random/boot_id`, random(4)). Two equal ids mean that the machine was
/// not restarted in between.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
