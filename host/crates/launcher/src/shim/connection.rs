//! One stream socket between the shim and a host.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{Lines, encode};

/// A socket with the bytes that arrived on it and are no whole message yet.
pub(super) struct Connection {
    socket: OwnedFd,
    lines: Lines,
}

impl Connection {
    /// Takes a connected socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, lines: Lines::default() }
    }

    /// The socket, for poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next message that has arrived whole.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        self.lines.next()
    }

    /// Waits for bytes; false when the peer has closed.
    pub(super) fn wait(&mut self) -> bool {
        self.receive(0) == Received::Bytes
    }

    /// Takes what has arrived, without waiting.
    pub(super) fn take(&mut self) -> Received {
        self.receive(libc::MSG_DONTWAIT)
    }

    fn receive(&mut self, flags: i32) -> Received {
        // Small: each page of the stack that a shim uses is copied for it. A plan that is longer comes in parts.
        let mut buffer = [0_u8; 4 << 10];
        loop {
            // SAFETY: the buffer is valid for writes of its whole length.
            let read = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            match usize::try_from(read) {
                Ok(0) => return Received::Closed,
                Ok(read) if self.lines.push(&buffer[..read]) => return Received::Bytes,
                Ok(_) => return Received::Closed,
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Received::Nothing,
                    _ => return Received::Closed,
                },
            }
        }
    }

    /// Sends a message; false when the peer is gone or has not read for so long that its socket is full. Reports are few and
    /// small, and a host that lost one asks again when it adopts.
    pub(super) fn send<T: Serialize>(&self, message: &T) -> bool {
        self.send_all([message])
    }

    /// The same with several messages in one piece.
    pub(super) fn send_all<T: Serialize>(&self, messages: impl IntoIterator<Item = T>) -> bool {
        let line: Vec<u8> = messages.into_iter().flat_map(|message| encode(&message)).collect();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the line is valid for reads of its whole length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), line.as_ptr().cast(), line.len(), flags) };
        usize::try_from(sent) == Ok(line.len())
    }
}

/// What waited on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// Bytes, now in the connection.
    Bytes,
    /// Nothing.
    Nothing,
    /// Its end, or an error that comes to the same.
    Closed,
}
