//! What a shim is made of: its open files, its limits, and where its launch is.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use taxiway_job::LaunchId;

use super::command::Command;
use super::connection::Connection;
use super::end::Used;
use super::output::Output;
use super::{Directories, failed, open, write_at};
use crate::cgroup::Group;
use crate::launch::Started;
use crate::processes::Ending;
use crate::record::{ExitRecord, StoppedBy};
use crate::wire::{ShimPlan, file};

/// The arguments and variables of most commands. Memory that more of them took would count as used by the next command, which
/// begins in the shim's.
const SHORT_PLAN_BYTES: usize = 64 << 10;

/// One launch and everything that is open for it.
pub(super) struct Shim {
    pub(super) launch: LaunchId,
    pub(super) directory: OwnedFd,
    pub(super) directories: Arc<Directories>,
    pub(super) _lock: File,
    pub(super) record: File,
    pub(super) listener: Listener,
    pub(super) signals: OwnedFd,
    pub(super) timer: OwnedFd,
    pub(super) output: Output,
    /// The job's control group, where it has one.
    pub(super) group: Option<Group>,
    pub(super) limits: Limits,
    pub(super) state: State,
    /// What the command's processes have used that were waited for.
    pub(super) used: Used,
    /// It did no more than nearly every launch needs: no other thread of this process has worked for it, the host has asked for
    /// nothing in between, and its plan was short.
    pub(super) is_plain: bool,
    /// Who gets reports: the host that started this shim, or the last one that adopted it.
    pub(super) host: Option<Connection>,
    /// Connections that may become the host.
    pub(super) guests: Vec<Connection>,
}

/// Where hosts find this shim. There is no need of it while the one that started it lives, and most jobs are over before that
/// changes.
pub(super) enum Listener {
    /// The host that started this shim has not gone, or the directory is, so that no other looks there.
    NotNeeded,
    /// It could not be made: when to try again.
    Missing { retry_at: u64 },
    /// It stays, whoever adopts this shim.
    Open(OwnedFd),
}

impl Listener {
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Open(fd) => Some(fd.as_fd()),
            Self::NotNeeded | Self::Missing { .. } => None,
        }
    }
}

/// What stops a job.
pub(super) struct Limits {
    pub(super) time_limit_ns: Option<u64>,
    pub(super) grace_ns: u64,
    pub(super) stop_signal: i32,
    /// The signal that warns of the time limit, and how long before.
    pub(super) warning: Option<(i32, u64)>,
    /// How long processes may survive SIGKILL before they are reported.
    pub(super) unkillable_ns: u64,
}

pub(super) enum State {
    /// The command waits for `go`.
    Armed(Box<Command>),
    /// Its process was started and has not been reaped.
    Running(Running),
    /// Its process has ended, leftovers have not.
    Leftovers(Leftovers),
    /// Nothing is left but to see the record safe.
    Ended(Ended),
    /// Only within a change of state.
    Changing,
}

pub(super) struct Running {
    pub(super) process: Started,
    pub(super) stopping: Option<Stopping>,
    /// The end of the time limit that it was warned of.
    pub(super) warned_of: Option<u64>,
    /// When and what to make durable; none once that was begun.
    pub(super) mark: Option<(u64, File)>,
    /// When to tell the host of the start; none once it was told.
    pub(super) tell_at: Option<u64>,
}

/// A stop under way.
pub(super) struct Stopping {
    pub(super) by: StoppedBy,
    pub(super) signal: i32,
    pub(super) kill: Kill,
}

pub(super) enum Kill {
    /// SIGKILL at this time.
    At(u64),
    /// SIGKILL was sent.
    Sent(Killing),
}

pub(super) struct Killing {
    pub(super) ending: Ending,
    /// When to report what survives; none once that was done.
    pub(super) report_at: Option<u64>,
}

pub(super) struct Leftovers {
    pub(super) record: ExitRecord,
    pub(super) second_at: u64,
    pub(super) written: bool,
    pub(super) killing: Killing,
    /// Whether the host knows of the start.
    pub(super) start_told: bool,
}

pub(super) struct Ended {
    pub(super) record: ExitRecord,
    pub(super) second_at: u64,
    /// Whether the record is in the file, durable or not.
    pub(super) written: bool,
    /// When to make it durable.
    pub(super) sync_at: u64,
    /// The host could not be told of it whole: it has to look at the record.
    pub(super) untold: bool,
    /// The host has said that it is committed.
    pub(super) confirmed: bool,
}

/// Whether the shim stays.
#[derive(PartialEq, Eq)]
pub(super) enum Stay {
    Yes,
    /// Leaves with this exit status.
    No(i32),
}

impl Shim {
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the shim's open files, each of which failed with words of its own"
    )]
    pub(super) fn armed(
        launch: LaunchId,
        directory: OwnedFd,
        directories: Arc<Directories>,
        lock: File,
        record: File,
        log: File,
        signals: OwnedFd,
        timer: OwnedFd,
        plan: ShimPlan,
    ) -> Result<Self, String> {
        let (output, write_end) = Output::new(log, plan.log_max_size)
            .map_err(|error| format!("cannot make the pipe for its output: {error}"))?;
        let command = Command::new(&plan, write_end)?;
        let variables = plan.env.iter().map(|(name, value)| name.len() + value.len());
        let is_plain = plan.argv.iter().map(String::len).chain(variables).sum::<usize>() <= SHORT_PLAN_BYTES;
        let group = group(launch, &directory, &plan)?;
        let warning = plan.process.warning().map(|(signal, before)| (signal.number(), nanoseconds(before)));
        let limits = Limits {
            time_limit_ns: plan.time_limit_ms.map(milliseconds),
            grace_ns: milliseconds(plan.grace_ms),
            stop_signal: plan.process.stop_signal().number(),
            warning,
            unkillable_ns: milliseconds(plan.unkillable_ms),
        };
        Ok(Self {
            launch,
            directory,
            directories,
            _lock: lock,
            record,
            listener: Listener::NotNeeded,
            signals,
            timer,
            output,
            group,
            limits,
            state: State::Armed(Box::new(command)),
            used: Used::default(),
            is_plain,
            host: None,
            guests: Vec::new(),
        })
    }
}

/// Makes the job's control group and notes where it is, for a host that has to settle the launch without this shim. A job that
/// needs none does without when that fails.
fn group(launch: LaunchId, directory: &OwnedFd, plan: &ShimPlan) -> Result<Option<Group>, String> {
    let Some(base) = &plan.group_base else { return Ok(None) };
    let memory = plan.process.memory;
    match Group::create(Path::new(base), launch, memory) {
        Ok(group) => {
            let path = group.path().as_os_str().as_bytes();
            let noted = open(directory, file::GROUP, OFlag::O_WRONLY | OFlag::O_CREAT)
                .and_then(|note| write_at(&note, path, 0))
                .map_err(|error| failed("write", file::GROUP, error));
            if let Err(error) = noted {
                group.remove();
                return Err(error);
            }
            Ok(Some(group))
        }
        Err(error) if memory.is_some() => Err(format!("cannot bound the job's memory: {error}")),
        Err(_) => Ok(None),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds as nanoseconds.
pub(super) fn milliseconds(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000_000)
}
