//! The layers of a frame, right in themselves: tags, IP headers with options or extension headers,
//! what they carry.

use fastrand::Rng;

use super::draft::{Draft, Ends, protocol};
use super::{Traffic, content, pool};

/// How deep packets lie within packets.
const DEEPEST: u8 = 3;

/// A whole frame.
pub(super) fn frame(draft: &mut Draft, rng: &mut Rng, traffic: Traffic) {
    draft.put(&pool::link(rng));
    let tags = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3][rng.usize(..15)];
    for _ in 0..tags {
        draft.edge();
        draft.put16([0x8100, 0x88a8][rng.usize(..2)]);
        draft.put16(rng.u16(..));
    }
    if rng.u8(..50) == 0 {
        draft.put16(
            [0x0806, 0x86dc, 0x8847, 0x8864, 0x88cc, 0x0000, 0x0040, rng.u16(..)][rng.usize(..8)],
        );
        draft.payload(rng);
        return;
    }
    let ends = match traffic {
        Traffic::OfClients => Ends::forward(rng),
        Traffic::Encapsulated => Ends::to_backend(rng),
        Traffic::OfServers => Ends::forward(rng).reversed(),
    };
    draft.put16(if ends.is_v6() { 0x86dd } else { 0x0800 });
    let kind = match traffic {
        Traffic::Encapsulated if rng.u8(..20) != 0 => {
            [protocol::IPV4, protocol::IPV6][rng.usize(..2)]
        }
        Traffic::OfServers if rng.u8(..10) != 0 => protocol::TCP,
        _ => kind(rng, ends.is_v6(), 0),
    };
    carrying(draft, rng, &ends, kind, 0);
    if rng.u8(..12) == 0 {
        // Ethernet's padding.
        draft.edge();
        let length = draft.bytes.len() + rng.usize(..50);
        draft.bytes.resize(length, 0);
    }
}

/// An IP packet between two ends.
pub(super) fn packet(draft: &mut Draft, rng: &mut Rng, ends: &Ends, depth: u8) {
    let kind = kind(rng, ends.is_v6(), depth);
    carrying(draft, rng, ends, kind, depth);
}

/// An IP packet that carries a protocol.
fn carrying(draft: &mut Draft, rng: &mut Rng, ends: &Ends, kind: u8, depth: u8) {
    if ends.is_v6() {
        ipv6(draft, rng, ends, kind, depth)
    } else {
        ipv4(draft, rng, ends, kind, depth)
    }
}

/// The protocol of what an IP packet carries.
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

fn ipv4(draft: &mut Draft, rng: &mut Rng, ends: &Ends, kind: u8, depth: u8) {
    let start = draft.edge();
    let options = if rng.u8(..6) == 0 { rng.usize(1..=10) * 4 } else { 0 };
    draft.put(&[0x45 + (options / 4) as u8, rng.u8(..)]);
    draft.lengths.push(draft.bytes.len());
    draft.put16(0);
    draft.put16(rng.u16(..));
    draft.put16(match rng.u8(..20) {
        0 => 0x2000,
        1 => 0x2000 | rng.u16(..0x2000),
        2 => rng.u16(..0x2000),
        3 => rng.u16(..),
        4..=11 => 0x4000,
        _ => 0,
    });
    draft.put(&[hops(rng), kind]);
    draft.put16(0);
    let [source, destination] = ends.v4();
    draft.put(&source);
    draft.put(&destination);
    ipv4_options(draft, rng, options);
    content::carried(draft, rng, ends, kind, depth);
    draft.finish_ipv4(start, 20 + options);
}

fn hops(rng: &mut Rng) -> u8 {
    match rng.u8(..24) {
        0 => 0,
        1 => 1,
        _ => rng.u8(2..),
    }
}

