//! Whose a process is, by what proc(5) tells.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The names that lead from one process to pid 1; longer chains than this are not made by people.
const LONGEST_ANCESTRY: usize = 64;

/// How much of a process's environment is read. The kernel's own limit on arguments and environment is 2 MiB by default.
const ENVIRONMENT_BYTES: u64 = 2 << 20;

/// Tells processes of this service's jobs from others.
pub(super) struct Processes {
    jobs_dir: PathBuf,
}

impl Processes {
    /// Jobs whose directories are in `jobs_dir`.
    pub(super) fn of_jobs_in(jobs_dir: PathBuf) -> Self {
        Self { jobs_dir }
    }

    /// Whether a process or one of its ancestors was started as a job of this service, by the `TAXIWAY_JOB_DIR` it was
    /// started with. For counting only: a job can set it as it likes.
    pub(super) fn belongs_to_a_job(&self, pid: i32) -> bool {
        ancestry(pid).any(|pid| {
            environment_variable(pid, "TAXIWAY_JOB_DIR")
                .is_some_and(|dir| Path::new(&dir).parent() == Some(&self.jobs_dir))
        })
    }

    /// Whether a process or one of its ancestors is one of these.
    pub(super) fn descends_from(&self, pid: i32, ours: &[i32]) -> bool {
        !ours.is_empty() && ancestry(pid).any(|pid| ours.contains(&pid))
    }
}

/// The file name of the program that a process runs; its own short name where that of another user cannot be seen.
pub(super) fn program(pid: i32) -> Option<String> {
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let file_name = executable.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    file_name
        // The kernel's mark on a program whose file was replaced since, by an update say.
        .map(|name| name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name))
        .or_else(|| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned()))
}

/// A process, its parent, and so on up to the first.
fn ancestry(pid: i32) -> impl Iterator<Item = i32> {
    std::iter::successors(Some(pid), |pid| parent(*pid).filter(|parent| *parent > 0)).take(LONGEST_ANCESTRY)
}

fn parent(pid: i32) -> Option<i32> {
    parent_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fourth field of `/proc/PID/stat`; the second is the program's name in parentheses and may hold anything.
fn parent_in(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn environment_variable(pid: i32, name: &str) -> Option<std::ffi::OsString> {
    let mut environment = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRONMENT_BYTES).read_to_end(&mut environment).ok()?;
    value_in(&environment, name).map(|value| OsStr::from_bytes(value).to_owned())
}

fn value_in<'a>(environment: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent_in("12 (a) 9 (b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in("12 (cut"), None);
    }

    #[test]
    fn an_environment_is_searched_by_whole_names() {
        let environment = b"TAXIWAY_JOB=1\0XTAXIWAY_JOB_DIR=/no\0TAXIWAY_JOB_DIR=/jobs/a=b\0";
        assert_eq!(value_in(environment, "TAXIWAY_JOB_DIR"), Some(&b"/jobs/a=b"[..]));
        assert_eq!(value_in(environment, "JOB"), None);
    }

    #[test]
    fn a_process_is_known_by_its_ancestors_and_by_the_job_directory_it_was_started_with() {
        // `sleep` is started by a shell whose environment names the job's directory, with none of its own.
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "env -i sleep 60 & echo $!; read line; kill $!"])
            .env("TAXIWAY_JOB_DIR", "/srv/jobs/0193")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().expect("piped")), &mut line)
            .expect("the pid");
        let sleep: i32 = line.trim().parse().expect("a pid");

        let (here, elsewhere) = (Processes::of_jobs_in("/srv/jobs".into()), Processes::of_jobs_in("/srv".into()));
        assert!(here.belongs_to_a_job(sleep));
        assert!(!elsewhere.belongs_to_a_job(sleep));
        assert!(here.descends_from(sleep, &[shell.id().cast_signed()]));
        assert!(!here.descends_from(sleep, &[i32::MAX]));
        assert!(program(shell.id().cast_signed()).is_some());

        drop(shell.stdin.take());
        shell.wait().expect("the shell ends");
    }
}
