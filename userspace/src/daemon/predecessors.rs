//! Logs the programs and filters that run before ours on the interfaces of the daemon.
//!
//! They can end the path of a packet before our program sees it, which no counter of ours shows.
//! The kernel sends no netlink message when a program is attached to XDP or TCX by a link, so that
//! the daemon looks periodically.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::kernel::attach::{Predecessor, ingress_path};
use crate::kernel::netlink::{Error, Netlink};

/// The log of predecessors.
pub(super) struct PredecessorLog {
    /// The name of our filter.
    filter: String,
    /// The predecessors that were logged, by interface.
    known: BTreeMap<String, Vec<Predecessor>>,
}

impl PredecessorLog {
    /// The log for a filter of ours.
    pub(super) fn new(filter: String) -> Self {
        Self { filter, known: BTreeMap::new() }
    }

    /// Looks at the interfaces, and logs what has changed. An interface that cannot be looked at is
    /// left out.
    pub(super) async fn look(&mut self, netlink: &Netlink, interfaces: &[String]) {
        self.known.retain(|name, _| interfaces.contains(name));
        for name in interfaces {
            if let Ok(found) = predecessors(netlink, name, &self.filter).await {
                self.replace(name, found);
            }
        }
    }

    fn replace(&mut self, interface: &str, found: Vec<Predecessor>) {
        let known = self.known.entry(interface.to_owned()).or_default();
        for predecessor in found.iter().filter(|predecessor| !known.contains(predecessor)) {
            warn!(
                interface,
                "{predecessor} runs before Sluice and can end the path of packets to VIPs"
            );
        }
        for predecessor in known.iter().filter(|predecessor| !found.contains(predecessor)) {
            info!(interface, "{predecessor} no longer runs before Sluice");
        }
        *known = found;
    }
}

/// The predecessors on an interface, without other instances.
async fn predecessors(
    netlink: &Netlink,
    name: &str,
    filter: &str,
) -> Result<Vec<Predecessor>, Error> {
    let interface = netlink.interface(name).await?;
    let mut found = ingress_path(netlink, &interface, filter).await?.predecessors;
    found.retain(|predecessor| !predecessor.is_sluice());
    Ok(found)
}
