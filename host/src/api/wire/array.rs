//! Arrays: one submission, a job for each combination of values.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taxiway_job::{ArrayId, Problem, Rewrite};

/// What makes a submission an array.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Array {
    /// Lists of values by the keys under which they go into the configuration. A key that begins with `/` is a JSON Pointer, any
    /// other a key of the configuration itself.
    pub params: Map<String, Value>,
    /// How many members may run at a time; none for any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
}

/// The answer to an array that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubmittedArray<J> {
    /// The array's id.
    pub array_id: ArrayId,
    /// Its jobs, in the order of the product: the last key's values change first.
    pub items: Vec<J>,
}

/// The answer to a dry run of an array.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArrayVerdict<'a> {
    /// Whether the array would be accepted: all of its members would.
    pub accepted: bool,
    /// What would become of each.
    pub items: Vec<MemberVerdict<'a>>,
}

/// What would become of one member of an array.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberVerdict<'a> {
    /// Its number, from 0.
    pub array_index: u32,
    /// Its values.
    pub array_params: Cow<'a, Map<String, Value>>,
    /// Whether it would be accepted.
    pub accepted: bool,
    /// Everything that was found; only errors refuse.
    pub problems: Cow<'a, [Problem]>,
    /// The configuration that it would run with.
    pub config: Cow<'a, Map<String, Value>>,
    /// What each rewriter would change, in order.
    pub rewrites: Cow<'a, [Rewrite]>,
}

/// A member for which an array was refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusedMember<'a> {
    /// Its number, from 0.
    pub array_index: u32,
    /// Its values.
    pub array_params: Cow<'a, Map<String, Value>>,
    /// What is wrong with it.
    pub problems: Cow<'a, [Problem]>,
}
