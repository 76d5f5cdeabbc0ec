//! The command, prepared to the last pointer while the job waits, and its fork and exec.
//!
//! The child is made as `vfork(2)` does it: it borrows the shim's memory until its exec, so nothing of it is copied on the path
//! between two jobs, and an error comes back through that memory. Until then it may do nothing but make system calls.

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use taxiway_job::{Limit, Resource};

use super::fork;
use super::pages::Pages;
use crate::cgroup::Group;
use crate::record::LaunchError;
use crate::wire::ShimPlan;

/// The child's stack: a handful of system calls deep.
const STACK_BYTES: usize = 64 << 10;

/// Where to look for a program without a slash when the job's environment has no `PATH`.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that is ready to be executed.
pub(super) struct Command {
    argv: Vec<CString>,
    env: Vec<CString>,
    /// The program, in every directory where it may be.
    candidates: Vec<CString>,
    cwd: CString,
    hide_gpus: bool,
    umask: Option<libc::mode_t>,
    limits: Vec<(Resource, ResourceLimit)>,
    null: OwnedFd,
    output: OwnedFd,
    stack: Pages,
    shown: Vec<String>,
}

/// A resource's number and its limit, as setrlimit(2) wants them.
#[derive(Clone, Copy)]
struct ResourceLimit {
    resource: libc::__rlimit_resource_t,
    limit: libc::rlimit,
}

impl ResourceLimit {
    fn new(resource: Resource, limit: Limit) -> Self {
        let resource = match resource {
            Resource::As => libc::RLIMIT_AS,
            Resource::Core => libc::RLIMIT_CORE,
            Resource::Cpu => libc::RLIMIT_CPU,
            Resource::Data => libc::RLIMIT_DATA,
            Resource::Fsize => libc::RLIMIT_FSIZE,
            Resource::Memlock => libc::RLIMIT_MEMLOCK,
            Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
            Resource::Nice => libc::RLIMIT_NICE,
            Resource::Nofile => libc::RLIMIT_NOFILE,
            Resource::Nproc => libc::RLIMIT_NPROC,
            Resource::Rtprio => libc::RLIMIT_RTPRIO,
            Resource::Rttime => libc::RLIMIT_RTTIME,
            Resource::Sigpending => libc::RLIMIT_SIGPENDING,
            Resource::Stack => libc::RLIMIT_STACK,
        };
        let limit = match limit {
            Limit::AtMost(limit) => limit,
            Limit::Unlimited => libc::RLIM_INFINITY,
        };
        Self { resource, limit: libc::rlimit { rlim_cur: limit, rlim_max: limit } }
    }
}

/// What the child reads, and where it leaves its error.
#[repr(C)]
struct Child {
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    candidates: *const *const libc::c_char,
    cwd: *const libc::c_char,
    umask: Option<libc::mode_t>,
    limits: *const (Resource, ResourceLimit),
    limits_count: usize,
    /// The limit that was being set.
    limit: usize,
    null: RawFd,
    output: RawFd,
    parent: libc::pid_t,
    mask: *const libc::sigset_t,
    errno: libc::c_int,
    step: Step,
}

/// How far the child came.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Process,
    Directory,
    Limit,
    Exec,
}

