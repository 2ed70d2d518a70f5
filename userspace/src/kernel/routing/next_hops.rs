//! How packets leave towards each backend: asked of the kernel's routing, kept up to date in the
//! map `NEXT_HOPS`.
//!
//! A packet needs an interface, an MTU and the neighbour to whom it is handed on the link: the
//! router, or the backend itself. Its link address is the kernel's business when it redirects.
//! While no daemon runs, packets keep to what was found last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_control::config::Underlay;
use sluice_control::have::HaveBackend;
use sluice_datapath::Family;
use sluice_datapath::abi::{Neighbour, NextHop};

use crate::kernel::bpf::{self, BalancerMaps};
use crate::kernel::netlink::{self, DeviceMtus, Netlink};
use crate::kernel::routing::path::BackendPath;
use crate::kernel::routing::path_mtu::PathMtus;

/// Bytes of a full Ethernet frame's IP packet, which is what most clients send.
const FULL_PACKET: u32 = 1500;

/// How packets leave towards an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    /// As in the map, but without a neighbour.
    entry: NextHop,
    /// To whom they are handed; `None` when the kernel should find out.
    neighbour: Option<IpAddr>,
}

const NONE: Hop = Hop { entry: NextHop::NONE, neighbour: None };

/// What is thought of an underlay address that is not an address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A wrong configuration.
    MustBeLocal,
    /// It was there when the configuration was read, and may come back. What is sent from the other
    /// family's goes on.
    MayBeLost,
}

/// The ways to backends, by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHops {
    underlay: Underlay,
    found: BTreeMap<IpAddr, BackendPath>,
    /// What an operator should know, a sentence for each address that has a problem.
    pub warnings: BTreeMap<IpAddr, String>,
}

