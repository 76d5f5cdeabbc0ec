//! The exit record: what a shim knows of a launch's end, and how it lies in `exit.json`.
//!
//! The file is written in place, in two steps, and may be read at any moment by somebody else or after a power loss. So each
//! step carries a checksum of its own, and the second one never touches the bytes of the first:
//!
//! ```text
//! {"crc32":"0f1e2d3c","status":{…}
//! ,"clean":{"crc32":"…","end":{…}}
//! }
//! ```
//!
//! Between the two steps the file ends after the first line with `}`; it is JSON either way. A line whose checksum does not hold
//! is not there.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use taxiway_job::{Exit, LaunchId, Time, Usage};

use crate::clock::Instant;
use crate::launch::Started;

/// How a launch ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The launch.
    pub launch: LaunchId,
    /// What became of the command.
    pub status: Status,
    /// Its process; none when it could not be executed.
    pub process: Option<Started>,
    /// When the shim reaped it, or saw the exec fail.
    pub ended: Instant,
    /// Who asked it to stop before it ended; none when it ended by itself.
    pub stopped_by: Option<StoppedBy>,
    /// The time limit that stopped it, in milliseconds; none when something else did, or in a record of an older version.
    pub time_limit_ms: Option<u64>,
    /// What came after the end of the command's own process; none in a record whose shim died before it had ended leftovers.
    pub clean: Option<Clean>,
}

/// What became of the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It ended with this exit status, 0 to 255.
    Exited(i32),
    /// This signal ended it (signal(7)).
    Signaled(i32),
    /// It could not be executed: nothing ran.
    LaunchError(LaunchError),
}

/// Who first asked a running job to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// The host, by [`crate::Launcher::stop`].
    Host,
    /// Its time limit.
    TimeLimit,
}

/// Why a command could not be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// The error number (errno(3)).
    pub errno: i32,
    /// What was tried and why it failed, in a sentence.
    pub message: String,
    /// The argv, placeholders filled in.
    pub command: Vec<String>,
}

/// What a shim knows once no process of its launch is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clean {
    /// How many processes outlived the command's own and had to be ended.
    pub leftovers: u32,
    /// When the last one was gone.
    pub at: Instant,
    /// What all of them used.
    pub usage: Usage,
    /// Bytes of output that the log does not hold, because of its size cap or a full disk.
    pub log_dropped_bytes: u64,
    /// How many of its processes the kernel ended because memory ran out, as its control group counted them.
    #[serde(default)]
    pub oom_kills: u64,
}

/// The first step's content.
#[derive(Serialize, Deserialize)]
struct First {
    launch: LaunchId,
    status: Status,
    process: Option<Started>,
    ended: Instant,
    stopped_by: Option<StoppedBy>,
    time_limit_ms: Option<u64>,
}

impl ExitRecord {
    /// The exit status and the signal, as a job shows them; both empty for a command that was not executed.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.status {
            Status::Exited(code) => Exit { code: Some(code), signal: None },
            Status::Signaled(signal) => Exit { code: None, signal: Some(signal) },
            Status::LaunchError(_) => Exit::default(),
        }
    }

    /// Whether its time limit stopped it.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.stopped_by == Some(StoppedBy::TimeLimit)
    }

    /// When the command was executed.
    #[must_use]
    pub fn started_at(&self) -> Option<Time> {
        self.process.as_ref().map(|process| process.at.time())
    }

    /// When it ended.
    #[must_use]
    pub fn finished_at(&self) -> Time {
        self.ended.time()
    }

    /// What it used: what the shim measured, or the wall time alone when it died too early.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.clean.as_ref().map_or_else(
            || Usage { wall_seconds: self.wall_seconds(), ..Usage::default() },
            |clean| clean.usage.clone(),
        )
    }

    /// Seconds from the exec to the end.
    #[must_use]
    pub fn wall_seconds(&self) -> Option<f64> {
        self.process.as_ref().map(|process| self.ended.since(&process.at).as_secs_f64())
    }

    /// The bytes of step one, which begin the file, and where step two goes.
    pub(crate) fn first_bytes(&self) -> (Vec<u8>, u64) {
        let first = First {
            launch: self.launch,
            status: self.status.clone(),
            process: self.process.clone(),
            ended: self.ended,
            stopped_by: self.stopped_by,
            time_limit_ms: self.time_limit_ms,
        };
        let mut bytes = checked("{\"crc32\":\"", "\",\"status\":", &first);
        bytes.push(b'\n');
        let second_at = bytes.len() as u64;
        bytes.extend_from_slice(b"}\n");
        (bytes, second_at)
    }

    /// The bytes of step two.
    pub(crate) fn clean_bytes(clean: &Clean) -> Vec<u8> {
        let mut bytes = checked(",\"clean\":{\"crc32\":\"", "\",\"end\":", clean);
        bytes.extend_from_slice(b"}\n}\n");
        bytes
    }

    /// Reads `exit.json`: none when no record with a checksum that holds is in it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let first: First = unchecked("{\"crc32\":\"", "\",\"status\":", "", lines.next()?)?;
        let clean = lines.next().and_then(|line| unchecked(",\"clean\":{\"crc32\":\"", "\",\"end\":", "}", line));
        Some(Self {
            launch: first.launch,
            status: first.status,
            process: first.process,
            ended: first.ended,
            stopped_by: first.stopped_by,
            time_limit_ms: first.time_limit_ms,
            clean,
        })
    }
}

