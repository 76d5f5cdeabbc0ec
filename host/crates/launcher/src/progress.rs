//! How far a job says it is: its progress file, or else the tqdm lines in its output.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use taxiway_job::Progress;
use tokio::time::Instant;

use crate::log;
use crate::watch::Watch;
use crate::wire::file;

/// A job that is over sooner is not watched at all, only asked once at its end: a line of short jobs costs nothing.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// The least time between two looks: a few a second are enough for a progress bar.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
/// More than this is no progress file. It is stored as often as it is read, and a hundred metrics have 4 KiB.
const FILE_MAX_BYTES: u64 = 64 << 10;
/// A tqdm line lies within the last bytes of the output, when there is one.
const TAIL_BYTES: usize = 4 << 10;

/// Watches one running job.
pub(crate) struct Watcher {
    directory: PathBuf,
    next_look: Instant,
    /// What was last reported.
    last: Option<Progress>,
    watches: Vec<Watch>,
}

impl Watcher {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, next_look: Instant::now() + FIRST_LOOK, last: None, watches: Vec::new() }
    }

    /// The next thing that it says. May be dropped and called again at any point: nothing is lost.
    pub(crate) async fn next(&mut self) -> Progress {
        loop {
            // Not a poll: between two looks the job must have written something.
            tokio::time::sleep_until(self.next_look).await;
            if !self.watches.is_empty() {
                let changes = self.watches.iter().map(|watch| Box::pin(watch.changed()));
                futures_util::future::select_all(changes).await;
                self.watches.clear();
                self.next_look = Instant::now() + BETWEEN_LOOKS;
                continue;
            }
            // Watched before it is read, so that no change is missed; not while waiting for the next look, so that a job that
            // writes without end wakes nobody in between.
            let directory = self.directory.clone();
            let Ok((watches, progress)) = tokio::task::spawn_blocking(move || look(&directory)).await else {
                return std::future::pending().await;
            };
            if watches.is_empty() {
                // inotify is at its limit: what the job says is then read at its end.
                return std::future::pending().await;
            }
            self.watches = watches;
            if let Some(progress) = progress
                && self.last.as_ref() != Some(&progress)
            {
                self.last = Some(progress.clone());
                return progress;
            }
        }
    }
}

/// Sets watches and reads what there is.
fn look(directory: &Path) -> (Vec<Watch>, Option<Progress>) {
    let path = directory.join(file::PROGRESS);
    let mut watches: Vec<Watch> = Watch::directory(directory).into_iter().collect();
    match Watch::file(&path) {
        Ok(watch) => watches.push(watch),
        Err(_) => watches.extend(Watch::file(&directory.join(file::LOG))),
    }
    (watches, read(directory))
}

/// What the job says now.
pub(crate) fn read(directory: &Path) -> Option<Progress> {
    // Whatever the job has put there: no pipe keeps this waiting, no device fills the memory, and no link leads to a file system that
    // does not answer.
    match log::open(&directory.join(file::PROGRESS)) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).ok()?;
            (bytes.len() as u64 <= FILE_MAX_BYTES).then(|| parse_file(&bytes))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            parse_output(&log::tail(&directory.join(file::LOG), TAIL_BYTES).ok()?)
        }
        Err(_) => None,
    }
}

/// Reads a progress file: DESIGN's own form or the flat keys of the `training_server.py` that Taxiway replaces. A file that is
/// being written and is not whole yet says nothing, and neither does one that is deeper than JSON may be that is handed on.
fn parse_file(bytes: &[u8]) -> Option<Progress> {
    let Value::Object(mut fields) = serde_json::from_slice(bytes).ok()? else { return None };
    if taxiway_job::is_too_deep(&fields) {
        return None;
    }
    let is_flat = ["current_epoch", "total_epochs", "current_step"].iter().any(|key| fields.contains_key(*key));
    let fraction =
        take(&mut fields, &["progress"]).map(|value| if is_flat || value > 1.0 { value / 100.0 } else { value });
    let mut progress = Progress {
        fraction: fraction.map(|fraction| fraction.clamp(0.0, 1.0)),
        step: take(&mut fields, &["step", "current_step"]).map(whole),
        total_steps: take(&mut fields, &["total_steps"]).map(whole),
        epoch: take(&mut fields, &["epoch", "current_epoch"]),
        total_epochs: take(&mut fields, &["total_epochs"]),
        eta_seconds: take(&mut fields, &["eta_seconds"]),
        metrics: Map::new(),
    };
    if let Some(Value::Object(metrics)) = fields.remove("metrics") {
        progress.metrics = metrics;
    }
    progress.metrics.extend(fields);
    if progress.fraction.is_none()
        && let (Some(step), Some(total @ 1..)) = (progress.step, progress.total_steps)
    {
        progress.fraction = Some((step as f64 / total as f64).clamp(0.0, 1.0));
    }
    Some(progress)
}

/// The first of these fields that is a number; all of them are taken.
fn take(fields: &mut Map<String, Value>, names: &[&str]) -> Option<f64> {
    let mut found = None;
    for name in names {
        if let Some(value) = fields.remove(*name) {
            found = found.or_else(|| value.as_f64().filter(|value| value.is_finite()));
        }
    }
    found
}

/// A count; negative ones are none.
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

/// Finds the last tqdm line: `42%|████▏     | 420/1000 [00:12<00:17, 33.3it/s]`.
fn parse_output(tail: &[u8]) -> Option<Progress> {
    let text = String::from_utf8_lossy(tail);
    text.rsplit(['\r', '\n']).find_map(parse_tqdm)
}

