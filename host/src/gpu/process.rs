//! Whose a process is, by what proc(5) tells.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use taxiway_job::LaunchId;

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

    /// The launch of this service's that a process belongs to, by the environment that it or an ancestor of it was started
    /// with. A job can set that as it likes: whoever runs code in a job can do what the service can.
    pub(super) fn launch_of(&self, pid: i32) -> Option<LaunchId> {
        ancestry(pid).find_map(|pid| {
            let environment = environment(pid)?;
            let dir = value_in(&environment, "TAXIWAY_JOB_DIR")?;
            if Path::new(OsStr::from_bytes(dir)).parent() != Some(&self.jobs_dir) {
                return None;
            }
            std::str::from_utf8(value_in(&environment, "TAXIWAY_LAUNCH_ID")?).ok()?.parse().ok()
        })
    }
}

/// Whether there is such a process, ended or not. One of another machine's or container's numbering is not seen here.
pub(super) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
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

fn environment(pid: i32) -> Option<Vec<u8>> {
    let mut environment = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRONMENT_BYTES).read_to_end(&mut environment).ok()?;
    Some(environment)
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
    fn a_process_is_known_by_the_launch_that_it_or_an_ancestor_was_started_with() {
        let launch = LaunchId::random();
        // `sleep` is started by a shell whose environment names the job's directory, with none of its own.
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "env -i sleep 60 & echo $!; read line; kill $!"])
            .env("TAXIWAY_JOB_DIR", "/srv/jobs/0193")
            .env("TAXIWAY_LAUNCH_ID", launch.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().expect("piped")), &mut line)
            .expect("the pid");
        let sleep: i32 = line.trim().parse().expect("a pid");

        let (here, elsewhere) = (Processes::of_jobs_in("/srv/jobs".into()), Processes::of_jobs_in("/srv".into()));
        assert_eq!(here.launch_of(sleep), Some(launch));
        assert_eq!(elsewhere.launch_of(sleep), None);
        assert!(exists(sleep) && !exists(i32::MAX));
        assert!(program(shell.id().cast_signed()).is_some());

        drop(shell.stdin.take());
        shell.wait().expect("the shell ends");
    }
}
