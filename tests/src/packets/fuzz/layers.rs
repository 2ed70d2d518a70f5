//! The layers of a valid frame: VLAN tags, IP packets, and what they carry: TCP, UDP with QUIC or
//! tunnels inside, ICMP that quotes a flow, other protocols.

use fastrand::Rng;

use super::fixtures::QUIC_CONFIGS;
use super::frame_builder::{Endpoints, FrameBuilder, ones_complement, protocol};
use super::traffic::Traffic;
use super::{ip, values};
use crate::packets::addresses::GUE_PORT;

/// Maximum depth of packets in packets.
const DEEPEST: u8 = 3;

/// A whole frame.
pub(super) fn frame(builder: &mut FrameBuilder, rng: &mut Rng, traffic: Traffic) {
    builder.put(&values::link(rng));
    let tags = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3][rng.usize(..15)];
    for _ in 0..tags {
        builder.edge();
        builder.put16([0x8100, 0x88a8][rng.usize(..2)]);
        builder.put16(rng.u16(..));
    }
    if rng.u8(..50) == 0 {
        builder.put16(
            [0x0806, 0x86dc, 0x8847, 0x8864, 0x88cc, 0x0000, 0x0040, rng.u16(..)][rng.usize(..8)],
        );
        builder.payload(rng);
        return;
    }
    let mut endpoints = match traffic {
        Traffic::FromClients => Endpoints::forward(rng),
        Traffic::Encapsulated => Endpoints::to_backend(rng),
        Traffic::FromBackends => Endpoints::forward(rng).reversed(),
    };
    builder.put16(if endpoints.is_v6() { 0x86dd } else { 0x0800 });
    let kind = match traffic {
        Traffic::Encapsulated if rng.u8(..20) != 0 => {
            [protocol::IPV4, protocol::IPV6, protocol::UDP][rng.usize(..3)]
        }
        Traffic::FromBackends if rng.u8(..10) != 0 => protocol::TCP,
        _ => kind(rng, endpoints.is_v6(), 0),
    };
    if matches!(kind, protocol::ICMP | protocol::ICMPV6) && rng.u8(..4) == 0 {
        endpoints.destination = values::echo_vip(endpoints.is_v6());
    }
    carrying(builder, rng, &endpoints, kind, 0);
    if rng.u8(..12) == 0 {
        // Ethernet padding.
        builder.edge();
        let length = builder.bytes.len() + rng.usize(..50);
        builder.bytes.resize(length, 0);
    }
}

/// An IP packet between two endpoints.
fn packet(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, depth: u8) {
    let kind = kind(rng, endpoints.is_v6(), depth);
    carrying(builder, rng, endpoints, kind, depth);
}

/// An IP packet that carries a protocol.
fn carrying(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, kind: u8, depth: u8) {
    if endpoints.is_v6() {
        let (start, non_initial) = ip::ipv6(builder, rng, endpoints, kind);
        if non_initial {
            // A non-initial fragment begins anywhere in the packet.
            builder.payload(rng);
        } else {
            carried(builder, rng, endpoints, kind, depth);
        }
        builder.finish_ipv6(start);
    } else {
        let (start, header) = ip::ipv4(builder, rng, endpoints, kind);
        carried(builder, rng, endpoints, kind, depth);
        builder.finish_ipv4(start, header);
    }
}

/// A random protocol number.
fn kind(rng: &mut Rng, v6: bool, depth: u8) -> u8 {
    match rng.u8(..40) {
        0..=19 => protocol::TCP,
        20..=30 => protocol::UDP,
        31..=34 => [protocol::ICMP, protocol::ICMPV6][usize::from(v6)],
        35 => [protocol::ICMPV6, protocol::ICMP][usize::from(v6)],
        36 if depth < DEEPEST => protocol::IPV4,
        37 if depth < DEEPEST => protocol::IPV6,
        38 => [2, 33, 46, 47, 50, 51, 89, 108, 132, 135, 136, 255][rng.usize(..12)],
        _ => rng.u8(..),
    }
}

