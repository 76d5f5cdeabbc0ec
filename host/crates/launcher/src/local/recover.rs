//! Finding launches again after a restart of the host (DESIGN §5, step 4).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use taxiway_job::LaunchId;
use tokio::io::unix::AsyncFd;

use super::Inner;
use super::control::Control;
use super::directory::{milliseconds, restore_access};
use super::launch::{Launch, State, blocking, open_directory};
use super::patience::ANSWER_TIMEOUT;
use super::settle::Settled;
use crate::launch::{AdoptedPhase, Event, Settlement, Unsettled};
use crate::processes::pidfd_open;
use crate::rules::Known;
use crate::watch::Watch;
use crate::wire::{ANSWERS_SINCE, Lines, Phase, Report, Request, VERSION, file};

/// Where nothing tells of a change, it is looked for again after this long. Longer than [`ANSWER_TIMEOUT`], after which it is said
/// what is being waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What came of asking a shim.
enum Asked {
    Adopted(Adopted),
    /// There is nobody, or the connection broke.
    Nobody,
    /// Its socket takes no more connections: it has not come to take those that wait.
    Full,
}

/// A shim's answer to the handshake.
struct Adopted {
    control: Arc<Control>,
    lines: Lines,
    /// As the kernel names it: its own number may be of another pid namespace.
    shim_pid: i32,
    version: u32,
    phase: Phase,
}

impl Launch {
    /// Finds out what became of an attempt that the store holds unsettled.
    pub(super) async fn recover(self: Arc<Self>, inner: &Arc<Inner>, attempt: Unsettled) {
        let known = Known { phase: attempt.phase, same_boot: attempt.boot_id == inner.boot_id };
        self.search(inner, known).await;
    }

    /// Asks the shim, else takes its lock, else waits until one of the two can be done.
    pub(super) async fn search(self: Arc<Self>, inner: &Arc<Inner>, mut known: Known) {
        let launch = self.id;
        let mut told = String::new();
        loop {
            // Before the shim is asked, so that its socket is not missed: it makes one when it has seen its host go.
            let names = Watch::names(&self.directory);
            let mut is_full = false;
            match self.ask(inner).await {
                Asked::Adopted(adopted) => match Arc::clone(&self).adopt(inner, adopted).await {
                    Some(unclear) => known = unclear,
                    None => return,
                },
                Asked::Nobody => {}
                Asked::Full => is_full = true,
            }
            let (holder, why) = match self.settle(inner, known, None).await {
                Ok(Ok(Settled::Yes(Settlement::NotStarted { reason }))) => {
                    return self.started_nothing(inner, reason).await;
                }
                Ok(Ok(Settled::Yes(settlement))) => return inner.settle(launch, settlement).await,
                Ok(Ok(Settled::LockHeldBy(holder))) => (holder, silent(holder)),
                Ok(Err(error))
                    if error.kind() == io::ErrorKind::PermissionDenied && restore_access(&self.directory) =>
                {
                    continue;
                }
                Ok(Err(error)) => (0, format!("what became of it cannot be read: {error}")),
                // The runtime is shutting down.
                Err(_) => return,
            };
            let waiting = async {
                tokio::select! {
                    () = wait_for_change(holder, names) => {}
                    // No event tells of room.
                    () = tokio::time::sleep(LOOK_AGAIN), if is_full => {}
                }
            };
            tokio::pin!(waiting);
            if tokio::time::timeout(ANSWER_TIMEOUT, &mut waiting).await.is_err() {
                // Again only when it is something else.
                if told != why {
                    told.clone_from(&why);
                    inner.report(Event::Unresponsive { launch, shim_pid: holder, why }).await;
                }
                self.outwait(holder, waiting).await;
            }
        }
    }

