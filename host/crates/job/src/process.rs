//! How a job's process is set up and asked to stop: what a profile says beyond the command.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::EnvValue;

/// Bytes of one argument, or of one variable with its name and `=`, with its NUL: `MAX_ARG_STRLEN` of Linux (execve(2)). What has as
/// many or more without the NUL, no program can be given.
pub const LONGEST_ARGUMENT: usize = 128 << 10;

/// Bytes of all arguments and variables together: half of what Linux grants at the default stack limit (execve(2)), so that
/// what the service adds fits beside it.
pub const LONGEST_ARGUMENTS: usize = 1 << 20;

/// What a command and variables take of [`LONGEST_ARGUMENTS`], each with its NUL.
#[must_use]
pub fn bytes_of_arguments(command: &[String], env: &BTreeMap<String, EnvValue>) -> usize {
    let arguments = command.iter().map(|argument| argument.len() + 1);
    let variables = env.iter().map(|(name, value)| name.len() + value.expose().len() + 2);
    arguments.chain(variables).sum()
}

/// The set-up of a job's process. Everything is optional: what is not said is as the service has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSpec {
    /// The signal that asks it to stop; SIGTERM without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<Signal>,
    /// The signal that warns it before its time limit; none is sent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_signal: Option<Signal>,
    /// How long before its time limit it is warned.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::units::duration::option")]
    pub warn_before: Option<Duration>,
    /// Bytes of memory that all its processes may have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Resource limits, the soft and the hard one alike.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<Resource, Limit>,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}

impl ProcessSpec {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The signal that asks the job to stop.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        self.stop_signal.unwrap_or(Signal::TERM)
    }

    /// The warning before the time limit: which signal, and how long before.
    #[must_use]
    pub fn warning(&self) -> Option<(Signal, Duration)> {
        Some((self.warn_signal?, self.warn_before?))
    }
}

/// A signal, by its number on Linux (signal(7)); written by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// The names of the standard signals on x86, ARM and most others (signal(7)).
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The largest number of a real-time signal.
const SIGNAL_MAX: i32 = 64;

impl Signal {
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a signal: write it like \"SIGUSR1\", or as its number")]
pub struct UnknownSignal(String);

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if let Ok(number) = text.parse() {
            return (1..=SIGNAL_MAX).contains(&number).then_some(Self(number)).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| Self(*number)).ok_or_else(unknown)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a signal like \"SIGUSR1\", or its number")]
        enum Written {
            Number(i32),
            Name(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Name(name) => name,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A resource that can be limited for each process (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Bytes of address space.
    As,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of data.
    Data,
    /// Bytes of a file that is written.
    Fsize,
    /// Bytes locked into memory.
    Memlock,
    /// Bytes in POSIX message queues.
    Msgqueue,
    /// Ceiling of the nice value, as getrlimit(2) counts it.
    Nice,
    /// Open files.
    Nofile,
    /// Processes of the user.
    Nproc,
    /// Ceiling of the real-time priority.
    Rtprio,
    /// Microseconds of real-time processor time without a break.
    Rttime,
    /// Pending signals.
    Sigpending,
    /// Bytes of stack.
    Stack,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A limit: a number, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// At most this, in the resource's unit.
    AtMost(u64),
    /// As much as there is.
    Unlimited,
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AtMost(limit) => serializer.serialize_u64(*limit),
            Self::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number, a size like \"8MiB\", or \"unlimited\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self::AtMost(number)),
            Written::Text(text) if text == "unlimited" => Ok(Self::Unlimited),
            Written::Text(text) => crate::parse_size(&text).map(Self::AtMost).map_err(|_| {
                serde::de::Error::custom(format!(
                    "`{text}` is not a limit: write a number, a size like \"8MiB\", or \"unlimited\""
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_by_name_and_by_number_and_written_by_name() {
        for text in ["SIGUSR1", "USR1", "usr1", "10"] {
            assert_eq!(text.parse::<Signal>().map(|signal| signal.to_string()).as_deref(), Ok("SIGUSR1"), "{text}");
        }
        assert_eq!("34".parse::<Signal>().map(|signal| signal.to_string()).as_deref(), Ok("34"));
        for wrong in ["", "SIG", "SIGNONE", "0", "65", "-1"] {
            assert_eq!(wrong.parse::<Signal>(), Err(UnknownSignal(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn a_specification_that_says_nothing_takes_no_room_and_one_that_says_all_reads_back() {
        assert_eq!(serde_json::to_string(&ProcessSpec::default()).expect("JSON"), "{}");
        let text = r#"{"stop_signal": "SIGINT", "warn_signal": 12, "warn_before": "5m", "memory": 1024,
            "rlimits": {"nofile": 65536, "core": 0, "stack": "8MiB", "memlock": "unlimited"}, "umask": 23}"#;
        let spec: ProcessSpec = serde_json::from_str(text).expect("a specification");
        assert_eq!(spec.warning().map(|(signal, before)| (signal.number(), before.as_secs())), Some((12, 300)));
        assert_eq!(spec.rlimits[&Resource::Stack], Limit::AtMost(8 << 20));
        let written = serde_json::to_string(&spec).expect("JSON");
        assert_eq!(serde_json::from_str::<ProcessSpec>(&written).expect("the same"), spec);
    }
}
