//! The linear memories of guests: address space that is reserved at once, made accessible as the guest grows, and given back in
//! pieces.
//!
//! While the system takes memory back, whoever else needs some waits (mmap_lock): for a hundred megabytes some 20 ms, if it is done in
//! one step, as wasmtime's own memories do it. Between two pieces they have their turn.

use std::io;
use std::ptr::{self, NonNull};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// Bytes that are given back in one step: about a millisecond.
const PIECE: usize = 4 << 20;

/// Makes the memories of an engine.
pub struct Memories;

// SAFETY: the memory is a fresh anonymous mapping, so it is zeroes, and `Reserved` keeps what the trait asks of it.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let memory = Reserved::new(minimum, reserved.unwrap_or(0), guard);
        memory.map(|memory| Box::new(memory) as Box<dyn LinearMemory>).map_err(|error| error.to_string())
    }
}

/// One mapping: a guard, the memory with all that it may grow to, and another guard. All of it is inaccessible but for the first
/// `size` bytes of the memory, rounded up to pages.
struct Reserved {
    mapping: NonNull<u8>,
    /// Bytes of the mapping.
    mapped: usize,
    /// Bytes before the memory.
    guard: usize,
    /// Bytes that the memory may have.
    capacity: usize,
    /// Bytes that it has.
    size: usize,
}

// SAFETY: the mapping belongs to this value alone, and its address is good on every thread.
unsafe impl Send for Reserved {}
// SAFETY: `&Reserved` only reads fields. Who writes through the pointer is up to wasmtime.
unsafe impl Sync for Reserved {}

impl Reserved {
    fn new(minimum: usize, reserved: usize, guard: usize) -> io::Result<Reserved> {
        let too_much = || io::Error::from(io::ErrorKind::OutOfMemory);
        let capacity = in_pages(minimum).ok_or_else(too_much)?.max(reserved);
        let guard = in_pages(guard).ok_or_else(too_much)?;
        let mapped = capacity.checked_add(guard).and_then(|sum| sum.checked_add(guard)).ok_or_else(too_much)?;
        // SAFETY: a new private mapping, at an address that the kernel chooses, touches nothing that is there.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped.max(1),
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A mapping that the kernel chose the address of does not begin at zero.
        let mapping = NonNull::new(mapping.cast()).ok_or_else(too_much)?;
        let mut memory = Reserved { mapping, mapped: mapped.max(1), guard, capacity, size: 0 };
        memory.grow(minimum)?;
        Ok(memory)
    }

    fn grow(&mut self, size: usize) -> io::Result<()> {
        let pages = in_pages(size).filter(|pages| *pages <= self.capacity);
        let pages = pages.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if size < self.size {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: the range is within the mapping, since `pages` is at most its capacity. Nobody relies on its being inaccessible but
        // the guest that grows.
        let changed = unsafe { libc::mprotect(self.start().cast(), pages, libc::PROT_READ | libc::PROT_WRITE) };
        if changed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.size = size;
        Ok(())
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the guard is part of the mapping.
        unsafe { self.mapping.as_ptr().add(self.guard) }
    }
}

/// Rounded up to whole pages of the system. None beyond what can be addressed.
fn in_pages(bytes: usize) -> Option<usize> {
    // SAFETY: sysconf only reads a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    bytes.checked_next_multiple_of(page)
}

// SAFETY: the base never moves, `byte_capacity` bytes after it are part of the mapping, growth within them leaves the base where it is
// and makes zeroes accessible, and the guard after them stays inaccessible.
unsafe impl LinearMemory for Reserved {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        Ok(self.grow(new_size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.start()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut given = 0;
        // What remains goes with the mapping.
        while self.size - given > PIECE {
            // SAFETY: the range is within the accessible part of the mapping, which nobody uses any more. Failing leaves it as it is.
            unsafe { libc::madvise(self.start().add(given).cast(), PIECE, libc::MADV_DONTNEED) };
            given += PIECE;
        }
        // SAFETY: this is the whole mapping that `new` made, and nobody has a pointer into it any more.
        let unmapped = unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
        if unmapped != 0 {
            tracing::error!(error = %io::Error::last_os_error(), "the memory of a plugin's call stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: usize = 32 << 20;
    const MIB: usize = 1 << 20;

    /// How the kernel has the page at this address.
    fn access(address: *mut u8) -> String {
        let address = address as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let bound = |text| usize::from_str_radix(text, 16).unwrap();
            (bound(start)..bound(end)).contains(&address).then(|| rest[..3].to_owned())
        });
        line.unwrap_or_else(|| "none".to_owned())
    }

    #[test]
    fn a_memory_is_accessible_as_far_as_it_has_grown_and_guarded_on_both_sides() {
        let mut memory = Reserved::new(2 * MIB, 64 * MIB, GUARD).unwrap();
        let start = memory.as_ptr();
        let at = |offset: isize| start.wrapping_offset(offset);
        let byte = |bytes: usize| isize::try_from(bytes).unwrap();
        assert_eq!((memory.byte_size(), memory.byte_capacity()), (2 * MIB, 64 * MIB));
        assert_eq!(access(at(0)), "rw-");
        assert_eq!(access(at(byte(2 * MIB) - 1)), "rw-");
        for outside in [-byte(GUARD), -1, byte(2 * MIB), byte(64 * MIB), byte(64 * MIB + GUARD) - 1] {
            assert_eq!(access(at(outside)), "---", "{outside}");
        }
        memory.grow_to(64 * MIB).unwrap();
        assert_eq!((memory.as_ptr(), memory.byte_size()), (start, 64 * MIB));
        assert_eq!(access(at(byte(64 * MIB) - 1)), "rw-");
        assert_eq!(access(at(byte(64 * MIB))), "---");
        assert!(memory.grow_to(64 * MIB + 1).is_err());
        assert_eq!(memory.byte_size(), 64 * MIB);
        // SAFETY: it is this memory's, which is as large as that.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, 64 * MIB) };
        assert!(bytes.iter().step_by(4096).all(|byte| *byte == 0));
        bytes.fill(1);
        drop(memory);
        assert_ne!(access(start), "rw-");
    }

    #[test]
    fn one_that_begins_larger_than_what_is_reserved_has_what_it_needs_and_does_not_grow() {
        let mut memory = Reserved::new(2 * MIB, MIB, 0).unwrap();
        assert_eq!(memory.byte_capacity(), 2 * MIB);
        assert!(memory.grow_to(2 * MIB + 1).is_err());
        assert!(Reserved::new(usize::MAX, 0, GUARD).is_err());
        assert!(Reserved::new(0, 0, 0).is_ok());
    }
}
