//! Routes to backends.

pub mod next_hops;
pub mod path;
pub mod path_mtu;
