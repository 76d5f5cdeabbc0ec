//! The model of Taxiway's jobs, without a runtime, a database or a plugin in sight.
//!
//! A [`JobSpec`] is what somebody asked for; a [`Job`] is that plus everything that has happened to it since. A job is in
//! one [`State`] at a time, and [`State::may_become`] is the only table of legal transitions: the queue asks it before it
//! changes anything, and tests walk it. [`Jobs`] are those that have not ended, with what each waits for, and [`Line`] keeps
//! them in the order in which they start.
//!
//! Everything here is plain data and pure functions, so that rules can be tested over millions of cases.

mod array;
mod condition;
mod dependencies;
mod depth;
mod end;
mod forecast;
mod id;
mod integers;
mod job;
mod jobs;
mod line;
mod problem;
mod process;
mod spec;
mod state;
mod terms;
mod text;
mod units;

pub use array::{ArrayLimit, ArrayMember};
pub use condition::{Condition, Unmet};
pub use depth::{MOST_LEVELS, is_too_deep};
pub use end::{Exit, Failure, FailureClass, Handover, Progress, UnknownFailureClass, Usage};
pub use forecast::expected_wait;
pub use id::{ArrayId, IdError, JobId, LaunchId};
pub use integers::{OutOfRange, out_of_range};
pub use job::{Beside, Job, Reason, Rewrite, Verdict};
pub use jobs::{Busy, Entry, Jobs};
pub use line::{Line, Place, Shift, Spot, Target};
pub use problem::{Problem, Severity};
pub use process::{
    LONGEST_ARGUMENT, LONGEST_ARGUMENTS, Limit, ProcessSpec, Resource, Signal, UnknownSignal, bytes_of_arguments,
};
pub use spec::{ConfigFormat, EnvValue, JobSpec};
pub use state::{State, StopTarget, UnknownState};
pub use terms::{Retries, Terms};
pub use text::is_unseen;
pub use units::{Time, UnitError, duration, parse_duration, parse_size, size};