impl Command {
    /// Prepares everything that does not depend on the GPUs. The child gets `output` as its stdout and stderr.
    pub(super) fn new(plan: &ShimPlan, output: OwnedFd) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_: NulError| format!("`{text:?}` has a NUL byte in it"));
        let program = plan.argv.first().ok_or("the command is empty")?;
        let path = plan.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        let candidates = if program.contains('/') {
            vec![text(program)?]
        } else {
            // An empty entry means the working directory (environ(7)).
            path.split(':')
                .map(|entry| {
                    text(&if entry.is_empty() { format!("./{program}") } else { format!("{entry}/{program}") })
                })
                .collect::<Result<_, _>>()?
        };
        let mut stack = Pages::new(STACK_BYTES).map_err(|error| format!("cannot get memory for a stack: {error}"))?;
        if let Some(first_used) = stack.last_mut() {
            // Its page is there when the child begins on it.
            *first_used = 0;
        }
        let null = std::fs::File::open("/dev/null").map_err(|error| format!("cannot open /dev/null: {error}"))?;
        Ok(Self {
            argv: plan.argv.iter().map(|word| text(word)).collect::<Result<_, _>>()?,
            env: plan.env.iter().map(|(name, value)| text(&format!("{name}={value}"))).collect::<Result<_, _>>()?,
            candidates,
            cwd: text(&plan.cwd)?,
            hide_gpus: plan.hide_gpus,
            umask: plan.process.umask,
            limits: plan
                .process
                .rlimits
                .iter()
                .map(|(resource, limit)| (*resource, ResourceLimit::new(*resource, *limit)))
                .collect(),
            null: null.into(),
            output,
            stack,
            shown: plan.argv.clone(),
        })
    }

    /// Forks and executes the command in a process group of its own. Returns its pid once the exec is done. The shim's end of
    /// the output pipe is closed either way.
    pub(super) fn start(mut self, gpu_uuids: &[String], group: Option<&Group>) -> Result<libc::pid_t, LaunchError> {
        if self.hide_gpus {
            self.env.push(c"CUDA_VISIBLE_DEVICES=".to_owned());
        } else if !gpu_uuids.is_empty() {
            match CString::new(format!("CUDA_VISIBLE_DEVICES={}", gpu_uuids.join(","))) {
                Ok(variable) => self.env.push(variable),
                Err(_) => return Err(self.error(libc::EINVAL, "a GPU's UUID has a NUL byte in it".to_owned())),
            }
        }
        let argv = pointers(&self.argv);
        let env = pointers(&self.env);
        let candidates = pointers(&self.candidates);
        // SAFETY: a zeroed sigset is a valid one to be initialised; getpid has no precondition.
        let (mask, parent) = unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut mask);
            (mask, libc::getpid())
        };
        let mut child = Child {
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            candidates: candidates.as_ptr(),
            cwd: self.cwd.as_ptr(),
            umask: self.umask,
            limits: self.limits.as_ptr(),
            limits_count: self.limits.len(),
            limit: 0,
            null: self.null.as_raw_fd(),
            output: self.output.as_raw_fd(),
            parent,
            mask: &raw const mask,
            errno: 0,
            step: Step::Process,
        };
        // SAFETY: the child keeps this thread from running, and all that `child` points to from being freed, until it has executed
        // another program or ended. It runs on a stack of its own and `in_child` keeps to system calls. Every signal is blocked
        // in this process, so no handler runs in the shared memory.
        let forked = unsafe { fork::fork(in_child, (&raw mut child).cast(), &mut self.stack, group.map(Group::fd)) };
        let pid = match forked {
            Ok(pid) => pid,
            Err(error) => return Err(self.error(error.raw_os_error().unwrap_or(0), format!("cannot fork: {error}"))),
        };
        // SAFETY: the child has left this memory; the read is volatile because the compiler did not see it being written.
        let (errno, step, limit) = unsafe {
            (
                ptr::read_volatile(&raw const child.errno),
                ptr::read_volatile(&raw const child.step),
                ptr::read_volatile(&raw const child.limit),
            )
        };
        if errno == 0 {
            return Ok(pid);
        }
        // SAFETY: the pid is this process's child, which has ended; no status is wanted.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        let error = io::Error::from_raw_os_error(errno);
        let message = match step {
            Step::Process => format!("cannot set up the process: {error}"),
            Step::Directory => format!("cannot enter the working directory {}: {error}", self.cwd.to_string_lossy()),
            Step::Limit => match self.limits.get(limit) {
                Some((resource, _)) => format!("cannot set the resource limit `{resource}`: {error}"),
                None => format!("cannot set a resource limit: {error}"),
            },
            Step::Exec => format!("cannot execute {:?}: {error}", self.shown[0]),
        };
        Err(self.error(errno, message))
    }

    fn error(&self, errno: i32, message: String) -> LaunchError {
        LaunchError { errno, message, command: self.shown.clone() }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// The child between fork and exec.
extern "C" fn in_child(argument: *mut libc::c_void) -> libc::c_int {
    let child = argument.cast::<Child>();
    // SAFETY: `argument` is the `Child` of `start`, which waits and leaves it alone; every pointer in it is valid there. Only
    // system calls are made, no memory is allocated and no lock taken.
    unsafe {
        let fail = move |step: Step| -> libc::c_int {
            ptr::write_volatile(&raw mut (*child).errno, *libc::__errno_location());
            ptr::write_volatile(&raw mut (*child).step, step);
            libc::_exit(127)
        };
        if libc::setpgid(0, 0) != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
            return fail(Step::Process);
        }
        // A shim that died before the call above sends no signal any more.
        if libc::getppid() != (*child).parent {
            libc::_exit(127);
        }
        if libc::dup2((*child).null, 0) < 0 || libc::dup2((*child).output, 1) < 0 || libc::dup2((*child).output, 2) < 0
        {
            return fail(Step::Process);
        }
        if libc::chdir((*child).cwd) != 0 {
            return fail(Step::Directory);
        }
        if let Some(umask) = (*child).umask {
            libc::umask(umask);
        }
        for index in 0..(*child).limits_count {
            let (_, limit) = *(*child).limits.add(index);
            ptr::write_volatile(&raw mut (*child).limit, index);
            if libc::setrlimit(limit.resource, &raw const limit.limit) != 0 {
                return fail(Step::Limit);
            }
        }
        if libc::sigprocmask(libc::SIG_SETMASK, (*child).mask, ptr::null_mut()) != 0 {
            return fail(Step::Process);
        }
        // As execvp(3): a directory where the program may not be executed is remembered and the next one is tried.
        let mut denied = false;
        let mut candidate = (*child).candidates;
        while !(*candidate).is_null() {
            libc::execve(*candidate, (*child).argv, (*child).env);
            match *libc::__errno_location() {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return fail(Step::Exec),
            }
            candidate = candidate.add(1);
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
        fail(Step::Exec)
    }
}
