//! Changes that a journal lists and that this host lacks: another program has undone them.

use std::collections::HashSet;
use std::net::IpAddr;

use sluice_control::step_text::list;

use crate::error::CliError;
use crate::kernel::host::journal::Change;
use crate::kernel::netlink::{Direction, Error, FilterSpec, Netlink};
use crate::notice::{Notice, Severity};

/// Finds the changes of a backend that are lost: VIPs, sysctls, and filters at egress. Others are
/// part of the state of interfaces and tunnel devices.
pub(crate) async fn lost(netlink: &Netlink, journal: &[Change]) -> Result<Vec<Notice>, CliError> {
    let present = netlink.addresses().await.map_err(CliError::operation)?.into_iter().collect();
    let (mut vips, mut others) = (Vec::new(), Vec::new());
    for change in journal {
        if is_lost(netlink, &present, change).await.map_err(CliError::operation)? {
            match change {
                Change::Address { .. } | Change::LocalRoute { .. } => vips.push(change.to_string()),
                Change::Sysctl { key, old, .. } => others.push(format!("{key} is {old} again")),
                _ => others.push(format!("{change}, is missing")),
            }
        }
    }
    let vips = notice(Severity::Problem, "missing, so that packets to VIPs are lost", vips);
    let others = notice(Severity::Warning, "undone by another program", others);
    Ok(vips.into_iter().chain(others).collect())
}

async fn is_lost(
    netlink: &Netlink,
    present: &HashSet<(u32, IpAddr, u8)>,
    change: &Change,
) -> Result<bool, Error> {
    Ok(match change {
        Change::Address { index, address, prefix_len, .. } => {
            !present.contains(&(*index, *address, *prefix_len))
        }
        Change::LocalRoute { prefix } => {
            !netlink.route(prefix.network(), None).await?.is_some_and(|route| route.local)
        }
        // An interface that is gone has no sysctl.
        Change::Sysctl { key, old, .. } => key.read().is_ok_and(|value| value == *old),
        Change::Filter { index, direction: Direction::Egress, name, priority, .. } => {
            let spec = FilterSpec { name: name.clone(), priority: *priority };
            let filters = netlink.filters(*index, Direction::Egress).await?;
            !filters.iter().any(|filter| spec.owns(filter))
        }
        _ => false,
    })
}

/// A notice that names the first changes.
fn notice(severity: Severity, what: &str, mut changes: Vec<String>) -> Option<Notice> {
    changes.sort_unstable();
    let (is_empty, changes) = (changes.is_empty(), list(changes.into_iter()));
    let text = format!("{what}: {changes}; a daemon restores it, start one if none runs");
    (!is_empty).then_some(Notice { severity, text })
}
