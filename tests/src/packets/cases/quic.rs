//! QUIC connection IDs with plaintext server IDs (draft QUIC-LB).

use std::collections::BTreeMap;

use etherparse::EtherType;
use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, RateKind, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwarded, forwards, passes};
use super::{icmp_errors, vlan_and_extensions};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::{DNS, Fixture, TableSpec, WEB};
use crate::packets::frames::icmp::{IcmpError, packet_too_big};
use crate::packets::frames::{self, Client, Frame};

const HINT: u16 = 0x557f;
/// The backend of every slot.
const TABLE: u16 = 1;
/// The backends of the server IDs in the draft's first and second plaintext connection ID.
const FIRST: u16 = 3;
const SECOND: u16 = 2;

/// The draft's plaintext connection IDs: configuration 0 with a server ID of three octets,
/// configuration 1 with five.
pub(super) const FIRST_ID: &[u8] = &[0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f];
const SECOND_ID: &[u8] = &[0x2a, 0x35, 0x0d, 0x28, 0xb4, 0x20, 0x03, 0x48, 0x7d, 0x97, 0x0b];

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

/// A fixture in which [`DNS`] has server IDs.
pub(super) fn fixture() -> Fixture {
    let servers = |id: &[u8], backend: u16| BTreeMap::from([(id.to_vec(), (backend, 1))]);
    let mut fixture = Fixture::new().all_to(TABLE, HINT);
    fixture.server_ids = [
        ((DNS, 0), (3, servers(&FIRST_ID[1..4], FIRST))),
        ((DNS, 1), (5, servers(&SECOND_ID[1..6], SECOND))),
        // The longest possible server ID.
        ((DNS, 6), (15, servers(&[0x66; 15], FIRST))),
    ]
    .into();
    fixture
}

/// A client of each family whose datagram begins with these bytes.
pub(super) fn both(begins: &[u8]) -> [Client; 2] {
    [Client::udp4(), Client::udp6()].map(|client| Client { begins: begins.to_vec(), ..client })
}

/// A packet with a short header.
pub(super) fn short(id: &[u8]) -> Vec<u8> {
    [&[0x40 | 0x1d], id].concat()
}

/// A packet with a long header: version, type and destination connection ID.
fn long(version: u32, kind: u8, id: &[u8]) -> Vec<u8> {
    [&[0xc0 | kind << 4 | 0x0b], &version.to_be_bytes()[..], &[id.len() as u8], id, &[0]].concat()
}

/// Datagrams that go to the backend of their connection ID.
fn named(packets: &[Vec<u8>], backend: u16) -> Vec<(Frame, Expectation)> {
    packets
        .iter()
        .flat_map(|begins| both(begins))
        .map(|client| forwards(&client, backend, 0))
        .collect()
}

/// Datagrams that go to the backend of their slot.
fn by_table(packets: &[Vec<u8>]) -> Vec<(Frame, Expectation)> {
    packets
        .iter()
        .flat_map(|begins| both(begins))
        .map(|client| forwards(&client, TABLE, HINT))
        .collect()
}

fn of((frame, outcome): (Frame, Expectation), service: u32) -> (Frame, Expectation) {
    let Expectation::Forward(mut forwarded) = outcome else { return (frame, outcome) };
    forwarded.service = service;
    (frame, Expectation::Forward(forwarded))
}

