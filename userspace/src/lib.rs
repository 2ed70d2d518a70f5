//! Sluice's control plane: from the configuration file to maps, filters and tunnel devices, and
//! back to what `status` shows.

pub mod apply;
mod attachment;
pub mod backend;
pub mod bpf;
pub mod capture;
pub mod check;
pub mod cli;
pub mod config;
pub mod counters;
mod daemon;
pub mod down;
pub mod failure;
pub mod host;
pub mod journal;
pub mod key;
pub mod lb;
pub mod lists;
pub mod netlink;
pub mod next_hops;
pub mod path_mtu;
pub mod plan;
pub mod preflight;
pub mod report;
pub mod status;
pub mod sysctl;
pub mod want;
