//! What a terminal is shown of a job's output: its text and its colours, and nothing else that a terminal would obey.
//!
//! Whoever may run a job writes its log, and whoever reads it has it on a terminal of their own. A terminal takes orders from what
//! it is shown (ECMA-48; xterm, ctlseqs): to move about and write over other lines, to set its title, to fill the clipboard, to
//! answer as if somebody had typed.

/// A sequence of colours longer than this is none.
const SEQUENCE_MAX_CHARS: usize = 64;
/// A command string (the title of a window, a picture) that does not end within this is given up: what follows is text.
const COMMAND_MAX_CHARS: usize = 64 << 10;

/// Takes the orders out of output that comes in pieces. Bytes that are no UTF-8 become U+FFFD: to some terminals they are orders.
#[derive(Debug, Default)]
pub(super) struct Escapes {
    state: State,
    /// The beginning of a character whose rest is yet to come.
    partial: Vec<u8>,
    /// A colour is in force.
    coloured: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC, and characters that only more of the sequence follows.
    Escape,
    /// A control sequence (CSI): its parameters so far.
    Control(String),
    /// A command string (OSC, DCS, SOS, PM, APC) of so many characters.
    Command(usize),
    /// The same, after ESC, which may begin its end.
    CommandEscape,
}

impl Escapes {
    /// What may be shown of these bytes and those before. Where a piece ends makes no difference.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let mut shown = String::with_capacity(all.len());
        let mut left = all.len();
        for chunk in all.utf8_chunks() {
            chunk.valid().chars().for_each(|c| self.step(c, &mut shown));
            let invalid = chunk.invalid();
            left -= chunk.valid().len() + invalid.len();
            if invalid.is_empty() {
                continue;
            }
            // Without a length the error is that it ends too early.
            let may_go_on = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if left == 0 && may_go_on {
                self.partial = invalid.to_vec();
            } else {
                self.step(char::REPLACEMENT_CHARACTER, &mut shown);
            }
        }
        shown.into_bytes()
    }

    /// The rest, once nothing more comes: the terminal has its own colours again.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let mut shown = String::new();
        if !self.partial.is_empty() {
            self.step(char::REPLACEMENT_CHARACTER, &mut shown);
        }
        if self.coloured {
            shown.push_str("\x1b[0m");
        }
        shown.into_bytes()
    }

    fn step(&mut self, c: char, shown: &mut String) {
        match (std::mem::take(&mut self.state), c) {
            (State::Text, _) => self.state = text(c, shown),
            (State::Escape, '[') => self.state = State::Control(String::new()),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => self.state = State::Command(0),
            (State::Escape, ' '..='/') => self.state = State::Escape,
            // Whatever it was, it is over.
            (State::Escape, '0'..='~') => {}
            (State::Control(mut parameters), ' '..='?') => {
                if parameters.len() < SEQUENCE_MAX_CHARS {
                    parameters.push(c);
                }
                self.state = State::Control(parameters);
            }
            (State::Control(parameters), '@'..='~') => {
                let is_colour = c == 'm'
                    && parameters.len() < SEQUENCE_MAX_CHARS
                    && parameters.chars().all(|c| c.is_ascii_digit() || matches!(c, ';' | ':'));
                if is_colour {
                    shown.extend(["\x1b[", &parameters, "m"]);
                    self.coloured = !matches!(parameters.as_str(), "" | "0");
                }
            }
            // Broken off: what broke it off counts by itself.
            (State::Escape | State::Control(_), _) => self.state = text(c, shown),
            (State::Command(_) | State::CommandEscape, '\x07' | '\u{9C}') | (State::CommandEscape, '\\') => {}
            (State::Command(_) | State::CommandEscape, '\x1b') => self.state = State::CommandEscape,
            // CAN and SUB break it off. No command that is meant as one goes over the end of a line.
            (State::Command(_) | State::CommandEscape, '\x18' | '\x1a' | '\n') => self.state = text(c, shown),
            (State::Command(length), _) if length < COMMAND_MAX_CHARS => self.state = State::Command(length + 1),
            (State::Command(_), _) => {}
            // The ESC has ended it and begins something else.
            (State::CommandEscape, _) => {
                self.state = State::Escape;
                self.step(c, shown);
            }
        }
    }
}

