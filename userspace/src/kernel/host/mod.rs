//! Changes to the host. Each change is recorded in the journal before it is made, and only made
//! where the host differs.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::kernel::host::journal::{Change, Journal, JournalError, UndoReport};
use crate::kernel::host::sysctl::{Sysctl, SysctlError};
use crate::kernel::netlink::{
    self, AddressAdded, Attached, Clsact, Direction, FilterSpec, Interface, Netlink, Tunnel,
    TunnelError, TunnelKind,
};

/// The interface that holds VIP addresses on a backend.
const LOOPBACK: &str = "lo";

mod backend;
pub mod journal;
mod repair;
pub(crate) mod search;
mod shared;
pub mod sysctl;
mod vips;

pub use backend::{
    BackendReport, BackendSetup, Decapsulation, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4,
};

/// Why the host could not be changed. Changes made before the failure are in the journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A tunnel device cannot be created or used.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The journal cannot be written, so nothing may be changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A sysctl cannot be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The address that balancers send to is not on this host.
    #[error(
        "{0} is not an address of this host, so packets to this backend would not be decapsulated; add it or correct the backend's address"
    )]
    NotLocal(IpAddr),
    /// Another filter is at our priority.
    #[error("{held}; to keep both, change `{setting}` in the configuration")]
    Held {
        /// The error that names the filter.
        held: netlink::Error,
        /// The setting of our priority.
        setting: &'static str,
    },
    /// A VIP address is announced to the network by a backend.
    #[error(
        "the VIP address {address} is on {interface} of this backend, which answers ARP and neighbour requests for it; remove it there; VIP addresses belong on `lo`"
    )]
    VipAnnounced {
        /// The VIP address.
        address: IpAddr,
        /// The interface that has it.
        interface: String,
    },
    /// A BPF link cannot be created, changed or removed.
    #[error("cannot {doing} the BPF link {}: {source}", .path.display())]
    Link {
        /// The operation, as "attach".
        doing: &'static str,
        /// The link's pin, or its cgroup.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The setting of `all` makes the host answer ARP for VIP addresses, and no interface can
    /// override it.
    #[error("{key} is {value}, so this backend would answer ARP for VIP addresses; set it to 1")]
    ArpForced {
        /// The setting, that of `all`.
        key: Sysctl,
        /// Its value.
        value: i64,
    },
}

/// The host: netlink to change it, and the journal that records each change first.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
    journal: Journal,
    /// The number of repairs.
    repairs: u64,
}

impl Host {
    /// Changes go through this netlink connection and into this journal.
    pub fn new(netlink: Netlink, journal: Journal) -> Self {
        Self { netlink, journal, repairs: 0 }
    }

    /// The netlink connection, for lookups.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The changes that were made and not undone.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Records a change in the journal, before it is made.
    pub fn record(&mut self, change: Change) -> Result<(), HostError> {
        Ok(self.journal.record(change)?)
    }

    /// Records that a change was undone, or was not made.
    pub fn forget(&mut self, change: &Change) -> Result<(), HostError> {
        Ok(self.journal.forget(change)?)
    }

    /// Attaches a program to one direction of an interface, or atomically replaces Sluice's
    /// previous one; adds the qdisc if needed.
    pub async fn attach(
        &mut self,
        interface: &str,
        direction: Direction,
        spec: &FilterSpec,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let interface = self.netlink.interface(interface).await?;
        if self.netlink.clsact(interface.index).await?.is_some() {
            self.share_clsact(interface.index)?;
        } else {
            let change =
                Change::Clsact { interface: interface.name.clone(), index: interface.index };
            self.journal.record(change.clone())?;
            let ensured = self.netlink.ensure_clsact(interface.index).await;
            let ours = match &ensured {
                // Another process added it in the meantime.
                Ok(found) => *found == Clsact::Created,
                Err(error) => !error.changed_nothing(),
            };
            if !ours {
                self.journal.forget(&change)?;
            }
            ensured?;
        }
        let change = filter_change(&interface, direction, spec);
        let known = self.journal.contains(&change);
        self.journal.record(change.clone())?;
        let attached = self.netlink.put_filter(interface.index, direction, spec, program).await;
        if attached.as_ref().is_err_and(netlink::Error::changed_nothing) && !known {
            // Not made after all: the journal must not list another program's filter.
            self.journal.forget(&change)?;
        }
        Ok(attached?)
    }

