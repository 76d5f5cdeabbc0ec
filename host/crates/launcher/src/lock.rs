//! The record lock on a launch's `lock` file, which its shim holds as long as it serves the launch.
//!
//! It is a POSIX record lock (fcntl_locking(2)): children do not inherit it, the kernel gives it back when its process ends in
//! whatever way, and `F_GETLK` names the holder. A process loses it by closing *any* descriptor of the file, so the file is
//! opened once.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// What an attempt to take the lock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// It is this process's until the file is closed.
    Taken,
    /// Another process has it; 0 when the kernel did not name it.
    HeldBy(i32),
}

/// The whole file, for writing.
fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Takes the lock, or says who has it.
pub(crate) fn take(file: &File) -> io::Result<Lock> {
    loop {
        match fcntl(file, FcntlArg::F_SETLK(&whole())) {
            Ok(_) => return Ok(Lock::Taken),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(error) => return Err(error.into()),
        }
        // Otherwise it was given back between the two calls.
        if let Some(holder) = holder(file)? {
            return Ok(Lock::HeldBy(holder));
        }
    }
}

/// Who has the lock, if another process does; 0 when the kernel does not name it.
pub(crate) fn holder(file: &File) -> io::Result<Option<i32>> {
    let mut holder = whole();
    fcntl(file, FcntlArg::F_GETLK(&mut holder))?;
    Ok((i32::from(holder.l_type) != libc::F_UNLCK).then_some(holder.l_pid))
}
