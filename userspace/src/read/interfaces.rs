//! The interfaces of a role, and the programs and filters there.

use std::path::Path;

use serde::Serialize;

use super::elsewhere;
use crate::daemon::roles::RoleSpec;
use crate::error::CliError;
use crate::kernel::attach::{Predecessor, ingress_path};
use crate::kernel::host::journal::{Change, Journal, STATE_DIRECTORY};
use crate::kernel::netlink::Netlink;

/// An interface of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether it exists.
    pub present: bool,
    /// The ID of the program of the role's filter at TC ingress; absent if it is not attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_id: Option<u32>,
    /// Programs and filters that run before it, and can end the path of a packet.
    pub predecessors: Vec<Predecessor>,
}

/// The interfaces of a role: the given ones of its configuration, and all others with the role's
/// filter.
pub(crate) async fn interfaces(
    netlink: &Netlink,
    spec: &RoleSpec,
    instance: &str,
    configured: &[String],
) -> Result<Vec<InterfaceStatus>, CliError> {
    elsewhere::check_namespace(instance, spec.role)?;
    let filter = spec.ingress_filter(instance);
    let existing = netlink.interfaces().await.map_err(CliError::operation)?;
    let mut found = Vec::new();
    for interface in &existing {
        let path = ingress_path(netlink, interface, &filter).await.map_err(CliError::operation)?;
        if path.attached.is_some() || configured.contains(&interface.name) {
            found.push(InterfaceStatus {
                name: interface.name.clone(),
                present: true,
                program_id: path.attached,
                predecessors: path.predecessors,
            });
        }
    }
    let missing =
        configured.iter().filter(|name| !existing.iter().any(|interface| interface.name == **name));
    found.extend(missing.map(|name| InterfaceStatus {
        name: name.clone(),
        present: false,
        program_id: None,
        predecessors: Vec::new(),
    }));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The interfaces where the journal of a role lists its filter at TC ingress; none if the journal
/// cannot be read.
pub(crate) fn interfaces_in_journal(spec: &RoleSpec, instance: &str) -> Vec<String> {
    let filter = spec.ingress_filter(instance);
    let changes = Journal::peek(Path::new(STATE_DIRECTORY), instance, spec.role);
    let filters = changes.into_iter().filter_map(|change| match change {
        Change::Filter { interface, name, .. } if name == filter => Some(interface),
        _ => None,
    });
    filters.collect()
}