fn checked<T: Serialize>(before: &str, between: &str, value: &T) -> Vec<u8> {
    // Numbers, strings and enums with string tags: serde_json has no way to fail on them.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let mut bytes = format!("{before}{:08x}{between}", crc32fast::hash(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    bytes
}

fn unchecked<T: DeserializeOwned>(before: &str, between: &str, after: &str, line: &[u8]) -> Option<T> {
    let rest = line.strip_prefix(before.as_bytes())?;
    let (sum, rest) = rest.split_at_checked(8)?;
    let json = rest.strip_prefix(between.as_bytes())?.strip_suffix(after.as_bytes())?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if crc32fast::hash(json) != sum {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ExitRecord {
        let now = Instant::now();
        ExitRecord {
            launch: LaunchId::random(),
            status: Status::Exited(7),
            process: Some(Started { pid: 4711, start_time: 99, at: now, go_at: now, gpu_uuids: Vec::new() }),
            ended: now,
            stopped_by: Some(StoppedBy::TimeLimit),
            time_limit_ms: Some(60_000),
            clean: None,
        }
    }

    fn clean() -> Clean {
        Clean { leftovers: 2, at: Instant::now(), usage: Usage::default(), log_dropped_bytes: 0, oom_kills: 0 }
    }

    fn file(record: &ExitRecord, clean: &Clean) -> (Vec<u8>, Vec<u8>) {
        let (first, at) = record.first_bytes();
        let mut whole = first.clone();
        whole.truncate(at as usize);
        whole.extend_from_slice(&ExitRecord::clean_bytes(clean));
        (first, whole)
    }

    #[test]
    fn both_steps_are_json_and_read_back_as_they_were_written() {
        let (record, clean) = (record(), clean());
        let (first, whole) = file(&record, &clean);
        assert_eq!(ExitRecord::parse(&first), Some(record.clone()));
        assert_eq!(ExitRecord::parse(&whole), Some(ExitRecord { clean: Some(clean), ..record }));
        for bytes in [first, whole] {
            serde_json::from_slice::<serde_json::Value>(&bytes).expect("exit.json is JSON after each step");
        }
    }

    #[test]
    fn a_record_is_there_or_not_at_every_point_where_a_write_can_be_cut() {
        let (record, clean) = (record(), clean());
        let (first, whole) = file(&record, &clean);
        let line = first.len() - 3;
        for cut in 0..=first.len() {
            let read = ExitRecord::parse(&first[..cut]);
            assert_eq!(read, (cut >= line).then(|| record.clone()), "cut after {cut} of {} bytes", first.len());
        }
        for cut in first.len()..whole.len() {
            let read = ExitRecord::parse(&whole[..cut]).expect("the first step holds");
            assert_eq!(ExitRecord { clean: None, ..read }, record);
        }
    }

    #[test]
    fn a_changed_byte_makes_a_record_unread() {
        let (first, at) = record().first_bytes();
        for index in 0..at as usize - 1 {
            let mut bytes = first.clone();
            bytes[index] ^= 1;
            assert_eq!(ExitRecord::parse(&bytes), None, "byte {index}");
        }
    }
}
