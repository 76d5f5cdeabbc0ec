//! The compiling child: `PROGRAM plugin-compiler INPUT OUTPUT MEMORY_BYTES CPU_SECONDS OUTPUT_BYTES`.

use super::COMPILER_ARGUMENT;
use crate::quantity::show_size;
use crate::runtime;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

/// The exit status of a compiler whose code is larger than it may be.
pub const TOO_LARGE: u8 = 2;

/// How far behind everything else a compiler stands (`nice`).
const NICENESS: libc::c_int = 15;

/// Runs the compiler if the arguments, the program's name first, ask for it. `main` calls this before it starts any
/// runtime; the answer is the exit status. What went wrong is on standard error, for a person.
pub fn dispatch_compiler(args: &[OsString]) -> Option<ExitCode> {
    let [_, first, rest @ ..] = args else { return None };
    if first != COMPILER_ARGUMENT {
        return None;
    }
    Some(match compile(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal { message, status }) => {
            // Nobody is left to tell when even this fails.
            let _ = writeln!(std::io::stderr(), "{message}");
            status
        }
    })
}

struct Refusal {
    message: String,
    status: ExitCode,
}

impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal { message, status: ExitCode::FAILURE }
    }
}

fn compile(args: &[OsString]) -> Result<(), Refusal> {
    let [input, output, memory, seconds, largest] = args else {
        return Err(format!("{COMPILER_ARGUMENT} is started by the service itself, with five arguments").into());
    };
    let number = |text: &OsString| {
        text.to_str().and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| "a limit is no number".to_owned())
    };
    let largest = number(largest)?;
    bound(number(memory)?, number(seconds)?, largest)?;

    let component = std::fs::read(input).map_err(|error| format!("cannot read the component: {error}"))?;
    let engine = runtime::engine().map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    let size = code.len() as u64;
    if size > largest {
        return Err(Refusal { message: show_size(size), status: ExitCode::from(TOO_LARGE) });
    }
    write(Path::new(output), &code).map_err(|error| format!("cannot write the compiled code: {error}"))?;
    Ok(())
}

/// Takes on the limits, before anything of the component is read.
fn bound(memory: u64, seconds: u64, output: u64) -> Result<(), String> {
    let limits = [
        (Resource::RLIMIT_AS, memory),
        (Resource::RLIMIT_CPU, seconds),
        (Resource::RLIMIT_FSIZE, output),
        (Resource::RLIMIT_CORE, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, limit, limit).map_err(|error| format!("cannot set {resource:?}: {error}"))?;
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| format!("cannot follow the service's end: {error}"))?;
    // SAFETY: setpriority takes plain numbers and changes nothing but this process's niceness. Failing changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    Ok(())
}

/// A new file, on the disk before it is given its name by the service: machine code that a power loss left half written
/// must never be found under that name.
fn write(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(code)?;
    file.sync_all()
}
