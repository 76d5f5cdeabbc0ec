//! What goes over the wire: every body of the API, for the routes that answer it and the command line that reads it.
//!
//! Answers borrow from the model (`Cow`), so that a submission is answered without copying the job; read by a client, the
//! same types own what they hold.

mod array;
mod event;
mod gpu;
mod history;
mod job;
mod list;
mod many;
mod operation;
mod problem;
mod submission;
pub mod training;

pub use crate::retention::Removed;
pub use array::{Array, ArrayVerdict, MemberVerdict, RefusedMember, SubmittedArray};
pub use event::{Event, Heard};
pub use gpu::{Gpu, GpuProcess, GpuSeries};
pub use history::{Attempt, AuditItem, DeliveryItem, HandoverItem};
#[cfg(test)]
pub(crate) use job::tests as job_tests;
pub use job::{BriefJob, Env, Job, Shown};
pub use list::{Health, JobMetrics, Page, QueueSummary, Series, Verdict};
pub use many::{Batch, BatchItem, CancelFilter, CancelMany, CancelledItem, CancelledMany};
pub use operation::{Explanation, Move, MoveTo, Requeue};
pub use problem::ProblemDocument;
pub use submission::Submission;
