//! Next hops towards backends: looked up in the kernel's routing tables and written to the map
//! `NEXT_HOPS`.
//!
//! A packet needs an egress interface, an MTU and a neighbour: the gateway, or the backend itself.
//! The kernel resolves the neighbour's link address on redirect. While no daemon runs, packets use
//! the next hops found last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_control::config::Underlay;
use sluice_control::have::HaveBackend;
use sluice_datapath::Family;
use sluice_datapath::abi::maps::balancer;
use sluice_datapath::abi::{Neighbour, NextHop};

use crate::kernel::bpf::{self, BalancerMaps};
use crate::kernel::netlink::{self, DeviceMtus, Netlink, Route};
use crate::kernel::routing::path::BackendPath;
use crate::kernel::routing::path_mtu::PathMtus;
use crate::notice::Notice;

/// Bytes of the IP packet in a full Ethernet frame, the largest that most clients send.
const FULL_PACKET: u32 = 1500;

/// The next hop towards an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    /// The entry of the map, without its neighbour index.
    entry: NextHop,
    /// The neighbour; `None` if the kernel should look it up.
    neighbour: Option<IpAddr>,
}

const NONE: Hop = Hop { entry: NextHop::NONE, neighbour: None };

/// The paths to backends, by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHops {
    underlay: Underlay,
    found: BTreeMap<IpAddr, BackendPath>,
    /// Notices about addresses. The texts do not name the address.
    pub notices: BTreeMap<IpAddr, Notice>,
}

impl NextHops {
    /// Looks up the routes to each backend's addresses, from the underlay address of their family.
    /// `overhead` is the size of the encapsulation without the outer IP header, in bytes.
    ///
    /// An underlay address that this host does not have is a warning: it may come back, and the
    /// other family keeps working. No packet is sent from it.
    ///
    /// # Errors
    ///
    /// [`netlink::Error`]
    pub async fn find(
        netlink: &Netlink,
        underlay: Underlay,
        overhead: u32,
        backends: impl Iterator<Item = Vec<IpAddr>>,
    ) -> Result<Self, netlink::Error> {
        let mut next_hops = Self { underlay, found: BTreeMap::new(), notices: BTreeMap::new() };
        let mut mtus = DeviceMtus::default();
        for addresses in backends {
            let mut without_path = Vec::new();
            for address in &addresses {
                let route =
                    netlink.route_among(*address, underlay.address_for(*address), &mut mtus).await;
                let path = match route {
                    Err(error @ netlink::Error::SourceNotLocal { .. }) => Err(error.to_string()),
                    Err(error) => return Err(error),
                    Ok(None) => Err("there is no route".to_owned()),
                    Ok(Some(route)) if route.local => Err("it is an address of this host, and a \
                         balancer cannot send to itself"
                        .to_owned()),
                    Ok(Some(route)) => Ok(next_hops.path_by(*address, &route, overhead)),
                };
                let path = path.unwrap_or_else(|why| {
                    without_path.push((*address, why));
                    BackendPath::NONE
                });
                next_hops.found.insert(*address, path);
            }
            for (address, why) in without_path {
                let has_path = |other: &&IpAddr| {
                    next_hops.path(**other).is_some_and(|path| path.next_hop.interface != 0)
                };
                let notice = match addresses.iter().find(has_path) {
                    Some(other) => Notice::warning(format!(
                        "{why}: packets for the backend are sent to {other}"
                    )),
                    None => Notice::problem(format!(
                        "{why}: packets for the backend are dropped (no_route)"
                    )),
                };
                next_hops.notices.insert(address, notice);
            }
        }
        Ok(next_hops)
    }

    /// The notices about addresses, those with equal texts as one.
    pub fn grouped_notices(&self) -> impl Iterator<Item = Notice> {
        /// The largest number of addresses that a notice names.
        const MAX_NAMED: usize = 3;

        let mut groups: BTreeMap<&Notice, Vec<IpAddr>> = BTreeMap::new();
        for (address, notice) in &self.notices {
            groups.entry(notice).or_default().push(*address);
        }
        groups.into_iter().map(|(notice, addresses)| {
            let named: Vec<_> = addresses.iter().take(MAX_NAMED).map(ToString::to_string).collect();
            let named = named.join(", ");
            let of = match addresses.len() {
                1 => format!("backend address {named}"),
                count if count <= MAX_NAMED => format!("backend addresses {named}"),
                count => format!("{count} backend addresses ({named}, ...)"),
            };
            Notice { text: format!("{of}: {}", notice.text), ..*notice }
        })
    }

    /// The addresses of backends in a prefix.
    pub fn within(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
        let (first, last) = (prefix.network(), prefix.broadcast());
        self.found.range(first..=last).map(|(address, _)| *address)
    }

    /// These next hops, with those that were looked up again.
    pub fn updated(&self, again: Self) -> Self {
        let mut updated = self.clone();
        updated.notices.retain(|address, _| !again.found.contains_key(address));
        updated.found.extend(again.found);
        updated.notices.extend(again.notices);
        updated
    }

