//! What IP packets carry: TCP, UDP with QUIC and tunnels inside, ICMP that quotes a flow, other
//! packets.

use fastrand::Rng;

use super::draft::{Draft, Ends, ones_complement, protocol};
use super::{layers, pool};

/// What goes behind an IP header that names `kind`.
pub(super) fn carried(draft: &mut Draft, rng: &mut Rng, ends: &Ends, kind: u8, depth: u8) {
    match kind {
        protocol::TCP => tcp(draft, rng, ends),
        protocol::UDP => udp(draft, rng, ends, depth),
        protocol::ICMP => icmp(draft, rng, ends, depth),
        protocol::ICMPV6 => icmpv6(draft, rng, ends, depth),
        protocol::IPV4 | protocol::IPV6 => {
            let inner = Ends::forward(rng);
            // As a rule of the family that the number promises.
            let fits = inner.is_v6() == (kind == protocol::IPV6);
            let inner = if fits || rng.u8(..8) == 0 { inner } else { other_family(rng, inner) };
            layers::packet(draft, rng, &inner, depth + 1);
        }
        _ => draft.payload(rng),
    }
}

fn other_family(rng: &mut Rng, ends: Ends) -> Ends {
    let v6 = !ends.is_v6();
    Ends { source: pool::client(rng, v6), destination: pool::vip(v6), ..ends }
}

fn tcp(draft: &mut Draft, rng: &mut Rng, ends: &Ends) {
    let start = draft.edge();
    draft.put16(ends.source_port);
    draft.put16(ends.destination_port);
    draft.put(&rng.u64(..).to_be_bytes());
    let options = if draft.handshakes || rng.u8(..3) == 0 { rng.usize(..=10) * 4 } else { 0 };
    let flags = match rng.u8(..16) {
        _ if draft.handshakes && rng.u8(..8) != 0 => [0x02, 0x12][rng.usize(..2)],
        0..=3 => 0x02,
        4 => 0x12,
        5 => 0x11,
        6 => 0x04,
        7 => rng.u8(..),
        _ => 0x10,
    };
    draft.put(&[(5 + options as u8 / 4) << 4 | rng.u8(..16) & rng.u8(..16), flags]);
    draft.put16(rng.u16(..));
    draft.put16(0);
    draft.put16(0);
    tcp_options(draft, rng, options);
    draft.payload(rng);
    draft.finish_transport(start, start + 16, ends, protocol::TCP);
}

/// Options that fill `room`: segment size, window scale, timestamps, padding.
fn tcp_options(draft: &mut Draft, rng: &mut Rng, room: usize) {
    let end = draft.bytes.len() + room;
    while draft.bytes.len() < end {
        let left = end - draft.bytes.len();
        let (kind, length) = [(2, 4), (3, 3), (4, 2), (8, 10), (5, 10), (34, 6)][rng.usize(..6)];
        if length > left || rng.u8(..4) == 0 {
            draft.put(&[1]);
            continue;
        }
        draft.put(&[kind, length as u8]);
        for _ in 2..length {
            draft.put(&[rng.u8(..)]);
        }
    }
}

fn udp(draft: &mut Draft, rng: &mut Rng, ends: &Ends, depth: u8) {
    let start = draft.edge();
    draft.put16(ends.source_port);
    draft.put16(ends.destination_port);
    draft.lengths.push(draft.bytes.len());
    draft.put16(0);
    draft.put16(0);
    match rng.u8(..12) {
        0..=4 => quic(draft, rng),
        5 if depth < 2 => {
            // Generic UDP encapsulation, variant 1: the IP packet follows at once.
            let inner = Ends::forward(rng);
            layers::packet(draft, rng, &inner, depth + 1);
        }
        _ => draft.payload(rng),
    }
    let length = draft.bytes.len() - start;
    draft.set16(start + 4, length);
    if rng.u8(..8) != 0 {
        draft.finish_transport(start, start + 6, ends, protocol::UDP);
    }
}

