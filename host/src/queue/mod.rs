//! The queue: which job starts next, and why the others wait.
//!
//! One task, the [`owner`], holds the line, the slots and every attempt that is under way. Nobody else changes them: the API
//! sends it commands through [`Queue`], the launcher sends it events, and it answers with what is durable.
//!
//! Two rules keep memory and store in step. A *request* (submit, cancel, hold …) is written first and applied when the store
//! has it; until then the job is `busy` and further requests about it wait their turn. A *fact* (a process started, ended) is
//! applied at once and written with [`Store::record`](crate::store::Store::record), which does not fail.
//!
//! The launch protocol is DESIGN §5: the next job in line is armed ([`arm`]) while the slot is taken, so that a hand-over
//! ([`run`]) is one write to a shim that is ready, followed by one transaction: the end of one job, its deliveries, and the
//! start of the next. [`recover`] takes over what a previous service left.

mod arm;
mod change;
mod count;
mod gpus;
mod handle;
mod next;
mod operate;
mod owner;
mod pace;
mod pause;
mod recover;
mod run;
mod samples;
mod silence;
mod slots;
mod standing;
mod yaml;

#[cfg(test)]
mod tests;

pub use count::Count;
pub use gpus::{Gpus, SlotStanding, SlotState};
pub use handle::{Holder, Mode, Outlook, Queue, QueueError, Standing, Submission, Summary};
pub use owner::{Hooks, LaunchVerdict, Options, StartError, start};
pub use slots::SlotGpu;
