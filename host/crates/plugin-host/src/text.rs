//! Making a guest's text safe to show: on a terminal, in a log, in an answer.

/// The text without control characters (a newline or tab becomes a blank) and without the invisible ones that reorder
/// or hide text (Unicode's bidirectional controls, zero-width blanks and tags), cut to `limit` bytes at a character's border.
pub fn clean(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        let c = match c {
            '\n' | '\t' | '\r' | '\u{2028}' | '\u{2029}' => ' ',
            c if c.is_control() => continue,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => continue,
            '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}' => continue,
            c => c,
        };
        if out.len() + c.len_utf8() > limit {
            break;
        }
        out.push(c);
    }
    out
}

/// Bytes that a code may have.
pub const CODE_LIMIT: usize = 64;

/// A code as problems and errors carry it: lower-case letters, digits, `-`, `_` and `.`, at most 64 bytes; `unnamed`
/// when nothing is left.
pub fn clean_code(code: &str) -> String {
    let code: String = code
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(CODE_LIMIT)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if code.is_empty() { "unnamed".to_owned() } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(clean("a\x1b[31mred\u{202e}\nb\0\u{9b}", 100), "a[31mred b");
        assert_eq!(clean("a\u{200b}b\u{e0041}c\u{61c}d\u{2028}e", 100), "abcd e");
        assert_eq!(clean("größe", 4), "grö");
        assert_eq!(clean_code("Batch too\nLarge!"), "batchtoolarge");
        assert_eq!(clean_code("\x1b"), "unnamed");
    }
}
