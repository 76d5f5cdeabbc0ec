//! The job's output: one pipe for stdout and stderr, so that their order is kept, copied into the log with a cap on its size.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::pages::Pages;

/// How much of the end of the output a capped log holds.
const TAIL_BYTES: u64 = 64 << 10;
/// Room for the marker within the cap.
const MARKER_BYTES: u64 = 256;
/// What one turn copies at most, so that a job that prints without end does not keep the shim from its other duties.
const TURN_BYTES: usize = 1 << 20;
/// The pipe's size, so that a burst of output costs few wake-ups. A process without privilege may ask for up to 1 MiB (pipe(7)).
const PIPE_BYTES: i32 = 256 << 10;

/// The reading end of the pipe, and the log.
pub(super) struct Output {
    pipe: Option<File>,
    log: File,
    /// How much may be written before the cap.
    room: u64,
    tail_max: usize,
    tail: Tail,
    max_size: u64,
    /// Why the log could not be written any more, if so.
    error: Option<io::Error>,
    buffer: Pages,
}

impl Output {
    /// Makes the pipe. Returns its writing end, which the command gets.
    pub(super) fn new(log: File, max_size: u64) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // The default of 64 KiB works too: the user's sum of pipes may be at its limit.
        let _ = fcntl(&read, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let tail_max = TAIL_BYTES.min(max_size / 2);
        let output = Self {
            pipe: Some(File::from(read)),
            log,
            room: max_size.saturating_sub(tail_max + MARKER_BYTES),
            // At most TAIL_BYTES.
            tail_max: tail_max as usize,
            tail: Tail::default(),
            max_size,
            error: None,
            buffer: Pages::new(64 << 10)?,
        };
        Ok((output, write))
    }

    /// The pipe, for poll; none when every writer has closed it.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Copies what waits in the pipe, up to a turn's worth.
    pub(super) fn copy_some(&mut self) {
        let mut copied = 0;
        while copied < TURN_BYTES {
            match self.copy_once() {
                Some(bytes) => copied += bytes,
                None => return,
            }
        }
    }

    /// Copies all that waits in the pipe, once no process of the job is left to write more. Somebody else may: the job can have
    /// handed its output to a service, which may go on for ever.
    pub(super) fn copy_rest(&mut self) {
        let mut left = self.waiting();
        while left > 0
            && let Some(copied) = self.copy_once()
        {
            left = left.saturating_sub(copied);
        }
        self.pipe = None;
    }

    /// How many bytes are in the pipe.
    fn waiting(&self) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        let mut waiting: libc::c_int = 0;
        // SAFETY: the descriptor is open, and FIONREAD (ioctl_pipe(2)) writes one int.
        let asked = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
        if asked == 0 { usize::try_from(waiting).unwrap_or(0) } else { usize::MAX }
    }

    fn copy_once(&mut self) -> Option<usize> {
        let pipe = self.pipe.as_mut()?;
        let read = match pipe.read(&mut self.buffer) {
            Ok(0) => {
                self.pipe = None;
                return None;
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => {
                self.pipe = None;
                return None;
            }
        };
        let bytes = &self.buffer[..read];
        let fits = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        let (head, rest) = bytes.split_at(fits);
        let mut unwritten = head;
        while !unwritten.is_empty() {
            match self.log.write(unwritten) {
                Ok(0) => break,
                Ok(written) => {
                    unwritten = &unwritten[written..];
                    self.room -= written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A full disk must not stop the job: from here on only the end is kept.
                Err(error) => {
                    self.error = Some(error);
                    self.room = 0;
                    break;
                }
            }
        }
        self.tail.push(unwritten, self.tail_max);
        self.tail.push(rest, self.tail_max);
        Some(read)
    }

    /// Writes what the cap held back: the marker and the end of the output. Returns how many bytes the log does not hold.
    pub(super) fn finish(&mut self) -> u64 {
        let mut dropped = self.tail.dropped;
        let (front, back) = self.tail.bytes.as_slices();
        if front.is_empty() {
            return dropped;
        }
        let written = (|| {
            if let Some(error) = &self.error {
                write!(
                    self.log,
                    "\n[taxiway: {dropped} bytes are missing here: the log could not be written: {error}]\n"
                )?;
            } else if dropped > 0 {
                let max = self.max_size;
                write!(self.log, "\n[taxiway: {dropped} bytes are missing here: a log may have {max} bytes]\n")?;
            }
            self.log.write_all(front)?;
            self.log.write_all(back)
        })();
        if written.is_err() {
            dropped += self.tail.bytes.len() as u64;
        }
        self.tail = Tail::default();
        dropped
    }
}

/// The last bytes of what came after the cap.
#[derive(Default)]
struct Tail {
    bytes: std::collections::VecDeque<u8>,
    dropped: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8], max: usize) {
        let kept = &bytes[bytes.len().saturating_sub(max)..];
        let overflow = (self.bytes.len() + kept.len()).saturating_sub(max);
        self.bytes.drain(..overflow);
        self.bytes.extend(kept);
        self.dropped += (overflow + bytes.len() - kept.len()) as u64;
    }
}