/// The content of an IP packet with protocol `kind`.
fn carried(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, kind: u8, depth: u8) {
    match kind {
        protocol::TCP => tcp(builder, rng, endpoints),
        protocol::UDP => udp(builder, rng, endpoints, depth),
        protocol::ICMP => icmp(builder, rng, endpoints, depth),
        protocol::ICMPV6 => icmpv6(builder, rng, endpoints, depth),
        protocol::IPV4 | protocol::IPV6 => {
            let inner = Endpoints::forward(rng);
            // Mostly of the family of the protocol number.
            let fits = inner.is_v6() == (kind == protocol::IPV6);
            let inner = if fits || rng.u8(..8) == 0 { inner } else { other_family(rng, inner) };
            packet(builder, rng, &inner, depth + 1);
        }
        _ => builder.payload(rng),
    }
}

fn other_family(rng: &mut Rng, endpoints: Endpoints) -> Endpoints {
    let v6 = !endpoints.is_v6();
    Endpoints { source: values::client(rng, v6), destination: values::vip(v6), ..endpoints }
}

fn tcp(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints) {
    let start = builder.edge();
    builder.put16(endpoints.source_port);
    builder.put16(endpoints.destination_port);
    builder.put(&rng.u64(..).to_be_bytes());
    let options = if builder.handshakes || rng.u8(..3) == 0 { rng.usize(..=10) * 4 } else { 0 };
    let flags = match rng.u8(..16) {
        _ if builder.handshakes && rng.u8(..8) != 0 => [0x02, 0x12][rng.usize(..2)],
        0..=3 => 0x02,
        4 => 0x12,
        5 => 0x11,
        6 => 0x04,
        7 => rng.u8(..),
        _ => 0x10,
    };
    builder.put(&[(5 + options as u8 / 4) << 4 | rng.u8(..16) & rng.u8(..16), flags]);
    builder.put16(rng.u16(..));
    builder.put16(0);
    builder.put16(0);
    tcp_options(builder, rng, options);
    builder.payload(rng);
    builder.finish_transport(start, start + 16, endpoints, protocol::TCP);
}

/// Options that fill `room`: MSS, window scale, SACK, timestamps, padding, and invalid ones.
fn tcp_options(builder: &mut FrameBuilder, rng: &mut Rng, room: usize) {
    let end = builder.bytes.len() + room;
    while builder.bytes.len() < end {
        let left = end - builder.bytes.len();
        let (kind, length) = [(2, 4), (3, 3), (4, 2), (8, 10), (5, 10), (34, 6)][rng.usize(..6)];
        match rng.u8(..64) {
            // End of options, possibly before the last option.
            0 => builder.put(&[0]),
            // A random kind and length without a value.
            1 if left >= 2 => builder.put(&[rng.u8(..), rng.u8(..)]),
            2..=17 => builder.put(&[1]),
            _ if length > left => builder.put(&[1]),
            _ => {
                builder.put(&[kind, length as u8]);
                for _ in 2..length {
                    builder.put(&[rng.u8(..)]);
                }
            }
        }
    }
}

fn udp(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, depth: u8) {
    let start = builder.edge();
    builder.put16(endpoints.source_port);
    builder.put16(endpoints.destination_port);
    builder.lengths.push(builder.bytes.len());
    builder.put16(0);
    builder.put16(0);
    let tunnel = endpoints.destination_port == GUE_PORT.number();
    match rng.u8(..12) {
        1.. if tunnel && depth < 2 => {
            let inner = Endpoints::forward(rng);
            packet(builder, rng, &inner, depth + 1);
        }
        0..=4 => quic(builder, rng),
        5 if depth < 2 => {
            // GUE variant 1: the IP packet follows the UDP header.
            let inner = Endpoints::forward(rng);
            packet(builder, rng, &inner, depth + 1);
        }
        _ => builder.payload(rng),
    }
    let length = builder.bytes.len() - start;
    builder.set16(start + 4, length);
    if rng.u8(..8) != 0 {
        builder.finish_transport(start, start + 6, endpoints, protocol::UDP);
    }
}