/// A QUIC packet as far as a balancer looks at it: long headers with connection IDs (RFC 9000
/// section 17.2), short headers whose connection ID starts with the rotation bits and length of
/// QUIC-LB.
fn quic(draft: &mut Draft, rng: &mut Rng) {
    draft.edge();
    let mut id = [0; 20];
    rng.fill(&mut id);
    let length = [8, 8, 8, 0, 1, 4, 19, 20][rng.usize(..8)];
    id[0] = rng.u8(..8) << 5 | if rng.u8(..4) == 0 { rng.u8(..32) } else { 7 };
    // Small server IDs, so that some are known.
    id[1] = 0;
    id[2] = rng.u8(..12);
    if rng.bool() {
        draft.put(&[0x40 | rng.u8(..64)]);
        draft.put(&id[..length]);
    } else {
        draft.put(&[0xc0 | rng.u8(..64)]);
        let version = [1, 0x6b33_43cf, 0, 0xff00_001d, rng.u32(..)][rng.usize(..5)];
        draft.put(&version.to_be_bytes());
        let claimed = if rng.u8(..16) == 0 { pool::extreme8(rng) } else { length as u8 };
        draft.put(&[claimed]);
        draft.put(&id[..length]);
        let source = rng.usize(..=20);
        draft.put(&[source as u8]);
        draft.put(&id[..source]);
    }
    draft.payload(rng);
}

/// An echo, or an error that quotes a packet of a VIP's flow.
fn icmp(draft: &mut Draft, rng: &mut Rng, ends: &Ends, depth: u8) {
    let start = draft.edge();
    let error = rng.u8(..3) != 0;
    let kind = if error {
        [3, 3, 3, 11, 4, 5, 12][rng.usize(..7)]
    } else {
        [8, 8, 8, 0, 13, rng.u8(..)][rng.usize(..6)]
    };
    draft.put(&[kind, if error { [0, 1, 3, 4, 4, 4][rng.usize(..6)] } else { 0 }]);
    draft.put16(0);
    draft.put16(rng.u16(..));
    draft.put16(mtu(rng));
    if error {
        quoted(draft, rng, ends, depth);
    } else {
        draft.payload(rng);
    }
    let sum = ones_complement(0, &draft.bytes[start..]);
    draft.set16(start + 2, sum.into());
}

fn icmpv6(draft: &mut Draft, rng: &mut Rng, ends: &Ends, depth: u8) {
    let start = draft.edge();
    let error = rng.u8(..3) != 0;
    let kind = if error {
        [1, 2, 2, 3, 4][rng.usize(..5)]
    } else {
        [128, 128, 128, 129, 135, 134, rng.u8(..)][rng.usize(..7)]
    };
    draft.put(&[kind, if error { [0, 0, 0, 1, 4][rng.usize(..5)] } else { 0 }]);
    draft.put16(0);
    draft.put16(if error { 0 } else { rng.u16(..) });
    draft.put16(mtu(rng));
    if error {
        quoted(draft, rng, ends, depth);
    } else {
        draft.payload(rng);
    }
    draft.finish_transport(start, start + 2, ends, protocol::ICMPV6);
}

fn mtu(rng: &mut Rng) -> u16 {
    [1500, 1400, 1280, 576, 68, 0, 20, 65_535, rng.u16(..)][rng.usize(..9)]
}

/// The packet that an error is about: one of the flow's other direction as a rule, cut behind eight
/// bytes of its transport header or later.
fn quoted(draft: &mut Draft, rng: &mut Rng, ends: &Ends, depth: u8) {
    let start = draft.bytes.len();
    if depth >= 2 {
        draft.payload(rng);
        return;
    }
    // An error goes to the sender of what it quotes.
    let inner = match rng.u8(..8) {
        0 => Ends::forward(rng).reversed(),
        1 => *ends,
        _ => Ends { destination: pool::client(rng, ends.is_v6()), ..ends.reversed() },
    };
    layers::packet(draft, rng, &inner, depth + 1);
    let header = if inner.is_v6() { 40 } else { usize::from(draft.bytes[start] & 0x0f) * 4 };
    let shortest = start + header + 8;
    match rng.u8(..8) {
        0 => draft.bytes.truncate(start + rng.usize(..=header + 8)),
        1 | 2 => {}
        3..=5 => draft.bytes.truncate(shortest),
        _ => draft.bytes.truncate(shortest + rng.usize(..60)),
    }
    let length = draft.bytes.len();
    draft.edges.retain(|edge| *edge <= length);
    draft.lengths.retain(|at| at + 2 <= length);
}