/// Options that fill `room`: record route, timestamps, router alert, source routes, padding; their
/// lengths right as a rule.
fn ipv4_options(draft: &mut Draft, rng: &mut Rng, room: usize) {
    let end = draft.bytes.len() + room;
    while draft.bytes.len() < end {
        let left = end - draft.bytes.len();
        let kind = [1, 1, 0, 7, 68, 131, 137, 148, 130, rng.u8(..)][rng.usize(..10)];
        let length = rng.usize(2..12).min(left);
        if kind < 2 || left < 3 {
            draft.put(&[kind & 1]);
            continue;
        }
        let claimed = if rng.u8(..16) == 0 { rng.u8(..) } else { length as u8 };
        draft.put(&[kind, claimed]);
        for _ in 2..length {
            draft.put(&[rng.u8(..)]);
        }
    }
}

fn ipv6(draft: &mut Draft, rng: &mut Rng, ends: &Ends, kind: u8, depth: u8) {
    let start = draft.edge();
    let class = rng.u32(..256);
    draft.put(&(6 << 28 | class << 20 | rng.u32(..1 << 20)).to_be_bytes());
    draft.lengths.push(draft.bytes.len());
    draft.put16(0);
    // The next header follows once it is known.
    let mut next_header = draft.bytes.len();
    draft.put(&[0, hops(rng)]);
    let [source, destination] = ends.v6();
    draft.put(&source);
    draft.put(&destination);
    let headers = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 8][rng.usize(..16)];
    let mut last_fragment = false;
    for position in 0..headers {
        let header = extension(rng, position);
        draft.bytes[next_header] = header;
        next_header = draft.edge();
        last_fragment |= extension_header(draft, rng, header);
    }
    draft.bytes[next_header] = if rng.u8(..60) == 0 { protocol::NOTHING } else { kind };
    if last_fragment {
        // What follows the first fragment begins anywhere in the packet.
        draft.payload(rng);
    } else {
        content::carried(draft, rng, ends, kind, depth);
    }
    let length = draft.bytes.len() - start - 40;
    draft.set16(start + 4, length);
}

fn extension(rng: &mut Rng, position: usize) -> u8 {
    match rng.u8(..12) {
        0..=2 if position == 0 => protocol::HOP_BY_HOP,
        3..=5 => protocol::DESTINATION,
        6 => protocol::ROUTING,
        7..=8 => protocol::FRAGMENT,
        9 => protocol::AUTHENTICATION,
        10 => [135, 139, 140, 253, 254, protocol::HOP_BY_HOP][rng.usize(..6)],
        _ => protocol::DESTINATION,
    }
}

/// One extension header, its own next header still zero; whether what follows is a later fragment.
fn extension_header(draft: &mut Draft, rng: &mut Rng, header: u8) -> bool {
    if header == protocol::FRAGMENT {
        let offset = if rng.bool() { 0 } else { rng.u16(..0x2000) };
        draft.put(&[0, if rng.u8(..8) == 0 { rng.u8(..) } else { 0 }]);
        draft.put16(offset << 3 | u16::from(rng.bool()));
        draft.put(&rng.u32(..).to_be_bytes());
        return offset != 0;
    }
    let words = [0, 0, 1, 2, 4, 15][rng.usize(..6)];
    let bytes = if header == protocol::AUTHENTICATION { (words + 2) * 4 } else { (words + 1) * 8 };
    let claimed = if rng.u8(..16) == 0 { pool::extreme8(rng) } else { words as u8 };
    draft.put(&[0, claimed]);
    if header == protocol::ROUTING {
        draft.put(&[[0, 2, 3, 4][rng.usize(..4)], rng.u8(..4)]);
    }
    let start = draft.bytes.len();
    let length = bytes - if header == protocol::ROUTING { 4 } else { 2 };
    // One option of padding over all of it.
    draft.bytes.resize(start + length, 0);
    if length > 2 {
        draft.bytes[start] = 1;
        draft.bytes[start + 1] = (length - 2) as u8;
    }
    false
}
