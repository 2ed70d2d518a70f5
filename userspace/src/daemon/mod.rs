//! The daemons: `sluice lb` and `sluice backend`.

pub mod acl;
pub mod backend;
pub(crate) mod guard;
pub mod lb;
pub(crate) mod lock;
pub mod preflight;
pub(crate) mod runtime;
pub(crate) mod signals;
pub(crate) mod teardown;
