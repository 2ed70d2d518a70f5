//! The daemons: `sluice lb` and `sluice backend`.

pub mod acl;
pub mod backend;
mod core;
pub(crate) mod guard;
pub(crate) mod input;
pub mod lb;
pub(crate) mod lock;
pub(crate) mod log;
mod predecessors;
pub mod preflight;
mod presence;
mod programs;
pub(crate) mod reloads;
mod requests;
pub(crate) mod roles;
pub(crate) mod runtime;
pub(crate) mod signals;
mod sources;
mod state;
pub(crate) mod teardown;
