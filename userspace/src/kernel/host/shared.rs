//! Host state that this instance shares with other instances on this host.

use super::backend::BackendSetup;
use super::journal::Change;
use super::{Host, HostError, LOOPBACK};
use ipnet::IpNet;

impl Host {
    /// Records the changes of other instances that a backend's set-up needs, too, so that the last
    /// instance undoes them.
    pub(super) fn share_backend(&mut self, setup: &BackendSetup<'_>) -> Result<(), HostError> {
        let devices = [setup.tunnel_v4, setup.tunnel_v6, setup.tunnel_v6_in_v4];
        let is_device = |name: &str| setup.tunnels && devices.contains(&name);
        self.share(|change| match change {
            Change::Address { interface, address, .. } if interface == LOOPBACK => {
                setup.vips.contains(&IpNet::from(*address))
            }
            Change::Address { interface, .. } => is_device(interface),
            Change::LocalRoute { prefix } => setup.vips.contains(prefix),
            Change::Link { name, local, .. } => is_device(name) && setup.local.contains(local),
            Change::Sysctl { key, .. } => key.interface().is_some_and(|name| {
                is_device(name) || setup.interfaces.iter().any(|interface| interface == name)
            }),
            _ => false,
        })
    }

    /// Records the clsact qdisc of an interface if another instance or role has added it.
    pub(super) fn share_clsact(&mut self, index: u32) -> Result<(), HostError> {
        self.share(|change| matches!(change, Change::Clsact { index: on, .. } if *on == index))
    }

    fn share(&mut self, is_needed: impl Fn(&Change) -> bool) -> Result<(), HostError> {
        let others = self.journal.others();
        let mut needed = others.changes().filter(|change| is_needed(change)).peekable();
        if needed.peek().is_some() {
            let known = self.journal.keys();
            let new = needed.filter(|change| !known.contains(&change.key())).cloned().collect();
            self.journal.record_all(new)?;
        }
        Ok(())
    }

    /// Whether another instance has this tunnel device for another address.
    pub(super) fn is_device_of_another(&self, name: &str) -> bool {
        let is_it =
            |change: &Change| matches!(change, Change::Link { name: other, .. } if other == name);
        self.journal.others().changes().any(is_it)
    }
}
