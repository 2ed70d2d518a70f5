//! Control plane.

pub mod bpf;
pub mod host;
pub mod journal;
pub mod netlink;
pub mod sysctl;
