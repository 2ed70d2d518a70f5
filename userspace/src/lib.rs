//! Sluice's control plane: from the configuration file to maps, filters and tunnel devices, and
//! back to what `status` shows.

pub mod args;
pub mod cli;
pub mod clock;
pub mod config_file;
pub mod daemon;
pub mod error;
pub mod kernel;
pub mod key;
mod read;
pub mod role;
