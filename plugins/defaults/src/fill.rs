//! Merging without overwriting.

use serde_json::{Map, Value};

/// Puts in every key that is missing, at every depth. A key that is there stays, whatever its value: `null` is a
/// choice too, and a list is one value.
pub fn missing(config: &mut Value, defaults: &Map<String, Value>) {
    let Value::Object(config) = config else { return };
    for (key, default) in defaults {
        match config.get_mut(key) {
            None => {
                config.insert(key.clone(), default.clone());
            }
            Some(present) => {
                if let Value::Object(default) = default {
                    missing(present, default);
                }
            }
        }
    }
}
