//! Values of a wrong type, in words: which field, what came, and what is wanted.

use serde::Deserialize;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// Characters of a value that a sentence repeats.
const SHOWN: usize = 40;

/// A body that could not be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is no JSON.
    NotJson(serde_json::Error),
    /// It is, and says something else than it should: a sentence.
    Wrong(String),
}

/// Reads JSON.
///
/// # Errors
/// When it is none, or says something else than it should.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Unread> {
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // Once more, to find out where. What serde_json says of an enum's name is the same as of what is no JSON.
    let Ok(whole) = serde_json::from_slice::<Value>(bytes) else { return Err(Unread::NotJson(error)) };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(found) => {
            let value = whole.pointer(&pointer_of(found.path())).unwrap_or(&whole);
            Err(Unread::Wrong(sentence(&name_of(found.path()), value, &found.inner().to_string(), None)))
        }
        Ok(_) => Err(Unread::Wrong(without_place(&error.to_string()).to_owned())),
    }
}

/// What is wrong with a value where serde says `error`. `wanted` is what it should be, where serde cannot say
/// it well enough.
pub(super) fn sentence(field: &str, value: &Value, error: &str, wanted: Option<&str>) -> String {
    let error = without_place(error);
    let field = if field.is_empty() { "the body".to_owned() } else { format!("`{field}`") };
    let is_about_the_form =
        ["invalid type", "invalid value", "invalid length", "data did not match any variant", "expected value"];
    if !is_about_the_form.iter().any(|start| error.starts_with(start)) {
        // A sentence of its own, as of a unit or an unknown name.
        return if error.contains(&field) { error.to_owned() } else { format!("{field}: {error}") };
    }
    let came = shown(value);
    match (wanted, error.split_once(", expected ")) {
        (Some(wanted), _) => format!("{field} is {came}; it should be {wanted}"),
        (None, Some((_, expected))) => format!("{field} is {came}; it should be {}", plain(expected)),
        (None, None) => format!("{field} is {came}, which is of none of the forms that it may have"),
    }
}

/// A value as a sentence names it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() > SHOWN => {
            let start: String = text.chars().take(SHOWN).collect();
            format!("the text {:?}…", start)
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// What serde expects, for people who do not write Rust.
fn plain(expected: &str) -> &str {
    match expected {
        "a string" | "a borrowed string" | "string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        "a nonzero usize" => "a whole number, 1 or more",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => {
            "a whole number in its range"
        }
        "f32" | "f64" => "a number",
        // `struct Move`, `enum MoveTo`
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

/// An error without the line and column, which are those of another text than the sender's where a field stands alone.
fn without_place(error: &str) -> &str {
    error.rfind(" at line ").map_or(error, |at| &error[..at])
}

/// The place as people write it: `retries.on[0]`.
pub(super) fn name_of(path: &Path) -> String {
    let mut name = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => name.push_str(&format!("[{index}]")),
            // In JSON a variant with a value is an object's only member.
            Segment::Map { key } | Segment::Enum { variant: key } if name.is_empty() => name.push_str(key),
            Segment::Map { key } | Segment::Enum { variant: key } => name.push_str(&format!(".{key}")),
            Segment::Unknown => {}
        }
    }
    name
}

/// The place as a JSON Pointer (RFC 6901).
pub(super) fn pointer_of(path: &Path) -> String {
    let segments: Vec<String> = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(key.clone()),
            Segment::Unknown => None,
        })
        .collect();
    pointer(segments.iter().map(String::as_str))
}

/// A JSON Pointer (RFC 6901).
pub(super) fn pointer<'a>(segments: impl IntoIterator<Item = &'a str>) -> String {
    segments.into_iter().map(|segment| format!("/{}", segment.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::wire::{CancelMany, Move, Requeue};
    use super::*;

    fn wrong<T: for<'de> Deserialize<'de>>(body: &str) -> String {
        match read::<T>(body.as_bytes()) {
            Err(Unread::Wrong(sentence)) => sentence,
            Err(Unread::NotJson(error)) => panic!("{body}: {error}"),
            Ok(_) => panic!("{body} is read"),
        }
    }

    #[test]
    fn the_field_what_came_and_what_is_wanted_are_named() {
        assert_eq!(wrong::<Requeue>(r#"{"hold": 1}"#), "`hold` is the number 1; it should be true or false");
        assert_eq!(wrong::<CancelMany>(r#"{"ids": ["a", null]}"#), "`ids[1]` is null; it should be a text");
        assert_eq!(
            wrong::<CancelMany>(r#"{"filter": {"name": {}}}"#),
            "`filter.name` is an object; it should be a text"
        );
        for position in ["-1", "0"] {
            let sentence = format!("`to.position` is the number {position}; it should be a whole number, 1 or more");
            assert_eq!(wrong::<Move>(&format!(r#"{{"to": {{"position": {position}}}}}"#)), sentence);
        }
        assert_eq!(wrong::<Move>(r#"{"to": {"before": 7}}"#), "`to.before` is the number 7; it should be a text");
        assert!(wrong::<Requeue>(r#"{"hole": true}"#).contains("unknown field `hole`"));
        for body in [r#"{"to": "top"}"#, r#"{"to": 7}"#, "7", r#"{"to": {"position": "x"}}"#] {
            let sentence = wrong::<Move>(body);
            assert!(!sentence.contains("line 1"), "{sentence}");
        }
        assert!(matches!(read::<Move>(b"{"), Err(Unread::NotJson(_))));
    }

    #[test]
    fn a_long_text_is_not_repeated_whole() {
        let sentence = wrong::<Requeue>(&format!(r#"{{"hold": "{}"}}"#, "x".repeat(1000)));
        assert!(sentence.len() < 120, "{sentence}");
    }
}
