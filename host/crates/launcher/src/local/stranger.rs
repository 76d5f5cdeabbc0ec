//! A launch of a job that goes on and that this host knows nothing of: the store was put back to a moment before it, from a
//! backup say. Its job must not be started beside it.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use taxiway_job::{JobId, LaunchId};

use super::Inner;
use super::directory::{job_directory, launch_directory, launches_in};
use super::launch::blocking;
use super::recover::wait_for_change;
use crate::launch::Event;
use crate::lock;
use crate::watch::Watch;
use crate::wire::file;

/// How long a shim may need to go that has said its last word: it gives its lock back with its process.
const LEAVING: Duration = Duration::from_millis(500);

/// The rest after a lock that could not be looked at.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// A launch that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stranger {
    pub(super) job: JobId,
    pub(super) launch: LaunchId,
    /// The holder of its lock; 0 when the kernel did not name it.
    pub(super) shim_pid: i32,
}

/// A launch of this job that has a shim, other than those that `knows` names.
pub(super) fn find(jobs_dir: &Path, job: JobId, knows: &dyn Fn(LaunchId) -> bool) -> io::Result<Option<Stranger>> {
    for launch in launches_in(&job_directory(jobs_dir, job))?.into_iter().filter(|launch| !knows(*launch)) {
        if let Some(shim_pid) = holder(&launch_directory(jobs_dir, job, launch))? {
            return Ok(Some(Stranger { job, launch, shim_pid }));
        }
    }
    Ok(None)
}

/// Who holds the lock in a launch's directory. Not for a launch that this process may be settling: closing the file gives a
/// lock of its own away.
pub(super) fn holder(directory: &Path) -> io::Result<Option<i32>> {
    match OpenOptions::new().read(true).write(true).open(directory.join(file::LOCK)) {
        Ok(file) => lock::holder(&file),
        // Where a directory or a lock should be a job may have put something else, which no shim has locked.
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Stranger {
    /// Waits a moment for one that may be on its way out.
    pub(super) async fn may_leave(self, inner: &Inner) {
        // An error means that it stays.
        let _ = tokio::time::timeout(LEAVING, self.changes(inner)).await;
    }

    /// Waits until it is over, and says so.
    pub(super) async fn outlast(mut self, inner: &Arc<Inner>) {
        loop {
            self.changes(inner).await;
            let directory = self.directory(inner);
            match blocking(move || holder(&directory)).await {
                Ok(Ok(Some(shim_pid))) => self.shim_pid = shim_pid,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    tracing::error!(job = %self.job, launch = %self.launch, %error, "cannot look whether a launch is over");
                    // No event tells when it can be looked at again.
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
                // The runtime is shutting down.
                Err(_) => return,
            }
        }
        inner.report(Event::StrangerGone { job: self.job, launch: self.launch }).await;
    }

    async fn changes(&self, inner: &Inner) {
        wait_for_change(self.shim_pid, Watch::names(&self.directory(inner))).await;
    }

    fn directory(&self, inner: &Inner) -> PathBuf {
        launch_directory(&inner.jobs_dir, self.job, self.launch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::leftover::remove_leftovers;
    use super::*;
    use crate::lock::Lock;

    #[test]
    fn only_a_launch_whose_lock_somebody_holds_and_that_is_not_known_is_a_stranger() {
        let place = tempfile::tempdir().expect("a directory");
        let (job, over, alive) = (JobId::new(), LaunchId::random(), LaunchId::random());
        let directory = job_directory(place.path(), job);
        for name in [over.to_string(), alive.to_string(), "checkpoints".to_owned()] {
            std::fs::create_dir_all(directory.join(&name)).expect("a directory");
            for file in [file::EXIT, file::LOCK] {
                std::fs::write(directory.join(&name).join(file), "").expect("a file");
            }
        }
        // What the job itself has given such names.
        let [own_file, own_directory] = [(); 2].map(|()| directory.join(LaunchId::random().to_string()));
        std::fs::write(&own_file, "").expect("a file");
        std::fs::create_dir_all(own_directory.join(file::LOCK)).expect("a directory");
        let nobody = |_| false;
        assert_eq!(find(place.path(), job, &nobody).expect("readable"), None);
        let locked = directory.join(alive.to_string()).join(file::LOCK);
        // A lock of this process would not be in its own way: another one takes it.
        let (ready, is_ready) = nix::unistd::pipe().expect("a pipe");
        let (stay, stays) = nix::unistd::pipe().expect("a pipe");
        let file = OpenOptions::new().read(true).write(true).open(&locked).expect("a file");
        // SAFETY: the child makes system calls and leaves by _exit; it allocates nothing.
        match unsafe { nix::unistd::fork() }.expect("a fork") {
            nix::unistd::ForkResult::Child => {
                let taken = matches!(lock::take(&file), Ok(Lock::Taken));
                let _ = nix::unistd::write(&is_ready, &[u8::from(taken)]);
                drop(stays);
                let _ = nix::unistd::read(&stay, &mut [0]);
                // SAFETY: as above.
                unsafe { libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop(stay);
                let mut taken = [0];
                nix::unistd::read(&ready, &mut taken).expect("the child says so");
                assert_eq!(taken, [1]);
                let stranger = Stranger { job, launch: alive, shim_pid: child.as_raw() };
                assert_eq!(find(place.path(), job, &nobody).expect("readable"), Some(stranger));
                assert_eq!(find(place.path(), job, &|launch| launch == alive).expect("readable"), None);
                let go_on = remove_leftovers(place.path(), job, &[]).expect("can be removed");
                assert_eq!((go_on, locked.exists()), (vec![alive], true), "a launch that goes on keeps its directory");
                assert!(!directory.join(over.to_string()).exists(), "the other one is left over");
                drop(stays);
                nix::sys::wait::waitpid(child, None).expect("it is a child");
                assert_eq!(find(place.path(), job, &nobody).expect("readable"), None, "its lock went with it");
                assert_eq!(remove_leftovers(place.path(), job, &[]).expect("can be removed"), []);
                assert!(!locked.exists() && directory.join("checkpoints").exists());
                assert!(own_file.exists() && own_directory.exists());
            }
        }
    }
}
