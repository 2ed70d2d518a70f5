//! Random frames: valid ones, bent at random, because noise alone never gets past the first header.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, AddressOptions, RateKind, VipOptions};

use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::expectation::{BalancerCounters, DecapCounters};
use crate::packets::fixture::{BackendSpec, Fixture, HostFixture, ServerIds};
use crate::packets::frames::SHORTEST;
use crate::packets::frames::icmp::{EchoRequest, IcmpError};
use crate::packets::frames::{self, Client, Frame, L4Kind};

/// The addresses of the backend of [`host`].
pub(super) const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
pub(super) const LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3);
const FORWARDING_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const FORWARDING_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20);

/// How a frame is bent.
#[derive(Debug, Clone)]
enum Bend {
    /// A byte of the headers gets another value.
    Byte(usize, u8),
    /// A bit of the headers is flipped.
    Bit(usize, u8),
    /// The frame is for another host.
    Receiver,
    /// The end is cut off.
    Cut(prop::sample::Index),
    /// Zeros follow, as Ethernet pads.
    Pad(usize),
    /// A VLAN tag is inserted.
    Tag(bool),
    /// An IPv6 extension header is inserted: its kind, its length field, and a byte that may be
    /// segments left or an offset.
    Extension(u8, u8, u8),
    /// A length field changes by a little: the total or payload length.
    Length(i8),
}

/// A fixture in which every outcome occurs: slots without backend, backends without address, route or
/// room, and a tracked service.
pub fn fixture() -> Fixture {
    let mut fixture = Fixture::new()
        .with_backend(3, |backend| backend.next_hop = None)
        .with_backend(4, |backend| backend.next_hop = Some((1000, 120)))
        .with_backend(5, |backend| *backend = BackendSpec { v4: None, ..BackendSpec::new(5) })
        .with_backend(6, |backend| *backend = BackendSpec { v6: None, ..BackendSpec::new(6) });
    for (service, table) in &mut fixture.tables {
        table.tracked = *service == super::fixture::DNS;
        for (position, slot) in table.slots.iter_mut().enumerate() {
            slot.0 = [1, 2, 1, 2, 3, 4, 5, 6, 7, 0, 9, 1][position % 12];
        }
    }
    fixture.address_options = [(2, AddressOptions::DROP_NO_SERVICE)].into();
    // Two more addresses, which forward pings.
    fixture.addresses.extend([(FORWARDING_V4.into(), 3), (FORWARDING_V6.into(), 4)]);
    fixture
        .address_options
        .extend([(3, AddressOptions::PING_FORWARD), (4, AddressOptions::PING_FORWARD)]);
    fixture.vips.extend([((3, 0, 1), super::fixture::WEB), ((4, 0, 1), super::fixture::DNS)]);
    // Clients are denied to all at one address, and those of one service must be allowed; both
    // lists tell the others by their last bits.
    let list = |entries: &[(&str, AclVerdict)]| {
        entries.iter().map(|(prefix, says)| (prefix.parse().expect("a prefix"), *says)).collect()
    };
    fixture.lists = [
        (
            0,
            list(&[
                ("198.51.100.5/32", AclVerdict::DENIED),
                ("2001:db8:99::4/126", AclVerdict::ALLOWED),
                ("2001:db8:99::5/128", AclVerdict::DENIED),
            ]),
        ),
        (
            super::fixture::DNS,
            list(&[
                ("0.0.0.0/0", AclVerdict::NOT_ALLOWED),
                ("::/0", AclVerdict::NOT_ALLOWED),
                ("198.51.100.0/24", AclVerdict::ALLOWED),
                ("198.51.100.6/32", AclVerdict::DENIED),
                ("2001:db8:99::/64", AclVerdict::ALLOWED),
            ]),
        ),
    ]
    .into();
    fixture.vip_options.insert(super::fixture::DNS, VipOptions::ACL.with(VipOptions::GUE));
    fixture.quic = server_ids();
    // Some clients of the other service are a fifth's, and some are a service's that has no table.
    fixture.tables.insert(5, fixture.tables[&super::fixture::DNS].clone());
    let routes =
        [("198.51.100.6/31", 5), ("198.51.100.7/32", super::fixture::WEB), ("198.51.99.0/24", 3)];
    let routes6 = [
        ("2001:db8:98::/47", 5),
        ("2001:db8:99::7/128", super::fixture::WEB),
        ("2001:db8:99::6/128", 3),
    ];
    let routes = routes.into_iter().chain(routes6);
    fixture.routes =
        routes.map(|(p, to)| ((super::fixture::WEB, p.parse().expect("a prefix")), to)).collect();
    // A third service has VIPs and no table.
    fixture.vips.insert((1, 80, 6), 3);
    fixture.vips.insert((2, 80, 6), 3);
    // A fourth one is used up by the first few packets.
    fixture.vips.insert((1, 22, 6), 4);
    fixture.vips.insert((2, 22, 6), 4);
    fixture.tables.insert(4, fixture.tables[&super::fixture::WEB].clone());
    fixture.vip_options.insert(4, VipOptions::RATE_LIMITED);
    fixture.rates = [((4, RateKind::SourcePackets), 3), ((4, RateKind::Packets), 4)].into();
    fixture
}

