//! JSON Pointers (RFC 6901): how problems name a place in a configuration.

use serde_json::{Map, Value};

/// The pointer to `key` under `parent`, with `~` and `/` escaped.
///
/// ```
/// assert_eq!(taxiway_plugin::pointer::join("/optim", "betas/0"), "/optim/betas~10");
/// ```
pub fn join(parent: &str, key: &str) -> String {
    format!("{parent}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// The keys that a pointer goes through, unescaped; `None` when it is no pointer.
///
/// ```
/// assert_eq!(taxiway_plugin::pointer::keys("/a~1b/c"), Some(vec!["a/b".to_owned(), "c".to_owned()]));
/// assert_eq!(taxiway_plugin::pointer::keys("a"), None);
/// ```
pub fn keys(pointer: &str) -> Option<Vec<String>> {
    if pointer.is_empty() {
        return Some(Vec::new());
    }
    let keys = pointer.strip_prefix('/')?.split('/');
    Some(keys.map(|key| key.replace("~1", "/").replace("~0", "~")).collect())
}

/// Puts a value at a pointer, making the objects on the way. False when something that is no object is in the way, or
/// the pointer is empty or malformed; the document is unchanged then.
///
/// ```
/// use taxiway_plugin::{json, pointer};
///
/// let mut config = json!({});
/// assert!(pointer::set(&mut config, "/train/seed", json!(7)));
/// assert_eq!(config, json!({"train": {"seed": 7}}));
/// ```
pub fn set(document: &mut Value, pointer: &str, value: Value) -> bool {
    let Some(keys) = keys(pointer) else { return false };
    let Some((last, parents)) = keys.split_last() else { return false };

    // Looked at before it is touched, so that a refusal leaves no half-made objects behind.
    let mut place = Some(&*document);
    for key in parents {
        place = match place {
            Some(Value::Object(object)) => object.get(key),
            Some(_) => return false,
            None => break,
        };
    }
    if place.is_some_and(|place| !place.is_object()) {
        return false;
    }

    let mut place = document;
    for key in parents {
        let Value::Object(object) = place else { return false };
        place = object.entry(key.as_str()).or_insert_with(|| Value::Object(Map::new()));
    }
    let Value::Object(object) = place else { return false };
    object.insert(last.clone(), value);
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_in_the_way_is_left_as_it_is() {
        for (document, pointer) in [(json!({"a": 1}), "/a/b/c"), (json!({"a": [1]}), "/a/0"), (json!(3), "/a")] {
            let mut changed = document.clone();
            assert!(!set(&mut changed, pointer, json!(0)), "{pointer} in {document}");
            assert_eq!(changed, document);
        }
    }

    #[test]
    fn the_empty_and_the_malformed_pointer_are_refused() {
        assert!(!set(&mut json!({}), "", json!(0)));
        assert!(!set(&mut json!({}), "a", json!(0)));
    }
}