    /// The path by a route. Notes a small MTU.
    fn path_by(&mut self, address: IpAddr, route: &Route, overhead: u32) -> BackendPath {
        let limit = |mtu| u16::try_from(mtu).unwrap_or(u16::MAX);
        let carried = limit(route.mtu);
        let mtu = self.underlay.mtu.map_or(carried, |stated| limit(stated).min(carried));
        if let Some(notice) = too_small(address, mtu.into(), overhead, self.underlay.mtu) {
            self.notices.insert(address, notice);
        }
        BackendPath { next_hop: NextHop::new(route.index, mtu), gateway: route.gateway }
    }

    /// The path to an address; `None` for the address of no backend.
    pub fn path(&self, address: IpAddr) -> Option<BackendPath> {
        self.found.get(&address).copied()
    }

    /// The next hop towards an address, with the path MTU as far as it is known, and without a
    /// neighbour: for a backend that has no next hop yet. The kernel looks the neighbour up.
    pub fn towards(&self, address: IpAddr, path_mtus: &PathMtus) -> NextHop {
        path_mtus.limit(address, self.path(address).unwrap_or(BackendPath::NONE).next_hop)
    }

    fn hop(&self, address: IpAddr, path_mtus: &PathMtus) -> Hop {
        let entry = self.towards(address, path_mtus);
        if entry.interface == 0 {
            return NONE;
        }
        let gateway = self.path(address).and_then(|path| path.gateway);
        Hop { entry, neighbour: Some(gateway.unwrap_or(address)) }
    }

    /// Writes the next hops that differ, for the backends in the maps, and returns their number. A
    /// backend whose address was not looked up is about to be removed; its next hop stays while
    /// lookup tables may refer to it.
    pub fn refresh(
        &self,
        maps: &mut BalancerMaps,
        backends: &BTreeMap<u16, HaveBackend>,
        path_mtus: &PathMtus,
    ) -> Result<usize, bpf::Error> {
        let present = PresentHops {
            next_hops: maps.elements(balancer::NEXT_HOPS)?,
            neighbours: maps.elements(balancer::NEIGHBOURS)?,
        };
        let mut changes = HopChanges::default();
        for (index, backend) in backends.iter().filter(|(_, backend)| backend.name.is_some()) {
            for (family, address) in
                [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)]
            {
                let asked = (!address.is_none()).then(|| IpAddr::from(address));
                let hop =
                    match asked.filter(|address| self.underlay.address_for(*address).is_some()) {
                        // No address, or no underlay address for its outer header.
                        None => NONE,
                        Some(address) if !self.found.contains_key(&address) => continue,
                        Some(address) => self.hop(address, path_mtus),
                    };
                changes.note(&present, NextHop::index(*index, family), &hop);
            }
        }
        // In this order, so that a next hop never refers to a neighbour that is not written.
        maps.write(balancer::NEIGHBOURS, &changes.neighbours)?;
        maps.write(balancer::NEXT_HOPS, &changes.next_hops)?;
        Ok(changes.next_hops.len())
    }
}

/// The content of the maps.
struct PresentHops {
    next_hops: Vec<NextHop>,
    neighbours: Vec<Neighbour>,
}

/// The entries to write: neighbours that no next hop refers to, then next hops.
#[derive(Debug, Default, PartialEq, Eq)]
struct HopChanges {
    neighbours: Vec<(u32, Neighbour)>,
    next_hops: Vec<(u32, NextHop)>,
}

impl HopChanges {
    /// Adds the writes that change the next hop at an index to `wanted`.
    fn note(&mut self, present: &PresentHops, at: u32, wanted: &Hop) {
        let has = present.next_hops.get(at as usize).copied().unwrap_or(NextHop::NONE);
        let wanted_neighbour = wanted.neighbour.map(Neighbour::from);
        let known = (has.neighbour != 0).then(|| has.neighbour_index(at) as usize);
        let known = known.and_then(|index| present.neighbours.get(index));
        if known == wanted_neighbour.as_ref() {
            let next_hop = NextHop { neighbour: has.neighbour, ..wanted.entry };
            if next_hop != has {
                self.next_hops.push((at, next_hop));
            }
            return;
        }
        let Some(wanted_neighbour) = wanted_neighbour else {
            self.next_hops.push((at, wanted.entry));
            return;
        };
        // Programs on other CPUs may be reading the current neighbour.
        let other = if has.neighbour == 1 { 2 } else { 1 };
        let next_hop = NextHop { neighbour: other, ..wanted.entry };
        self.neighbours.push((next_hop.neighbour_index(at), wanted_neighbour));
        self.next_hops.push((at, next_hop));
    }
}

