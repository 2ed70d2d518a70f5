//! Access to the kernel: BPF, netlink, settings of the host, routing.

pub mod attach;
pub mod bpf;
pub mod host;
pub mod namespace;
pub mod netlink;
pub mod routing;
