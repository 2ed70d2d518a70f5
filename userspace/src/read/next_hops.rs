//! Next hops towards backends, by the names of interfaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use sluice_control::step_text::unnamed;

use super::snapshot::BackendPaths;
use crate::error::CliError;
use crate::kernel::netlink::{Interface, Netlink};

/// The next hop towards an address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextHopStatus {
    /// The egress interface; its index if it does not exist any more.
    pub interface: String,
    /// The gateway; absent if the backend is on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The MTU of the path, in bytes.
    pub mtu: u32,
    /// Whether the interface can send packets.
    pub up: bool,
}

/// Names the interfaces of next hops.
pub(crate) async fn next_hops(
    netlink: &Netlink,
    paths: &BTreeMap<u16, BackendPaths>,
) -> Result<BTreeMap<u16, BTreeMap<IpAddr, NextHopStatus>>, CliError> {
    let interfaces = netlink.interfaces().await.map_err(CliError::operation)?;
    let interfaces: BTreeMap<u32, Interface> =
        interfaces.into_iter().map(|interface| (interface.index, interface)).collect();
    let mut found: BTreeMap<u16, BTreeMap<IpAddr, NextHopStatus>> = BTreeMap::new();
    for (backend, paths) in paths {
        for (address, hop) in &paths.next_hops {
            let egress = interfaces.get(&hop.interface);
            let name = egress.map_or_else(|| unnamed(hop.interface), |egress| egress.name.clone());
            let status = NextHopStatus {
                interface: name,
                gateway: hop.gateway,
                mtu: hop.mtu,
                up: egress.is_some_and(|egress| egress.carrier),
            };
            found.entry(*backend).or_default().insert(*address, status);
        }
    }
    Ok(found)
}
