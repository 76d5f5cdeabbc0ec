//! What host, spawner and shim say to each other: newline-delimited JSON over a stream socket.
//!
//! The protocol's version is [`VERSION`]. A host may be newer than the shims that it adopts, so a message is only ever added to:
//! fields that a reader does not know are ignored, and so are whole messages.

use std::ffi::CStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use taxiway_job::{LaunchId, ProcessSpec};

use crate::launch::Started;
use crate::record::ExitRecord;

/// The version of this protocol.
pub(crate) const VERSION: u32 = 2;

/// From this version on a shim answers what [`Request::is_answered`] names.
pub(crate) const ANSWERS_SINCE: u32 = 2;

/// The longest line that is accepted. Linux takes at most 2 MiB of argv and environment, which JSON may write six times as long.
const LINE_MAX_BYTES: usize = 16 << 20;

/// The name of the program's first argument that makes it a spawner.
pub(crate) const SPAWNER_ARGUMENT: &str = "shim-spawner";

/// The name that a spawner's process has (prctl(2), PR_SET_NAME); its shims have another.
pub(crate) const SPAWNER_NAME: &CStr = c"taxiway-spawner";

/// Files in a launch's directory.
pub(crate) mod file {
    /// Held by the shim with an fcntl record lock as long as it serves the launch.
    pub(crate) const LOCK: &str = "lock";
    /// The exit record.
    pub(crate) const EXIT: &str = "exit.json";
    /// Standard output and error of the job.
    pub(crate) const LOG: &str = "log";
    /// Present from just before the fork on; another name of the exit record where the filesystem has hard links.
    pub(crate) const STARTED: &str = "started";
    /// Where a restarted host finds the shim. It is there once the shim has seen its host go.
    pub(crate) const SOCKET: &str = "shim.sock";
    /// The same before the shim listens on it: whoever sees [`SOCKET`] can connect.
    pub(crate) const SOCKET_UNREADY: &str = "shim.sock.new";
    /// The path of the job's control group, where it has one.
    pub(crate) const GROUP: &str = "cgroup";
    /// Where the job may write how far it is.
    pub(crate) const PROGRESS: &str = "progress.json";
}

/// What a shim must know before it is ready. It goes over the socket and never to disk: the environment may hold secrets.
#[derive(Serialize, Deserialize)]
pub(crate) struct ShimPlan {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) hide_gpus: bool,
    pub(crate) time_limit_ms: Option<u64>,
    pub(crate) grace_ms: u64,
    pub(crate) process: ProcessSpec,
    pub(crate) log_max_size: u64,
    /// The control group below which the job gets its own.
    pub(crate) group_base: Option<String>,
    /// How long its processes may survive SIGKILL before they are reported.
    pub(crate) unkillable_ms: u64,
}

/// From a host to a shim.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// The first message on the socket that the shim was started with.
    Plan(Box<ShimPlan>),
    /// Start the command.
    Go { gpu_uuids: Vec<String> },
    /// Stop it: [`Report::Here`].
    Stop { grace_ms: Option<u64>, signal: Option<i32> },
    /// Another time limit: [`Report::Extended`].
    Extend { time_limit_ms: Option<u64> },
    /// The end is committed.
    Confirm,
    /// Whether it is there: [`Report::Here`].
    Ask,
    /// The first message of a host that adopts: from now on it is the shim's host.
    Hello { version: u32, launch: LaunchId },
}

impl Request {
    /// Whether a shim answers it at once.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Self::Stop { .. } | Self::Extend { .. } | Self::Ask)
    }
}

/// From a shim to its host.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The lock is held, everything is prepared.
    Ready { version: u32, shim_pid: i32 },
    /// Nothing was started and nothing will be: the shim leaves.
    Failed { message: String },
    /// The command runs.
    Started(Started),
    /// No process is left.
    Ended(Box<ExitRecord>),
    /// These survive SIGKILL.
    Unkillable { pids: Vec<i32> },
    /// What it was told it does.
    Here,
    /// The time limit is this one. False in `in_time`: the one before had run out.
    Extended { time_limit_ms: Option<u64>, in_time: bool },
    /// The answer to [`Request::Hello`].
    Adopted { version: u32, launch: LaunchId, shim_pid: i32, phase: Phase },
}

/// Where a shim is when it is adopted. It answers no hello before `go`: then the end of its first socket ends it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The command was started and its processes are not all gone.
    Running(Started),
    /// [`Report::Ended`] follows.
    Ended,
}

/// From the spawner to its host, one datagram each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpawnerReport {
    /// The shim did not leave of its own accord, or could not be forked. None of its orphans is left.
    Gone { launch: LaunchId, reason: String },
    /// It is gone, and these orphans of its or of another's survive SIGKILL.
    Unkillable { launch: LaunchId, pids: Vec<i32> },
}

/// The bytes of a message, with its newline.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Numbers, strings and enums with string tags: serde_json has no way to fail on them.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Bytes that arrived and are not yet a whole line.
#[derive(Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// So many of them were looked at and have no newline: a plan of megabytes comes in many pieces.
    looked_at: usize,
}

impl Lines {
    /// Takes bytes that arrived; false when the peer sends a line without end.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= LINE_MAX_BYTES
    }

    /// The next whole message; lines that are none of this version's messages are passed over.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        while let Some(further) = self.bytes[self.looked_at..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked_at + further;
            let message = serde_json::from_slice(&self.bytes[..end]).ok();
            self.bytes.drain(..=end);
            self.looked_at = 0;
            if message.is_some() {
                return message;
            }
        }
        self.looked_at = self.bytes.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_in_whatever_pieces_they_arrive() {
        let sent = [Request::Ask, Request::Go { gpu_uuids: vec!["GPU-1".into()] }, Request::Confirm];
        let mut bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        bytes.splice(0..0, *b"{\"of\":\"another version\"}\n");
        for size in 1..=bytes.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in bytes.chunks(size) {
                assert!(lines.push(piece));
                found.extend(std::iter::from_fn(|| lines.next::<Request>()));
            }
            let found: Vec<Vec<u8>> = found.iter().map(encode).collect();
            assert_eq!(found, sent.iter().map(encode).collect::<Vec<_>>(), "in pieces of {size} bytes");
            assert_eq!((lines.bytes.len(), lines.looked_at), (0, 0));
        }
    }

    #[test]
    fn no_byte_of_a_long_line_is_looked_at_twice() {
        let mut lines = Lines::default();
        for _ in 0..3 {
            assert!(lines.push(&[b'x'; 4096]));
            assert!(lines.next::<Request>().is_none());
            assert_eq!(lines.looked_at, lines.bytes.len());
        }
    }
}
