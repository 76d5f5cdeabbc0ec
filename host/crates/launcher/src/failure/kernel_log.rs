//! The kernel's own words on the processes that it ended for want of memory, where its log may be read (dmesg_restrict).

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// Whom to look for: who was killed in this time, on CLOCK_MONOTONIC in microseconds. Pids are used again, and the log may go back
/// for weeks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Killed {
    /// This process; none for any.
    pub(super) pid: Option<i32>,
    /// From here …
    pub(super) from_us: u64,
    /// … to here.
    pub(super) to_us: u64,
}

/// The clock of the kernel's log is not set right by NTP as CLOCK_MONOTONIC is: in weeks they drift apart by this much.
const DRIFT_US: u64 = 5_000_000;

/// The record of the process that was looked for; the last one when there are several.
pub(super) fn ended_for_memory(killed: Killed) -> Option<String> {
    let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    find(log, killed)
}

/// Reads a log as `/dev/kmsg` gives it: one record at a time (Documentation/ABI/testing/dev-kmsg).
fn find(mut log: impl Read, killed: Killed) -> Option<String> {
    let mut found = None;
    let mut record = [0_u8; 8 << 10];
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(read) => {
                if let Some(message) = matching(&String::from_utf8_lossy(&record[..read]), killed) {
                    found = Some(message);
                }
            }
            // A record was overwritten before it was read; the next one comes.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return found,
        }
    }
}

/// The message of a record `priority,sequence,time,flags;message` that tells of such an end.
fn matching(record: &str, killed: Killed) -> Option<String> {
    let (head, rest) = record.split_once(';')?;
    let message = rest.lines().next()?;
    // `Out of memory: Killed process …` or `Memory cgroup out of memory: Killed process …` (mm/oom_kill.c).
    let (_, victim) = message.split_once("Killed process ")?;
    let at: u64 = head.split(',').nth(2)?.parse().ok()?;
    let is_then = (killed.from_us.saturating_sub(DRIFT_US)..=killed.to_us.saturating_add(DRIFT_US)).contains(&at);
    let victim: i32 = victim.split(' ').next()?.parse().ok()?;
    (is_then && killed.pid.is_none_or(|pid| pid == victim)).then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that gives one record a read, as the device does.
    struct Records(Vec<&'static str>);

    impl Read for Records {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            let record = self.0.remove(0).as_bytes();
            buffer[..record.len()].copy_from_slice(record);
            Ok(record.len())
        }
    }

    fn records() -> Records {
        Records(vec![
            "6,1200,90000000,-;usb 1-1: new device\n SUBSYSTEM=usb\n",
            "3,1201,100000000,-;Memory cgroup out of memory: Killed process 47 (python3) total-vm:9kB, anon-rss:8kB\n",
            "3,1202,200000000,-;Out of memory: Killed process 471 (train.py) total-vm:7kB, anon-rss:6kB, UID:1000\n",
            "4,1203,200000001,-;oom_reaper: reaped process 471 (train.py)\n",
        ])
    }

    #[test]
    fn a_process_is_found_by_its_own_number_only() {
        let process = |pid| Killed { pid: Some(pid), from_us: 90_000_000, to_us: 200_000_000 };
        let found = find(records(), process(47)).expect("it is there");
        assert!(found.starts_with("Memory cgroup out of memory: Killed process 47 (python3)"), "{found}");
        assert!(find(records(), process(471)).is_some_and(|line| line.contains("train.py")));
        assert_eq!(find(records(), process(4)), None);
        // It had the number before.
        assert_eq!(find(records(), Killed { from_us: 110_000_000, ..process(47) }), None);
    }

    #[test]
    fn any_process_is_found_in_its_time_only() {
        let between = |from: u64, to: u64| Killed { pid: None, from_us: from * 1_000_000, to_us: to * 1_000_000 };
        assert!(find(records(), between(150, 198)).is_some_and(|line| line.contains("471")));
        assert_eq!(find(records(), between(110, 150)), None);
        assert_eq!(find(records(), between(300, 400)), None);
    }
}
