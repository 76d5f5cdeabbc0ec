//! Memory that costs nothing before it is used.
//!
//! A shim is a fork. Its heap is the spawner's, and each page of it that the shim writes to is copied first; a buffer from there is
//! even cleared as a whole, so that one for output that never comes costs as much as one that is used. Pages of its own are made
//! by the first byte that is written to them, and stay for the next launch that the process serves.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// Bytes: zeroes, or whatever the launch before has left in them.
pub(super) struct Pages(Mapping);

struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

/// A stack and a buffer: what one launch has.
const LEFT_MOST: usize = 2;

thread_local! {
    /// What the launch before has left.
    static LEFT: RefCell<Vec<Mapping>> = const { RefCell::new(Vec::new()) };
}

impl Pages {
    /// Maps pages for this many bytes, which is not zero.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        let left = LEFT.with_borrow_mut(|left| {
            let fitting = left.iter().position(|mapping| mapping.length == length);
            fitting.map(|at| left.swap_remove(at))
        });
        left.map_or_else(|| Mapping::new(length), Ok).map(Self)
    }
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
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
        // SAFETY: the mapping is this long, initialised with zeroes by the kernel, and this value's alone.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let Self(Mapping { start, length }) = *self;
        // An error means that the thread is ending.
        let kept = LEFT.try_with(|left| {
            let mut left = left.borrow_mut();
            let there_is_room = left.len() < LEFT_MOST;
            if there_is_room {
                left.push(Mapping { start, length });
            }
            there_is_room
        });
        if kept != Ok(true) {
            // SAFETY: the mapping is this value's, and nothing borrows from it any more.
            unsafe { libc::munmap(start.as_ptr().cast(), length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_can_be_written_to_their_last_byte_and_serve_again() {
        let mut pages = Pages::new(10_000).expect("memory");
        assert!(pages.len() == 10_000 && pages.iter().all(|byte| *byte == 0));
        pages.fill(7);
        assert!(pages.iter().all(|byte| *byte == 7));
        let address = pages.as_ptr();
        drop(pages);
        let others = Pages::new(20_000).expect("memory");
        assert!(others.len() == 20_000 && others.iter().all(|byte| *byte == 0));
        assert_eq!(Pages::new(10_000).expect("memory").as_ptr(), address);
    }

    #[test]
    fn no_more_pages_are_left_than_a_launch_needs() {
        let all: Vec<Pages> = (0..5).map(|_| Pages::new(4096).expect("memory")).collect();
        drop(all);
        assert_eq!(LEFT.with_borrow(Vec::len), LEFT_MOST);
    }
}