impl NextHops {
    /// Asks for the route to each address, from the underlay address of its family. `overhead` is
    /// what encapsulation takes beside the outer IP header, in bytes.
    ///
    /// # Errors
    ///
    /// [`netlink::Error`]; also when an underlay address is not an address of this host, where
    /// `source` wants that: otherwise nothing is sent from it, and the warnings say so.
    pub async fn find(
        netlink: &Netlink,
        underlay: Underlay,
        overhead: u32,
        addresses: impl Iterator<Item = IpAddr>,
        source: Source,
    ) -> Result<Self, netlink::Error> {
        let mut next_hops = Self { underlay, found: BTreeMap::new(), warnings: BTreeMap::new() };
        let mut mtus = DeviceMtus::default();
        for address in addresses {
            let route =
                netlink.route_among(address, underlay.address_for(address), &mut mtus).await;
            let (way, warning) = match route {
                Err(error @ netlink::Error::SourceNotLocal { .. })
                    if source == Source::MayBeLost =>
                {
                    (
                        BackendPath::NONE,
                        Some(format!("{error}; until then packets for it are dropped (no_route)")),
                    )
                }
                Err(error) => return Err(error),
                Ok(None) => (
                    BackendPath::NONE,
                    Some(
                        "there is no route to it: packets for it are dropped (no_route)".to_owned(),
                    ),
                ),
                Ok(Some(route)) if route.local => {
                    let why = "it is an address of this host, and a balancer cannot send to itself: packets for it are dropped (no_route)";
                    (BackendPath::NONE, Some(why.to_owned()))
                }
                Ok(Some(route)) => {
                    let carried = u16::try_from(route.mtu).unwrap_or(u16::MAX);
                    let stated = underlay.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
                    let mtu = stated.unwrap_or(carried).min(carried);
                    let warning = too_small(address, mtu.into(), overhead, underlay.mtu);
                    (
                        BackendPath {
                            next_hop: NextHop::new(route.index, mtu),
                            gateway: route.gateway,
                        },
                        warning,
                    )
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
    pub fn way(&self, address: IpAddr) -> Option<BackendPath> {
        self.found.get(&address).copied()
    }

    /// The next hop towards an address, with the MTU that fits all of the way, as far as it is
    /// known; for a backend that has none yet: whoever the neighbour is, the kernel finds out.
    pub fn towards(&self, address: IpAddr, path_mtus: &PathMtus) -> NextHop {
        path_mtus.limit(address, self.way(address).unwrap_or(BackendPath::NONE).next_hop)
    }

    fn hop(&self, address: IpAddr, path_mtus: &PathMtus) -> Hop {
        let entry = self.towards(address, path_mtus);
        if entry.interface == 0 {
            return NONE;
        }
        let gateway = self.way(address).and_then(|way| way.gateway);
        Hop { entry, neighbour: Some(gateway.unwrap_or(address)) }
    }

    /// Writes what differs for the backends that are in the maps; how many next hops that were. A
    /// backend whose address was not asked for is about to go, and keeps what it has while tables
    /// may still lead to it.
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
        let present = Present { next_hops: maps.next_hops()?, neighbours: maps.neighbours()? };
        let mut changes = Changes::default();
        for (index, backend) in backends.iter().filter(|(_, backend)| backend.name.is_some()) {
            for (family, address) in
                [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)]
            {
                let asked = (!address.is_none()).then(|| IpAddr::from(address));
                let hop =
                    match asked.filter(|address| self.underlay.address_for(*address).is_some()) {
                        // No address, or no source for its outer header.
                        None => NONE,
                        Some(address) if !self.found.contains_key(&address) => continue,
                        Some(address) => self.hop(address, path_mtus),
                    };
                changes.note(&present, NextHop::index(*index, family), &hop);
            }
        }
        // In this order: a next hop never names a neighbour that is not written.
        maps.set_neighbours(&changes.neighbours)?;
        maps.set_next_hops(&changes.next_hops)?;
        Ok(changes.next_hops.len())
    }
}

/// What the maps hold.
struct Present {
    next_hops: Vec<NextHop>,
    neighbours: Vec<Neighbour>,
}

/// What is to be written: neighbours that no next hop names, then next hops.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    neighbours: Vec<(u32, Neighbour)>,
    next_hops: Vec<(u32, NextHop)>,
}

impl Changes {
    /// Notes what makes the next hop at an index what it should be.
    fn note(&mut self, present: &Present, at: u32, wanted: &Hop) {
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
        // Packets on other CPUs may be reading the one that counts now.
        let other = if has.neighbour == 1 { 2 } else { 1 };
        let next_hop = NextHop { neighbour: other, ..wanted.entry };
        self.neighbours.push((next_hop.neighbour_index(at), wanted_neighbour));
        self.next_hops.push((at, next_hop));
    }
}

/// What is wrong with an MTU towards a backend's address: it is less than what is stated of the
/// underlay, or full packets of clients do not fit.
fn too_small(address: IpAddr, mtu: u32, overhead: u32, stated: Option<u32>) -> Option<String> {
    let overhead = overhead + if address.is_ipv4() { 20 } else { 40 };
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

    /// Notes a change and makes it, one write after the other; what a packet finds after each of
    /// them.
    fn turn(present: &mut Present, wanted: &Hop) -> Vec<(NextHop, Option<Neighbour>)> {
        let mut changes = Changes::default();
        changes.note(present, AT, wanted);
        let found = |present: &Present| {
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
    fn packets_find_the_next_hop_as_it_was_or_as_it_is_and_never_half_of_it() {
        let nobody = Neighbour { family: 0, address: [0; 4] };
        let mut present =
            Present { next_hops: vec![NextHop::NONE; 8], neighbours: vec![nobody; 16] };
        let turns = [
            hop(3, Some("10.0.0.254")),
            hop(3, Some("10.0.0.253")),
            hop(4, Some("fe80::1")),
            hop(4, None),
            hop(4, Some("10.0.0.254")),
            hop(5, Some("10.0.0.254")),
            NONE,
        ];
        let mut before = (NextHop::NONE, None);
        for wanted in &turns {
            let after = (wanted.entry, wanted.neighbour.map(Neighbour::from));
            let seen = turn(&mut present, wanted);
            assert!(seen.iter().all(|found| *found == before || *found == after), "{seen:?}");
            assert_eq!(seen.last(), Some(&after));
            assert_eq!(turn(&mut present, wanted).len(), 1, "nothing is left to do");
            before = after;
        }
    }

    #[test]
    fn neighbours_are_what_the_kernel_reads() {
        let family = |text: &str| Neighbour::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(
            family("10.0.0.1"),
            Neighbour { family: 2, address: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0] }
        );
        let address = [u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0, 0, 1_u32.to_be()];
        assert_eq!(family("fe80::1"), Neighbour { family: 10, address });
    }

    #[test]
    fn an_underlay_that_is_smaller_than_clients_need_or_than_is_stated_is_told() {
        let v4 = IpAddr::from([10, 0, 1, 1]);
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        for (address, mtu, overhead, stated, says) in [
            (v4, 1520, 0, None, None),
            (v4, 1520, 8, None, Some("raise the underlay's MTU to 1528")),
            (v6, 1540, 0, Some(1540), None),
            (v6, 1548, 8, Some(1548), None),
            (v6, 1520, 0, None, Some("more than 1480 bytes")),
            (v4, 1500, 0, Some(1500), Some("raise the underlay's MTU to 1520")),
            (v4, 1500, 0, Some(9000), Some("though underlay.mtu is 9000")),
        ] {
            let told = too_small(address, mtu, overhead, stated);
            assert_eq!(told.is_some(), says.is_some(), "{told:?}");
            assert!(
                says.is_none_or(|says| told.as_ref().is_some_and(|told| told.contains(says))),
                "{told:?}"
            );
        }
    }
}
