//! The lab: a whole fleet on one machine, in namespaces, with real packets and real processes.
//!
//! [`lab::Lab`] is a lab that is up; [`steps`] is what is done with it and what is asserted. Read
//! [`topology`] first.

pub mod capture;
pub mod client;
pub mod config;
pub mod connections;
pub mod decode;
pub mod holder;
pub mod host_state;
#[expect(clippy::module_inception, reason = "the thing itself, among its parts")]
pub mod lab;
mod layers;
pub mod namespaces;
pub mod offload;
pub mod ping;
pub mod server;
pub mod show;
pub mod state;
pub mod statistics;
pub mod status;
pub mod steps;
pub mod topology;
