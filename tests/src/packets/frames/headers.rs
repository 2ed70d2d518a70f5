//! Ethernet and IP headers, built with etherparse.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
};

use crate::packets::addresses::{RECEIVER, SENDER};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A frame with this EtherType and content.
pub fn ethernet(ether_type: EtherType, content: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: SENDER, destination: RECEIVER, ether_type };
    [&header.to_bytes()[..], content].concat()
}

/// An IPv4 header with DF. The caller sets length and checksum.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    class: u8,
    ttl: u8,
    protocol: IpNumber,
) -> Ipv4Header {
    Ipv4Header {
        dscp: IpDscp::try_new(class >> 2).expect("six bits"),
        ecn: IpEcn::try_new(class & 3).expect("two bits"),
        dont_fragment: true,
        time_to_live: ttl,
        protocol,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    }
}

/// An IPv6 header.
pub fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    class: u8,
    flow_label: u32,
    ttl: u8,
    next_header: IpNumber,
    payload: usize,
) -> Ipv6Header {
    Ipv6Header {
        traffic_class: class,
        flow_label: Ipv6FlowLabel::try_new(flow_label).expect("20 bits"),
        payload_length: payload.try_into().unwrap_or(0),
        next_header,
        hop_limit: ttl,
        source: source.octets(),
        destination: destination.octets(),
    }
}

/// The frame of an IP packet.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 6 { EtherType::IPV6 } else { EtherType::IPV4 }, packet)
}

/// A frame with swapped link addresses and another IP packet.
pub fn turned_back(frame: &[u8], packet: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..14], packet].concat()
}
