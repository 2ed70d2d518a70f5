//! Outer headers: IPv4-in-IPv4 (RFC 2003) and IPv6-in-IPv6 (RFC 2473).

use crate::checksum;
use crate::ecn;
use crate::flow::{IPV4_IN_IP, IPV6_IN_IP};
use crate::parse::{IPV4_HEADER, IPV6_HEADER};

/// Time to live of outer headers: enough for any underlay, and not taken from the client.
pub const OUTER_HOPS: u8 = 64;

/// The bits of an IPv4 identification that carry the hint. The kernel counts the lower ones up when it cuts a merged packet.
pub const IPV4_HINT: u16 = 0xffc0;

/// The outer IPv4 header in front of an IPv4 packet of `length` bytes.
///
/// Don't-fragment is set: the outer packet is never cut, so the identification is free to carry the hint (RFC 6864 section 4.1).
/// When the total length does not fit its field it is zero, which only a merged packet can reach: each segment gets its own.
#[inline(always)]
pub fn ipv4(source: [u8; 4], destination: [u8; 4], length: usize, traffic_class: u8, hint: u16) -> [u8; IPV4_HEADER] {
    let total = u16::try_from(length.wrapping_add(IPV4_HEADER)).unwrap_or(0).to_be_bytes();
    let id = (hint & IPV4_HINT).to_be_bytes();
    let mut header = [0; IPV4_HEADER];
    header[0] = 0x45;
    header[1] = ecn::encapsulate(traffic_class);
    header[2..4].copy_from_slice(&total);
    header[4..6].copy_from_slice(&id);
    header[6] = 0x40;
    header[8] = OUTER_HOPS;
    header[9] = IPV4_IN_IP;
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let sum = checksum::ipv4_header(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

/// The outer IPv6 header in front of an IPv6 packet of `length` bytes; the flow label carries the hint.
///
/// When the payload length does not fit its field it is zero, as in [`ipv4`].
#[inline(always)]
pub fn ipv6(source: [u8; 16], destination: [u8; 16], length: usize, traffic_class: u8, hint: u16) -> [u8; IPV6_HEADER] {
    let payload = u16::try_from(length).unwrap_or(0).to_be_bytes();
    let class = ecn::encapsulate(traffic_class);
    let hint = hint.to_be_bytes();
    let mut header = [0; IPV6_HEADER];
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    header[2..4].copy_from_slice(&hint);
    header[4..6].copy_from_slice(&payload);
    header[6] = IPV6_IN_IP;
    header[7] = OUTER_HOPS;
    header[8..24].copy_from_slice(&source);
    header[24..40].copy_from_slice(&destination);
    header
}