    /// The ID of the program that the filter `spec` runs on one direction of an interface; `None`
    /// without that filter.
    pub async fn attached(
        &self,
        interface: &str,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<Option<u32>, HostError> {
        let index = self.netlink.interface(interface).await?.index;
        let filters = self.netlink.filters(index, direction).await?;
        // Program IDs start at 1.
        Ok(filters
            .iter()
            .find(|filter| spec.owns(filter))
            .map(|filter| filter.program_id.unwrap_or(0)))
    }

    /// Checks that no other filter has the priority of `spec` on an interface. An interface that
    /// does not exist is not an error.
    pub async fn check_place(
        &self,
        interface: &str,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<(), HostError> {
        match self.netlink.interface(interface).await {
            Err(netlink::Error::NoInterface { .. }) => Ok(()),
            found => Ok(self.netlink.check_place(found?.index, direction, spec).await?),
        }
    }

    /// The priorities at which the journal has the filter of this name in one direction.
    pub fn priorities(&self, direction: Direction, name: &str) -> BTreeSet<u16> {
        let filters = self.journal.changes().iter().filter_map(|change| match change {
            Change::Filter { direction: side, name: found, priority, .. }
                if *side == direction && found == name =>
            {
                Some(*priority)
            }
            _ => None,
        });
        filters.collect()
    }

    /// The current names of the interfaces with the filter `spec` in one direction.
    pub async fn interfaces_with(
        &self,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<Vec<String>, HostError> {
        let mut names = Vec::new();
        for change in self.journal.changes() {
            let Change::Filter { index, direction: side, name, .. } = change else { continue };
            if *side == direction
                && *name == spec.name
                && self
                    .netlink
                    .filters(*index, direction)
                    .await?
                    .iter()
                    .any(|filter| spec.owns(filter))
                && let Some(interface) = self.netlink.interface_at(*index).await?
            {
                names.push(interface.name);
            }
        }
        Ok(names)
    }

    /// Detaches the filter `spec` from every interface in the journal whose current name is not in
    /// `keep`, and returns the names. At other priorities, the filter is detached from the others,
    /// too. The filter and qdisc of a removed interface are dropped from the journal.
    pub async fn detach_except(
        &mut self,
        direction: Direction,
        spec: &FilterSpec,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        let mut detached = Vec::new();
        for change in self.journal.changes().to_vec() {
            let (Change::Filter { index, .. } | Change::Clsact { index, .. }) = &change else {
                continue;
            };
            let Some(interface) = self.netlink.interface_at(*index).await? else {
                self.journal.forget(&change)?;
                continue;
            };
            let Change::Filter { direction: side, name, priority, .. } = &change else { continue };
            let is_kept = keep.contains(&interface.name);
            if (*side, name) != (direction, &spec.name) || (is_kept && *priority == spec.priority) {
                continue;
            }
            let found = FilterSpec { priority: *priority, ..spec.clone() };
            self.netlink.remove_filter(*index, direction, &found).await?;
            self.journal.forget(&change)?;
            self.remove_unused_clsact(*index).await?;
            if !is_kept && !detached.contains(&interface.name) {
                detached.push(interface.name);
            }
        }
        Ok(detached)
    }

    /// Adds an address with the full prefix length (/32, /128) to an interface that does not have
    /// it.
    pub(crate) async fn ensure_address(
        &mut self,
        interface: &str,
        address: IpAddr,
    ) -> Result<AddressAdded, HostError> {
        let (change, index, prefix_len) = self.address_change(interface, address).await?;
        if self.netlink.has_address(index, address, prefix_len).await? {
            return Ok(AddressAdded::Existed);
        }
        self.journal.record(change.clone())?;
        let added = self.netlink.add_address(index, address, prefix_len).await;
        self.settle(&change, added)
    }

    /// Drops a recorded change from the journal if it was certainly not made by this call.
    fn settle(
        &mut self,
        change: &Change,
        added: Result<AddressAdded, netlink::Error>,
    ) -> Result<AddressAdded, HostError> {
        let ours = match &added {
            Ok(found) => *found == AddressAdded::Created,
            Err(error) => !error.changed_nothing(),
        };
        if !ours {
            self.journal.forget(change)?;
        }
        Ok(added?)
    }

    /// Sets a sysctl; returns whether its value changed.
    pub fn ensure_sysctl(&mut self, key: &Sysctl, value: &str) -> Result<bool, HostError> {
        let old = key.read()?;
        if old == value {
            return Ok(false);
        }
        self.journal.record(Change::Sysctl { key: key.clone(), old, new: value.to_owned() })?;
        key.write(value)?;
        Ok(true)
    }

    /// Creates or adopts a tunnel device that decapsulates packets from any source to `local`.
    ///
    /// # Errors
    /// [`TunnelError::Unsupported`] if the kernel lacks this kind of device.
    pub async fn ensure_tunnel(
        &mut self,
        name: &str,
        kind: TunnelKind,
        local: IpAddr,
    ) -> Result<Tunnel, HostError> {
        let change = Change::Link { name: name.to_owned(), kind, local };
        match self.netlink.tunnel(name, kind, local).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            // Another program has changed Sluice's device, or set it down.
            Err(TunnelError::Mismatch { .. }) if self.journal.contains(&change) => {
                self.netlink.remove_link(name).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.journal.record(change.clone())?;
        let created = self.netlink.create_tunnel(name, kind, local).await;
        let ours = match &created {
            Ok(tunnel) => tunnel.created,
            Err(error) => !error.changed_nothing(),
        };
        if !ours {
            self.journal.forget(&change)?;
        }
        Ok(created?)
    }

    /// Undoes all changes in the journal and removes it.
    pub async fn undo_all(self) -> Result<UndoReport, HostError> {
        Ok(self.journal.undo_all(&self.netlink).await?)
    }

    async fn address_change(
        &self,
        interface: &str,
        address: IpAddr,
    ) -> Result<(Change, u32, u8), HostError> {
        let Interface { index, name, .. } = self.netlink.interface(interface).await?;
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        let change = Change::Address { interface: name, index, address, prefix_len };
        Ok((change, index, prefix_len))
    }

    /// Removes the qdisc of an interface if Sluice added it and it has no filters. One that another
    /// instance uses is left to that instance.
    async fn remove_unused_clsact(&mut self, index: u32) -> Result<(), HostError> {
        let ours = |change: &&Change| matches!(change, Change::Clsact { index: other, .. } if *other == index);
        let Some(qdisc) = self.journal.changes().iter().find(ours).cloned() else { return Ok(()) };
        let is_filter = |change: &Change| matches!(change, Change::Filter { index: other, .. } if *other == index);
        if self.journal.changes().iter().any(is_filter) {
            return Ok(());
        }
        if self.journal.others().holder(&qdisc).is_some() {
            self.journal.forget(&qdisc)?;
        } else if self.unused(index).await? {
            self.netlink.remove_clsact(index).await?;
            self.journal.forget(&qdisc)?;
        }
        Ok(())
    }

    async fn unused(&self, index: u32) -> Result<bool, HostError> {
        Ok(self.netlink.clsact(index).await? == Some(Clsact::Existed)
            && self.netlink.filters(index, Direction::Ingress).await?.is_empty()
            && self.netlink.filters(index, Direction::Egress).await?.is_empty())
    }
}

fn filter_change(interface: &Interface, direction: Direction, spec: &FilterSpec) -> Change {
    Change::Filter {
        interface: interface.name.clone(),
        index: interface.index,
        direction,
        name: spec.name.clone(),
        priority: spec.priority,
    }
}
