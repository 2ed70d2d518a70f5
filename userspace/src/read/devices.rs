//! The tunnel devices of a backend.

use serde::Serialize;

use crate::error::CliError;
use crate::kernel::host::journal::Change;
use crate::kernel::host::search;
use crate::kernel::netlink::{Netlink, TunnelError};

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether it exists and is up.
    pub up: bool,
    /// Why it does not decapsulate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
}

/// The tunnel devices of a backend: those that its journal lists, and those that no journal on this
/// host lists.
pub(crate) async fn devices(
    netlink: &Netlink,
    journal: &[Change],
) -> Result<Vec<DeviceStatus>, CliError> {
    let unlisted = search::unlisted_tunnels(netlink).await.map_err(CliError::operation)?;
    let mut devices = Vec::new();
    for change in journal.iter().chain(&unlisted) {
        let Change::Link { name, kind, local } = change else { continue };
        let defect = match netlink.tunnel(name, *kind, *local).await {
            Ok(Some(_)) => None,
            Ok(None) => Some("does not exist".to_owned()),
            Err(TunnelError::Mismatch { found, .. }) => Some(found),
            Err(error) => return Err(CliError::operation(error)),
        };
        devices.push(DeviceStatus { name: name.clone(), up: defect.is_none(), defect });
    }
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}
