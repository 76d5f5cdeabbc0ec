//! Control groups (cgroups(7), version 2): one for each job, where a part of the tree is delegated to this user.
//!
//! A group names all processes of a job at once, whatever they do to their parents and sessions, ends them with one write
//! (`cgroup.kill`), bounds their memory and counts what the kernel ended for want of it. Where there is none, everything works
//! by the processes' descent, but for the bound.
//!
//! Only a group that was given away is used: one that systemd has marked as delegated, or that the configuration names. To be
//! allowed to write to another one, as root is, does not make it ours.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use taxiway_job::LaunchId;

/// The extended attributes by which systemd marks what it has delegated (<https://systemd.io/CGROUP_DELEGATION>): the first for
/// everybody since version 251, the second for root.
const DELEGATED: [&std::ffi::CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// A group below which each job gets its own.
#[derive(Debug, Clone)]
pub struct Delegated {
    base: PathBuf,
    memory: bool,
}

impl Delegated {
    /// The group that was delegated to this process; none when there is none.
    #[must_use]
    pub fn find() -> Option<Self> {
        let own = own_group()?;
        // A service in a subgroup (`DelegateSubgroup=`) leaves the delegated group itself without processes. Only then may
        // controllers be passed on to its children (the "no internal processes" rule), and systemd can start the service again
        // while jobs are in there.
        let parent = own.parent().filter(|parent| is_marked(parent));
        let base = parent.or_else(|| is_marked(&own).then_some(own.as_path()))?.to_owned();
        Self::at(base).inspect_err(|error| tracing::warn!(%error, "the delegated control group cannot be used")).ok()
    }

    /// Uses this directory of a cgroup2 filesystem.
    ///
    /// # Errors
    /// When it is none, or cannot be written to.
    pub fn at(base: PathBuf) -> io::Result<Self> {
        let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", base.display()));
        // Every cgroup2 directory has this file, and no other filesystem's has.
        OpenOptions::new().write(true).open(base.join("cgroup.procs")).map_err(told)?;
        let controllers = fs::read_to_string(base.join("cgroup.controllers")).map_err(told)?;
        let has_memory = controllers.split_ascii_whitespace().any(|name| name == "memory");
        // Refused while processes are in the group itself: then jobs have groups without a bound on memory.
        let memory = has_memory && fs::write(base.join("cgroup.subtree_control"), "+memory").is_ok();
        Ok(Self { base, memory })
    }

    /// Whether a bound on a job's memory can be enforced.
    #[must_use]
    pub fn bounds_memory(&self) -> bool {
        self.memory
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.base
    }
}

/// The directory of this process's own group.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    directory_of(&mounts, &groups)
}

/// Where the group of version 2 in `groups` (`/proc/self/cgroup`) lies, by `mounts` (`/proc/self/mountinfo`).
fn directory_of(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // `ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS [FIELDS…] - TYPE …` (proc_pid_mountinfo(5)).
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let inside = group.strip_prefix(root.trim_end_matches('/'))?;
        (after.split(' ').next() == Some("cgroup2"))
            .then(|| Path::new(mount_point).join(inside.trim_start_matches('/')))
    })
}

fn is_marked(group: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(group.as_os_str().as_bytes()) else { return false };
    DELEGATED.iter().any(|name| {
        let mut value = [0_u8; 8];
        // SAFETY: both strings end in NUL, and the buffer is valid for writes of its whole length.
        let read = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        read == 1 && value[0] == b'1'
    })
}

/// The group of one job.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// What the group of a launch is called.
    pub(crate) fn name(launch: LaunchId) -> String {
        format!("job-{launch}")
    }

    /// Makes the group of a launch.
    pub(crate) fn create(base: &Path, launch: LaunchId, memory_max: Option<u64>) -> io::Result<Self> {
        let path = base.join(Self::name(launch));
        DirBuilder::new().mode(0o755).create(&path)?;
        let group = Self::open(path)?;
        if let Some(max) = memory_max {
            let bounded = group.write("memory.max", &max.to_string());
            // Half a job is of no use to anybody. Kernels before 4.19 end one process at a time.
            let _ = group.write("memory.oom.group", "1");
            if let Err(error) = bounded {
                group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }

    /// A group that an earlier process has made.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(&path)?;
        Ok(Self { path, directory: directory.into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    pub(crate) fn fd(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// Sends SIGKILL to every process in it and below it, also to those that are being forked. Kernels before 5.14 cannot.
    pub(crate) fn kill(&self) {
        let _ = self.write("cgroup.kill", "1");
    }

    /// The processes in it and below it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut found = Vec::new();
        pids_below(&self.path, &mut found);
        found
    }

    /// How often the kernel ended one of its processes because memory ran out; zero where it does not count.
    pub(crate) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes it, with the groups that the job has made in it. One that still holds processes stays.
    pub(crate) fn remove(&self) {
        remove_below(&self.path);
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let told = |error: io::Error| io::Error::new(error.kind(), format!("{}/{file}: {error}", self.path.display()));
        OpenOptions::new()
            .write(true)
            .open(self.path.join(file))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(told)
    }
}

fn pids_below(group: &Path, found: &mut Vec<i32>) {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(pids.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    for below in groups_in(group) {
        pids_below(&below, found);
    }
}

fn remove_below(group: &Path) {
    for below in groups_in(group) {
        remove_below(&below);
    }
    // Its files cannot be removed and need not be.
    let _ = fs::remove_dir(group);
}

fn groups_in(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_under_whatever_mount_there_is() {
        let unified = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let container = "90 80 0:23 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let cases = [
            (
                unified,
                "0::/system.slice/taxiway.service/service\n",
                Some("/sys/fs/cgroup/system.slice/taxiway.service/service"),
            ),
            (hybrid, "4:memory:/a\n0::/user.slice\n", Some("/sys/fs/cgroup/unified/user.slice")),
            (container, "0::/docker/abc/x\n", Some("/sys/fs/cgroup/x")),
            (unified, "0::/\n", Some("/sys/fs/cgroup")),
            (hybrid, "4:memory:/a\n", None),
            ("", "0::/a\n", None),
        ];
        for (mounts, groups, expected) in cases {
            assert_eq!(directory_of(mounts, groups).as_deref(), expected.map(Path::new), "{groups}");
        }
    }

    #[test]
    fn a_directory_of_another_filesystem_is_no_group() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Delegated::at(directory.path().to_owned()).is_err());
    }
}
