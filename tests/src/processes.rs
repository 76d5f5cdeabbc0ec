//! What really runs, as `/proc` shows it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process: its id alone may be another one's tomorrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it was started, in clock ticks since the boot.
    pub start_time: u64,
}

impl Process {
    /// The process of this id, if there is one that has not ended.
    #[must_use]
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything (proc_pid_stat(5)).
        let mut fields = stat.get(stat.rfind(')')? + 2..)?.split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_time })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When that takes longer than the tests' patience.
    pub fn wait(self) {
        let Some(descriptor) = self.descriptor() else { return };
        let timeout = PollTimeout::try_from(crate::PATIENCE).expect("two minutes are not too long");
        let ready =
            poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], timeout).expect("a pidfd can be polled");
        assert!(ready == 1, "process {} does not end", self.pid);
    }

    /// A descriptor that becomes readable when it ends (pidfd_open(2)).
    fn descriptor(self) -> Option<OwnedFd> {
        // SAFETY: the call takes two integers and returns a new descriptor or -1.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0_u32) };
        let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        self.is_alive().then_some(descriptor)
    }

    /// The process that started it, or took it over.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Self::find(parent.trim().parse().ok()?)
    }

    /// Whether it waits in poll(2), as a shim does once it is armed; true also where the kernel does not say (proc_pid_syscall(5)).
    fn waits_in_poll(self) -> bool {
        let Ok(call) = fs::read_to_string(format!("/proc/{}/syscall", self.pid)) else { return true };
        let number = call.split_ascii_whitespace().next().and_then(|number| number.parse::<libc::c_long>().ok());
        #[cfg(target_arch = "x86_64")]
        let polls = [libc::SYS_poll, libc::SYS_ppoll];
        #[cfg(not(target_arch = "x86_64"))]
        let polls = [libc::SYS_ppoll];
        number.is_some_and(|number| polls.contains(&number))
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Sends a signal, if it still runs.
    pub fn signal(self, signal: i32) {
        let Some(descriptor) = self.descriptor() else { return };
        // SAFETY: the descriptor is open, a null siginfo asks for the default, and the flags are zero.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                descriptor.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0_u32,
            )
        };
    }
}

/// The children of a process that have ended and that it has not waited for.
#[must_use]
pub fn zombies_of(parent: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let zombie = format!("Z {parent} ");
    pids.filter(|pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(&zombie))
    })
    .collect()
}

/// The shim that holds the lock of the latest launch of a job, once there is one.
pub async fn shim_of(jobs_dir: &Path, job_id: &str) -> Process {
    crate::patiently("a shim", async {
        loop {
            let launches = fs::read_dir(jobs_dir.join(job_id)).into_iter().flatten().flatten();
            if let Some(shim) = launches.filter_map(|launch| lock_holder(&launch.path().join("lock"))).next() {
                return shim;
            }
            // Nothing tells of an armed shim, which nobody but its service has to know of; so it is looked for again.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
}

/// The same, once it is armed. One that is stopped before is never ready, and its launch is given up after half a minute.
pub async fn armed_shim_of(jobs_dir: &Path, job_id: &str) -> Process {
    let shim = shim_of(jobs_dir, job_id).await;
    crate::patiently("an armed shim", async {
        while !shim.waits_in_poll() {
            // As above.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    shim
}

/// The process that holds a record lock on a file (fcntl_locking(2)).
fn lock_holder(path: &Path) -> Option<Process> {
    let lock = fs::OpenOptions::new().write(true).open(path).ok()?;
    let mut holder = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_GETLK(&mut holder)).ok()?;
    (i32::from(holder.l_type) != libc::F_UNLCK).then(|| Process::find(holder.l_pid))?
}

/// The value of a variable in the environment that a process was started with.
#[must_use]
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let assignments = environment.split(|byte| *byte == 0);
    let value = assignments.filter_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"=")).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Every process of this job: it has the job's id in its environment, wherever it hides.
#[must_use]
pub fn of_job(id: &str) -> Vec<Process> {
    having("TAXIWAY_JOB_ID", |value| value == id)
}

/// Every process of any job in this jobs directory.
#[must_use]
pub fn of_jobs_in(jobs_dir: &Path) -> Vec<Process> {
    having("TAXIWAY_JOB_DIR", |value| Path::new(value).starts_with(jobs_dir))
}

fn having(name: &str, wanted: impl Fn(&str) -> bool) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((Process::find(pid)?, variable(pid, name)?)))
        .filter(|(_, value)| wanted(value))
        .map(|(process, _)| process)
        .collect()
}

/// Ends every process of any job in this jobs directory. Their shims end by themselves then.
pub(crate) fn end_jobs_in(jobs_dir: &Path) {
    // What a process forked just before its end is found by the next look.
    for _ in 0..100 {
        let found = of_jobs_in(jobs_dir);
        if found.is_empty() {
            return;
        }
        found.into_iter().for_each(Process::kill);
    }
}
