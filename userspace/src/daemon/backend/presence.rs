//! The interfaces and addresses of a backend that this host has or lacks.

use std::net::IpAddr;
use std::path::Path;

use sluice_control::config::Config;

use super::assignment::Assignment;
use crate::args::BackendArgs;
use crate::daemon::presence::{self, InterfaceList, Missing};
use crate::error::CliError;
use crate::kernel::bpf::{BackendMaps, Pins};
use crate::kernel::host::journal::{Change, Journal, STATE_DIRECTORY};
use crate::kernel::netlink::Netlink;
use crate::role::Role;

/// The part of an assignment that exists on this host.
pub(super) struct Present {
    pub(super) interfaces: Vec<String>,
    pub(super) local: Vec<IpAddr>,
    /// The interfaces and addresses that this host lacks, in words.
    pub(super) problem: Option<String>,
}

/// The assignment of this host. If the host has no backend's address, the addresses count that an
/// earlier daemon decapsulated for: the address is missing at the moment.
pub(super) async fn assignment(
    args: &BackendArgs,
    config: &Config,
    netlink: &Netlink,
) -> Result<Assignment, CliError> {
    let mut own = addresses(netlink).await?;
    if !has_backend(config, &own) {
        let all: Vec<_> = config.backends().iter().flat_map(|to| to.addresses()).collect();
        own = decapsulated_before(config.instance(), &all)?;
        own.extend(tunnels(config.instance()));
    }
    Assignment::find(args, config, &own).map_err(CliError::BadInput)
}

/// The interfaces and addresses that a configuration needs and this host lacks.
pub(super) async fn missing(
    args: &BackendArgs,
    config: &Config,
    netlink: &Netlink,
) -> Result<Vec<Missing>, CliError> {
    let own = addresses(netlink).await?;
    if args.name.is_some() || has_backend(config, &own) {
        let assignment = Assignment::find(args, config, &own).map_err(CliError::BadInput)?;
        return missing_of(&assignment, netlink).await;
    }
    match assignment(args, config, netlink).await {
        Ok(assignment) => missing_of(&assignment, netlink).await,
        Err(error) => {
            let what = "an address of a backend".to_owned();
            Ok(vec![Missing { what, error: error.to_string() }])
        }
    }
}

/// The interfaces and addresses of an assignment that this host lacks.
pub(super) async fn missing_of(
    assignment: &Assignment,
    netlink: &Netlink,
) -> Result<Vec<Missing>, CliError> {
    let mut missing =
        presence::interfaces(netlink, &assignment.interfaces, &assignment.list).await?;
    if let Some(clamping) = &assignment.clamping {
        let list = InterfaceList::Option("--reply-interface");
        let names = clamping.configured_interfaces();
        missing.extend(presence::interfaces(netlink, names, &list).await?);
    }
    let wanted = assignment.local.iter().map(|address| (*address, assignment.place.clone()));
    missing.extend(presence::addresses(&addresses(netlink).await?, wanted));
    Ok(missing)
}

/// The part of an assignment that this host has.
pub(super) async fn present(
    assignment: &Assignment,
    netlink: &Netlink,
) -> Result<Present, CliError> {
    let missing = missing_of(assignment, netlink).await?;
    let exists = |what: &str| !missing.iter().any(|missing| missing.what == what);
    let interfaces = assignment.interfaces.iter();
    let local = assignment.local.iter();
    Ok(Present {
        interfaces: interfaces.filter(|name| exists(&presence::interface(name))).cloned().collect(),
        local: local.filter(|address| exists(&presence::address(**address))).copied().collect(),
        problem: (!missing.is_empty())
            .then(|| format!("this host lacks {}", presence::list(&missing))),
    })
}

/// The addresses among `all` for which the program of an earlier daemon decapsulates.
pub(super) fn decapsulated_before(instance: &str, all: &[IpAddr]) -> Result<Vec<IpAddr>, CliError> {
    let pins = Pins::find(instance, Role::Backend).map_err(CliError::operation)?;
    // Maps that cannot be opened are not in use.
    let maps = pins.and_then(|pins| BackendMaps::open(&pins).ok());
    let found = maps.map(|maps| maps.local_addresses()).transpose().map_err(CliError::operation)?;
    Ok(found.unwrap_or_default().into_iter().filter(|address| all.contains(address)).collect())
}

/// The addresses for which an earlier daemon has created tunnel devices.
fn tunnels(instance: &str) -> Vec<IpAddr> {
    let changes = Journal::peek(Path::new(STATE_DIRECTORY), instance, Role::Backend);
    let local = |change| match change {
        Change::Link { local, .. } => Some(local),
        _ => None,
    };
    changes.into_iter().filter_map(local).collect()
}

/// Whether one of the addresses is a backend's.
fn has_backend(config: &Config, own: &[IpAddr]) -> bool {
    config.backends().iter().flat_map(|to| to.addresses()).any(|address| own.contains(&address))
}

async fn addresses(netlink: &Netlink) -> Result<Vec<IpAddr>, CliError> {
    let own = netlink.local_addresses().await.map_err(CliError::operation)?;
    Ok(own.into_iter().map(|(_, address)| address).collect())
}
