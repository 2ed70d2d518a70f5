//! Sluice's control plane: from the configuration file to maps, filters and tunnel devices, and back to what `status` shows.

pub mod backend;
pub mod check;
pub mod cli;
pub mod config;
pub mod counters;
pub mod down;
pub mod failure;
pub mod key;
pub mod lb;
pub mod status;