/// A fixture in which packets go to backends in UDP, of one service also without a checksum; backends
/// of either family, and of both.
pub fn gue() -> Fixture {
    let mut fixture = Fixture::new()
        .with_backend(2, |backend| backend.v4 = None)
        .with_backend(3, |backend| backend.v6 = None)
        .with_backend(4, |backend| backend.next_hop = Some((1000, 160)));
    fixture.vip_options = [
        (super::fixture::WEB, VipOptions::GUE),
        (super::fixture::DNS, VipOptions::GUE.with(VipOptions::NO_CHECKSUM)),
    ]
    .into();
    fixture
}

/// A fixture in which backends have server IDs, and some clients are of another service, whose
/// backends have others.
pub fn with_server_ids() -> Fixture {
    let mut fixture = Fixture { quic: server_ids(), ..Fixture::new() };
    let (dns, other) = (super::fixture::DNS, 5);
    fixture.tables.insert(other, fixture.tables[&dns].clone());
    let ids = |rotation| {
        (fixture.quic[&(dns, rotation)].0, [(vec![0, 2], (3, 1)), (vec![0, 3], (4, 1))].into())
    };
    fixture.quic.insert((other, 0), ids(0));
    fixture.routes =
        ["198.51.100.5/32", "198.51.99.0/24", "2001:db8:99::5/128", "2001:db8:98::/48"]
            .map(|clients| ((dns, clients.parse().expect("a prefix")), other))
            .into();
    fixture
}

/// Server IDs of the datagrams' service, short ones and the longest, some of which are of backends
/// that are not there any more.
pub fn server_ids() -> BTreeMap<(u32, u8), ServerIds> {
    let id = |length: usize, last: u8| [vec![0; length - 1], vec![last]].concat();
    let servers = |rotation: u8, length: usize| {
        let backend = |n: u8| [1, 2, 4, 5, 6, 9][usize::from((rotation + 2 * n) % 6)];
        (0..3u8)
            .map(move |n| (id(length, n), (backend(n), 1 + u32::from(n == 2 && rotation == 1))))
            .collect()
    };
    [(0, 2), (1, 1), (2, 15), (3, 8), (6, 7)]
        .map(|(rotation, length)| {
            ((super::fixture::DNS, rotation), (length, servers(rotation, length)))
        })
        .into()
}

/// What a QUIC packet begins with, that has one of these IDs or nearly so.
fn quic() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![2 => 0..128u8, 3 => 128..=255u8];
    let version = prop::sample::select(vec![1u32, 0x6b33_43cf, 0, 0xff00_001d]);
    let of =
        prop::sample::select(vec![(0u8, 2usize), (1, 1), (2, 15), (3, 8), (6, 7), (7, 2), (4, 3)]);
    let room = prop_oneof![3 => Just(8u8), 1 => Just(20), 1 => 0..=20u8];
    (kind, version, of, 0..4u8, any::<u8>(), room).prop_map(
        |(first, version, (rotation, length), last, random, room)| {
            let long = [&version.to_be_bytes()[..], &[room]].concat();
            let id = [&[rotation << 5 | random & 0x1f], &vec![0; length - 1][..], &[last]].concat();
            [&[first][..], if first < 128 { &[] } else { &long }, &id].concat()
        },
    )
}

