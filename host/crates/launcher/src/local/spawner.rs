//! The host's end of the spawner: starting it, asking it for shims, hearing of those that were lost.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::orphans;
use crate::assignment::Assignment;
use crate::processes::{Identity, pidfd_open};
use crate::wire::{SPAWNER_ARGUMENT, SpawnerReport};

/// A running spawner.
#[derive(Clone)]
pub(super) struct Spawner {
    socket: Arc<AsyncFd<OwnedFd>>,
    process: Option<Identity>,
    lost: watch::Receiver<bool>,
}

impl Spawner {
    /// Starts a spawner; `on_report` is called with each of its reports.
    pub(super) fn start(program: &Path, on_report: impl Fn(SpawnerReport) + Send + 'static) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // The spawner and its shims live on after the service: they get nothing of its environment and hold nothing of its
        // standard streams.
        let child = Command::new(program)
            .arg(SPAWNER_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by the AsyncFd and gives the same number as long as that lives.
        let socket = Arc::new(unsafe { AsyncFd::register(ours) }.map_err(io::Error::from)?);
        let (set_lost, lost) = watch::channel(false);
        // Nobody has waited for it yet, so it is there, as a zombie at worst.
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let process = Identity::of(pid);
        tokio::spawn(listen(Arc::clone(&socket), set_lost, pid, pidfd_open(pid)?, on_report));
        Ok(Self { socket, process, lost })
    }

    /// Whether it still runs, as far as is known.
    pub(super) fn is_alive(&self) -> bool {
        // The end of its socket is known before its own.
        let mut socket = [PollFd::new(self.socket.get_ref().as_fd(), PollFlags::empty())];
        let has_hung_up = poll(&mut socket, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        !has_hung_up && !*self.lost.borrow()
    }

    /// Whether both are handles of the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }

    /// Its pid; 0 when that is not known.
    pub(super) fn pid(&self) -> i32 {
        self.process.map_or(0, |process| process.pid)
    }

    /// Sends it a signal; false when it is gone.
    pub(super) fn signal(&self, signal: i32) -> io::Result<bool> {
        self.process.map_or(Ok(false), |process| process.signal(signal))
    }

    /// Nobody asks it any more: it ends when its last shim has.
    pub(super) fn retire(&self) {
        // SAFETY: the descriptor is open as long as the socket is. A socket that the peer has closed needs no closing.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
    }

    /// Resolves when the spawner is gone.
    pub(super) fn watch_lost(&self) -> watch::Receiver<bool> {
        self.lost.clone()
    }

    /// Asks for a shim that takes this.
    pub(super) async fn ask(&self, assignment: Assignment) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| assignment.send(socket.as_raw_fd())).await
    }
}

async fn listen(
    socket: Arc<AsyncFd<OwnedFd>>,
    set_lost: watch::Sender<bool>,
    pid: i32,
    pidfd: OwnedFd,
    on_report: impl Fn(SpawnerReport),
) {
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                // SAFETY: the buffer is valid for writes of its whole length.
                let read = unsafe {
                    libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
                };
                usize::try_from(read).map_err(|_| io::Error::last_os_error())
            })
            .await;
        match received {
            Ok(0) | Err(_) => break,
            Ok(read) => match serde_json::from_slice(&buffer[..read]) {
                Ok(report) => on_report(report),
                Err(error) => tracing::warn!(%error, "the spawner sent something that this version does not know"),
            },
        }
    }
    // Its socket is closed, so it has ended or is about to. Whoever looks for orphans may have its status by now, so it is known by
    // its pidfd and not by a number that may be another's.
    let status = tokio::task::spawn_blocking(move || waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)).await;
    tracing::warn!(pid, ?status, "a spawner has ended; where there is no other, the next launch starts one");
    // What it has not waited for any more. An error means that the runtime is shutting down.
    let _ = tokio::task::spawn_blocking(orphans::wait_for_the_dead).await;
    set_lost.send_replace(true);
    // Shims that served no launch hear of it only now, and nobody else would wait for them. No event tells of their end, for which
    // a second is long.
    tokio::time::sleep(orphans::ENDING).await;
    let _ = tokio::task::spawn_blocking(orphans::wait_for_the_dead).await;
}
