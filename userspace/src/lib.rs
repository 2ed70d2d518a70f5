//! Control plane.

pub mod host;
pub mod journal;
pub mod netlink;
pub mod sysctl;
