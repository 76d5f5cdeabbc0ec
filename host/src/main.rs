//! The `taxiway` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The spawner of shims and the compiler of plugins are this binary too. They must begin before any runtime: a shim is
    // forked from a process with one thread.
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(code) = taxiway_launcher::dispatch_spawner(&arguments) {
        return code;
    }
    if let Some(code) = taxiway_plugin_host::dispatch_compiler(&arguments) {
        return code;
    }
    taxiway::cli::main()
}
