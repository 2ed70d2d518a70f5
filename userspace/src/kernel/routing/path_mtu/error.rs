//! Parses "fragmentation needed" (ICMP) and "packet too big" (ICMPv6) errors.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded;
use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv4Slice,
    Ipv6HeaderSlice, LaxIpSlice, UdpHeaderSlice,
};
use sluice_datapath::Family;
use sluice_datapath::abi::{Flow, Port};

/// Bytes that an error quotes at least after the quoted IP header (RFC 792).
const MIN_QUOTED: usize = 8;

/// A "too big" error about an encapsulated packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBigError {
    /// The reported MTU, in bytes; 0 if the router reports none (RFC 1191 section 5).
    pub mtu: u32,
    /// The quoted packet's source.
    pub source: IpAddr,
    /// The quoted packet's destination.
    pub destination: IpAddr,
    /// The quoted packet's length in bytes, outer header included.
    pub length: u32,
    /// The family of the inner packet; `None` if the router quotes nothing after a UDP header, the
    /// minimum that it must quote.
    pub inner: Option<Family>,
    /// The ports of the quoted packet, for UDP.
    pub udp: Option<UdpPorts>,
    /// The flow of the inner packet, TCP or UDP, if its ports are quoted and it is no fragment.
    pub flow: Option<Flow>,
    /// Whether routers must not fragment the quoted packet; always true for IPv6.
    pub dont_fragment: bool,
}

/// The ports of a UDP header, in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpPorts {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// The outer packet's content, as far as it is quoted.
struct Content {
    inner: Option<Family>,
    udp: Option<UdpPorts>,
    flow: Option<Flow>,
}

/// The error is truncated, invalid, or about another kind of packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl TooBigError {
    /// Parses an ICMP message from its IPv4 header on, as received from a raw socket, which does
    /// not verify the ICMP checksum.
    pub fn from_ipv4(packet: &[u8]) -> Result<Self, Malformed> {
        let icmp = Ipv4Slice::from_slice(packet).map_err(|_| Malformed)?.payload().payload;
        if Sum16BitWords::new().add_slice(icmp).ones_complement() != 0 {
            return Err(Malformed);
        }
        let icmp = Icmpv4Slice::from_slice(icmp).map_err(|_| Malformed)?;
        let Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu }) =
            icmp.icmp_type()
        else {
            return Err(Malformed);
        };
        let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).map_err(|_| Malformed)?;
        // Outer headers have no options, and non-initial fragments have no transport header.
        if quoted.slice().len() != 20 || quoted.fragments_offset().value() != 0 {
            return Err(Malformed);
        }
        let Content { inner, udp, flow } =
            content(quoted.protocol(), &icmp.payload()[quoted.slice().len()..])?;
        Ok(Self {
            mtu: next_hop_mtu.into(),
            source: quoted.source_addr().into(),
            destination: quoted.destination_addr().into(),
            length: quoted.total_len().into(),
            inner,
            udp,
            flow,
            dont_fragment: quoted.dont_fragment(),
        })
    }

    /// Parses an ICMPv6 message from its own header on, as received from a raw socket; the kernel
    /// has verified its checksum.
    pub fn from_icmpv6(message: &[u8]) -> Result<Self, Malformed> {
        let icmp = Icmpv6Slice::from_slice(message).map_err(|_| Malformed)?;
        let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { return Err(Malformed) };
        let quoted = Ipv6HeaderSlice::from_slice(icmp.payload()).map_err(|_| Malformed)?;
        let Content { inner, udp, flow } =
            content(quoted.next_header(), &icmp.payload()[quoted.slice().len()..])?;
        // ICMPv6 errors quote as much as fits (RFC 4443 section 3.2).
        if inner.is_none() {
            return Err(Malformed);
        }
        Ok(Self {
            mtu,
            source: quoted.source_addr().into(),
            destination: quoted.destination_addr().into(),
            length: u32::from(quoted.payload_length()) + 40,
            inner,
            udp,
            flow,
            dont_fragment: true,
        })
    }
}

/// Parses the quoted bytes after the outer IP header. Fails if fewer than [`MIN_QUOTED`] bytes are
/// quoted, or if the IP version does not match the protocol number.
fn content(protocol: IpNumber, quoted: &[u8]) -> Result<Content, Malformed> {
    let (udp, packet) = if protocol == IpNumber::UDP {
        let header = UdpHeaderSlice::from_slice(quoted).map_err(|_| Malformed)?;
        let ports =
            UdpPorts { source: header.source_port(), destination: header.destination_port() };
        (Some(ports), &quoted[header.slice().len()..])
    } else {
        (None, quoted)
    };
    let inner = match (protocol, packet.first().map(|first| first >> 4)) {
        (IpNumber::IPV4 | IpNumber::UDP, Some(4)) => Some(Family::V4),
        (IpNumber::IPV6 | IpNumber::UDP, Some(6)) => Some(Family::V6),
        (IpNumber::UDP, None) => None,
        _ => return Err(Malformed),
    };
    if quoted.len() < MIN_QUOTED {
        return Err(Malformed);
    }
    Ok(Content { inner, udp, flow: flow(packet) })
}

/// The flow of a TCP or UDP packet that may be cut off; `None` if its ports are cut off or it is a
/// fragment.
fn flow(packet: &[u8]) -> Option<Flow> {
    let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
    let content = ip.payload();
    if content.fragmented || !matches!(content.ip_number, IpNumber::TCP | IpNumber::UDP) {
        return None;
    }
    let [s0, s1, d0, d1] = *content.payload.first_chunk()?;
    Some(Flow::new(
        ip.source_addr().into(),
        ip.destination_addr().into(),
        Port::new(u16::from_be_bytes([s0, s1])),
        Port::new(u16::from_be_bytes([d0, d1])),
        content.ip_number.0,
    ))
}
