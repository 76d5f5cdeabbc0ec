//! Progress bars in a log that is read afterwards: a line that was drawn again and again, as it stood in the end.

/// A line longer than this is printed as it comes.
const LINE_MAX_BYTES: usize = 64 << 10;

/// Leaves out what a carriage return has overwritten. A program that draws a bar writes it anew after each `\r`; of a hundred
/// states of it only the last one is of interest once it is over.
#[derive(Debug, Default)]
pub(super) struct Redraw {
    /// The line so far, since the last carriage return.
    line: Vec<u8>,
    /// A carriage return that may belong to the end of the line.
    returned: bool,
}

impl Redraw {
    /// What can be printed of these bytes and those before.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match byte {
                b'\n' => {
                    shown.append(&mut self.line);
                    shown.push(b'\n');
                    self.returned = false;
                }
                b'\r' => self.returned = true,
                byte => {
                    if std::mem::take(&mut self.returned) {
                        self.line.clear();
                    }
                    self.line.push(*byte);
                    if self.line.len() >= LINE_MAX_BYTES {
                        shown.append(&mut self.line);
                    }
                }
            }
        }
        shown
    }

    /// The rest, once nothing more comes.
    pub(super) fn finish(self) -> Vec<u8> {
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str]) -> String {
        let mut redraw = Redraw::default();
        let mut all: Vec<u8> = pieces.iter().flat_map(|piece| redraw.push(piece.as_bytes())).collect();
        all.extend(redraw.finish());
        String::from_utf8(all).expect("UTF-8")
    }

    #[test]
    fn of_a_bar_the_last_state_is_shown() {
        assert_eq!(shown(&["start\n  1%|\r 50%|\r", "100%|####\ndone\n"]), "start\n100%|####\ndone\n");
        assert_eq!(shown(&[" 1%\r", " 2%\r", " 3%"]), " 3%");
    }

    #[test]
    fn a_carriage_return_at_the_end_overwrites_nothing_yet() {
        assert_eq!(shown(&[" 1%\r 2%\r"]), " 2%");
        assert_eq!(shown(&["windows\r\nlines\r", "\nend"]), "windows\nlines\nend");
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let long = "x".repeat(LINE_MAX_BYTES * 3 + 7);
        assert_eq!(shown(&[&long]), long);
    }
}
