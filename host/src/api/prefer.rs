//! `Prefer: return=minimal` (RFC 7240): an answer to a submission that has of each job its id and where it stands.
//!
//! A job has some fifty fields, most of which its sender has just sent. A client that submits thousands is spared reading them; what
//! plugins have changed or warned of it finds in the job.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, request};
use axum::response::Response;
use serde::Serialize;
use taxiway_job::Job;

use super::answer::{with_jobs, with_room};
use super::wire;
use crate::queue::Standing;

const HEADER: HeaderName = HeaderName::from_static("prefer");
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a brief job takes as JSON in a batch, in bytes.
const BYTES_OF_A_BRIEF_JOB: usize = 128;

/// How much of each job an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefer {
    /// All of it: what is answered unless something else is asked for.
    Representation,
    /// Its id, and where it stands.
    Minimal,
}

impl Prefer {
    /// What a request prefers. A preference is a wish: one that is not known, or not understood, is none.
    fn of(headers: &HeaderMap) -> Self {
        let texts = headers.get_all(HEADER).into_iter().filter_map(|value| value.to_str().ok());
        let mut named = texts.flat_map(|text| split(text, ',')).filter_map(|preference| {
            // Parameters of a preference follow it after a semicolon; `return` has none.
            let preference = split(preference, ';').next()?;
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            name.trim().eq_ignore_ascii_case("return").then(|| unquoted(value.trim()))
        });
        // The first of several with the same name counts (RFC 7240, 2).
        match named.next() {
            Some(value) if value.eq_ignore_ascii_case("minimal") => Self::Minimal,
            _ => Self::Representation,
        }
    }

    /// A job as the answer has it.
    pub(super) fn shown<'a>(self, job: &'a Job, standing: &'a Standing) -> wire::Shown<'a> {
        wire::Shown { job, standing, brief: self == Self::Minimal }
    }

    /// A 200 with as many jobs in it, which says when the preference was heeded.
    pub(super) fn answer<T: Serialize>(self, jobs: usize, value: &T) -> Response {
        match self {
            Self::Representation => with_jobs(jobs, value),
            Self::Minimal => {
                let mut response = with_room(jobs * BYTES_OF_A_BRIEF_JOB, value);
                response.headers_mut().insert(APPLIED, HeaderValue::from_static("return=minimal"));
                response
            }
        }
    }
}

/// The parts of a list, of which some may be quoted strings with the separator in them (RFC 9110, 5.6.4).
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return c == separator && !quoted,
        }
        false
    })
}

/// A value, which may be a quoted string. One with escapes is no word that is known here.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

impl<S: Sync> FromRequestParts<S> for Prefer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_return_preference_counts_and_others_do_not_matter() {
        let of = |values: &[&'static str]| {
            let values = values.iter().map(|value| (HEADER, HeaderValue::from_static(value)));
            Prefer::of(&values.collect::<HeaderMap>())
        };
        for values in [
            &["return=minimal"][..],
            &["Return = \"Minimal\""],
            &["respond-async, wait=10, return=minimal; foo=\"bar\""],
            &["wait=10", "return=minimal", "return=representation"],
            &["foo=\"a, \\\"b\", return=minimal"],
        ] {
            assert_eq!(of(values), Prefer::Minimal, "{values:?}");
        }
        for values in [
            &[][..],
            &["return=representation"],
            &["return=representation, return=minimal"],
            &["return"],
            &["return, return=minimal"],
            &["foo=\"a, return=minimal\""],
            &["foo=\"a\\\", return=minimal, b\""],
            &["return=\"minimal"],
            &["returns=minimal"],
            &["minimal"],
            &["return=none"],
        ] {
            assert_eq!(of(values), Prefer::Representation, "{values:?}");
        }
    }
}
