//! Whole numbers that would not arrive as they were sent.
//!
//! Values are kept as serde_json reads them: a whole number of 64 bits exactly, any other as a floating-point number, which
//! alters it without a word. Such a number is refused where it stands. Fractions are what they are in every JSON reader.

use std::fmt;

/// No number with fewer digits is out of range: `u64::MAX` has twenty.
const DIGITS: usize = 19;

/// A whole number that does not fit 64 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfRange {
    /// Where it stands: a JSON Pointer (RFC 6901).
    pub path: String,
    /// The number, its beginning when it is long.
    number: String,
}

impl OutOfRange {
    /// As many of one text are told one by one.
    pub const MOST: usize = 100;
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the whole number {} does not fit 64 bits and would be altered: send it as a text, or as a fraction like 1e20",
            self.number
        )
    }
}

/// The whole numbers of a JSON text that do not fit 64 bits, the first [`OutOfRange::MOST`] of them. Call it with what serde_json
/// reads.
#[must_use]
pub fn out_of_range(json: &[u8]) -> Vec<OutOfRange> {
    if !may_have_some(json) {
        return Vec::new();
    }
    let mut found = Vec::new();
    Reader { json, at: 0 }.value(&mut Vec::new(), &mut found);
    found
}

/// Whether there are so many digits in a row anywhere, also within a text: a look that costs nearly nothing.
fn may_have_some(json: &[u8]) -> bool {
    // Of a long row every DIGITS-th byte is a digit, and its neighbours are.
    let mut at = DIGITS - 1;
    while at < json.len() {
        if !json[at].is_ascii_digit() {
            at += DIGITS;
            continue;
        }
        let before = json[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).take(DIGITS).count();
        let after = json[at..].iter().take_while(|byte| byte.is_ascii_digit()).take(DIGITS).count();
        if before + after >= DIGITS {
            return true;
        }
        at += DIGITS;
    }
    false
}

/// Walks through a text that is JSON.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Reads a value, whose place is `path`.
    fn value(&mut self, path: &mut Vec<String>, found: &mut Vec<OutOfRange>) {
        // Depth is bounded: serde_json has read the text before, and goes 128 deep.
        match self.next_byte() {
            Some(b'{') => {
                self.at += 1;
                while let Some(byte) = self.next_byte() {
                    match byte {
                        b'"' => {
                            let key = serde_json::from_slice(self.text()).unwrap_or_default();
                            // The colon.
                            self.next_byte();
                            self.at += 1;
                            path.push(key);
                            self.value(path, found);
                            path.pop();
                        }
                        b'}' => {
                            self.at += 1;
                            break;
                        }
                        _ => self.at += 1,
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut index = 0;
                while let Some(byte) = self.next_byte() {
                    match byte {
                        b']' => {
                            self.at += 1;
                            break;
                        }
                        b',' => {
                            self.at += 1;
                            index += 1;
                        }
                        _ => {
                            path.push(index.to_string());
                            self.value(path, found);
                            path.pop();
                        }
                    }
                }
            }
            Some(b'"') => {
                self.text();
            }
            Some(_) => self.scalar(path, found),
            None => {}
        }
    }

    /// The next byte that is no white space.
    fn next_byte(&mut self) -> Option<u8> {
        while self.json.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.json.get(self.at).copied()
    }

    /// Reads a text, which begins here, with its quotes.
    fn text(&mut self) -> &[u8] {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.json.get(self.at) {
            self.at += match byte {
                b'\\' => 2,
                b'"' => break,
                _ => 1,
            };
        }
        self.at = (self.at + 1).min(self.json.len());
        &self.json[start..self.at]
    }

    /// Reads a number, or one of the three words, which begins here.
    fn scalar(&mut self, path: &[String], found: &mut Vec<OutOfRange>) {
        let rest = &self.json[self.at..];
        let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
        // At least one, so that the walk ends whatever the text is.
        self.at += length.max(1);
        let Ok(text) = std::str::from_utf8(&rest[..length]) else { return };
        let is_whole = text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
        let fits = text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok();
        if !text.is_empty() && is_whole && !fits && found.len() < OutOfRange::MOST {
            let path = path.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect();
            found.push(OutOfRange { path, number: shortened(text) });
        }
    }
}

/// A number of ten thousand digits is not repeated whole.
fn shortened(number: &str) -> String {
    if number.len() <= 40 { number.to_owned() } else { format!("{}… ({} digits)", &number[..20], number.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(json: &str) -> Vec<String> {
        out_of_range(json.as_bytes()).into_iter().map(|found| found.path).collect()
    }

    #[test]
    fn whole_numbers_that_would_be_altered_are_found_where_they_stand() {
        let json = r#"{"config": {"a": 18446744073709551616, "b/c": [1, -9223372036854775809, {"d": 123456789012345678901234567890}]},
            "e": 18446744073709551615, "f": -9223372036854775808}"#;
        assert_eq!(paths(json), ["/config/a", "/config/b~1c/1", "/config/b~1c/2/d"]);
        assert_eq!(paths("99999999999999999999"), [""]);
    }

    #[test]
    fn fractions_texts_and_what_fits_are_left_alone() {
        for json in [
            r#"{"a": 1e300, "b": 12345678901234567890123.5, "c": 1234567890123456789012e2}"#,
            r#"{"a": "123456789012345678901234567890", "12345678901234567890123": "\"12345678901234567890123"}"#,
            r#"[18446744073709551615, -9223372036854775808, true, null, "\\", 0]"#,
            "",
        ] {
            assert_eq!(paths(json), Vec::<String>::new(), "{json}");
        }
    }

    #[test]
    fn every_number_that_serde_json_keeps_exactly_is_let_through_and_no_other_whole_one() {
        // A walk over the edges, in every position of a text.
        for base in [1_u128 << 63, 1 << 64, 10_u128.pow(19), 10_u128.pow(20)] {
            for number in base - 2..base + 2 {
                for text in [format!("{number}"), format!("-{number}")] {
                    for indent in 0..DIGITS {
                        let json = format!("{}[{text}]", " ".repeat(indent));
                        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
                        let exact = value[0].is_u64() || value[0].is_i64();
                        assert_eq!(paths(&json).is_empty(), exact, "{json}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_json_ends_all_the_same() {
        for text in
            ["{\"a\" 12345678901234567890123", "[[[12345678901234567890123", "\"\\", "{{{{12345678901234567890123,,"]
        {
            let _ = paths(text);
        }
    }
}
