//! Characters that a name must not have.

/// Whether a character is not to be seen and changes how the text around it is: a control character, one that turns the direction
/// of writing (Unicode Standard Annex 9, section 2), or one that breaks a line. A name with such a one can read as another.
#[must_use]
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
            | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_or_breaks_a_text_is_not_seen_and_letters_of_any_script_are() {
        for c in ['\0', '\x1b', '\n', '\u{9b}', '\u{202E}', '\u{2066}', '\u{2069}', '\u{200F}', '\u{061C}', '\u{2028}']
        {
            assert!(is_unseen(c), "{c:?}");
        }
        // Zero-width joiners are part of words and of emoji.
        assert!("naïve ש 中 👩\u{200D}🔬 \u{200C}a".chars().all(|c| !is_unseen(c)));
    }
}
