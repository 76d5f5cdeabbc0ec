//! What an operator sets: `taxiway.toml`, the environment over it, and where the data lies.
//!
//! [`read()`] turns the file and `TAXIWAY_SECTION__KEY` variables into a [`Config`], or into faults that name file, line and
//! the nearest known key. [`Settings`] is that plus what only the command line decides. [`DataDir`] is the claim of one
//! server on one data directory.

mod data_dir;
mod locate;
mod read;
mod sections;
mod show;

pub use data_dir::{DataDir, DataDirError};
pub use locate::{LocateError, SYSTEM_SOCKET, Settings, config_file, data_dir};
pub(crate) use read::keys_of;
pub use read::{ConfigError, Fault, environment, nearest, parse, read};
pub use sections::{
    Config, GpuSection, LauncherSection, PluginsSection, Profile, ProfileDefaults, QueueSection, Retention,
    ServerSection, Startup,
};
pub use show::show;