/// The start of a QUIC packet: a long header with connection IDs (RFC 9000 section 17.2), or a
/// short header whose connection ID starts with the rotation bits and length of QUIC-LB.
fn quic(builder: &mut FrameBuilder, rng: &mut Rng) {
    builder.edge();
    let mut id = [0; 20];
    rng.fill(&mut id);
    let mut length = [8, 8, 8, 0, 1, 4, 19, 20][rng.usize(..8)];
    id[0] = rng.u8(..8) << 5 | if rng.u8(..4) == 0 { rng.u8(..32) } else { 7 };
    if rng.u8(..4) != 0 {
        // A server ID of the fixtures, or a similar one.
        let (rotation, server) = QUIC_CONFIGS[rng.usize(..QUIC_CONFIGS.len())];
        id[0] = rotation << 5 | rng.u8(..32);
        id[1..server].fill(0);
        id[server] = rng.u8(..4);
        length = [8, 20, 20, 1 + server][rng.usize(..4)];
    }
    if rng.bool() {
        builder.put(&[0x40 | rng.u8(..64)]);
        builder.put(&id[..length]);
    } else {
        builder.put(&[0xc0 | rng.u8(..64)]);
        let version = [1, 0x6b33_43cf, 0, 0xff00_001d, rng.u32(..)][rng.usize(..5)];
        builder.put(&version.to_be_bytes());
        let claimed = if rng.u8(..16) == 0 { values::extreme8(rng) } else { length as u8 };
        builder.put(&[claimed]);
        builder.put(&id[..length]);
        let source = rng.usize(..=20);
        builder.put(&[source as u8]);
        builder.put(&id[..source]);
    }
    builder.payload(rng);
}

/// An ICMP echo, or an error that quotes a packet of a VIP's flow.
fn icmp(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, depth: u8) {
    let start = builder.edge();
    let error = rng.u8(..3) != 0;
    let kind = if error {
        [3, 3, 3, 11, 4, 5, 12, rng.u8(..14)][rng.usize(..8)]
    } else {
        [8, 8, 8, 0, 13, rng.u8(..)][rng.usize(..6)]
    };
    builder.put(&[kind, if error { [0, 1, 3, 4, 4, 4][rng.usize(..6)] } else { 0 }]);
    builder.put16(0);
    builder.put16(rng.u16(..));
    builder.put16(mtu(rng));
    if error {
        quoted(builder, rng, endpoints, depth);
    } else {
        builder.payload(rng);
    }
    let sum = ones_complement(0, &builder.bytes[start..]);
    builder.set16(start + 2, sum.into());
}

fn icmpv6(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, depth: u8) {
    let start = builder.edge();
    let error = rng.u8(..3) != 0;
    let kind = if error {
        [1, 2, 2, 3, 4, 5, 127][rng.usize(..7)]
    } else {
        [128, 128, 128, 129, 135, 134, rng.u8(..)][rng.usize(..7)]
    };
    builder.put(&[kind, if error { [0, 0, 0, 1, 4][rng.usize(..5)] } else { 0 }]);
    builder.put16(0);
    builder.put16(if error { 0 } else { rng.u16(..) });
    builder.put16(mtu(rng));
    if error {
        quoted(builder, rng, endpoints, depth);
    } else {
        builder.payload(rng);
    }
    builder.finish_transport(start, start + 2, endpoints, protocol::ICMPV6);
}

fn mtu(rng: &mut Rng) -> u16 {
    [1500, 1400, 1280, 576, 68, 0, 20, 65_535, rng.u16(..)][rng.usize(..9)]
}

/// The packet that an error quotes: mostly one of the reverse direction, truncated after eight
/// bytes of its L4 header or later.
fn quoted(builder: &mut FrameBuilder, rng: &mut Rng, endpoints: &Endpoints, depth: u8) {
    let start = builder.bytes.len();
    if depth >= 2 {
        builder.payload(rng);
        return;
    }
    // An error goes to the source of the quoted packet.
    let inner = match rng.u8(..8) {
        0 => Endpoints::forward(rng).reversed(),
        1 => *endpoints,
        _ => Endpoints {
            destination: values::client(rng, endpoints.is_v6()),
            ..endpoints.reversed()
        },
    };
    packet(builder, rng, &inner, depth + 1);
    let header = if inner.is_v6() { 40 } else { usize::from(builder.bytes[start] & 0x0f) * 4 };
    let shortest = start + header + 8;
    match rng.u8(..8) {
        0 => builder.bytes.truncate(start + rng.usize(..=header + 8)),
        1 | 2 => {}
        3..=5 => builder.bytes.truncate(shortest),
        _ => builder.bytes.truncate(shortest + rng.usize(..60)),
    }
    let length = builder.bytes.len();
    builder.edges.retain(|edge| *edge <= length);
    builder.lengths.retain(|at| at + 2 <= length);
}
