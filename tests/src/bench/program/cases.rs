//! The cases: one for each path of a packet through the balancer's program.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_datapath::abi::{Features, VipOptions};

use crate::packets::addresses::VIP_V4;
use crate::packets::expectation::Action;
use crate::packets::fixture::{DNS, Fixture, TableSpec, WEB};
use crate::packets::frames::{Client, ETHERNET, L4Kind};

/// Slots of every lookup table: the default of the configuration.
const SLOTS: u32 = 65_537;
/// Entries of the connection table: more than the flows of any case.
const CONNECTIONS: u32 = 1_200_000;

/// One path through the program.
#[derive(Debug, Clone, Copy)]
pub struct BenchCase {
    /// Its name in the table of figures.
    pub name: &'static str,
    /// The first flow's packet, IPv4 or IPv6.
    pub client: fn(v6: bool) -> Client,
    /// Derives the case's map content from the default.
    pub fixture: fn(Fixture) -> Fixture,
    /// The flows of the packets.
    pub flows: Flows,
    /// Entries of the connection table.
    pub connections: u32,
    /// Features of the loaded program.
    pub features: Features,
    /// The action for each packet.
    pub action: Action,
}

/// The flows of a case's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// This number of known flows, a power of two, in pseudo-random order.
    Known(u32),
    /// A new flow for each packet, after this number of known flows.
    New(u32),
}

/// All cases.
pub const CASES: [BenchCase; 22] = [
    BenchCase {
        client: |v6| to_non_vip(&tcp(v6)),
        action: Action::Pass,
        ..case("non-VIP address", Flows::Known(1))
    },
    BenchCase {
        client: |v6| tcp(v6).to_port(444),
        action: Action::Pass,
        ..case("VIP address, no VIP at the port", Flows::Known(1))
    },
    // Each of these drops the packet at a later step, so a difference is the cost of the steps
    // between.
    dropped("dropped: no lookup table", |fixture| Fixture { tables: BTreeMap::new(), ..fixture }),
    dropped("dropped: no backend in the slot", |fixture| fixture.all_to(0, 0)),
    dropped("dropped: no route to the backend", |mut fixture| {
        fixture.backends.values_mut().for_each(|backend| backend.next_hop = None);
        fixture
    }),
    dropped("dropped: too big for the route", |fixture| fixture.with_mtu(68)),
    case("TCP segment, 1 flow", Flows::Known(1)),
    BenchCase {
        features: Features::ALL,
        ..case("TCP segment, 1 flow, all features", Flows::Known(1))
    },
    case("TCP segment, 64 k flows", Flows::Known(1 << 16)),
    case("TCP segment, 1 M flows", Flows::Known(1 << 20)),
    BenchCase { client: Client::syn, ..case("SYN, new flows", Flows::New(0)) },
    BenchCase { client: udp, ..case("UDP datagram, 1 flow", Flows::Known(1)) },
    gue("GUE: TCP segment, 1 flow", tcp),
    gue("GUE: UDP datagram, 1 flow", udp),
    quic("QUIC: known connection ID, 1 flow", |v6| short_header(v6, 0x07)),
    quic("QUIC: unknown connection ID, 1 flow", |v6| short_header(v6, 0xe7)),
    tracked("tracked: TCP segment, 1 flow", Flows::Known(1)),
    tracked("tracked: TCP segment, 64 k flows", Flows::Known(1 << 16)),
    tracked("tracked: TCP segment, 1 M flows", Flows::Known(1 << 20)),
    BenchCase {
        client: Client::syn,
        ..tracked("tracked: SYN, 64 k known flows", Flows::Known(1 << 16))
    },
    BenchCase { client: Client::syn, ..tracked("tracked: SYN, new flows", Flows::New(0)) },
    BenchCase {
        client: Client::syn,
        connections: 1 << 16,
        ..tracked("tracked: SYN, new flows, table full", Flows::New(1 << 17))
    },
];

const fn case(name: &'static str, flows: Flows) -> BenchCase {
    BenchCase {
        name,
        client: tcp,
        fixture: |fixture| fixture,
        flows,
        connections: CONNECTIONS,
        features: Features::NONE,
        action: Action::Redirect,
    }
}

const fn dropped(name: &'static str, fixture: fn(Fixture) -> Fixture) -> BenchCase {
    BenchCase { fixture, action: Action::Drop, ..case(name, Flows::Known(1)) }
}

const fn gue(name: &'static str, client: fn(v6: bool) -> Client) -> BenchCase {
    let fixture = |fixture: Fixture| Fixture {
        vip_options: [(WEB, VipOptions::GUE), (DNS, VipOptions::GUE)].into(),
        ..fixture
    };
    BenchCase { client, fixture, features: Features::GUE, ..case(name, Flows::Known(1)) }
}