fn parse_tqdm(line: &str) -> Option<Progress> {
    let (before, after) = line.split_once("%|")?;
    let digits = before.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |at| at + 1);
    let digits = before.get(digits..).or_else(|| before.rsplit(|c: char| !c.is_ascii_digit() && c != '.').next())?;
    let percent: f64 = digits.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))?;
    let mut progress = Progress { fraction: Some(percent / 100.0), ..Progress::default() };
    if let Some((counts, times)) = after.split_once('|').and_then(|(_, rest)| rest.split_once('[')) {
        if let Some((step, total)) = counts.trim().split_once('/') {
            progress.step = step.trim().parse().ok();
            progress.total_steps = total.trim().parse().ok();
        }
        let eta = times.split_once('<').and_then(|(_, rest)| rest.split([',', ']']).next());
        progress.eta_seconds = eta.and_then(clock_seconds);
    }
    Some(progress)
}

/// `mm:ss` or `h:mm:ss` in seconds.
fn clock_seconds(text: &str) -> Option<f64> {
    text.trim().split(':').try_fold(0.0, |seconds, part| part.parse::<f64>().ok().map(|part| seconds * 60.0 + part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn designs_own_form_is_read() {
        let progress =
            parse_file(br#"{"progress": 0.42, "step": 420, "total_steps": 1000, "metrics": {"loss": 1.93}}"#);
        let progress = progress.expect("a progress file");
        assert_eq!((progress.fraction, progress.step, progress.total_steps), (Some(0.42), Some(420), Some(1000)));
        assert_eq!(progress.metrics["loss"], 1.93);
    }

    #[test]
    fn flat_keys_mean_a_percentage_and_what_is_not_known_is_passed_through() {
        let progress =
            parse_file(br#"{"progress": 1, "current_epoch": 2, "total_epochs": 4, "loss": 0.5, "gpu": "A"}"#);
        let progress = progress.expect("a progress file");
        assert_eq!((progress.fraction, progress.epoch, progress.total_epochs), (Some(0.01), Some(2.0), Some(4.0)));
        assert_eq!((&progress.metrics["loss"], &progress.metrics["gpu"]), (&Value::from(0.5), &Value::from("A")));
    }

    #[test]
    fn a_percentage_is_told_from_a_fraction() {
        for (file, expected) in [("{\"progress\": 42}", 0.42), ("{\"progress\": 1}", 1.0), ("{\"progress\": 250}", 1.0)]
        {
            assert_eq!(parse_file(file.as_bytes()).and_then(|progress| progress.fraction), Some(expected), "{file}");
        }
        let steps = parse_file(b"{\"step\": 5, \"total_steps\": 20}").expect("a progress file");
        assert_eq!(steps.fraction, Some(0.25));
    }

    #[test]
    fn a_file_that_is_not_whole_says_nothing() {
        for bytes in [&b""[..], b"{\"progress\": 0.4", b"[1]", b"null", b"\xff"] {
            assert_eq!(parse_file(bytes), None);
        }
    }

    #[test]
    fn a_file_that_is_too_deep_says_nothing() {
        let of_levels = |levels: usize| {
            let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
            format!("{{\"progress\": 0.5, \"note\": {open}{close}}}")
        };
        let most = taxiway_job::MOST_LEVELS;
        let progress = parse_file(of_levels(most).as_bytes()).expect("a progress file");
        assert_eq!(progress.fraction, Some(0.5));
        for levels in [most + 1, 127, 5000] {
            assert_eq!(parse_file(of_levels(levels).as_bytes()), None, "{levels}");
        }
    }

    #[test]
    fn what_is_no_file_or_too_big_says_nothing_and_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(file::PROGRESS);
        std::fs::write(directory.path().join(file::LOG), " 42%|####  | 42/100 [00:01<00:01]").expect("a log");
        assert_eq!(read(directory.path()).and_then(|progress| progress.step), Some(42));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(read(directory.path()), None, "a pipe that nobody writes to");
        std::fs::remove_file(&path).expect("it was there");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        assert_eq!(read(directory.path()), None, "a device without end");
        std::fs::remove_file(&path).expect("it was there");
        std::fs::write(directory.path().join("other"), "{\"step\": 7}").expect("a file");
        std::os::unix::fs::symlink("other", &path).expect("a link");
        assert_eq!(read(directory.path()), None, "somebody else's file");
        std::fs::remove_file(&path).expect("it was there");
        let long = format!("{{\"step\": 1, \"note\": \"{}\"}}", "x".repeat(FILE_MAX_BYTES as usize));
        std::fs::write(&path, long).expect("a file");
        assert_eq!(read(directory.path()), None, "more than a progress file has");
        std::fs::write(&path, "{\"step\": 7}").expect("a file");
        assert_eq!(read(directory.path()).and_then(|progress| progress.step), Some(7));
    }

    #[test]
    fn the_last_tqdm_line_counts() {
        let output = "start\r 41%|####      | 410/1000 [00:12<00:18, 33it/s]\rEpoch 1:  42%|████▏     | 420/1000 [00:12<01:17, 33.3it/s]";
        let progress = parse_output(output.as_bytes()).expect("a tqdm line");
        assert_eq!((progress.fraction, progress.step, progress.total_steps), (Some(0.42), Some(420), Some(1000)));
        assert_eq!(progress.eta_seconds, Some(77.0));
        assert_eq!(parse_output(b"accuracy 97% | fine"), None);
    }
}
