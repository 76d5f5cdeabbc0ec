//! From a component to machine code, off the request path and out of this process.
//!
//! Compiling takes seconds and up to gigabytes, and its input is a stranger's. So it happens in a child process that is
//! niced, bounded in time and memory, and whose memory goes with it; one at a [turn](turns). The child's answer is a file in a
//! folder that only the service's user can write: what is loaded as machine code was made by this program.

mod cache;
mod child;
mod turns;

pub use cache::{Cache, CacheError};
pub use child::dispatch_compiler;
pub use turns::First;

/// The argument that makes the program a compiler.
pub const COMPILER_ARGUMENT: &str = "plugin-compiler";
