//! The interfaces of a role, and the programs and filters there.

use std::collections::BTreeSet;

use serde::Serialize;

use super::elsewhere;
use crate::error::CliError;
use crate::kernel::attach::{Predecessor, ingress_path};
use crate::kernel::host::journal::Change;
use crate::kernel::netlink::{Interface, Netlink};
use crate::roles::RoleSpec;

/// An interface of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The state of its link.
    pub state: LinkState,
    /// The ID of the role's program at TC ingress; absent if it is not attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_id: Option<u32>,
    /// The ID of another program in the filter with the role's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign_program_id: Option<u32>,
    /// Programs and filters that run before it, and can end the path of a packet.
    pub predecessors: Vec<Predecessor>,
}

impl InterfaceStatus {
    /// Why the interface receives no packets.
    pub(crate) fn link_defect(&self) -> Option<&'static str> {
        match self.state {
            LinkState::Up => None,
            LinkState::NoCarrier => Some("the interface has no carrier"),
            LinkState::Down => Some("the interface is down"),
            LinkState::Missing => Some("the interface does not exist"),
        }
    }

    /// Why the role's program handles no packets of the interface.
    pub(crate) fn defect(&self) -> Option<String> {
        let program = match (self.program_id, self.foreign_program_id) {
            (Some(_), _) => None,
            (None, Some(id)) => Some(format!("its filter runs another program, ID {id}")),
            (None, None) => Some("the program is not attached".to_owned()),
        };
        let is_missing = self.state == LinkState::Missing;
        let link = self.link_defect().map(str::to_owned);
        if is_missing { link } else { program.or(link) }
    }
}

/// The state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It can receive packets.
    Up,
    /// It is up and has no carrier.
    NoCarrier,
    /// It is administratively down.
    Down,
    /// It does not exist.
    Missing,
}

impl LinkState {
    /// The state of an existing interface.
    fn of(interface: &Interface) -> Self {
        match interface {
            Interface { up: false, .. } => Self::Down,
            Interface { carrier: false, .. } => Self::NoCarrier,
            Interface { .. } => Self::Up,
        }
    }
}

/// The interfaces of a role: the given ones of its configuration, and all others with the role's
/// filter. `programs` are the IDs of the instance's programs, if they are known.
pub(crate) async fn interfaces(
    netlink: &Netlink,
    spec: &RoleSpec,
    instance: &str,
    configured: &[String],
    programs: Option<&BTreeSet<u32>>,
) -> Result<Vec<InterfaceStatus>, CliError> {
    elsewhere::check_namespace(instance, spec.role)?;
    let filter = spec.ingress_filter(instance);
    let existing = netlink.interfaces().await.map_err(CliError::operation)?;
    let mut found = Vec::new();
    for interface in &existing {
        let path = ingress_path(netlink, interface, &filter).await.map_err(CliError::operation)?;
        if path.attached.is_some() || configured.contains(&interface.name) {
            let is_own = |id: &u32| programs.is_none_or(|programs| programs.contains(id));
            found.push(InterfaceStatus {
                name: interface.name.clone(),
                state: LinkState::of(interface),
                program_id: path.attached.filter(is_own),
                foreign_program_id: path.attached.filter(|id| !is_own(id)),
                predecessors: path.predecessors,
            });
        }
    }
    let missing =
        configured.iter().filter(|name| !existing.iter().any(|interface| interface.name == **name));
    found.extend(missing.map(|name| InterfaceStatus {
        name: name.clone(),
        state: LinkState::Missing,
        program_id: None,
        foreign_program_id: None,
        predecessors: Vec::new(),
    }));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The interfaces where the journal of a role lists its filter at TC ingress.
pub(crate) fn interfaces_in_journal(
    spec: &RoleSpec,
    instance: &str,
    journal: &[Change],
) -> Vec<String> {
    let filter = spec.ingress_filter(instance);
    let filters = journal.iter().filter_map(|change| match change {
        Change::Filter { interface, name, .. } if *name == filter => Some(interface.clone()),
        _ => None,
    });
    filters.collect()
}
