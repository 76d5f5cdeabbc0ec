//! A plugin's secrets: given to the plugin that was granted them, taken out of everything that leaves it.

use crate::text;
use std::borrow::Cow;

/// Shorter secrets are not looked for in text: they would black out ordinary words.
const SHORTEST_REDACTED: usize = 4;

/// The secrets of one loaded plugin.
#[derive(Default)]
pub struct Secrets {
    named: Vec<(String, String)>,
    /// What must not be seen, as it is and as JSON writes it, longest first so that no part of one stays.
    hidden: Vec<String>,
}

impl Secrets {
    /// From names and values.
    pub fn new(named: Vec<(String, String)>) -> Secrets {
        let mut hidden: Vec<String> = Vec::new();
        for (_, value) in &named {
            if value.len() >= SHORTEST_REDACTED {
                hidden.push(value.clone());
                let quoted = serde_json::Value::from(value.as_str()).to_string();
                let escaped = &quoted[1..quoted.len() - 1];
                if escaped != value {
                    hidden.push(escaped.to_owned());
                }
            }
        }
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Secrets { named, hidden }
    }

    /// The secret that the manifest grants by this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// Whether the text holds one of them.
    pub fn found_in(&self, text: &str) -> bool {
        self.hidden.iter().any(|hidden| text.contains(hidden.as_str()))
    }

    /// The text without them.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for hidden in &self.hidden {
            if text.contains(hidden.as_str()) {
                text = Cow::Owned(text.replace(hidden.as_str(), "[redacted]"));
            }
        }
        text
    }

    /// The text safe to show: without them, cleaned, and cut to `limit` bytes. One that comes out only when what is invisible has
    /// been taken out of it goes, too.
    pub fn safe(&self, text: &str, limit: usize) -> String {
        let clean = text::clean(&self.redact(text), usize::MAX);
        text::clean(&self.redact(&clean), limit)
    }

    /// The text without them, and without a part of one at its end, where a cap has cut it off.
    pub fn redact_cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let whole = self.redact(text);
        for hidden in &self.hidden {
            let starts = hidden.char_indices().map(|(at, _)| at).filter(|at| *at >= SHORTEST_REDACTED).rev();
            for length in starts {
                if let Some(kept) = whole.strip_suffix(&hidden[..length]) {
                    return Cow::Owned(format!("{kept}[redacted]"));
                }
            }
        }
        whole
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_plain_escaped_and_cut() {
        let secrets = Secrets::new(vec![
            ("A".into(), "hunter2\"x".into()),
            ("B".into(), "hunter2".into()),
            ("C".into(), "abc".into()),
        ]);
        assert_eq!(secrets.redact("is hunter2\"x and hunter2 and abc"), "is [redacted] and [redacted] and abc");
        assert_eq!(secrets.redact(r#"{"a":"hunter2\"x"}"#), r#"{"a":"[redacted]"}"#);
        assert_eq!(secrets.redact_cut("at the end: hunte"), "at the end: [redacted]");
        assert_eq!(secrets.redact_cut("nothing here"), "nothing here");
        assert_eq!(secrets.safe("is hun\u{200b}ter2, or hunter2\n", 100), "is [redacted], or [redacted] ");
        assert_eq!(format!("{secrets:?}"), r#"["A", "B", "C"]"#);
    }
}
