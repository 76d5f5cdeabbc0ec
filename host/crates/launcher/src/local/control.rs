//! The host's end of a shim's socket.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::wire::{Lines, Report, Request, encode};

/// Writes go out at once on the caller's thread, whoever it is; reads belong to the launch's task.
pub(super) struct Control {
    stream: UnixStream,
    /// Bytes that did not fit into the socket. A shim reads at once, so there are some only while it is stopped or starved.
    unsent: Mutex<Vec<u8>>,
    more: Notify,
}

/// A shim that has not read this much for its whole life is stopped; what is said to it beyond that would be said in vain.
const UNSENT_MAX_BYTES: usize = 32 << 20;

impl Control {
    pub(super) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, unsent: Mutex::default(), more: Notify::new() })
    }

    /// Sends a message; an error means that the shim is gone.
    pub(super) fn send(&self, request: &Request) -> io::Result<()> {
        let line = encode(request);
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = 0;
        if unsent.is_empty() {
            sent = self.write(&line)?;
        }
        if sent < line.len() {
            if unsent.len() > UNSENT_MAX_BYTES {
                return Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
            unsent.extend_from_slice(&line[sent..]);
            drop(unsent);
            self.more.notify_one();
        }
        Ok(())
    }

    /// As much as fits.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are valid for reads of their whole length. This does not go through tokio's readiness, which a
        // socket that was never waited for does not have yet.
        let sent = unsafe { libc::send(self.stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Lets the shim read the end of the stream.
    pub(super) fn close(&self) {
        // SAFETY: the descriptor is open as long as `self.stream` is. A socket that the peer has closed needs no closing.
        unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_WR) };
    }

    /// The next report; none when the shim is gone.
    pub(super) async fn next(&self, lines: &mut Lines) -> Option<Report> {
        loop {
            if let Some(report) = lines.next() {
                return Some(report);
            }
            tokio::select! {
                readable = self.stream.readable() => {
                    readable.ok()?;
                    let mut buffer = [0_u8; 8 << 10];
                    match self.stream.try_read(&mut buffer) {
                        Ok(0) => return None,
                        Ok(read) => {
                            if !lines.push(&buffer[..read]) {
                                return None;
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return None,
                    }
                }
                () = self.flush() => {}
            }
        }
    }

    /// Waits until there is something unsent and there is room for it, and sends it.
    async fn flush(&self) {
        while self.unsent.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.more.notified().await;
        }
        if self.stream.writable().await.is_err() {
            return std::future::pending().await;
        }
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        // Tells tokio of a full socket, so that the next `writable` waits. An error shows at the reading side too.
        let sent = self.stream.try_write(&unsent).unwrap_or(0);
        unsent.drain(..sent);
    }
}
