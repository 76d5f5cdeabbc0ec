//! Many jobs in one request: batches, and cancels.

use std::borrow::Cow;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use taxiway_job::{JobId, State};

use super::{ProblemDocument, Shown};

/// `POST /jobs/batch`: what became of each submission, in their order.
#[derive(Debug, Clone, Serialize)]
pub struct Batch<'a> {
    /// One for each submission.
    pub items: Vec<BatchItem<'a>>,
}

/// What became of one submission of a batch.
#[derive(Debug, Clone, Serialize)]
pub struct BatchItem<'a> {
    /// The HTTP status that it would have had on its own.
    pub status: u16,
    /// The job, when it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Shown<'a>>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Cow<'a, ProblemDocument>>,
}

impl<'a> BatchItem<'a> {
    /// The job was accepted.
    #[must_use]
    pub fn accepted(job: Shown<'a>) -> Self {
        Self { status: 201, job: Some(job), problem: None }
    }

    /// It was refused.
    #[must_use]
    pub fn refused(document: &ProblemDocument) -> Self {
        Self { status: document.status, job: None, problem: Some(Cow::Owned(document.clone())) }
    }
}

/// `POST /jobs/cancel`: which jobs, by their ids or by what they have in common.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CancelMany {
    /// These.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// All that have not ended and fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<CancelFilter>,
}

/// What jobs have in common, in the words of `GET /jobs`. Empty means: all that have not ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CancelFilter {
    /// In one of these states: a list, or text with commas.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub state: Vec<String>,
    /// With all of these labels: `KEY=VALUE`, or a list of such.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub label: Vec<String>,
    /// With this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of this profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Of this array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array_id: Option<String>,
}

/// A list of texts, or one text; not nothing.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;
    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(text) = texts.next_element()? {
                all.push(text);
            }
            Ok(all)
        }
    }
    let texts = deserializer.deserialize_any(Texts)?;
    // An empty list is more often a variable that was not set than the wish to cancel everything.
    if texts.iter().all(|text| text.trim_matches([',', ' ']).is_empty()) {
        return Err(serde::de::Error::custom("a part of the filter is given and empty; leave it out to ask for any"));
    }
    Ok(texts)
}

/// The answer to `POST /jobs/cancel`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelledMany<'a> {
    /// What became of each.
    pub items: Vec<CancelledItem<'a>>,
    /// Whether more jobs fit the filter: send the same request again.
    pub more: bool,
}

/// What became of one job that was to be cancelled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelledItem<'a> {
    /// Which, as it was asked for.
    pub id: Cow<'a, str>,
    /// The HTTP status that cancelling it alone would have had.
    pub status: u16,
    /// `cancelled`, or `cancelling` until its processes are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Why it could not be cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Cow<'a, ProblemDocument>>,
}

impl CancelledItem<'_> {
    /// It was cancelled, or is being cancelled.
    #[must_use]
    pub fn done(id: JobId, state: State) -> Self {
        Self { id: Cow::Owned(id.to_string()), status: 200, state: Some(state), problem: None }
    }
}
