//! A few lines out of a log of any size, which is never held in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// The most lines of one answer.
pub(super) const MOST_LINES: usize = 10_000;
/// The most bytes of one line that are answered: a line is for a person to read.
const LONGEST_LINE: u64 = 64 << 10;
/// Read at once while lines are counted.
const CHUNK_BYTES: usize = 256 << 10;

/// Lines `first` and after, and how many there are in all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) lines: Vec<String>,
    pub(super) total: usize,
}

/// Reads at most `limit` lines from `offset` on; a negative offset counts from the end. A file that is not there has none. It
/// blocks for as long as the disk takes.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read(path: &Path, offset: i64, limit: usize) -> io::Result<Lines> {
    let mut file = match taxiway_launcher::log::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lines { lines: Vec::new(), total: 0 }),
        opened => opened?,
    };
    let size = file.metadata()?.len();
    let total = count(&mut file, size)?;
    let mut wanted = first_line(offset, total);
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, file.take(size));
    let mut lines = Vec::new();
    while wanted > 0 && skip_line(&mut reader)? {
        wanted -= 1;
    }
    while lines.len() < limit.min(MOST_LINES) {
        let mut line = Vec::new();
        if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
            skip_line(&mut reader)?;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        // Of a progress bar, what stood there in the end.
        lines.push(text.rsplit('\r').next().unwrap_or(text).to_owned());
    }
    Ok(Lines { lines, total })
}

/// The lines of the file's first `size` bytes; one that has not ended counts.
fn count(file: &mut File, size: u64) -> io::Result<usize> {
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, file.take(size));
    let (mut lines, mut last) = (0, b'\n');
    loop {
        let chunk = reader.fill_buf()?;
        let Some(end) = chunk.last() else { break };
        last = *end;
        lines += chunk.iter().filter(|byte| **byte == b'\n').count();
        let read = chunk.len();
        reader.consume(read);
    }
    Ok(lines + usize::from(last != b'\n'))
}

/// Goes past the next end of a line; false at the end of the file.
fn skip_line(reader: &mut impl BufRead) -> io::Result<bool> {
    reader.skip_until(b'\n').map(|read| read > 0)
}

/// The line that an offset names; a negative one counts from the end.
fn first_line(offset: i64, lines: usize) -> usize {
    let distance = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
    if offset < 0 { lines.saturating_sub(distance) } else { distance.min(lines) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &[u8], offset: i64, limit: usize) -> (Vec<String>, usize) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        std::fs::write(&path, text).expect("written");
        let Lines { lines, total } = read(&path, offset, limit).expect("read");
        (lines, total)
    }

    #[test]
    fn lines_are_counted_from_the_beginning_or_from_the_end() {
        let text = b"a\nb\r\n10%\r20%\rc\nd";
        assert_eq!(read_text(text, 0, 2), (vec!["a".into(), "b".into()], 4));
        assert_eq!(read_text(text, 2, 10), (vec!["c".into(), "d".into()], 4));
        assert_eq!(read_text(text, -1, 10), (vec!["d".into()], 4));
        assert_eq!(read_text(text, -100, 1), (vec!["a".into()], 4));
        assert_eq!(read_text(text, 100, 1), (vec![], 4));
        assert_eq!(read_text(b"", 0, 1), (vec![], 0));
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_next_one_is_whole() {
        let mut text = vec![b'x'; 3 * LONGEST_LINE as usize];
        text.extend_from_slice(b"\nnext\n");
        let (lines, total) = read_text(&text, 0, 10);
        assert_eq!((lines.len(), lines[0].len() as u64, lines[1].as_str(), total), (2, LONGEST_LINE, "next", 2));
    }

    #[test]
    fn a_negative_offset_reads_the_tail() {
        assert_eq!(first_line(-10, 100), 90);
        assert_eq!(first_line(-200, 100), 0);
        assert_eq!(first_line(30, 100), 30);
        assert_eq!(first_line(300, 100), 100);
        assert_eq!(first_line(i64::MIN, 5), 0);
    }

    #[test]
    fn no_log_has_no_lines() {
        let lines = read(Path::new("/nonexistent/log"), 0, 1).expect("read");
        assert_eq!(lines, Lines { lines: Vec::new(), total: 0 });
    }
}
