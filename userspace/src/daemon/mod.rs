//! The daemons: `sluice lb` and `sluice backend`.

pub mod acl;
pub mod backend;
mod core;
pub(crate) mod guard;
pub(crate) mod input;
pub mod lb;
pub(crate) mod log;
mod predecessors;
pub mod preflight;
mod presence;
mod programs;
pub(crate) mod reloads;
mod requests;
mod service_manager;
pub(crate) mod signals;
mod sources;
mod state;
pub(crate) mod teardown;
