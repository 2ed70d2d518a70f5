//! Reads the state of running instances.

pub(crate) mod instance;
pub(crate) mod snapshot;
