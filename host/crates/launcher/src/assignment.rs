//! What a shim is given: a launch, with its control socket and its directory. The host hands it to the spawner, and the spawner to
//! a shim that it forks, or to one whose launch has just ended.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use taxiway_job::LaunchId;

/// The bytes of the message: the launch id as it is written.
const BYTES: usize = 32;

/// One launch for one shim.
pub(crate) struct Assignment {
    pub(crate) launch: LaunchId,
    /// The shim's end of its control socket.
    pub(crate) control: OwnedFd,
    pub(crate) directory: OwnedFd,
}

impl Assignment {
    /// Sends it over a socket of datagrams, without waiting. The descriptors of this process stay its own.
    pub(crate) fn send(&self, socket: RawFd) -> io::Result<()> {
        let name = self.launch.to_string();
        let descriptors = [self.control.as_raw_fd(), self.directory.as_raw_fd()];
        let bytes = [io::IoSlice::new(name.as_bytes())];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(socket, &bytes, &rights, flags, None)?;
        Ok(())
    }

    /// Waits for one; none when the other end is gone.
    pub(crate) fn receive(socket: RawFd) -> io::Result<Option<Self>> {
        let mut bytes = [0_u8; BYTES];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let mut slices = [io::IoSliceMut::new(&mut bytes)];
        let message: RecvMsg<'_, '_, UnixAddr> =
            recvmsg(socket, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for this process.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let read = message.bytes;
        if read == 0 {
            return Ok(None);
        }
        let launch = std::str::from_utf8(&bytes).ok().filter(|_| read == BYTES).and_then(|name| name.parse().ok());
        match (launch, descriptors.pop(), descriptors.pop()) {
            (Some(launch), Some(directory), Some(control)) => Ok(Some(Self { launch, control, directory })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The way from a shim back to its spawner, as the shim has it.
pub(crate) struct Home(OwnedFd);

impl Home {
    /// The way, and the spawner's end of it.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (shims, spawners) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(shims), spawners))
    }

    /// Says that this shim has nothing to do, and waits for another launch; none when there will be none. After an error there may
    /// be one that waits in vain.
    pub(crate) fn next(&self) -> io::Result<Option<Assignment>> {
        let said = [0_u8];
        // SAFETY: one byte is valid for reads.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), said.as_ptr().cast(), said.len(), libc::MSG_NOSIGNAL) };
        if sent == 1 { Assignment::receive(self.0.as_raw_fd()) } else { Ok(None) }
    }
}

/// What the spawner hears from a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing new.
    Nothing,
    /// It has nothing to do.
    IsFree,
    /// It will not come back.
    Closed,
}

/// What the shim at the other end of this socket has said, without waiting.
pub(crate) fn hear(home: &OwnedFd) -> Heard {
    let mut said = [0_u8; 1];
    // SAFETY: one byte is valid for writes.
    let read = unsafe { libc::recv(home.as_raw_fd(), said.as_mut_ptr().cast(), said.len(), libc::MSG_DONTWAIT) };
    match read {
        1 => Heard::IsFree,
        0 => Heard::Closed,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
        _ => Heard::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment() -> Assignment {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it opens"));
        Assignment { launch: LaunchId::random(), control: file(), directory: file() }
    }

    #[test]
    fn a_shim_says_that_it_is_free_and_is_given_another_launch() {
        let (home, spawners) = Home::new().expect("a socket");
        let given = assignment();
        let launch = given.launch;
        assert_eq!(hear(&spawners), Heard::Nothing);
        let next = |home: &Home| home.next().expect("it can be read").map(|given| given.launch);
        let shim = std::thread::spawn(move || (next(&home), next(&home)));
        while hear(&spawners) != Heard::IsFree {
            std::thread::yield_now();
        }
        given.send(spawners.as_raw_fd()).expect("the shim waits for it");
        drop(given);
        while hear(&spawners) != Heard::IsFree {
            std::thread::yield_now();
        }
        drop(spawners);
        assert_eq!(shim.join().expect("it ends"), (Some(launch), None));
    }

    #[test]
    fn a_shim_that_has_gone_is_given_nothing() {
        let (home, spawners) = Home::new().expect("a socket");
        drop(home);
        assert_eq!(hear(&spawners), Heard::Closed);
        assert!(assignment().send(spawners.as_raw_fd()).is_err());
    }
}
