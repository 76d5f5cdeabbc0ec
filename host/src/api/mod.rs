//! The HTTP API (DESIGN §8 and §9): who may ask, what they may ask, and how it is answered.
//!
//! [`Server`] listens and hands each request to one entry of the table in [`routes`]. Before its handler runs, [`gate`] has
//! checked the `Host`, where the request comes from, and whether the caller's [`Scope`](crate::store::Scope) suffices.
//! Handlers parse the body into a type of [`wire`], ask the service's rooms, and answer with a type of [`wire`] or a
//! [`Refused`](answer::Refused), which becomes problem+json. Nothing here knows SQL or wasm.

mod answer;
mod array;
mod body;
mod connection;
mod gate;
mod hosts;
mod idempotency;
mod lines;
mod listen;
mod openapi;
mod prefer;
mod routes;
pub mod socket;
mod submission;
mod token;
pub mod wire;
mod wrong_type;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use listen::{BindError, Server};
pub use token::{TokenError, ensure_admin_token};

use crate::service::Service;

/// The draft that the JSON of a submission makes, for those who judge one without a service.
///
/// # Errors
/// What a service would answer: all that is wrong with it.
pub(crate) fn read_draft(
    id: taxiway_job::JobId,
    body: &[u8],
) -> Result<crate::admission::Draft, Box<wire::ProblemDocument>> {
    let submission = submission::parse(body).map_err(answer::Refused::into_document)?;
    Ok(submission::draft(id, submission))
}

/// What every handler shares.
struct Api {
    /// The service whose API this is.
    service: Arc<Service>,
    /// Names that requests may use for it.
    hosts: hosts::Hosts,
    /// Tokens that have been seen and were good.
    tokens: token::Tokens,
    /// Bodies of more than 16 MiB that may be in memory at a time.
    large_bodies: tokio::sync::Semaphore,
    /// Requests with an Idempotency-Key that are being carried out.
    keys: idempotency::Keys,
    /// Cancelled when the service stops: streams end then.
    stop: CancellationToken,
}

/// What handlers take as their state.
type State = axum::extract::State<Arc<Api>>;
