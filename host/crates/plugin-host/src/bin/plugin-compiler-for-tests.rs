//! A program that is nothing but the compiling child: what the tests of this crate start in place of the service.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    taxiway_plugin_host::dispatch_compiler(&args).unwrap_or(ExitCode::FAILURE)
}
