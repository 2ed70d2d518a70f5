//! Changes of the host, each written down before it is made, each made only where something
//! differs.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use ipnet::IpNet;

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
pub mod sysctl;

pub use backend::{
    BackendReport, BackendSetup, Decapsulation, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4,
};

/// Why the host is not as it should be. What was done until then is in the journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The routing socket refused something.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A tunnel device cannot be made or used.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The journal cannot be written, so nothing may be changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A kernel setting cannot be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The address that balancers send to is not on this host.
    #[error(
        "{0} is not an address of this host, so nothing sent to this backend would be unwrapped; add it or correct the backend's address"
    )]
    NotLocal(IpAddr),
    /// A VIP address is announced to the network by a backend.
    #[error(
        "the VIP address {address} is on {interface} of this backend, which answers ARP and neighbour requests for it; remove it there, `lo` is the place for it"
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
    /// The host's own setting announces VIP addresses, and no interface can override it.
    #[error("{key} is {value}, so this backend would answer ARP for VIP addresses; set it to 1")]
    ArpForced {
        /// The setting, that of `all`.
        key: Sysctl,
        /// Its value.
        value: i64,
    },
}

/// The host: the routing socket to change it, the journal to write it down first.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
    journal: Journal,
}

impl Host {
    /// A host whose changes go through this socket and into this journal.
    pub fn new(netlink: Netlink, journal: Journal) -> Self {
        Self { netlink, journal }
    }

    /// The routing socket, for questions.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// What was changed and not undone.
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

    /// Attaches a program to one side of an interface, or atomically replaces our previous one;
    /// makes the qdisc if needed.
    ///
    /// # Errors
    /// As [`Netlink::interface`], [`Netlink::ensure_clsact`] and [`Netlink::put_filter`].
    pub async fn attach(
        &mut self,
        interface: &str,
        direction: Direction,
        spec: &FilterSpec,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let interface = self.netlink.interface(interface).await?;
        if self.netlink.clsact(interface.index).await?.is_none() {
            let change =
                Change::Clsact { interface: interface.name.clone(), index: interface.index };
            self.journal.record(change.clone())?;
            let ensured = self.netlink.ensure_clsact(interface.index).await;
            let ours = match &ensured {
                // Somebody was quicker, so it is theirs.
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
            // Not made after all: the journal must not claim a place that is somebody else's.
            self.journal.forget(&change)?;
        }
        Ok(attached?)
    }

    /// The number of the program that our filter runs on one side of an interface; `None` when our
    /// filter is not there.
    ///
    /// # Errors
    /// As [`Netlink::interface`] and [`Netlink::filters`].
    pub async fn attached(
        &self,
        interface: &str,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<Option<u32>, HostError> {
        let index = self.netlink.interface(interface).await?.index;
        let filters = self.netlink.filters(index, direction).await?;
        // Programs are numbered from 1.
        Ok(filters
            .iter()
            .find(|filter| spec.owns(filter))
            .map(|filter| filter.program_id.unwrap_or(0)))
    }

    /// The interfaces on one side of which our filter is, by the names that they have now.
    ///
    /// # Errors
    /// As [`Self::attached`].
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

    /// Detaches our program from every interface in the journal that is not to be kept, by the
    /// names that they have now; the names. An interface that is gone took filter and qdisc with
    /// it: they are forgotten.
    ///
    /// # Errors
    /// As [`Netlink::interface_at`] and [`Netlink::remove_filter`].
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
            match self.netlink.interface_at(*index).await? {
                None => self.journal.forget(&change)?,
                Some(interface) if keep.contains(&interface.name) => {}
                Some(interface) => {
                    if matches!(&change, Change::Filter { direction: side, name, .. } if *side == direction && *name == spec.name)
                    {
                        self.netlink.remove_filter(*index, direction, spec).await?;
                        self.journal.forget(&change)?;
                        self.remove_unused_clsact(*index).await?;
                        detached.push(interface.name);
                    }
                }
            }
        }
        Ok(detached)
    }