/// Where clients' packets come from: most from the first, which every list lets through, some from
/// the second, which is denied to all, the third, which one service denies, and the fourth, which
/// that service does not allow.
const SOURCES_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(198, 51, 100, 7),
    Ipv4Addr::new(198, 51, 100, 5),
    Ipv4Addr::new(198, 51, 100, 6),
    Ipv4Addr::new(198, 51, 99, 7),
];
const SOURCES_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7),
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 5),
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 6),
    Ipv6Addr::new(0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 7),
];

fn client() -> impl Strategy<Value = Client> {
    let base = (0..4usize, 0..48u16, prop::sample::select(vec![443u16, 53, 80, 22]), 0..3u8);
    let ttl = prop_oneof![19 => 1..=255u8, 1 => Just(0)];
    // Some are so long that their senders can be told that they do not fit.
    let payload = prop_oneof![9 => 0..200usize, 1 => 500..1500usize];
    let fields = (any::<u8>(), ttl, 0..=10usize, 0..=10usize, payload);
    let from = prop_oneof![6 => Just(0), 3 => 0..4usize];
    (base, fields, from, quic()).prop_map(
        |((base, port, to, kind), (class, ttl, options, tcp_options, payload), from, quic)| {
            let mut client = Client::each()[base].clone().from_port(40_000 + port);
            client.source.set_ip(if client.is_v6() {
                SOURCES_V6[from].into()
            } else {
                SOURCES_V4[from].into()
            });
            if kind == 2 {
                client = client.to_port(to);
            }
            if kind == 1 && client.transport == L4Kind::TcpAck {
                client.transport = L4Kind::TcpSyn;
            }
            if client.transport == L4Kind::Udp {
                client.begins = quic;
            }
            Client {
                tos: class,
                ttl,
                options: options * 4,
                tcp_options: tcp_options * 4,
                payload,
                ..client
            }
        },
    )
}

/// ICMP errors about such clients' flows.
fn error() -> impl Strategy<Value = IcmpError> {
    let fragment =
        prop_oneof![4 => Just(None), 1 => Just(Some((0, true))), 1 => Just(Some((5, false)))];
    let quoted = prop_oneof![Just(None), (0..12usize).prop_map(Some)];
    let ttl = prop_oneof![19 => 1..=255u8, 1 => Just(0)];
    let other = prop::bool::weighted(0.05);
    (client(), 0..14u8, (quoted, 0..4usize, fragment), (ttl, any::<u8>(), other)).prop_map(
        |(client, kind, (quoted, options, fragment), (ttl, tos, other))| {
            let client = Client { options: 0, ..client };
            let kind = if client.is_v6() {
                [1, 2, 3, 4, 5, 127, 1, 2, 3, 4, 2, 2, 2, 2][usize::from(kind)]
            } else {
                kind
            };
            let kind = if client.is_v6() || kind > 4 { kind } else { 3 };
            let elsewhere =
                if client.is_v6() { FORWARDING_V6.into() } else { FORWARDING_V4.into() };
            let to = other.then_some(elsewhere);
            IcmpError {
                quoted,
                options: options * 8,
                fragment,
                ttl,
                tos,
                to,
                ..IcmpError::new(&client, kind)
            }
        },
    )
}

