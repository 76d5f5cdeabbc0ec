//! How deep JSON may be that somebody hands in.

use serde_json::{Map, Value};

/// Levels of lists and objects within each other, the outermost included. What reads JSON reads 128 of them (serde_json does,
/// which the service and its clients use), and a configuration is stored and shown within a dozen others: as the value of a
/// patch, of a rewrite, of a job, of a list. Half of that is far more than a configuration has.
pub const MOST_LEVELS: usize = 64;

/// Whether an object has more levels than may be.
#[must_use]
pub fn is_too_deep(members: &Map<String, Value>) -> bool {
    members.values().any(|value| is_deeper(value, MOST_LEVELS - 1))
}

/// Whether a value has more levels than this. Goes down no further.
fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(members) => levels == 0 || members.values().any(|value| is_deeper(value, levels - 1)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An object of so many levels, lists and objects in turn.
    fn of_levels(levels: usize) -> Map<String, Value> {
        let inner = (1..levels)
            .fold(json!(1), |value, level| if level % 2 == 0 { json!([value]) } else { json!({"a": value}) });
        Map::from_iter([("flat".to_owned(), json!(1)), ("deep".to_owned(), inner)])
    }

    #[test]
    fn an_object_has_at_most_so_many_levels() {
        assert!(!is_too_deep(&Map::new()));
        assert!(!is_too_deep(&of_levels(MOST_LEVELS)));
        assert!(is_too_deep(&of_levels(MOST_LEVELS + 1)));
    }
}
