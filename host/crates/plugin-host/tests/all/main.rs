//! The plugin host with real components, real folders and a real compiling child.

mod bench;
mod compatibility;
mod folder;
mod grants;
mod guest;
mod hostile;
