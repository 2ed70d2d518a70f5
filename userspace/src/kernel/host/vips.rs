//! VIP addresses and prefixes that a backend makes local.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Host, HostError, LOOPBACK};
use crate::kernel::host::journal::Change;
use crate::kernel::netlink::{self, AddressAdded};

impl Host {
    /// Makes VIPs local where they are not, and returns those that were not: addresses on `lo`, and
    /// prefixes by a local route to `lo`. Addresses and routes that exist already stay after
    /// teardown.
    ///
    /// For any number of VIPs this takes one listing of addresses and one write of the journal.
    ///
    /// # Errors
    /// [`HostError`]. VIPs that were made local before the failure are in the journal.
    pub async fn ensure_vips(&mut self, vips: &[IpNet]) -> Result<Vec<IpNet>, HostError> {
        let lo = self.netlink.interface(LOOPBACK).await?.index;
        let present: HashSet<_> = self.netlink.addresses().await?.into_iter().collect();
        let is_missing = |vip: &&IpNet| {
            !is_address(vip) || !present.contains(&(lo, vip.addr(), vip.prefix_len()))
        };
        let missing: Vec<_> =
            vips.iter().filter(is_missing).map(|vip| (*vip, vip_change(lo, *vip))).collect();
        let known = self.journal.keys();
        // The kernel reports an existing route to the request that would add it.
        self.journal.record_all(missing.iter().map(|(_, change)| change.clone()).collect())?;
        let mut added = Vec::new();
        let mut not_made = Vec::new();
        let mut failed = None;
        for (vip, change) in missing {
            let made = match &failed {
                None => self.add_vip(lo, vip).await,
                Some(_) => Ok(AddressAdded::Existed),
            };
            match made {
                Ok(AddressAdded::Created) => added.push(vip),
                Ok(AddressAdded::Existed) => not_made.push(change),
                Err(error) => {
                    if error.changed_nothing() {
                        not_made.push(change);
                    }
                    failed = Some(error);
                }
            }
        }
        not_made.retain(|change| !known.contains(&change.key()));
        self.journal.forget_all(&not_made)?;
        failed.map_or(Ok(added), |error| Err(error.into()))
    }

    /// Removes the VIPs that [`Self::ensure_vips`] made local and that are not in `keep`; returns
    /// them. Those that another instance serves stay.
    pub async fn remove_vips_except(&mut self, keep: &[IpNet]) -> Result<Vec<IpNet>, HostError> {
        let keep: HashSet<_> = keep.iter().copied().collect();
        let ours = self.journal.changes().iter().filter_map(vip_of).collect::<Vec<_>>();
        let unwanted: Vec<_> = ours.into_iter().filter(|(_, vip)| !keep.contains(vip)).collect();
        if unwanted.is_empty() {
            return Ok(Vec::new());
        }
        let others = self.journal.others();
        let mut removed = Vec::new();
        let mut forgotten = Vec::new();
        let mut failed = None;
        for (lo, vip) in unwanted {
            let change = vip_change(lo, vip);
            if others.holder(&change).is_some() {
                forgotten.push(change);
                continue;
            }
            let gone = match is_address(&vip) {
                true => self.netlink.remove_address(lo, vip.addr(), vip.prefix_len()).await,
                false => self.netlink.remove_local_route(vip).await,
            };
            if let Err(error) = gone {
                failed = Some(error);
                break;
            }
            removed.push(vip);
            forgotten.push(change);
        }
        self.journal.forget_all(&forgotten)?;
        failed.map_or(Ok(removed), |error| Err(error.into()))
    }

    async fn add_vip(&self, lo: u32, vip: IpNet) -> Result<AddressAdded, netlink::Error> {
        match is_address(&vip) {
            true => self.netlink.add_address(lo, vip.addr(), vip.prefix_len()).await,
            false => self.netlink.add_local_route(lo, vip).await,
        }
    }
}

/// Whether a VIP is one address.
pub(super) fn is_address(vip: &IpNet) -> bool {
    vip.prefix_len() == vip.max_prefix_len()
}

/// The change that makes a VIP local; `lo` is the index of the loopback interface.
pub(super) fn vip_change(lo: u32, vip: IpNet) -> Change {
    match is_address(&vip) {
        true => {
            let (address, prefix_len): (IpAddr, u8) = (vip.addr(), vip.prefix_len());
            Change::Address { interface: LOOPBACK.to_owned(), index: lo, address, prefix_len }
        }
        false => Change::LocalRoute { prefix: vip },
    }
}

/// The VIP that a change made local, with the index of the loopback interface (0 for a prefix).
fn vip_of(change: &Change) -> Option<(u32, IpNet)> {
    match change {
        Change::Address { interface, index, address, .. } if interface == LOOPBACK => {
            Some((*index, (*address).into()))
        }
        Change::LocalRoute { prefix } => Some((0, *prefix)),
        _ => None,
    }
}