/// A character that belongs to no sequence, and where it leads.
fn text(c: char, shown: &mut String) -> State {
    match c {
        '\x1b' => State::Escape,
        '\u{9B}' => State::Control(String::new()),
        '\u{90}' | '\u{98}' | '\u{9D}'..='\u{9F}' => State::Command(0),
        '\n' | '\r' | '\t' | '\x08' => {
            shown.push(c);
            State::Text
        }
        _ => {
            if !c.is_control() {
                shown.push(c);
            }
            State::Text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut escapes = Escapes::default();
        let mut all: Vec<u8> = pieces.iter().flat_map(|piece| escapes.push(piece)).collect();
        all.extend(escapes.finish());
        String::from_utf8(all).expect("UTF-8")
    }

    #[test]
    fn text_and_colours_stay_and_the_colours_end() {
        assert_eq!(shown(&["grün █\t1%\r2%\x08\n".as_bytes()]), "grün █\t1%\r2%\x08\n");
        assert_eq!(shown(&[b"\x1b[1;31mred\x1b[0m plain"]), "\x1b[1;31mred\x1b[0m plain");
        assert_eq!(shown(&[b"\x1b[38:5:208mred"]), "\x1b[38:5:208mred\x1b[0m");
        assert_eq!(shown(&["\u{9B}31mred".as_bytes()]), "\x1b[31mred\x1b[0m");
    }

    #[test]
    fn orders_are_left_out() {
        let cases: [(&[u8], &str); 14] = [
            (b"a\x1b[2J\x1b[3A\x1b[Hb", "ab"),
            (b"a\x1b]0;title\x07b", "ab"),
            (b"a\x1b]52;c;cm0gLXJmIC8=\x1b\\b", "ab"),
            ("a\x1b]52;c;cm0gLXJmIC8=\u{9C}b".as_bytes(), "ab"),
            ("a\u{9D}0;title\u{9C}b".as_bytes(), "ab"),
            (b"a\x1bP$q\"p\x1b\\b", "ab"),
            (b"a\x1b(0b\x1b#8c\x1bcd", "abcd"),
            (b"a\x1b[?1049hb\x1b[>cc\x1b[>4;2md", "abcd"),
            (b"a\x07\x05\x0e\x7f\x00b", "ab"),
            (b"a\x9b2Jb", "a\u{FFFD}2Jb"),
            ("a\u{85}\u{9A}b".as_bytes(), "ab"),
            (b"a\x1b[12\nb", "a\nb"),
            (b"a\x1b]0;no end\nb", "a\nb"),
            (b"a\x1b]0;x\x1b[31mb", "a\x1b[31mb\x1b[0m"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(shown(&[bytes]), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_order_in_two_pieces_is_one() {
        assert_eq!(shown(&[b"a\xc2", b"\x9b2Jb"]), "ab");
        assert_eq!(shown(&[b"a\x1b", b"[2", b"Jb"]), "ab");
        assert_eq!(shown(&[b"a\x1b]0;title\xc2", b"\x9cb"]), "ab");
        assert_eq!(shown(&[b"gr\xc3", b"\xbcn\xc3"]), "grün\u{FFFD}");
    }

    #[test]
    fn a_command_without_end_hides_only_so_much() {
        let mut bytes = b"\x1b]0;".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', COMMAND_MAX_CHARS + 10));
        assert_eq!(shown(&[&bytes]), "x".repeat(11));
    }

    /// Bytes of which many are parts of sequences.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            prop::sample::select(
                [
                    &b"\x1b"[..],
                    b"[",
                    b"]",
                    b"P",
                    b"\\",
                    b"m",
                    b"31",
                    b";",
                    b"\xc2",
                    b"\x9b",
                    b"\x9c",
                    b"\x9d",
                    b"\x07",
                    b"\n",
                    b"x"
                ]
                .map(<[u8]>::to_vec)
                .to_vec()
            ),
        ];
        prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn no_order_gets_through_and_pieces_make_no_difference(bytes in output(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let whole = shown(&[&bytes]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|two| &bytes[two[0]..two[1]]).collect();
            prop_assert_eq!(&shown(&pieces), &whole);
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&shown(&each), &whole);

            let mut plain = String::new();
            let mut rest = whole.as_str();
            while let Some((before, after)) = rest.split_once("\x1b[") {
                plain.push_str(before);
                let end = after.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':');
                prop_assert!(end.is_some_and(|end| after[end..].starts_with('m')), "{:?}", whole);
                rest = &after[end.expect("asserted") + 1..];
            }
            plain.push_str(rest);
            prop_assert!(!plain.chars().any(|c| c.is_control() && !"\n\r\t\x08".contains(c)), "{:?}", whole);
        }
    }
}
