//! The service end to end: the real binary, real processes, a real disk. One program, so that it is linked once.

mod access;
mod admission;
mod cancel;
mod command_line;
mod compatibility;
mod conditions;
mod crash;
mod demo;
mod edit;
mod failures;
mod follow;
mod hostile;
mod kills;
mod launch;
mod load;
mod log;
mod metrics;
mod operate;
mod plugins;
mod queue;
mod restart;
mod steady;
mod systemd;
mod trainer;
mod upgrade;
mod webhook;
