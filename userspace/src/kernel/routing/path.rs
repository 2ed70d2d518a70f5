//! The path to a backend's address.

use std::net::IpAddr;

use sluice_datapath::abi::NextHop;

/// The path to an address according to the routing tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendPath {
    /// Interface and MTU; no neighbour.
    pub next_hop: NextHop,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
}

impl BackendPath {
    /// No route.
    pub(crate) const NONE: Self = Self { next_hop: NextHop::NONE, gateway: None };
}
