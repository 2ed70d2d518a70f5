//! Outer headers: IPv4-in-IPv4 (RFC 2003) and IPv6-in-IPv6 (RFC 2473).

use crate::flow::{IPV4_IN_IP, IPV6_IN_IP};
use crate::header::{Ipv4, Ipv6};
use crate::{Address, ecn};

/// Time to live of outer headers: enough for any underlay, and not taken from the client.
pub const OUTER_HOPS: u8 = 64;

/// The bits of an IPv4 identification that carry the hint. The kernel counts the lower ones up when it cuts a merged packet.
pub const IPV4_HINT: u16 = 0xffc0;

/// The outer IPv4 header in front of an IPv4 packet of `length` bytes.
///
/// Don't-fragment is set: the outer packet is never cut, so the identification is free to carry the hint (RFC 6864 section 4.1).
/// When the total length does not fit its field it is zero, which only a merged packet can reach: each segment gets its own.
#[inline(always)]
pub fn ipv4(source: Address, destination: Address, length: usize, traffic_class: u8, hint: u16) -> Ipv4 {
    let total = u16::try_from(length.wrapping_add(Ipv4::SIZE)).unwrap_or(0);
    let [.., source] = source.words();
    let [.., destination] = destination.words();
    Ipv4::new(ecn::encapsulate(traffic_class), total, hint & IPV4_HINT, OUTER_HOPS, IPV4_IN_IP, source, destination)
}

/// The outer IPv6 header in front of an IPv6 packet of `length` bytes; the flow label carries the hint.
///
/// When the payload length does not fit its field it is zero, as in [`ipv4`].
#[inline(always)]
pub fn ipv6(source: Address, destination: Address, length: usize, traffic_class: u8, hint: u16) -> Ipv6 {
    let payload = u16::try_from(length).unwrap_or(0);
    let class = ecn::encapsulate(traffic_class);
    Ipv6::new(class, u32::from(hint), payload, IPV6_IN_IP, OUTER_HOPS, source.words(), destination.words())
}
