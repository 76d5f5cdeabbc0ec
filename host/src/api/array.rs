//! The product of an array's lists, merged into a configuration.

use serde_json::{Map, Value};
use taxiway_job::{MOST_LEVELS, Problem, is_too_deep};

use super::answer::problem;
use super::wire::{Array, Submission};
use super::wrong_type::pointer;

/// Members of one array: what a transaction holds (DESIGN §3).
const MOST: usize = 1000;

/// Keys of one array: a product of longer lists has too many members anyway.
const MOST_KEYS: usize = 64;

/// One combination of values.
pub(super) struct Combination {
    /// The values, by their keys.
    pub(super) params: Map<String, Value>,
    /// The configuration with them.
    pub(super) config: Map<String, Value>,
}

/// What is wrong with an array, whatever its jobs may be.
pub(super) fn check(array: &Array, submission: &Submission, is_in_batch: bool, problems: &mut Vec<Problem>) {
    if is_in_batch {
        problems.push(problem(
            "/array",
            "array-in-batch",
            "an array is a submission of its own: send it to POST /jobs",
        ));
    }
    if submission.external_id.is_some() {
        let message = "an `external_id` is one job's and an array has several: use labels";
        problems.push(problem("/external_id", "external-id-of-array", message));
    }
    if array.max_parallel == Some(0) {
        let message = "`max_parallel` is 0, so that none would run: leave it out for no limit, or set `hold`";
        problems.push(problem("/array/max_parallel", "out-of-range", message));
    }
    if array.params.is_empty() || array.params.len() > MOST_KEYS {
        let message = format!("`params` has 1 to {MOST_KEYS} lists of values, like {{\"lr\": [0.1, 0.01]}}");
        problems.push(problem("/array/params", "no-values", message));
        return;
    }
    let before = problems.len();
    let empty = Map::new();
    let config = submission.config.as_ref().unwrap_or(&empty);
    let mut places: Vec<(&str, Vec<String>)> = Vec::new();
    for (key, values) in &array.params {
        let path = pointer(["array", "params", key]);
        let Some(first) = values.as_array().and_then(|values| values.first()) else {
            let message = format!("`{key}` has no values: give a list with at least one");
            problems.push(problem(&path, "no-values", message));
            continue;
        };
        let Some(steps) = steps(key) else {
            let message = format!("`{key}` begins with / and is no JSON Pointer: a ~ is written ~0, a / in a name ~1");
            problems.push(problem(&path, "no-pointer", message));
            continue;
        };
        // Before anything is made of it: each step is a level.
        if steps.len() > MOST_LEVELS {
            problems.push(too_deep(&pointer(["array", "params"])));
            continue;
        }
        let overlap = |(_, other): &&(&str, Vec<String>)| other.starts_with(&steps) || steps.starts_with(other);
        if let Some((other, _)) = places.iter().find(overlap) {
            let message =
                format!("`{key}` and `{other}` are the same place of the configuration, or one is within the other");
            problems.push(problem(&path, "overlap", message));
        } else if set(&mut config.clone(), &steps, first.clone()).is_none() {
            let message = format!("`{key}` leads through something of the configuration that has no members");
            problems.push(problem(&path, "no-such-place", message));
        } else if values.as_array().into_iter().flatten().any(|value| makes_too_deep(&steps, value)) {
            problems.push(too_deep(&path));
        }
        places.push((key, steps));
    }
    let lists = array.params.values().filter_map(Value::as_array);
    let count = lists.map(Vec::len).try_fold(1usize, usize::checked_mul);
    if problems.len() == before && count.is_none_or(|count| count > MOST) {
        let many = count.map_or_else(|| "far more".to_owned(), |count| count.to_string());
        let message = format!("the lists have {many} combinations, and an array has at most {MOST} jobs");
        problems.push(problem("/array/params", "too-many", message));
    }
}

fn too_deep(path: &str) -> Problem {
    let message = format!("it would give the configuration more than {MOST_LEVELS} levels of lists and objects");
    problem(path, "too-deep", message)
}

/// Whether a value at this place is too deep, whatever else is in the configuration.
fn makes_too_deep(steps: &[String], value: &Value) -> bool {
    let mut config = Map::new();
    // An empty object takes any steps.
    set(&mut config, steps, value.clone());
    is_too_deep(&config)
}

/// Every combination, the last key's values changing first. Call it with an array that [`check`] has let through.
pub(super) fn combinations(array: &Array, config: &Map<String, Value>) -> Vec<Combination> {
    let mut combinations = vec![Combination { params: Map::new(), config: config.clone() }];
    for (key, values) in &array.params {
        let (values, steps) =
            (values.as_array().map(Vec::as_slice).unwrap_or_default(), steps(key).unwrap_or_default());
        let with = |before: &Combination, value: &Value| {
            let mut next = Combination { params: before.params.clone(), config: before.config.clone() };
            next.params.insert(key.clone(), value.clone());
            set(&mut next.config, &steps, value.clone());
            next
        };
        combinations =
            combinations.iter().flat_map(|before| values.iter().map(move |value| with(before, value))).collect();
    }
    combinations
}

/// How many combinations there are of an array that [`check`] has let through.
pub(super) fn count(array: &Array) -> usize {
    array.params.values().filter_map(Value::as_array).map(Vec::len).product()
}

