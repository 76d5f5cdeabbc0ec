//! Making a plugin's problems safe to show, and true: a path points at something.

use crate::bindings::types;
use crate::secret::Secrets;
use crate::text;
use crate::view::{Problem, Severity};
use serde_json::Value;

/// Problems kept of one answer: a person reads a dozen.
pub const MOST_PROBLEMS: usize = 100;

// Together with a code of 64 bytes a problem is at most 1 KiB.
const PATH_LIMIT: usize = 192;
const MESSAGE_LIMIT: usize = 512;
const HELP_LIMIT: usize = 256;

/// The problems as the service shows them. When there are too many, errors are kept first: none of them may be lost
/// behind warnings, because one is enough to refuse the job.
pub(crate) fn clean_problems(
    plugin: &str,
    secrets: &Secrets,
    config: &Value,
    mut problems: Vec<types::Problem>,
) -> Vec<Problem> {
    if problems.len() > MOST_PROBLEMS {
        problems.sort_by_key(|problem| severity(problem.severity));
        problems.truncate(MOST_PROBLEMS);
    }
    let safe = |text: &str, limit: usize| secrets.safe(text, limit);
    problems
        .into_iter()
        .map(|problem| Problem {
            plugin: plugin.to_owned(),
            severity: severity(problem.severity),
            path: if points_into(config, &problem.path) && !secrets.found_in(&problem.path) {
                problem.path
            } else {
                String::new()
            },
            code: secrets.safe_code(&problem.code),
            message: safe(&problem.message, MESSAGE_LIMIT),
            help: problem.help.map(|help| safe(&help, HELP_LIMIT)),
        })
        .collect()
}

fn severity(severity: types::Severity) -> Severity {
    match severity {
        types::Severity::Error => Severity::Error,
        types::Severity::Warning => Severity::Warning,
        types::Severity::Info => Severity::Info,
    }
}

/// Whether a text is a JSON Pointer (RFC 6901) whose parent is an object or array of the document. The last part need
/// not be there: a missing key is named by where it should be.
pub fn points_into(document: &Value, pointer: &str) -> bool {
    if pointer.is_empty() {
        return true;
    }
    if pointer.len() > PATH_LIMIT
        || pointer.chars().any(char::is_control)
        || text::clean(pointer, PATH_LIMIT) != pointer
    {
        return false;
    }
    let Some((parent, last)) = pointer.rsplit_once('/') else { return false };
    if !pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1'])) {
        return false;
    }
    match document.pointer(parent) {
        Some(Value::Object(_)) => true,
        Some(Value::Array(_)) => {
            last == "-"
                || (last.bytes().all(|b| b.is_ascii_digit())
                    && !last.is_empty()
                    && (last == "0" || !last.starts_with('0')))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_must_have_a_parent() {
        let config = json!({"train": {"lr": 1, "a/b": {"x": 1}}, "list": [1, {"k": 2}]});
        for good in [
            "",
            "/train",
            "/missing",
            "/train/lr",
            "/train/missing",
            "/train/a~1b/x",
            "/list/0",
            "/list/9",
            "/list/-",
            "/list/1/k",
        ] {
            assert!(points_into(&config, good), "{good}");
        }
        for bad in [
            "train",
            "/missing/child",
            "/train/lr/child",
            "/list/x",
            "/list/01",
            "/list/",
            "/train/~2",
            "/train/~",
            "/a\nb",
            "/train/\u{202e}x",
        ] {
            assert!(!points_into(&config, bad), "{bad}");
        }
    }

    #[test]
    fn an_error_behind_ten_thousand_warnings_is_kept() {
        let one = |severity| types::Problem {
            severity,
            code: "c".into(),
            path: String::new(),
            message: "m".repeat(10_000),
            help: None,
        };
        let mut many: Vec<_> = (0..10_000).map(|_| one(types::Severity::Warning)).collect();
        many.push(one(types::Severity::Error));
        let kept = clean_problems("p", &Secrets::default(), &json!({}), many);
        assert_eq!(kept.len(), MOST_PROBLEMS);
        assert_eq!(kept[0].severity, Severity::Error);
        assert_eq!(kept[0].message.len(), MESSAGE_LIMIT);
    }
}
