//! Sluice's control plane: from the configuration file to maps, filters and tunnel devices, and
//! back to what `status` shows.

pub mod apply;
pub mod args;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod kernel;
pub mod key;
pub mod plan;
mod read;
pub mod role;
pub mod want;
