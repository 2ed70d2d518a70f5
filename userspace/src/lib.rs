//! Sluice's user space: the daemons that apply a configuration to maps, filters and tunnel devices,
//! and the commands that show them.

pub mod args;
pub mod cli;
pub mod clock;
pub mod config_file;
pub mod daemon;
pub mod error;
mod files;
pub mod journald;
pub mod kernel;
pub mod key;
mod lock;
pub mod notice;
mod progress;
mod read;
pub mod role;
mod roles;
mod runtime;
mod serve;
mod text;
