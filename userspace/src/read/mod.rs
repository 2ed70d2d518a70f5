//! Reads the state of running instances.

pub(crate) mod daemon;
pub(crate) mod devices;
pub(crate) mod elsewhere;
pub(crate) mod instance;
pub(crate) mod interfaces;
pub(crate) mod lost;
pub(crate) mod next_hops;
pub(crate) mod snapshot;
