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

/// What is wrong with an MTU towards a backend's address: it is less than what is stated of the underlay, or full packets of clients do not fit.
fn too_small(address: IpAddr, mtu: u32, stated: Option<u32>) -> Option<String> {
    let overhead = if address.is_ipv4() { 20 } else { 40 };
    let largest = mtu.saturating_sub(overhead);
    match stated {
        Some(stated) if mtu < stated => Some(format!(
            "the MTU towards it is {mtu}, though underlay.mtu is {stated}: client packets of more than {largest} bytes are dropped (too_big); \
             raise the MTU of the interface or route, or correct underlay.mtu"
        )),
        _ if mtu < FULL_PACKET + overhead => Some(format!(
            "the MTU towards it is {mtu}: client packets of more than {largest} bytes are dropped (too_big), which clients that heed the \
             backend's MSS do not send; raise the underlay's MTU to {} or more",
            FULL_PACKET + overhead
        )),
        _ => None,
    }
}

const NONE: NextHop = NextHop { interface: 0, mtu: 0 };

/// Bytes of a full Ethernet frame's IP packet, which is what most clients send.
const FULL_PACKET: u32 = 1500;

/// Next hops by the backend's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NextHops {
    found: BTreeMap<IpAddr, NextHop>,
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
            let (next_hop, warning) = match route {
                None => (NONE, Some("there is no route to it: packets for it are dropped (no_route)".to_owned())),
                Some(route) if route.local => {
                    let why = "it is an address of this host, and a balancer cannot send to itself: packets for it are dropped (no_route)";
                    (NONE, Some(why.to_owned()))
                }
                Some(route) => {
                    let carried = route.mtu.min(u32::from(u16::MAX));
                    let mtu = underlay.mtu.unwrap_or(carried).min(carried);
                    (NextHop { interface: route.index, mtu }, too_small(address, mtu, underlay.mtu))
                }
            };
            next_hops.found.insert(address, next_hop);
            if let Some(warning) = warning {
                next_hops.warnings.insert(address, warning);
            }
        }
        Ok(next_hops)
    }

    /// The next hop towards an address.
    pub fn towards(&self, address: IpAddr) -> NextHop {
        self.found.get(&address).copied().unwrap_or(NONE)
    }

    /// Writes what differs for the backends that are in the maps; how many entries that were.
    ///
    /// # Errors
    ///
    /// [`bpf::Error`].
    pub fn refresh(&self, maps: &mut BalancerMaps, have: &crate::plan::Have) -> Result<usize, bpf::Error> {
        let present = maps.next_hops()?;
        let mut changed = Vec::new();
        for (index, backend) in have.backends.iter().filter(|(_, backend)| backend.name.is_some()) {
            for (family, address) in [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)] {
                let at = NextHop::index(*index, family);
                // An address that was not asked for cannot be sent to: there is no source for its outer header.
                let next_hop = if address.is_none() { NONE } else { self.towards(address.into()) };
                if present.get(at as usize) != Some(&next_hop) {
                    changed.push((at, next_hop));
                }
            }
        }
        maps.set_next_hops(&changed)?;
        Ok(changed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_underlay_that_is_smaller_than_clients_need_or_than_is_stated_is_told() {
        let v4 = IpAddr::from([10, 0, 1, 1]);
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        for (address, mtu, stated, says) in [
            (v4, 1520, None, None),
            (v6, 1540, Some(1540), None),
            (v6, 1520, None, Some("more than 1480 bytes")),
            (v4, 1500, Some(1500), Some("raise the underlay's MTU to 1520")),
            (v4, 1500, Some(9000), Some("though underlay.mtu is 9000")),
        ] {
            let told = too_small(address, mtu, stated);
            assert_eq!(told.is_some(), says.is_some(), "{told:?}");
            assert!(says.is_none_or(|says| told.as_ref().is_some_and(|told| told.contains(says))), "{told:?}");
        }
    }
}