/// Pings to addresses that answer and to addresses that forward.
fn ping() -> impl Strategy<Value = EchoRequest> {
    let fields = (any::<[u8; 4]>(), vec(any::<u8>(), 0..80), any::<u8>());
    let ttl = prop_oneof![19 => 1..=255u8, 1 => Just(0)];
    (client(), any::<bool>(), ttl, fields).prop_map(
        |(client, forwards, ttl, (rest, payload, tos))| {
            let ping = EchoRequest { rest, payload, ttl, tos, ..EchoRequest::new(&client) };
            match (forwards, client.is_v6()) {
                (true, true) => EchoRequest { destination: FORWARDING_V6.into(), ..ping },
                (true, false) => EchoRequest { destination: FORWARDING_V4.into(), ..ping },
                (false, _) => ping,
            }
        },
    )
}

fn bend() -> impl Strategy<Value = Bend> {
    prop_oneof![
        1 => Just(Bend::Receiver),
        6 => (12..90usize, any::<u8>()).prop_map(|(at, value)| Bend::Byte(at, value)),
        6 => (12..90usize, 0..8u8).prop_map(|(at, bit)| Bend::Bit(at, bit)),
        2 => any::<prop::sample::Index>().prop_map(Bend::Cut),
        2 => (1..50usize).prop_map(Bend::Pad),
        2 => any::<i8>().prop_map(Bend::Length),
        2 => any::<bool>().prop_map(Bend::Tag),
        4 => (prop::sample::select(vec![0u8, 43, 44, 44, 51, 60, 135]), 0..6u8, prop_oneof![2 => Just(0), 1 => 0..20u8])
            .prop_map(|(kind, length, byte)| Bend::Extension(kind, length, byte)),
    ]
}

fn bent(mut bytes: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    for bend in bends {
        match bend {
            Bend::Byte(at, value) => {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte = *value;
                }
            }
            Bend::Bit(at, bit) => {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 1 << bit;
                }
            }
            Bend::Receiver => bytes[..6].copy_from_slice(&crate::packets::addresses::OTHERS[0]),
            Bend::Cut(at) => bytes.truncate(SHORTEST + at.index(bytes.len() - SHORTEST + 1)),
            Bend::Pad(count) => bytes.resize(bytes.len() + count, 0),
            Bend::Tag(service) => {
                let tag = if *service { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, 6] };
                bytes.splice(12..12, tag);
            }
            Bend::Extension(kind, length, byte) => {
                if bytes.get(12..14) == Some(&[0x86, 0xdd]) && bytes.len() >= 54 {
                    let next = std::mem::replace(&mut bytes[20], *kind);
                    let size = match kind {
                        44 => 8,
                        51 => (usize::from(*length) + 2) * 4,
                        _ => (usize::from(*length) + 1) * 8,
                    };
                    let mut header = vec![0; size];
                    // Of a fragment header the third and fourth byte are the offset.
                    header[..4].copy_from_slice(&[next, *length, 0, *byte]);
                    bytes.splice(54..54, header);
                    let claim =
                        u16::from_be_bytes([bytes[18], bytes[19]]).wrapping_add(size as u16);
                    bytes[18..20].copy_from_slice(&claim.to_be_bytes());
                }
            }
            Bend::Length(by) => {
                let at = if bytes.get(12..14) == Some(&[0x08, 0x00]) { 16 } else { 18 };
                if let Some([high, low]) = bytes.get_mut(at..at + 2) {
                    let length =
                        u16::from_be_bytes([*high, *low]).wrapping_add_signed((*by).into());
                    [*high, *low] = length.to_be_bytes();
                }
            }
        }
    }
    bytes
}

/// Frames of at least [`SHORTEST`] bytes. About a third are valid; `merged` makes some of them
/// claim to be merged or tagged.
pub fn frame(merged: bool) -> impl Strategy<Value = Frame> {
    let bytes = prop_oneof![
        3 => client().prop_map(|client| client.frame()),
        6 => (client(), vec(bend(), 1..4)).prop_map(|(client, bends)| bent(client.frame(), &bends)),
        2 => (error(), vec(bend(), 0..3)).prop_map(|(error, bends)| bent(error.frame(), &bends)),
        2 => (ping(), vec(bend(), 0..3)).prop_map(|(ping, bends)| bent(ping.frame(), &bends)),
        1 => vec(any::<u8>(), SHORTEST..200),
    ];
    let beside = prop_oneof![
        8 => Just((0u32, 0u32, false)),
        2 => (1..300u32, 0..9u32, prop::bool::weighted(0.1)),
    ];
    (bytes, beside).prop_map(move |(bytes, (segment_size, segments, vlan))| {
        if merged { Frame { bytes, segment_size, segments, vlan } } else { bytes.into() }
    })
}

