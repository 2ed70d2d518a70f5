//! The lab: a fleet of balancers and backends in network namespaces, with real traffic.
//!
//! [`instance::Lab`] is a running lab, [`topology`] its hosts and addresses, [`scenarios`] the list
//! of what is tested.

pub mod capture;
mod checksums;
pub mod client;
pub mod config;
pub mod connections;
pub mod decode;
pub mod holder;
pub mod host_state;
pub mod instance;
pub mod namespaces;
pub mod offload;
pub mod ping;
pub mod reporter;
pub mod run;
pub mod scale;
pub mod scenarios;
pub mod server;
pub mod state;
pub mod statistics;
pub mod status;
pub mod topology;
