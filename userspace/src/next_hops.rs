//! How packets leave towards each backend: asked of the kernel's routing, kept up to date in the map `NEXT_HOPS`.
//!
//! The program needs an interface and an MTU; the neighbour behind the interface is the kernel's business when it redirects. While
//! no daemon runs, packets keep to the interfaces that were found last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_datapath::Family;
use sluice_datapath::entries::NextHop;

use crate::bpf::{self, BalancerMaps};
use crate::config::Underlay;
use crate::netlink::{self, DeviceMtus, Netlink};
use crate::path_mtu::PathMtus;
use crate::plan::HaveBackend;

const NONE: NextHop = NextHop { interface: 0, mtu: 0 };

/// Bytes of a full Ethernet frame's IP packet, which is what most clients send.
const FULL_PACKET: u32 = 1500;

/// The way to an address, as routing has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Interface and MTU.
    pub next_hop: NextHop,
    /// The router to which packets are handed, if there is one.
    pub gateway: Option<IpAddr>,
}

const NOWHERE: Way = Way { next_hop: NONE, gateway: None };

/// The ways to backends, by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NextHops {
    found: BTreeMap<IpAddr, Way>,
    /// What an operator should know, a sentence for each address that has a problem.
    pub warnings: BTreeMap<IpAddr, String>,
}

impl NextHops {
    /// Asks for the route to each address, from the underlay address of its family.
    ///
    /// # Errors
    ///
    /// [`netlink::Error`], also when an underlay address is not an address of this host.
    pub async fn find(
        netlink: &Netlink,
        underlay: Underlay,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<Self, netlink::Error> {
        let mut next_hops = Self::default();
        let mut mtus = DeviceMtus::default();
        for address in addresses {
            let route = netlink.route_among(address, underlay.like(address), &mut mtus).await?;
            let (way, warning) = match route {
                None => (NOWHERE, Some("there is no route to it: packets for it are dropped (no_route)".to_owned())),
                Some(route) if route.local => {
                    let why = "it is an address of this host, and a balancer cannot send to itself: packets for it are dropped (no_route)";
                    (NOWHERE, Some(why.to_owned()))
                }
                Some(route) => {
                    let mtu = route.mtu.min(u32::from(u16::MAX));
                    let overhead = if address.is_ipv4() { 20 } else { 40 };
                    let small = (mtu < FULL_PACKET + overhead).then(|| {
                        let largest = mtu.saturating_sub(overhead);
                        format!(
                            "the MTU towards it is {mtu}: client packets of more than {largest} bytes are dropped (too_big); \
                             raise the underlay's MTU to {} or more",
                            FULL_PACKET + overhead
                        )
                    });
                    let next_hop = NextHop { interface: route.index, mtu };
                    (Way { next_hop, gateway: route.gateway }, small)
                }
            };
            next_hops.found.insert(address, way);
            if let Some(warning) = warning {
                next_hops.warnings.insert(address, warning);
            }
        }
        Ok(next_hops)
    }

    /// The way to an address; `None` when it was not asked for, because no backend has it.
    pub fn way(&self, address: IpAddr) -> Option<Way> {
        self.found.get(&address).copied()
    }

    /// The next hop towards an address, with the MTU that fits all of the way, as far as it is known.
    pub fn towards(&self, address: IpAddr, path_mtus: &PathMtus) -> NextHop {
        path_mtus.limit(address, self.way(address).unwrap_or(NOWHERE).next_hop)
    }

    /// Writes what differs for the backends that are in the maps; how many entries that were.
    ///
    /// # Errors
    ///
    /// [`bpf::Error`].
    pub fn refresh(
        &self,
        maps: &mut BalancerMaps,
        backends: &BTreeMap<u16, HaveBackend>,
        path_mtus: &PathMtus,
    ) -> Result<usize, bpf::Error> {
        let present = maps.next_hops()?;
        let mut changed = Vec::new();
        for (index, backend) in backends.iter().filter(|(_, backend)| backend.name.is_some()) {
            for (family, address) in [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)] {
                let at = NextHop::index(*index, family);
                // An address that was not asked for cannot be sent to: there is no source for its outer header.
                let next_hop = if address.is_none() { NONE } else { self.towards(address.into(), path_mtus) };
                if present.get(at as usize) != Some(&next_hop) {
                    changed.push((at, next_hop));
                }
            }
        }
        maps.set_next_hops(&changed)?;
        Ok(changed.len())
    }
}
