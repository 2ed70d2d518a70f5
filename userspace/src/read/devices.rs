//! The tunnel devices of backends on this host.

use serde::Serialize;

use crate::error::CliError;
use crate::kernel::host::{TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4};
use crate::kernel::netlink::Netlink;

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
}

/// The tunnel devices of this host that Sluice creates.
pub(crate) async fn devices(netlink: &Netlink) -> Result<Vec<DeviceStatus>, CliError> {
    let names = [TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4];
    let existing = netlink.interfaces().await.map_err(CliError::operation)?;
    let tunnels = existing.into_iter().filter(|found| names.contains(&found.name.as_str()));
    Ok(tunnels.map(|found| DeviceStatus { name: found.name, up: found.up }).collect())
}
