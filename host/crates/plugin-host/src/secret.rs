//! A plugin's secrets: given to the plugin that was granted them, taken out of everything that leaves it.

use crate::text;
use std::borrow::Cow;

/// Bytes of the shortest secret that there may be, and of the shortest beginning of one that is looked for where a text was cut off:
/// what is shorter is part of ordinary words, which would be blacked out with it.
pub const SHORTEST: usize = 4;

/// Bytes of a text that are looked at for each that is shown.
const VISIBLE_SHARE: usize = 4;

/// The secrets of one loaded plugin.
#[derive(Default)]
pub struct Secrets {
    named: Vec<(String, String)>,
    /// What must not be seen, as it is and as JSON writes it, longest first so that no part of one stays.
    hidden: Vec<String>,
}

impl Secrets {
    /// From names and values.
    ///
    /// # Errors
    /// The name of one that is too short to be hidden.
    pub fn new(named: Vec<(String, String)>) -> Result<Secrets, String> {
        if let Some((name, _)) = named.iter().find(|(_, value)| value.len() < SHORTEST) {
            return Err(name.clone());
        }
        let mut hidden: Vec<String> = Vec::new();
        for (_, value) in &named {
            hidden.push(value.clone());
            let quoted = serde_json::Value::from(value.as_str()).to_string();
            let escaped = &quoted[1..quoted.len() - 1];
            if escaped != value {
                hidden.push(escaped.to_owned());
            }
        }
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Ok(Secrets { named, hidden })
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
    /// been taken out of it goes, too. A guest's text may have megabytes: no more is looked at than what could be shown.
    pub fn safe(&self, text: &str, limit: usize) -> String {
        let (head, cut) = self.head(text, limit);
        let clean = text::clean(&self.hide(head, cut), usize::MAX);
        text::clean(&self.hide(&clean, cut), limit)
    }

    /// A code as [`text::clean_code`] makes it, without them; also one that only the cleaning would put together.
    pub fn safe_code(&self, code: &str) -> String {
        let (head, cut) = self.head(code, text::CODE_LIMIT);
        let code = text::clean_code(&self.hide(head, cut));
        text::clean_code(&self.hide(&code, cut || code.len() == text::CODE_LIMIT))
    }

    /// As much of the beginning of a text as can matter for its first `limit` visible bytes: with room for what is invisible, and for a
    /// secret that reaches over the end. And whether that is not all.
    fn head<'a>(&self, text: &'a str, limit: usize) -> (&'a str, bool) {
        let longest = self.hidden.first().map_or(0, String::len);
        let end = text.floor_char_boundary(limit.saturating_mul(VISIBLE_SHARE).saturating_add(longest));
        (&text[..end], end < text.len())
    }

    fn hide<'a>(&self, text: &'a str, cut: bool) -> Cow<'a, str> {
        if cut { self.redact_cut(text) } else { self.redact(text) }
    }

    /// The text without them, and without a part of one at its end, where a cap has cut it off.
    pub fn redact_cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let whole = self.redact(text);
        for hidden in &self.hidden {
            let starts = hidden.char_indices().map(|(at, _)| at).filter(|at| *at >= SHORTEST).rev();
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
        let secrets = Secrets::new(vec![("A".into(), "hunter2\"x".into()), ("B".into(), "hunter2".into())]).unwrap();
        assert_eq!(secrets.redact("is hunter2\"x and hunter2 and hunt"), "is [redacted] and [redacted] and hunt");
        assert_eq!(secrets.redact(r#"{"a":"hunter2\"x"}"#), r#"{"a":"[redacted]"}"#);
        assert_eq!(secrets.redact_cut("at the end: hunte"), "at the end: [redacted]");
        assert_eq!(secrets.redact_cut("nothing here"), "nothing here");
        assert_eq!(secrets.safe("is hun\u{200b}ter2, or hunter2\n", 100), "is [redacted], or [redacted] ");
        assert_eq!(format!("{secrets:?}"), r#"["A", "B"]"#);
        assert_eq!(secrets.safe_code("is hunter2"), "isredacted");
        assert_eq!(secrets.safe_code("hun ter2"), "redacted");
    }

    #[test]
    fn of_a_text_of_megabytes_only_the_beginning_is_looked_at() {
        let secrets = Secrets::new(vec![("A".into(), "hunter2".into())]).unwrap();
        let long = format!("{}hunter2 {}", "ä".repeat(40), "x".repeat(4 << 20));
        assert_eq!(secrets.safe(&long, 100), format!("{}[redacted] {}", "ä".repeat(40), "x".repeat(9)));
        // One that what is looked at ends in.
        let cut = format!("{}hunter2", "\u{200b}".repeat(12));
        assert_eq!(secrets.safe(&cut, 9), "[redacted");
        assert_eq!(secrets.safe(&"hunter2".repeat(1 << 19), 12), "[redacted][r");
    }

    #[test]
    fn one_that_could_not_be_hidden_is_none() {
        for short in ["", "abc", "ä1"] {
            let secrets = Secrets::new(vec![("A".into(), "hunter2".into()), ("B".into(), short.into())]);
            assert_eq!(secrets.unwrap_err(), "B");
        }
    }
}
