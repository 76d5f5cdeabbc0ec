//! Taxiway: lines up GPU jobs, checks each one before it takes off, and launches them one after another.
//!
//! The rooms, in the order in which a job passes through them: [`api`] takes the submission, [`admission`] has plugins
//! rewrite and judge it, [`store`] makes it durable, [`queue`] decides when it starts and has the launcher start it, and
//! [`outbox`] tells the completion hooks how it ended. [`service`] puts them together; [`cli`] is a client of the API.
//! `docs/architecture.md` is the map.

pub mod admission;
pub mod alarm;
pub mod api;
mod bundled;
pub mod cli;
pub mod config;
pub mod gpu;
mod line;
pub mod outbox;
pub mod plugin_events;
pub mod queue;
pub mod rehearsal;
pub mod retention;
pub mod service;
pub mod store;
mod systemd;
mod vital;
