//! What the end-to-end tests stand on: the real service in a temporary directory, and the outside world around it.
//!
//! A [`Place`] is a data directory with its configuration and plugins; [`Place::start`] makes a [`Server`] of it, which is
//! the service's own binary on a free port, and [`Server::kill`] makes a place of that again, as a power switch does. A
//! [`Client`] speaks HTTP to it over TCP or its unix socket, and [`Events`] is its stream of events: tests wait for what
//! happens, never for time to pass. [`Gate`] and [`Bell`] let a test and a job wait for each other. [`processes`] looks at
//! what really runs, [`Place::with_gpus`] gives it GPUs that a test describes, [`Receiver`] takes webhooks, and [`guest`] makes plugins that behave as badly as a test wants.
//!
//! Everything here panics when something goes wrong: that is how a test fails.

mod client;
mod disk;
mod events;
mod fifo;
mod gpus;
pub mod guest;
mod job;
mod place;
pub mod processes;
mod random;
mod receiver;
mod server;

use std::future::Future;
use std::time::Duration;

pub use client::{Answer, Client, Connection, Request, Streaming};
pub use disk::{Disk, Refusal, SmallDisk};
pub use events::{Event, Events};
pub use fifo::{Bell, Gate};
pub use job::{Job, sh};
pub use place::Place;
pub use random::Random;
pub use receiver::{Receiver, Webhook};
pub use server::{ANY_PORT, Server, program, start_refused};

/// Nothing here takes this long on a machine that works, however busy it is: whoever waits longer waits in vain.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What `future` comes to, which has to be before the test's patience is over.
///
/// # Panics
/// When it is not.
pub async fn patiently<T>(waiting_for: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {} s in vain for {waiting_for}", PATIENCE.as_secs()),
    }
}

/// The number that a variable of the environment asks for: how often a test does something, say.
///
/// # Panics
/// When it is no number.
#[must_use]
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}
