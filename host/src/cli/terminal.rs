//! What people see: colours on a terminal, aligned tables, times.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use taxiway_job::{State, Time};

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    colours: bool,
}

impl Style {
    fn for_stream(stream: &impl IsTerminal) -> Self {
        // https://no-color.org
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours: stream.is_terminal() && wanted }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A state in its colour; `text` is its name, padded perhaps.
    pub(super) fn state(self, state: State, text: &str) -> String {
        let code = match state {
            State::Completed => "32",
            State::Failed => "31",
            State::Running | State::Pending => "36",
            State::Cancelling | State::Held => "33",
            State::Cancelled => "2",
            State::Queued => "0",
        };
        self.paint(code, text)
    }
}

/// For standard output.
pub(super) fn stdout_style() -> Style {
    Style::for_stream(&std::io::stdout())
}

/// For standard error.
pub(super) fn stderr_style() -> Style {
    Style::for_stream(&std::io::stderr())
}

/// Prints JSON, indented.
pub(super) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints to standard output. That a reader has had enough (`| head`) is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    write_out(text.as_bytes())
}

/// The same for bytes, as they are.
pub(super) fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Rows under headings, each column as wide as its widest cell. `paint` colours a padded cell of (row, column).
pub(super) fn table(
    headings: &[&str],
    rows: &[Vec<String>],
    paint: impl Fn(usize, usize, String) -> String,
    style: Style,
) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    // The last column is not padded: lines end where their text does.
    let pad = |column: usize, text: &str| {
        if column + 1 == widths.len() { text.to_owned() } else { format!("{text:<width$}", width = widths[column]) }
    };
    let mut lines = Vec::with_capacity(rows.len() + 1);
    let head: Vec<String> = headings.iter().enumerate().map(|(column, text)| pad(column, text)).collect();
    lines.push(style.bold(head.join("  ").trim_end()));
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(column, text)| paint(index, column, pad(column, text))).collect();
        lines.push(cells.join("  ").trim_end().to_owned());
    }
    lines.join("\n") + "\n"
}

/// Text of others, without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if taxiway_job::is_unseen(c) { '\u{FFFD}' } else { c }).collect()
}

/// How long ago, in one unit: `42s`, `7m`, `3h`, `12d`.
pub(super) fn ago(time: Time, now: Time) -> String {
    span((now.as_millis() - time.as_millis()).max(0) / 1000)
}

/// So many seconds, in one unit.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `[########............]  42%`
pub(super) fn bar(fraction: f64) -> String {
    const WIDTH: usize = 20;
    let fraction = fraction.clamp(0.0, 1.0);
    let full = (fraction * WIDTH as f64).round() as usize;
    format!("[{}{}] {:>3.0}%", "#".repeat(full), ".".repeat(WIDTH - full), fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let rows = vec![vec!["a".into(), "first".into()], vec!["long".into(), String::new()]];
        let text = table(&["ID", "NAME"], &rows, |_, _, cell| cell, Style { colours: false });
        assert_eq!(text, "ID    NAME\na     first\nlong\n");
    }

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        let told: Vec<String> = [0, 119, 120, 7199, 7200, 172_800].into_iter().map(span).collect();
        assert_eq!(told, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    #[test]
    fn a_bar_is_full_at_the_end_and_never_longer() {
        assert_eq!(bar(0.5), "[##########..........]  50%");
        assert_eq!(bar(7.0), "[####################] 100%");
    }

    #[test]
    fn a_job_s_name_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31mb"), "a\u{FFFD}[31mb");
        assert_eq!(printable("gnp.\u{202E}exe"), "gnp.\u{FFFD}exe");
    }
}