fn after(name: &'static str, steps: Vec<(Fixture, Vec<(Frame, Expectation)>)>) -> Case {
    let steps = steps.into_iter().flat_map(|(fixture, frames)| {
        [CaseStep::Configure(fixture)]
            .into_iter()
            .chain(frames.into_iter().map(|(f, o)| CaseStep::Send(f, o)))
    });
    Case { name, steps: steps.collect() }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |name, frames| Case::new(name, fixture(), frames);
    let handshake = |id: &[u8]| long(VERSION_1, 2, id);
    vec![
        case("QUIC-LB vector 07c4605e4504cc4f has server ID c4605e of configuration 0", {
            named(&[short(FIRST_ID), handshake(FIRST_ID)], FIRST)
        }),
        case(
            "QUIC-LB vector 2a350d28b42003487d970b has server ID 350d28b420 of configuration 1",
            named(&[short(SECOND_ID), handshake(SECOND_ID)], SECOND),
        ),
        case("a server ID of fifteen octets selects its backend", {
            let id = [&[6 << 5 | 19][..], &[0x66; 15], &[1, 2, 3, 4]].concat();
            named(&[short(&id), handshake(&id)], FIRST)
        }),
        case(
            "the server ID of a Handshake, Retry or unknown-version packet selects its backend",
            {
                let (v1, v2) = ([2, 3], [0, 3]);
                let known = v1.map(|kind| long(VERSION_1, kind, FIRST_ID)).into_iter();
                let known = known.chain(v2.map(|kind| long(VERSION_2, kind, FIRST_ID)));
                let others = [0, 0xff00_001d, 2, u32::MAX].into_iter();
                let others = others
                    .flat_map(|version| (0..4).map(move |kind| long(version, kind, FIRST_ID)));
                named(&known.chain(others).collect::<Vec<_>>(), FIRST)
            },
        ),
        case(
            "Initial and 0-RTT packets of versions 1 and 2 follow the lookup table, even with a known server ID",
            {
                let (v1, v2) = ([0, 1], [1, 2]);
                let packets = v1.map(|kind| long(VERSION_1, kind, FIRST_ID)).into_iter();
                by_table(
                    &packets
                        .chain(v2.map(|kind| long(VERSION_2, kind, FIRST_ID)))
                        .collect::<Vec<_>>(),
                )
            },
        ),
        case("a packet with an unknown server ID follows the lookup table", {
            let unknown = [0x07, 0xc4, 0x60, 0x5f, 0x45, 0x04, 0xcc, 0x4f];
            let zero = [0x07, 0, 0, 0, 0x45, 0x04, 0xcc, 0x4f];
            by_table(&[short(&unknown), handshake(&unknown), short(&zero), vec![], vec![0x3c; 40]])
        }),
        case(
            "a packet with an unused or unroutable configuration rotation follows the lookup table",
            {
                let of = |rotation: u8| [&[rotation << 5 | 7], &FIRST_ID[1..]].concat();
                by_table(&[1, 2, 3, 4, 5, 6, 7].map(|rotation| short(&of(rotation))))
            },
        ),
        case(
            "only header form, packet type and configuration rotation of the first octets are read",
            {
                let id = |low: u8| [&[low], &FIRST_ID[1..]].concat();
                let ids = (0..32).map(|low| short(&id(low)));
                // The fixed bit of version 1 may be cleared (RFC 9287).
                let firsts = (0..128).step_by(5).map(|first| [&[first], FIRST_ID].concat());
                let long = (0..64)
                    .filter(|low| low >> 4 & 3 > 1)
                    .step_by(3)
                    .map(|low| [&[0x80 | low], &handshake(FIRST_ID)[1..]].concat());
                named(&ids.chain(firsts).chain(long).collect::<Vec<_>>(), FIRST)
            },
        ),
        case(
            "a long header with a connection ID shorter than a server ID follows the lookup table",
            {
                let of = |length: u8| [&handshake(FIRST_ID)[..5], &[length], FIRST_ID].concat();
                let mut frames = by_table(&[0, 1, 2, 3].map(of));
                frames.extend(named(&[4, 5, 8, 20, 21, 255].map(of), FIRST));
                frames
            },
        ),
        case("a datagram too short for QUIC follows the lookup table, also in a padded frame", {
            let of = |payload: usize, begins: &[u8]| {
                both(begins).map(|client| Client { payload, ..client })
            };
            let table = |client: &Client| forwards(client, TABLE, HINT);
            let shorts = (0..=16).flat_map(|payload| of(payload, &short(FIRST_ID)));
            let longs = (0..=21).flat_map(|payload| of(payload, &handshake(FIRST_ID)));
            let mut frames: Vec<_> = shorts.chain(longs).map(|client| table(&client)).collect();
            frames.extend(of(17, &short(FIRST_ID)).map(|client| forwards(&client, FIRST, 0)));
            frames.extend(of(22, &handshake(FIRST_ID)).map(|client| forwards(&client, FIRST, 0)));
            // The frame has padding after the packet.
            frames.extend(of(4, &short(FIRST_ID)).map(|client| {
                let bytes = [client.frame(), FIRST_ID[3..].to_vec(), vec![0; 20]].concat();
                (bytes.clone().into(), forwarded(&bytes, &client, TABLE, HINT))
            }));
            frames
        }),
        case("a client that migrates to another address, port or family keeps its backend", {
            let moved = (0..32u16).flat_map(|port| {
                both(&short(FIRST_ID)).map(|client| client.from_port(43_000 + port))
            });
            moved
                .map(|mut client| {
                    if !client.is_v6() {
                        client.source.set_ip([192, 0, 2, client.source.port() as u8].into());
                    }
                    forwards(&client, FIRST, 0)
                })
                .collect()
        }),
        Case::new(
            "a TCP segment with the bytes of a connection ID follows the lookup table",
            {
                let mut fixture = fixture();
                fixture.server_ids = [0, 1]
                    .map(|rotation| ((WEB, rotation), fixture.server_ids[&(DNS, rotation)].clone()))
                    .into();
                fixture
            },
            {
                let tcp = [Client::tcp4(), Client::tcp6()]
                    .map(|client| Client { begins: short(FIRST_ID), ..client });
                let mut frames = tcp.map(|client| forwards(&client, TABLE, HINT)).to_vec();
                // Server IDs of one service do not apply to another.
                frames.extend(by_table(&[short(FIRST_ID)]));
                frames
            },
        ),
        case("a server ID is found after VLAN tags, IPv4 options and extension headers", {
            let tagged = both(&short(FIRST_ID)).map(|client| {
                let (frame, outcome) = forwards(&client, FIRST, 0);
                (Frame::from(frames::tagged(&frame.bytes, &[(0x88a8, 5), (0x8100, 6)])), outcome)
            });
            let in_metadata = both(&handshake(SECOND_ID)).map(|client| {
                let (frame, outcome) = forwards(&client, SECOND, 0);
                (Frame { vlan: true, ..frame }, outcome)
            });
            let options = Client { options: 12, ..both(&short(SECOND_ID))[0].clone() };
            let [_, v6] = both(&handshake(FIRST_ID));
            let mut frames = [tagged, in_metadata].concat();
            frames.push(forwards(&options, SECOND, 0));
            frames.push(vlan_and_extensions::with_extensions(&v6, &[(0, 8), (60, 16)], FIRST, 0));
            frames
        }),
        case("fragments follow the lookup table, because QUIC packets are not fragmented", {
            let v4 = both(&short(FIRST_ID))[0].clone();
            let first = Client { fragment: (false, true, 0), ..v4.clone() };
            let later = Client { fragment: (false, false, 9), begins: vec![], ..v4 };
            vec![forwards(&first, TABLE, HINT), forwards(&later, TABLE, HINT)]
        }),
        after("a server ID of a removed or replaced backend follows the lookup table", {
            let packets = [short(FIRST_ID), handshake(FIRST_ID)];
            vec![
                (fixture(), named(&packets, FIRST)),
                (fixture().without_backend(FIRST), by_table(&packets)),
                (fixture().with_backend(FIRST, |backend| backend.epoch += 1), by_table(&packets)),
            ]
        }),
        after("reassigning or removing a server ID takes effect at once", {
            let given = |backend| {
                let mut fixture = fixture();
                fixture
                    .server_ids
                    .insert((DNS, 0), (3, [(FIRST_ID[1..4].to_vec(), (backend, 1))].into()));
                fixture
            };
            // Shorter IDs of the same configuration: the first octets of the old ID.
            let mut shorter = fixture();
            shorter.server_ids.insert((DNS, 0), (2, [(FIRST_ID[1..3].to_vec(), (4, 1))].into()));
            let packets = [short(FIRST_ID)];
            vec![
                (given(FIRST), named(&packets, FIRST)),
                (given(SECOND), named(&packets, SECOND)),
                (shorter, named(&packets, 4)),
                (Fixture::new().all_to(TABLE, HINT), by_table(&packets)),
            ]
        }),
        after(
            "in a tracked service a server ID overrides the connection table and creates no entry",
            {
                let mut second = fixture().tracked(true);
                second.tables.get_mut(&DNS).expect("it is there").slots.fill((4, HINT));
                let initial = [long(VERSION_1, 0, &[9; 8])];
                let (id, moved) = ([short(FIRST_ID)], [short(&[0xe7; 8])]);
                vec![
                    (fixture().tracked(true), named(&id, FIRST)),
                    // The flow has no connection entry yet, gets one here and keeps it.
                    (second.clone(), by(&initial, 4)),
                    (
                        fixture().tracked(true),
                        [by(&initial, 4), named(&id, FIRST), by(&moved, 4)].concat(),
                    ),
                ]
            },
        ),
        Case::new(
            "after a route the server IDs of the target service apply",
            {
                let mut fixture = fixture();
                let first = fixture.server_ids[&(DNS, 0)].clone();
                fixture.server_ids = [((5, 0), first)].into();
                fixture.tables.insert(5, TableSpec { tracked: false, slots: vec![(4, HINT); 251] });
                fixture.routes = ["198.51.100.0/24", "2001:db8:99::/48"]
                    .map(|clients| ((DNS, clients.parse().expect("a prefix")), 5))
                    .into();
                fixture
            },
            {
                let led = [named(&[short(FIRST_ID)], FIRST), by(&[short(SECOND_ID)], 4)].concat();
                led.into_iter().map(|led| of(led, 5)).collect()
            },
        ),
        Case::new(
            "after a route to a service without server IDs packets follow its lookup table",
            {
                let mut fixture = fixture();
                fixture.tables.insert(5, TableSpec { tracked: false, slots: vec![(4, HINT); 251] });
                fixture.routes = [((DNS, "198.51.100.0/24".parse().expect("a prefix")), 5)].into();
                fixture
            },
            {
                let [v4, v6] = both(&short(FIRST_ID));
                vec![of(forwards(&v4, 4, HINT), 5), forwards(&v6, FIRST, 0)]
            },
        ),
        Case::new(
            "server IDs select backends of a service without a lookup table",
            {
                let mut fixture = fixture();
                fixture.tables.remove(&DNS);
                fixture
            },
            {
                let others =
                    both(&short(&[0xff; 8])).map(|client| drops(client.frame(), Reason::NoTable));
                [named(&[short(FIRST_ID)], FIRST), others.to_vec()].concat()
            },
        ),
        Case::new(
            "ACLs, rate limits and the TTL are checked before server IDs",
            {
                let mut fixture = fixture();
                fixture.acls = [(
                    0,
                    [("198.51.100.7/32".parse().expect("a prefix"), AclVerdict::DENIED)].into(),
                )]
                .into();
                fixture.vip_options = [(DNS, VipOptions::RATE_LIMITED)].into();
                fixture.rates = [((DNS, RateKind::Packets), 1)].into();
                fixture
            },
            {
                let [v4, v6] = both(&short(FIRST_ID));
                let expired = Client { ttl: 0, ..v6.clone() };
                vec![
                    drops(v4.frame(), Reason::AclDenied),
                    drops(expired.frame(), Reason::TtlExpired),
                    forwards(&v6, FIRST, 0),
                    drops(v6.frame(), Reason::RateLimitedService),
                ]
            },
        ),
        Case::new(
            "a datagram with a server ID that is too long for the MTU causes an ICMP error",
            fixture().with_mtu(1400),
            {
                both(&short(FIRST_ID))
                    .map(|client| {
                        let client = Client { payload: 1400, ..client };
                        let (header, mtu) = if client.is_v6() { (40, 1360) } else { (20, 1380) };
                        let answer = packet_too_big(&client.frame(), header, Some(17), mtu);
                        (client.frame().into(), Expectation::Reply(Reason::IcmpTooBigSent, answer))
                    })
                    .to_vec()
            },
        ),
        case(
            "an ICMP error follows the lookup table, because it quotes the client's connection ID",
            {
                both(&short(FIRST_ID))
                    .map(|client| {
                        let error = IcmpError::new(&client, if client.is_v6() { 2 } else { 3 });
                        icmp_errors::to_backend(&error, DNS, (TABLE, HINT))
                    })
                    .to_vec()
            },
        ),
        case("a frame truncated in its connection ID passes or is dropped like any other", {
            let [v4, _] = both(&short(FIRST_ID));
            let whole = v4.frame();
            vec![
                passes(frames::ethernet(EtherType::IPV4, &v4.packet()[..24]), Reason::Truncated),
                drops(whole[..whole.len() - 60].to_vec(), Reason::BadLength),
            ]
        }),
    ]
}

/// Datagrams that go to a backend chosen by their slot or connection entry.
fn by(packets: &[Vec<u8>], backend: u16) -> Vec<(Frame, Expectation)> {
    packets
        .iter()
        .flat_map(|begins| both(begins))
        .map(|client| forwards(&client, backend, HINT))
        .collect()
}
