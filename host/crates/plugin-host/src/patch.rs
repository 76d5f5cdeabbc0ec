//! What a rewriter changed, as RFC 6902.

use serde_json::{Value, json};

/// The patch that makes `new` of `old`. It is tried: a patch that the record keeps must be true.
pub fn between(old: &Value, new: &Value) -> Value {
    let patch = json_patch::diff(old, new);
    let mut applied = old.clone();
    let holds = json_patch::patch(&mut applied, &patch).is_ok() && applied == *new;
    match serde_json::to_value(&patch) {
        Ok(patch) if holds => patch,
        _ => json!([{"op": "replace", "path": "", "value": new}]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_leads_from_the_old_to_the_new() {
        let old = json!({"a": 1, "list": [1, 2, 3, 4], "gone": null, "k/~": {"x": []}});
        let new = json!({"a": 2, "list": [1, 3], "k/~": {"x": [{}], "y": true}});
        let patch: json_patch::Patch = serde_json::from_value(between(&old, &new)).unwrap();
        let mut applied = old.clone();
        json_patch::patch(&mut applied, &patch).unwrap();
        assert_eq!(applied, new);
        assert_eq!(between(&old, &old), json!([]));
    }
}
