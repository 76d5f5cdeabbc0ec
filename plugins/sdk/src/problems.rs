//! What a plugin has to say about a job.

use std::borrow::Cow;

/// How bad a problem is. Only an error refuses the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The job may not run.
    Error,
    /// It may run, and its author should know.
    Warning,
    /// Good to know.
    Info,
}

/// One thing a plugin has to say about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Only an error refuses the job.
    pub severity: Severity,
    /// JSON Pointer (RFC 6901) into the configuration; a missing key is named by where it should be. Empty for the job
    /// as a whole.
    pub path: String,
    /// Stable and machine-readable, kebab-case: `batch-too-large`.
    pub code: String,
    /// What is wrong, for a person.
    pub message: String,
    /// What its author can do about it.
    pub help: Option<String>,
}

impl Problem {
    /// Adds what the author can do about it.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

/// All that a plugin has to say: collect everything, so that an author sees every mistake at once.
///
/// ```
/// use taxiway_plugin::Problems;
///
/// let mut problems = Problems::new();
/// problems.error("/train/batch_size", "batch-too-large", "4096 does not fit").help("at most 512");
/// problems.warning("", "no-name", "the job has no name");
/// assert!(problems.refuses());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// More than this many are not shown: the last one then says how many there are.
    pub const LIMIT: usize = 100;

    /// Nothing to say.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses the job.
    pub fn error(
        &mut self,
        path: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Error, path, code, message)
    }

    /// Warns its author.
    pub fn warning(
        &mut self,
        path: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Warning, path, code, message)
    }

    /// Tells its author something.
    pub fn info(
        &mut self,
        path: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Info, path, code, message)
    }

    /// True when one of them is an error.
    pub fn refuses(&self) -> bool {
        self.0.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// True when there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them, in the order in which they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    fn add(
        &mut self,
        severity: Severity,
        path: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Problem {
        let (path, code, message) = (path.into(), code.into(), message.into());
        self.0.push(Problem { severity, path, code, message, help: None });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// What goes to the server: within its limits, and errors first where some must go.
    pub(crate) fn into_shown(mut self) -> Vec<Problem> {
        let found = self.0.len();
        if found > Self::LIMIT {
            self.0.sort_by_key(|problem| problem.severity as u8);
            self.0.truncate(Self::LIMIT - 1);
            let hidden = found - self.0.len();
            self.add(Severity::Info, "", "more-problems", format!("{hidden} more problems are not shown"));
        }
        for problem in &mut self.0 {
            shorten(&mut problem.message, MESSAGE_BYTES);
            if let Some(help) = &mut problem.help {
                shorten(help, HELP_BYTES);
            }
        }
        self.0
    }
}

/// The server takes 1 KiB for a problem in all; these two leave room for its path and code.
const MESSAGE_BYTES: usize = 480;
const HELP_BYTES: usize = 320;

fn shorten(text: &mut String, limit: usize) {
    if let Cow::Owned(short) = cut(text, limit) {
        *text = short;
    }
}

/// The text, or as much of it as fits with a mark of the cut.
fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(limit - "…".len());
    Cow::Owned(format!("{}…", &text[..end]))
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        self.0.extend(problems);
    }
}

impl FromIterator<Problem> for Problems {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        Self(problems.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_problems_keep_the_errors_and_say_how_many_are_hidden() {
        let mut problems = Problems::new();
        for n in 0..150 {
            problems.warning(format!("/{n}"), "w", "a warning");
        }
        problems.error("/last", "e", "an error");
        let shown = problems.into_shown();
        assert_eq!(shown.len(), Problems::LIMIT);
        assert_eq!(shown[0].path, "/last");
        assert_eq!(shown[99].message, "52 more problems are not shown");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut problems = Problems::new();
        problems.error("", "e", "ä".repeat(1000)).help("ü".repeat(1000));
        let shown = problems.into_shown();
        assert!(shown[0].message.len() <= MESSAGE_BYTES && shown[0].message.ends_with("ä…"));
        assert!(shown[0].help.as_ref().is_some_and(|help| help.len() <= HELP_BYTES));
    }
}
