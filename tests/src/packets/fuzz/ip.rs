//! Valid IP headers, with options or extension headers.

use fastrand::Rng;

use super::frame_builder::{Endpoints, FrameBuilder, protocol};
use super::values;

/// An IPv4 header without total length and checksum, which [`FrameBuilder::finish_ipv4`] writes:
/// its offset in the frame and its length in bytes.
pub(super) fn ipv4(
    builder: &mut FrameBuilder,
    rng: &mut Rng,
    endpoints: &Endpoints,
    kind: u8,
) -> (usize, usize) {
    let start = builder.edge();
    let options = if rng.u8(..6) == 0 { rng.usize(1..=10) * 4 } else { 0 };
    builder.put(&[0x45 + (options / 4) as u8, rng.u8(..)]);
    builder.lengths.push(builder.bytes.len());
    builder.put16(0);
    builder.put16(rng.u16(..));
    builder.put16(match rng.u8(..20) {
        0 => 0x2000,
        1 => 0x2000 | rng.u16(..0x2000),
        2 => rng.u16(..0x2000),
        3 => rng.u16(..),
        4..=11 => 0x4000,
        _ => 0,
    });
    builder.put(&[ttl(rng), kind]);
    builder.put16(0);
    let [source, destination] = endpoints.v4();
    builder.put(&source);
    builder.put(&destination);
    ipv4_options(builder, rng, options);
    (start, 20 + options)
}

fn ttl(rng: &mut Rng) -> u8 {
    match rng.u8(..24) {
        0 => 0,
        1 => 1,
        _ => rng.u8(2..),
    }
}

/// Options that fill `room`: record route, timestamps, router alert, source routes, padding; mostly
/// with valid lengths.
fn ipv4_options(builder: &mut FrameBuilder, rng: &mut Rng, room: usize) {
    let end = builder.bytes.len() + room;
    while builder.bytes.len() < end {
        let left = end - builder.bytes.len();
        let kind = [1, 1, 0, 7, 68, 131, 137, 148, 130, rng.u8(..)][rng.usize(..10)];
        let length = rng.usize(2..12).min(left);
        if kind < 2 || left < 3 {
            builder.put(&[kind & 1]);
            continue;
        }
        let claimed = if rng.u8(..16) == 0 { rng.u8(..) } else { length as u8 };
        builder.put(&[kind, claimed]);
        for _ in 2..length {
            builder.put(&[rng.u8(..)]);
        }
    }
}

/// An IPv6 header and its extension headers, without payload length, which
/// [`FrameBuilder::finish_ipv6`] writes: its offset in the frame, and whether the packet is a
/// non-initial fragment.
pub(super) fn ipv6(
    builder: &mut FrameBuilder,
    rng: &mut Rng,
    endpoints: &Endpoints,
    kind: u8,
) -> (usize, bool) {
    let start = builder.edge();
    let class = rng.u32(..256);
    builder.put(&(6 << 28 | class << 20 | rng.u32(..1 << 20)).to_be_bytes());
    builder.lengths.push(builder.bytes.len());
    builder.put16(0);
    // The next header is written later.
    let mut next_header = builder.bytes.len();
    builder.put(&[0, ttl(rng)]);
    let [source, destination] = endpoints.v6();
    builder.put(&source);
    builder.put(&destination);
    let headers = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 8][rng.usize(..16)];
    let mut non_initial = false;
    for position in 0..headers {
        let header = extension(rng, position);
        builder.bytes[next_header] = header;
        next_header = builder.edge();
        non_initial |= extension_header(builder, rng, header);
    }
    builder.bytes[next_header] = if rng.u8(..60) == 0 { protocol::NOTHING } else { kind };
    (start, non_initial)
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

/// One extension header with next header 0; whether the packet is a non-initial fragment.
fn extension_header(builder: &mut FrameBuilder, rng: &mut Rng, header: u8) -> bool {
    if header == protocol::FRAGMENT {
        let offset = if rng.bool() { 0 } else { rng.u16(..0x2000) };
        builder.put(&[0, if rng.u8(..8) == 0 { rng.u8(..) } else { 0 }]);
        builder.put16(offset << 3 | u16::from(rng.bool()));
        builder.put(&rng.u32(..).to_be_bytes());
        return offset != 0;
    }
    let words = [0, 0, 1, 2, 4, 15][rng.usize(..6)];
    let bytes = if header == protocol::AUTHENTICATION { (words + 2) * 4 } else { (words + 1) * 8 };
    let claimed = if rng.u8(..16) == 0 { values::extreme8(rng) } else { words as u8 };
    builder.put(&[0, claimed]);
    if header == protocol::ROUTING {
        builder.put(&[[0, 2, 3, 4][rng.usize(..4)], rng.u8(..4)]);
    }
    let start = builder.bytes.len();
    let length = bytes - if header == protocol::ROUTING { 4 } else { 2 };
    // One padding option over the whole header.
    builder.bytes.resize(start + length, 0);
    if length > 2 {
        builder.bytes[start] = 1;
        builder.bytes[start + 1] = (length - 2) as u8;
    }
    false
}
