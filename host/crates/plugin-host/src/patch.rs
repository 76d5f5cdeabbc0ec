//! What a rewriter changed, as RFC 6902.

use serde_json::{Map, Value, json};

/// Operations below one object or list beyond which it is replaced as a whole: more than that nobody reads, and the record of a
/// rewriter that changes everything stays as large as what it made.
const MOST_OPERATIONS: usize = 256;

/// The longest path of an operation, in bytes. A change under a longer one is told by replacing what it lies in: every operation
/// below a name writes it out, and a guest chooses its names.
const LONGEST_PATH: usize = 4 << 10;

/// The patch that makes `new` of `old`, in time and size proportional to theirs. A list that has become longer or shorter is
/// replaced: the least patch of one takes the square of its length to find or to apply.
///
/// The patch is tried: one that the record keeps must be true.
pub fn between(old: &Value, new: &Value) -> Value {
    let mut operations = Vec::new();
    if let Some(change) = Change::between(old, new, 0) {
        change.write(&mut String::new(), &mut operations);
    }
    let operations = Value::Array(operations);
    if leads(&operations, old, new) { operations } else { json!([{"op": "replace", "path": "", "value": new}]) }
}

fn leads(operations: &Value, old: &Value, new: &Value) -> bool {
    let Ok(patch) = serde_json::from_value::<json_patch::Patch>(operations.clone()) else { return false };
    let mut applied = old.clone();
    json_patch::patch(&mut applied, &patch).is_ok() && applied == *new
}

/// What has changed at one place. No path is written and no value copied until all of it is known to be kept.
enum Change<'a> {
    Remove,
    Add(&'a Value),
    Replace(&'a Value),
    /// Never empty, and at most [`MOST_OPERATIONS`] in all.
    Below(Vec<(Step<'a>, Change<'a>)>),
}

/// From a place to one in it.
enum Step<'a> {
    Member(&'a str),
    Element(usize),
}

impl<'a> Change<'a> {
    /// None when there is none. `path` is the length of the path to both.
    fn between(old: &'a Value, new: &'a Value, path: usize) -> Option<Change<'a>> {
        let below = match (old, new) {
            (Value::Object(old), Value::Object(new)) => Below::of_members(old, new, path),
            (Value::Array(old), Value::Array(new)) if old.len() == new.len() => Below::of_elements(old, new, path),
            _ if old == new => return None,
            _ => None,
        };
        match below {
            Some(below) if below.is_empty() => None,
            Some(below) => Some(Change::Below(below)),
            None => Some(Change::Replace(new)),
        }
    }

    fn operations(&self) -> usize {
        match self {
            Change::Below(changes) => changes.iter().map(|(_, change)| change.operations()).sum(),
            _ => 1,
        }
    }

    fn write(&self, path: &mut String, operations: &mut Vec<Value>) {
        match self {
            Change::Remove => operations.push(json!({"op": "remove", "path": path})),
            Change::Add(value) => operations.push(json!({"op": "add", "path": path, "value": value})),
            Change::Replace(value) => operations.push(json!({"op": "replace", "path": path, "value": value})),
            Change::Below(changes) => {
                for (step, change) in changes {
                    let length = path.len();
                    step.write(path);
                    change.write(path, operations);
                    path.truncate(length);
                }
            }
        }
    }
}

impl Step<'_> {
    /// RFC 6901.
    fn write(&self, path: &mut String) {
        path.push('/');
        match self {
            Step::Member(name) => path.push_str(&name.replace('~', "~0").replace('/', "~1")),
            Step::Element(index) => path.push_str(&index.to_string()),
        }
    }

    fn length(&self) -> usize {
        1 + match self {
            Step::Member(name) => name.len() + name.bytes().filter(|byte| matches!(byte, b'~' | b'/')).count(),
            Step::Element(index) => index.checked_ilog10().unwrap_or(0) as usize + 1,
        }
    }
}