    async fn adopt(self: Arc<Self>, inner: &Arc<Inner>, adopted: Adopted) -> Option<Known> {
        let launch = self.id;
        self.vigil.begin(adopted.version >= ANSWERS_SINCE);
        *self.state() = State::Going(Arc::clone(&adopted.control));
        let (phase, process) = match adopted.phase {
            Phase::Running(process) => (AdoptedPhase::Running(process.clone()), Some(process)),
            Phase::Ended => (AdoptedPhase::Ended, None),
        };
        self.say(&Request::Extend { time_limit_ms: self.vigil.time_limit().map(milliseconds) });
        inner.report(Event::Adopted { launch, phase }).await;
        self.follow_adopted(inner, adopted.control, adopted.lines, adopted.shim_pid, process).await
    }

    /// Shakes hands with the shim.
    async fn ask(&self, inner: &Inner) -> Asked {
        let directory = self.directory.clone();
        match blocking(move || connect_in(&directory)).await {
            Ok(Ok(stream)) => self.greet(inner, stream).await.map_or(Asked::Nobody, Asked::Adopted),
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Asked::Full,
            Ok(Err(_)) | Err(_) => Asked::Nobody,
        }
    }

    /// Says hello, and waits for the answer; none when the connection breaks.
    async fn greet(&self, inner: &Inner, stream: UnixStream) -> Option<Adopted> {
        let shim_pid = peer(&stream);
        let control = Arc::new(Control::new(stream).ok()?);
        control.send(&Request::Hello { version: VERSION, launch: self.id }).ok()?;
        let answer = answer(control, self.id, shim_pid);
        tokio::pin!(answer);
        match tokio::time::timeout(ANSWER_TIMEOUT, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                let why = silent(shim_pid);
                inner.report(Event::Unresponsive { launch: self.id, shim_pid, why }).await;
                let mut adopted = None;
                self.outwait(shim_pid, async { adopted = answer.await }).await;
                adopted
            }
        }
    }
}

/// Waits until the holder of the lock is gone or a name appears in the directory: the holder may not have got as far as its
/// socket.
pub(super) async fn wait_for_change(holder: i32, names: io::Result<Watch>) {
    let Ok(names) = names else {
        // Not even watching works (a limit of inotify(7)): the only wait by the clock, in a case that needs a person.
        return tokio::time::sleep(LOOK_AGAIN).await;
    };
    let holder = match holder {
        1.. => pidfd_open(holder),
        // The kernel names no holder for a lock from another pid namespace.
        _ => return tokio::time::sleep(LOOK_AGAIN).await,
    };
    let holder = match holder {
        Ok(holder) => holder,
        // It went between the question and now.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return,
        // Too many open files, say, of which no event tells.
        Err(_) => return tokio::time::sleep(LOOK_AGAIN).await,
    };
    // SAFETY: the descriptor is owned by the AsyncFd and gives the same number as long as that lives.
    let Ok(holder) = (unsafe { AsyncFd::register(holder) }) else {
        return tokio::time::sleep(LOOK_AGAIN).await;
    };
    tokio::select! {
        _ = holder.readable() => {}
        () = names.changed() => {}
    }
}

fn silent(shim_pid: i32) -> String {
    match shim_pid {
        0 => "its shim holds its lock and does not answer".to_owned(),
        _ => format!("its shim, process {shim_pid}, holds its lock and does not answer"),
    }
}

async fn answer(control: Arc<Control>, launch: LaunchId, shim_pid: i32) -> Option<Adopted> {
    let mut lines = Lines::default();
    loop {
        if let Report::Adopted { launch: answered, version, phase, .. } = control.next(&mut lines).await? {
            return (answered == launch).then_some(Adopted { control, lines, shim_pid, version, phase });
        }
    }
}

/// The process at the other end.
fn peer(stream: &UnixStream) -> i32 {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials).map_or(0, |peer| peer.pid())
}

/// Connects to the shim's socket by way of its directory, since a socket's path may have 107 bytes only.
fn connect_in(directory: &std::path::Path) -> io::Result<UnixStream> {
    let directory: OwnedFd = open_directory(directory)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), file::SOCKET);
    let address = UnixAddr::new(path.as_str())?;
    // Not waiting: a shim that is stopped with a full backlog counts as one that does not answer.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(UnixStream::from(stream))
}
