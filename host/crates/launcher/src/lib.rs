//! Starting jobs so that they outlive the host, and knowing how they ended.
//!
//! # Theory of operation
//!
//! Three kinds of process take part, all of one program:
//!
//! ```text
//! host ──────── control socket, one per launch ────────┐
//!  └─ spawner (single-threaded, small, subreaper)      │
//!      └─ shim, of one launch at a time (session leader, subreaper)
//!          └─ the job's command, in a process group of its own
//! ```
//!
//! The **host** decides. It makes a launch's directory ([`Launcher::prepare`]), commits its intent to start the job elsewhere, has
//! a shim started ([`Launcher::arm`]) and, when the slot is free, tells it to go ([`Launcher::go`]): one write on the caller's
//! thread.
//!
//! The **spawner** forks shims: a fork of something small, not an exec, not a copy of the host's address space. It is the
//! subreaper above its shims and ends what one that dies leaves behind.
//!
//! A **shim** owns one launch at a time: the processes, their output, the time limit and the exit record. It holds a record lock as
//! long, and that is until the end of its launch is safe: confirmed by the host, or durable in `exit.json`. The job dies with it,
//! never without it.
//!
//! What happened to a launch is never guessed. Either its shim says so, or the shim is provably gone (its lock can be taken) and
//! the files that it left are read *under that lock*: a record with a checksum that holds is what the job ended with; the mark
//! `started` means that it may have run. The rules are DESIGN §5's, and `crash_points.rs`
//! explores them exhaustively.
//!
//! The rooms: [`Launcher`] and the types around it are what the host sees; `local` is the host's side, `shim` and `spawner` are
//! the other processes, `wire` is what they say to each other; `processes`, `lock` and [`clock`] are the system calls they
//! share; [`ExitRecord`] is the file between them; [`log`], `progress` and [`failure`] read what jobs write.

#![deny(missing_docs)]

mod assignment;
mod cgroup;
pub mod clock;
#[cfg(test)]
mod crash_points;
pub mod failure;
mod launch;
mod local;
mod lock;
pub mod log;
mod processes;
mod progress;
mod record;
mod rules;
mod shim;
mod spawner;
mod watch;
mod wire;

pub use cgroup::Delegated;
pub use clock::{Instant, boot_id};
pub use launch::{
    AdoptedPhase, ConfigFile, Event, GoError, LaunchPlan, Launcher, PrepareError, Settlement, Started, Stop,
    StoredPhase, Unsettled,
};
pub use local::{LocalLauncher, Options, StartError, remove_leftovers, started_alone};
pub use record::{Clean, ExitRecord, LaunchError, Status, StoppedBy};
pub use spawner::dispatch_spawner;
