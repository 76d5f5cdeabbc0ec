//! What a rewriter changed, as RFC 6902.

use serde_json::{Map, Value, json};

/// Operations below one object or list beyond which it is replaced as a whole: more than that nobody reads, and the record of a
/// rewriter that changes everything stays as large as what it made.
const MOST_OPERATIONS: usize = 256;

/// The patch that makes `new` of `old`, in time and size proportional to theirs. A list that has become longer or shorter is
/// replaced: the least patch of one takes the square of its length to find or to apply.
///
/// The patch is tried: one that the record keeps must be true.
pub fn between(old: &Value, new: &Value) -> Value {
    let mut operations = Vec::new();
    collect(&mut String::new(), old, new, &mut operations);
    let operations = Value::Array(operations);
    if leads(&operations, old, new) { operations } else { json!([{"op": "replace", "path": "", "value": new}]) }
}

fn leads(operations: &Value, old: &Value, new: &Value) -> bool {
    let Ok(patch) = serde_json::from_value::<json_patch::Patch>(operations.clone()) else { return false };
    let mut applied = old.clone();
    json_patch::patch(&mut applied, &patch).is_ok() && applied == *new
}

/// Adds what leads from `old` to `new`, which are at `path`.
fn collect(path: &mut String, old: &Value, new: &Value, operations: &mut Vec<Value>) {
    let before = operations.len();
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => collect_members(path, old, new, operations),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                below(path, &index.to_string(), |path| collect(path, old, new, operations));
            }
        }
        _ if old == new => {}
        _ => operations.push(json!({"op": "replace", "path": path, "value": new})),
    }
    if operations.len() - before > MOST_OPERATIONS {
        operations.truncate(before);
        operations.push(json!({"op": "replace", "path": path, "value": new}));
    }
}

fn collect_members(path: &mut String, old: &Map<String, Value>, new: &Map<String, Value>, operations: &mut Vec<Value>) {
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        below(path, name, |path| operations.push(json!({"op": "remove", "path": path})));
    }
    for (name, new) in new {
        below(path, name, |path| match old.get(name) {
            Some(old) => collect(path, old, new, operations),
            None => operations.push(json!({"op": "add", "path": path, "value": new})),
        });
    }
}

/// With the path of a member or an element (RFC 6901).
fn below(path: &mut String, name: &str, then: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push('/');
    path.push_str(&name.replace('~', "~0").replace('/', "~1"));
    then(path);
    path.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(old: &Value, patch: &Value) -> Value {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
        let mut applied = old.clone();
        json_patch::patch(&mut applied, &patch).unwrap();
        applied
    }

    #[test]
    fn a_patch_leads_from_the_old_to_the_new() {
        let old = json!({"a": 1, "list": [1, 2, 3, 4], "same": [1, {"x": 2}], "gone": null, "k/~": {"x": []}});
        let new = json!({"a": 2, "list": [1, 3], "same": [1, {"x": 3}], "k/~": {"x": [{}], "y": true}});
        let patch = between(&old, &new);
        assert_eq!(applied(&old, &patch), new);
        let paths: Vec<&str> = patch.as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/gone", "/a", "/list", "/same/1/x", "/k~1~0/x", "/k~1~0/y"]);
        assert_eq!(between(&old, &old), json!([]));
    }

    #[test]
    fn a_large_list_that_is_emptied_filled_or_changed_is_one_operation() {
        let list: Vec<u32> = (0..200_000).collect();
        let other: Vec<u32> = (1..200_001).collect();
        for (old, new) in [(json!(list), json!([])), (json!([]), json!(list)), (json!(list), json!(other))] {
            let (old, new) = (json!({"a": old}), json!({"a": new}));
            assert_eq!(between(&old, &new), json!([{"op": "replace", "path": "/a", "value": new["a"]}]));
        }
    }

    #[test]
    fn an_object_with_too_many_changes_is_replaced_and_its_neighbours_are_not() {
        let members = |value: u32| (0..1000).map(|index| (format!("k{index}"), json!(value))).collect::<Map<_, _>>();
        let old = json!({"big": members(1), "small": {"x": 1}, "gone": members(1)});
        let new = json!({"big": members(2), "small": {"x": 2}});
        let patch = between(&old, &new);
        assert_eq!(applied(&old, &patch), new);
        let paths: Vec<&str> = patch.as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/gone", "/big", "/small/x"]);
    }
}
