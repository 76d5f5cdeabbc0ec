//! Memory that costs nothing before it is used.
//!
//! A shim is a fork. Its heap is the spawner's, and each page of it that the shim writes to is copied first; a buffer from there is
//! even cleared as a whole, so that one for output that never comes costs as much as one that is used. Pages of its own are made
//! by the first byte that is written to them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// Zeroed bytes.
pub(super) struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// Maps pages for this many bytes, which is not zero.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: an anonymous mapping at an address that the kernel chooses touches nothing that there is.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is this long, initialised with zeroes, and this value's alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_and_can_be_written_to_their_last_byte() {
        let mut pages = Pages::new(10_000).expect("memory");
        assert!(pages.len() == 10_000 && pages.iter().all(|byte| *byte == 0));
        pages.fill(7);
        assert!(pages.iter().all(|byte| *byte == 7));
    }
}