const fn quic(name: &'static str, client: fn(v6: bool) -> Client) -> BenchCase {
    let fixture = |fixture: Fixture| {
        let servers = [(vec![0xc4, 0x60, 0x5e], (3, 1))].into();
        Fixture { server_ids: [((DNS, 0), (3, servers))].into(), ..fixture }
    };
    BenchCase { client, fixture, features: Features::QUIC, ..case(name, Flows::Known(1)) }
}

const fn tracked(name: &'static str, flows: Flows) -> BenchCase {
    BenchCase { fixture: |fixture| fixture.tracked(true), ..case(name, flows) }
}

fn tcp(v6: bool) -> Client {
    if v6 { Client::tcp6() } else { Client::tcp4() }
}

fn udp(v6: bool) -> Client {
    if v6 { Client::udp6() } else { Client::udp4() }
}

/// A QUIC datagram with a short header. Its connection ID starts with this octet and a server ID.
fn short_header(v6: bool, octet: u8) -> Client {
    Client { begins: vec![0x40, octet, 0xc4, 0x60, 0x5e], ..udp(v6) }
}

fn to_non_vip(client: &Client) -> Client {
    if client.is_v6() {
        client.clone().to_address(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x99))
    } else {
        let [a, b, c, _] = VIP_V4.octets();
        client.clone().to_address(Ipv4Addr::new(a, b, c, 99))
    }
}

impl BenchCase {
    /// The content of the maps, with backends reached over an interface.
    pub fn fixture_with_interface(&self, interface: u32) -> Fixture {
        let mut fixture = Fixture::new();
        for TableSpec { slots, .. } in fixture.tables.values_mut() {
            *slots = (0..SLOTS)
                .map(|slot| ((slot % 4 + 1) as u16, slot.wrapping_mul(0x9e37) as u16))
                .collect();
        }
        for backend in fixture.backends.values_mut() {
            backend.next_hop = backend.next_hop.map(|(_, mtu)| (interface, mtu));
        }
        (self.fixture)(fixture)
    }
}

/// The sequence of a case's frames.
pub struct Frames {
    bytes: Vec<u8>,
    v6: bool,
    flows: Flows,
    next: u32,
}

impl Frames {
    /// The frames of a case.
    pub fn new(case: &BenchCase, v6: bool) -> Self {
        let client = (case.client)(v6);
        let next = match case.flows {
            Flows::Known(_) => 0,
            Flows::New(known) => known,
        };
        Self { bytes: client.frame(), v6, flows: case.flows, next }
    }

    /// The frames before the measurement: one of each known flow, and their number.
    pub fn warm_up(case: &BenchCase, v6: bool) -> (Self, u32) {
        let (Flows::Known(flows) | Flows::New(flows)) = case.flows;
        let mut frames = Self::new(case, v6);
        let client = (case.client)(v6);
        if client.transport == L4Kind::TcpSyn {
            // A SYN creates no connection entry.
            frames.bytes = Client { transport: L4Kind::TcpAck, ..client }.frame();
        }
        frames.flows = Flows::New(0);
        frames.next = 0;
        (frames, flows)
    }

    /// The next frame. Its checksums are those of the first one, because no program verifies them.
    pub fn frame(&mut self) -> &[u8] {
        let flow = self.next;
        self.next = match self.flows {
            // A linear congruential generator with full period for any power of two (Knuth, The Art
            // of Computer Programming, volume 2, section 3.2.1.2).
            Flows::Known(flows) => flow.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % flows,
            Flows::New(_) => flow.wrapping_add(1),
        };
        // 16,384 source ports per source address.
        let address = flow >> 14;
        let port = 1024 + (flow & 0x3fff) as u16;
        let (address_end, ports) =
            if self.v6 { (ETHERNET + 24, ETHERNET + 40) } else { (ETHERNET + 16, ETHERNET + 20) };
        self.bytes[address_end - 2..address_end].copy_from_slice(&(address as u16).to_be_bytes());
        self.bytes[ports..ports + 2].copy_from_slice(&port.to_be_bytes());
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn known_flows_repeat_only_after_all_of_them() {
        let case = case("", Flows::Known(1 << 16));
        for v6 in [false, true] {
            let mut frames = Frames::new(&case, v6);
            let seen: BTreeSet<_> = (0..1 << 16).map(|_| frames.frame().to_vec()).collect();
            assert_eq!(seen.len(), 1 << 16);
            let (mut before, count) = Frames::warm_up(&case, v6);
            let known: BTreeSet<_> = (0..count).map(|_| before.frame().to_vec()).collect();
            assert_eq!(seen, known);
        }
    }

    #[test]
    fn new_flows_are_new() {
        let case = case("", Flows::New(1 << 10));
        let (mut before, count) = Frames::warm_up(&case, false);
        let mut seen: BTreeSet<_> = (0..count).map(|_| before.frame().to_vec()).collect();
        let mut frames = Frames::new(&case, false);
        assert!((0..1 << 10).all(|_| seen.insert(frames.frame().to_vec())));
    }
}