/// The changes in one object or list, as long as they can be told one by one.
struct Below<'a> {
    path: usize,
    operations: usize,
    changes: Vec<(Step<'a>, Change<'a>)>,
}

impl<'a> Below<'a> {
    fn of_members(
        old: &'a Map<String, Value>,
        new: &'a Map<String, Value>,
        path: usize,
    ) -> Option<Vec<(Step<'a>, Change<'a>)>> {
        let mut below = Below { path, operations: 0, changes: Vec::new() };
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            below.add(Step::Member(name), |_| Some(Change::Remove))?;
        }
        for (name, new) in new {
            below.add(Step::Member(name), |path| match old.get(name) {
                Some(old) => Change::between(old, new, path),
                None => Some(Change::Add(new)),
            })?;
        }
        Some(below.changes)
    }

    fn of_elements(old: &'a [Value], new: &'a [Value], path: usize) -> Option<Vec<(Step<'a>, Change<'a>)>> {
        let mut below = Below { path, operations: 0, changes: Vec::new() };
        for (index, (old, new)) in old.iter().zip(new).enumerate() {
            below.add(Step::Element(index), |path| Change::between(old, new, path))?;
        }
        Some(below.changes)
    }

    /// None when it is one operation too many, or its path is too long.
    fn add(&mut self, step: Step<'a>, change: impl FnOnce(usize) -> Option<Change<'a>>) -> Option<()> {
        let path = self.path + step.length();
        let Some(change) = change(path) else { return Some(()) };
        self.operations += change.operations();
        self.changes.push((step, change));
        (path <= LONGEST_PATH && self.operations <= MOST_OPERATIONS).then_some(())
    }
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

    #[test]
    fn what_lies_under_a_name_too_long_for_a_path_is_replaced_with_what_it_lies_in() {
        let members = |value: u32| (0..1000).map(|index| (format!("k{index}"), json!(value))).collect::<Map<_, _>>();
        let long = "~/".repeat(1 << 19);
        for changed in [200, 1000] {
            let inside = |value: u32| {
                let all = members(1).into_iter().enumerate();
                all.map(|(index, (name, old))| (name, if index < changed { json!(value) } else { old }))
                    .collect::<Map<_, _>>()
            };
            let old = json!({"a": {long.as_str(): inside(1), "b": 1}, "c": 1});
            let new = json!({"a": {long.as_str(): inside(2), "b": 1}, "c": 2});
            let expected = json!([
                {"op": "replace", "path": "/a", "value": new["a"]},
                {"op": "replace", "path": "/c", "value": 2},
            ]);
            assert_eq!(between(&old, &new), expected);
        }
        // Where nothing has changed the name does no harm.
        let (old, new) = (json!({long.as_str(): 1, "c": 1}), json!({long.as_str(): 1, "c": 2}));
        assert_eq!(between(&old, &new), json!([{"op": "replace", "path": "/c", "value": 2}]));
    }

    #[test]
    fn a_path_is_as_long_as_it_is_counted() {
        for step in [Step::Member(""), Step::Member("a~b/c"), Step::Element(0), Step::Element(10), Step::Element(999)] {
            let mut path = String::new();
            step.write(&mut path);
            assert_eq!(path.len(), step.length(), "{path}");
        }
    }

    #[test]
    fn changes_all_the_way_down_are_told_in_few_operations() {
        let deep = |leaf: u32| {
            (0..100).fold(json!(leaf), |inner, level| {
                let mut object: Map<String, Value> = (0..200).map(|index| (format!("k{index}"), json!(leaf))).collect();
                object.insert(format!("level-{level}"), inner);
                Value::Object(object)
            })
        };
        let (old, new) = (deep(1), deep(2));
        let patch = between(&old, &new);
        assert_eq!(applied(&old, &patch), new);
        assert!(patch.as_array().unwrap().len() <= MOST_OPERATIONS);
    }
}
