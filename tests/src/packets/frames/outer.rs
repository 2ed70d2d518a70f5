//! Outer headers of encapsulated packets, and VLAN tags.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};

use super::headers::{ETHERNET, ipv4, ipv6};
use crate::packets::addresses::{GUE_PORT, UNDERLAY_V4, UNDERLAY_V6};

/// The outer IPv4 header of an IPv6 packet of `length` bytes.
pub fn outer_v4_of_v6(destination: Ipv4Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    outer_v4_of(IpNumber::IPV6, destination, class, hint, length)
}

/// The outer IPv6 header of an IPv4 packet of `length` bytes.
pub fn outer_v6_of_v4(destination: Ipv6Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    ipv6(UNDERLAY_V6, destination, class, hint.into(), 64, IpNumber::IPV4, length)
        .to_bytes()
        .to_vec()
}

/// The outer IPv4 header of an IPv4 packet of `length` bytes.
pub fn outer_v4(destination: Ipv4Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    outer_v4_of(IpNumber::IPV4, destination, class, hint, length)
}

fn outer_v4_of(
    inner: IpNumber,
    destination: Ipv4Addr,
    class: u8,
    hint: u16,
    length: usize,
) -> Vec<u8> {
    let mut header = ipv4(UNDERLAY_V4, destination, class, 64, inner);
    // Only the upper ten bits: segmentation of a merged packet increments the ID.
    header.identification = hint >> 6 << 6;
    header.total_len = (length + 20).try_into().unwrap_or(0);
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

/// The outer IPv6 header of an IPv6 packet of `length` bytes.
pub fn outer_v6(destination: Ipv6Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    ipv6(UNDERLAY_V6, destination, class, hint.into(), 64, IpNumber::IPV6, length)
        .to_bytes()
        .to_vec()
}

/// The outer GUE headers of a packet of `length` bytes: the IP-in-IP header `outer` with protocol
/// UDP, then a UDP header whose source port comes from the flow's hash. The UDP checksum covers
/// `summed`; without it the checksum is 0.
pub fn gue_headers(outer: &[u8], length: usize, hash: u64, summed: Option<&[u8]>) -> Vec<u8> {
    let (from, to) = (49_152 + (hash % 16_384) as u16, GUE_PORT.number());
    let unsummed =
        |length| UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
    if outer[0] >> 4 == 4 {
        let (mut header, _) = Ipv4Header::from_slice(outer).expect("it is a header");
        header.protocol = IpNumber::UDP;
        header.total_len = (length + 28).try_into().unwrap_or(0);
        header.header_checksum = header.calc_header_checksum();
        let udp = summed.map(|bytes| {
            UdpHeader::with_ipv4_checksum(from, to, &header, bytes).expect("it is short")
        });
        let udp = udp.unwrap_or_else(|| unsummed(header.total_len.saturating_sub(20)));
        return [&header.to_bytes()[..], &udp.to_bytes()].concat();
    }
    let (mut header, _) = Ipv6Header::from_slice(outer).expect("it is a header");
    header.next_header = IpNumber::UDP;
    header.payload_length = (length + 8).try_into().unwrap_or(0);
    let udp = summed
        .map(|bytes| UdpHeader::with_ipv6_checksum(from, to, &header, bytes).expect("it is short"));
    let udp = udp.unwrap_or_else(|| unsummed(header.payload_length));
    [&header.to_bytes()[..], &udp.to_bytes()].concat()
}

/// A frame with an outer header inserted after its Ethernet header.
pub fn encapsulated(frame: &[u8], outer: &[u8]) -> Vec<u8> {
    encapsulated_from(frame, ETHERNET, outer)
}

/// A tagged frame whose IP header is at `start`, with its tags replaced by an outer header.
pub fn encapsulated_from(frame: &[u8], start: usize, outer: &[u8]) -> Vec<u8> {
    let ether_type = if outer[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    [&frame[..ETHERNET - 2], &ether_type.0.to_be_bytes(), outer, &frame[start..]].concat()
}

/// A frame with VLAN tags, the outermost first: EtherType and identifier of each.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    [&frame[..ETHERNET - 2], &tags.collect::<Vec<_>>(), &frame[ETHERNET - 2..]].concat()
}
