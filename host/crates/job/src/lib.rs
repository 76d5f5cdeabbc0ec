//! The model of Taxiway's jobs, without a runtime, a database or a plugin in sight.
//!
//! A [`JobSpec`] is what somebody asked for; a [`Job`] is that plus everything that has happened to it since. A job is in
//! one [`State`] at a time, and [`State::may_become`] is the only table of legal transitions: the queue asks it before it
//! changes anything, and tests walk it. [`Line`] keeps the jobs that wait in the order in which they start.
//!
//! Everything here is plain data and pure functions, so that rules can be tested over millions of cases.

mod end;
mod id;
mod job;
mod line;
mod problem;
mod spec;
mod state;
mod terms;
mod units;

pub use end::{Exit, Failure, FailureClass, Handover, Progress, Usage};
pub use id::{IdError, JobId, LaunchId};
pub use job::{Job, Reason, Rewrite, Verdict};
pub use line::{Line, Place};
pub use problem::{Problem, Severity};
pub use spec::{ConfigFormat, EnvValue, JobSpec};
pub use state::{State, StopTarget, UnknownState};
pub use terms::Terms;
pub use units::{Time, UnitError, duration, parse_duration, parse_size, size};
