//! A stand-in for NVIDIA's management library: the C interface of NVML as far as Taxiway uses it, over GPUs that a file
//! describes.
//!
//! The service loads the shared library as it would load `libnvidia-ml.so`, through the same wrapper, so that everything
//! above NVML is the real thing in tests. The file is named by [`FILE_VARIABLE`] and holds a [`Machine`] as JSON. Tests replace
//! it while the service runs ([`Machine::write`]): whatever it says holds from the next call on, and a call that waits for an
//! event or hangs notices at once.
//!
//! What cannot be true of real hardware is not checked: a test gets the machine that it describes.

mod abi;
mod events;
mod machine;

pub use abi::*;
pub use events::*;
pub use machine::{FILE_VARIABLE, Gpu, Machine, Mig, Process};