/// What the backend of [`encapsulated`] frames serves.
pub fn host() -> HostFixture {
    HostFixture {
        local: vec![LOCAL_V4.into(), LOCAL_V6.into()],
        vips: vec![IpAddr::from(VIP_V4).into(), IpAddr::from(VIP_V6).into()],
    }
}

/// Encapsulated frames for [`host`]; most of them bent. `merged` makes some of them claim to be
/// merged or tagged.
pub fn encapsulated(merged: bool) -> impl Strategy<Value = Frame> {
    let beside = prop_oneof![
        8 => Just((0u32, 0u32, false)),
        1 => (0..300u32, 0..9u32, prop::bool::weighted(0.1)),
    ];
    let to_vip = prop::bool::weighted(0.95);
    (client(), any::<u8>(), (any::<bool>(), to_vip, any::<bool>()), vec(bend(), 0..4), beside)
        .prop_map(
            move |(
                client,
                class,
                (crosses, to_vip, gue),
                bends,
                (segment_size, segments, vlan),
            )| {
                let elsewhere: IpAddr =
                    if client.is_v6() { LOCAL_V6.into() } else { LOCAL_V4.into() };
                let client = if to_vip { client } else { client.to_address(elsewhere) };
                let packet = client.packet();
                let length = packet.len();
                let outer = match (client.is_v6(), crosses) {
                    (true, false) => frames::outer_v6(LOCAL_V6, class, 0, length),
                    (false, false) => frames::outer_v4(LOCAL_V4, class, 0, length),
                    (true, true) => frames::outer_v4_of_v6(LOCAL_V4, class, 0, length),
                    (false, true) => frames::outer_v6_of_v4(LOCAL_V6, class, 0, length),
                };
                let outer = if gue {
                    frames::gue_headers(&outer, length, class.into(), Some(&packet))
                } else {
                    outer
                };
                let bytes = bent(frames::encapsulated(&client.frame(), &outer), &bends);
                if merged { Frame { bytes, segment_size, segments, vlan } } else { bytes.into() }
            },
        )
}

/// Checks that a run of [`encapsulated`] frames met every outcome that a backend has.
///
/// # Errors
///
/// What did not occur.
pub fn reached_by_backend((taken, reasons): &DecapCounters) -> Result<(), String> {
    use Reason::{BadHeader, BadLength, EcnForbidden, NotTunnel, NotVip, OtherHost, Truncated};

    for reason in [Truncated, BadHeader, NotVip, OtherHost, BadLength, NotTunnel, EcnForbidden] {
        if !reasons.contains_key(&reason) {
            return Err(format!("no random frame ended as {reason}: the frames are too dull"));
        }
    }
    if taken.0 == 0 { Err("no random frame was decapsulated".to_owned()) } else { Ok(()) }
}

/// Checks that a run of random frames in [`fixture`] met every outcome that the balancer has.
///
/// # Errors
///
/// The reason that did not occur, or that nothing was forwarded.
pub fn reached(counters: &BalancerCounters) -> Result<(), String> {
    use Reason::{AdjustRoomFailed, EcnForbidden, IcmpTooBigRateLimited, NotTunnel, VlanDepth};

    let elsewhere = [NotTunnel, EcnForbidden, AdjustRoomFailed, VlanDepth, IcmpTooBigRateLimited];
    let expected = Reason::ALL.iter().filter(|reason| !elsewhere.contains(reason));
    for reason in expected {
        if !counters.reasons.contains_key(reason) {
            return Err(format!("no random frame ended as {reason}: the frames are too dull"));
        }
    }
    if counters.services.len() < 2 || counters.backends.len() < 4 {
        return Err("random frames reached too few services or backends".to_owned());
    }
    Ok(())
}