    /// Puts a VIP address on `lo`. One that is there already is left as it is, and stays when
    /// everything is undone.
    ///
    /// # Errors
    /// As [`Netlink::add_address`].
    pub async fn ensure_vip(&mut self, address: IpAddr) -> Result<AddressAdded, HostError> {
        self.ensure_address(LOOPBACK, address).await
    }

    /// Gives an interface one address, without a network around it (/32, /128), if it has not got
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

    /// Keeps a change that was written down, unless nothing came of it.
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

    /// Takes a VIP address from `lo` if it was put there by [`Self::ensure_vip`]; says whether it
    /// was.
    ///
    /// # Errors
    /// As [`Netlink::remove_address`].
    pub async fn remove_vip(&mut self, address: IpAddr) -> Result<bool, HostError> {
        let (change, index, prefix_len) = self.address_change(LOOPBACK, address).await?;
        if !self.journal.contains(&change) {
            return Ok(false);
        }
        self.netlink.remove_address(index, address, prefix_len).await?;
        self.journal.forget(&change)?;
        Ok(true)
    }

    /// Makes all addresses of a prefix this host's own, by a local route to `lo`. One that is there
    /// already is left as it is, and stays when everything is undone.
    ///
    /// # Errors
    /// As [`Netlink::add_local_route`].
    pub async fn ensure_vip_prefix(&mut self, prefix: IpNet) -> Result<AddressAdded, HostError> {
        let index = self.netlink.interface(LOOPBACK).await?.index;
        let change = Change::LocalRoute { prefix };
        // Ours from an earlier time, or somebody else's: the journal knows.
        if self.journal.contains(&change) && self.netlink.has_local_route(prefix).await? {
            return Ok(AddressAdded::Existed);
        }
        self.journal.record(change.clone())?;
        let added = self.netlink.add_local_route(index, prefix).await;
        self.settle(&change, added)
    }

    /// Removes the local route of a prefix if it was made by [`Self::ensure_vip_prefix`]; says
    /// whether it was.
    ///
    /// # Errors
    /// As [`Netlink::remove_local_route`].
    pub async fn remove_vip_prefix(&mut self, prefix: IpNet) -> Result<bool, HostError> {
        let change = Change::LocalRoute { prefix };
        if !self.journal.contains(&change) {
            return Ok(false);
        }
        self.netlink.remove_local_route(prefix).await?;
        self.journal.forget(&change)?;
        Ok(true)
    }

    /// Sets a kernel setting; says whether it had another value.
    ///
    /// # Errors
    /// As [`Sysctl::read`] and [`Sysctl::write`].
    pub fn ensure_sysctl(&mut self, key: &Sysctl, value: &str) -> Result<bool, HostError> {
        let old = key.read()?;
        if old == value {
            return Ok(false);
        }
        self.journal.record(Change::Sysctl { key: key.clone(), old, new: value.to_owned() })?;
        key.write(value)?;
        Ok(true)
    }

    /// Makes or adopts a tunnel device of a kind that decapsulates what anybody sends to `local`.
    ///
    /// # Errors
    /// As [`Netlink::create_tunnel`]; [`TunnelError::Unsupported`] when the kernel has no such
    /// devices.
    pub async fn ensure_tunnel(
        &mut self,
        name: &str,
        kind: TunnelKind,
        local: IpAddr,
    ) -> Result<Tunnel, HostError> {
        if let Some(found) = self.netlink.tunnel(name, kind, local).await? {
            return Ok(found);
        }
        let change = Change::Link { name: name.to_owned(), kind, local };
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

    /// Undoes everything that the journal lists, and ends the journal.
    ///
    /// # Errors
    /// As [`Journal::undo_all`].
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

    /// Removes the qdisc of an interface if we made it and nobody uses it.
    async fn remove_unused_clsact(&mut self, index: u32) -> Result<(), HostError> {
        let ours = |change: &&Change| matches!(change, Change::Clsact { index: other, .. } if *other == index);
        if let Some(qdisc) = self.journal.changes().iter().find(ours).cloned()
            && self.unused(index).await?
        {
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
