//! Next hops towards backends, by the names of interfaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::snapshot::{BackendPaths, unnamed};
use crate::error::CliError;
use crate::kernel::netlink::{Interface, Netlink};

/// The next hop towards an address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextHopStatus {
    /// The egress interface; its index if it does not exist any more.
    pub interface: String,
    /// The gateway; absent if the backend is on the link, or if the host's route has changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The MTU of the path, in bytes.
    pub mtu: u32,
    /// Whether the interface can send packets.
    pub up: bool,
}

/// Names the interfaces of next hops, and looks up the gateways.
pub(crate) async fn next_hops(
    netlink: &Netlink,
    paths: &BTreeMap<u16, BackendPaths>,
) -> Result<BTreeMap<u16, BTreeMap<IpAddr, NextHopStatus>>, CliError> {
    let interfaces = netlink.interfaces().await.map_err(CliError::operation)?;
    let interfaces: BTreeMap<u32, Interface> =
        interfaces.into_iter().map(|interface| (interface.index, interface)).collect();
    let mut mtus = Default::default();
    let mut found: BTreeMap<u16, BTreeMap<IpAddr, NextHopStatus>> = BTreeMap::new();
    for (backend, paths) in paths {
        for (address, (index, mtu)) in &paths.next_hops {
            let route = netlink.route_among(*address, None, &mut mtus).await.ok().flatten();
            let gateway = route.filter(|route| route.index == *index).and_then(|r| r.gateway);
            let egress = interfaces.get(index);
            let status = NextHopStatus {
                interface: egress.map_or_else(|| unnamed(*index), |egress| egress.name.clone()),
                gateway,
                mtu: *mtu,
                up: egress.is_some_and(|egress| egress.carrier),
            };
            found.entry(*backend).or_default().insert(*address, status);
        }
    }
    Ok(found)
}
