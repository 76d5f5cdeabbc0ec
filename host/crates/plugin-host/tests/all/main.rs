//! The plugin host with real components, real folders and a real compiling child.

mod bench;
mod crowd;
mod folder;
mod grants;
mod guarding;
mod guest;
mod hostile;
mod traced;