/// The way into a configuration: the steps of a JSON Pointer (RFC 6901), or one key. None when it is neither.
fn steps(key: &str) -> Option<Vec<String>> {
    let Some(pointer) = key.strip_prefix('/') else { return Some(vec![key.to_owned()]) };
    let step = |text: &str| {
        let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        is_escaped.then(|| text.replace("~1", "/").replace("~0", "~"))
    };
    pointer.split('/').map(step).collect()
}

/// Puts a value there; objects on the way are made where there is nothing, and an item of a list must be there. None when
/// something on the way is neither.
fn set(config: &mut Map<String, Value>, steps: &[String], value: Value) -> Option<()> {
    let (first, rest) = steps.split_first()?;
    let Some((last, between)) = rest.split_last() else {
        config.insert(first.clone(), value);
        return Some(());
    };
    let nothing = || Value::Object(Map::new());
    let mut at = config.entry(first.clone()).or_insert_with(nothing);
    for step in between {
        at = match at {
            Value::Object(members) => members.entry(step.clone()).or_insert_with(nothing),
            Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    match at {
        Value::Object(members) => {
            members.insert(last.clone(), value);
        }
        Value::Array(items) => *items.get_mut(last.parse::<usize>().ok()?)? = value,
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn array(params: Value) -> Array {
        Array { params: params.as_object().cloned().expect("an object"), max_parallel: None }
    }

    fn configs(params: Value, config: Value) -> Vec<Value> {
        let config = config.as_object().cloned().expect("an object");
        combinations(&array(params), &config).into_iter().map(|one| Value::Object(one.config)).collect()
    }

    fn codes(params: Value, config: Value) -> Vec<(String, String)> {
        let submission = Submission { config: config.as_object().cloned(), ..Submission::default() };
        let mut problems = Vec::new();
        check(&array(params), &submission, false, &mut problems);
        problems.into_iter().map(|problem| (problem.path, problem.code)).collect()
    }

    #[test]
    fn the_last_list_changes_first_and_values_take_the_place_of_what_was_there() {
        let params = json!({"lr": [0.1, 0.2], "seed": [1, 2]});
        let expected =
            [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)].map(|(lr, seed)| json!({"lr": lr, "a": 1, "seed": seed}));
        assert_eq!(configs(params.clone(), json!({"lr": 9, "a": 1})), expected);
        assert_eq!(count(&array(params)), 4);
    }

    #[test]
    fn a_key_that_begins_with_a_slash_is_a_pointer_and_any_other_a_key() {
        let config = json!({"train": {"lr": 1}, "layers": [{"size": 1}, {"size": 2}]});
        let params = json!({"/train/lr": [5], "/layers/1/size": [6], "/new/deep": [7], "a.b/c": [8], "/x~1y~01": [9]});
        let expected = json!({"train": {"lr": 5}, "layers": [{"size": 1}, {"size": 6}], "new": {"deep": 7}, "a.b/c": 8, "x/y~1": 9});
        assert_eq!(codes(params.clone(), config.clone()), []);
        assert_eq!(configs(params, config), [expected]);
    }

    #[test]
    fn no_key_and_no_value_makes_a_configuration_deeper_than_it_may_be() {
        let steps = |count: usize| "/a".repeat(count);
        let fits = steps(MOST_LEVELS);
        assert_eq!(codes(json!({fits: [1]}), json!({})), []);
        for count in [MOST_LEVELS + 1, 128, 100_000] {
            let found = codes(json!({steps(count): [1]}), json!({}));
            assert_eq!(found, [("/array/params".to_owned(), "too-deep".to_owned())], "{count} steps");
        }
        let deep = (0..100).fold(json!(1), |value, _| json!([value]));
        let found = codes(json!({"a": [1, deep], "/b/c": [1]}), json!({}));
        assert_eq!(found, [("/array/params/a".to_owned(), "too-deep".to_owned())]);
    }

    #[test]
    fn an_array_that_makes_no_sense_is_told_why() {
        let config = json!({"lr": 1, "layers": [1]});
        for (params, path, code) in [
            (json!({}), "/array/params", "no-values"),
            (json!({"lr": 1}), "/array/params/lr", "no-values"),
            (json!({"lr": []}), "/array/params/lr", "no-values"),
            (json!({"/a~b": [1]}), "/array/params/~1a~0b", "no-pointer"),
            (json!({"lr": [1], "/lr": [1]}), "/array/params/~1lr", "overlap"),
            (json!({"/a/b": [1], "a": [1]}), "/array/params/a", "overlap"),
            (json!({"/lr/x": [1]}), "/array/params/~1lr~1x", "no-such-place"),
            (json!({"/layers/1": [1]}), "/array/params/~1layers~11", "no-such-place"),
            (json!({"a": vec![0; 1001]}), "/array/params", "too-many"),
            (json!({"a": vec![0; 26], "b": vec![0; 40]}), "/array/params", "too-many"),
        ] {
            assert_eq!(codes(params.clone(), config.clone()), [(path.to_owned(), code.to_owned())], "{params}");
        }
        assert_eq!(codes(json!({"a": vec![0; 25], "b": vec![0; 40]}), config), [], "a thousand");
    }
}
