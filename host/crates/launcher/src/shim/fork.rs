//! clone(2) with the parent's memory, straight into a control group where there is one.
//!
//! A process that is moved into a group after its fork waits for every reader of the kernel's lock on group membership, which
//! takes milliseconds; one that begins there (`CLONE_INTO_CGROUP`, Linux 5.7) costs nothing more. The C library has no function
//! for that call, since the child must begin on another stack.

use std::io;
use std::os::fd::RawFd;

/// What the child does; it never returns.
pub(super) type Entry = extern "C" fn(*mut libc::c_void) -> libc::c_int;

/// Forks a child that shares this process's memory and keeps this thread waiting until its exec or end.
///
/// # Errors
/// When the kernel refuses.
///
/// # Safety
/// `entry` must be fit to run in a child that shares memory, on `stack`, with `argument`; no signal handler may run.
pub(super) unsafe fn fork(
    entry: Entry,
    argument: *mut libc::c_void,
    stack: &mut [u8],
    group: Option<RawFd>,
) -> io::Result<libc::pid_t> {
    // The stack grows down from an address that the ABI wants to be a multiple of 16.
    let range = stack.as_mut_ptr_range();
    let top = range.end.wrapping_sub(range.end as usize % 16);
    if let Some(group) = group {
        // SAFETY: as the caller promises; the stack lies between the two addresses.
        match unsafe { into_group(entry, argument, range.start, top, group) } {
            // A kernel that does not know the call, or a group that went away: the job runs without one.
            Err(error) if may_do_without(&error) => {}
            forked => return forked,
        }
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as the caller promises.
    let pid = unsafe { libc::clone(entry, top.cast(), flags, argument) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

fn may_do_without(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EBADF | libc::ENODEV | libc::EACCES | libc::EBUSY)
    )
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn into_group(
    entry: Entry,
    argument: *mut libc::c_void,
    bottom: *mut u8,
    top: *mut u8,
    group: RawFd,
) -> io::Result<libc::pid_t> {
    /// linux/sched.h; the constant does not fit the type that libc gives it.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: integers and addresses only, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64 | CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = bottom as u64;
    args.stack_size = top as u64 - bottom as u64;
    args.cgroup = u64::try_from(group).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the arguments are valid for the size that is given; the rest is the caller's promise.
    let result = unsafe { clone3(&raw const args, size_of::<libc::clone_args>(), entry, argument) };
    if result < 0 {
        // A system call answers the negative errno, which is less than 4096.
        return Err(io::Error::from_raw_os_error((-result) as i32));
    }
    libc::pid_t::try_from(result).map_err(io::Error::other)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn into_group(_: Entry, _: *mut libc::c_void, _: *mut u8, _: *mut u8, _: RawFd) -> io::Result<libc::pid_t> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// clone3(2). In the parent the call returns; the child begins with an empty stack, calls `entry` and never comes back.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: *const libc::clone_args, size: usize, entry: Entry, argument: *mut libc::c_void) -> isize {
    let result;
    // SAFETY: the caller's promise. In the parent only the registers that are named here change, as with every system call; the
    // child uses the other stack. rcx and r11 are what the instruction itself overwrites.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// clone3(2), as above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: *const libc::clone_args, size: usize, entry: Entry, argument: *mut libc::c_void) -> isize {
    let result;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("x0") args as isize => result,
            in("x1") size,
            in("x8") libc::SYS_clone3,
        );
    }
    result
}