/// The notice for an MTU that is below the configured `underlay.mtu`, to which backends clamp the
/// MSS, or that does not fit full packets of clients.
fn too_small(address: IpAddr, mtu: u32, overhead: u32, stated: Option<u32>) -> Option<Notice> {
    let overhead = overhead + if address.is_ipv4() { 20 } else { 40 };
    let largest = mtu.saturating_sub(overhead);
    match stated {
        Some(stated) if mtu < stated => Some(Notice::warning(format!(
            "the MTU of the path is {mtu}, but underlay.mtu is {stated}: client packets of more than {largest} bytes are dropped (too_big); \
             raise the MTU of the interface or route, or correct underlay.mtu"
        ))),
        _ if mtu < FULL_PACKET + overhead => Some(Notice::note(format!(
            "the MTU of the path is {mtu}: client packets of more than {largest} bytes are dropped (too_big), which clients that follow the \
             backend's MSS do not send; raise the underlay's MTU to {} or more",
            FULL_PACKET + overhead
        ))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u32 = 6;

    fn hop(interface: u32, neighbour: Option<&str>) -> Hop {
        Hop {
            entry: NextHop::new(interface, 1500),
            neighbour: neighbour.map(|text| text.parse().unwrap()),
        }
    }

    /// Applies a change one write at a time, and returns the next hop that a packet would use after
    /// each write.
    fn apply_hop(present: &mut PresentHops, wanted: &Hop) -> Vec<(NextHop, Option<Neighbour>)> {
        let mut changes = HopChanges::default();
        changes.note(present, AT, wanted);
        let found = |present: &PresentHops| {
            let has = present.next_hops[AT as usize];
            let known =
                (has.neighbour != 0).then(|| present.neighbours[has.neighbour_index(AT) as usize]);
            (NextHop { neighbour: 0, ..has }, known)
        };
        let mut seen = vec![found(present)];
        for (index, neighbour) in changes.neighbours {
            present.neighbours[index as usize] = neighbour;
            seen.push(found(present));
        }
        for (index, next_hop) in changes.next_hops {
            present.next_hops[index as usize] = next_hop;
            seen.push(found(present));
        }
        seen
    }

    #[test]
    fn a_packet_uses_the_old_or_the_new_next_hop_and_never_a_mixture() {
        let none = Neighbour { family: 0, address: [0; 4] };
        let mut present =
            PresentHops { next_hops: vec![NextHop::NONE; 8], neighbours: vec![none; 16] };
        let hops = [
            hop(3, Some("10.0.0.254")),
            hop(3, Some("10.0.0.253")),
            hop(4, Some("fe80::1")),
            hop(4, None),
            hop(4, Some("10.0.0.254")),
            hop(5, Some("10.0.0.254")),
            NONE,
        ];
        let mut before = (NextHop::NONE, None);
        for wanted in &hops {
            let after = (wanted.entry, wanted.neighbour.map(Neighbour::from));
            let seen = apply_hop(&mut present, wanted);
            assert!(seen.iter().all(|found| *found == before || *found == after), "{seen:?}");
            assert_eq!(seen.last(), Some(&after));
            assert_eq!(apply_hop(&mut present, wanted).len(), 1, "nothing is left to do");
            before = after;
        }
    }

    #[test]
    fn neighbours_have_the_layout_of_the_kernel() {
        let family = |text: &str| Neighbour::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(
            family("10.0.0.1"),
            Neighbour { family: 2, address: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0] }
        );
        let address = [u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0, 0, 1_u32.to_be()];
        assert_eq!(family("fe80::1"), Neighbour { family: 10, address });
    }

    #[test]
    fn an_underlay_mtu_below_the_clients_or_below_the_configured_one_is_noticed() {
        let v4 = IpAddr::from([10, 0, 1, 1]);
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        for (address, mtu, overhead, stated, expected) in [
            (v4, 1520, 0, None, None),
            (v4, 1520, 8, None, Some("raise the underlay's MTU to 1528")),
            (v6, 1540, 0, Some(1540), None),
            (v6, 1548, 8, Some(1548), None),
            (v6, 1520, 0, None, Some("more than 1480 bytes")),
            (v4, 1500, 0, Some(1500), Some("raise the underlay's MTU to 1520")),
            (v4, 1500, 0, Some(9000), Some("but underlay.mtu is 9000")),
        ] {
            let notice = too_small(address, mtu, overhead, stated);
            assert_eq!(notice.is_some(), expected.is_some(), "{notice:?}");
            assert!(
                expected.is_none_or(|expected| notice
                    .as_ref()
                    .is_some_and(|notice| notice.text.contains(expected))),
                "{notice:?}"
            );
        }
    }

    #[test]
    fn equal_notices_of_many_addresses_are_one() {
        let address = |last| IpAddr::from([10, 0, 1, last]);
        let underlay = Underlay {
            v4: None,
            v6: None,
            v4_sources: None,
            v6_sources: None,
            gue_port: 6080,
            mtu: None,
            min_path_mtu: None,
        };
        let mut next_hops = NextHops { underlay, found: BTreeMap::new(), notices: BTreeMap::new() };
        next_hops.notices.extend((1..=5).map(|last| (address(last), Notice::note("small"))));
        next_hops.notices.insert(address(9), Notice::problem("no route"));
        let grouped: Vec<_> =
            next_hops.grouped_notices().map(|notice| notice.to_string()).collect();
        assert_eq!(
            grouped,
            [
                "note: 5 backend addresses (10.0.1.1, 10.0.1.2, 10.0.1.3, ...): small",
                "problem: backend address 10.0.1.9: no route"
            ]
        );
    }
}
